"""What a hop to a stage apart costs: CPU-ms of gateway and stages a request, by layout and number of stages.

`python -m benchmarks.hops` serves chains of one, two and three networks that do next to nothing (preset `tiny`, one
step), once in the gateway's process (`fused`) and once apart (`staged`), sends both the same requests in interleaved
rounds and prints the medians. A hop is what staged costs more than fused, divided by the stages. Beside them, in the
same Ray, a bare handle call: two Serve deployments of which one calls the other with a few bytes. CPU is utime + stime
of the replicas' processes; Serve's proxy and controller, which a hop does not touch, are left out.
"""

import argparse
import asyncio
import dataclasses
import json
import logging
import os
import statistics
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.serving import LAYOUTS, WORDS, Pins, Server, load, ours
from infra.settings import Settings
from infra.storage import seal
from models import describe
from models.diffusion.ddpm import DDPM, DDPMConfig


class Callee:
    """The end of a bare hop."""

    async def answer(self, body: bytes) -> bytes:
        """Return what came."""
        return body


class Caller:
    """The beginning of one."""

    def __init__(self, callee: Any) -> None:
        self._method = callee.answer

    async def call(self, count: int, users: int) -> None:
        """Call `count` times, so many at once."""
        numbers = iter(range(count))

        async def user() -> None:
            for _ in numbers:
                await self._method.remote(b"a few bytes")

        await asyncio.gather(*(user() for _ in range(users)))


def configs(count: int) -> list[DDPMConfig]:
    """Return networks each of which draws from what the one before it drew, at twice its size."""
    tiny = dataclasses.replace(DDPM.presets["tiny"], vocabulary=WORDS, steps=1)
    return [tiny] + [
        dataclasses.replace(tiny, image_size=8 * 2**place, low_size=4 * 2**place, text="none")
        for place in range(1, count)
    ]


def published(cache: Path, config: DDPMConfig, name: str) -> dict[str, Any]:
    """Put a network with random weights into the cache; returns its pin."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model, making = DDPM(config), cache / "making"
    making.mkdir(parents=True)
    (making / "config.json").write_text(json.dumps(describe(model)))
    save_file(model.state_dict(), making / "model.safetensors")
    digest = seal(making, {"kind": "model", "name": name})
    making.rename(cache / digest)
    return {
        "stage": name,
        "name": f"bench.{name}",
        "version": 1,
        "sha256": digest,
        "family": "ddpm",
    }


def versions(cache: Path, most: int) -> Pins:
    """Publish `most` networks, and chains of one, two, ... of them; returns the versions of both."""
    found, pipelines = [], []
    low: int | None = None
    for place, config in enumerate(configs(most)):
        side = config.image_size
        inputs = {"text": "text"} if low is None else {"low": f"pixels 3x{low}x{low}"}
        outputs = {"pixels": f"pixels 3x{side}x{side}"}
        pinned = published(cache, config, f"s{place}")
        found.append({**pinned, "inputs": inputs, "outputs": outputs, "options": {"steps": 1}})
        pipelines.append(chain(cache, found, side))
        low = side
    held = [
        {"name": one["name"], "number": 1, "digest": one["sha256"], "family": "ddpm"}
        for one in found
    ]
    return held, pipelines


def chain(cache: Path, stages: list[dict[str, Any]], side: int) -> dict[str, Any]:
    """Publish a pipeline of these stages, one behind the other; returns its version."""
    name, making = f"chain{len(stages)}", cache / "making"
    document = {"format": 2, "endpoint": name, "stages": stages, "image_size": [side, side]}
    making.mkdir()
    (making / "pipeline.json").write_text(json.dumps(document))
    digest = seal(making, {"kind": "pipeline", "name": name})
    making.rename(cache / digest)
    return {"name": name, "number": 1, "digest": digest}


def spent_ms(server: Server) -> float:
    """Return the CPU-ms that gateway and stages have used."""
    kinds = ("gateway", "stage")
    return 1000 * sum(s for kind, s in server.cpu_s().items() if kind.startswith(kinds))


def requested(server: Server, model: str, requests: int, users: int) -> float:
    """Return CPU-ms a request."""
    before = spent_ms(server)
    answers = asyncio.run(load(server, requests, users, model))
    if odd := {status for _, status in answers} - {200}:
        raise SystemExit(f"{server.name} answered {odd} for {model}")
    return (spent_ms(server) - before) / requests


def called(server: Server, caller: Any, requests: int, users: int) -> float:
    """Return CPU-ms a bare handle call."""
    before = spent_ms(server)
    caller.call.remote(requests, users).result()
    return (spent_ms(server) - before) / requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=3, help="stages of the longest chain")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        pins = versions(Settings(project=Path(folder)).state / "versions", given.most)
        fused, staged = (stack.enter_context(ours(one, Path(folder), pins)) for one in LAYOUTS)
        caller = bare(staged, stack)
        print(
            "| users | stages | fused, CPU-ms | staged | a hop | a hop over a bare call | a bare call |"
        )
        print("|---|---|---|---|---|---|---|", flush=True)
        for users in given.users:
            compare(fused, staged, caller, users, given)


def bare(server: Server, stack: ExitStack) -> Any:
    """Start the two deployments of a bare call in a server's Ray; returns the handle of the first."""
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(server.token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    import ray
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(address=server.ray, log_to_driver=False, logging_level="error")
    stack.callback(ray.shutdown)  # before its cluster ends
    options = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": 1000}
    callee = serve.deployment(**options)(Callee).bind()
    return serve.run(
        serve.deployment(**options)(Caller).bind(callee),
        name="bare",
        route_prefix=None,
        logging_config={"enable_access_log": False},
    )


def compare(
    fused: Server, staged: Server, caller: Any, users: int, given: argparse.Namespace
) -> None:
    """Print a row for each length of chain."""
    chains = [f"chain{count}" for count in range(1, given.most + 1)]
    sides = {"fused": fused, "staged": staged}
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(given.rounds + 1):  # the first warms up
        for name in chains:
            for side, server in sides.items():
                ms = requested(server, name, given.requests, users)
                found[side, name] += [ms] if number else []
        ms = called(staged, caller, given.requests, users)
        found["bare", ""] += [ms] if number else []
    medians = {key: statistics.median(one) for key, one in found.items()}
    call = medians["bare", ""]
    for count, name in enumerate(chains, 1):
        inside, apart = medians["fused", name], medians["staged", name]
        hop = (apart - inside) / count
        print(
            f"| {users} | {count} | {inside:.2f} | {apart:.2f} | {hop:.2f} | {hop / call:.2f} | {call:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
