"""Pictures to bytes: 8 bits a channel, PNG, and the receipt inside it.

Shape letters: N pictures, C channels (1 or 3), H and W pixels.
"""

from io import BytesIO
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.work import Pictures

Bitmap: TypeAlias = NDArray[np.uint8]
"""(H, W, C)."""


def bitmap(picture: Pictures) -> Bitmap:
    """Return (C, H, W) in [0, 1] as (H, W, C) bytes, rounded."""
    levels = (picture.clip(0, 1) * 255).round().astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def enlarged(pixels: Bitmap, width: int, height: int) -> Bitmap:
    """Return a picture at another size (bicubic); what previews of a small first stage are shown as."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = np.asarray(_image(pixels).resize((width, height), Image.Resampling.BICUBIC))
    return resized.reshape(height, width, pixels.shape[2])


def png(pixels: Bitmap) -> bytes:
    """Return a PNG file."""
    file = BytesIO()
    _image(pixels).save(file, "PNG", compress_level=6)
    return file.getvalue()


def _image(pixels: Bitmap) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
