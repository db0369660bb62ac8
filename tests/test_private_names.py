"""What others keep to themselves and we use all the same: each name is where it is used, or a sentence says what to do.

The names are looked up in the sources of what is installed, so that no server is imported. `tests/test_layout.py`
lists the files; Ray Train's names, which have a way without, are looked up by `flows/training/lean_trainer.py` itself.
"""

import ast
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Name:
    """A private name, where it is, how it is used, and by whom."""

    module: str
    name: str
    user: str
    so_that: str
    within: str = ""  # what uses it there, where it is replaced
    arguments: tuple[str, ...] = ()  # that it must take

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


SERVERS = "infra/stack/servers.py"
NAMES = [
    Name(
        *("prefect.server.api.server", "create_app", SERVERS),
        "Prefect's server runs behind the guard in one process: `prefect server start` starts another",
        arguments=("final",),
    ),
    Name(
        *("mlflow.server.fastapi_app", "app", SERVERS),
        "MLflow's server runs behind the guard in one process: `mlflow server` starts another",
    ),
    Name(
        *("mlflow.server.handlers", "initialize_backend_stores", SERVERS),
        "MLflow's server has its stores, as `mlflow server` would give it",
        arguments=("backend_store_uri", "registry_store_uri", "default_artifact_root"),
    ),
    *(
        Name("mlflow.server.constants", name, SERVERS, "MLflow's server finds its stores again")
        for name in (
            *("BACKEND_STORE_URI_ENV_VAR", "REGISTRY_STORE_URI_ENV_VAR"),
            "ARTIFACT_ROOT_ENV_VAR",
        )
    ),
    Name(
        *("ray.scripts.scripts", "get_ray_client_dependency_error", SERVERS),
        "`ray start` opens no Ray Client server, which it has no switch for and which asks for no token",
        within="start",
    ),
    Name(
        *("ray.serve._private.replica", "add_port_to_grpc_server", "services/gateway/listening.py"),
        "a replica listens at its node's address, not at every one",
        within="_on_initialized",
    ),
    Name(
        *("prefect.workers.process", "load_flow_from_flow_run", "flows/scheduling/jobs.py"),
        "the worker runs this project's own flows, whatever a deployment says",
        within="run",
    ),
]


@cache
def source(module: str) -> ast.Module:
    """Return the source of an installed module, without importing it or its packages."""
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).parent.joinpath(*rest).with_suffix(".py").read_text())


def moved(wanted: Name) -> str:
    """Return what is to be said where a name is not there, or is used otherwise; nothing where all is well."""
    package = wanted.module.partition(".")[0]
    says = (
        f"{package} {importlib.metadata.version(package)} has moved or changed {wanted}: {wanted.user} needs it so that"
        f" {wanted.so_that}. Look for its new place, or keep the older {package}"
    )
    try:
        tree = source(wanted.module)
    except FileNotFoundError:
        return says
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found[name] = node
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found |= {alias.asname or alias.name: node for alias in names}
            case ast.Assign(targets=[ast.Name(id=name)]):
                found[name] = node
    if (place := found.get(wanted.name)) is None:
        return says
    if wanted.arguments:
        assert isinstance(place, ast.FunctionDef)
        takes = {one.arg for one in [*place.args.args, *place.args.kwonlyargs]}
        if not takes.issuperset(wanted.arguments):
            return says
    if wanted.within and wanted.name not in _used(tree, wanted.within):
        return says
    return ""


def _used(tree: ast.Module, function: str) -> set[str]:
    return {
        name.id
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function
        for name in ast.walk(node)
        if isinstance(name, ast.Name)
    }


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_a_private_name_is_where_it_is_used(name: Name) -> None:
    assert not moved(name)


def test_what_is_compiled_has_its_names_too() -> None:
    """`connect` has Ray read its environment again; the optimisers sum and average many tensors at once."""
    import torch
    from ray import _raylet

    for owner, name in (
        (_raylet.Config, "initialize"),
        (_raylet.AuthenticationTokenLoader, "instance"),
        (torch, "_foreach_norm"),
        (torch, "_foreach_mul_"),
        (torch, "_foreach_lerp_"),
    ):
        assert hasattr(owner, name), f"{owner} has no {name} any more: see tests/test_layout.py"


def test_serve_still_documents_how_a_deployment_builds_its_application() -> None:
    method = "__serve_build_asgi_app__"
    (ingress,) = (
        node
        for node in source("ray.serve.api").body
        if isinstance(node, ast.FunctionDef) and node.name == "ingress"
    )
    said = f"serve.ingress no longer names {method}, which services/application.py has"
    assert method in (ast.get_docstring(ingress) or ""), said


@pytest.mark.parametrize(
    "gone",
    [
        Name("ray.scripts.scripts", "nowhere", "a.py", "it works"),
        Name("ray.scripts.elsewhere", "start", "a.py", "it works"),
        Name("prefect.server.api.server", "create_app", "a.py", "it works", arguments=("more",)),
        Name("ray.scripts.scripts", "stop", "a.py", "it works", within="start"),
    ],
    ids=["name", "module", "argument", "call"],
)
def test_what_has_moved_is_said_with_who_needs_it_and_why(gone: Name) -> None:
    package = gone.module.partition(".")[0]
    version = importlib.metadata.version(package)
    assert moved(gone) == (
        f"{package} {version} has moved or changed {gone}: a.py needs it so that it works."
        f" Look for its new place, or keep the older {package}"
    )
