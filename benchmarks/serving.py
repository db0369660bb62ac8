"""Requests a second and server CPU a request: the served model against bare FastAPI and LitServe.

`python -m benchmarks.serving` serves one random text-to-image network by this project (on a Ray of its own, in each
layout), by `serving_peers` and by `serving_litserve`, sends the same requests to each in interleaved rounds, and prints
a table row a server with medians, and of ours the CPU by process. CPU is utime + stime of all processes of a server,
found by an environment variable. OMP_NUM_THREADS=1 for all; at most 16 pictures a batch for all. Ours also looks into
the ledger, checks the key and puts a signed receipt into every picture.

`--ours NAME,VARIABLE=VALUE,...` measures ours under other variables: Serve's, or ATELIER_LAYOUT.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import psutil
import torch

from infra import serving
from infra.ledger.ledger import Ledger
from infra.settings import QUIET, Settings
from infra.stack import probes, spec
from infra.storage import seal
from models import describe
from models.diffusion.ddpm import DDPM
from tests.ports_kit import free_ports

ROOT = Path(__file__).parents[1]
MARK = "ATELIER_BENCHMARK"
LAYOUTS = ("fused,ATELIER_LAYOUT=fused", "staged,ATELIER_LAYOUT=staged")
KINDS = {
    ":Gateway": "gateway",
    "ServeReplica:": "stage",
    "ProxyActor": "proxy",
    "ServeController": "controller",
}
"""What our processes are, by a part of their titles, the first that fits; others are Ray's own."""
Pins: TypeAlias = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""The versions of stages that are held, and those of the pipelines that are made of them."""
WORDS = ("a", "small", "large", "red", "green", "circle", "square", "on", "the", "left", "right")


@dataclass(frozen=True)
class Server:
    """One that is measured."""

    name: str
    url: str
    process: "subprocess.Popen[bytes]"
    ray: str = ""  # its address, where it has one,
    token: Path | None = None  # and what it asks for

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the server."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.name:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds they have used, by kind; of a replica's its busiest thread (engine, loop) apart."""
        spent: dict[str, float] = defaultdict(float)
        for process in self.processes():
            try:
                times, kind = process.cpu_times(), kind_of(process)
                if kind in {"gateway", "stage"}:
                    busiest = max(one.user_time + one.system_time for one in process.threads())
                    spent[f"{kind}'s thread"] += busiest
                    spent[kind] -= busiest
                spent[kind] += times.user + times.system
            except psutil.Error:
                continue
        return spent

    def stop(self) -> None:
        """End the server and what it started."""
        family = self.processes()
        self.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=20)
        for process in alive:
            process.kill()


@dataclass(frozen=True)
class Round:
    """What one round of one server showed."""

    requests_per_s: float
    cpu_ms: float
    parts: Mapping[str, float]  # of it, by kind of process
    p50_ms: float
    p99_ms: float
    failed: int


def kind_of(process: psutil.Process) -> str:
    """Return which of our processes it is."""
    title = " ".join(process.cmdline())
    return next((kind for part, kind in KINDS.items() if part in title), "ray")


