"""Galleries as PNG files: pictures, sounds as waveform and spectrogram, texts as lines under what they answer."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from models.judges.gallery import EDGE, GAP_PX, INK, PAPER, gallery

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

FRAME_PX: Final = 48  # of a strip, about
WAVE_PX: Final = 48  # high
BANDS: Final = 96  # pixels of a spectrogram, high
WIDE_PX: Final = 300  # of a sound
FLOOR_DB: Final = -80.0  # of a spectrogram, below its loudest place
TEXT_PX: Final = 900  # of a column
FONT_PX: Final = 15
LINE_PX: Final = 20
MOST_LINES: Final = 8  # of a text
ASKED: Final = (126, 156, 216)  # a prompt's ink


def of_pictures(pictures: Tensor | Sequence[Tensor], labels: Sequence[str], count: int) -> bytes:
    """Return a gallery of `count` of the pictures (N, C, H, W) in [0, 1], evenly taken."""
    step = max(1, len(pictures) // count)
    return _png(gallery(pictures[::step][:count], columns=8, labels=list(labels)[::step][:count]))


def of_clips(clips: Tensor, labels: Sequence[str], count: int) -> bytes:
    """Return a gallery of film strips of `count` of the clips (N, F, C, H, W) in [0, 1], evenly taken."""
    step = max(1, len(clips) // count)
    scale = max(1, round(FRAME_PX / clips.shape[-1]))
    strips = clips[::step][:count].permute(0, 2, 3, 1, 4).flatten(3)
    strips = strips.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return _png(gallery(strips, columns=2, labels=list(labels)[::step][:count]))


def of_sounds(sound_NT: Tensor, sample_rate: int, labels: Sequence[str] = ()) -> bytes:
    """Return each sound (N, T) in [-1, 1] as its waveform above its log-spectrogram, four abreast, all on one scale."""
    font = ImageFont.load_default(11)
    seconds = sound_NT.shape[1] / sample_rate
    texts = list(labels) or [f"{number}" for number in range(len(sound_NT))]
    columns = min(4, len(sound_NT))
    rows = -(-len(sound_NT) // columns)
    step_x, step_y = WIDE_PX + GAP_PX, WAVE_PX + BANDS + 18 + GAP_PX
    sheet = Image.new("RGB", (columns * step_x + GAP_PX, rows * step_y + GAP_PX), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, (x_T, text) in enumerate(zip(sound_NT.float().cpu(), texts, strict=True)):
        left, top = GAP_PX + place % columns * step_x, GAP_PX + place // columns * step_y
        sheet.paste(_wave(x_T), (left, top))
        sheet.paste(spectrogram(x_T), (left, top + WAVE_PX))
        pen.rectangle((left - 1, top - 1, left + WIDE_PX, top + WAVE_PX + BANDS), outline=EDGE)
        said = f"{text}  ({seconds:.2f} s, 0 to {sample_rate // 2} Hz)"
        pen.text((left, top + WAVE_PX + BANDS + 3), said, fill=INK, font=font)
    return _png(sheet)


def spectrogram(x_T: Tensor) -> Image.Image:
    """Return the log power of a sound over time and frequency, low tones below, 80 dB from dark to bright."""
    window = min(256, max(16, 2 ** (len(x_T).bit_length() - 3)))
    x_T = x_T if len(x_T) >= window else torch.nn.functional.pad(x_T, (0, window - len(x_T)))
    spectrum_FT = torch.stft(
        x_T, window, window // 4, window=torch.hann_window(window), return_complex=True
    ).abs()
    level_FT = 20 * (spectrum_FT.clamp(min=1e-8) / spectrum_FT.max().clamp(min=1e-8)).log10()
    share_FT = (1 - level_FT.clamp(min=FLOOR_DB) / FLOOR_DB).flip(0)
    red, green, blue = share_FT**1.2, share_FT**2, 0.15 + 0.6 * share_FT * (1.4 - share_FT)
    rgb = (torch.stack([red, green, blue], -1).clamp(0, 1) * 255).byte().contiguous().numpy()
    return Image.fromarray(rgb).resize((WIDE_PX, BANDS), Image.Resampling.BILINEAR)


def _wave(x_T: Tensor) -> Image.Image:
    """Return the lowest and highest value of every pixel's stretch of the sound as a line."""
    image = Image.new("RGB", (WIDE_PX, WAVE_PX), PAPER)
    pen = ImageDraw.Draw(image)
    for column in range(WIDE_PX):
        start = column * len(x_T) // WIDE_PX
        stretch = x_T[start : max(start + 1, (column + 1) * len(x_T) // WIDE_PX)].clamp(-1, 1)
        low, high = (
            round((1 - float(v)) / 2 * (WAVE_PX - 1)) for v in (stretch.max(), stretch.min())
        )
        pen.line((column, low, column, high), fill=INK)
    return image


def of_texts(pairs: Sequence[tuple[str, str]]) -> bytes:
    """Return (prompt, text) pairs one below the other: the prompt in blue, then what was written."""
    font = ImageFont.load_default(FONT_PX)
    blocks = [
        [*((line, ASKED) for line in lines_of(prompt, font)), *((line, INK) for line in lines_of(text, font))]
        for prompt, text in pairs
    ]  # fmt: skip
    height = sum(len(block) * LINE_PX + 2 * GAP_PX for block in blocks) + GAP_PX
    sheet = Image.new("RGB", (TEXT_PX + 2 * GAP_PX, height), PAPER)
    pen, top = ImageDraw.Draw(sheet), GAP_PX
    for block in blocks:
        for line, ink in block:
            pen.text((GAP_PX, top), line, fill=ink, font=font)
            top += LINE_PX
        top += GAP_PX
        pen.line((GAP_PX, top, TEXT_PX + GAP_PX, top), fill=EDGE)
        top += GAP_PX
    return _png(sheet)


def lines_of(text: str, font: "FreeTypeFont | ImageFont.ImageFont") -> list[str]:
    """Return a text in lines that fit the column, its own line breaks kept; the last of too many ends in dots."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > TEXT_PX:
                lines.append(line)
                longer = word
            while font.getlength(longer) > TEXT_PX:  # a word wider than the column
                fits = max(1, int(len(longer) * TEXT_PX / font.getlength(longer)) - 1)
                lines.append(longer[:fits])
                longer = longer[fits:]
            line = longer
        lines.append(line)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1][:80] + " ..."]
    return lines


def png(pixels_CHW: Tensor) -> bytes:
    """Return pixels in [0, 1], of one or three channels, as a PNG file."""
    values = (pixels_CHW.clamp(0, 1) * 255).round().to(torch.uint8)
    return _png(Image.fromarray(values.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
