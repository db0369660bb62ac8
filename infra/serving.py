"""Ray Serve from outside: put the application "atelier" with the versions to hold loaded, and say how it is.

Everything goes over the dashboard's REST API, so that a flow needs no Ray client. Sizes, replicas and GPUs that an
operator deployed (infra/deploy/serve) stay; only what is held loaded and the addresses are ours. A PUT there replaces
every application that came by a PUT, so other teams' go back in as they were read, a moment before.
"""

import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from infra.placement import GATEWAY, Placement, PlacementError, placement_of
from infra.settings import Settings

if TYPE_CHECKING:
    import httpx

APPLICATION: Final = "atelier"
IMPORT_PATH: Final = "services.application:build"
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
ROUTE: Final = "/api/serve/applications/"
DEPLOY_S: Final = 180.0
STREAM_S: Final = 86_400
"""The most that an answer takes: a job is watched, or a large file fetched. Requests have the gateway's own time."""
CALL_S: Final = 60.0  # the first call starts Serve
POLL_S: Final = 0.15
STATE_S: Final = 1.0
"""How often Serve is asked how an application starts: it gathers all that it knows, beside what starts."""
LOGGING: Final = {"enable_access_log": False}
"""No line a request in the logs of proxy, gateway and stage: what goes wrong is said by them anyway, with its id."""


class ServingError(RuntimeError):
    """Serve cannot be reached or did not come up; one line, with the replica's own message where there is one."""


class VersionRefused(ServingError):
    """A replica cannot load a version; what it serves goes on."""


def deploy(
    settings: Settings,
    versions: Sequence[Mapping[str, Any]],
    timeout_s: float = DEPLOY_S,
    *,
    needed: Collection[str] | None = None,
    left_alone: Collection[str] = (),
) -> None:
    """Make every replica hold these stage versions beside what it serves, and wait until each does.

    The first call starts Serve and the application; later ones change only the replicas' `user_config`, which they
    take over while they serve. Calling it again with the same versions changes nothing.

    Args:
        settings: Where Ray's dashboard, the ledger and MLflow are, and where the gateway listens.
        versions: {"name", "number", "digest", "family"} of each stage version.
        timeout_s: When to give up.
        needed: The digests to wait for; None: of all `versions`. Another version's damage stops nobody else.
        left_alone: Endpoints whose stages are held as before: nobody can tell which they are now.

    Raises:
        VersionRefused: a replica cannot load one that is waited for.
        ServingError: no dashboard, no key on an open host, a placement that cannot be, or the time is up.
    """
    _check_host(settings, settings.host)
    deadline = time.monotonic() + timeout_s
    with _dashboard(settings) as client:
        before = _serve(client)
        kept = _told_before(before, left_alone, {str(version["digest"]) for version in versions})
        _put(client, settings, [*versions, *kept], before)
        digests = [str(version["digest"]) for version in versions] if needed is None else needed
        _wait(client, settings, list(digests), deadline)


def loaded(settings: Settings, digests: Collection[str]) -> bool:
    """Return whether the gateway answers and every replica holds these stage versions."""
    with _gateway() as gateway:
        return _missing(gateway, settings, list(digests)) == {}


def address(settings: Settings) -> str:
    """Return where the gateway is reached from this machine, without /v1; on a cluster that is where clients do."""
    elsewhere = settings.public_url if settings.ray_address is not None else None
    return elsewhere or settings.gateway_here


def check(settings: Settings) -> None:
    """Refuse what would keep the gateway from starting, before time is spent on what it shall serve.

    Raises:
        ServingError: no dashboard answers, no key on an open host, or somebody has the gateway's port.
    """
    _check_host(settings, settings.host)
    with _dashboard(settings) as client:
        _listening(settings, _serve(client).get("http_options"))


def status(settings: Settings) -> dict[str, Any] | None:
    """Return how the application is, or None where no dashboard or no Serve answers.

    The document: `status` (RUNNING, DEPLOYING, ...), `message`, `url`, `deployments` (each with status, message and
    the process ids of its running replicas), `versions` (what the gateway and each pool are asked to hold).
    """
    try:
        with _dashboard(settings) as client:
            found = _deployed(client)
    except ServingError:
        return None
    if found is None:
        return None
    deployments = {
        name: {
            "status": one["status"],
            "message": one["message"],
            "pids": [
                replica["pid"] for replica in one["replicas"] if replica["state"] == "RUNNING"
            ],
        }
        for name, one in found["deployments"].items()
    }
    config = found.get("deployed_app_config") or {}
    held = {
        one["name"]: one["user_config"]["versions"]
        for one in config.get("deployments", [])
        if one.get("user_config")
    }
    return {
        "status": found["status"],
        "message": found["message"],
        "url": settings.gateway_url,
        "deployments": deployments,
        "versions": held,
    }


