"""What a later stage reads of a frozen one: outputs made once of every row, against made anew in each epoch.

`python -m benchmarks.frozen` takes the prepared captioned shapes and a VQ-VAE with random weights (what it costs does
not depend on them), makes the codes of all rows once, and then reads epochs of batches of 64 both ways. CPU-seconds of
this process, one thread; an epoch is 100 batches.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from data.catalog import prepared
from data.loaders import Loader
from data.reading.outputs import folder_of
from flows.training.frozen import make, opened
from flows.training.spec import Need
from infra.settings import settings
from infra.storage import seal, write_json
from models import describe
from models.variational.vqvae import VQVAE

BATCH = 64
BATCHES = 100


def need_of(folder: Path, data: Path) -> Need:
    """Return the need of a VQ-VAE's codes, sealed in a folder, whose outputs lie there, too."""
    torch.manual_seed(0)
    model = VQVAE(VQVAE.presets["shapes"])
    version = folder / "vq"
    version.mkdir()
    write_json(version / "config.json", describe(model))
    save_file(model.state_dict(), version / "model.safetensors")
    digest = seal(version, {"kind": "model", "name": "bench.vq"})
    made = folder / folder_of(data, "bench", digest, "encode").name
    return Need(name="bench.vq", version=1, digest=digest, entry="encode", path=version, made=made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = prepared("shapes", settings().project).path
    with tempfile.TemporaryDirectory() as place:
        need = need_of(Path(place), data)
        began = time.process_time()
        make(need, data, None, here=True)
        once = time.process_time() - began
        vq = opened(need)
        size = vq.config.image_size
        read = Loader(data, "train", batch_size=BATCH, image_size=size, beside={"codes": need.made})
        plain = Loader(data, "train", batch_size=BATCH, image_size=size)
        spent: dict[str, list[float]] = {"read": [], "made anew": []}
        for epoch in range(given.epochs):
            began = time.process_time()
            for step in range(BATCHES):
                read.batch(epoch * BATCHES + step)
            spent["read"].append(time.process_time() - began)
            began = time.process_time()
            for step in range(BATCHES):
                batch = plain.batch(epoch * BATCHES + step)
                with torch.no_grad():
                    vq.codes(batch["pixels"])
            spent["made anew"].append(time.process_time() - began)
    reads, anew = (statistics.median(spent[name]) for name in ("read", "made anew"))
    print(f"made once, of all rows of all splits: {once:.2f} CPU-s")
    print(f"an epoch of {BATCHES} x {BATCH}: read {reads:.3f}, made anew {anew:.3f} CPU-s")
    print(f"ratio {anew / reads:.1f}; paid back after {once / (anew - reads):.1f} epochs")


if __name__ == "__main__":
    main()
