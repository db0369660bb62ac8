"""The four stages of preparation, as dvc.yaml runs them: `python -m data.stages make|facts|validate|shards NAME`.

data/made/NAME/samples (make) -> facts.parquet (facts) -> verdict.json (validate) -> data/prepared/NAME (shards).
"""

import atexit
import errno
import gc
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from data.makers import Made, MakerError, Sample, maker
from data.modalities import SampleError, modality
from data.params import CatalogError, entry
from infra.documents import read_json
from infra.settings import settings
from infra.storage import write_json

PART_ROWS: Final = 2048
PART_BYTES: Final = 64 << 20
EXAMPLES: Final = 24  # samples on the report
SCHEMA: Final = pa.schema(
    [
        ("index", pa.int64()),
        ("file", pa.string()),
        ("content", pa.binary()),
        ("caption", pa.string()),
        ("split", pa.string()),
        ("problem", pa.string()),
        ("attributes", pa.list_(pa.string())),
    ]
)


class Refused(ValueError):
    """Samples that break an expectation; a line for each."""


def make(name: str, project: Path) -> None:
    """Bring the samples and captions in, as found: parts of at most 64 MiB, and what the maker says of them all.

    Raises:
        MakerError: files that the dataset cannot be made from, or no sample in them.
    """
    from data.shards import write_table

    config = entry(name, project)
    made = maker(config.maker).made(config, project)
    folder = _made(name, project) / "samples"
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".samples-", dir=folder.parent))
    rows = []
    try:
        for number, part in enumerate(_parts(made.samples)):
            write_table(new / f"part-{number:05d}.parquet", part)
            rows.append(len(part))
        if not rows:
            raise MakerError(f"{name}: no {modality(made.modality).noun} in {config.path}")
        write_json(new / "made.json", _document(config.maker, made, rows))
        new.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)  # whole or not at all: two makers never mix
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _document(name: str, made: Made, rows: Sequence[int]) -> dict[str, Any]:
    return {
        "maker": name,
        "rows": list(rows),  # of each part
        "modality": made.modality,
        **made.settings,
        "attributes": [[key, list(values)] for key, values in made.attributes.items()],
        "vocabulary": list(made.vocabulary),
        "held_out": list(made.held_out),
        "captioned": made.captioned,
        "validation_rows": made.validation_rows,
    }


def facts(name: str, project: Path) -> None:
    """Look at every sample, on the Ray cluster at hand or here, and write a row of facts each."""
    from data.facts import cluster, gather, relate
    from data.shards import write_table

    folder = _made(name, project)
    made = _read_made(folder)
    kind = modality(made["modality"])
    parts = _samples(folder)
    looked, column = gather(parts, cluster(parts), made), partial(_column, folder)
    related = relate(
        looked,
        made["held_out"],
        made["validation_rows"],
        classed=bool(made["attributes"]),
        tolerant=kind.repeats > 0,
        groups=kind.groups(column, made),
    )
    found = kind.relate(related, column, made)
    for fact, values in found.items():
        place = related.schema.get_field_index(fact)
        field = related.schema.field(place)
        related = related.set_column(place, field, pa.array(values, field.type))
    write_table(folder / "facts.parquet", related)


def validate(name: str, project: Path) -> None:
    """Judge the facts; writes the report, and the verdict where they pass.

    Raises:
        Refused: an expectation is broken; expectations and rows are named, all of them in the quarantine file.
        CatalogError: there are no facts yet.
    """
    from data import report
    from data.expectations import judge, write_quarantine
    from data.facts import summary

    folder = _made(name, project)
    if not (folder / "facts.parquet").is_file():
        raise CatalogError(f"{name} has no facts here: run `atelier data prepare {name}`")
    table = pq.read_table(folder / "facts.parquet")
    verdict = judge(name, table, _read_made(folder))
    page, quarantine = report_path(name, project), quarantine_path(name, project)
    write_quarantine(quarantine, verdict)
    relative = quarantine.relative_to(project.resolve()).as_posix()
    report.write(page, verdict, summary(table), _examples(folder), relative)
    if not verdict.ok:
        lines = [f"{name} is refused", *verdict.lines()]
        lines.append(f"all of them: {relative}; report: {page}")
        raise Refused("\n".join(lines))
    write_json(folder / "verdict.json", verdict.document())


