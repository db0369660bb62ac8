"""Rules that keep the house in order: who imports whom, what no file may do, where a file may stand."""

import ast
import fnmatch
import graphlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "infra": set(),
    "models": set(),
    "data": {"infra"},
    "services": {"infra", "models"},
    "flows": {"infra", "models", "data"},
}
TOP_LEVEL = {
    *("flows", "services", "models", "data", "infra", "tests", "benchmarks"),
    *("dvc.yaml", "dvc.lock", "params.yaml", "pyproject.toml", "requirements.lock", "Makefile"),
    *("README.md", "LICENSE", "CONTRIBUTING.md", "BENCHMARKS.md"),
}
NO_MODELS_MAY_IMPORT = {"ray", "mlflow", "prefect", "dvc", "httpx", "requests", "os", "pathlib"}
BANNED_MODULES = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
BANNED_CALLS = {
    *("eval", "exec", "torch.load", "torch.export.load", "torch.hub.load", "torch.save"),
    *("yaml.load", "yaml.unsafe_load", "os.system", "*.read_webdataset", "numpy.save", "np.save"),
}
BANNED_ARGUMENTS = {
    ("shell", True),
    ("allow_pickle", True),
    ("trust_remote_code", True),
    ("weights_only", False),
}
PARSERS = {"load", "loads", "load_all", "safe_load", "safe_load_all", "parse", "compose", "scan"}
BROAD = {"Exception", "BaseException"}
LONGEST_FILE = 600
INTERNAL = ("prefect.server", "mlflow.server", "ray.scripts")
"""Modules of others that promise nothing, though no underscore says so."""
NAMED_TUPLES = {"_asdict", "_replace", "_fields"}  # public, in spite of their names
REACHES = {
    "flows/scheduling/jobs.py": {"load_flow_from_flow_run"},
    "flows/training/lean_trainer.py": {"ray.train.v2._internal", "SynchronizationActor"},
    "flows/training/optimizers.py": {"_foreach_norm", "_foreach_mul_", "_foreach_lerp_"},
    "infra/stack/cluster.py": {"ray._raylet"},
    "infra/stack/servers.py": {
        *("prefect.server", "mlflow.server", "ray.scripts"),
        "get_ray_client_dependency_error",
    },
    "infra/stack/spec.py": {"prefect.server"},
    "services/gateway/listening.py": {"ray.serve._private"},
}
"""What of others' that is private is used all the same, and where; `test_private_names.py` says when it has moved."""


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def code() -> list[Path]:
    return [path for package in (*MAY_IMPORT, "tests", "benchmarks") for path in sources(package)]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(path: Path) -> set[str]:
    """Return the first names of everything the file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return listed.stdout.splitlines()


def offences(path: Path) -> Iterator[str]:
    """Yield what a file does that no file may do, with its line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "yaml.load":
                loaders = re.findall(r"\w*Loader\b(?!=)", ast.unparse(node).partition("(")[2])
                if loaders and all(one.endswith("SafeLoader") for one in loaders):
                    continue
            if any(fnmatch.fnmatchcase(name, banned) for banned in BANNED_CALLS):
                yield f"line {node.lineno}: calls {name}"
            for argument in node.keywords:
                value = argument.value
                if isinstance(value, ast.Constant) and any(
                    argument.arg == name and value.value is banned
                    for name, banned in BANNED_ARGUMENTS
                ):
                    yield f"line {node.lineno}: passes {argument.arg}={value.value}"
        elif isinstance(node, ast.ExceptHandler):
            caught = [node.type] if not isinstance(node.type, ast.Tuple) else node.type.elts
            if any(one is None or ast.unparse(one) in BROAD for one in caught):
                yield f"line {node.lineno}: catches everything"


