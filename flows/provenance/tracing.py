"""From a picture back to what made it: version by digest, stages, what the ledger said then; and drawn again."""

import io
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows.context import actor, ledger, registry, signing
from infra.documents import read_json
from infra.pipelines import Pipeline, read_pipeline
from infra.receipts import contents, provenance
from infra.receipts.contents import LARGEST_SIDE
from infra.receipts.provenance import Check
from infra.receipts.receipts import GENERATOR, Receipt, attach, read
from infra.settings import settings
from infra.storage import MANIFEST, IntegrityError
from infra.times import utc

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from infra.ledger.ledger import Row
    from infra.registry.registry import Version

Verdict = Literal["agrees", "silent", "contradicts"]
ROUNDING: int = 1  # of 255: what another batch size or processor may change
PARTS: int = 255  # of the cube that a mesh lies in, in which its differences are told
PACKING: float = 3.0
"""Of 255, the mean over a frame: what rounding becomes where both clips are packed with loss (MP4, GIF). Frames that
differ by one level at random came back .6 apart, of noise 2.8."""


class Untraceable(ValueError):
    """The registry does not have what the receipt names, or has it otherwise."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A receipt and what this installation knows of it."""

    receipt: Receipt
    version: "Version"
    pipeline: Pipeline
    stages: "tuple[Version, ...]"  # as registered here; the numbers may differ from the receipt's
    facts: dict[str, Any]  # the version's manifest
    verdict: Verdict
    says: str  # the ledger, in a sentence

    def as_json(self) -> dict[str, Any]:
        """Return all of it as a document."""
        return {
            **self.receipt.model_dump(mode="json"),
            "version_here": self.version.ref,
            "stages_here": [stage.ref for stage in self.stages],
            "run": self.facts.get("run_id"),
            "data_identity": self.facts.get("data_identity"),
            "git_commit": self.facts.get("git_commit"),
            "imported_from": self.version.tags.get("atelier.imported_from"),
            "ledger": self.says,
        }


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked of a receipt, and what came out."""

    receipt: Receipt
    checks: tuple[Check, ...]
    found: Trace | None  # None: the registry was not reached, or has it otherwise

    @property
    def verified(self) -> bool:
        """Whether a known signer's signature holds it and nothing that was checked is wrong."""
        return all(check.passed is not False for check in self.checks)

    @property
    def says(self) -> str:
        """The outcome in a few words."""
        if not self.verified:
            return "NOT VERIFIED"
        rest = [check.name for check in self.checks if check.passed is None]
        return f"verified, but for: {', '.join(rest)}" if rest else "verified"

    def as_json(self) -> dict[str, Any]:
        """Return all of it as a document."""
        facts = self.found.as_json() if self.found else self.receipt.model_dump(mode="json")
        checks = [asdict(check) for check in self.checks]
        return {**facts, "verified": self.verified, "checks": checks}


def verify(file: Path, beside: Path | None = None, trust: str = "") -> Verification:
    """Check a receipt's signature and content, and then what registry and ledger say of what it names.

    Args:
        file: What `receipts.read` takes, an answer's JSON among it; with `beside` any file.
        beside: A file with the receipt's JSON, where it came in a header.
        trust: The fingerprint of a signer to trust from when all of it was right, as an import does.

    Raises:
        ReceiptError: no receipt that can be read.
    """
    found = _verified(file, beside, trust)
    if trust and found.verified and not signing().trusts(trust):
        signing().trust(trust, actor())
    return found


def _verified(file: Path, beside: Path | None, trust: str) -> Verification:
    from infra.registry.registry import RegistryError, Unreachable

    receipt, checks = provenance.check(file, signing(), beside, trust)
    try:
        found = _traced(receipt, file)
    except Unreachable as error:
        rest = (Check("registry", None, str(error)), Check("ledger", None, "not asked"))
        return Verification(receipt, (*checks, *rest), None)
    except (Untraceable, IntegrityError, RegistryError) as error:
        rest = (Check("registry", False, str(error)), Check("ledger", None, "not asked"))
        return Verification(receipt, (*checks, *rest), None)
    held = f"{found.version.ref} and {len(found.stages)} stages are here, their bytes as published"
    agrees = {"agrees": True, "silent": None, "contradicts": False}[found.verdict]
    rest = (Check("registry", True, held), Check("ledger", agrees, found.says))
    return Verification(receipt, (*checks, *rest), found)


