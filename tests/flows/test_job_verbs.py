"""`atelier jobs` shows and moves what the table of jobs holds."""

import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from infra.jobs.jobs import Jobs
from tests.command_kit import commands
from tests.databases_kit import Databases

Run = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def url(databases: Databases) -> str:
    return databases.migrated("sqlite").url


@pytest.fixture
def run(url: str, tmp_path: Path) -> Run:
    home = {"ATELIER_HOME": str(tmp_path), "ATELIER_DATABASE_URL": url}
    return lambda *words: commands.run("jobs", *words, env={**os.environ, **home})


def test_jobs_are_listed_shown_cancelled_and_tried_again(run: Run, url: str) -> None:
    with Jobs(url) as jobs:
        asked = {"prompt": "[bold]a red circle"}
        digests = {"clips:3": "d" * 64}
        given = {"owner": "anna", "pipeline": "clips:3", "digests": digests, "seed": 7}
        made = jobs.submit("video", asked, **given)  # type: ignore[arg-type]
        lease = jobs.claim("runner")
        assert lease is not None
        lease.stage_done("base", "e" * 64, "file:///made/base", seconds=2.5)
        lease.fail("out_of_memory", "the model ran out of memory", again=False)
        [listed] = json.loads(run("list", "--json").stdout)
        assert (listed["id"], listed["state"], listed["error"]["code"]) == (
            made.id,
            "failed",
            "out_of_memory",
        )
        ended = datetime.fromisoformat(listed["ended"])
        assert ended.tzinfo is not None
        assert ended.timestamp() >= made.created
        assert listed["deadline"] is None
        shown = run("show", made.id).stdout
        for part in (
            "[bold]a red circle",
            "clips:3",
            "1 x out_of_memory",
            " UTC",
            "file:///made/base",
        ):
            assert part in shown
        assert made.id in run("list").stdout
        assert "failed: there is nothing to cancel" in run("cancel", made.id).stderr
        assert run("retry", made.id).returncode == 0
        assert jobs.get(made.id).state == "queued"
        assert run("cancel", made.id).returncode == 0
        assert jobs.get(made.id).state == "cancelled"
        assert list(jobs.stages(made.id)) == ["base"]


def test_a_job_that_is_not_there_is_one_line_of_error(run: Run) -> None:
    done = run("show", "video_x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == ["error: there is no job 'video_x', or not any more"]
