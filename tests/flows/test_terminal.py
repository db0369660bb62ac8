"""What the command line prints, and where."""

import json
import os
import subprocess
import sys
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx
import openai
import pytest
import typer
from prefect.exceptions import ObjectNotFound
from ray.exceptions import WorkerCrashedError

from flows.__main__ import TOPICS, app, told
from flows.cli import completing, terminal
from flows.cli.client import _words
from flows.training.journal import Progress
from flows.training.loop import Diverged
from infra.keys import Keys
from infra.settings import Settings, project_above

ROOT = Path(__file__).parents[2]


def test_an_error_is_one_line_on_stderr_however_long() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows", "train", f"{'long-' * 40}.yaml"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: cannot read recipe long-long-")


def test_a_full_or_closed_output_ends_in_one_line_and_no_traceback() -> None:
    asked = f"{sys.executable} -m flows data list --json"
    for into, code, lines in (
        ("> /dev/full", 1, ["error: No space left on device"]),
        (">&-", 0, []),
    ):
        done = subprocess.run(
            ["/bin/sh", "-c", f"{asked} {into}"], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr.splitlines()) == (code, lines)


def test_a_name_that_the_terminal_cannot_show_ends_no_command(tmp_path: Path) -> None:
    with closing(Keys(Settings(home=tmp_path).database)) as keys:
        keys.create("é")
    done = subprocess.run(
        [sys.executable, "-m", "flows", "keys", "list"],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "ATELIER_HOME": str(tmp_path), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, "\\xe9" in done.stdout) == (0, True)


def test_an_error_of_the_system_is_told_without_its_number() -> None:
    with pytest.raises(OSError, match="No such file") as missing:
        Path("/nowhere/file").read_text()
    assert told(missing.value) == "/nowhere/file: No such file or directory"


def test_what_a_model_wrote_gives_the_terminal_no_orders() -> None:
    assert terminal.printable("a\x1b[2J\x9b\tb\n") == "a\u241b[2J\ufffd\tb\n"


def test_a_table_shows_what_it_is_given_and_obeys_none_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal.show_table("[b].png", ("who", "what"), [("a user", "[red]x[/b] \x1b[2J"), ("b", None)])
    shown = capsys.readouterr().out
    assert "[red]x[/b] \u241b[2J" in shown
    assert "b       -" in shown
    assert shown.startswith("[b].png")


