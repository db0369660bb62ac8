"""What is well and what is not: the machine, the versions, the settings, each part, the data; with the way out."""

import importlib.metadata
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from infra.documents import MOST_OF_OURS, read_json
from infra.placement import PlacementError, placement_of
from infra.settings import EVERYWHERE, Settings, settings
from infra.stack.daemons import MARK, taken
from infra.stack.spec import Part, credential_file, parts, token_file

GIB: Final = 2**30
NEEDED: Final = {"memory": (4.0, 2.0), "disk": (5.0, 1.0), "shared memory": (1.0, 0.1)}
"""GiB free: below the first a warning, below the second a failure."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: what was found and, unless it is fine, what to do."""

    name: str
    verdict: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def doctor() -> list[Check]:
    """Look at everything once; starts nothing and changes nothing. Takes seconds, most of them to import torch."""
    looks: tuple[Callable[[], Iterable[Check]], ...] = (
        _python,
        _devices,
        _room,
        _versions,
        _tools,
        _settings,
        _placement,
        _parts,
        _tokens,
        _cluster,
        _storage,
        _worker,
        _datasets,
    )
    return [check for look in looks for check in look()]


def _python() -> Iterator[Check]:
    found = ".".join(str(number) for number in sys.version_info[:3])
    fits = (3, 11) <= sys.version_info[:2] <= (3, 12)
    yield Check("python", "ok" if fits else "fail", found, "" if fits else "use 3.11 or 3.12")


def _devices() -> Iterator[Check]:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    found = ", ".join(names) or f"no GPU, {os.cpu_count()} CPU cores"
    yield Check("torch", "ok", f"{torch.__version__}: {found}")


def _room() -> Iterator[Check]:
    import psutil

    state = settings().state
    existing = next(folder for folder in (state, *state.parents) if folder.exists())
    free = {
        "memory": psutil.virtual_memory().available,
        "disk": shutil.disk_usage(existing).free,
    }
    if Path("/dev/shm").exists():  # Ray's object store lives there
        free["shared memory"] = shutil.disk_usage("/dev/shm").free
    for name, count in free.items():
        comfortable, least = NEEDED[name]
        has = count / GIB
        verdict: Literal["ok", "warn", "fail"] = (
            "ok" if has >= comfortable else "warn" if has >= least else "fail"
        )
        advice = "" if verdict == "ok" else f"free some: {comfortable:g} GiB are comfortable"
        yield Check(name, verdict, f"{has:.1f} GiB free", advice)


def _placement() -> Iterator[Check]:
    try:
        found = placement_of(settings())
    except PlacementError as error:
        advice = "infra/deploy/serve/placement.yaml is an example"
        yield Check("placement", "fail", str(error), advice)
        return
    pools = ", ".join(pool.name for pool in found.pools)
    yield Check("placement", "ok", f"{found.layout}: {pools}")


def _versions() -> Iterator[Check]:
    from packaging.requirements import Requirement

    wrong = []
    for line in importlib.metadata.requires("atelier") or ():
        requirement = Requirement(line)
        try:
            has = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(has, prereleases=True):
            wrong.append(f"{requirement.name} {has} is not {requirement.specifier}")
    advice = "install the locked set again: rm -f .venv/.installed && make"
    yield Check(
        "versions",
        "fail" if wrong else "ok",
        ", ".join(wrong) or "inside their bounds",
        advice if wrong else "",
    )
    if odd := _unlocked(settings().project / "requirements.lock"):
        yield Check("lock", "warn", f"{len(odd)} differ: {', '.join(odd[:5])}", advice)


def _unlocked(lock: Path) -> list[str]:
    """Return the installed packages whose version is not the lock's; those not installed do not count."""
    if not lock.exists():
        return []
    odd = []
    for name, wanted in re.findall(r"^([\w.-]+)==(\S+)$", lock.read_text(), re.MULTILINE):
        try:
            has = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
        if has != wanted:
            odd.append(f"{name} {has} (lock: {wanted})")
    return odd


def _tools() -> Iterator[Check]:
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    for tool, advice in (("git", "install git"), ("dvc", "install the locked set: make")):
        found = shutil.which(tool, path=places)
        yield Check(tool, "ok" if found else "fail", found or "not found", "" if found else advice)


def _settings() -> Iterator[Check]:
    now = settings()
    known = {MARK, "ATELIER_FAULT"}
    for name, about in Settings.model_fields.items():
        alias = about.validation_alias
        variable = alias if isinstance(alias, str) else f"ATELIER_{name.upper()}"
        known.add(variable)
        source = variable if name in now.model_fields_set else f"default ({variable} sets it)"
        found = getattr(now, name)
        value = re.sub(r"//[^/]*@", "//***@", str(found))  # no password on a screen
        value = "not set" if found is None else value
        yield Check(f"setting {name}", "ok", f"{value}, from {source}")
    for variable in sorted(os.environ):
        if variable.startswith("ATELIER_") and variable not in known:
            yield Check("settings", "warn", f"{variable} is no setting", "see the names above")