def shards(name: str, project: Path) -> None:
    """Cut the accepted samples into splits and shards."""
    from pyarrow import compute

    from data.shards import SPLITS, Header, sample_id, samples, write

    folder = _made(name, project)
    made, table = _read_made(folder), pq.read_table(folder / "facts.parquet")
    kind, attributes = modality(made["modality"]), dict(made["attributes"])
    contents = [kind.pack(content, made) for content in _column(folder, "content")]
    values = _column(folder, "attributes")
    if not kind.ordered:  # before they are columns: Arrow sorts no more than 2 GiB of them
        ids = map(sample_id, contents, table["caption"].to_pylist())
        order = [place for _, place in sorted(zip(ids, range(len(contents)), strict=True))]
        table = table.take(order)
        contents, values = ([column[place] for place in order] for column in (contents, values))
    captions, files = table["caption"].to_pylist(), table["file"].to_pylist()
    rows = samples(contents, captions, values, attributes, files, kind)
    rows = rows.append_column("split", table["split"])
    if "sizes" in made:
        rows = rows.append_column("size", table["size"])
    rows = rows.filter(compute.invert(table["left_out"]))
    splits = {
        split: rows.filter(compute.field("split") == split).drop_columns("split")
        for split in SPLITS
    }
    header = Header(
        name=name,
        maker=made["maker"],
        settings={key: made[key] for key in kind.settings if key in made},
        vocabulary=made["vocabulary"],
        max_words=max(table["words"].to_pylist()) + 1,
        attributes=attributes,
        held_out=made["held_out"],
        modality=kind.name,
    )
    write(project / "data" / "prepared" / name, header, splits, made)


def report_path(name: str, project: Path) -> Path:
    """Return where the HTML report is."""
    return (project / settings().home).resolve() / "reports" / f"{name}.html"


def quarantine_path(name: str, project: Path) -> Path:
    """Return where the broken rows are listed."""
    return project.resolve() / "data" / "quarantine" / f"{name}.csv"


def _made(name: str, project: Path) -> Path:
    return project / "data" / "made" / name


def _samples(folder: Path) -> list[Path]:
    """Return the parts in their order.

    Raises:
        CatalogError: a part is missing, or has other rows than its maker wrote.
    """
    parts = sorted((folder / "samples").glob("part-*.parquet"))
    rows = [pq.read_metadata(part).num_rows for part in parts]
    if rows != _read_made(folder).get("rows"):
        raise CatalogError(
            f"{folder / 'samples'} has parts of {rows} rows, its made.json says otherwise:"
            f" run `dvc repro --force make@{folder.name}`"
        )
    return parts


def _column(folder: Path, name: str) -> list[Any]:
    """Return a column of the samples as they were made, in order."""
    parts = (pq.read_table(part, columns=[name]) for part in _samples(folder))
    return [value.as_py() for part in parts for value in part[name]]


def _read_made(folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = read_json(folder / "samples" / "made.json")
    return made


def _parts(samples: Iterable[Sample]) -> Iterator[pa.Table]:
    """Yield the samples as tables.

    Raises:
        MakerError: a caption or an attribute that is no UTF-8; a file's name that is none is written with escapes.
    """
    rows: list[dict[str, Any]] = []
    size = 0
    for index, sample in enumerate(samples):
        file = _written(sample.file)
        if odd := [one for one in (sample.caption, *sample.attributes) if one != _written(one)]:
            raise MakerError(f"{file}: {odd[0]!r:.80} is no UTF-8: write or name it anew")
        if rows and (len(rows) >= PART_ROWS or size + len(sample.content) > PART_BYTES):
            yield pa.Table.from_pylist(rows, SCHEMA)
            rows, size = [], 0
        rows.append(
            {
                "index": index,
                "file": file,
                "content": sample.content,
                "caption": sample.caption,
                "split": sample.split,
                "problem": sample.problem,
                "attributes": sample.attributes,
            }
        )
        size += len(sample.content)
    if rows:
        yield pa.Table.from_pylist(rows, SCHEMA)


def _written(text: str) -> str:
    """Return a text as UTF-8 can have it: the name of a file may have other bytes, a text half of a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode()


def _examples(folder: Path) -> list[dict[str, Any]]:
    """Return the first samples that decode, with their captions."""
    made = _read_made(folder)
    kind = modality(made["modality"])
    found = []
    first = pq.read_table(_samples(folder)[0], columns=["content", "caption"])
    for row in islice(first.to_pylist(), 4 * EXAMPLES):
        try:
            found.append({**kind.example(row["content"], made), "caption": row["caption"]})
        except SampleError:
            continue
    return found[:EXAMPLES]


VERBS: Final = {"make": make, "facts": facts, "validate": validate, "shards": shards}


def main(arguments: Sequence[str]) -> int:
    """Run one stage in the current folder; returns the exit code."""
    if len(arguments) != 2 or arguments[0] not in VERBS:
        sys.stderr.write(f"usage: python -m data.stages {'|'.join(VERBS)} NAME\n")
        return 2
    verb, name = arguments
    try:
        VERBS[verb](name, Path.cwd())
    except (MakerError, CatalogError, Refused) as error:
        reason = str(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        reason = "no space left on the disk: free some and prepare again; nothing was published"
    else:
        return 0
    sys.stderr.write("".join(f"atelier: {line}\n" for line in reason.splitlines()))
    return 1


if __name__ == "__main__":
    atexit.register(gc.freeze)  # the end need not look at a million imported objects
    sys.exit(main(sys.argv[1:]))
