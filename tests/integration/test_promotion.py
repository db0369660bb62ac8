"""Promotion as a transaction over a served house: killed anywhere, refused when bad, approved by another."""

import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.context import actor
from flows.promotion import approvals
from flows.promotion.procedure import FAULTPOINTS, Refused, request, roll_back
from flows.promotion.reconcile import reconcile
from infra.ledger.leases import holding, new_holder
from infra.ledger.ledger import Conflict
from infra.ledger.promotions import PromotionError
from infra.serving import VersionRefused
from tests.command_kit import commands
from tests.databases_kit import Databases
from tests.integration import promotion_kit
from tests.integration.promotion_kit import Installation

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

UNDER_FIRE = Path(__file__).with_name("promoters_under_fire.py")


@pytest.fixture(scope="module")
def installation(
    stack: Any, tmp_path_factory: pytest.TempPathFactory, databases: Databases
) -> Iterator[Installation]:
    """Its ledger is on Postgres; test_rollout and test_lifecycle promote on SQLite."""
    database = databases.empty("postgresql").url
    yield from promotion_kit.installed(tmp_path_factory.mktemp("promotion"), database)


def aliases(installation: Installation, name: str) -> dict[str, int]:
    from mlflow import MlflowClient

    held = MlflowClient(installation.settings.mlflow_uri).get_registered_model(name).aliases
    return {alias: int(number) for alias, number in held.items()}


def test_a_promotion_and_a_rollback_are_served_recorded_and_shown(
    installation: Installation,
) -> None:
    first, second = (installation.publish("walk", installation.stage(seed)) for seed in (1, 2))
    assert request(first.ref) == {
        "ref": first.ref, "place": "production", "changed": True, "epoch": 1,
    }  # fmt: skip
    assert not request(first.ref)["changed"]
    request(second.ref)
    row = installation.ledger.head("walk", "production")
    assert row is not None
    assert row.actor == "anna"
    assert row.report is not None
    assert row.report["against"] is None  # its gate asks for no comparison
    names = [condition["name"] for condition in row.report["conditions"]]
    assert names == ["alignment", "stages fit", "smoke", "slowdown"]
    assert row.report["conditions"][0]["value"] == 0.9
    assert installation.served("walk")[0].version == second.ref
    assert aliases(installation, "walk") == {"production": 2, "candidate": 2}

    began = time.monotonic()
    roll_back("walk", reason="too blue")
    answered = installation.served("walk")[0].version
    seconds = time.monotonic() - began
    assert answered == first.ref
    assert aliases(installation, "walk") == {"production": 1, "candidate": 2}
    assert installation.journal.open() == []
    assert [one.state for one in installation.journal.of(first.digest)] == ["done", "done"]
    print(f"\nrollback to the first answer of the old version: {seconds:.2f} s")  # noqa: T201


