"""Another team's Serve application, deployed by a document of its own beside ours."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from infra.serving import ROUTE
from infra.settings import Settings
from infra.stack.spec import token_file
from tests.integration.serving_kit import PATIENCE_S

NAME = "neighbour"
CODE = """
import os
from ray import serve

@serve.deployment
class Hello:
    def __call__(self, request):
        return os.environ["GREETING"]

app = Hello.bind()
"""


@dataclass(frozen=True)
class Neighbour:
    """The application as its team deployed it."""

    settings: Settings
    config: dict[str, Any]

    def call(self, method: str, **options: Any) -> httpx.Response:
        page = f"http://127.0.0.1:{self.settings.dashboard_port}{ROUTE}"
        bearer = {"authorization": f"Bearer {token_file().read_text()}"}
        options |= {"headers": bearer, "timeout": 60, "trust_env": False}
        return httpx.request(method, page, **options).raise_for_status()

    def applications(self) -> dict[str, Any]:
        """What Serve runs, by name."""
        return dict(self.call("GET").json()["applications"])

    def pids(self) -> list[int]:
        """The processes of its replicas, once it runs."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := self.applications()[NAME])["status"] != "RUNNING":
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        return [one["pid"] for one in found["deployments"]["Hello"]["replicas"]]

    def leave(self) -> None:
        """Take it down, with all else that came by a document."""
        self.call("PUT", json={"applications": []})


def move_in(settings: Settings, folder: Path) -> Neighbour:
    """Begin to deploy it beside ours, as a team does that knows what a PUT replaces."""
    (folder / "neighbour_app.py").write_text(CODE)
    config = {
        "name": NAME,
        "route_prefix": "/neighbour",
        "import_path": "neighbour_app:app",
        "runtime_env": {"env_vars": {"PYTHONPATH": str(folder), "GREETING": "good morning"}},
        "deployments": [{"name": "Hello", "ray_actor_options": {"num_cpus": 0.0}}],
    }
    neighbour = Neighbour(settings, config)
    ours = [one["deployed_app_config"] for one in neighbour.applications().values()]
    neighbour.call("PUT", json={"applications": [*ours, config]})
    return neighbour
