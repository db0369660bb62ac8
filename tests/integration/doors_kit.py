"""Knocking at the running stack as a stranger: every socket, every route of every server."""

import itertools
import re
from collections.abc import Iterator, Mapping

import httpx
import psutil

from infra.settings import settings
from infra.stack import guard
from infra.stack.spec import parts, ray_folder, secret, token_file

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
REFUSED = {401, 403, 421}
CLOSED = {*REFUSED, None}
SIGN_IN_OF_RAY = {
    *("/", "/favicon.ico", "/static/{path}"),
    *("/api/authentication_mode", "/api/healthz", "/api/gcs_healthz", "/api/local_raylet_healthz"),
}
"""What Ray's dashboard shows to everybody (2.60, http_server_head.py): the page that asks for the token, and health."""
FOREIGN = ({"Host": "evil.com"}, {"Origin": "http://evil.com"}, {"Origin": "http://127.0.0.1:9"})


def listeners() -> dict[int, str]:
    """Return the address of every port on which a process of the stack listens."""
    ours = {process.pid for part in parts() if part.daemon for process in part.daemon.offspring()}
    return {
        connection.laddr[1]: connection.laddr[0]
        for connection in psutil.net_connections("tcp")
        if connection.pid in ours and connection.status == psutil.CONN_LISTEN
    }


def knock(
    client: httpx.Client, method: str, url: str, headers: Mapping[str, str] | None = None
) -> int | None:
    """Return the status of an answer; None where the connection was closed without one, or nobody listens any more."""
    try:
        return client.request(method, url, headers=dict(headers or {})).status_code
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.ConnectError):
        return None


CALLS = (
    "/ray.serve.ASGIService/HandleRequest",
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/PushTask",
)
"""One of each service that Ray serves over gRPC: a replica, the head, a node, a worker."""
NOT_CALLED = {"UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE"}
"""The last two: another service's port, and one that speaks no gRPC."""


def called(port: int) -> dict[str, str]:
    """Return the status of each call without a token."""
    import grpc

    found = {}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for call in CALLS:
            try:
                channel.unary_unary(call)(b"", timeout=10)
                found[call] = "OK"
            except grpc.RpcError as error:
                found[call] = error.code().name
    return found


def open_doors(client: httpx.Client, routes: Mapping[str, set[str]]) -> list[str]:
    """Return what answers a stranger: without a credential, or with one but by another name or from another page."""
    credential = guard.basic(guard.USER, secret())
    return [
        f"{method} {server}{path} {sorted(headers)}: {status}"
        for server, paths in routes.items()
        for route, foreign in zip(sorted(paths), itertools.cycle(FOREIGN), strict=False)
        for method, path in (route.split(" ", 1),)
        for headers in ({}, {**credential, **foreign})
        if (status := knock(client, method, f"{server}{path}", headers)) not in REFUSED
    ]


def prefect_routes(client: httpx.Client) -> set[str]:
    """Return Prefect's routes from its own description, and what that leaves out."""
    page = settings().prefect_url.removesuffix("/api")
    found = _described(
        client, f"{page}/api/openapi.json", guard.basic(guard.USER, secret()), "/api"
    )
    pages = ("/", "/v2/", "/ui-settings", "/docs", "/redoc", "/openapi.json", "/api/docs")
    return found | {f"GET {path}" for path in (*pages, "/api/openapi.json", "/api/health")}


def mlflow_routes() -> set[str]:
    """Return MLflow's routes from the tables of its package, and its pages."""
    from mlflow.protos import model_registry_pb2, service_pb2

    found = {"GET /", "GET /health", "GET /version", "GET /static-files/x", "POST /graphql"}
    for service in (service_pb2.MlflowService, model_registry_pb2.ModelRegistryService):
        for method in service.DESCRIPTOR.methods:
            for endpoint in method.GetOptions().Extensions[_rpc()].endpoints:
                for root in ("/api", "/ajax-api"):
                    found.add(f"{endpoint.method} {root}/2.0{endpoint.path}")
    return found


def _rpc() -> object:
    from mlflow.protos import databricks_pb2

    return databricks_pb2.rpc


def gateway_routes(client: httpx.Client, key: str) -> set[str]:
    """Return the gateway's routes but the two that answer everybody, and Serve's own."""
    page = settings().gateway_url.removesuffix("/v1")
    bearer = {"Authorization": f"Bearer {key}"}
    found = _described(client, f"{page}/v1/openapi.json", bearer)
    found -= {"GET /healthz", "GET /readyz"}
    return found | {"GET /-/routes", "GET /-/healthz", "GET /v1/openapi.json", "GET /"}


def ray_routes() -> set[str]:
    """Return the dashboard's routes as its log lists them."""
    log = ray_folder() / "session_latest" / "logs" / "dashboard.log"
    found = re.findall(r"Route \[(\w+)\] <\w+ +(\S+?)>? ->", log.read_text())
    return {f"{method} {path}" for method, path in found if method != "*"}


def open_routes_of_ray(client: httpx.Client) -> Iterator[str]:
    """Yield the dashboard's paths that answer without its token, or with a wrong one."""
    page = f"http://127.0.0.1:{settings().dashboard_port}"
    wrong = {"Authorization": f"Bearer {token_file().read_text()[::-1]}"}
    for method, path in (route.split(" ", 1) for route in sorted(ray_routes())):
        for headers in ({}, wrong):
            if knock(client, method, page + path, headers) not in REFUSED:
                yield path


def _described(
    client: httpx.Client, url: str, headers: Mapping[str, str], root: str = ""
) -> set[str]:
    answer = client.get(url, headers=dict(headers))
    assert answer.status_code == 200, answer.text
    return {
        f"{method.upper()} {root if not path.startswith(root) else ''}{re.sub('[{].*?[}]', 'x', path)}"
        for path, methods in answer.json()["paths"].items()
        for method in methods
        if method in {"get", "post", "put", "patch", "delete"}
    }
