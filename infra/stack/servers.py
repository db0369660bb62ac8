"""The local servers' entry points, `python -m infra.stack.servers prefect|mlflow|ray|worker|keeper`: quick to start.

The tools' own commands start an interpreter more (MLflow) or listen where nobody asked (Ray Client). The garbage
collector rests during the imports: they make a million objects and no garbage.
"""

import argparse
import gc
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from infra.stack import probes
from infra.stack.guard import Guard

if TYPE_CHECKING:
    from starlette.types import ASGIApp

NICENESS: Final = 5
STEADY_S: Final = 60.0
LONGEST_PAUSE_S: Final = 30.0
WATCH_S: Final = 0.5
LONGEST_WATCH_S: Final = 8.0  # it must beat meanwhile


def prefect(port: int, secret: Path) -> None:
    """Run Prefect's API, UI and services on loopback; its own settings come from `PREFECT_*`.

    The guard asks for the credential, not Prefect (`PREFECT_SERVER_API_AUTH_STRING`): that would leave its pages and
    its API's description open, and its new UI would ask people for it.
    """
    from prefect.server.api.server import create_app

    _serve(create_app(final=True), "prefect", port, secret)


def mlflow(port: int, folder: Path, secret: Path) -> None:
    """Run MLflow's tracking server and registry on loopback: SQLite and artifacts below `folder`.

    Clients write artifacts to the folder themselves; nothing large passes through the server.
    """
    database = f"sqlite:///{folder / 'mlflow.db'}"
    artifacts = folder / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    from mlflow.server import constants

    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: database,
        constants.REGISTRY_STORE_URI_ENV_VAR: database,
        constants.ARTIFACT_ROOT_ENV_VAR: artifacts.as_uri(),
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port},localhost:{port}",
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port},http://localhost:{port}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(database, database, artifacts.as_uri())
    _serve(app, "mlflow", port, secret)


def ray(port: int, dashboard_port: int, folder: Path) -> None:
    """Run a Ray head on loopback until it is told to end; its token comes from `RAY_AUTH_TOKEN_PATH`.

    Raises:
        SystemExit: no token would be asked for.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token":
        sys.exit("Ray must not run without a token: whoever reaches its port may run code as you")
    from ray.scripts import scripts

    # `ray start` has no switch for the Ray Client server; it leaves it out where grpc is missing.
    missing = ImportError("Ray Client is not served")
    vars(scripts)["get_ray_client_dependency_error"] = lambda: missing
    _imported()
    options = {
        "port": port,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard_port,
        "dashboard-agent-listen-port": 0,
        "min-worker-port": 0,  # 0 and 0: any free port, so that two stacks do not meet
        "max-worker-port": 0,
        "temp-dir": folder,
        "num-cpus": os.cpu_count() or 1,
        "include-log-monitor": "false",
    }
    flags = ["--head", "--block", "--disable-usage-stats", "--no-monitor"]
    scripts.start.main(
        [*flags, *(f"--{name}={value}" for name, value in options.items())], prog_name="ray start"
    )


def worker(module: str, after: str) -> None:
    """Keep `python -m module` running, once `after` answers: whenever it ends, however, it is started again.

    What it runs yields the processor to what a person waits for. This process imports next to nothing; its end
    by SIGTERM leaves the rest to the stack, which ends all of its session.
    """
    os.nice(NICENESS)
    pause = 1.0
    while True:
        while probes.get(after) is None:  # any answer: the credential is for who asks for more
            time.sleep(0.5)
        began = time.monotonic()
        code = subprocess.call([sys.executable, "-m", module])
        lived = time.monotonic() - began
        pause = 1.0 if lived > STEADY_S else min(LONGEST_PAUSE_S, 2 * pause)
        print(f"{module} ended with {code} after {lived:.0f} s; again in {pause:.0f} s", flush=True)  # noqa: T201
        time.sleep(pause)


def keeper(beat: Path) -> None:
    """Start again what died of the stack, within a second; a part that keeps dying waits longer and longer."""
    from infra.stack.stack import revive

    pause, calm = WATCH_S, time.monotonic()
    while True:
        beat.parent.mkdir(parents=True, exist_ok=True)
        beat.touch()
        if names := revive():
            pause = (
                WATCH_S if time.monotonic() - calm > STEADY_S else min(LONGEST_WATCH_S, 2 * pause)
            )
            calm = time.monotonic()
            print(f"{', '.join(names)} died and was started again", flush=True)  # noqa: T201
        time.sleep(pause)


def _serve(app: "ASGIApp", part: str, port: int, secret: Path) -> None:
    """Serve `app` on loopback behind a guard, whose links open its own page and Ray's."""
    import uvicorn

    pages = {part: (f"http://127.0.0.1:{port}/", "", "")}
    if token := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        # Ray's own page keeps its token in this cookie; a browser sends it to every port of the host
        dashboard = f"{os.environ['RAY_DASHBOARD_ADDRESS']}/"
        pages["ray"] = (dashboard, "ray-authentication-token", Path(token).read_text().strip())
    guarded = Guard(app, port, secret.read_text().strip(), pages)
    _imported()
    uvicorn.run(
        guarded, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=3
    )


def _imported() -> None:
    gc.freeze()
    gc.enable()


def main() -> None:
    """Run the server that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m infra.stack.servers")
    parser.add_argument("part", choices=["prefect", "mlflow", "ray", "worker", "keeper"])
    parser.add_argument("--port", type=int)
    parser.add_argument("--dashboard-port", type=int, default=8265)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--secret", type=Path)
    parser.add_argument("--beat", type=Path)
    parser.add_argument("--module")
    parser.add_argument("--after")
    wanted = parser.parse_args()
    if wanted.part == "worker":
        worker(wanted.module, wanted.after)
    if wanted.part == "keeper":
        keeper(wanted.beat)
    gc.disable()
    if wanted.part == "prefect":
        prefect(wanted.port, wanted.secret)
    elif wanted.part == "mlflow":
        mlflow(wanted.port, wanted.folder, wanted.secret)
    else:
        ray(wanted.port, wanted.dashboard_port, wanted.folder)


if __name__ == "__main__":
    main()
