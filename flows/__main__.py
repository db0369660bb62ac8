"""`atelier`: the command line. Exit code 0 done, 1 failed, 2 wrong usage."""

import sys
import traceback
from contextlib import suppress

import typer

from flows.command_line import (
    bench_verbs,
    compare_verbs,
    data_verbs,
    lineage_verbs,
    promotion_verbs,
    recipe_verbs,
    rollout_verbs,
    schedule_verbs,
    stack_verbs,
    training_verbs,
    tune_verbs,
    version_verbs,
)
from flows.command_line.terminal import aside
from infra.settings import settings

app = typer.Typer(
    help="Train, judge, promote and serve generative models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for verbs in (
    training_verbs,
    tune_verbs,
    promotion_verbs,
    rollout_verbs,
    schedule_verbs,
    version_verbs,
    compare_verbs,
    lineage_verbs,
    stack_verbs,
    data_verbs,
    recipe_verbs,
    bench_verbs,
):
    verbs.register(app)


def main() -> None:
    """Run the command line; what a user can cause ends in one line, not a traceback."""
    try:
        settings()
        app()
    except KeyboardInterrupt:
        aside.print("stopped; the same command goes on from the last checkpoint")
        sys.exit(130)
    except (ValueError, OSError, RuntimeError, LookupError, ArithmeticError) as error:
        _keep_traceback()
        aside.print(f"error: {told(error)}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)


def told(error: BaseException) -> str:
    """Return an error as the user hears it: its own words, and not those of the Ray task that it ended."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        error = cause
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
