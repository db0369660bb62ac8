"""Language models of others: what is read writes what transformers writes, and what is not taken is refused by name."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file

from flows import context
from flows.context import registry
from flows.evaluating.pipeline import load_model
from flows.provenance.bases import base_of
from flows.provenance.bundle import export, import_folder
from flows.provenance.checkpoints import CheckpointError, downloaded
from flows.provenance.importing import import_checkpoint
from flows.provenance.language_checkpoints import read
from flows.recipe import Recipe
from flows.train import check_specs
from flows.training.ray_train import fit
from infra.pipelines import read_pipeline
from infra.storage import IntegrityError
from models.parts import lora
from models.parts.rows import join, take
from models.parts.tokens import CONTROL, EOS, UNK, tokenizer
from models.request import Request
from tests.command_kit import commands
from tests.data import prepare_kit
from tests.flows.checkpoint_kit import changed, model_of
from tests.flows.conftest import Install
from tests.flows.language_kit import BUILT
from tests.flows.test_travelling import served
from tests.flows.training_kit import spec_of
from tests.flows.versions_kit import Installation
from tests.ports_kit import free_ports

FIRST = len(CONTROL)
PROMPTS = ("the cat", "a red square is on", "the dog ran home !")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A folder of each kind, and transformers' model of it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: (folder / kind, save(folder / kind)) for kind, save in BUILT.items()}


@pytest.fixture(scope="module")
def models(checkpoints: dict[str, tuple[Path, Any]]) -> dict[str, Any]:
    """What is read of each, as a family."""
    return {kind: model_of(read(folder, "a test")) for kind, (folder, _) in checkpoints.items()}


def their_tokens(folder: Path, text: str) -> list[int]:
    """What transformers' tokenizer makes of a text, behind the token that begins one."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return [words.bos_token_id, *words(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("kind", BUILT)
def test_a_text_is_read_as_transformers_reads_it_and_comes_back(
    checkpoints: dict[str, tuple[Path, Any]], models: dict[str, Any], kind: str
) -> None:
    words = tokenizer(models[kind].config.tokenizer)
    for text in (*PROMPTS, "", "mat"):
        ours = words.encode(text)
        assert [FIRST + one for one in their_tokens(checkpoints[kind][0], text)[1:]] == ours
        assert words.decode(ours) == text
        assert "".join(words.pieces(text)) == text
    rest = words.encode(" on the left", continued=True)
    assert words.decode(rest, continued=True) == " on the left"


@pytest.mark.parametrize("kind", BUILT)
def test_what_it_says_of_a_text_is_what_transformers_says(
    checkpoints: dict[str, tuple[Path, Any]], models: dict[str, Any], kind: str
) -> None:
    model, (folder, theirs) = models[kind], checkpoints[kind]
    ids = their_tokens(folder, PROMPTS[1])
    ours = [EOS, *(FIRST + one for one in ids[1:])]
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits[0]
        found = model.logits(torch.tensor([ours]))[0]
    known, ends = model.size - FIRST, theirs.config.eos_token_id
    own = {EOS: ends} if kind == "gpt2" else {EOS: ends, UNK: 0}
    others = [one for one in range(known) if one not in own.values()]
    torch.testing.assert_close(
        found[:, [FIRST + one for one in others]], wanted[:, others], rtol=1e-4, atol=1e-4
    )
    for our_one, their_one in own.items():
        torch.testing.assert_close(found[:, our_one], wanted[:, their_one], rtol=1e-4, atol=1e-4)
    gone = [*({*range(FIRST)} - own.keys()), *(FIRST + one for one in own.values())]
    assert not found[:, gone].isfinite().any()


@pytest.mark.parametrize("kind", BUILT)
def test_it_writes_what_transformers_writes_alone_and_together_with_others(
    checkpoints: dict[str, tuple[Path, Any]], models: dict[str, Any], kind: str
) -> None:
    model, (folder, theirs) = models[kind], checkpoints[kind]
    unknown = model.config.unknown  # which is never written here
    asked = [
        Request(seeds=(seed,), prompts=(prompt,), max_tokens=6, temperature=0)
        for seed, prompt in enumerate(PROMPTS)
    ]
    rows = join([model.begin(one) for one in asked])
    while not model.done(rows).all():
        rows = model.step(rows)
    for place, (prompt, one) in enumerate(zip(PROMPTS, asked, strict=True)):
        ids = their_tokens(folder, prompt)
        whole = theirs.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=6, do_sample=False, pad_token_id=0,
                suppress_tokens=None if unknown is None else [unknown],
        )[0, len(ids) :]  # fmt: skip
        wanted = [FIRST + int(token) for token in whole if token != theirs.config.eos_token_id]
        together = model.finish(take(rows, [place]))[0]
        assert [token for token in together.tolist() if token >= 0] == wanted
        assert [token for token in model.sample(one)[0].tolist() if token >= 0] == wanted