def trace(file: Path) -> Trace:
    """Return what is known of the version that a receipt names, with every version's bytes verified.

    Whether the receipt itself is to be believed is `verify`'s question.

    Raises:
        ReceiptError: no receipt that can be read.
        Untraceable: a version or stage that is not in this registry, or other stages than the version pins.
        IntegrityError: a version's bytes are not what was published.
    """
    return _traced(read(file), file)


def _traced(receipt: Receipt, file: Path) -> Trace:
    version = registry().by_digest(receipt.version, receipt.digest)
    if version is None:
        raise Untraceable(
            f"{file} was made by {receipt.version} with sha256 {receipt.digest[:12]}, which this registry does not "
            "have: export it where the picture was made, then `atelier import DIR`"
        )
    directory = registry().fetch(version)
    pipeline = read_pipeline(directory)
    named = [(stage.name, stage.sha256) for stage in receipt.stages]
    pinned = [(stage.name, stage.sha256) for stage in pipeline.stages]
    if named != pinned:
        raise Untraceable(f"{file} names stages that {version.ref} does not pin: it was altered")
    stages = []
    for name, digest in pinned:
        stage = registry().by_digest(name, digest)
        if stage is None:
            raise Untraceable(f"{version.ref} pins {name} {digest[:12]}, which is not registered")
        registry().fetch(stage)
        stages.append(stage)
    facts = read_json(directory / MANIFEST)
    verdict, says = ledger_says(receipt, version)
    return Trace(receipt, version, pipeline, tuple(stages), facts, verdict, says)


def ledger_says(receipt: Receipt, version: "Version") -> tuple[Verdict, str]:
    """Return whether the ledger's row of the receipt's epoch names this version, and say it in a sentence."""
    name, place = version.name, receipt.place
    if place is None:
        return "silent", "it was asked for by number: the ledger has no say in it"
    where = f"{place} of {name} at epoch {receipt.epoch}"
    history = [row for row in ledger().history(name) if row.stage == place]
    row = next((one for one in history if one.epoch == receipt.epoch), None)
    if row is not None and row.to_digest == receipt.digest:
        if row.at > receipt.created:
            return "contradicts", (
                f"the picture is of {utc(receipt.created)}, before {version.ref} came to {where}"
                f" ({utc(row.at)})"
            )
        later = next((one for one in history if one.epoch == receipt.epoch + 1), None)
        when = utc(row.at)
        since = f"from {when} until {utc(later.at)}" if later else f"since {when}"
        return "agrees", f"the ledger names {version.ref} in {where}, {since}, by {row.actor}"
    if origin := version.tags.get("atelier.imported_from"):
        return _says_elsewhere(receipt, version, origin)
    if row is None:
        return "contradicts", f"the ledger has no row for {where}: the receipt was not made here"
    there = "nothing" if row.to_version is None else f"{name}:{row.to_version}"
    return "contradicts", f"the ledger names {there} in {where}, not {version.ref}"


def imported_rows(digest: str) -> Path:
    """Return the file that keeps the ledger rows which came with an imported version."""
    return settings().state / "imported" / f"{digest}.json"


