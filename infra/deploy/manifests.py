"""The files of a cluster, written from the settings and the placement: Serve's config and KubeRay's RayService.

`atelier deploy --write FOLDER` writes them; infra/deploy/serve holds an example of each. Whoever changes a size changes
the placement and writes them again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import ceil
from operator import attrgetter, itemgetter
from typing import Any, Final

import sqlalchemy as sa
import yaml

from infra.placement import Placement, placement_of
from infra.serving import LOOPBACK, ServingError, application, front
from infra.settings import Settings
from infra.stack.spec import FRONT

SERVE: Final = "cluster.yaml"
KUBERAY: Final = "rayservice.yaml"
PROJECT: Final = "/opt/atelier"  # in the image
CPUS_A_NODE: Final = 4  # of a node without a GPU, at least
SHARES: Final = 10_000  # of a CPU or GPU, as Ray counts
PASSWORDS: Final = {
    "ATELIER_DATABASE_URL": "PGPASSWORD",
    "ATELIER_TRACKING_URI": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
}
"""Where nodes have the passwords of servers from, which stand in no file."""
_SERVE_SAYS: Final = """\
# Written by `atelier deploy --write`: Ray Serve on a cluster, by `serve deploy {name}`, once. `atelier deploy` then
# changes only what the pools hold loaded. Sizes stand in the placement: change them there and write this again.
#
# database: its password comes from the nodes' PGPASSWORD. cache, files, samples and signing are folders that every node
# mounts; signing holds the key (0600) that signs receipts and links.
#
# On every node, before `ray start`: the gateway's requests are held while a replica or a proxy is started again.
#   RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH={front}
#   RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S=0.25
"""
_KUBERAY_SAYS: Final = """\
# Written by `atelier deploy --write`: the same on Kubernetes, by `kubectl apply -f {name}` (KubeRay 1.5.1 and later),
# then `atelier deploy`. The image holds this project at {project}; the claim `atelier` is mounted by every node, and
# the secret `atelier` has what a node needs to know (PGPASSWORD, AWS_*). Memory is a guess, at 4 GiB a CPU.
#
# The probe of a node asks the gateway: Serve's own routes, which KubeRay would ask, answer nobody.
"""


def write(settings: Settings, image: str) -> dict[str, str]:
    """Return the text of each file by its name.

    Raises:
        ServingError: the settings name servers that only this machine reaches, or no host that others do, or they have
            a password, which the files would show.
        infra.placement.PlacementError: there is no such placement.
    """
    _check_reachable(settings)
    placement = placement_of(settings)
    serve = {
        **front(settings),
        "proxy_location": "EveryNode",
        "applications": [application(settings)],
    }
    kuberay = _ray_service(settings, placement, image, _dumped(serve))
    says = {"front": FRONT, "project": PROJECT}
    return {
        SERVE: f"{_SERVE_SAYS.format(name=SERVE, **says)}{_dumped(serve)}",
        KUBERAY: f"{_KUBERAY_SAYS.format(name=KUBERAY, **says)}{_dumped(kuberay)}",
    }


def _check_reachable(settings: Settings) -> None:
    servers = {
        "ATELIER_DATABASE_URL": settings.database_url,
        "ATELIER_TRACKING_URI": settings.tracking_uri,
    }
    missing = [name for name, value in servers.items() if value is None or _is_local(value)]
    missing += ["ATELIER_HOST"] * (settings.host in LOOPBACK)
    if missing:
        raise ServingError(
            f"a cluster's nodes cannot reach what this machine keeps for itself: set {', '.join(missing)}"
        )
    for name, variables in PASSWORDS.items():
        if sa.make_url(str(servers[name])).password:
            raise ServingError(
                f"{name} has a password, which the files would show: leave it out, nodes have it from {variables}"
            )


def _is_local(address: str) -> bool:
    """Return whether an address is of a file, a socket or a server of this machine alone."""
    try:
        found = sa.make_url(address)
    except sa.exc.ArgumentError:
        return True  # no address at all
    return found.host in LOOPBACK or not (found.host or "host" in found.query)


def _ray_service(
    settings: Settings, placement: Placement, image: str, serve: str
) -> dict[str, Any]:
    head = {
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
        "template": {"spec": _pod(settings, image, "ray-head", cpus=2)},
    }
    cluster = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "headGroupSpec": head,
        "workerGroupSpecs": _groups(settings, placement, image),
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "atelier"},
        "spec": {"serveConfigV2": serve, "rayClusterConfig": cluster},
    }


def _groups(settings: Settings, placement: Placement, image: str) -> list[dict[str, Any]]:
    """Return the kinds of nodes: those without a GPU, and those with one each, as many as the replicas need."""
    sizes = [_size(options) for options in placement.deployments().values()]
    plain = [size for size in sizes if not size.gpus]
    fast = [size for size in sizes if size.gpus]
    groups = []
    if plain:
        cpus = max(CPUS_A_NODE, *(ceil(size.cpus) for size in plain))
        groups.append(_group(settings, image, "cpu", plain, cpus))
    if fast:
        # whichever replicas share a GPU, their CPUs are there too
        densest = min(
            max(size.cpus / size.gpus for size in fast), sum(s.cpus * s.most for s in fast)
        )
        groups.append(_group(settings, image, "gpu", fast, max(1, ceil(densest)), gpus=1))
    return groups


@dataclass(frozen=True, slots=True)
class _Size:
    """What a replica of a deployment takes, and how many there are."""

    cpus: float
    gpus: float
    fewest: int
    most: int


def _size(options: dict[str, Any]) -> _Size:
    actor, scaling = options["ray_actor_options"], options.get("autoscaling_config", {})
    count = options.get("num_replicas")
    return _Size(
        actor["num_cpus"],
        actor.get("num_gpus", 0),
        scaling.get("min_replicas", count),
        scaling.get("max_replicas", count),
    )


def _group(
    settings: Settings, image: str, name: str, sizes: Sequence[_Size], cpus: int, gpus: int = 0
) -> dict[str, Any]:
    # the gateway's replicas are never none; nodes with GPUs may be, where all their pools sleep
    fewest, most = (
        _nodes([(one.cpus, one.gpus) for one in sizes for _ in range(count(one))], cpus, gpus)
        for count in (attrgetter("fewest"), attrgetter("most"))
    )
    return {
        "groupName": name,
        "replicas": fewest,
        "minReplicas": fewest,
        "maxReplicas": max(1, most),
        "rayStartParams": {},
        "template": {"spec": _pod(settings, image, "ray-worker", cpus=cpus, gpus=gpus)},
    }


def _nodes(replicas: Sequence[tuple[float, float]], cpus: int, gpus: int) -> int:
    """Return how many nodes hold these replicas, (CPUs, GPUs) each and none on two nodes; the largest are put first.

    Example:
        >>> _nodes([(1, 0.6)] * 3, cpus=4, gpus=1)
        3
    """
    left: list[list[int]] = []
    for needs in sorted(replicas, key=itemgetter(1, 0), reverse=True):
        asked = [round(one * SHARES) for one in needs]
        room = next((n for n in left if n[0] >= asked[0] and n[1] >= asked[1]), None)
        if room is None:
            left.append(room := [cpus * SHARES, gpus * SHARES])
        room[:] = (has - one for has, one in zip(room, asked, strict=True))
    return len(left)


def _pod(settings: Settings, image: str, name: str, *, cpus: int, gpus: int = 0) -> dict[str, Any]:
    variables = {
        "PYTHONPATH": PROJECT,
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": FRONT,
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.25",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    size = {
        "cpu": str(cpus),
        "memory": f"{4 * cpus}Gi",
        **({"nvidia.com/gpu": "1"} if gpus else {}),
    }
    ports = {"serve": settings.gateway_port}
    if name == "ray-head":
        ports |= {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
    container: dict[str, Any] = {
        "name": name,
        "image": image,
        "workingDir": PROJECT,
        "env": [{"name": key, "value": value} for key, value in variables.items()],
        "envFrom": [{"secretRef": {"name": "atelier", "optional": True}}],
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
        "resources": {"requests": size, "limits": dict(size)},
        "volumeMounts": [{"name": "atelier", "mountPath": str(one)} for one in _folders(settings)],
    }
    if name == "ray-worker":
        container["readinessProbe"] = {
            "httpGet": {"path": "/healthz", "port": settings.gateway_port},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
        }
    claim = {"name": "atelier", "persistentVolumeClaim": {"claimName": "atelier"}}
    return {"containers": [container], "volumes": [claim]}


def _folders(settings: Settings) -> list[Any]:
    """Return where every node mounts what is shared."""
    shared = settings.samples.parent
    return [settings.state] if shared == settings.state else [settings.state, shared]


class _Plain(yaml.SafeDumper):
    """Writes out what would be an alias, and texts of several lines as such."""

    def ignore_aliases(self, _data: Any) -> bool:
        """Return that nothing is an alias."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Plain.add_representer(str, _text)


def _dumped(document: dict[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Plain, sort_keys=False, width=120)
