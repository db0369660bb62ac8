"""Make-A-Video's graph: what a clip costs, stage by stage, and what people who ask for pictures feel of one.

`python -m benchmarks.clips` draws clips by the networks of `flows/recipes/moving-shapes.yaml` in their sizes and with
its steps (untrained: that costs the same), one thread. Then a gateway in this process, over HTTP, answers pictures
(DDPM `base`, 12 steps) of one person who asks again and again, in turns alone and while a job makes clips; medians and
99th percentiles, and their ratios, all of one run.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import torch

from benchmarks.sampling import PROMPT, network
from data.makers.moving import CAPTIONS
from flows.evaluating.pipeline import made_by_nodes
from infra.pipelines import Pipeline
from models.family import Family
from tests.flows.moving_kit import small_cascade
from tests.services.clips_kit import publish_cascade
from tests.services.conftest import Workshop
from tests.services.served_kit import listening

PAPER: Final = {
    **{"clip/text": "C", "prior": "P", "decoder": "D"},
    **{"interpolation": "up_F", "upsampler": "SR_l", "frames": "SR_h"},
}


def by_stage(models: list[Family], pipeline: Pipeline, count: int) -> None:
    """Print what each node of a clip takes, alone; medians of `count` clips."""
    walls: dict[str, list[float]] = {}
    cpus: dict[str, list[float]] = {}
    frames: Mapping[str, int] = {}
    for number in range(count + 1):
        nodes = made_by_nodes(models, pipeline, CAPTIONS[:1], [number])
        frames, wall, cpu = {}, time.perf_counter(), time.process_time()
        for node, made in nodes:
            frames = {**frames, node: made.shape[1] if made.dim() == 5 else 0}
            if number:  # the first warms up
                walls.setdefault(node, []).append(time.perf_counter() - wall)
                cpus.setdefault(node, []).append(time.process_time() - cpu)
            wall, cpu = time.perf_counter(), time.process_time()
    whole = sum(statistics.median(took) for took in cpus.values())
    print("| stage | steps | CPU-ms a clip | of the whole | frames out | frames a CPU-s |")
    print("|---|---|---|---|---|---|")
    for node, took in cpus.items():
        cpu = statistics.median(took)
        steps = "-" if "/" in node else pipeline.stage(node).options.get("steps", "-")
        rate = f"{frames[node] / cpu:.1f}" if frames[node] else "-"
        told = f"{1000 * cpu:.1f} | {cpu / whole:.0%} | {frames[node] or '-'} | {rate}"
        print(f"| {PAPER[node]} ({node}) | {steps} | {told} |")
    out = [*frames.values()][-1]
    wall = sum(statistics.median(took) for took in walls.values())
    print(
        f"\na clip of {out} frames: {whole:.2f} CPU-s, {out / whole:.1f} frames a CPU-s; {wall:.2f} s\n"
    )


def picture(client: httpx.Client, seed: int) -> float:
    """Ask for a picture; return the seconds."""
    body = {"model": "pictures", "prompt": PROMPT, "seed": seed, "steps": 12}
    began = time.perf_counter()
    client.post("/images/generations", json=body).raise_for_status()
    return time.perf_counter() - began


def clip(client: httpx.Client, seed: int) -> str:
    """Ask for a clip; return its job."""
    body = {"model": "moving-shapes", "prompt": CAPTIONS[0], "seed": seed}
    answer = client.post("/videos", json=body).raise_for_status()
    return str(answer.json()["id"])


def state(client: httpx.Client, job: str) -> str:
    """Return how a job is."""
    return str(client.get(f"/videos/{job}").raise_for_status().json()["status"])


def beside(client: httpx.Client, rounds: int, each: int) -> None:
    """Print how long a person's pictures take alone and beside clips, in turns, and the ratios."""
    took: dict[str, list[float]] = {"alone": [], "while a clip is made": []}
    made = 0
    for seed in range(8):
        picture(client, seed)
    for turn in range(rounds):
        took["alone"] += [picture(client, seed) for seed in range(each)]
        job = clip(client, turn)
        while state(client, job) == "queued":
            time.sleep(0.02)
        beginning = len(took["while a clip is made"])
        while len(took["while a clip is made"]) < beginning + each:
            if state(client, job) == "completed":
                made += 1
                job = clip(client, 1000 * turn + made)
            took["while a clip is made"].append(picture(client, len(took["alone"])))
        client.delete(f"/videos/{job}").raise_for_status()
    alone, with_clip = took.values()
    print("| pictures of one person | p50, ms | p99, ms |")
    print("|---|---|---|")
    for who, values in took.items():
        middle, late = (1000 * np.quantile(values, share) for share in (0.5, 0.99))
        print(f"| {who} ({len(values)}) | {middle:.0f} | {late:.0f} |")
    ratios = [np.quantile(with_clip, share) / np.quantile(alone, share) for share in (0.5, 0.99)]
    print(f"| ratio (goal of p99: 1.5) | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    print(f"\n{made} clips were completed beside them")


def served(models: list[Family], graph: Pipeline, rounds: int, each: int) -> None:
    """Serve both from this process, and ask."""
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        workshop.cache.mkdir()
        publish_cascade(workshop, models, graph)
        workshop.publish_alone("pictures", network("base"), gives={"picture": [3, 16, 16]})
        stage = workshop.stage()
        app: Any = workshop.worked(workshop.gateway(stage), stage)
        with (
            listening(app) as address,
            httpx.Client(base_url=f"{address}/v1", timeout=120, trust_env=False) as client,
        ):
            beside(client, rounds, each)
        stage.close()


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=5, help="of which the costs are medians")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--each", type=int, default=20, help="pictures a round and way")
    given = parser.parse_args()
    torch.set_num_threads(1)
    models, graph = small_cascade({}, None)
    by_stage(models, graph, given.clips)
    served(models, graph, given.rounds, given.each)


if __name__ == "__main__":
    main()