def test_a_prompt_longer_than_its_context_is_refused_with_both_lengths(
    models: dict[str, Any],
) -> None:
    with pytest.raises(ValueError, match="but this model sees 32: shorten it"):
        models["llama"].sample(Request(seeds=(1,), prompts=("the cat " * 32,)))


@pytest.mark.parametrize("kind", BUILT)
def test_it_is_registered_served_and_taken_elsewhere(
    kind: str, checkpoints: dict[str, tuple[Path, Any]], install: Install, tmp_path: Path
) -> None:
    here = install("here")
    folder, theirs = checkpoints[kind]
    found, version = import_checkpoint(folder, "a test", "foreign")
    assert import_checkpoint(folder, "a test", "foreign")[1] == version, "found, not repeated"
    assert (found.licence, found.kind) == ("mit", type(theirs).__name__)
    card = (registry().fetch(registry().get("foreign.model")) / "card.md").read_text()
    assert f"A `{type(theirs).__name__}` of others" in card
    pinned = read_pipeline(registry().fetch(version))
    assert (pinned.modality, pinned.try_prompts) == ("text", ())
    here.promote(version)
    body = {"model": "foreign", "prompt": PROMPTS[0], "max_tokens": 4, "temperature": 0}
    with served(here) as address:
        answer = httpx.post(f"{address}/v1/completions", json=body, trust_env=False)
        rated = {"model": "foreign", "input": "the cat sat"}
        nats = httpx.post(f"{address}/v1/scores", json=rated, trust_env=False)
    assert answer.status_code == nats.status_code == 200, (answer.text, nats.text)
    ids = torch.tensor([their_tokens(folder, "the cat sat")])
    with torch.no_grad():
        known = tokenizer(found.document["config"]["tokenizer"]).size - FIRST
        log_p = theirs(ids).logits[0, :, :known].log_softmax(1)  # not what fills a table up
    wanted = log_p[:-1].gather(1, ids[0, 1:, None]).sum() + log_p[-1, theirs.config.eos_token_id]
    assert nats.json()["data"][0]["nats"] == pytest.approx(float(wanted), rel=1e-3)
    export(version.ref, tmp_path / "sent")
    signer = context.signing().fingerprint()
    install("there")
    again = import_folder(tmp_path / "sent", signer).version
    [stage] = read_pipeline(registry().fetch(again)).stages
    model = load_model(registry().fetch(stage.pin.ref, digest=stage.sha256))
    tokens = model.sample(Request(seeds=(0,), prompts=(PROMPTS[0],), max_tokens=4, temperature=0))
    assert model.text_of(tokens[0], PROMPTS[0]) == answer.json()["choices"][0]["text"]


