"""A version as one signed folder: written in one installation, checked whole and published in another.

index.json        every other file with its size and sha256, and what the folder holds
index.json.sig    the signer's public key and its Ed25519 signature over index.json
versions/SHA256/  the sealed directories of the pipeline, its stages and its judge, as they were published
data.json ledger.json README.md
"""

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from flows.context import actor, ledger, registry, signing
from flows.evaluating.gate import Evaluation, GateReport
from flows.evaluating.pipeline import check_fit, check_interfaces
from flows.identity.why import CODE, Kept
from flows.provenance.tracing import imported_rows
from flows.recipe import Recipe
from infra.documents import read_json
from infra.pipelines import PinnedStage, Pipeline, is_pipeline, read_pipeline
from infra.registry.registry import LINEAGE, PUBLISHABLE, Version
from infra.registry.versions import NAME as NAME_OF_MODEL
from infra.settings import settings
from infra.storage import IntegrityError, sha256_of, verify, write_json

INDEX: Final = "index.json"
SIGNATURE: Final = "index.json.sig"
MOST_FILES: Final = 2000
MOST_BYTES: Final = 64 * 2**30
MOST_INDEX: Final = 4 * 2**20  # bytes of index.json
MOST_ROWS: Final = 100_000  # of ledger.json
NEEDED: Final = {
    "pipeline": frozenset({"pipeline.json"}),
    "model": frozenset({"config.json", "model.safetensors"}),
}
LONGEST_FACT: Final = 500  # characters of what becomes a tag
FOLDERS: Final = 6  # how deep a file may lie
NAME: Final = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}){0,5}"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=f"^{NAME}$")]


class ExchangeError(ValueError):
    """A folder that is not what an export wrote, or may not be written; one line that names the file."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Part):
    """One file of the folder."""

    bytes: Annotated[int, Field(ge=0, le=MOST_BYTES)]
    sha256: Digest


class Exported(_Part):
    """One version of the folder, by its number where it was exported."""

    role: Literal["pipeline", "stage", "base", "judge"]  # base: what a stage adapts
    name: Annotated[str, Field(max_length=130)]
    number: Annotated[int, Field(gt=0)]
    digest: Digest

    @property
    def ref(self) -> str:
        """Its name and number there."""
        return f"{self.name}:{self.number}"


class Index(_Part):
    """index.json."""

    format: Literal[1] = 1
    created: str
    versions: Annotated[tuple[Exported, ...], Field(min_length=2, max_length=16)]
    files: Annotated[dict[FileName, File], Field(max_length=MOST_FILES)]


class Moved(_Part):
    """A row of the ledger that another installation exported; `verify` asks it what stood there."""

    model_config = ConfigDict(frozen=True, extra="allow")

    stage: Annotated[str, Field(max_length=20)]
    epoch: Annotated[int, Field(ge=0)]
    to_digest: Digest | None
    at: AwareDatetime
    actor: Annotated[str, Field(max_length=200)]


LEDGER: Final = TypeAdapter(Annotated[list[Moved], Field(max_length=MOST_ROWS)])
DOCUMENTS: Final[dict[str, type[BaseModel]]] = {
    "pipeline.json": Pipeline,
    "recipe.json": Recipe,
    "evaluation.json": Evaluation,
    "report.json": GateReport,
    CODE: Kept,
}
UNBUILDABLE: Final = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
)
"""What a family's constructor raises on a config that it refuses or that is nonsense."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did."""

    version: Version
    published: list[str]
    signer: str


def export(ref: str, folder: Path) -> Index:
    """Write a pipeline version with all that it needs as one signed folder, whole or not at all.

    Raises:
        ExchangeError: a stage instead of a pipeline, or a folder that is there already.
    """
    if folder.exists():
        raise ExchangeError(f"{folder} is there already: name a folder that is not")
    version = registry().get(ref)
    directory = registry().fetch(version)
    if not is_pipeline(directory):
        raise ExchangeError(f"{version.ref} is a stage: export {version.name.split('.')[0]!r}")
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        index = _write(version, directory, making)
        making.chmod(0o755)
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return index


