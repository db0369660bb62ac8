"""Networks of others that speak: what is read says what transformers says, and what is not taken is refused by name."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

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
from tests.flows.checkpoint_kit import changed, model_of
from tests.flows.speech_checkpoint_kit import BUILT, pieces
from tests.flows.test_travelling import served
from tests.flows.versions_kit import Installation
from tests.models.families_kit import batch_of, shaken

SAID = {
    "many": ("kind A words, skin", "Kick the-black  ox!", "Aaron's"),
    "one": ("Привет, мир", "яма."),
    "speecht5": ("the lazy dog", " quick,  brown…!? fox."),
}
VOICES = {"many": ("0", "1", "2"), "one": (), "speecht5": ("ann", "bob")}
KINDS = {"many": "VitsModel", "one": "VitsModel", "speecht5": "SpeechT5ForTextToSpeech"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A folder of each kind, and transformers' model of it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: (folder / kind, save(folder / kind)) for kind, save in BUILT.items()}


@pytest.fixture(scope="module")
def models(checkpoints: dict[str, tuple[Path, Any]]) -> dict[str, Any]:
    """What is read of each, as a family."""
    return {kind: model_of(read(folder, "a test")) for kind, (folder, _) in checkpoints.items()}


def their_tokens(folder: Path, text: str) -> Any:
    from transformers import SpeechT5Tokenizer, VitsTokenizer

    if (folder / "vocab.json").is_file():
        words = VitsTokenizer.from_pretrained(folder, local_files_only=True)
    else:
        words = SpeechT5Tokenizer(str(folder / "spm_char.model"))
    return words(text, return_tensors="pt")["input_ids"]


def their_sound(
    checkpoint: tuple[Path, Any], text: str, seed: int, voice: str | None, speed: float = 1.0
) -> Any:
    """What transformers' own network says, where what it draws comes of a seed."""
    folder, theirs = checkpoint
    tokens = their_tokens(folder, text)
    with Seeded(seed), torch.no_grad():
        if isinstance(theirs, tuple):
            network, vocoder = theirs
            voices = load_file(folder / "voices.safetensors")
            who = voices[voice or "ann"].reshape(1, -1)
            return network.generate_speech(tokens, speaker_embeddings=who, vocoder=vocoder)
        return theirs(
            tokens,
            speaker_id=int(voice) if voice else None,
            speaking_rate=theirs.config.speaking_rate * speed,
        ).waveform[0]


@pytest.mark.parametrize("kind", BUILT)
def test_a_text_is_read_as_transformers_reads_it(
    checkpoints: dict[str, tuple[Path, Any]], models: dict[str, Any], kind: str
) -> None:
    for text in SAID[kind]:
        ours = models[kind].encode([text]) - 1
        assert ours.tolist() == their_tokens(checkpoints[kind][0], text).tolist()


@pytest.mark.parametrize(
    ("kind", "speed"), [*((kind, 1.0) for kind in BUILT), ("many", 1.6), ("one", 1.6)]
)
def test_the_sound_is_transformers_own_at_the_same_noise(
    checkpoints: dict[str, tuple[Path, Any]], models: dict[str, Any], kind: str, speed: float
) -> None:
    for number, text in enumerate(SAID[kind]):
        voice = VOICES[kind][-1 - number] if VOICES[kind] else None
        options = {"voice": voice, **({} if speed == 1 else {"speed": speed})}
        asked = Request(seeds=(number, 7), prompts=(text, text), options=options)
        wanted = their_sound(checkpoints[kind], text, number, voice, speed)
        ours = models[kind].sample(asked)
        torch.testing.assert_close(ours[0, : len(wanted)], wanted, rtol=0, atol=1e-5)
        assert not ours[0, len(wanted) :].any(), "silence follows"
        assert wanted.std() > 1e-3
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


def test_a_speecht5_names_what_it_cannot_say(models: dict[str, Any]) -> None:
    model = models["speecht5"]
    assert model.unknown("the Fox, 8 - ok") == ["Fox,", "8"]
    for text, says in (
        ("fox 8", "unknown word '8': this model reads no '8'"),
        ("  ", "prompt: nothing in '  ' can be said"),
        ("fox " * 20, r"prompt: it has 81 signs, and this model reads 60: shorten it"),
    ):
        with pytest.raises(ValueError, match=says):
            model.sample(Request(seeds=(1,), prompts=(text,)))
    with pytest.raises(ValueError, match="speed: this model has none"):
        model.sample(Request(seeds=(1,), prompts=("fox",), speed=2.0))


def test_numbers_are_read_as_words_where_the_checkpoint_s_tokenizer_does(
    checkpoints: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoints["speecht5"][0], tmp_path / "numbers")
    (folder / "tokenizer_config.json").write_text('{"normalize": true}')
    model: Any = build(read(folder, "a test").document)
    assert model.encode(["8 of 30"]).tolist() == model.encode(["eight of thirty"]).tolist()