def stop(settings: Settings, timeout_s: float = DEPLOY_S) -> bool:
    """Take the application down and wait until it is gone; Serve and what others run there stay.

    Returns:
        Whether there was one.

    Raises:
        ServingError: no dashboard answers, or the time is up.
    """
    deadline = time.monotonic() + timeout_s
    with _dashboard(settings) as client:
        found = _serve(client)
        if APPLICATION not in found["applications"]:
            return False
        _apply(client, {**_kept(found), "applications": _others(found)})
        while APPLICATION in _serve(client)["applications"]:
            if time.monotonic() > deadline:
                raise ServingError("the application is not gone in time; look at the page of Ray")
            time.sleep(POLL_S)
    return True


def _put(
    client: "httpx.Client",
    settings: Settings,
    versions: Sequence[Mapping[str, Any]],
    before: Mapping[str, Any],
) -> None:
    mine = application(settings, versions, before["applications"].get(APPLICATION))
    if host := _listening(settings, before.get("http_options")):
        mine["args"]["host"] = host
    others = _others(before)
    whole = {**front(settings), **_kept(before), "applications": [*others, mine]}
    if others:  # Serve would write our way of logging into their applications
        whole.pop("logging_config", None)
    _apply(client, whole)


def _told_before(
    found: Mapping[str, Any], endpoints: Collection[str], anew: Collection[str]
) -> list[dict[str, Any]]:
    """Return the stage versions of these endpoints that the gateway was told of, but for those told `anew`."""
    config = found["applications"].get(APPLICATION, {}).get("deployed_app_config") or {}
    gateway: Mapping[str, Any] = next(
        (one for one in config.get("deployments", []) if one["name"] == GATEWAY), {}
    )
    return [
        one
        for one in (gateway.get("user_config") or {}).get("versions", [])
        if one["name"].split(".")[0] in endpoints and one["digest"] not in anew
    ]


def front(settings: Settings) -> dict[str, Any]:
    """Return where Serve listens and what it logs, as its config has it."""
    found: dict[str, Any] = {
        "proxy_location": "HeadOnly" if settings.ray_address is None else "EveryNode",
        "http_options": {
            "host": settings.host,
            "port": settings.gateway_port,
            "request_timeout_s": STREAM_S,
            "keep_alive_timeout_s": 75,
        },
    }
    if settings.ray_address is None:  # Serve's own logs; on a cluster they are everybody's
        found["logging_config"] = LOGGING
    return found


