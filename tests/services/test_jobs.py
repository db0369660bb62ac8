"""A runner makes jobs by the executor of pictures, each stage once, whoever is killed in between."""

import asyncio
import hashlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.jobs.jobs import Jobs
from infra.jobs.leases import Lease
from infra.jobs.table import Job
from infra.ledger.ledger import Ledger
from services.jobs.outputs import packed, unpacked
from services.jobs.progress import Progress
from services.jobs.runner import Runner
from services.jobs.store import Store, StoreError
from services.pipelines.payload import Drawn, Sounded, Text, Written
from tests.command_kit import commands
from tests.databases_kit import Database
from tests.s3_kit import BUCKET, bucket, keys
from tests.services.jobs_kit import calls, counted, runner

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shapes(own_workshop: Any, networks: Callable[..., Any]) -> Any:
    """A workshop with a cascade of two stages."""
    own_workshop.publish_wired("cascade", {"base": networks("base"), "up": networks("upscaler")})
    return own_workshop


class House:
    """One database, a folder of versions, and runners over them."""

    def __init__(self, workshop: Any, database: str, folder: Path, name: str = "cascade") -> None:
        published = workshop.published.values()
        version = next(one for one in published if one["name"] == name)
        (folder / "versions").symlink_to(workshop.cache)
        self.folder, self.database = folder, database
        self.later_s, self.ledger = 0.0, Ledger(database)
        self.jobs = Jobs(database, most_open=1000, clock=self.now)
        self._ref = f"{version['name']}:{version['number']}"
        self._digests = {self._ref: version["digest"]}

    def now(self) -> float:
        """Return Unix seconds, later than they are."""
        return time.time() + self.later_s

    def submit(self, seed: int, *, deadline: float | None = None, **request: Any) -> Job:
        asked = {"prompt": "a small red circle", **request}
        given: dict[str, Any] = {
            "pipeline": self._ref,
            "digests": self._digests,
            "deadline": deadline,
        }
        return self.jobs.submit("image", asked, owner="anna", seed=seed, **given)

    def runner(self, stage_of: Any = None) -> Runner:
        return runner(self.jobs, self.ledger, self.folder, stage_of or counted(self.folder))

    def processes(self, *lives_s: float) -> list[int]:
        """Run runners that are killed after so many seconds; return their exit codes."""
        words = (self.database, str(self.folder), str(self.later_s))
        kit = ROOT / "tests/services/jobs_kit.py"
        found = commands.together(kit, *((*words, str(life_s)) for life_s in lives_s))
        self.later_s += 100  # their leases are over
        return found

    def claim(self) -> Lease:
        lease = self.jobs.claim("here")
        assert lease is not None
        return lease

    def work(self, stage_of: Any = None) -> None:
        """Make one job, here."""
        asyncio.run(self.runner(stage_of).work(self.claim()))

    async def all_over(self, ids: Iterable[str]) -> None:
        """Work until none of these jobs is left."""
        runner = self.runner()
        runner.start()
        while not all(self.jobs.get(id).over for id in ids):
            await asyncio.sleep(0.02)
        await runner.stop()


@pytest.fixture
def house(shapes: Any, database: Database, tmp_path: Path) -> Iterator[House]:
    made = House(shapes, database.url, tmp_path)
    yield made
    made.jobs.close()
    made.ledger.close()


def test_a_job_is_drawn_stage_by_stage_and_its_picture_kept(house: House) -> None:
    made = house.submit(5)
    house.work()
    ended = house.jobs.get(made.id)
    assert (ended.state, ended.progress) == ("completed", 100)
    assert ended.result is not None
    assert ended.result.media_type == "image/png"
    content = Store(str(house.folder / "made")).get(ended.result.uri, ended.result.digest)
    assert len(content) == ended.result.bytes
    assert [stage for stage, _ in calls(house.folder / "calls")] == ["base", "up"]
    assert list(house.jobs.costs(ended.pipeline)) == ["base", "up"]
    assert len(list((house.folder / "made" / made.id).iterdir())) == 1  # the outputs have gone


