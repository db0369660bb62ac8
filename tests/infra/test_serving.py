import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import serving
from infra.deploy import manifests
from infra.settings import Settings
from services.settings import Arguments

FOLDER = Path(__file__).parents[2] / "infra/deploy/serve"
PIN: dict[str, Any] = {"name": "shapes.base", "number": 1, "digest": "a" * 64, "family": "ddpm"}


def settings(folder: Path, **changes: Any) -> Settings:
    return Settings(project=folder, home=folder, **changes)


@pytest.fixture(scope="module")
def operator() -> dict[str, Any]:
    """The application as an operator deployed it."""
    [found] = yaml.safe_load((FOLDER / manifests.SERVE).read_text())["applications"]
    return dict(found)


def test_a_deploy_keeps_what_an_operator_sized_and_tells_each_pool_its_own_versions(
    tmp_path: Path, operator: dict[str, Any]
) -> None:
    mine = settings(tmp_path, ray_address="head:6379")
    tuned = {**operator, "deployments": [{"name": "stages", "max_replicas_per_node": 1}]}
    upscaler, voice = {**PIN, "name": "shapes.up1"}, {**PIN, "family": "wavenet"}
    pins = [PIN, upscaler, voice]
    application = serving.application(mine, pins, {"deployed_app_config": tuned})
    assert application["args"]["placement"] == operator["args"]["placement"]
    told = {one["name"]: one["user_config"]["versions"] for one in application["deployments"]}
    assert told == {"Gateway": pins, "upscalers": [upscaler], "voices": [voice], "stages": [PIN]}
    [stages] = [one for one in application["deployments"] if one["name"] == "stages"]
    assert stages["max_replicas_per_node"] == 1
    assert application["args"]["database"] == mine.database
    again = serving.application(mine, pins, {"deployed_app_config": application})
    assert again == application


def test_a_laptop_has_one_deployment_whatever_was_deployed_before(
    tmp_path: Path, operator: dict[str, Any]
) -> None:
    for before in (None, {"deployed_app_config": operator}):
        [gateway] = serving.application(settings(tmp_path), [PIN], before)["deployments"]
        assert gateway == {"name": "Gateway", "user_config": {"versions": [PIN]}}
        staged = serving.application(settings(tmp_path, layout="staged"), [PIN], before)
        assert [one["name"] for one in staged["deployments"]] == ["Gateway", "stages"]


def test_a_cluster_of_before_there_were_placements_is_told_to_write_its_files_anew(
    tmp_path: Path,
) -> None:
    before = {"deployed_app_config": {"args": {}, "deployments": [{"name": "Upscale"}]}}
    with pytest.raises(serving.ServingError, match=r"with Upscale, .*atelier deploy --write"):
        serving.application(settings(tmp_path, ray_address="head:6379"), [PIN], before)


def test_a_placement_that_cannot_be_is_refused_before_anything_is_deployed(tmp_path: Path) -> None:
    mine = settings(tmp_path, placement="lost.yaml")
    with pytest.raises(serving.ServingError, match=r"lost\.yaml cannot be read"):
        serving.application(mine, [PIN])


def test_a_deploy_to_a_cluster_keeps_the_folders_that_its_nodes_mount(
    tmp_path: Path, operator: dict[str, Any]
) -> None:
    mine = settings(
        tmp_path, ray_address="ray://head:10001", database_url="postgresql://db/atelier"
    )
    args = serving.application(mine, [PIN], {"deployed_app_config": operator})["args"]
    for name in ("host", "cache", "files"):
        assert args[name] == operator["args"][name]
    assert args["database"] == "postgresql://db/atelier"
    assert args["samples"] == operator["args"]["samples"]


def test_kept_answers_lie_where_drift_reads_them(tmp_path: Path, operator: dict[str, Any]) -> None:
    mine = settings(tmp_path, ray_address="head:6379", storage_uri=str(tmp_path / "mount"))
    args = serving.application(mine, [PIN], {"deployed_app_config": operator})["args"]
    assert args["samples"] == str(mine.samples) == str(tmp_path / "mount" / "samples")
    assert settings(tmp_path).samples == settings(tmp_path).state / "samples"