def test_a_gpt_2_whose_layers_are_no_linear_ones_takes_no_adapter(models: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no linear one is called q_proj, k_proj, v_proj, o_proj"):
        lora.check(models["gpt2"], ())


def test_an_adapter_learns_texts_beside_a_llama_whose_weights_stay(
    here: Installation, checkpoints: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    """The data's own tokenizer gives way to the checkpoint's."""
    _, version = import_checkpoint(checkpoints["llama"][0], "a test", "foreign")
    (tmp_path / "scenes").mkdir()
    data = prepare_kit.prepare(tmp_path / "scenes", {"maker": "scenes", "count": 600})
    stage = registry().get("foreign.model")
    rules = {"lora": {"base": version.ref, "rank": 2}, "steps": 12, "batch_size": 8}
    rules["optimizers"] = {"model": {"learning_rate": 0.02, "warmup_steps": 0}}
    spec = spec_of(data, family="causal-lm", **rules).model_copy(
        update={"preset": "base", "image_size": None, "base": base_of(version.ref, "model")}
    )
    check_specs([spec])
    found = fit(spec, run_id=None, tracking_uri=None, runs=tmp_path / "runs")
    mine = load_file(found.directory / "model.safetensors")
    assert {name.split(".")[-3] for name in mine} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    base, model = registry().fetch(stage), load_model(registry().fetch(stage), found.directory)
    assert model.config == load_model(base).config
    state = model.state_dict()
    stored = load_file(base / "model.safetensors")
    assert all(torch.equal(state[name], one) for name, one in stored.items())
    assert any(one.abs().max() > 0 for name, one in mine.items() if name.endswith("up"))


def test_a_recipe_of_another_family_is_refused(
    here: Installation, checkpoints: dict[str, tuple[Path, Any]]
) -> None:
    stages = {"gpt": {"family": "gpt", "training": {"steps": 1}}}
    recipe = Recipe.model_validate({"name": "foreign", "data": {"name": "x"}, "stages": stages})
    with pytest.raises(CheckpointError, match="has one stage, of family causal-lm; got gpt"):
        import_checkpoint(checkpoints["gpt2"][0], "a test", "foreign", recipe)


@pytest.fixture
def folder(checkpoints: dict[str, tuple[Path, Any]], tmp_path: Path) -> Path:
    return shutil.copytree(checkpoints["llama"][0], tmp_path / "llama")


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _of_pieces(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)).save(str(folder / "tokenizer.json"))  # fmt: skip


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (
        lambda f: (f / "pytorch_model.bin").write_bytes(b"."),
        r"pytorch_model\.bin is a pickle",
    ),
    "truncated": (_truncated, r"model\.safetensors is truncated"),
    "code": (lambda f: (f / "modeling.py").write_text(""), r"modeling\.py is code"),
    "auto_map": (
        lambda f: changed(f / "config.json", auto_map={"AutoModelForCausalLM": "m.M"}),
        r"config\.json asks for auto_map",
    ),
    "another architecture": (
        lambda f: changed(f / "config.json", architectures=["BloomForCausalLM"]),
        "is of architecture BloomForCausalLM; taken are GPT2LMHeadModel, Llama",
    ),
    "no architecture": (lambda f: changed(f / "config.json", architectures=None), "of architecture none"),
    "numbers": (
        lambda f: changed(f / "config.json", quantization_config={"bits": 4}),
        "has a quantization_config",
    ),
    "a window": (
        lambda f: changed(f / "config.json", sliding_window=8),
        r"network\.sliding_window: every token sees all before it here, got 8",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights as .safetensors"),
    "other sizes": (lambda f: changed(f / "config.json", hidden_size=64), "llama"),
    "no tokenizer": (
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "has no tokenizer",
    ),
    "pieces": (_of_pieces, "its tokenizer is of kind Unigram; taken are BPE and WordLevel"),
    "no config": (
        lambda f: (f / "config.json").unlink(),
        "it is no checkpoint of diffusers, nor, without a config.json, one of transformers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_not_taken_is_refused_by_name_and_nothing_is_published(
    folder: Path, fault: str, here: Installation
) -> None:
    spoil, message = REFUSED[fault]
    spoil(folder)
    with pytest.raises((CheckpointError, IntegrityError, ValueError), match=message) as refused:
        import_checkpoint(folder, "a test", "foreign")
    assert "\n" not in str(refused.value)
    assert registry().names() == []


def test_a_download_asks_the_hub_and_what_is_wrong_there_is_told_in_a_line(
    here: Installation, tmp_path: Path
) -> None:
    [nobody_s] = free_ports(1)
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{nobody_s}", "HF_HOME": str(tmp_path / "hub")}
    words = ("import-checkpoint", "nobody/nothing", "--name", "x", "--download")
    done = commands.run(*words, env={**os.environ, **hub})
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "error: nobody/nothing cannot be fetched: " in said
    assert "traffic has been disabled" not in said, "it was asked"
    assert "Traceback" not in said


def test_what_is_to_be_fetched_and_cannot_be_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name, says in (
        ("sd15", "'sd15' is no repository of the hub, like OWNER/NAME"),
        ("../../etc/passwd", "is no repository of the hub"),
        ("nobody/nothing", "nobody/nothing cannot be fetched: "),
    ):
        with pytest.raises(CheckpointError, match=says) as refused:
            downloaded(name)
        assert "\n" not in str(refused.value)