def _write(version: Version, directory: Path, making: Path) -> Index:
    held = [
        Exported(role="pipeline", name=version.name, number=version.number, digest=version.digest)
    ]
    held += _pinned(directory)
    for one in held:
        source = registry().fetch(one.ref, digest=one.digest)
        shutil.copytree(source, making / "versions" / one.digest, dirs_exist_ok=True)
    rows = [row.as_json() for row in ledger().about(version.name, version.number)]
    write_json(making / "ledger.json", rows)
    write_json(making / "data.json", _data(version, directory))
    text = _readme(held, rows)
    (making / "README.md").write_text(text)
    files = {}
    for path in sorted(making.rglob("*")):
        if path.is_file():
            name = path.relative_to(making).as_posix()
            files[name] = File(bytes=path.stat().st_size, sha256=sha256_of(path))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    index = Index(created=now, versions=tuple(held), files=files)
    write_json(making / INDEX, index.model_dump(mode="json"))
    (making / SIGNATURE).write_bytes(signing().sign((making / INDEX).read_bytes()))
    return index


def _pinned(directory: Path) -> list[Exported]:
    """Return the stages that a pipeline's directory pins, and the judge that judged it."""
    pipeline = read_pipeline(directory)
    found = [
        Exported(role="stage", name=stage.name, number=stage.version, digest=stage.sha256)
        for stage in pipeline.stages
    ]
    found += [
        Exported(role="base", name=base.name, number=base.version, digest=base.sha256)
        for base in dict.fromkeys(stage.adapts for stage in pipeline.stages)
        if base is not None
    ]
    evaluation = directory / "evaluation.json"
    if not evaluation.is_file():
        return found
    judge = Evaluation.model_validate_json(evaluation.read_bytes()).judge
    if judge is not None:
        name, _, number = judge.version.partition(":")
        found.append(Exported(role="judge", name=name, number=int(number), digest=judge.sha256))
    return found


def _data(version: Version, directory: Path) -> dict[str, Any]:
    """Return what the data was: its name and identity, and where it is prepared here its header, without captions."""
    from data.catalog import CatalogError, prepared

    found: dict[str, Any] = {"identity": version.tags.get("atelier.data_identity")}
    if not (directory / "recipe.json").is_file():
        return found
    name = Recipe.model_validate_json((directory / "recipe.json").read_bytes()).data.name
    found["name"] = name
    try:
        ready = prepared(name, settings().project)
    except (CatalogError, OSError):
        return found
    if ready.identity == found["identity"]:
        facts = (
            *("modality", "image_size", "sizes", "channels", "sample_rate", "clip_samples"),
            *("vocabulary", "max_words", "attributes"),
        )
        found |= {fact: ready.header[fact] for fact in facts if fact in ready.header}
        found["rows"] = {name: split["rows"] for name, split in ready.header["splits"].items()}
    return found


def _readme(held: list[Exported], rows: list[dict[str, Any]]) -> str:
    lines = [
        f"# {held[0].ref}, exported by Atelier",
        "",
        "A pipeline version with its stages and judge, as they were published. Take it in with:",
        "",
        "    atelier import DIR",
        "",
        "Every file is listed in index.json with its sha256, and index.json is signed. Weights are safetensors.",
        "",
        "| what | version there | sha256 |",
        "|---|---|---|",
        *(f"| {one.role} | {one.ref} | `{one.digest}` |" for one in held),
        "",
        f"ledger.json has the {len(rows)} transitions of that installation about it;",
        "data.json says what it learned from.",
    ]
    return "\n".join(lines) + "\n"


