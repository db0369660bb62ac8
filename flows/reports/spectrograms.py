"""The sheet of what speaks: spectrograms of texts, as recorded, as a vocoder makes recordings again, and by systems."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

FLOOR_DB: Final = -80.0  # below a sound's loudest place
WINDOW_S: Final = 0.016
HOP_S: Final = 0.004
COLOURS: Final = 128  # of the file, which so takes a third


@dataclass(frozen=True, slots=True)
class Heard:
    """Sounds side by side, behind a label."""

    label: str
    sounds: "Sequence[Tensor]"  # (T,) in [-1, 1]
    sample_rate: int  # Hz


def sheet(rows: Sequence[Heard], heads: Sequence[str]) -> bytes:
    """Return a PNG: rows by label, columns by head, all on one scale of seconds and up to the lowest rate's kHz."""
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and picks a screen

    longest = max(len(one) / row.sample_rate for row in rows for one in row.sounds)
    top = min(row.sample_rate for row in rows) / 2000
    figure = Figure(
        figsize=(2.2 + 2.6 * len(heads), 0.9 + 1.5 * len(rows)), layout="constrained", dpi=110
    )
    axes: Any = figure.subplots(len(rows), len(heads), sharex=True, sharey=True, squeeze=False)
    drawn: Any = None
    for row, line in zip(rows, axes, strict=True):
        for axis, sound_T in zip(line, row.sounds, strict=True):
            seconds = len(sound_T) / row.sample_rate
            drawn = axis.imshow(
                decibels(sound_T, row.sample_rate),
                **{
                    "origin": "lower",
                    "aspect": "auto",
                    "cmap": "magma",
                    "vmin": FLOOR_DB,
                    "vmax": 0,
                },
                extent=(0, seconds, 0, row.sample_rate / 2000),
            )
            axis.set(xlim=(0, longest), ylim=(0, top), facecolor="black")
        line[0].set_ylabel(f"{row.label}\nkHz")
    for axis, head in zip(axes[0], heads, strict=True):
        axis.set_title(head)
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    figure.colorbar(drawn, ax=axes, label="dB below the loudest place", shrink=0.6)
    drawing, written = io.BytesIO(), io.BytesIO()
    figure.savefig(drawing, format="png")
    Image.open(drawing).convert("RGB").quantize(COLOURS).save(written, "PNG", optimize=True)
    return written.getvalue()


def decibels(sound_T: "Tensor", sample_rate: int) -> Any:
    """Return the power (frequencies, frames) of a sound, its loudest place at 0 dB."""
    import torch

    window = 2 ** round(WINDOW_S * sample_rate).bit_length()
    padded_T = torch.nn.functional.pad(sound_T.float(), (0, max(0, window - len(sound_T))))
    size_KF = torch.stft(
        padded_T, window, max(1, round(HOP_S * sample_rate)),
        window=torch.hann_window(window), return_complex=True,
    ).abs()  # fmt: skip
    loudest = size_KF.max().clamp(min=1e-8)
    return (20 * (size_KF / loudest).clamp(min=1e-8).log10()).numpy()
