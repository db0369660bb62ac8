"""A job's finished stages: sealed into the store as they come, committed under the lease, found again on resume."""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.numpy import load, save

from infra.documents import parse_json
from infra.jobs.leases import Lease, LeaseLost
from infra.jobs.table import Output
from services.jobs.progress import Progress
from services.jobs.store import Store, StoreError
from services.pipelines.by_reference import fetched
from services.pipelines.payload import Drawn, Made, Sounded, Text, Written

logger = logging.getLogger("ray.serve")

HEAD: Final = 8  # bytes: the length of what stands before the arrays


class Outputs:
    """What one attempt at a job finds made, and what it makes."""

    def __init__(
        self, lease: Lease, store: Store, made: Mapping[str, Output], progress: Progress
    ) -> None:
        self._lease, self._store, self._progress = lease, store, progress
        self._made = dict(made)

    async def find(self, node: str) -> Made | None:
        """Return what a node has made, in this attempt or one before; None: it is to be made."""
        output = self._made.get(node)
        if output is None:
            return None
        try:
            content = await asyncio.to_thread(self._store.get, output.uri, output.digest)
            found = unpacked(content)
        except (StoreError, ValueError, LookupError, SafetensorError) as error:
            logger.warning("%s: %s is made anew: %s", self._lease.job.id, node, error)
            return None
        self._progress.done(node)
        return found

    async def keep(self, node: str, made: Made, seconds: float) -> None:
        """Seal what a node has made and commit it.

        Raises:
            LeaseLost: the job is another's.
        """
        content = await packed(made)
        name = f"{node.replace('/', '.')}-{self._lease.fence}.safetensors"
        await asyncio.to_thread(self._commit, node, name, content, seconds)
        self._progress.done(node)

    def _commit(self, node: str, name: str, content: bytes, seconds: float) -> None:
        digest, uri = self._store.put(self._lease.job.id, name, content)
        try:
            self._lease.stage_done(node, digest, uri, seconds=seconds)
        except LeaseLost:
            self._store.remove(uri)
            raise
        self._made[node] = Output(digest, uri, seconds)


async def packed(made: Made) -> bytes:
    """Return a stage's output as bytes; arrays in the object store are fetched."""
    facts: dict[str, Any] = {"warnings": made.warnings}
    arrays = {}
    if isinstance(made, Written):
        facts["texts"] = [[one.text, one.tokens, one.reason] for one in made.texts]
        facts["prompt_tokens"] = made.prompt_tokens
    elif isinstance(made, Sounded):
        arrays["sounds"] = await fetched(made.sounds)
        facts |= {"sample_rate": made.sample_rate, "lengths": made.lengths}
        facts["sources"] = made.sources
    else:
        arrays["pictures"] = await fetched(made.pictures)
    return await asyncio.to_thread(save, arrays, {"made": json.dumps(facts)})


def unpacked(content: bytes) -> Made:
    """Return what `packed` packed."""
    arrays = load(content)
    facts = _facts(content)
    warnings = tuple(facts["warnings"])
    if "texts" in facts:
        texts = tuple(Text(*one) for one in facts["texts"])
        return Written(texts, tuple(facts["prompt_tokens"]), warnings=warnings)
    if "sounds" in arrays:
        lengths = tuple(facts.get("lengths", ()))  # those of before lasted all as long
        sources = tuple(
            tuple((name, begin, end) for name, begin, end in row)
            for row in facts.get("sources", ())
        )
        return Sounded(arrays["sounds"], facts["sample_rate"], warnings, lengths, sources)
    return Drawn(arrays["pictures"], warnings)


def _facts(content: bytes) -> dict[str, Any]:
    """Return the metadata of a safetensors file: its header is JSON, after the header's length."""
    length = int.from_bytes(content[:HEAD], "little")
    head = parse_json(content[HEAD : HEAD + length], "a stage's output")
    found: dict[str, Any] = parse_json(head["__metadata__"]["made"], "a stage's output")
    return found
