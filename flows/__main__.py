"""`atelier`: the command line. Exit code 0 done, 1 failed, 2 wrong usage."""

import atexit
import gc
import io
import sys
import traceback
from contextlib import suppress
from typing import Any

import typer
from typer.core import TyperGroup

from flows.cli import (
    bench_verbs,
    compare_verbs,
    data_verbs,
    job_verbs,
    lineage_verbs,
    picture_verbs,
    promotion_verbs,
    recipe_verbs,
    request_verbs,
    rollout_verbs,
    schedule_verbs,
    stack_verbs,
    training_verbs,
    tune_verbs,
    version_verbs,
)
from flows.cli.terminal import aside, show_error
from infra.settings import NoProjectError, require_project, settings

TOPICS = {
    "Data and recipes": (data_verbs, recipe_verbs),
    "Training": (training_verbs, tune_verbs, schedule_verbs),
    "Versions and their promotion": (
        *(version_verbs, compare_verbs, picture_verbs, promotion_verbs, rollout_verbs),
    ),
    "What is served": (request_verbs, job_verbs),
    "Where it comes from and goes": (lineage_verbs,),
    "The stack": (stack_verbs, bench_verbs),
}


class InOrder(TyperGroup):
    """Help in the order of TOPICS: Typer's own has single commands before all groups."""

    def __init__(self, **options: Any) -> None:
        """Put what Typer found of the commands in order."""
        super().__init__(**options)
        places = {topic: place for place, topic in enumerate(TOPICS)}
        found = sorted(self.commands.items(), key=lambda one: places[_topic(one[1])])
        self.commands = dict(found)


def _topic(command: object) -> str:
    return str(getattr(command, "rich_help_panel", ""))


app = typer.Typer(cls=InOrder, no_args_is_help=True, pretty_exceptions_enable=False)
for topic, modules in TOPICS.items():
    for verbs in modules:
        commands, groups = len(app.registered_commands), len(app.registered_groups)
        verbs.register(app)
        for command in app.registered_commands[commands:]:
            command.rich_help_panel = topic
        for group in app.registered_groups[groups:]:
            group.rich_help_panel = topic


@app.callback()
def _begin(context: typer.Context) -> None:
    """Train, judge, promote and serve generative models."""
    if not set(context.help_option_names) & set(sys.argv):  # help is given anywhere
        require_project()
        settings()


def main() -> None:
    """Run the command line; what a user can cause ends in one line, not a traceback."""
    atexit.register(gc.freeze)  # the end need not look at a million imported objects
    as_json = "--json" in sys.argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: no sign ends a command
    try:
        sys.exit(app(standalone_mode=False) if as_json else app())
    except KeyboardInterrupt:
        aside.print("stopped")
        sys.exit(130)
    except typer.Abort:
        sys.exit(1)
    except typer.TyperException as error:  # wrong usage, which is JSON like any other answer
        show_error(str(error), "UsageError", as_json=True)
        sys.exit(2)
    except _caused() as error:
        if not isinstance(error, NoProjectError):
            _keep_traceback()
        show_error(told(error), type(error).__name__, as_json=as_json)
        sys.exit(1)


def _caused() -> tuple[type[Exception], ...]:
    """Return the errors that a user, or a server that is gone, can cause; of clients' own kinds those imported."""
    known = {
        "httpx": "HTTPError",
        "prefect.exceptions": "PrefectException",
        "ray.exceptions": "RayError",
    }
    theirs = [getattr(sys.modules[name], of) for name, of in known.items() if name in sys.modules]
    return (ValueError, OSError, RuntimeError, LookupError, ArithmeticError, *theirs)


def told(error: BaseException) -> str:
    """Return an error as the user hears it: its own words, and not those of the Ray task that it ended."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        error = cause
    if isinstance(error, OSError) and str(error).startswith("[Errno"):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    lines = [line.rstrip() for line in str(error).splitlines() if line.strip()]
    return "\n  ".join(lines) or type(error).__name__


def _keep_traceback() -> None:
    """Keep what a developer would want to see of the last error under the state folder, where there is room."""
    with suppress(OSError, ValueError):  # a full disk, or the settings are what is wrong
        folder = settings().state / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "last-error.txt").write_text(traceback.format_exc())


if __name__ == "__main__":
    main()