def _says_elsewhere(receipt: Receipt, version: "Version", origin: str) -> tuple[Verdict, str]:
    """Ask the rows that the exporting installation signed; they end at the export."""
    path = imported_rows(version.digest)
    rows = read_json(path) if path.is_file() else []
    for row in rows:
        if (row["stage"], row["epoch"]) == (receipt.place, receipt.epoch):
            if row["to_digest"] == receipt.digest:
                return "agrees", (
                    f"installation {origin[:16]}, from which it was imported, had it in {receipt.place} at epoch "
                    f"{receipt.epoch} since {row['at'][:19].replace('T', ' ')} UTC, by {row['actor']}"
                )
            return "contradicts", (
                f"installation {origin[:16]}, from which it was imported, moved {receipt.place} away from it at "
                f"epoch {receipt.epoch}"
            )
    return "silent", (
        f"it was imported from installation {origin[:16]}, whose rows do not reach to epoch {receipt.epoch} of "
        f"{receipt.place}: this ledger cannot tell"
    )


@dataclass(frozen=True, slots=True)
class Replay:
    """A picture, clip, mesh or sound that was made again, beside the first."""

    picture: bytes  # PNG; MP4, GIF or WebP; GLB or OBJ; or WAV
    pixels: int  # or sound samples, or vertices
    differing: int
    most: int  # of `levels`, the largest difference
    notes: tuple[str, ...]
    noun: str = "pixels"
    levels: int = 255
    worst: float | None = None  # of a clip packed with loss: the mean difference of its worst frame

    @property
    def same(self) -> bool:
        """Whether nothing but rounding differs."""
        return self.most <= ROUNDING if self.worst is None else self.worst <= PACKING

    @property
    def says(self) -> str:
        """The comparison in a sentence."""
        if self.noun == "text":
            return "another text came" if self.differing else "identical: the same text"
        if not self.differing:
            return f"identical: all {self.pixels} {self.noun}"
        rounding = " (a rounding step)" if self.same else ""
        if self.worst is not None:
            rounding = (
                f", in the worst frame by {self.worst:.2g} on the average (packing with loss makes up to {PACKING:g} of"
                " rounding)"
            )
        many = f"{self.differing} of {self.pixels} {self.noun} differ"
        return f"{many}, by at most {self.most} of {self.levels}{rounding}"


def check_replayable(found: Trace) -> None:
    """Refuse what was made of files.

    Raises:
        Untraceable: the receipt has no more than their digests.
    """
    if found.receipt.inputs:
        raise Untraceable(
            f"it was made of {' and '.join(found.receipt.inputs)}, which the receipt names by sha256 alone: ask"
            " again with these files and the same seed"
        )


def redraw(found: Trace, kind: str = "png") -> bytes:
    """Draw a receipt's picture, clip or mesh again in this process, on the CPU; returns a file with its own receipt.

    Args:
        found: What is known of the receipt.
        kind: Of a clip's or mesh's file: "mp4", "gif" or "webp"; "glb" or "obj".
    """
    import torch

    from flows.evaluating.pipeline import draw, load_model

    receipt = found.receipt
    models = [load_model(*registry().weights(registry().fetch(one))) for one in found.stages]
    prompts = [receipt.prompt] if found.pipeline.reads_text else []
    beside: dict[str, Any] = {}
    if receipt.blend is not None:
        other, weight = receipt.blend
        beside = {"other": [other], "weight": torch.tensor([weight])}
    picture = draw(
        models,
        found.pipeline,
        prompts,
        [receipt.seed],
        called=receipt.entrance or "generate",
        beside=beside,
        options=receipt.sampling,
    )[0]
    if found.pipeline.modality == "clip":
        made = _filmed(found, picture, kind)
    else:
        made = _cut(picture, kind) if found.pipeline.modality == "mesh" else _png(picture)
    anew = {
        "generator": GENERATOR,
        "place": None,
        "epoch": 0,
        "created": datetime.now(UTC),
        "request_id": "replay",
    }
    return attach(made, provenance.sign(receipt.model_copy(update=anew), made, signing()))


def _png(picture: "Tensor") -> bytes:
    from models.judges.gallery import to_image

    image, file = to_image(picture), io.BytesIO()
    (image.convert("L") if picture.shape[0] == 1 else image).save(file, "PNG")
    return file.getvalue()