def test_brackets_and_colons_of_a_path_or_a_prompt_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rich takes them for styles and emoji."""
    for shows in (terminal.console, terminal.aside):
        shows.print("written: cats [b].png :car: [/]")
    assert [*capsys.readouterr()] == ["written: cats [b].png :car: [/]\n"] * 2


def test_times_are_told_in_utc_and_to_programs_with_their_offset(
    capsys: pytest.CaptureFixture[str],
) -> None:
    moment = datetime(2026, 11, 29, 1, 30, 5, tzinfo=timezone(timedelta(hours=2)))
    terminal.show_table("runs", ["due"], [[moment]])
    assert "2026-11-28 23:30:05 UTC" in capsys.readouterr().out
    terminal.show_json({"due": moment})
    assert json.loads(capsys.readouterr().out) == {"due": "2026-11-29T01:30:05+02:00"}


def test_a_card_in_a_pipe_is_the_markdown_that_it_was_written_in(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal.show_markdown("# A model\n\n- paints [b]circles[/b]")
    assert capsys.readouterr().out == "# A model\n\n- paints [b]circles[/b]\n"


def test_a_wrong_setting_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_RAY_PORT", "many")
    done = subprocess.run(
        [sys.executable, "-m", "flows", "status"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ATELIER_RAY_PORT: ")


def test_a_training_that_diverges_is_an_error_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows import __main__ as entry

    def diverge() -> None:
        raise Diverged("loss is nan at step 2 of 40")

    monkeypatch.setattr(entry, "app", diverge)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: loss is nan at step 2 of 40\n"


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("All connection attempts failed"),
        ObjectNotFound(ValueError("404"), help_message="there is no such run"),
        WorkerCrashedError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_server_or_a_worker_that_is_gone_is_an_error_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    from flows import __main__ as entry

    def fail() -> None:
        raise error

    monkeypatch.setattr(entry, "app", fail)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_what_failed_in_a_ray_task_is_told_in_its_own_words() -> None:
    class TaskError(ValueError):
        cause = ValueError("memorisation needs at least 20 held-out pictures")

    assert told(TaskError("ray::score (pid=7)\n  File ...")) == str(TaskError.cause)
    assert told(ValueError("one\n\ntwo")) == "one\n  two"


def test_a_training_that_waits_says_for_what(capsys: pytest.CaptureFixture[str]) -> None:
    lines = terminal._Lines()
    lines.show("shapes.base", Progress(0, 9, float("nan"), 0.0, float("inf"), note="no room"))
    lines.show("shapes.base", Progress(9, 9, 0.5, 10.0, 0.0))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "  shapes.base: no room",
        "  shapes.base: step 9 of 9, loss 0.5000, 10 samples/s, 0 s left",
    ]


def test_the_gateways_refusal_is_told_without_the_clients_words() -> None:
    answer = httpx.Response(400, request=httpx.Request("POST", "http://gateway"))
    refusal = openai.BadRequestError(
        "Error code: 400 - prompt: it is empty",
        response=answer,  # type: ignore[arg-type]
        body={"message": "prompt: it is empty"},
    )
    assert _words(refusal) == "prompt: it is empty"


def cli(*arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if name != "ATELIER_PROJECT"}
    return subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        cwd=cwd,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_shows_every_command_under_its_topic_in_the_order_of_the_work() -> None:
    command = typer.main.get_command(app)
    shown = [command.commands[name].rich_help_panel for name in command.commands]
    assert list(dict.fromkeys(shown)) == list(TOPICS)


@pytest.mark.parametrize("arguments", [["up"], ["data", "list"], ["run", "x.yaml"]])
def test_outside_of_a_project_a_command_refuses_and_writes_nothing(
    arguments: list[str], tmp_path: Path
) -> None:
    done = cli(*arguments, cwd=tmp_path, ATELIER_HOME=".atelier")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: no Atelier project in {tmp_path} or above it")
    assert list(tmp_path.iterdir()) == []


def test_the_project_is_found_from_its_sub_folders() -> None:
    inside = ROOT / "flows" / "reports"
    assert project_above(inside) == ROOT
    done = cli("data", "list", "--json", cwd=inside)
    assert {"shapes", "digits"} <= {one["name"] for one in json.loads(done.stdout)}


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [(["check", "none.yaml"], 1, "RecipeError"), (["statsu"], 2, "UsageError")],
)
def test_an_error_is_json_where_json_was_asked_for(
    arguments: list[str], code: int, kind: str
) -> None:
    done = cli(*arguments, "--json", cwd=ROOT)
    assert (done.returncode, done.stderr) == (code, "")
    found = json.loads(done.stdout)["error"]
    assert found["type"] == kind
    assert arguments[-1] in found["message"]


def test_what_is_piped_is_not_wrapped() -> None:
    code = (
        "from flows.cli.terminal import show_table;"
        "show_table('t', ('a', 'b'), [('x' * 90, 'y' * 90)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == f"{'x' * 90}  {'y' * 90}"


def test_status_can_be_asked_by_a_program(private_home: Path) -> None:
    done = cli("status", "--check", cwd=ROOT)
    assert done.returncode == 1
    assert "down" in done.stdout
    assert cli("status", cwd=ROOT).returncode == 0


def test_tab_offers_recipes_models_and_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "flows")
    assert "recipes/shapes.yaml" in completing.recipes("recipes/sh")
    assert completing.recipes("rec")[0] == "recipes/"
    assert completing.models("digits-g") == ["digits-gan", "digits-gan-by-name"]
    assert completing.datasets("dig") == ["digits"]