def _kept(before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what holds for all of a Serve that runs, as it is: it cannot be changed, or is not ours to change."""
    names = ("proxy_location", "http_options", "target_capacity")
    return {name: before[name] for name in names if before.get(name) is not None}


def _others(before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return other teams' applications as they deployed them; what came by `serve.run` no PUT touches."""
    return [
        one["deployed_app_config"]
        for name, one in before["applications"].items()
        if name != APPLICATION and one.get("deployed_app_config") and one["status"] != "DELETING"
    ]


def _listening(settings: Settings, options: Mapping[str, Any] | None) -> str | None:
    """Return the host of a Serve that runs already, which may be another team's and moves for nobody.

    Raises:
        ServingError: our own Serve listens elsewhere than the settings say, or it is open and has no key; or it would
            have to start, and somebody has its port: it would try for minutes, and not say who.
    """
    if not options:
        if settings.ray_address is None and (problem := _port_problem(settings)):
            raise ServingError(f"the gateway cannot start: {problem}")
        return None
    host, port = str(options["host"]), int(options["port"])
    if settings.ray_address is None and (host, port) != (settings.host, settings.gateway_port):
        raise ServingError(
            f"Serve listens on {host}:{port}, not on {settings.host}:{settings.gateway_port}: `atelier down` and"
            " `atelier up` move it, or set ATELIER_HOST and ATELIER_GATEWAY_PORT back"
        )
    _check_host(settings, host)
    return host


def _port_problem(settings: Settings) -> str | None:
    """Return who has the port of a gateway on this machine, where nobody answers there."""
    from infra.stack.daemons import taken

    problem = taken(settings.gateway_port, settings.host, "ATELIER_GATEWAY_PORT")
    return problem and "; ".join(problem)


def _apply(client: "httpx.Client", document: Mapping[str, Any]) -> None:
    answer = _call(client, "PUT", json=document)
    if answer.status_code != 200:
        raise ServingError(f"Serve refuses the application: {_line(answer.text)}")


def _check_host(settings: Settings, host: str) -> None:
    """Refuse to let a network in without a key."""
    if host in LOOPBACK:
        return
    from infra.keys import Keys

    with closing(Keys(settings.database)) as keys:
        known = keys.any()
    if not known:
        raise ServingError(
            f"the gateway would listen on {host} without an API key: make one with"
            " `atelier keys add`, or set ATELIER_HOST=127.0.0.1"
        )


def application(
    settings: Settings,
    versions: Sequence[Mapping[str, Any]] = (),
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the application's config: ours, over what an operator deployed.

    Raises:
        ServingError: the placement cannot be, or what is deployed has other deployments than any placement.
    """
    config = (before or {}).get("deployed_app_config") or {}
    given = config.get("args", {})
    try:
        placement = placement_of(settings, given.get("placement"))
    except PlacementError as error:
        raise ServingError(str(error)) from None
    arguments = {
        "host": settings.host,
        "database": settings.database,
        "tracking_uri": settings.mlflow_uri,
        "cache": str(settings.state / "versions"),
        "files": str(settings.state / "files"),
        "samples": str(settings.samples),
        "signing": str(settings.state / "exchange"),
        "public_url": settings.public_url,
        "unknown_words": settings.unknown_words,
        "private_webhooks": settings.private_webhooks,
    }
    if settings.ray_address is not None:
        # folders that its nodes mount, the host that they open, and the address that leads there
        theirs = ["host", "cache", "files", "signing"]
        if settings.storage_uri is None:  # else answers are kept where drift reads them
            theirs.append("samples")
        if not settings.public_url:
            theirs.append("public_url")
        arguments |= {name: given[name] for name in theirs if name in given}
    return {
        "logging_config": LOGGING,
        **{key: value for key, value in config.items() if value is not None},
        "name": APPLICATION,
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "args": {**given, **arguments, "placement": placement.model_dump(mode="json")},
        "deployments": _told(placement, versions, _sized(settings, placement, config)),
    }


def _sized(
    settings: Settings, placement: Placement, config: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return what an operator set of our deployments beside the placement, by name.

    Raises:
        ServingError: it is of deployments that a cluster's placement does not have.
    """
    found = {one["name"]: one for one in config.get("deployments", [])}
    known = placement.deployments()
    strange = [name for name in found if name not in known]
    if strange and settings.ray_address is not None and "placement" not in config.get("args", {}):
        raise ServingError(
            f"the application was deployed with {', '.join(strange)}, of before there were placements: write its"
            " files anew with `atelier deploy --write FOLDER` and deploy those"
        )
    return {name: one for name, one in found.items() if name in known}


def _told(
    placement: Placement,
    versions: Sequence[Mapping[str, Any]],
    sized: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return each deployment with the versions that it holds; the gateway is told of all."""
    pins = [dict(version) for version in versions]
    mine = {GATEWAY: pins, **placement.split(pins)}
    return [
        {**sized.get(name, {}), "name": name, "user_config": {"versions": mine[name]}}
        for name in placement.deployments()
    ]


def _wait(
    client: "httpx.Client", settings: Settings, digests: Sequence[str], deadline: float
) -> None:
    """Wait until the gateway says that every replica holds `digests`."""
    problem, asked = "nothing was heard of it", -STATE_S
    with _gateway() as gateway:
        while (now := time.monotonic()) < deadline:
            missing = _missing(gateway, settings, digests)
            if missing == {}:
                return
            broken = [why for why in (missing or {}).values() if why != "not loaded"]
            if broken or now - asked >= STATE_S:
                asked, problem = now, _trouble(_deployed(client), settings, missing, broken)
            time.sleep(POLL_S)
    raise ServingError(
        f"the application was not ready in time, {problem}; look at the page of Ray, Serve"
    )


def _trouble(
    found: Mapping[str, Any] | None,
    settings: Settings,
    missing: Mapping[str, str] | None,
    broken: Sequence[str],
) -> str:
    """Return what the application lacks yet.

    Raises:
        VersionRefused: a stage of a running application cannot load a version.
        ServingError: it cannot start.
    """
    state = found["status"] if found else "not started"
    if found and state in {"DEPLOY_FAILED", "UNHEALTHY"}:
        raise ServingError(f"Serve could not start the application: {_reason(found)}")
    if broken and state == "RUNNING":
        raise VersionRefused(f"a stage refuses a version: {broken[0]}")
    problem = f"it is {state}" + (f": {_reason(found)}" if found and _reason(found) else "")
    if missing is None and state == "RUNNING":
        if settings.ray_address is None:
            hint = _port_problem(settings) or "`atelier down` and `atelier up` start Serve anew"
        else:
            hint = "ATELIER_PUBLIC_URL sets where"
        problem += f", and nobody answers at {address(settings)}: {hint}"
    return problem


def _gateway() -> "httpx.Client":
    """Return a client for many questions: to make one costs twenty times what a question does."""
    import httpx

    return httpx.Client(timeout=10, trust_env=False)


def _missing(
    gateway: "httpx.Client", settings: Settings, digests: Sequence[str]
) -> dict[str, str] | None:
    """Return which digests are not loaded and why; None while the gateway or a stage does not answer."""
    import httpx

    try:
        answer = gateway.get(
            f"{address(settings)}/readyz", params=[("digest", digest) for digest in digests]
        )
        document = answer.json()
    except (httpx.HTTPError, ValueError):
        return None
    if answer.status_code == 200:
        return {}
    missing: dict[str, str] | None = document.get("missing")
    return missing or None


def _reason(found: Mapping[str, Any]) -> str:
    """Return what the first deployment in trouble says of itself: its last line is the replica's own."""
    for name, one in found["deployments"].items():
        if one["message"] and one["status"] in {"DEPLOY_FAILED", "UNHEALTHY"}:
            return f"{name}: {_line(one['message'])}"
    return _line(found["message"])


def _deployed(client: "httpx.Client") -> dict[str, Any] | None:
    found: dict[str, Any] | None = _serve(client)["applications"].get(APPLICATION)
    return found


def refused(settings: Settings) -> str | None:
    """Return why Ray's dashboard cannot be used with what this process would show it, None where it can."""
    try:
        with _dashboard(settings) as client:
            answer = _call(client, "GET", route="/api/version")
    except ServingError as error:
        return str(error)
    if answer.status_code == 200:
        return None
    return f"{client.base_url} answers {answer.status_code}: {_line(answer.text)}"


def nodes(settings: Settings) -> set[str]:
    """Return the IP addresses of a cluster's living nodes; empty where its dashboard does not say."""
    try:
        with _dashboard(settings) as client:
            answer = _call(client, "GET", route="/api/v0/nodes?limit=1000")
        found = answer.json()["data"]["result"]["result"]
        return {node["node_ip"] for node in found if node["state"] == "ALIVE"}
    except (ServingError, ValueError, KeyError, TypeError):
        return set()


def _serve(client: "httpx.Client") -> dict[str, Any]:
    """Return the document of all that Serve runs; without `http_options` where it does not run."""
    answer = _call(client, "GET")
    if answer.status_code != 200:
        raise ServingError(f"Ray's dashboard answered {answer.status_code}: {_line(answer.text)}")
    found: dict[str, Any] = answer.json()
    return found


def _call(
    client: "httpx.Client", method: str, route: str = ROUTE, **options: Any
) -> "httpx.Response":
    import httpx

    try:
        return client.request(method, route, **options)
    except httpx.HTTPError as error:
        raise ServingError(
            f"no Ray dashboard answers at {client.base_url} ({type(error).__name__}): start it with `atelier up`,"
            " or set RAY_DASHBOARD_ADDRESS to the cluster's"
        ) from None


def _dashboard(settings: Settings) -> "httpx.Client":
    """Return a client of the dashboard, with the cluster's token where there is one.

    Raises:
        ServingError: the file with the token cannot be read.
    """
    import httpx

    token = _token(settings)
    return httpx.Client(
        base_url=os.environ.get("RAY_DASHBOARD_ADDRESS") or settings.dashboard_url,
        headers={"authorization": f"Bearer {token}"} if token else {},
        timeout=httpx.Timeout(CALL_S, connect=5),
        trust_env=False,
    )


def _token(settings: Settings) -> str:
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or settings.state / "ray_token")
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return os.environ.get("RAY_AUTH_TOKEN", "")
    except OSError as error:
        raise ServingError(f"{path} with Ray's token cannot be read: {error.strerror}") from None


def _line(text: str) -> str:
    """Return the last lines of a message (a traceback ends with what happened) as one."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return " ".join(lines[-2:])[-600:]