def test_links_lead_to_the_public_address_and_a_cluster_is_asked_there(tmp_path: Path) -> None:
    public = "https://models.example.org"
    here = settings(tmp_path, host="0.0.0.0", gateway_port=9, public_url=f"{public}/v1/")
    assert here.gateway_url == f"{public}/v1"
    assert serving.address(here) == "http://127.0.0.1:9"
    assert settings(tmp_path, host="0.0.0.0", gateway_port=9).gateway_url == "http://127.0.0.1:9/v1"
    there = settings(tmp_path, ray_address="head:6379", public_url=public)
    assert serving.address(there) == public
    assert serving.application(there, [PIN], None)["args"]["public_url"] == public
    operator = {"deployed_app_config": {"args": {"public_url": "http://operator"}}}
    kept = serving.application(settings(tmp_path, ray_address="head:6379"), [PIN], operator)
    assert kept["args"]["public_url"] == "http://operator"
    with pytest.raises(ValueError, match="give the gateway's address"):
        settings(tmp_path, public_url="models:8000")


def test_a_gateway_on_ipv6_loopback_is_asked_by_a_valid_address(tmp_path: Path) -> None:
    mine = settings(tmp_path, host="::1", gateway_port=9)
    assert mine.gateway_url == "http://[::1]:9/v1"
    assert not serving.loaded(mine, [])  # nobody answers, and nothing is raised


@contextmanager
def starting(
    status: str, missing: Callable[[int], dict[str, str]], serve: int | None = 0
) -> Iterator[tuple[int, list[str]]]:
    """Be Ray's dashboard and the gateway of an application that starts; yield the port, and what was asked.

    `missing` tells what is not loaded at each question of how far the gateway is, from 1; `serve` is
    the port where Serve says that it listens, 0: the gateway's here, None: it does not run.
    """
    asked: list[str] = []
    found: dict[str, Any] = {"status": status, "message": "no room", "deployments": {}}

    class Stand(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_PUT(self) -> None:
            told = json.loads(self.rfile.read(int(self.headers["content-length"])))
            [found["deployed_app_config"]] = told["applications"]
            self.answer("PUT", 200, {})

        def do_GET(self) -> None:
            if not self.path.startswith("/readyz"):
                state: dict[str, Any] = {"applications": {serving.APPLICATION: found}}
                if serve is not None:
                    at = serve or server.server_port
                    state["http_options"] = {"host": "127.0.0.1", "port": at}
                self.answer("state", 200, state)
                return
            lacks = missing(1 + asked.count("ready"))
            self.answer("ready", 503 if lacks else 200, {"missing": lacks})

        def answer(self, what: str, code: int, document: Any) -> None:
            asked.append(what)
            content = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Stand) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_DASHBOARD_ADDRESS", f"http://127.0.0.1:{server.server_port}")
            yield server.server_port, asked
        server.shutdown()
        thread.join()


def test_the_gateway_is_asked_how_far_it_is_and_serve_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "STATE_S", 1e6)
    digest = PIN["digest"]
    with starting("DEPLOYING", lambda n: {digest: "not loaded"} if n < 4 else {}) as (port, asked):
        serving.deploy(settings(tmp_path, gateway_port=port), [PIN])
    assert asked == ["state", "PUT", "ready", "state", "ready", "ready", "ready"]


def test_what_an_endpoint_holds_that_nobody_can_look_up_now_stays_held(tmp_path: Path) -> None:
    lost = {**PIN, "name": "lost.base", "digest": "b" * 64}
    other = {**PIN, "number": 2, "digest": "c" * 64}
    with starting("RUNNING", lambda _: {}) as (port, _):
        mine = settings(tmp_path, gateway_port=port)
        serving.deploy(mine, [PIN, lost])
        serving.deploy(mine, [other], left_alone={"lost"})
        found = serving.status(mine)
        assert found is not None
        assert found["versions"] == {"Gateway": [other, lost]}
        serving.deploy(mine, [other])
        found = serving.status(mine)
    assert found is not None
    assert found["versions"] == {"Gateway": [other]}