def import_folder(folder: Path, trust: str = "") -> Imported:
    """Check an exported folder whole, then publish its versions under the digests that they had.

    Nothing is parsed before the signature and the hash of every file are right, and nothing is published or trusted
    before all of it is what an export holds; a second import changes nothing.

    Args:
        folder: What `export` wrote.
        trust: A signer's fingerprint to trust from when the import succeeded.

    Raises:
        Untrusted: a wrong signature, or a signer that is not known; the message has the command that trusts it.
        ExchangeError: a link, an extra, missing or altered file (named), or too much of anything.
        IntegrityError: a version inside is not what its own manifest says.
        DocumentError: a file that is not JSON, or is nested too deeply.
    """
    present = _present(folder)
    content, signature = (_bounded(folder, present, name) for name in (INDEX, SIGNATURE))
    signer = signing().verify(content, signature, INDEX)
    _check_trust(folder, signer, trust)
    try:
        index = Index.model_validate_json(content)
    except ValidationError as error:
        raise ExchangeError(f"{folder / INDEX} is not an index: {_first(error)}") from None
    state = settings().state
    state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="import-", dir=state) as private:
        # what is checked is what is published: the folder may be changed meanwhile
        safe = Path(private)
        _copy(folder, present, index, safe)
        _check_versions(index, safe)
        _check_documents(index, safe)
        _check_pins(index, safe)
        _check_stages(index, safe)
        imported = _publish(index, safe, signer)
    if trust:
        signing().trust(signer, actor())
    return imported


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _first(error: ValidationError) -> str:
    """Return where a document is wrong first, and why."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])} {first['msg']}".strip()


def _check_trust(folder: Path, signer: str, trust: str) -> None:
    if trust and trust != signer:
        raise ExchangeError(f"{folder} is signed by {signer}, not by {trust}")
    if not trust and not signing().trusts(signer):
        raise ExchangeError(
            f"{folder} is signed by {signer}, whom this installation does not know; compare it with theirs, "
            f"then: atelier import {folder} --trust {signer}"
        )


def _present(folder: Path) -> dict[str, int]:
    """Return every file below the folder with its size; refuse links, odd files, and too many of them."""
    found: dict[str, int] = {}
    for path, entry in _walk(folder, folder, FOLDERS):
        name = path.relative_to(folder).as_posix()
        mode = entry.stat(follow_symlinks=False).st_mode
        if not stat.S_ISREG(mode):
            raise ExchangeError(f"{path} is a link or no plain file: refused")
        found[name] = entry.stat(follow_symlinks=False).st_size
        if len(found) > MOST_FILES + 2:
            raise ExchangeError(f"{folder} has more than {MOST_FILES} files: refused")
    if sum(found.values()) > MOST_BYTES:
        raise ExchangeError(f"{folder} has more than {MOST_BYTES} bytes: refused")
    return found


def _walk(folder: Path, top: Path, depth: int) -> "Iterator[tuple[Path, os.DirEntry[str]]]":
    if depth == 0:
        raise ExchangeError(f"{folder} lies deeper than {FOLDERS} folders below {top}: refused")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), top, depth - 1)
            else:
                yield Path(entry.path), entry


def _bounded(folder: Path, present: dict[str, int], name: str) -> bytes:
    if name not in present:
        raise ExchangeError(f"{folder} has no {name}: it is not an export, or not a whole one")
    if present[name] > MOST_INDEX:
        raise ExchangeError(f"{folder / name} has {present[name]} bytes, at most {MOST_INDEX}")
    with (folder / name).open("rb") as file:
        return file.read(MOST_INDEX)


def _copy(folder: Path, present: dict[str, int], index: Index, safe: Path) -> None:
    """Copy every listed file while hashing it; refuse the first that is missing, extra or altered."""
    if odd := sorted((present.keys() - {INDEX, SIGNATURE}) ^ index.files.keys()):
        side = "missing" if odd[0] in index.files else "not in the index"
        raise ExchangeError(f"{folder / odd[0]} is {side}: refused")
    for name, facts in index.files.items():
        source, target = folder / name, safe / name
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
        digest, size = hashlib.sha256(), 0
        with os.fdopen(descriptor, "rb") as reading, target.open("xb") as writing:
            while size <= facts.bytes and (part := reading.read(1 << 20)):
                digest.update(part)
                size += len(part)
                writing.write(part)
        if (size, digest.hexdigest()) != (facts.bytes, facts.sha256):
            raise ExchangeError(f"{source} was altered: its sha256 is not the index's")


def _check_versions(index: Index, safe: Path) -> None:
    """Check that the sealed directories are whole, of permitted files, and nothing else is there."""
    roles = [one for one in index.versions if one.role == "pipeline"]
    if len(roles) != 1 or index.versions[0].role != "pipeline":
        raise ExchangeError(f"{INDEX} must name one pipeline, first; it names {len(roles)}")
    extra = {"README.md", "data.json", "ledger.json"}
    if missing := sorted(extra - index.files.keys()):
        raise ExchangeError(f"{INDEX} does not list {missing[0]}: it is no whole export")
    folders = {name.split("/")[1] for name in index.files.keys() - extra if name.count("/") > 1}
    outside = [name for name in index.files.keys() - extra if name.split("/")[0] != "versions"]
    if outside or folders != {one.digest for one in index.versions}:
        raise ExchangeError(f"{INDEX} lists files of no version: {sorted(outside) or 'versions'}")
    for one in index.versions:
        _check_version(one, safe / "versions" / one.digest)


def _check_version(one: Exported, folder: Path) -> None:
    """Check that one sealed directory may be published as what it is listed as."""
    manifest = verify(folder, one.digest)
    for name in manifest["files"]:
        if Path(name).suffix not in PUBLISHABLE:
            raise ExchangeError(f"{one.ref}: {name} may not be published: refused")
        if name.endswith(".safetensors"):
            _check_weights(folder / name)
    kind = "pipeline" if one.role == "pipeline" else "model"
    if missing := sorted(NEEDED[kind] - manifest["files"].keys()):
        raise ExchangeError(f"{one.ref} has no {missing[0]}: it is no {kind}")
    if not NAME_OF_MODEL.fullmatch(one.name) or manifest.get("kind") != kind:
        raise ExchangeError(f"{one.ref} is no {kind} that could be published: refused")
    for fact in LINEAGE:
        if len(str(manifest.get(fact, ""))) > LONGEST_FACT:
            raise ExchangeError(f"{one.ref}: {fact} in its manifest is too long: refused")


def _check_pins(index: Index, safe: Path) -> None:
    """Check that the folder holds just the versions that its pipeline pins."""
    try:
        held = _pinned(safe / "versions" / index.versions[0].digest)
    except ValueError as error:
        raise ExchangeError(f"the pipeline pins what is no version: {_one_line(error)}") from None
    pinned = {(one.role, one.name, one.digest) for one in held}
    listed = {(one.role, one.name, one.digest) for one in index.versions[1:]}
    if pinned != listed:
        wrong = sorted(name for _, name, _ in pinned ^ listed)
        raise ExchangeError(f"{INDEX} and pipeline.json do not name the same versions: {wrong[0]}")


def _check_weights(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except SafetensorError as error:
        raise IntegrityError(f"{path.name} is not safetensors: {error}") from None


def _check_documents(index: Index, safe: Path) -> None:
    """Check that every JSON file can be read, and that those which are known are what they are to be."""
    for name in index.files:
        if name.endswith(".json"):
            read_json(safe / name)
    _ledger_rows(safe)
    pipeline = safe / "versions" / index.versions[0].digest
    for name, kind in DOCUMENTS.items():
        if not (pipeline / name).is_file():
            continue
        try:
            kind.model_validate_json((pipeline / name).read_bytes())
        except ValidationError as error:
            raise ExchangeError(f"{index.versions[0].ref}: {name}: {_first(error)}") from None


def _ledger_rows(safe: Path) -> list[dict[str, Any]]:
    """Return the rows of ledger.json that `verify` asks of an imported version."""
    try:
        rows = LEDGER.validate_json((safe / "ledger.json").read_bytes())
    except ValidationError as error:
        raise ExchangeError(f"ledger.json has a row that is none: {_first(error)}") from None
    return [row.model_dump(mode="json") for row in rows]


def _check_stages(index: Index, safe: Path) -> None:
    """Check that each stage and the judge is a network of ours, that its weights fit it, and that the stages fit.

    The network is built without memory for its weights; its class comes from our own table of families.
    """
    import torch
    from safetensors import safe_open

    from models import FAMILIES, build
    from models.parts.lora import own

    pipeline = Pipeline.model_validate_json(
        (safe / "versions" / index.versions[0].digest / "pipeline.json").read_bytes()
    )
    for one in index.versions[1:]:
        folder = safe / "versions" / one.digest
        document = read_json(folder / "config.json")
        family = document.get("family") if isinstance(document, dict) else None
        if not isinstance(family, str) or (one.role != "judge" and family not in FAMILIES):
            raise ExchangeError(
                f"{one.ref} is of family {family!r}, which is none of ours: refused"
            )
        try:
            with torch.device("meta"):
                wanted = {name: list(t.shape) for name, t in own(build(document)).items()}
        except UNBUILDABLE as error:
            raise ExchangeError(f"{one.ref} cannot be built: {_one_line(error)}") from None
        with safe_open(folder / "model.safetensors", framework="numpy") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        if odd := sorted(
            name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
        ):
            raise ExchangeError(
                f"{one.ref}: its weights are not those of its network: {odd[0]} is "
                f"{found.get(odd[0], 'missing')}, not {wanted.get(odd[0], 'there')}"
            )
    folders = [_weights(stage, safe / "versions") for stage in pipeline.stages]
    check_interfaces(list(zip(pipeline.stages, folders, strict=True)))
    check_fit(pipeline)


def _weights(stage: PinnedStage, versions: Path) -> list[Path]:
    """Return the folders of a stage's weights, as `Registry.weights`.

    Raises:
        ExchangeError: it adapts another version than the pipeline says.
    """
    directory = versions / stage.sha256
    adapter = read_json(directory / "config.json").get("lora")
    named, pinned = adapter and adapter.get("digest"), stage.adapts and stage.adapts.sha256
    if named != pinned:
        raise ExchangeError(
            f"{stage.name} adapts {named or 'nothing'}, but the pipeline pins {pinned or 'nothing'} for it"
        )
    return [versions / pinned, directory] if pinned else [directory]


def _publish(index: Index, safe: Path, signer: str) -> Imported:
    """Publish stages and judge, then the pipeline; what has its digest here already stays as it is."""
    known: dict[tuple[str, str], Version] = {}
    published: list[str] = []
    for one in (*index.versions[1:], index.versions[0]):
        found = registry().by_digest(one.name, one.digest)
        if found is None:
            tags = {"atelier.imported_from": signer, "atelier.imported_as": one.ref}
            if one.role == "pipeline":
                stages = (
                    known[(v.name, v.digest)].ref for v in index.versions if v.role == "stage"
                )
                tags["atelier.stages"] = " ".join(stages)
            directory = safe / "versions" / one.digest
            found = registry().publish(one.name, directory, key=f"import/{one.digest}", tags=tags)
            published.append(found.ref)
        known[(one.name, one.digest)] = found
    pipeline = known[(index.versions[0].name, index.versions[0].digest)]
    if "atelier.imported_from" in pipeline.tags and not imported_rows(pipeline.digest).is_file():
        write_json(imported_rows(pipeline.digest), _ledger_rows(safe))
    return Imported(pipeline, published, signer)