def defined(path: Path) -> set[str]:
    """Return the names that a file defines, also in classes and functions and on self."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        match node:
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                found.add(name)
            case ast.Name(name, ast.Store()) | ast.Attribute(ast.Name("self"), name, ast.Store()):
                found.add(name)
    return found


def reaches(path: Path, own: set[str]) -> Iterator[str]:
    """Yield what a file uses of others that is private: a module up to its private part, or an attribute.

    Also a module that it names by a string, and what it replaces in another's module.
    """
    for node in ast.walk(tree(path)):
        modules: list[str] = []
        match node:
            case ast.Import(names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(str(module), names):
                modules = [f"{module}.{alias.name}" for alias in names]
            case ast.Constant(str(text)) if re.fullmatch(
                r"(ray|prefect|mlflow|torch)(\.\w+)+", text
            ):
                modules = [text]
            case ast.Subscript(ast.Call(ast.Name("vars")), ast.Constant(str(name)), ast.Store()):
                yield name
            case ast.Attribute(_, name) if private(name) and name not in own | NAMED_TUPLES:
                yield name
        for module in modules:
            parts = module.split(".")
            if parts[0] in MAY_IMPORT.keys() | {"tests"}:
                continue
            yield from (one for one in INTERNAL if f"{module}.".startswith(f"{one}."))
            place = next((i for i, part in enumerate(parts) if private(part)), None)
            if place is not None:
                yield ".".join(parts[: place + 1])


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_downwards(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    wrong = {
        path.relative_to(ROOT): sorted(up)
        for path in sources(package)
        if (up := (imported(path) & MAY_IMPORT.keys()) - allowed)
    }
    assert not wrong


def test_imports_run_in_no_circle() -> None:
    """Wherever they stand: also inside of functions, and those for types alone."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in MAY_IMPORT
        for path in sources(package)
    }
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        froms = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)]
        modules = {node.module or "" for node in froms}
        modules |= {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
        graph[name] = (modules & files.keys()) - {name}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("package", ["flows", "services", "infra", "models", "data"])
def test_the_floor_of_a_package_holds_a_dozen_modules(package: str) -> None:
    floor = [path.stem for path in (ROOT / package).glob("[!_]*.py")]
    assert len(floor) <= 12, sorted(floor)


def test_models_are_pure_pytorch() -> None:
    wrong = {
        path.relative_to(ROOT): sorted(found)
        for path in sources("models")
        if (found := imported(path) & NO_MODELS_MAY_IMPORT)
    }
    assert not wrong


def test_what_is_private_to_others_is_used_in_listed_modules_only() -> None:
    product = [path for package in MAY_IMPORT for path in sources(package)]
    own = {name for path in product for name in defined(path)}
    found = {
        path.relative_to(ROOT).as_posix(): names
        for path in product
        if (names := set(reaches(path, own)))
    }
    assert found == REACHES


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from ray.train.v2._internal.util import x", {"ray.train.v2._internal"}),
        ("from ray import _raylet", {"ray._raylet"}),
        ("import ray._raylet", {"ray._raylet"}),
        ("from prefect.server.api.server import create_app", {"prefect.server"}),
        ("def f(client):\n    return client._secret", {"_secret"}),
        ("x = modules['ray.serve._private.replica']", {"ray.serve._private"}),
        ("vars(process)['load_flow'] = other", {"load_flow"}),
        ("from __future__ import annotations\nclass A:\n    def _b(self): self._b()", set()),
        ("from models.parts._rows import x", set()),
    ],
)
def test_the_rule_sees_what_is_private_to_others(
    text: str, found: set[str], tmp_path: Path
) -> None:
    path = tmp_path / "sample.py"
    path.write_text(text)
    assert set(reaches(path, defined(path))) == found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_other_distribution_provides_our_names(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin == str(ROOT / package / "__init__.py")
    owners = importlib.metadata.packages_distributions().get(package, [])
    assert set(owners) <= {"atelier"}


def test_flow_files_shadow_no_module() -> None:
    """Prefect puts flows/ first on sys.path and registers a file entrypoint under its bare stem."""
    ours = {path.stem for package in MAY_IMPORT for path in (ROOT / package).glob("*")}
    for path in (ROOT / "flows").glob("*.py"):
        if path.stem not in {"__init__", "__main__"}:
            assert path.stem not in sys.stdlib_module_names, path
            assert path.stem not in MAY_IMPORT, path
            assert importlib.util.find_spec(path.stem) is None, path
    assert "utils" not in ours


def test_test_folders_are_not_packages() -> None:
    """tests/models/__init__.py would make pytest import it as the package `models`."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_nothing_unpickles_evaluates_or_catches_everything() -> None:
    wrong = {
        path.relative_to(ROOT): found
        for path in code()
        if (
            found := [
                *(f"imports {name}" for name in sorted(imported(path) & BANNED_MODULES)),
                *offences(path),
            ]
        )
    }
    assert not wrong


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import torch\ntorch.load('x')", "line 2: calls torch.load"),
        ("ray.data.read_webdataset('x')", "line 1: calls ray.data.read_webdataset"),
        ("yaml.load(text, Loader=yaml.Loader)", "line 1: calls yaml.load"),
        ("yaml.load(text, Loader=yaml.CSafeLoader)", None),
        ("run('ls', shell=True)", "line 1: passes shell=True"),
        ("try:\n  f()\nexcept (ValueError, Exception):\n  pass", "line 3: catches everything"),
        ("try:\n  f()\nexcept:\n  pass", "line 3: catches everything"),
        ("try:\n  f()\nexcept ValueError:\n  run('ls', shell=False)", None),
    ],
)
def test_the_rule_sees_what_it_should(text: str, found: str | None, tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(text)
    assert list(offences(path)) == ([found] if found else [])


def test_one_module_alone_parses_json_and_yaml() -> None:
    """infra.documents bounds bytes, depth and aliases; models, which import none of ours, read their own tokenizers."""
    readers = {f"{module}.{name}" for module in ("json", "yaml") for name in PARSERS}
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"
        for package in MAY_IMPORT.keys() - {"models"}
        for path in sources(package)
        if path != ROOT / "infra" / "documents.py"
        for node in ast.walk(tree(path))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in readers)
        or (isinstance(node, ast.ImportFrom) and node.module in {"json", "yaml"})
    ]
    assert not wrong


def test_one_module_alone_says_how_a_time_is_told() -> None:
    wrong = [path.relative_to(ROOT) for package in MAY_IMPORT for path in sources(package)
             if "%H:%M" in path.read_text()]  # fmt: skip
    assert wrong == [Path("infra/times.py")]


def test_no_file_is_longer_than_a_reader_s_patience() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in code()}
    assert not {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE}


def test_no_file_has_a_name_that_says_nothing() -> None:
    empty = {"utils", "helpers", "common", "misc", "manager", "handler", "processor", "base"}
    assert not [path for path in code() if path.stem in empty]


def test_the_top_level_holds_only_what_the_readme_names() -> None:
    names = {Path(name).parts[0] for name in tracked()}
    assert not {name for name in names if not name.startswith(".")} - TOP_LEVEL


def test_tests_mirror_the_tree() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders <= MAY_IMPORT.keys() | {"integration", "benchmarks"}


def test_the_lock_has_names_and_versions_only() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(fnmatch.fnmatchcase(line, "?*==?*") for line in pins)
    assert not [line for line in pins if "+" in line or "://" in line]
