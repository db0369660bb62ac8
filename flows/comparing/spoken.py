"""What several versions make of the same texts, beside recordings of them and what a vocoder makes of these."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.comparing.compare import Incomparable
from flows.reports.spectrograms import Heard
from infra.pipelines import Pipeline

if TYPE_CHECKING:
    from torch import Tensor

    from models.family import Family

PAUSE_S = 0.3  # between two sounds that are heard one after the other


@dataclass(frozen=True, slots=True)
class Speaking:
    """A version that speaks, and its networks."""

    ref: str
    pipeline: Pipeline
    models: "Sequence[Family]"


def rows_of(
    versions: Sequence[Speaking], prompts: Sequence[str], voice: str, prepared: Path, seed: int
) -> list[Heard]:
    """Return a row of recordings, one of their copies through each vocoder, and one of each version's own.

    Args:
        versions: those that speak.
        prompts: texts, of each of which the data hold a recording that no version learned from.
        voice: whose; one of the data's speakers.
        prepared: the data that the first version learned from.
        seed: of the first text; the others follow.

    Raises:
        Incomparable: there is no such recording.
    """
    from data import loaders
    from flows.evaluating.pipeline import draw
    from models.judges.speech_judge import trimmed

    real = [_recording(prepared, text, voice) for text in prompts]
    rows = [Heard(f"recording\n{voice}", real, int(loaders.read_header(prepared)["sample_rate"]))]
    own = []
    for one in versions:
        models, rate = one.models, one.pipeline.sample_rate
        assert rate is not None
        if "mel" in models[-1].inputs:
            label = f"its mels by\n{one.pipeline.stages[-1].pin.ref}"
            rows.append(Heard(label, _copied(models[-1], real, rate, rows[0].sample_rate), rate))
        seeds = [seed + number for number in range(len(prompts))]
        options = {"voice": voice if voice in one.pipeline.lead.speakers else None}
        made = draw(models, one.pipeline, list(prompts), seeds, options=options)
        own.append(
            Heard(f"{one.pipeline.lead.family}\n{one.ref}", [trimmed(x) for x in made], rate)
        )
    return [*rows, *own]


def _recording(prepared: Path, text: str, voice: str) -> "Tensor":
    from data import loaders

    for sound_T, said, who in loaders.utterances(prepared, "test"):
        if (said, who) == (text, voice):
            return sound_T
    raise Incomparable(
        f"the data in {prepared} hold no recording of {text!r} by {voice!r} that nothing learned from:"
        " give another --prompt or --voice"
    )


def _copied(vocoder: "Family", real: "Sequence[Tensor]", rate: int, learned: int) -> "list[Tensor]":
    """Return what a vocoder makes of the mels of recordings."""
    import torch

    from models.request import Request

    if rate != learned:
        raise Incomparable(
            f"the vocoder makes sound of {rate} Hz, and the recordings have {learned} Hz"
        )
    found = []
    for sound_T in real:
        batch = {"sound": sound_T[None], "length": torch.tensor([len(sound_T)])}
        made_BT = vocoder.sample(Request(seeds=(0,), given=vocoder.given_of(batch)))
        found.append(made_BT[0, : len(sound_T)])
    return found


def after_another(rows: Sequence[Heard]) -> "tuple[Tensor, int]":
    """Return all sounds of a sheet, row after row, at the first row's rate."""
    import torch

    rate = rows[0].sample_rate
    pause_T = torch.zeros(round(PAUSE_S * rate))
    parts = [
        part
        for row in rows
        if row.sample_rate == rate
        for one in row.sounds
        for part in (one, pause_T)
    ]
    return torch.cat(parts), rate
