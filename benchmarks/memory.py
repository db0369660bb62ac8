"""What a rank holds of a split: `python -m benchmarks.memory [--times 1 10] [--workers 2]` prints table rows.

A split is the dataset's own, or the same rows so many times over, each copy a little different. Every rank is a process
of its own that reads its share of an epoch's batches as training does, and nothing else; memory is the kernel's
(/proc/PID/smaps_rollup), over what the process had after its imports. Own: pages that are no file's. Shared: its share
of the pages of files that it touched, which the kernel takes back where memory is short. Peak: of its resident pages,
those of files counted whole.
"""

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS: Final = 64  # a rank's of a batch
FAMILIES: Final = {
    "shapes": ("ddpm", "tiny", {}),
    "scenes": ("gpt", "tiny", {}),
    "chat": ("gpt", "chat", {}),
    "numbers": ("transformer", "small", {}),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--datasets", nargs="+", default=["shapes", "scenes"], choices=FAMILIES)
    options.add_argument("--times", type=int, nargs="+", default=[1, 10], help="splits so large")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--prepared", type=Path, default=Path("data/prepared"))
    options.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)  # folder, dataset, number
    given = options.parse_args()
    if given.rank:
        folder, dataset, number = given.rank
        print(json.dumps(read(Path(folder), dataset, int(number), given.workers)), flush=True)
        sys.stdin.readline()  # until all have been measured: pages are shared by those who live
        return
    print(
        "| dataset | times | rows | worker"
        " | own MiB | shared MiB | peak of both, MiB | first batch s | rows a CPU-second |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for dataset in given.datasets:
        for times in given.times:
            with tempfile.TemporaryDirectory() as folder:
                larger(given.prepared / dataset, Path(folder) / dataset, times)
                for again in ("", ", again"):
                    for rank, said in enumerate(ranks(Path(folder), dataset, given.workers)):
                        print(_row(dataset, f"{times}{again}", rank, said), flush=True)


def larger(prepared: Path, folder: Path, times: int) -> None:
    """Write a dataset whose training split is `times` as large."""
    from data.shards import write_table
    from infra.storage import sha256_of, write_json

    header = json.loads((prepared / "dataset.json").read_bytes())
    split, kind = header["splits"]["train"], header["modality"]
    column = {"image": "pixels", "text": "record"}[kind]
    folder.mkdir()
    for shard in header["splits"]["validation"]["shards"]:
        (folder / shard["file"]).symlink_to((prepared / shard["file"]).resolve())
    shards = []
    for copy in range(times):
        for shard in split["shards"]:
            table = pq.read_table(prepared / shard["file"])
            changed = pa.array(list(_changed(table[column].to_pylist(), copy)), table[column].type)
            table = table.set_column(table.schema.get_field_index(column), column, changed)
            path = folder / f"train-{len(shards):05d}.parquet"
            write_table(path, table)
            shards.append({"file": path.name, "rows": len(table), "sha256": sha256_of(path)})
    header["splits"]["train"] = {"rows": split["rows"] * times, "shards": shards}
    write_json(folder / "dataset.json", header)


def _changed(rows: list[Any], copy: int) -> Iterator[Any]:
    for row in rows:
        if isinstance(row, bytes):
            yield (np.frombuffer(row, np.uint8) ^ np.uint8(copy % 4)).tobytes()
        else:
            yield row


def ranks(folder: Path, dataset: str, workers: int) -> list[dict[str, float]]:
    """Return what every rank found, all reading at the same time."""
    environment = {**os.environ, "ATELIER_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.memory", "--workers", str(workers), "--rank"]
    processes = [
        subprocess.Popen(
            [*command, str(folder / dataset), dataset, str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
        )
        for rank in range(workers)
    ]
    answers = []
    for process in processes:
        assert process.stdout is not None
        answers.append(json.loads(process.stdout.readline()))
    for process in processes:
        process.communicate("over\n")
    return answers


def read(prepared: Path, dataset: str, rank: int, workers: int) -> dict[str, float]:
    """Be one rank."""
    import torch

    from data.loaders import Loader, rows_in
    from models import configure, trainable

    torch.set_num_threads(1)
    family, preset, config = FAMILIES[dataset]
    facts = Loader(prepared, "train", batch_size=1).facts
    model = trainable(family)(configure(family, preset, config, facts))
    learns = "learner" in inspect.signature(Loader).parameters
    reads: dict[str, Any] = {"learner": model} if learns else {"examples": model.examples}
    Loader(prepared, "validation", batch_size=1, encode=model.encode, **reads).batch(0)  # imports
    before, began = _memory(), time.monotonic()
    loader = Loader(
        prepared, "train", batch_size=ROWS, rank=rank, world=workers, encode=model.encode, **reads
    )
    loader.batch(0)
    first = time.monotonic() - began
    began, rows = time.process_time(), 0
    for batch in loader.once():
        rows += rows_in(batch)
    rate = rows / (time.process_time() - began)
    after = _memory()
    found = {name: after[name] - before[name] for name in after}
    return {**found, "rows": loader.rows, "first": first, "rate": rate}


def _memory() -> dict[str, float]:
    """Return MiB of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    status = Path("/proc/self/status").read_text().splitlines()
    [peak] = [int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")]
    return {
        "own": found["Anonymous"],
        "shared": found["Pss"] - found["Pss_Anon"],
        "peak": peak,
    }


def _row(dataset: str, times: str, rank: int, said: dict[str, float]) -> str:
    return (
        f"| {dataset} | {times} | {said['rows']:,.0f} | {rank} | {said['own']:.0f} | {said['shared']:.0f}"
        f" | {said['peak']:.0f} | {said['first']:.2f} | {said['rate']:,.0f} |"
    )


if __name__ == "__main__":
    main()
