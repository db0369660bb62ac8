"""A small prepared dataset of pictures of several sizes."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from data.shards import Header, samples, write

SIDE = 8
SIZES = ("8x8", "16x8", "8x16")
WORDS = ("dark", "light")
COUNTS = {"train": (20, 9, 3), "validation": (6, 2, 1), "test": (12, 8, 4)}


def prepare(folder: Path, counts: dict[str, tuple[int, ...]] | None = None) -> Path:
    """Write dark and light pictures, so many of each size, 8 a shard at most."""
    generator = np.random.default_rng(0)
    splits = {}
    for split, of_sizes in (counts or COUNTS).items():
        contents, captions, sizes = [], [], []
        for size, count in zip(SIZES, of_sizes, strict=True):
            width, height = (int(side) for side in size.split("x"))
            for row in range(count):
                ramp = np.linspace(0, 60, width)[None, :, None] + generator.integers(0, 40, 3)
                pixels = np.broadcast_to(ramp + 140 * (row % 2), (height, width, 3))
                contents.append(pixels.astype(np.uint8).tobytes())
                captions.append(WORDS[row % 2])
                sizes.append(size)
        table = samples(contents, captions, [(one,) for one in captions], {"shade": WORDS})
        splits[split] = table.append_column("size", pa.array(sizes)).sort_by("id")
    header = Header(
        name="shades",
        maker="folder",
        settings={"image_size": SIDE, "channels": 3, "sizes": list(SIZES)},
        vocabulary=WORDS,
        attributes={"shade": WORDS},
    )
    write(folder, header, splits, shard_bytes=8 * 3 * 128)
    return folder
