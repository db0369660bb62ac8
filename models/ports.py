"""What passes between the stages of a pipeline, and the graph of stages, checked before a byte is loaded.

A stage takes and gives values at named ports; a wire says where an input comes from, "base.pixels" or "request.text".
`check` refuses what does not fit, and `walk` is the one executor: whoever drives it makes each stage's outputs, in this
process or elsewhere. Nothing here needs torch, so that a gateway may import it.

    >>> base = Node(inputs={"text": Port("text")}, outputs={"pixels": Port("pixels", (3, 16, 16))},
    ...             wires={"text": "request.text"})
    >>> up = Node(inputs={"low": Port("pixels", (3, 8, 8))}, outputs={"pixels": Port("pixels", (3, 32, 32))},
    ...           wires={"low": "base.pixels"})
    >>> check({"base": base, "up": up}, "up.pixels")
    Traceback (most recent call last):
    models.ports.Misfit: up takes pixels 3x8x8 as low, but base.pixels is pixels 3x16x16
"""

import hashlib
import re
from collections.abc import Container, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, cast, get_args

Kind: TypeAlias = Literal[
    "text",
    "tokens",
    "codes",
    "embedding",
    "latent",
    "pixels",
    "mask",
    "clip",
    "mel",
    "sound",
    "volume",
    "number",
]
KINDS: Final[tuple[str, ...]] = get_args(Kind)
Source: TypeAlias = tuple[str, float, float]
"""A part of a training row that a sample has: the row's name, and where in it that begins and ends; of sound in
seconds."""
REQUEST: Final = "request"
"""What a wire names that comes from the caller."""
_WRITTEN: Final = re.compile(
    r"(?P<kind>[a-z]+)(?P<optional>\?)?(?: (?P<shape>(?:\d+|\*)(?:x(?:\d+|\*))*))?(?: of (?P<space>.+))?"
)


class Misfit(ValueError):
    """A graph whose wires do not fit; one line that names both ends."""


@dataclass(frozen=True, slots=True)
class Port:
    """What passes along a wire: its kind, the shape of one row (None: any), and whose numbers they are.

    `space` tells numbers apart that only look alike: the digest of a tokenizer, a codebook, an autoencoder or mel
    settings; of sound the rate. An optional input may be left without a wire. Written "pixels? 3x32x32",
    "codes 64 of 1f2e3d", "sound * of 16000 Hz".
    """

    kind: Kind
    shape: tuple[int | None, ...] = ()
    space: str = ""
    optional: bool = False

    def takes(self, given: "Port") -> bool:
        """Return whether what the other port gives may come in here."""
        fits = len(self.shape) == len(given.shape) and all(
            wanted is None or wanted == found
            for wanted, found in zip(self.shape, given.shape, strict=True)
        )
        return (self.kind, self.space) == (given.kind, given.space) and fits

    def __str__(self) -> str:
        """Return the port as pipeline.json and errors have it; `parse` reads it."""
        shape = "x".join("*" if size is None else str(size) for size in self.shape)
        space = f"of {self.space}" if self.space else ""
        return " ".join(filter(None, (self.kind + "?" * self.optional, shape, space)))

    @classmethod
    def parse(cls, text: str) -> "Port":
        """Return the port that was written so.

        Raises:
            ValueError: it is none.
        """
        found = _WRITTEN.fullmatch(text)
        if found is None or found["kind"] not in KINDS:
            raise ValueError(f"{text[:80]!r} is no port, like 'pixels 3x32x32' or 'text?'")
        sizes = (found["shape"] or "").split("x") if found["shape"] else []
        shape = tuple(None if size == "*" else int(size) for size in sizes)
        return cls(cast(Kind, found["kind"]), shape, found["space"] or "", bool(found["optional"]))


@dataclass(frozen=True, slots=True)
class Node:
    """A stage in a graph: what it takes and gives, and where each of its inputs comes from."""

    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]
    wires: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Call:
    """One node that is to be run, with the value of each wired input."""

    node: str
    given: Mapping[str, Any]