def _filmed(found: Trace, frames_FCHW: "Tensor", kind: str) -> bytes:
    import numpy as np

    from infra.media.clips import encoded

    rate = found.receipt.frame_rate or found.pipeline.rate(found.receipt.sampling)
    assert rate is not None  # a pipeline of clips has one
    levels = (frames_FCHW.clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    return encoded(levels.transpose(0, 2, 3, 1), rate, kind).content  # type: ignore[arg-type]


def _cut(volume_4RRR: "Tensor", kind: str) -> bytes:
    from infra.media.meshes import encoded, mesh_of

    return encoded(mesh_of(volume_4RRR.numpy()), kind).content  # type: ignore[arg-type]


def compare_meshes(found: Trace, first: bytes, again: bytes, *, where: str) -> Replay:
    """Return how two meshes of one receipt differ: how far each one's vertices are from the other's nearest.

    Raises:
        Untraceable: a mesh cannot be read.
    """
    import numpy as np
    from scipy.spatial import KDTree

    from infra.media.meshes import MeshError, decoded

    try:
        # a colour counts as a fourth to sixth place: black to white is as far as the cube is wide
        a, b = (
            np.hstack([one.vertices / 2, one.colours / 255]) for one in map(decoded, (first, again))
        )
    except MeshError as error:
        raise Untraceable(f"the mesh cannot be read: {error}") from None
    apart = np.concatenate([KDTree(b).query(a)[0], KDTree(a).query(b)[0]])
    most = round(PARTS * float(apart.max()))
    notes = _notes(found, again, where, differs=bool(apart.any()))
    return Replay(again, len(apart), int((apart > 0).sum()), most, notes, "vertices", PARTS)


def compare_clips(found: Trace, first: bytes, again: bytes, *, where: str) -> Replay:
    """Return how two clips of one receipt, in files of one kind, differ, and what could be the reason.

    Raises:
        Untraceable: the clips are of different sizes, or cannot be read.
    """
    import numpy as np

    from infra.media.clips import ClipError, decode, kind_of

    try:
        a, b = (decode(one).frames for one in (first, again))
        lossless = kind_of(first) == kind_of(again) == "webp"
    except ClipError as error:
        raise Untraceable(f"the clip cannot be read: {error}") from None
    if a.shape != b.shape:
        sizes = ["{0} frames of {2}x{1}".format(*one.shape) for one in (a, b)]
        raise Untraceable(f"the clip has {sizes[0]}, drawn again it has {sizes[1]}")
    difference = np.abs(a.astype(np.int16) - b.astype(np.int16))
    largest = difference.max(axis=3)
    notes = _notes(found, again, where, differs=bool(difference.any()))
    worst = None if lossless else float(difference.mean((1, 2, 3)).max())
    return Replay(
        again, largest.size, int((largest > 0).sum()), int(largest.max()), notes, worst=worst
    )


def compare_pixels(found: Trace, first: bytes, again: bytes, *, where: str) -> Replay:
    """Return how two pictures of one receipt differ, and what could be the reason.

    Raises:
        Untraceable: the pictures are of different sizes, too large or damaged.
    """
    import numpy as np

    a, b = _pixels(first), _pixels(again)
    if a.shape != b.shape:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (a.shape, b.shape)]
        raise Untraceable(f"the picture is {sizes[0]}, drawn again it is {sizes[1]}")
    difference = np.abs(a.astype(np.int16) - b.astype(np.int16)).max(axis=2)
    return Replay(
        again,
        difference.size,
        int((difference > 0).sum()),
        int(difference.max()),
        _notes(found, again, where, differs=bool(difference.any())),
    )


