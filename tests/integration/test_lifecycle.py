"""The command line as a stranger uses it, over the run's own stack and a project of its own."""

import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from infra import serving
from infra.receipts import receipts
from infra.settings import Settings
from tests.command_kit import commands
from tests.integration.project_kit import Workshop

RECIPE = Path(__file__).with_name("tiny.yaml")
SCHEDULED = """
import sys
from flows.lifecycle import retrain
retrain(sys.argv[1], ["seed=7"], to_production=True)
"""
RETRAINED = """
import sys
from flows.lifecycle import retrain
retrain(sys.argv[1], ["seed=8", "evaluation.samples=8", "gate.metrics.coverage.at_least=0.1"])
"""
pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def served(workshop: Workshop) -> Iterator[None]:
    """What these tests promote is served; at their end no more."""
    yield
    serving.stop(Settings(database_url=workshop.environment["ATELIER_DATABASE_URL"]))


def test_a_recipe_goes_from_data_to_a_picture_and_back(workshop: Workshop) -> None:
    found = workshop.json("run", str(RECIPE))
    assert found["promoted"]["changed"]
    first = found["version"]["version"]

    again = workshop.json("run", str(RECIPE))
    assert again["trained"] == found["trained"], "a finished step was repeated"
    assert again["version"] == found["version"]
    assert not again["promoted"]["changed"]

    picture = workshop.folder / "three.png"
    workshop.run("generate", "tiny", "three", "-o", str(picture), "--seed", "7")
    with Image.open(picture) as painted:
        assert painted.size == (8, 8)
    assert receipts.read(picture).version == f"tiny:{first}"
    assert workshop.json("verify", str(picture))["run"]
    replayed = workshop.json("replay", str(picture), "-o", str(picture.with_name("again.png")))
    assert replayed["same"]
    assert f"drawn by tiny:{first} through the gateway" in replayed["notes"]
    nodes = workshop.json("lineage", str(picture))["nodes"]
    runs = [dict(node["links"]) for node in nodes if node["column"] == "run"]
    assert all({"MLflow", "Prefect"} <= links.keys() for links in runs)

    other = workshop.json("run", str(RECIPE), "--set", "stages.base.steps=3")
    assert other["trained"] == found["trained"], "a sampler setting retrained a stage"
    assert other["version"]["version"] == first + 1
    compared = workshop.json(
        "compare", f"tiny:{first}", "tiny", "-o", str(workshop.folder / "pages")
    )
    assert compared["recipe"] == [{"field": "stages.base.steps", "first": "2", "second": "3"}]
    assert compared["metrics"]["alignment"]["change"]
    assert (workshop.folder / "pages" / "compare.png").is_file()
    workshop.run("generate", "tiny", "three", "-o", str(picture))
    assert receipts.read(picture).version == f"tiny:{first + 1}"

    workshop.run("rollback", "tiny")
    workshop.run("generate", "tiny", "three", "-o", str(picture))
    assert receipts.read(picture).version == f"tiny:{first}"
    rows = workshop.json("history", "tiny")
    assert [row["to_version"] for row in rows] == [first, first + 1, first]

    workshop.run("rollout", f"tiny:{first + 1}", "--canary", "100")
    workshop.run("generate", "tiny", "three", "-o", str(picture))
    tried = receipts.read(picture)
    assert (tried.version, tried.place) == (f"tiny:{first + 1}", "canary")
    assert f"canary of tiny:{first + 1} at 100 %" in workshop.run("rollout", "tiny")
    workshop.run("rollout", "tiny", "--promote")
    workshop.run("generate", "tiny", "three", "-o", str(picture))
    assert receipts.read(picture).place == "production"
    assert workshop.json("rollout", "tiny")["ended"]["reason"] == "promoted"


def test_the_gate_refuses_a_forced_promotion_is_recorded_and_what_nobody_took_can_go(
    workshop: Workshop,
) -> None:
    for bound in (0.98, 0.99):
        metric = f"gate.metrics.alignment={{at_least: {bound}}}"
        refused = workshop.run("run", str(RECIPE), "--set", metric, code=1)
        assert "tiny: its samples are drawn and judged" in refused
        assert "error: the gate refuses tiny:" in refused
        assert f"is below {bound}" in refused
        assert "or pass over the gate by atelier promote tiny:" in refused
    newest = max(row["version"] for row in workshop.json("models") if row["name"] == "tiny")
    workshop.run("promote", f"tiny:{newest}", "--force", "a trial")
    assert workshop.json("history", "tiny")[-1]["forced"]

    told = workshop.json("prune")
    removed = workshop.json("prune", "--yes")
    assert (told["removed"], removed["removed"]) == (False, True)
    ours = [(one["kind"], one["name"]) for one in removed["pieces"] if "tiny" in one["name"]]
    assert [name for kind, name in ours if kind == "version"] == [f"tiny:{newest - 1}"]
    assert len([name for kind, name in ours if kind == "run"]) == 1, "that of its judging"
    assert workshop.json("prune")["pieces"] == []
    picture = workshop.folder / "kept.png"
    workshop.run("generate", "tiny", "three", "-o", str(picture))
    assert receipts.read(picture).version == f"tiny:{newest}"


def test_a_gateway_that_cannot_start_is_told_before_anything_is_trained(
    workshop: Workshop,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = {"ATELIER_GATEWAY_PORT": str(other.getsockname()[1])}
        moved = replace(workshop, environment={**workshop.environment, **port})
        printed = moved.run("run", str(RECIPE), "--set", "seed=7", code=1)
        scheduled = workshop.folder / "scheduled.py"
        scheduled.write_text(SCHEDULED)
        done = commands.script(scheduled, str(RECIPE), env=moved.environment)
    assert done.returncode == 1
    for told in (printed, done.stderr):
        assert re.search(r"(the gateway cannot start: port|Serve listens on) ", told)
        assert "tiny.base: step" not in told


def test_what_a_gate_could_never_be_told_ends_a_schedules_run_before_anything_is_trained(
    workshop: Workshop,
) -> None:
    """Its recipe, or its data, may have changed since it was added."""
    scheduled = workshop.folder / "retrained.py"
    scheduled.write_text(RETRAINED)
    done = commands.script(scheduled, str(RECIPE), env=workshop.environment)
    assert done.returncode == 1
    assert "coverage will not be measured: " in done.stderr
    assert "samples are drawn, and it needs 20" in done.stderr
    assert "tiny.base: step" not in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["generate", "tiny", "dragon", "-o", "x.png"], "unknown word 'dragon'"),
        (["generate", "nothing", "three", "-o", "x.png"], "the model 'nothing' does not exist"),
        (["show", "tiny:999"], "999"),
        (["history", "tinny"], "no model is called 'tinny'; did you mean tiny"),
        (["promote", "tiny.base"], "is a stage, not a pipeline"),
        (["rollback", "nothing"], "no earlier version"),
        (["train", "nowhere.yaml"], "cannot read recipe nowhere.yaml"),
        (["data", "prepare", "nope"], "unknown dataset 'nope'"),
        (["verify", "dvc.yaml"], "dvc.yaml"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_what_a_user_gets_wrong_ends_in_one_line(
    workshop: Workshop, words: list[str], says: str
) -> None:
    printed = workshop.run(*words, code=1)
    error = next(line for line in printed.splitlines() if line.startswith("error: "))
    assert says in printed.replace("\n", " "), error