def _parts() -> Iterator[Check]:
    for part in parts():
        if part.probe() and (part.external or part.daemon):
            yield Check(part.name, "ok", f"answers at {part.address}")
        elif part.external:
            advice = f"start it, or change {part.external}"
            yield Check(part.name, "fail", f"{part.address} does not answer", advice)
        elif part.daemon:
            advice = f"wait, or read `atelier logs {part.name}`"
            yield Check(part.name, "warn", "runs but does not answer", advice)
        else:
            yield _startable(part)


def _startable(part: Part) -> Check:
    for setting, (host, port) in part.ports.items():
        if problem := taken(port, host, setting):
            return Check(part.name, "fail", *problem)
    found = "not started; its ports are free" if part.ports else "not started"
    return Check(part.name, "warn", found, "atelier up")


def _tokens() -> Iterator[Check]:
    files = {"stack token": credential_file(make=False)}
    if settings().ray_address is None:
        files["ray token"] = token_file(make=False)
    for name, path in files.items():
        if not path.exists():
            yield Check(name, "ok", "made at the first start")
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        closed = mode & 0o077 == 0
        advice = "" if closed else f"chmod 600 {path}"
        yield Check(name, "ok" if closed else "fail", f"{path} has mode {mode:04o}", advice)


def _cluster() -> Iterator[Check]:
    """Look at somebody else's Ray and MLflow as a client would use them."""
    now = settings()
    if now.ray_address is not None:
        from infra.serving import refused

        why = refused(now)
        advice = "set RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH to a file with its token, RAY_DASHBOARD_ADDRESS"
        found = why or f"{os.environ.get('RAY_DASHBOARD_ADDRESS', now.dashboard_url)} lets us in"
        yield Check("ray dashboard", "fail" if why else "ok", found, advice if why else "")
        if now.host in EVERYWHERE and now.public_url is None:
            found = f"clients are told {now.gateway_url}"
            yield Check("public url", "warn", found, "set ATELIER_PUBLIC_URL")
    if now.tracking_uri is not None and now.tracking_uri.startswith("http"):
        from infra.registry.artifacts import unreadable

        why = unreadable(now.tracking_uri)
        advice = (
            "its store must be reached from here and from every node: presigned S3 addresses lead to S3 itself,"
            " s3:// needs boto3 and AWS_* variables"
        )
        yield Check(
            "artifacts", "fail" if why else "ok", why or "a file is read", advice if why else ""
        )


def _storage() -> Iterator[Check]:
    now = settings()
    if now.storage_uri is None:
        if now.ray_address is not None:
            found = f"runs go to {now.runs}, which other nodes do not see"
            yield Check("storage", "warn", found, "set ATELIER_STORAGE_URI to a mount of all nodes")
        return
    problem = "" if now.runs.is_dir() else "is not there"
    if not problem and not os.access(now.runs, os.R_OK | os.W_OK | os.X_OK):
        problem = "cannot be written"
    advice = "mount it here as on every node, or change ATELIER_STORAGE_URI" if problem else ""
    found = f"{now.runs} {problem or 'is there'}"
    yield Check("storage", "fail" if problem else "ok", found, advice)


def _worker() -> Iterator[Check]:
    """Look for the worker of somebody else's Prefect; our own is a part."""
    prefect = next(part for part in parts() if part.name == "prefect")
    if prefect.external is None or not prefect.probe():
        return
    from infra.stack.workers import missing

    why = missing()
    advice = "run `atelier worker` as a service" if why else ""
    yield Check("worker", "warn" if why else "ok", why or "one lives", advice)


def _datasets() -> Iterator[Check]:
    folder = settings().project / "data" / "prepared"
    found = []
    for path in sorted(folder.glob("*/dataset.json")):
        try:
            splits = read_json(path, most=MOST_OF_OURS)["splits"]
            rows = sum(split["rows"] for split in splits.values())
        except (OSError, ValueError, KeyError, TypeError):
            advice = f"atelier data prepare {path.parent.name}"
            yield Check("datasets", "warn", f"{path} is not readable", advice)
            continue
        found.append(f"{path.parent.name} ({rows} samples)")
    if found:
        yield Check("datasets", "ok", ", ".join(found))
    else:
        yield Check("datasets", "warn", "none prepared", "atelier data prepare shapes")
