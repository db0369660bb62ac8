"""`jobs list|show|cancel|retry`: the verbs about work that outlives its request."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from flows.cli.terminal import AsJson, console, show_json, show_table

if TYPE_CHECKING:
    from infra.jobs.jobs import Jobs
    from infra.jobs.table import Job

jobs = typer.Typer(help="Clips and other long work: how far it is.", no_args_is_help=True)
TIMES: Final = ("deadline", "created", "started", "ended", "expires")
Id = Annotated[str, typer.Argument(help="One of `atelier jobs list`.")]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    jobs.command("list")(list_jobs)
    jobs.command("show")(show)
    jobs.command("cancel")(cancel)
    jobs.command("retry")(retry)
    app.add_typer(jobs, name="jobs")


def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first: their state, how far they are, what ended them."""
    with _opened() as table:
        page = table.page(limit=limit)
    if as_json:
        show_json([_document(job) for job in page.jobs])
        return
    columns = ("id", "owner", "pipeline", "state", "progress", "attempt", "created", "error")
    show_table("jobs", columns, [_row(job) for job in page.jobs])
    if page.has_more:
        console.print(f"the newest {limit}; more with --limit")


def show(id: Id, as_json: AsJson = False) -> None:
    """Show a job: what was asked for, its attempts by cause, its finished stages, its result."""
    with _opened() as table:
        job, stages = table.get(id), table.stages(id)
    document = _document(job)
    if as_json:
        sealed = {node: asdict(one) for node, one in stages.items()}
        show_json({**document, "stages": sealed})
        return
    causes = ", ".join(f"{count} x {cause}" for cause, count in job.causes.items())
    rows: list[tuple[str, Any]] = [
        *(("kind", job.kind), ("owner", job.owner), ("pipeline", job.pipeline)),
        *(("seed", job.seed), ("request", dict(job.request))),
        ("state", f"{job.state}{', to be cancelled' if job.cancel else ''}"),
        ("progress", f"{job.progress:.0f} %"),
        ("attempts", f"{job.attempt}{f' ({causes})' if causes else ''}"),
        *((name, document[name]) for name in ("created", "started", "ended")),
        *((f"stage {node}", f"{one.seconds:.3g} s, {one.uri}") for node, one in stages.items()),
    ]
    if job.error is not None:
        rows.append(("error", f"{job.error.code}: {job.error.message}"))
    if job.result is not None:
        rows.append(("result", f"{job.result.uri} ({job.result.bytes} bytes)"))
    show_table(id, ("", ""), rows)


def cancel(id: Id) -> None:
    """Cancel a job: one that waits at once, one under way at its next step."""
    with _opened() as table:
        job = table.cancel(id)
    if job.cancel:
        console.print(f"{id} ends at its next step; look at it with: atelier jobs show {id}")
    elif job.state == "cancelled":
        console.print(f"{id} is cancelled; atelier jobs retry {id} queues it again")
    else:
        raise ValueError(f"{id} is {job.state}: there is nothing to cancel")


def retry(id: Id) -> None:
    """Queue a job again that failed or was cancelled; its finished stages are not made again."""
    with _opened() as table:
        table.retry(id)
    console.print(f"{id} is queued; look at it with: atelier jobs show {id}")


@contextmanager
def _opened() -> "Iterator[Jobs]":
    """Yield the jobs of this installation."""
    from infra.jobs.jobs import Jobs
    from infra.settings import settings

    with Jobs(settings().database) as table:
        yield table


def _document(job: "Job") -> dict[str, Any]:
    """Return what a job says, its times as such."""
    times = {name: _when(getattr(job, name)) for name in TIMES}
    return {**asdict(job), **times}


def _row(job: "Job") -> tuple[object, ...]:
    error = job.error.code if job.error else ""
    state = f"{job.state}, to be cancelled" if job.cancel else job.state
    progress = f"{job.progress:.0f} %"
    owner, created = job.owner, _when(job.created)
    return (job.id, owner, job.pipeline, state, progress, str(job.attempt), created, error)


def _when(moment: float | None) -> datetime | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC)
