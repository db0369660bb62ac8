"""The nodes of a cluster while a training lasts: each is inspected before it trains, and missed where it is lost.

A task on every node imports this module, so it imports little.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from flows.training.run_folder import RunFolder
    from flows.training.spec import TrainingSpec

ROOT: Final = Path(__file__).parents[2]
INSPECT_S: Final = 60.0
"""How long a node may take to look."""

WAYS_OUT: Final = {
    "mount": "every node must mount the folder of ATELIER_STORAGE_URI at the same path",
    "data": "every node must see the prepared data at the same path",
    "code": "every node must run the same code: use one image for all",
}


class Unfit(ValueError):
    """A node cannot take part in a training; names the node, what it lacks, and the way out."""


class Thing(NamedTuple):
    """A file that must be the same on every node; its digest is None where its size is enough."""

    kind: str  # mount, data, code
    path: str  # of code: from the root of the sources
    size: int
    sha256: str | None


def things(spec: "TrainingSpec", folder: "RunFolder") -> list[Thing]:
    """Return what this machine has and every node must have: the run's folder, the data, the code.

    Raises:
        DatasetError: the data were never prepared.
        OSError: a file of theirs cannot be read.
    """
    from data.loaders import read_header
    from flows.identity.code import node_code

    header = read_header(spec.prepared)
    shards = [
        spec.prepared / shard["file"]
        for split in header["splits"].values()
        for shard in split["shards"]
    ]
    code = node_code(spec.family, header.get("modality", "image"))
    return [
        _thing("mount", folder.path / "spec.json"),
        _thing("data", spec.prepared / "dataset.json"),
        *(Thing("data", str(shard), shard.stat().st_size, None) for shard in shards),
        *(_thing("code", Path(path)) for path in code.files),
    ]


def _thing(kind: str, path: Path) -> Thing:
    content = (ROOT / path).read_bytes()
    return Thing(kind, str(path), len(content), hashlib.sha256(content).hexdigest())


def inspect(expected: Sequence[Thing]) -> str:
    """Return what this machine lacks of what is expected, in words; "" where it has everything."""
    for kind, path, size, sha256 in expected:
        try:
            found = (ROOT / path).stat().st_size
            content = b"" if sha256 is None or found != size else (ROOT / path).read_bytes()
        except OSError as error:
            return f"cannot read {path} ({error.strerror}): {WAYS_OUT[kind]}"
        if found != size or (sha256 and hashlib.sha256(content).hexdigest() != sha256):
            return f"has another {path}: {WAYS_OUT[kind]}"
    return ""


@dataclass
class Nodes:
    """The nodes that a training may use, as Ray lists them."""

    expected: Sequence[Thing]
    note: Callable[[str], None]

    def __post_init__(self) -> None:
        from infra.stack.cluster import alive

        self.lost: list[str] = []
        self._known = alive()
        self._inspected = _here()  # what is expected was read here

    def inspect(self) -> None:
        """Look at every node that was not looked at before.

        Raises:
            Unfit: a node lacks something, or does not answer within 60 s.
        """
        import ray
        from ray.exceptions import RayError

        new = {id: name for id, name in self._known.items() if id not in self._inspected}
        task: Any = ray.remote(num_cpus=0, max_retries=0)(inspect)
        asked = {id: task.options(scheduling_strategy=_on(id)).remote(self.expected) for id in new}
        for id, answer in asked.items():
            try:
                lacks = ray.get(answer, timeout=INSPECT_S)
            except RayError as error:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                lacks = f"cannot look at its files: {lines[-1] if lines else type(error).__name__}"
            if lacks:
                raise Unfit(f"node {new[id]} {lacks}")
        self._inspected |= new.keys()

    def look(self) -> None:
        """Note which nodes were lost since the last look."""
        from infra.stack.cluster import alive

        now = alive()
        for id in self._known.keys() - now.keys():
            self.lost.append(self._known[id])
            self.note(f"node {self._known[id]} was lost")
        self._known = now


def _on(id: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(id, soft=False)


def _here() -> set[str]:
    """Return the id of the node that this process is on; none where it speaks to the cluster from elsewhere."""
    import ray
    from ray.util import client

    return set() if client.ray.is_connected() else {ray.get_runtime_context().get_node_id()}
