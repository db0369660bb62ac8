"""How the command line speaks: tables or JSON, progress bars or lines, and a stack that is up before work starts."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.cli import completing
from infra.settings import settings
from infra.times import utc

if TYPE_CHECKING:
    from flows.training.journal import Progress

for _stream in ("stdin", "stdout", "stderr"):  # else the next file that is opened takes its number
    if getattr(sys, _stream) is None:
        setattr(sys, _stream, Path(os.devnull).open("r+"))  # noqa: SIM115 - as long as the process
ENDLESS: Final = 100_000  # columns: what goes to a file or a program is not wrapped
# a path or a prompt with [brackets] or :colons: is shown as it is
_SHOWN: Final[dict[str, Any]] = {"highlight": False, "markup": False, "emoji": False}
console = Console(**_SHOWN, width=None if sys.stdout.isatty() else ENDLESS)  # what was asked
# how it goes: never mixed into --json
aside = Console(**_SHOWN, stderr=True, width=None if sys.stderr.isatty() else ENDLESS)
CONTROLS = {  # but tabs and line ends
    code: 0x2400 + code if code < 0x20 else 0xFFFD
    for code in (*range(0x20), *range(0x7F, 0xA0))
    if chr(code) not in "\t\n"
}
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Ref = Annotated[str, typer.Argument(metavar="NAME[:v|@alias]", autocompletion=completing.models)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=c", help="Override a recipe field (YAML value)."),
]


def show_error(message: str, kind: str, *, as_json: bool = False) -> None:
    """Say what went wrong: on stderr, or as the one JSON document of stdout, where that takes it."""
    if as_json:
        with suppress(OSError):
            show_json({"error": {"message": message, "type": kind}})
            return
    aside.print(f"error: {message}", style="red", soft_wrap=True)


def show_json(value: Any) -> None:
    """Print a value as JSON, for another program; times are ISO 8601 with their offset."""
    console.print_json(json.dumps(value, default=_plain), ensure_ascii=True)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def printable(text: str) -> str:
    """Return what a model wrote with signs for its control characters, so that no terminal obeys them."""
    return text.translate(CONTROLS)


def show_markdown(text: str) -> None:
    """Print a card: laid out on a terminal, as it was written in a pipe, which has no width to centre in."""
    if not sys.stdout.isatty():
        console.print(printable(text), soft_wrap=True)
        return
    from rich.markdown import Markdown

    console.print(Markdown(text))


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows as a table, or say that there are none; a cell that is no `Text` is shown as it is, without markup."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(_cell(cell)) for cell in row))
    console.print(Text(_cell(title) if table.row_count else f"{_cell(title)}: none", "italic"))
    if table.row_count:
        console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return utc(value)
    return "-" if value is None else printable(str(value))


def kind_of_file(path: Path, *kinds: str) -> str:
    """Return as what a file is to be written, by how its name ends: "png".

    Raises:
        typer.BadParameter: it ends as none of `kinds`, where there are some.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kinds and kind not in kinds:
        raise typer.BadParameter(f"--output {path}: this is written as .{', .'.join(kinds)}")
    return kind


def use_stack() -> None:
    """Give this process the addresses and tokens of the stack, before a tool that reads them is imported."""
    from infra.stack.stack import environment

    os.environ.update(environment())
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def ready() -> None:
    """Start whatever part of the local stack is not up, and say so; a running stack costs about a second."""
    from infra.stack.stack import up

    began = time.monotonic()
    started = up(lambda event: aside.print(f"  {event}", style="dim"))
    if started:
        aside.print(f"the local stack is up ({time.monotonic() - began:.0f} s)")
    use_stack()
    settings().state.mkdir(parents=True, exist_ok=True)


def tell_of_no_worker() -> None:
    """Say where a Prefect elsewhere has no worker of ours, which a promotion or a schedule counts on."""
    from infra.stack.workers import missing

    if line := missing():
        aside.print(line, style="yellow", soft_wrap=True)


@contextmanager
def training_progress() -> Iterator[None]:
    """Show every training of the block: one bar each on a terminal, a line every ten seconds elsewhere."""
    from flows import progress

    try:
        with _shown(progress):
            yield
    except KeyboardInterrupt:
        aside.print("finished steps are kept: the same command goes on from there")
        raise


@contextmanager
def _shown(progress: Any) -> Iterator[None]:
    if not aside.is_terminal:
        with progress.shown_by(_Lines().show):
            yield
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} samples/s"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=aside) as bars:
        tasks: dict[str, Any] = {}

        def show(name: str, now: "Progress") -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=now.steps, loss=0.0, speed=0.0)
            if now.note:
                aside.print(f"  {name}: {now.note}")
                bars.update(tasks[name], completed=now.step)
                return
            bars.update(tasks[name], completed=now.step, loss=now.loss, speed=now.samples_per_s)

        with progress.shown_by(show):
            yield


class _Lines:
    """Progress for logs: a line a training every ten seconds and at its end."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def show(self, name: str, now: "Progress") -> None:
        if now.note:  # it does not move, and this is why
            aside.print(f"  {name}: {now.note}", soft_wrap=True)
            return
        if time.monotonic() - self.last.get(name, 0) < 10 and now.step < now.steps:
            return
        self.last[name] = time.monotonic()
        aside.print(
            f"  {name}: step {now.step} of {now.steps}, loss {now.loss:.4f}, "
            f"{now.samples_per_s:.0f} samples/s, {now.seconds_left:.0f} s left",
            soft_wrap=True,
        )
