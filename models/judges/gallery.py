"""A sheet of pictures with captions, drawn with Pillow alone."""

from collections.abc import Sequence
from typing import Final

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE_PX: Final = 96  # a picture is enlarged by a whole factor to at least about this
GAP_PX: Final = 12
LINE_PX: Final = 13
FONT_PX: Final = 11
MOST_LINES: Final = 3
PAPER: Final = (24, 26, 31)
INK: Final = (206, 210, 218)
EDGE: Final = (62, 66, 76)


def gallery(
    pixels: Tensor | Sequence[Tensor], columns: int = 8, labels: Sequence[str] = ()
) -> Image.Image:
    """Return pictures (N, C, H, W) in [0, 1], C 1 or 3, on a dark sheet, each above its label.

    A list may have pictures (C, H, W) of several sizes: each is in the middle of a tile as large as the largest. Small
    pictures are enlarged by whole pixels. Labels are wrapped to the tile's width, over at most three lines.

    Raises:
        ValueError: no pictures, no columns, channels other than 1 or 3, or another number of labels than pictures.

    Example:
        >>> gallery(torch.rand(4, 1, 8, 8), columns=2).size
        (228, 228)
    """
    pictures = list(pixels)
    if not pictures or any(one.dim() != 3 or len(one) not in {1, 3} for one in pictures):
        got = tuple(getattr(pixels, "shape", (len(pictures),)))
        raise ValueError(f"a gallery needs pictures (N, 1 or 3, H, W), got {got}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if labels and len(labels) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures but {len(labels)} labels: give one a picture")
    height, width = (max(one.shape[axis] for one in pictures) for axis in (1, 2))
    factor = max(1, round(TILE_PX / max(height, width)))
    height, width = height * factor, width * factor
    font = ImageFont.load_default(FONT_PX)
    texts = [wrap(label, width, font) for label in labels]
    caption = LINE_PX * max((len(lines) for lines in texts), default=0)
    caption += 4 if caption else 0
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    step_x, step_y = width + GAP_PX, height + caption + GAP_PX
    sheet = Image.new("RGB", (columns * step_x + GAP_PX, rows * step_y + GAP_PX), PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        high, wide = (side * factor for side in picture.shape[1:])
        x, y = GAP_PX + index % columns * step_x, GAP_PX + index // columns * step_y
        left, top = x + (width - wide) // 2, y + (height - high) // 2
        pen.rectangle((left - 1, top - 1, left + wide, top + high), outline=EDGE)
        tile = to_image(picture).resize((wide, high), Image.Resampling.NEAREST)
        sheet.paste(tile, (left, top))
        for line, text in enumerate(texts[index] if texts else ()):
            middle = x + width / 2
            below = y + height + 4 + line * LINE_PX
            pen.text((middle, below), text, fill=INK, font=font, anchor="ma")
    return sheet


def to_image(picture: Tensor) -> Image.Image:
    """Return a picture (C, H, W) in [0, 1] as an RGB image; values outside are clipped."""
    levels = (picture.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    rgb = levels.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu()
    return Image.fromarray(rgb.numpy())


def wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Return the text in lines of at most `width` pixels; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    cut = len(lines) > MOST_LINES
    lines = lines[:MOST_LINES]
    return [
        _shorten(line, width, font, cut=cut and index == MOST_LINES - 1)
        for index, line in enumerate(lines)
    ]


def _shorten(
    line: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, *, cut: bool
) -> str:
    if not cut and font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."