def publish(cache: Path, preset: str, steps: int) -> Pins:
    """Put a network with random weights and a pipeline of it into the cache; returns both versions."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = DDPM(dataclasses.replace(DDPM.presets[preset], vocabulary=WORDS, steps=steps))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    making = cache / "making"
    making.mkdir(parents=True)
    (making / "config.json").write_text(json.dumps(describe(model)))
    save_file(model.state_dict(), making / "model.safetensors")
    digest = seal(making, {"kind": "model", "name": "bench.base"})
    making.rename(cache / digest)
    stage = {"name": "bench.base", "number": 1, "digest": digest, "family": "ddpm"}
    side = model.config.image_size
    document = {
        "format": 1,
        "endpoint": "bench",
        "stages": [
            {
                "stage": "base",
                "name": "bench.base",
                "version": 1,
                "sha256": digest,
                "family": "ddpm",
                "accepts": {"prompt": "text"},
                "gives": {"picture": [3, side, side]},
                "steps": steps,
                "guidance": model.config.guidance,
            }
        ],
        "image_size": [side, side],
    }
    making.mkdir()
    (making / "pipeline.json").write_text(json.dumps(document))
    digest = seal(making, {"kind": "pipeline", "name": "bench"})
    making.rename(cache / digest)
    return [stage], [{"name": "bench", "number": 1, "digest": digest}]


def start(name: str, command: list[str], log: Path, **variables: str) -> "subprocess.Popen[bytes]":
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        **QUIET,
        **variables,
        MARK: name,
        "OMP_NUM_THREADS": "1",
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends then, too
    with log.open("wb") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )


def start_ours(name: str, settings: Settings, folder: str, **variables: str) -> Server:
    token = settings.state / "ray_token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    ports = ["--port", str(settings.ray_port), "--dashboard-port", str(settings.dashboard_port)]
    process = start(
        name,
        [sys.executable, "-m", "infra.stack.servers", "ray", *ports, "--folder", folder],
        settings.state / "ray.log",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        **{**spec.SERVE, spec.SOCKETS: f"{folder}/gateway", **variables},
    )
    wait(lambda: probes.ray_answers(f"http://127.0.0.1:{settings.dashboard_port}", token), process)
    return Server(
        name, f"http://127.0.0.1:{settings.gateway_port}", process, settings.ray_url, token
    )


def start_peer(kind: str, directory: Path, log: Path) -> Server:
    [port] = free_ports(1)
    module = {"bare": "benchmarks.serving_peers", "litserve": "benchmarks.serving_litserve"}[kind]
    command = [sys.executable, "-m", module, str(directory), str(port)]
    process = start(kind, command, log)
    wait(lambda: probes.answers(f"http://127.0.0.1:{port}/readyz"), process)
    return Server(kind, f"http://127.0.0.1:{port}", process)


def wait(ready: Any, process: "subprocess.Popen[bytes]", seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"a server did not start: {process.args!r}")
        time.sleep(0.2)


async def load(
    server: Server, requests: int, users: int, model: str = "bench"
) -> list[tuple[float, int]]:
    """Send `requests` from `users` that each wait for their answer; returns (seconds, status) of each."""
    results: list[tuple[float, int]] = []
    numbers = iter(range(requests))

    async def user(client: httpx.AsyncClient) -> None:
        for number in numbers:
            body = {"model": model, "prompt": "a small red circle", "seed": number}
            began = time.perf_counter()
            answer = await client.post(f"{server.url}/v1/images/generations", json=body)
            results.append((time.perf_counter() - began, answer.status_code))

    async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
        await asyncio.gather(*(user(client) for _ in range(users)))
    return results


def measure(server: Server, requests: int, users: int) -> Round:
    before, began = server.cpu_s(), time.perf_counter()
    results = asyncio.run(load(server, requests, users))
    elapsed = time.perf_counter() - began
    spent = {kind: seconds - before.get(kind, 0) for kind, seconds in server.cpu_s().items()}
    took = sorted(seconds for seconds, _ in results)
    return Round(
        requests_per_s=requests / elapsed,
        cpu_ms=1000 * sum(spent.values()) / requests,
        parts={kind: 1000 * seconds / requests for kind, seconds in spent.items()},
        p50_ms=1000 * statistics.median(took),
        p99_ms=1000 * took[int(0.99 * (len(took) - 1))],
        failed=sum(status != 200 for _, status in results),
    )


def median(rounds: list[Round]) -> Round:
    def of(name: str) -> Any:
        return statistics.median(getattr(one, name) for one in rounds)

    names = [field.name for field in dataclasses.fields(Round) if field.name != "parts"]
    kinds = rounds[0].parts
    parts = {kind: statistics.median(one.parts.get(kind, 0) for one in rounds) for kind in kinds}
    return Round(**{name: of(name) for name in names}, parts=parts)


def show(users: int, found: Mapping[str, Round]) -> None:
    bare = found["bare"]
    for name, one in found.items():
        rate, cpu = one.requests_per_s / bare.requests_per_s, one.cpu_ms / bare.cpu_ms
        print(
            f"| {users} | {name} | {one.requests_per_s:.1f} | {rate:.2f} | {one.cpu_ms:.1f} | {cpu:.2f} |"
            f" {one.p50_ms:.0f} | {one.p99_ms:.0f} | {one.failed:.0f} |"
            f" {', '.join(f'{kind} {ms:.1f}' for kind, ms in one.parts.items() if len(one.parts) > 1)} |",
            flush=True,
        )


@contextmanager
def ours(one: str, folder: Path, pins: Pins) -> Iterator[Server]:
    """Yield a server of ours: NAME,VARIABLE=VALUE,..."""
    name, *pairs = one.split(",")
    variables = dict(pair.split("=", 1) for pair in pairs)
    os.environ.update(variables)  # Settings reads them
    stages, pipelines = pins
    gateway, ray, dashboard = free_ports(3)
    settings = Settings(
        project=folder,
        tracking_uri="http://127.0.0.1:9",  # everything is in the cache
        gateway_port=gateway,
        ray_port=ray,
        dashboard_port=dashboard,
    )
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:
        server = start_ours(name, settings, short, **variables)
        try:
            serving.deploy(settings, stages)
            for pipeline in pipelines:
                promote(settings, pipeline)
            yield server
        finally:
            server.stop()
            for variable in variables:
                os.environ.pop(variable, None)


def promote(settings: Settings, pipeline: Mapping[str, Any]) -> None:
    ledger = Ledger(settings.database)
    if not ledger.standing(pipeline["name"]):
        ledger.transition(
            name=pipeline["name"],
            stage="production",
            to_version=1,
            to_digest=pipeline["digest"],
            expected_epoch=0,
            key=pipeline["name"],
            actor="benchmark",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours", nargs="+", default=list(LAYOUTS))
    parser.add_argument("--peers", nargs="*", default=["bare", "litserve"])
    given = parser.parse_args()
    print(
        "| users | server | requests/s | / bare | CPU-ms/request | / bare | p50 ms | p99 ms | failed | by process |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    peers: list[Server] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        state = Settings(project=Path(folder)).state
        pins = publish(state / "versions", given.preset, given.steps)
        try:
            for kind in given.peers:
                weights = state / "versions" / pins[0][0]["digest"]
                peers.append(start_peer(kind, weights, state / f"{kind}.log"))
            for one in given.ours:
                with ours(one, Path(folder), pins) as server:
                    compare([server, *peers], given)
        finally:
            for peer in peers:
                peer.stop()


def compare(servers: list[Server], given: argparse.Namespace) -> None:
    for users in given.users:
        rounds: dict[str, list[Round]] = {server.name: [] for server in servers}
        for server in servers:
            asyncio.run(load(server, 2 * users + 8, users))  # warm
        for number in range(given.rounds):
            first = number % len(servers)
            for server in servers[first:] + servers[:first]:
                requests = given.requests if users > 1 else given.requests // 3
                rounds[server.name].append(measure(server, requests, users))
        show(users, {name: median(found) for name, found in rounds.items()})


if __name__ == "__main__":
    main()
