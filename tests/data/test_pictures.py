import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from PIL import Image

from infra.media.pictures import PictureError, decode, png
from services.media.codecs import learned_pixels


def decode_pixels(content: bytes, side: int, channels: int) -> Any:
    return decode(content, side, channels).pixels


def gradient(width: int, height: int, mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[:height, :width]
    levels = np.stack([x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), 0 * x], -1)
    return Image.fromarray(levels.astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@hypothesis(max_examples=40, deadline=None)
@given(
    width=st.integers(8, 60),
    height=st.integers(8, 60),
    side=st.sampled_from([8, 16, 32]),
    mode=st.sampled_from(["RGB", "RGBA", "L", "P", "1"]),
    channels=st.sampled_from([1, 3]),
)
def test_any_picture_becomes_a_square_of_bytes(
    width: int, height: int, side: int, mode: str, channels: int
) -> None:
    found = decode(encoded(gradient(width, height, mode), "PNG"), side, channels)
    assert found.pixels.shape == (side, side, channels)
    assert found.pixels.dtype == np.uint8
    assert (found.width, found.height) == (width, height)


@hypothesis(max_examples=60, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]), data=st.data())
def test_damage_is_a_reason_and_never_another_error(kind: str, data: st.DataObject) -> None:
    content = bytearray(encoded(gradient(40, 40), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        decode(cut, 8, 3)
    except PictureError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


def test_png_round_trips() -> None:
    x = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert (decode(png(x), 8, 1).pixels[..., 0] == x).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
@pytest.mark.parametrize("kept", [0.05, 0.3, 0.5, 0.9])
def test_a_truncated_file_says_so(kind: str, kept: float) -> None:
    content = encoded(gradient(300, 200), kind)
    with pytest.raises(PictureError, match=rf"^truncated {kind} \(cannot be decoded fully\)$"):
        decode(content[: int(kept * len(content))], 32, 3)


def test_a_photograph_is_turned_as_its_camera_was() -> None:
    image = gradient(32, 32)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    turned = decode(encoded(image, "PNG", exif=exif), 32, 3).pixels
    assert (turned == np.asarray(image.transpose(Image.Transpose.ROTATE_270))).all()


def test_transparency_lies_on_white_and_16_bits_become_8() -> None:
    clear = Image.new("RGBA", (8, 8), (9, 9, 9, 0))
    assert (decode(encoded(clear, "PNG"), 8, 3).pixels == 255).all()
    deep = Image.fromarray(np.full((8, 8), 65535, np.uint16))
    assert (decode(encoded(deep, "PNG"), 8, 1).pixels == 255).all()


def keyed(depth: int, kind: int, samples: Any, key: tuple[int, ...]) -> bytes:
    """Return a PNG of such samples (H, W or H, W, 3), one colour of which counts as transparent."""
    if depth == 16:
        rows = samples.astype(">u2").reshape(len(samples), -1).view(np.uint8)
    elif depth == 8:
        rows = samples.astype(np.uint8).reshape(len(samples), -1)
    else:
        bits = (samples[..., None] >> np.arange(depth)[::-1]) & 1
        rows = np.packbits(bits.reshape(len(samples), -1).astype(np.uint8), axis=1)
    height, width = samples.shape[:2]
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", struct.pack(f">{len(key)}H", *key)), (b"IDAT", packed)]
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("read", [decode_pixels, learned_pixels])
def test_a_grey_that_counts_as_transparent_lies_on_white(depth: int, read: Any) -> None:
    most = 2**depth - 1
    samples = np.arange(64).reshape(8, 8) * most // 63
    key = int(samples[4, 4])
    shades = np.where(samples == key, 255, samples * 255 // most)
    found = read(keyed(depth, 0, samples, (key,)), 8, 1)[..., 0]
    assert np.abs(found.astype(int) - shades).max() <= 1
    assert (found[samples == key] == 255).all()


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("read", [decode_pixels, learned_pixels])
def test_a_colour_that_counts_as_transparent_lies_on_white(depth: int, read: Any) -> None:
    most = 2**depth - 1
    samples = np.random.default_rng(0).integers(0, most, (8, 8, 3))
    samples[2:5, 2:5] = key = (most, most // 3, 7 * most // 255)
    shades = samples >> (depth - 8)
    shades[2:5, 2:5] = 255
    found = read(keyed(depth, 2, samples, key), 8, 3)
    assert np.abs(found.astype(int) - shades).max() <= 1
    assert (found[2:5, 2:5] == 255).all()


@pytest.mark.parametrize(("width", "height"), [(4097, 8), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_not_unpacked(width: int, height: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(PictureError, match=r"4096x4096"):
        decode(bomb, 32, 3)
