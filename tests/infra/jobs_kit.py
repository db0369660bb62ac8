"""What tests of jobs begin with: a clock that stands, and a clip that is asked for."""

from typing import Any

from infra.jobs.jobs import Jobs
from infra.jobs.table import Job, Result

LEASE_S = 10.0
RESULT = Result("d" * 64, "file:///clip.mp4", "video/mp4", 1000)


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def submit(jobs: Jobs, owner: str = "anna", **other: Any) -> Job:
    request = other.pop("request", {"prompt": "a red circle"})
    given = {"pipeline": "clips:1", "digests": {"clips": "d" * 64}, "seed": 2**62}
    return jobs.submit("video", request, owner=owner, **{**given, **other})
