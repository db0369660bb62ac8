"""Networks of others that speak: what is read says what transformers says, and what is not taken is refused by name."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile
import torch

from flows.context import registry
from flows.evaluating.pipeline import load_model
from flows.provenance.checkpoints import CheckpointError
from flows.provenance.importing import import_checkpoint
from flows.provenance.speech_checkpoints import read
from flows.recipe import Recipe
from infra.pipelines import read_pipeline
from infra.storage import IntegrityError
from models import build
from models.parts.noise import Seeded
from models.ports import salted
from models.request import Request
from tests.flows.checkpoint_kit import changed
from tests.flows.speech_checkpoint_kit import BUILT
from tests.flows.test_travelling import served
from tests.flows.versions_kit import Installation

SAID = {
    "many": ("kind A words, skin", "Kick the-black  ox!", "Aaron's"),
    "one": ("Привет, мир", "яма."),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A folder of each kind, and transformers' model of it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: (folder / kind, save(folder / kind)) for kind, save in BUILT.items()}


@pytest.fixture(scope="module")
def models(checkpoints: dict[str, tuple[Path, Any]]) -> dict[str, Any]:
    """What is read of each, as a family."""
    found = {}
    for kind, (folder, _) in checkpoints.items():
        checkpoint = read(folder, "a test")
        model = build(json.loads(json.dumps(checkpoint.document)))
        model.load_state_dict(dict(checkpoint.tensors))
        found[kind] = model.eval()
    return found


def their_tokens(folder: Path, text: str) -> Any:
    from transformers import VitsTokenizer

    words = VitsTokenizer.from_pretrained(folder, local_files_only=True)
    return words(text, return_tensors="pt")["input_ids"]


@pytest.mark.parametrize("kind", BUILT)
def test_a_text_is_read_as_transformers_reads_it(
    checkpoints: dict[str, tuple[Path, Any]], models: dict[str, Any], kind: str
) -> None:
    for text in SAID[kind]:
        ours = models[kind].encode([text]) - 1
        assert ours.tolist() == their_tokens(checkpoints[kind][0], text).tolist()


@pytest.mark.parametrize("kind", BUILT)
@pytest.mark.parametrize("speed", [1.0, 1.6])
def test_the_sound_is_transformers_own_at_the_same_noise(
    checkpoints: dict[str, tuple[Path, Any]], models: dict[str, Any], kind: str, speed: float
) -> None:
    folder, theirs = checkpoints[kind]
    voices = models[kind].config.speakers
    for number, text in enumerate(SAID[kind]):
        voice = voices[-1 - number] if voices else None
        asked = Request(seeds=(number, 7), prompts=(text, text), voice=voice, speed=speed)
        with Seeded(number), torch.no_grad():
            wanted = theirs(
                their_tokens(folder, text),
                speaker_id=int(voice) if voice else None,
                speaking_rate=theirs.config.speaking_rate * speed,
            ).waveform[0]
        ours = models[kind].sample(asked)
        torch.testing.assert_close(ours[0, : len(wanted)], wanted, rtol=0, atol=1e-5)
        assert not ours[0, len(wanted) :].any(), "silence follows"
        assert not torch.equal(ours[1, : len(wanted)], wanted), "another seed, another sound"


def test_letters_that_it_never_learned_are_named_and_marks_are_passed_over(
    models: dict[str, Any],
) -> None:
    model = models["many"]
    assert model.unknown("Straße 8b - ok") == ["straße", "8b"]
    with pytest.raises(ValueError, match="unknown word 'straße': this model reads no 'ß'"):
        model.sample(Request(seeds=(1,), prompts=("Straße",)))
    with pytest.raises(ValueError, match=r"prompt: nothing in '\?!' can be said"):
        model.sample(Request(seeds=(1,), prompts=("?!",)))
    with pytest.raises(ValueError, match="no voice 'ann'; choose one of 0, 1, 2"):
        model.sample(Request(seeds=(1,), prompts=("a",), voice="ann"))


def test_what_would_take_minutes_to_say_is_refused_before_it_is_made(
    models: dict[str, Any],
) -> None:
    model = models["one"]
    bias = model.network.duration_predictor.proj.bias
    before = bias.detach().clone()
    bias.data.fill_(12.0)
    with pytest.raises(ValueError, match=r"prompt: it takes \d+ s to say; at most 60 s are made"):
        model.sample(Request(seeds=(1,), prompts=("мир",)))
    bias.data.copy_(before)


def test_the_text_s_side_learns_and_what_makes_sound_stays(models: dict[str, Any]) -> None:
    """With drawn durations, too: their splines need values, so that the contract's tests have told ones."""
    batch = {"sound": 0.5 * torch.randn(2, 1200).clamp(-1, 1), "length": torch.tensor([1200, 900])}
    for model, texts in ((models["many"], ("a b", "cab")), (models["one"], ("яма я", "вот"))):
        batch["tokens"] = model.encode(texts)
        model.train()
        losses = model(batch)
        losses.total.backward()
        learned = {
            name.split(".")[1] for name, one in model.named_parameters() if one.grad is not None
        }
        model.zero_grad()
        model.eval()
        assert learned == {"text_encoder", "flow", "duration_predictor"}
        assert torch.isfinite(losses.total)
        assert int(losses.count) == (1200 + 904) // 8


