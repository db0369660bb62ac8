"""`up`, `down`, `status`, `open`, `logs`, `doctor`, `deploy`, `keys`: the verbs about the installation."""

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.terminal import AsJson, console, ready, show_json, show_table, use_stack
from infra.settings import settings

keys = typer.Typer(help="API keys of the gateway.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (up, down, worker, status, logs, doctor, deploy, undeploy, prune):
        app.command()(verb)
    app.command("open")(open_page)
    keys.command("add")(add_key)
    keys.command("list")(list_keys)
    keys.command("revoke")(revoke_key)
    app.add_typer(keys, name="keys")


def up() -> None:
    """Start the local stack (Prefect, MLflow, Ray, a worker) and serve what the ledger names."""
    ready()
    from flows.promotion.reconcile import reconcile
    from flows.promotion.release import serve_wanted

    for line in reconcile():
        console.print(f"  {line}", style="dim")
    loaded = serve_wanted()
    console.print(
        f"serving at {settings().gateway_url}: {', '.join(loaded) or 'nothing promoted yet'}"
    )


def down() -> None:
    """Stop everything that `up` started; no process stays behind."""
    from infra.stack.stack import down as stop

    for line in stop():
        console.print(f"  {line}", style="dim")
    console.print("the local stack is down")
    if (ray := settings().ray_address) is not None:
        console.print(f"the gateway on {ray} goes on; `atelier undeploy` takes it down")


def worker() -> None:
    """Run the worker here, in the foreground: the service that a Prefect elsewhere needs once."""
    use_stack()
    from infra.stack.spec import StackError, parts

    prefect = next(part for part in parts() if part.name == "prefect")
    if prefect.external is None:
        raise StackError(
            "`atelier up` keeps the local stack's worker; PREFECT_API_URL names another Prefect"
        )
    if not prefect.probe():
        raise StackError(
            f"{prefect.address} does not answer: start it or change {prefect.external}"
        )
    from flows.scheduling.worker import main

    console.print(f"the worker of {prefect.address} runs here until it is ended")
    main()


def status(
    as_json: AsJson = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 where a part is not healthy.")
    ] = False,
) -> None:
    """Show each part of the stack: address, health, memory."""
    from infra.stack.stack import status as look

    parts = [dataclasses.asdict(part) for part in look()]
    if as_json:
        show_json(parts)
    elif parts:
        show_table("stack", list(parts[0]), [list(part.values()) for part in parts])
    if check and any(part["health"] != "healthy" for part in parts):
        raise typer.Exit(1)


def open_page(
    part: Annotated[str, typer.Argument(help="prefect, mlflow or ray")],
    show: Annotated[
        bool, typer.Option("--print", help="Print the link, which works once, for two minutes.")
    ] = False,
) -> None:
    """Open a part's page in the browser, signed in."""
    import webbrowser

    from infra.stack.spec import link, private_page

    address = link(part)
    # a browser's command line can be read by everybody on the machine, so it names a private file
    if not show and webbrowser.open(private_page(part, address).as_uri()):
        console.print(f"{part} is open in the browser")
    else:
        console.print(address, soft_wrap=True)


def logs(
    part: Annotated[str, typer.Argument(help="prefect, mlflow, ray, worker or keeper")],
    follow: Annotated[bool, typer.Option("-f", "--follow")] = False,
) -> None:
    """Print a part's log."""
    from infra.stack.stack import logs as read

    for line in read(part, follow=follow):
        console.print(line, end="", soft_wrap=True)


def doctor(as_json: AsJson = False) -> None:
    """Check the machine, the settings and every part; says what to do about what is wrong."""
    use_stack()
    from infra.stack.doctor import doctor as check

    checks = [dataclasses.asdict(one) for one in check()]
    if as_json:
        show_json(checks)
    elif checks:
        show_table("doctor", list(checks[0]), [list(one.values()) for one in checks])
    if any(one.get("verdict") == "fail" for one in checks):
        raise typer.Exit(1)


def deploy(
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write a cluster's files there, of settings and placement, and deploy nothing.",
        ),
    ] = None,
    image: Annotated[str, typer.Option(help="The image that they name.")] = "atelier:latest",
) -> None:
    """Make the gateway serve what the ledger names."""
    if write is not None:
        _write_files(write, image)
        return
    ready()
    from flows.deploy import deploy as deploy_flow

    loaded = deploy_flow()
    console.print(
        f"serving at {settings().gateway_url}: {', '.join(loaded) or 'nothing promoted yet'}"
    )


def _write_files(folder: Path, image: str) -> None:
    from infra.deploy import manifests

    texts = manifests.write(settings(), image)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    console.print(f"wrote {', '.join(str(folder / name) for name in texts)}")
    console.print(
        f"next: serve deploy {folder / manifests.SERVE}   (or: kubectl apply -f {folder / manifests.KUBERAY})"
    )


def undeploy() -> None:
    """Take the gateway down; what others run on the same Serve stays."""
    use_stack()
    from infra.serving import stop

    console.print("the gateway is down" if stop(settings()) else "no gateway was deployed")


def prune(
    really: Annotated[bool, typer.Option("--yes", help="Remove it; without, only tell.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove versions no ledger row names and their runs, old checkpoints, copies, and what DVC no longer needs."""
    ready()
    from flows.provenance.pruning import pieces, refuse_beside_trainings, sweep_data

    if really:
        refuse_beside_trainings()
    found = pieces()
    rows = [(piece.kind, piece.name, round(piece.megabytes, 1)) for piece in found]
    for piece in found if really else ():
        piece.remove()
    swept = sweep_data(really=really)
    columns = ("kind", "name", "megabytes")
    if as_json:
        listed = [dict(zip(columns, row, strict=True)) for row in rows]
        show_json({"removed": really, "pieces": listed, "dvc": swept})
        return
    show_table("removed" if really else "can go", columns, rows)
    total = sum(piece.megabytes for piece in found)
    console.print(f"{total:.0f} MB in {len(found)} pieces; DVC's cache: {swept}")
    if not really:
        console.print("nothing was removed; do it with: atelier prune --yes")


def add_key(label: str) -> None:
    """Make a key; it is shown once. From then on every request needs one."""
    from infra.keys import Keys

    with closing(Keys(settings().database)) as keys:
        console.print(keys.create(label))


def list_keys(as_json: AsJson = False) -> None:
    """List the keys' labels; the keys themselves are not kept."""
    from infra.keys import Keys

    with closing(Keys(settings().database)) as keys:
        found = [dataclasses.asdict(key) for key in keys.list()]
    if as_json:
        show_json(found)
    else:
        show_table("keys", list(found[0]) if found else [], [list(key.values()) for key in found])


def revoke_key(label: str) -> None:
    """Revoke a key by its label, at once."""
    from infra.keys import Keys

    with closing(Keys(settings().database)) as keys:
        keys.revoke(label)
    console.print(f"{label} is revoked")