def check(nodes: Mapping[str, Node], output: str) -> dict[str, Port]:
    """Return what a caller is asked for, by name; nodes stand in an order in which they can be run.

    What a request gives has no size, space or rate of its own: it is brought to what its port takes.

    Raises:
        Misfit: the first wire that comes from nowhere or does not fit, a node whose outputs go nowhere, or an output
            that nobody gives.
    """
    request: dict[str, Port] = {}
    known: dict[str, Port] = {}
    for name, node in nodes.items():
        if name == REQUEST or "." in name:
            raise Misfit(f"{name} cannot be the name of a stage in a pipeline")
        if odd := node.wires.keys() - node.inputs.keys():
            takes = ", ".join(node.inputs) or "nothing"
            raise Misfit(f"{name} has no input {min(odd)}; it takes {takes}")
        for port, wanted in node.inputs.items():
            wire = node.wires.get(port)
            if wire is None and not wanted.optional:
                raise Misfit(f"{name} takes {wanted} as {port}, and no wire brings it")
            if wire is not None:
                _join(name, port, wanted, wire, known, request)
        known |= {f"{name}.{port}": what for port, what in node.outputs.items()}
    if output not in known:
        raise Misfit(f"{output} is to come out, but there is only {', '.join(known) or 'nothing'}")
    used = {wire.partition(".")[0] for node in nodes.values() for wire in node.wires.values()}
    if idle := [name for name in nodes if name not in {*used, output.partition(".")[0]}]:
        raise Misfit(f"what {idle[0]} gives goes nowhere")
    return request


def _join(
    name: str,
    port: str,
    wanted: Port,
    wire: str,
    known: Mapping[str, Port],
    request: dict[str, Port],
) -> None:
    """Check one wire; what comes from the request is added to it."""
    source, _, asked = wire.partition(".")
    if source == REQUEST:
        before = request.get(asked)
        if before is not None and before.kind != wanted.kind:
            raise Misfit(f"{name} takes {wanted} as {port}, but {wire} is {before.kind} elsewhere")
        optional = wanted.optional and (before is None or before.optional)
        request[asked] = Port(wanted.kind, optional=optional)
        return
    if wire not in known:
        there = ", ".join(known) or "nothing yet"
        raise Misfit(f"{name} takes {wanted} as {port} from {wire}, but there is {there}")
    if not wanted.takes(known[wire]):
        raise Misfit(f"{name} takes {wanted} as {port}, but {wire} is {known[wire]}")


def walk(
    wires: Mapping[str, Mapping[str, str]],
    output: str,
    given: Mapping[str, Any],
    made: Mapping[str, Any] | None = None,
    entries: Container[str] = (),
) -> Generator[Call, Mapping[str, Any], Any]:
    """Yield the nodes to run, in their order, and be sent what each gave; returns the value of `output`.

    The same for a graph in one process and for one over many: who drives it decides where a node runs.

    Args:
        wires: Of each node, where its inputs come from.
        output: What is wanted, "up.pixels".
        given: What the caller gave, by name; an input that he left out stays out.
        made: What nodes gave that are not run any more, by wire.
        entries: Nodes that draw nothing: given nothing, they are not run.
    """
    known = {**(made or {}), **{f"{REQUEST}.{name}": value for name, value in given.items()}}
    for name, inputs in wires.items():
        values = {port: known[wire] for port, wire in inputs.items() if wire in known}
        if inputs and not values and name in entries:
            continue
        made = yield Call(name, values)
        known |= {f"{name}.{port}": value for port, value in made.items()}
    return known[output]


def salted(seed: int, salt: str) -> int:
    """Return the seed that a node of this name draws from: no two share noise. An empty salt leaves the seed alone."""
    if not salt:
        return seed
    digest = hashlib.blake2b(f"{seed}/{salt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
