"""What a stage learns from beside the data (`needs:`): an entry of a trained stage, run over every row once.

On Ray Data where there is a cluster, a shard at a time and each network loaded once a worker; in this process where
the training itself is. The result lies beside the shards, under the data and the weights that it was made of.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from filelock import FileLock
from safetensors.numpy import save_file

from data.reading.outputs import finished, shard_of
from flows.training.spec import Need, TrainingSpec
from infra.documents import read_json
from infra.storage import seal, sha256_of, verify

if TYPE_CHECKING:
    from torch import Tensor

    from models.family import Entry, Family

ROWS: Final = 64  # a call of the network


def facts_of_needs(spec: TrainingSpec) -> dict[str, Any]:
    """Return what a network must know of all that it needs."""
    found: dict[str, Any] = {}
    for need in spec.needs.values():
        found |= entry_of(opened(need), need.entry).facts
    return found


def entry_of(model: "Family", name: str) -> "Entry":
    """Return an entry of a model.

    Raises:
        ValueError: it has no such one; names those that it has.
    """
    from models import near

    known = model.entries
    if name not in known:
        has = near(name, sorted(known)) if known else "; it has none"
        raise ValueError(f"there is no entry {name!r}{has}")
    return known[name]


def opened(need: Need) -> "Family":
    """Return the network of a need's version, in evaluation mode, after verifying its bytes.

    Raises:
        ValueError: it is an adapter, which has half of its weights elsewhere.
        infra.storage.IntegrityError: the bytes are not those of its digest.
    """
    from safetensors.torch import load_file

    from models import build
    from models.family import Family

    verify(need.path, need.digest)
    document = read_json(need.path / "config.json")
    if "lora" in document:
        raise ValueError(f"needs: {need.says} is an adapter: name a stage that is trained whole")
    model = build(document)
    model.load_state_dict(load_file(need.path / "model.safetensors"))
    assert isinstance(model, Family)
    return model.ready().requires_grad_(requires_grad=False)


def make(need: Need, prepared: Path, ray_url: str | None, *, here: bool = False) -> bool:
    """Make a need's outputs, unless they are there; returns whether they had to be made.

    Args:
        need: whose outputs, and where they go.
        prepared: the dataset's folder.
        ray_url: the cluster's address; None for a private one.
        here: in this process, without Ray.
    """
    need.made.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(need.made.parent / f".{need.made.name}.lock"):
        if finished(need.made):
            return False
        for leftover in (need.made, *need.made.parent.glob(f".{need.made.name}-*")):
            shutil.rmtree(leftover, ignore_errors=True)  # altered, or of a killed maker
        new = Path(tempfile.mkdtemp(prefix=f".{need.made.name}-", dir=need.made.parent))
        try:
            _fill(need, prepared, new, ray_url, here=here)
            facts = {
                "kind": "outputs",
                "of": need.says,
                "digest": need.digest,
                "dataset": sha256_of(prepared / "dataset.json"),
                "of_captions": "text" in entry_of(opened(need), need.entry).inputs,
            }
            seal(new, facts)
            new.rename(need.made)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return True


def _fill(need: Need, prepared: Path, folder: Path, ray_url: str | None, *, here: bool) -> None:
    from data.loaders import read_header

    shards = [
        {"split": split, "number": number}
        for split, found in read_header(prepared)["splits"].items()
        for number in range(len(found["shards"]))
    ]
    asked = (need.model_dump(mode="json"), str(prepared), str(folder))
    if here:
        frozen = Frozen(*asked)
        for shard in shards:
            frozen(shard)
        return
    from infra.stack.cluster import connect

    connect(ray_url)
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    workers = min(len(shards), int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1)))
    written = ray.data.from_items(shards).map(
        Frozen,
        fn_constructor_args=asked,
        num_cpus=1,
        num_gpus=gpus,
        compute=ActorPoolStrategy(min_size=1, max_size=max(1, workers)),
    )
    for _ in written.iter_rows():
        pass


class Frozen:
    """A trained network in evaluation mode that writes what it makes of one shard after the other."""

    def __init__(self, need: Mapping[str, Any], prepared: str, folder: str) -> None:
        import torch

        self._need = Need.model_validate(need)
        self._prepared, self._folder = Path(prepared), Path(folder)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = opened(self._need).to(self._device)
        self._entry = entry_of(self._model, self._need.entry)

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        """Write one shard's outputs; returns the shard."""
        parts = list(self._outputs(shard["split"], shard["number"]))
        path = shard_of(self._folder, shard["split"], shard["number"])
        save_file({"outputs": np.concatenate(parts)}, path)
        return shard

    def _outputs(self, split: str, number: int) -> Iterator[Any]:
        import torch

        from data.reading.readers import open_split
        from data.reading.sources import Options
        from data.reading.splits import read_header

        side = getattr(self._model.config, "image_size", None)
        stills = not hasattr(self._model.config, "frames")
        shards = read_header(self._prepared)["splits"][split]["shards"]
        size = shards[number].get("size")
        options = Options(image_size=side, encode=self._model.encode, stills=stills, size=size)
        source = open_split(self._prepared, split, options)
        place = sum(shard.get("size") == size for shard in shards[:number])
        first = sum(source.sizes[:place])
        rows = np.arange(first, first + source.sizes[place])
        for start in range(0, len(rows), ROWS):
            batch = source.batch(rows[start : start + ROWS])
            given = {name: tensor.to(self._device) for name, tensor in batch.items()}
            with torch.no_grad():
                made = self._model.enter(self._need.entry, inputs_of(self._entry, given))
            yield plain(made)


def inputs_of(entry: "Entry", batch: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return an entry's inputs out of a batch: pixels, and the tokens of captions where it reads a text.

    Raises:
        ValueError: the data have no such thing.
    """
    found: dict[str, Tensor] = {}
    for name, port in entry.inputs.items():
        source = "tokens" if port.kind == "text" else name
        if source not in batch:
            raise ValueError(f"{port} is needed as {name}, and the data have none")
        found[source] = batch[source]
    return found


def plain(made: "Tensor") -> Any:
    """Return outputs as they are kept: float32, or the integers as they are."""
    return (made.float() if made.is_floating_point() else made).cpu().numpy()