@pytest.mark.parametrize("where", ["jobs.stage", "jobs.staged", "jobs.finish"])
def test_a_runner_killed_in_mid_job_costs_no_finished_stage(
    house: House, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = house.submit(5)
    house.work()
    (house.folder / "calls").unlink()
    made = house.submit(5)
    with monkeypatch.context() as patch:
        patch.setenv("ATELIER_FAULT", f"{where}:kill")
        assert house.processes(60) == [-signal.SIGKILL]
    before = len(house.jobs.stages(made.id))
    drawn = len(calls(house.folder / "calls"))
    house.work()
    ended, expected = house.jobs.get(made.id), house.jobs.get(whole.id)
    assert (ended.state, ended.attempt, ended.causes) == ("completed", 2, {"lost": 1})
    assert ended.result is not None
    assert expected.result is not None
    assert ended.result.digest == expected.result.digest
    assert before == {"jobs.stage": 0, "jobs.staged": 1, "jobs.finish": 2}[where]
    assert len(calls(house.folder / "calls")) - drawn == 2 - before


def test_two_runners_under_random_kills_lose_double_and_leave_nothing(house: House) -> None:
    """The whole of it, 200 jobs, is benchmarks/jobs.py --fire."""
    ids = {house.submit(seed).id for seed in range(12)}
    for lives_s in ((0.3, 0.4), (0.2, 0.5)):
        assert house.processes(*lives_s) == [-signal.SIGKILL] * 2
    asyncio.run(house.all_over(ids))
    ended = [house.jobs.get(id) for id in ids]
    assert {one.state for one in ended} == {"completed"}
    lost = sum(one.causes.get("lost", 0) for one in ended)
    assert len(calls(house.folder / "calls")) <= 2 * len(ids) + lost  # a stage is redone for a loss


def test_a_sealed_output_that_was_altered_is_made_anew(house: House) -> None:
    made = house.submit(7)
    lease = house.claim()
    store = Store(str(house.folder / "made"))
    noise = Drawn(np.zeros((1, 3, 8, 8), np.float32))
    digest, uri = store.put(made.id, "base-1.safetensors", asyncio.run(packed(noise)))
    lease.stage_done("base", digest, uri)
    lease.release()
    Path(uri.removeprefix("file://")).write_bytes(b"x")
    with pytest.raises(StoreError, match="was altered"):
        store.get(uri, digest)
    house.work()
    assert house.jobs.get(made.id).state == "completed"
    assert [stage for stage, _ in calls(house.folder / "calls")] == ["base", "up"]


@pytest.mark.parametrize(
    "made",
    [
        Drawn(np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3), ("'x' was not read",)),
        Sounded(np.linspace(-1, 1, 5, dtype=np.float32)[None], 8000),
        Sounded(np.zeros((1, 5), np.float32), 8000, (), (4,), ((("a", 0.0, 0.5),),)),
        Written((Text("na\u00efve", 3, "stop"),), (2,)),
    ],
)
def test_what_is_sealed_of_a_stage_is_what_it_made(made: Any) -> None:
    found = unpacked(asyncio.run(packed(made)))
    assert type(found) is type(made)
    assert asyncio.run(packed(found)) == asyncio.run(packed(made))


def test_a_store_may_be_anywhere_that_fsspec_knows() -> None:
    store = Store("memory://jobs")
    digest, uri = store.put("image_1", "base-1.safetensors", b"content")
    assert uri.startswith("memory://")
    assert store.get(uri, digest) == b"content"
    store.clear("image_1")
    with pytest.raises(StoreError, match="cannot be read"):
        store.get(uri, digest)
    with pytest.raises(StoreError, match="nowhere://"):
        Store("nowhere://jobs")


def test_in_a_bucket_is_found_and_removed_what_others_have_put_there_since() -> None:
    """And a file is read line by line, long ones in pieces, as from a folder."""
    with bucket() as client:
        store, content = Store(f"s3://{BUCKET}/jobs"), b"a long one\nb\n"
        store.put("file_1", "content", content)
        assert store.jobs() == ["file_1"]
        client.put_object(Bucket=BUCKET, Key="jobs/image_2/base-1", Body=b"x")
        assert store.jobs() == ["file_1", "image_2"]
        store.clear("image_2")
        client.put_object(Bucket=BUCKET, Key="jobs/file_1/content-2", Body=content)
        uri, digest = f"s3://{BUCKET}/jobs/file_1/content-2", hashlib.sha256(content).hexdigest()
        assert [*store.rows(uri, digest, 5)] == [b"a long", b" one\n", b"b\n"]
        store.remove(uri)
        assert keys(client, "jobs") == ["jobs/file_1/content"]


def test_progress_goes_by_what_the_stages_cost_before() -> None:
    progress = Progress()
    assert progress.percent == 0
    progress.plan(["base", "up", "last"], {"base": 3000.0, "up": 1000.0})
    assert progress.percent == pytest.approx(0, abs=1)
    progress.done("base")  # of 3000 + 1000 s, and of the last one as much as the mean of these
    assert progress.percent == pytest.approx(50, abs=1)
    progress.done("up")
    assert progress.percent == pytest.approx(100 * 4 / 6, abs=1)
    unknown = Progress()
    unknown.plan(["base", "up"], {})
    unknown.done("base")
    assert unknown.percent == 50