def compare_sounds(found: Trace, first: bytes, again: bytes, *, where: str) -> Replay:
    """Return how two sounds of one receipt differ, and what could be the reason.

    Raises:
        Untraceable: the sounds are of different lengths, or cannot be read.
    """
    import numpy as np

    if first[:4] not in {b"RIFF", b"fLaC"}:
        raise Untraceable(
            "the file is packed with loss and has no samples to compare: ask for wav or flac"
        )
    rate = found.pipeline.sample_rate or 0
    try:
        read_bytes = [contents.samples(io.BytesIO(one), rate) for one in (first, again)]
    except contents.ContentError as error:
        raise Untraceable(f"the sound cannot be compared: {error}") from None
    a, b = (np.frombuffer(one, "<i2").astype(int) for one in read_bytes)
    if a.shape != b.shape:
        raise Untraceable(f"the sound has {len(a)} samples, made again it has {len(b)}")
    difference = np.abs(a - b)
    notes = _notes(found, again, where, differs=bool(difference.any()))
    most = int(difference.max(initial=0))
    return Replay(
        again, len(a), int((difference > 0).sum()), most, notes, noun="samples", levels=65535
    )


def compare_texts(found: Trace, again: bytes, *, where: str) -> Replay:
    """Return whether a receipt's text, of which it names the sha256, came again; `again` is the answer's JSON."""
    now = read(again)
    differs = now.text_sha256 != found.receipt.text_sha256
    notes = _notes(found, again, where, differs=differs)
    return Replay(again, 1, int(differs), 2 * differs, notes, noun="text")


def _notes(found: Trace, again: bytes, where: str, *, differs: bool) -> tuple[str, ...]:
    notes = [f"drawn by {found.version.ref} {where}"]
    notes += _otherwise(found.receipt, read(again))
    if found.version.ref != found.receipt.version:
        notes.append(f"the receipt's {found.receipt.version} is {found.version.ref} here")
    then, now = found.receipt.generator or 1, read(again).generator or 1
    if differs and then != now:
        notes.append(
            f"its seed was turned into noise by generator {then}, now by {now}: the same seed gives another sample"
        )
    elif differs:
        notes.append(
            "a receipt names no device: CPU and GPU, and other library versions, round otherwise"
        )
    return tuple(notes)


def _otherwise(then: Receipt, now: Receipt) -> list[str]:
    """Return what was not the same the second time, in words."""
    notes = []
    if then.digest != now.digest:
        notes.append(f"another version drew it: {now.version} {now.digest[:12]}")
    before, after = ([(s.name, s.sha256[:12]) for s in one.stages] for one in (then, now))
    for old, new in zip(before, after, strict=False):
        if old != new:
            notes.append(f"another stage drew: {' '.join(new)}, not {' '.join(old)}")
    for field in (
        "prompt",
        "blend",
        "seed",
        "steps",
        "guidance",
        "size",
        "seconds",
        "max_tokens",
        "temperature",
        "top_k",
        "top_p",
        "stop",
        "echo",
    ):
        if getattr(then, field) != getattr(now, field):
            notes.append(f"{field} was {getattr(then, field)!r}, now {getattr(now, field)!r}")
    return notes


def _pixels(picture: bytes) -> "NDArray[np.uint8]":
    import numpy as np
    from PIL import Image

    from infra.media.pictures import BROKEN

    try:
        with Image.open(io.BytesIO(picture), formats=["PNG"]) as image:
            if max(image.size) > LARGEST_SIDE:
                wide, high = image.size
                raise Untraceable(f"the picture is {wide}x{high}, at most {LARGEST_SIDE} a side")
            return np.asarray(image.convert("RGB"))
    except Untraceable:
        raise
    except BROKEN as error:
        raise Untraceable(f"the picture cannot be read: {error}") from None


def places(version: "Version") -> "list[tuple[Row, datetime | None]]":
    """Return the ledger's rows that moved a place to this version, each with when the place moved on."""
    rows = ledger().about(version.name, version.number)
    found = []
    for row in rows:
        if row.to_version == version.number:
            next_one = (o for o in rows if o.stage == row.stage and o.epoch == row.epoch + 1)
            later = next(next_one, None)
            found.append((row, later.at if later else None))
    return found
