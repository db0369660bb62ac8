"""Model versions in memory: fetched by digest, verified, loaded beside what runs, evicted by bytes."""

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from infra.documents import read_json
from infra.pipelines import Pin
from models import build
from models.family import Entry, Family
from models.parts import adapter_rows, lora
from services.stages.batch_invariance import agreeing
from services.stages.engine import BUCKETS

if TYPE_CHECKING:
    from infra.registry.registry import Registry


@dataclass(frozen=True, slots=True)
class Held:
    """A loaded version and the batch sizes that give it equal bits."""

    model: Family
    bytes: int
    buckets: tuple[int, ...]
    finite: bool  # of text, since tokens cannot show what they were drawn from; else what is drawn tells
    entries: Mapping[str, Entry]  # taken once: their spaces are a hash of all weights
    base: str | None = None  # the digest of what an adapter adds to, and holds with it


class Unloadable(ValueError):
    """A version that cannot be had: not fetched, altered, or weights that do not fit their network."""


class Versions:
    """The versions that a stage holds, by digest; safe to use from several threads."""

    def __init__(
        self,
        registry: "Registry",
        *,
        device: str = "cpu",
        max_bytes: int = 4 * 2**30,
        buckets: Sequence[int] = BUCKETS,
        threads: int = 1,
    ) -> None:
        self._threads = threads
        self._registry = registry
        self._device = torch.device(device)
        self._max_bytes = max_bytes
        self._buckets = tuple(sorted(buckets))
        self._held: OrderedDict[str, Held] = OrderedDict()  # least recently used first
        self._pinned: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}

    @property
    def digests(self) -> list[str]:
        """The digests held, least recently used first."""
        with self._lock:
            return list(self._held)

    def held(self, digest: str) -> Held | None:
        """Return a version that is loaded already."""
        with self._lock:
            found = self._held.get(digest)
            if found is not None:
                self._held.move_to_end(digest)
            return found

    def load(self, pin: Pin) -> Held:
        """Return a version, loaded once however many ask at a time.

        Raises:
            Unloadable: it cannot be fetched, its bytes were altered, or its weights do not fit the network.
        """
        with self._lock:
            turn = self._loading.setdefault(pin.digest, threading.Lock())
        with turn:
            if (found := self.held(pin.digest)) is not None:
                return found
            loaded = self._read(pin)
            with self._lock:
                self._held[pin.digest] = loaded
                self._evict(keep=pin.digest)
            return loaded

    def pin(self, digests: Collection[str]) -> None:
        """Keep these versions whatever their size; only others are evicted."""
        with self._lock:
            self._pinned = frozenset(digests)
            self._evict()

    def _evict(self, keep: str = "") -> None:
        while sum(held.bytes for held in self._held.values()) > self._max_bytes:
            # a base that goes before its adapters frees nothing, and the next of them would load it again
            kept = {keep, *self._pinned, *(held.base for held in self._held.values())}
            spare = next((digest for digest in self._held if digest not in kept), None)
            if spare is None:
                return
            del self._held[spare]  # rows under way keep the model until they are done

    def _read(self, pin: Pin) -> Held:
        from safetensors import SafetensorError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return self._build(self._registry.fetch(pin.ref, digest=pin.digest))
        except (
            *(ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError),
            *(SafetensorError, SQLAlchemyError),
        ) as error:
            text = " ".join(str(error).split())
            raise Unloadable(f"{pin.ref} cannot be loaded: {text}") from error

    def _build(self, directory: Path) -> Held:
        from safetensors.torch import load_file

        document = read_json(directory / "config.json")
        model = build(document)
        if not isinstance(model, Family):
            raise TypeError(f"{type(model).__name__} is no generative family")
        own = load_file(directory / "model.safetensors", str(self._device))
        host = None if model.lora is None else self._base(model.lora)
        lora.fill(model, *([] if host is None else [host.state_dict()]), own)
        model = model.ready().requires_grad_(requires_grad=False).to(self._device)
        if model.capabilities.stepwise and host is not None:
            host.adapter_place.bank.join(model, host)
        elif model.capabilities.stepwise and type(model).adapts:
            adapter_rows.open_to_adapters(model)
        shared = () if host is None else (*host.parameters(), *host.buffers())
        known = {tensor.data_ptr() for tensor in shared}
        tensors = [
            one for one in (*model.parameters(), *model.buffers()) if one.data_ptr() not in known
        ]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        torch.set_num_threads(self._threads)  # as in the engine: the trial shows what it will do
        writes = model.capabilities.modality == "text"
        finite = not writes or all(bool(tensor.isfinite().all()) for tensor in model.parameters())
        buckets = agreeing(model, self._buckets) if finite else self._buckets
        base = None if model.lora is None else model.lora.digest
        return Held(model, size, buckets, finite, model.entries, base)

    def _base(self, adapter: lora.LoRA) -> Family:
        """Return the network that an adapter adds to, which is loaded once for all of them."""
        name, _, number = adapter.base.partition(":")
        return self.load(Pin(name=name, number=int(number), digest=adapter.digest)).model