def test_what_would_take_minutes_to_say_is_refused_before_it_is_made(
    models: dict[str, Any],
) -> None:
    model = models["one"]
    bias = model.network.duration_predictor.proj.bias
    before = bias.detach().clone()
    bias.data.fill_(12.0)
    with pytest.raises(ValueError, match=r"prompt: it takes \d+ s to say; at most 60 s are made"):
        model.sample(Request(seeds=(1,), prompts=("мир",)))
    bias.data.fill_(8.5)  # 40 s at its own speed
    with pytest.raises(
        ValueError, match=r"prompt: it takes (7|8)\d s to say; at most 60 s are made"
    ):
        model.sample(Request(seeds=(1,), prompts=("мир",), speed=0.5))
    bias.data.copy_(before)


def test_padding_changes_no_loss_of_a_speecht5() -> None:
    """Its last layers see frames on both sides; beyond a row's end there are none in use."""
    model = shaken("speecht5")
    batch = batch_of(model, 2)
    padded = {**batch, "sound": F.pad(batch["sound"], (0, 800))}
    torch.testing.assert_close(model(padded).total, model(batch).total, rtol=1e-6, atol=0)


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
    folder, _ = checkpoints[kind]
    found, version = import_checkpoint(folder, "a test", "foreign")
    assert import_checkpoint(folder, "a test", "foreign")[1] == version, "found, not repeated"
    assert (found.licence, found.kind) == (
        "mit" if kind == "speecht5" else "cc-by-nc-4.0",
        KINDS[kind],
    )
    pinned = read_pipeline(registry().fetch(version))
    [stage] = pinned.stages
    assert (pinned.modality, pinned.sample_rate) == ("audio", 8000)
    assert stage.speakers == VOICES[kind]
    model = load_model(registry().fetch(stage.pin.ref, digest=stage.sha256))
    for prompt in pinned.try_prompts:
        assert not model.unknown(prompt)
    here.promote(version)
    voice, text = (*VOICES[kind], "default")[-2:][0], SAID[kind][0]
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
    who = voice if VOICES[kind] else None
    wanted = their_sound(checkpoints[kind], text, salted(3, stage.stage), who)
    assert rate == 8000
    torch.testing.assert_close(torch.tensor(levels).float(), wanted, rtol=0, atol=1e-4)
    assert [one["id"] for one in voices] == [*(VOICES[kind] or ("default",))]
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


@pytest.fixture
def speecht5(checkpoints: dict[str, tuple[Path, Any]], tmp_path: Path) -> Path:
    return shutil.copytree(checkpoints["speecht5"][0], tmp_path / "speecht5")


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


OF_SPEECHT5: dict[str, tuple[Callable[[Path], object], str]] = {
    "no vocoder": (
        lambda f: shutil.rmtree(f / "vocoder"),
        r"has no vocoder: put a SpeechT5HifiGan \(microsoft/speecht5_hifigan\) into",
    ),
    "a vocoder's pickle": (
        lambda f: (f / "vocoder" / "pytorch_model.bin").write_bytes(b"."),
        r"vocoder/pytorch_model\.bin is a pickle",
    ),
    "no voices": (
        lambda f: (f / "voices.safetensors").unlink(),
        r"has no voices\.safetensors: a .* speaks in voices that it is given, 4 numbers each",
    ),
    "a voice as numpy's": (lambda f: (f / "ann.npy").write_bytes(b"."), r"ann\.npy is a pickle"),
    "another voice": (
        lambda f: save_file({"ann": torch.zeros(5)}, f / "voices.safetensors"),
        r"voices\.safetensors: ann must be 4 finite numbers, got 5",
    ),
    "a vocoder of another rate": (
        lambda f: changed(f / "vocoder" / "config.json", sampling_rate=16000),
        r"preprocessor_config\.json: it learned sound of 8000 Hz, and its vocoder makes sound of 16000 Hz",
    ),
    "a vocoder of other frames": (
        lambda f: changed(f / "preprocessor_config.json", hop_length=2),
        "mel.hop must be the samples that the vocoder makes of a frame, 8, got 16",
    ),
    "no tokenizer": (lambda f: (f / "spm_char.model").unlink(), r"has no spm_char\.model, by which"),
    "a broken tokenizer": (
        lambda f: (f / "spm_char.model").write_bytes(b"\xff" * 9),
        r"spm_char\.model is no model of SentencePiece",
    ),
    "pieces": (
        lambda f: (f / "spm_char.model").write_bytes(pieces("unigram")),
        r"spm_char\.model is of kind UNIGRAM; taken is CHAR",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", OF_SPEECHT5)
def test_what_a_speecht5_lacks_is_named_and_nothing_is_published(
    speecht5: Path, fault: str, here: Installation
) -> None:
    spoil, message = OF_SPEECHT5[fault]
    spoil(speecht5)
    with pytest.raises((CheckpointError, IntegrityError, ValueError), match=message) as refused:
        import_checkpoint(speecht5, "a test", "foreign")
    assert "\n" not in str(refused.value)
    assert registry().names() == []


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