@pytest.mark.parametrize(
    ("status", "why", "error", "says"),
    [
        ("RUNNING", "no such family", serving.VersionRefused, "refuses a version: no such family"),
        ("DEPLOY_FAILED", "not loaded", serving.ServingError, "could not start .*: no room"),
    ],
)
def test_what_will_never_be_ready_is_not_waited_for(
    status: str, why: str, error: type[Exception], says: str, tmp_path: Path
) -> None:
    with starting(status, lambda _: {PIN["digest"]: why}) as (port, _):
        mine = settings(tmp_path, gateway_port=port)
        with pytest.raises(error, match=says):
            serving.deploy(mine, [PIN])


def test_a_gateway_whose_port_somebody_has_is_refused_by_name_before_serve_is_asked(
    tmp_path: Path,
) -> None:
    with (
        starting("DEPLOYING", lambda _: {}, serve=None) as (port, asked),
        pytest.raises(serving.ServingError) as refused,
    ):
        serving.deploy(settings(tmp_path, gateway_port=port), [PIN])
    assert re.fullmatch(
        rf"the gateway cannot start: port {port} on 127\.0\.0\.1 is taken by \S+ \(pid {os.getpid()}\);"
        " end it, or choose another with ATELIER_GATEWAY_PORT",
        str(refused.value),
    )
    assert asked == ["state"]


def test_a_gateway_that_runs_and_does_not_answer_is_told_with_who_has_its_port_or_the_way_out(
    tmp_path: Path,
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.01,))
        thread.start()
        mine = settings(tmp_path, gateway_port=other.server_port)
        with (
            starting("RUNNING", lambda _: {}, serve=other.server_port),
            pytest.raises(
                serving.ServingError, match=rf"nobody answers .* \(pid {os.getpid()}\); end it"
            ),
        ):
            serving.deploy(mine, [PIN], timeout_s=1)
        other.shutdown()
        thread.join()
    with (
        starting("RUNNING", lambda _: {}, serve=mine.gateway_port),
        pytest.raises(serving.ServingError, match=r"nobody answers .* start Serve anew"),
    ):
        serving.deploy(mine, [PIN], timeout_s=1)


def test_the_example_files_are_what_is_written_of_the_example_placement() -> None:
    example = Settings(
        project=FOLDER,
        home=Path("/mnt/atelier"),
        host="0.0.0.0",
        gateway_port=8000,
        placement=Path("placement.yaml"),
        database_url="postgresql+psycopg://atelier@postgres/atelier",
        tracking_uri="http://mlflow:5000",
        public_url="http://models.example.org",
    )
    written = manifests.write(example, "atelier:latest")
    here = {name: (FOLDER / name).read_text() for name in written}
    assert here == written, "write them again: infra/README, On a cluster"


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated")
def test_kubernetes_is_given_the_same_config_and_nodes_for_every_replica() -> None:
    from ray.serve.schema import ServeDeploySchema  # warns at its import

    serve = yaml.safe_load((FOLDER / manifests.SERVE).read_text())
    service = yaml.safe_load((FOLDER / manifests.KUBERAY).read_text())["spec"]
    assert yaml.safe_load(service["serveConfigV2"]) == serve
    ServeDeploySchema.model_validate(serve)
    nodes = {one["groupName"]: one for one in service["rayClusterConfig"]["workerGroupSpecs"]}
    # halves of GPUs: 2 to 8 twice, and whole ones: 0 to 2
    assert [nodes["gpu"][name] for name in ("minReplicas", "maxReplicas")] == [2, 10]
    assert [nodes["cpu"][name] for name in ("minReplicas", "maxReplicas")] == [1, 1]