@pytest.mark.parametrize("kind", BUILT)
def test_it_is_registered_and_speaks_through_the_gateway(
    kind: str, checkpoints: dict[str, tuple[Path, Any]], here: Installation
) -> None:
    folder, theirs = checkpoints[kind]
    found, version = import_checkpoint(folder, "a test", "foreign")
    assert import_checkpoint(folder, "a test", "foreign")[1] == version, "found, not repeated"
    assert (found.licence, found.kind) == ("cc-by-nc-4.0", "VitsModel")
    pinned = read_pipeline(registry().fetch(version))
    [stage] = pinned.stages
    assert (pinned.modality, pinned.sample_rate) == ("audio", 8000)
    assert stage.speakers == (("0", "1", "2") if kind == "many" else ())
    model = load_model(registry().fetch(stage.pin.ref, digest=stage.sha256))
    for prompt in pinned.try_prompts:
        assert not model.unknown(prompt)
    here.promote(version)
    voice = "2" if kind == "many" else "default"
    text = SAID[kind][0]
    body = {"model": "foreign", "input": text, "voice": voice, "response_format": "wav", "seed": 3}
    with (
        served(here) as address,
        httpx.Client(base_url=f"{address}/v1/audio", trust_env=False, timeout=300) as client,
    ):
        said = client.post("/speech", json=body)
        voices = client.get("/voices").json()["data"]
        refused = client.post("/speech", json={**body, "voice": "nobody"})
    assert said.status_code == 200, said.text
    levels, rate = soundfile.read(io.BytesIO(said.content))
    with Seeded(salted(3, stage.stage)), torch.no_grad():
        wanted = theirs(
            their_tokens(folder, text), speaker_id=2 if kind == "many" else None
        ).waveform[0]
    assert rate == 8000
    torch.testing.assert_close(torch.tensor(levels).float(), wanted, rtol=0, atol=1e-4)
    assert [one["id"] for one in voices] == (["0", "1", "2"] if kind == "many" else ["default"])
    assert refused.status_code == 400
    assert "voice: foreign speaks as " in refused.json()["error"]["message"]


@pytest.fixture
def folder(checkpoints: dict[str, tuple[Path, Any]], tmp_path: Path) -> Path:
    return shutil.copytree(checkpoints["many"][0], tmp_path / "many")


def test_data_of_another_rate_cannot_judge_it(folder: Path, here: Installation) -> None:
    """Before anything is published."""
    changed(folder / "config.json", sampling_rate=16000)
    (here.home / "spoken.py").write_text("")
    entry = "spoken: {maker: spoken, path: spoken.py, count: 30, seed: 0, sample_rate: 8000}"
    (here.home / "params.yaml").write_text(f"datasets:\n  {entry}\n")
    stages = {"voice": {"family": "vits-checkpoint", "training": {"steps": 1}}}
    recipe = Recipe.model_validate(
        {"name": "foreign", "data": {"name": "spoken"}, "stages": stages}
    )
    with pytest.raises(
        CheckpointError, match=r"at 16000 Hz, and spoken, .* 8000 Hz: prepare them at"
    ):
        import_checkpoint(folder, "a test", "foreign", recipe)
    assert registry().names() == []


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (
        lambda f: (f / "pytorch_model.bin").write_bytes(b"."),
        r"pytorch_model\.bin is a pickle",
    ),
    "truncated": (_truncated, r"model\.safetensors is truncated"),
    "code": (lambda f: (f / "modeling.py").write_text(""), r"modeling\.py is code"),
    "auto_map": (
        lambda f: changed(f / "config.json", auto_map={"AutoModel": "m.M"}),
        r"config\.json asks for auto_map",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights as .safetensors"),
    "other sizes": (lambda f: changed(f / "config.json", hidden_size=32), "many"),
    "no tokenizer": (lambda f: (f / "vocab.json").unlink(), r"has no vocab\.json, by which"),
    "another tokenizer": (
        lambda f: changed(f / "tokenizer_config.json", tokenizer_class="T5Tokenizer"),
        "is a T5Tokenizer; a VitsModel is read by a VitsTokenizer",
    ),
    "phones": (
        lambda f: changed(f / "tokenizer_config.json", phonemize=True),
        "reads texts by phonemizer, and espeak-ng, .* install phonemizer, and espeak-ng",
    ),
    "other scripts": (
        lambda f: changed(f / "tokenizer_config.json", is_uroman=True),
        "reads texts by uroman, .* install uroman",
    ),
    "too many signs": (
        lambda f: changed(f / "vocab.json", **{"é": 99}),
        "it has a sign 99, and the network knows 29",
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