def test_the_command_line_rolls_back_within_seconds(installation: Installation) -> None:
    request("walk:2")
    began = time.monotonic()
    words = ("rollback", "walk", "--reason", "again")
    done = commands.run(*words, env=installation.environment("berta"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert installation.served("walk")[0].version == "walk:1"
    print(f"\natelier rollback, then a picture: {time.monotonic() - began:.2f} s")  # noqa: T201
    head = installation.ledger.head("walk", "production")
    assert head is not None
    assert (head.actor, head.reason) == ("berta", "again")


def test_after_a_kill_at_any_point_the_served_version_is_the_ledger_s(
    installation: Installation,
) -> None:
    stages = [installation.stage(seed) for seed in (1, 2)]
    cases = []
    for verb in ("promote", "rollback"):
        for number, fault in enumerate(FAULTPOINTS):
            if (verb, fault) == ("rollback", "promote.gated"):
                continue  # a rollback has no gate
            name = f"fire-{verb}-{number}"
            first, second = (installation.publish(name, stage) for stage in stages)
            installation.put(first)
            if verb == "rollback":
                installation.put(second)
            cases.append({"verb": verb, "name": name, "ref": second.ref, "fault": fault})
    done = commands.script(UNDER_FIRE, json.dumps(cases))
    assert done.returncode == 0, done.stderr
    slowest = 0.0
    for one in json.loads(done.stdout.splitlines()[-1]):
        case, killed = one["case"], datetime.fromtimestamp(one["killed"], UTC)
        assert one["by"] == signal.SIGKILL, f"{case} was not killed: {done.stderr}"
        slowest = max(slowest, settled(installation, case, killed))
    print(  # noqa: T201
        f"\n{len(cases)} kills, at each of {len(FAULTPOINTS)} points: "
        f"settled within {slowest:.1f} s of the kill, served = ledger = alias in all"
    )


def settled(installation: Installation, case: dict[str, Any], killed: datetime) -> float:
    """Check that the ledger, the gateway, the alias and the journal agree; return when they did, after the kill."""
    name = case["name"]
    head = installation.ledger.head(name, "production")
    assert head is not None
    version = f"{name}:{head.to_version}"
    assert installation.served(name)[0].version == version, case
    held = aliases(installation, name)
    assert held["production"] == head.to_version, case
    target = installation.registry.get(f"{name}:{1 if case['verb'] == 'rollback' else 2}")
    [row] = installation.journal.of(target.digest)
    moved = head.to_version == row.version
    assert row.state == ("done" if moved else "undone"), case
    assert moved == (FAULTPOINTS.index(case["fault"]) >= FAULTPOINTS.index("ledger.committed")), (
        case
    )
    return max(0.0, (row.updated - killed).total_seconds())


@pytest.mark.parametrize("fault", [one for one in FAULTPOINTS if one != "promote.gated"])
def test_a_full_disk_at_any_point_of_a_rollback_is_settled_at_once(
    installation: Installation, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request("walk:2")
    head = installation.ledger.head("walk", "production")
    assert head is not None
    monkeypatch.setenv("ATELIER_FAULT", f"{fault}:enospc")
    with pytest.raises(OSError, match="No space left"):
        roll_back("walk")
    monkeypatch.delenv("ATELIER_FAULT")
    reconcile()
    assert installation.journal.open() == []
    now = installation.ledger.head("walk", "production")
    assert now is not None
    after = FAULTPOINTS.index(fault) >= FAULTPOINTS.index("ledger.committed")
    assert now.to_version == (head.from_version if after else head.to_version)
    assert installation.served("walk")[0].version == f"walk:{now.to_version}"
    assert aliases(installation, "walk")["production"] == now.to_version


def test_reconcile_has_nothing_to_do_where_all_is_settled(installation: Installation) -> None:
    assert reconcile() == []


@pytest.mark.parametrize(
    ("kind", "steps", "gate", "error", "says"),
    [
        ("unloadable", 4, {}, VersionRefused, "cannot be loaded"),
        ("nan", 4, {}, Refused, "the smoke refuses"),
        ("black", 4, {}, Refused, "the picture is flat, 0 levels"),
        ("same", 4, {}, Refused, "the same picture as with seed 0"),
        ("good", 400, {"max_slowdown": 1.5}, Refused, "times, above 1.5"),
    ],
    ids=["raises at load", "NaN weights", "black pictures", "one picture", "much slower"],
)
def test_a_bad_version_is_stopped_and_production_never_answers_from_it(
    installation: Installation, kind: str, steps: int, gate: Any, error: Any, says: str
) -> None:
    name = f"bad-{kind}"
    good = installation.publish(name, installation.stage(1))
    installation.put(good)
    bad = installation.publish(name, installation.stage(5, kind, steps), gate=gate)
    with pytest.raises(error, match=says):
        request(bad.ref)
    [row] = installation.journal.of(bad.digest)
    assert row.state == "refused"
    assert row.error is not None
    assert says in row.error
    assert installation.served(name)[0].version == good.ref
    assert len(installation.ledger.history(name)) == 1


def test_pictures_of_another_size_are_refused(installation: Installation) -> None:
    wrong = installation.publish("size", installation.stage(1), side=16)
    with pytest.raises(Refused, match="answered 500: the last stage drew another size"):
        request(wrong.ref)


def test_force_passes_over_the_gate_and_slowness_and_never_over_a_broken_picture(
    installation: Installation,
) -> None:
    name = "forced"
    installation.put(installation.publish(name, installation.stage(1)))
    weak = installation.publish(name, installation.stage(2), alignment=0.1)
    with pytest.raises(Refused, match=r"alignment 0\.1 \[0\.1, 0\.1\] is below 0\.5"):
        request(weak.ref)
    request(weak.ref, force="a demonstration")
    row = installation.ledger.head(name, "production")
    assert row is not None
    assert (row.forced, row.reason, row.to_version) == (True, "a demonstration", 2)
    black = installation.publish(name, installation.stage(5, "black"))
    with pytest.raises(Refused, match="flat"):
        request(black.ref, force="another")


def test_a_stage_with_another_interface_and_another_evaluation_set_are_refused(
    installation: Installation,
) -> None:
    name, stage = "unfit", installation.stage(1)
    installation.put(installation.publish(name, stage))
    other = stage.model_copy(update={"interface": "0" * 16})
    with pytest.raises(
        Refused, match=r"promotion\.base:\d+ has interface .* pins 0{16} as its base"
    ):
        request(installation.publish(name, other).ref)
    compared = {"no_worse_than": "production"}
    with pytest.raises(Refused, match="evaluation set other is not production's set"):
        request(installation.publish(name, installation.stage(2), gate=compared, over="other").ref)


def test_of_two_promoters_the_second_is_told_who_won(installation: Installation) -> None:
    name = "race"
    first, second = (installation.publish(name, installation.stage(seed)) for seed in (1, 2))
    gate = {"approvals": {"count": 1}}
    late = installation.publish(name, installation.stage(3), gate=gate)
    request(first.ref)
    waiting = request(late.ref)["waiting"]
    with installation.acting("carl"):
        request(second.ref)
    with (
        installation.acting("berta"),
        pytest.raises(Conflict, match="carl was first: production from"),
    ):
        approvals.approve(waiting)
    row = installation.journal.get(waiting)
    assert row.state == "superseded"
    assert row.error is not None
    assert "carl was first" in row.error


def test_a_promotion_waits_for_another_person_and_the_ledger_names_both(
    installation: Installation,
) -> None:
    name = "eyes"
    policy = {"approvals": {"count": 1, "by": ["anna", "berta"]}}
    version = installation.publish(name, installation.stage(1), gate=policy)
    assert actor() == "anna"
    found = request(version.ref)
    waiting = found["waiting"]
    assert not found["changed"]
    assert request(version.ref)["waiting"] == waiting, "asked again, it still waits"
    assert installation.ledger.head(name, "production") is None
    with pytest.raises(PromotionError, match="another person must approve it"):
        approvals.approve(waiting)
    with installation.acting("carl"), pytest.raises(PromotionError, match="carl may not decide"):
        approvals.approve(waiting)

    words = ("approve", waiting, "--reason", "sharp", "--json")
    done = commands.run(*words, env=installation.environment("berta"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["state"] == "done"
    row = installation.ledger.head(name, "production")
    assert row is not None
    assert (row.actor, row.to_version) == ("anna", 1)
    assert row.approvals is not None
    assert [(one["actor"], one["reason"]) for one in row.approvals] == [("berta", "sharp")]
    assert installation.served(name)[0].version == version.ref
    with installation.acting("berta"), pytest.raises(PromotionError, match="it is done"):
        approvals.approve(waiting)


def test_a_run_of_a_deployment_suspends_and_goes_on_once_another_approves(
    installation: Installation,
) -> None:
    """By what a worker starts, test_schedules has one that does; between its two runs no process is held."""
    from uuid import UUID

    from prefect import get_client

    name = "suspended"
    version = installation.publish(name, installation.stage(1), gate={"approvals": {"count": 1}})
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(
            flow_id=client.create_flow_from_name("promote"),
            name="trial",
            entrypoint="flows/promote.py:promote",
        )
        run = client.create_flow_run_from_deployment(deployment, parameters={"ref": version.ref})

    def engine() -> None:
        environment = {**installation.environment("anna"), "PREFECT__FLOW_RUN_ID": str(run.id)}
        commands.script(
            UNDER_FIRE.parents[2] / "flows" / "scheduling" / "engine.py", env=environment
        )

    def state() -> str | None:
        with get_client(sync_client=True) as client:
            found = client.read_flow_run(UUID(str(run.id))).state
            return found.name if found else None

    engine()
    assert state() == "Suspended"
    [row] = installation.journal.waiting()
    assert (row.flow_run, row.holder) == (str(run.id), None)
    with installation.acting("berta"):
        approver = threading.Thread(target=approvals.approve, args=(row.id, "fine"))
        approver.start()
        while installation.journal.get(row.id).state == "waiting" or state() == "Suspended":
            time.sleep(0.05)
        engine()
        approver.join()
    assert state() == "Completed"
    head = installation.ledger.head(name, "production")
    assert head is not None
    assert head.approvals is not None
    assert (head.actor, [one["actor"] for one in head.approvals]) == ("anna", ["berta"])


def test_a_rejected_and_an_expired_promotion_never_go_into_production(
    installation: Installation,
) -> None:
    name = "no"
    policy: dict[str, Any] = {"approvals": {"hours": 1e-6}}
    version = installation.publish(name, installation.stage(1), gate=policy)
    waiting = request(version.ref)["waiting"]
    until = installation.journal.get(waiting).expires
    assert until is not None
    while datetime.now(UTC) <= until + timedelta(milliseconds=1):
        time.sleep(0.001)
    assert any(f"{waiting} expired" in line for line in reconcile())
    other = installation.publish(name, installation.stage(2), gate={"approvals": {"count": 1}})
    waiting = request(other.ref)["waiting"]
    with installation.acting("berta"):
        assert approvals.reject(waiting, "too dark")["state"] == "rejected"
    assert installation.ledger.head(name, "production") is None


def test_show_and_history_tell_what_was_decided_and_when(installation: Installation) -> None:
    def atelier(*words: str) -> str:
        done = commands.run(*words, env=installation.environment("anna"))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    shown = atelier("show", "eyes:1")
    assert "gate of eyes:1" in shown
    assert "stages fit" in shown
    assert "berta" in atelier("history", "eyes")
    rows = installation.ledger.history("walk")
    then = json.loads(atelier("history", "walk", "--at", rows[0].at.isoformat(), "--json"))
    assert [row["to_version"] for row in then] == [1]
    before = (rows[0].at - timedelta(seconds=1)).isoformat()
    assert json.loads(atelier("history", "walk", "--at", before, "--json")) == []


def test_a_version_that_was_deleted_stops_no_other_promotion_and_no_reconciler(
    installation: Installation,
) -> None:
    from mlflow import MlflowClient

    gone = installation.publish("gone", installation.stage(1))
    request(gone.ref)
    other = installation.publish("stays", installation.stage(2))
    rows = []
    for version, epoch in ((gone, 1), (other, 0)):  # two promoters are lost
        holder = new_holder()
        row = installation.journal.intend(
            kind="promote", name=version.name, place="production", version=version.number,
            digest=version.digest, epoch=epoch, actor="anna", reason="a trial", forced=False, holder=holder,
        )  # fmt: skip
        rows.append(row)
        with holding(installation.journal, row.id, holder):
            pass
    shutil.rmtree(installation.settings.state / "versions" / gone.digest)
    MlflowClient(installation.settings.mlflow_uri).delete_registered_model("gone")
    found = reconcile()
    assert [line.partition(" ")[0] for line in found] == [row.id for row in rows]
    assert "is undone, not all in line yet: no model is called 'gone'" in found[0]
    assert found[1].endswith("undone: stays:1 did not reach production")
    assert request(other.ref)["changed"]
    assert installation.served("stays")[0].version == other.ref
    assert installation.served("gone")[0].version == gone.ref, "what is loaded stays so"