@pytest.mark.parametrize(
    ("gateway", "pools", "nodes"),
    [
        # a replica is on one node: three of .6 GPUs share none
        ({"cpus": 1}, [{"gpus": 0.6, "cpus": 1, "replicas": {"min": 3, "max": 4}}], [(1, 1, 4), (3, 4, 2)]),
        # four that share a GPU have their CPUs there, beside pools with one a GPU
        (
            {"cpus": 1},
            [
                {"gpus": 0.25, "cpus": 1, "replicas": {"min": 4, "max": 4}},
                {"gpus": 1, "cpus": 1, "replicas": {"min": 4, "max": 4}, "families": ["gpt"]},
            ],
            [(1, 1, 4), (5, 5, 4)],
        ),
        # no more than one of three CPUs is on a node with four, and one of six needs a larger node
        ({"cpus": 3, "replicas": {"min": 4, "max": 4}}, [{}], [(4, 4, 4)]),
        ({"cpus": 6, "replicas": {"min": 2, "max": 2}}, [{}], [(2, 2, 6)]),
        ({"cpus": 1}, [{"gpus": 0.05, "cpus": 1, "replicas": {"min": 0, "max": 2}}], [(1, 1, 4), (0, 1, 2)]),
    ],
)  # fmt: skip
def test_every_replica_has_room_on_a_node(
    tmp_path: Path, gateway: Any, pools: Any, nodes: list[tuple[int, int, int]]
) -> None:
    named = [{"name": f"pool-{number}", **pool} for number, pool in enumerate(pools)]
    placement = {"layout": "staged", "gateway": gateway, "pools": named}
    (tmp_path / "placement.yaml").write_text(yaml.safe_dump(placement))
    asked = settings(
        tmp_path,
        placement="placement.yaml",
        ray_address="head:6379",
        host="0.0.0.0",
        database_url="postgresql://atelier@postgres/atelier",
        tracking_uri="http://mlflow:5000",
    )
    service = yaml.safe_load(manifests.write(asked, "atelier:latest")[manifests.KUBERAY])
    found = []
    for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        [container] = group["template"]["spec"]["containers"]
        cpus = int(container["resources"]["limits"]["cpu"])
        found.append((group["minReplicas"], group["maxReplicas"], cpus))
    assert found == nodes


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated")
def test_the_cluster_config_builds_a_deployment_a_pool(operator: dict[str, Any]) -> None:
    assert operator["import_path"] == serving.IMPORT_PATH
    given = Arguments.model_validate(operator["args"])
    upscalers, *_ = given.placement.pools
    told = given.for_pool(upscalers)
    assert (told["device"], told["gpu_share"], told["buckets"]) == ("cuda", 0.5, [16])


def test_a_cluster_is_not_given_addresses_of_this_machine_alone(tmp_path: Path) -> None:
    missing = "ATELIER_DATABASE_URL, ATELIER_TRACKING_URI, ATELIER_HOST"
    with pytest.raises(serving.ServingError, match=f"set {missing}"):
        manifests.write(settings(tmp_path), "atelier:latest")
    for database in ("sqlite:////tmp/x.db", "postgresql:///atelier", "postgresql://a@localhost/a"):
        own = {"host": "0.0.0.0", "database_url": database, "tracking_uri": "http://127.0.0.1:5000"}
        with pytest.raises(
            serving.ServingError, match=r"set ATELIER_DATABASE_URL, ATELIER_TRACKING_URI$"
        ):
            manifests.write(settings(tmp_path, **own), "atelier:latest")


@pytest.mark.parametrize("name", ["database_url", "tracking_uri"])
def test_a_password_is_written_into_no_file(tmp_path: Path, name: str) -> None:
    servers = {"database_url": "postgresql://a@pg/a", "tracking_uri": "http://mlflow:5000"}
    servers[name] = servers[name].replace("://", "://anna:sesame@").replace("@a@", "@")
    with pytest.raises(
        serving.ServingError, match=f"ATELIER_{name.upper()} has a password, .* nodes have it"
    ) as refused:
        manifests.write(settings(tmp_path, host="0.0.0.0", **servers), "atelier:latest")
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize(("path", "told"), [("", None), (".", "Is a directory")])
def test_a_token_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, told: str | None
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", path)  # an empty variable is none
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:9")
    told = f"with Ray's token cannot be read: {told}" if told else "no Ray dashboard answers"
    assert told in (serving.refused(settings(tmp_path)) or "")
    with pytest.raises(serving.ServingError, match=told):
        serving.check(settings(tmp_path))
    assert serving.nodes(settings(tmp_path)) == set()


def test_an_open_host_without_a_key_is_not_deployed(tmp_path: Path) -> None:
    with pytest.raises(serving.ServingError, match="atelier keys add"):
        serving.deploy(settings(tmp_path, host="0.0.0.0"), [PIN])


def test_without_a_dashboard_one_line_says_how_to_start_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(serving.ServingError, match="atelier up"):
        serving.deploy(settings(tmp_path), [PIN])
    assert serving.status(settings(tmp_path)) is None
