"""What a version says is verified by the command line, and said again from its receipt, sample by sample."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer

from flows.cli import lineage_verbs
from flows.evaluating.pipeline import ports_of
from flows.provenance.tracing import Untraceable, verify
from infra.pipelines import PinnedStage, Pipeline, chained
from infra.receipts.receipts import attach, read
from models import describe
from models.family import Family
from tests.flows.versions_kit import Installation, served
from tests.models.families_kit import shaken

VOICES = ("ann", "bob")
ONE = "seven and two"
SPEAKERS: dict[str, Callable[[], dict[str, Family]]] = {
    "stages": lambda: {"acoustic": shaken("matcha", speakers=VOICES), "vocoder": shaken("vocos")},
    "one network": lambda: {"speech": shaken("vits", speakers=VOICES)},
}


def speaking(here: Installation, kind: str) -> None:
    """Put a voice in production."""
    stages = []
    for name, model in SPEAKERS[kind]().items():
        version = here.publish(f"teller.{name}", model.eval(), name)
        stages.append(
            PinnedStage(
                stage=name, name=version.name, version=version.number, sha256=version.digest,
                family=describe(model)["family"], **ports_of(model),
            )
        )  # fmt: skip
    pipeline = Pipeline(
        endpoint="teller", modality="audio", abilities=("speech",), stages=tuple(stages),
        entrances={"generate": chained(stages)}, sample_rate=8000,
    )  # fmt: skip
    here.publish_wired(pipeline)


def said(address: str, file: Path, **body: Any) -> Path:
    """A sound that the gateway gave, as a file of the format that its name says."""
    asked = {"model": "teller", "input": ONE, "seed": 7, "response_format": file.suffix[1:], **body}
    answer = httpx.post(f"{address}/v1/audio/speech", json=asked, trust_env=False, timeout=60)
    assert answer.status_code == 200, answer.text
    file.write_bytes(answer.content)
    return file


@pytest.mark.parametrize("kind", SPEAKERS)
def test_a_voice_says_the_same_again_from_a_receipt_and_another_seed_does_not(
    here: Installation, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speaking(here, kind)
    with served(here) as address:
        for file in (
            said(address, tmp_path / "plain.wav"),
            said(address, tmp_path / "streamed.wav", input=f"{ONE}. {ONE} and ewe."),
            said(address, tmp_path / "asked.flac", voice="bob", speed=1.5),
        ):
            assert verify(file).says == "verified"
            lineage_verbs.replay(file, tmp_path / "again.wav")
            told = capsys.readouterr().out
            assert "identical: all" in told
            assert "samples" in told
            assert "drawn by teller:1 through the gateway" in told
        assert read(tmp_path / "again.wav").options == {"voice": "bob", "speed": 1.5}
        other = file.with_name("other.flac")
        false = read(file).model_copy(update={"seed": 8})
        other.write_bytes(attach(file.read_bytes(), false))
        assert not verify(other).verified
        with pytest.raises(typer.Exit):
            lineage_verbs.replay(other)
        assert "samples differ" in capsys.readouterr().out
        packed = said(address, tmp_path / "packed.mp3")
        assert verify(packed).says == "verified"
        with pytest.raises(Untraceable, match=r"packed with loss .* ask for wav or flac"):
            lineage_verbs.replay(packed)
