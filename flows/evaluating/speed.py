"""What one picture costs: seconds and CPU-seconds of a lone one, drawn warm, with intervals that a bound can name."""

import time
from collections.abc import Sequence
from typing import Final

from flows.evaluating.gate import Interval
from flows.evaluating.pipeline import draw
from infra.pipelines import Pipeline
from models.family import Family

TIMES: Final = 9
INSIDE: Final = (
    1  # of nine sorted ones, the second and the eighth hold the median in 96 of 100 cases
)


def cost_per_sample(
    models: Sequence[Family], pipeline: Pipeline, prompts: Sequence[str]
) -> dict[str, Interval]:
    """Return `seconds_per_sample` and `cpu_seconds_per_sample`, all threads of this process together.

    On a GPU the CPU-seconds are those of the host alone.
    """
    chosen = [prompts[number % len(prompts)] for number in range(TIMES + 1)] if prompts else []
    walls, cpus = [], []
    for number in range(TIMES + 1):  # the first warms up
        wall, cpu = time.perf_counter(), time.process_time()
        draw(models, pipeline, chosen[number : number + 1], [number])
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {
        "seconds_per_sample": _median(walls[1:]),
        "cpu_seconds_per_sample": _median(cpus[1:]),
    }


def _median(values: Sequence[float]) -> Interval:
    ordered = sorted(values)
    return Interval(
        value=ordered[len(ordered) // 2],
        low=ordered[INSIDE],
        high=ordered[-1 - INSIDE],
        count=len(ordered),
    )
