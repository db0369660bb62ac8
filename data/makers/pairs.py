"""A user's own pairs of lines: what is read and what is written for it, such as a sentence and its translation.

Two files that are aligned line by line, `NAME.source` and `NAME.target`, or one `NAME.tsv` of lines
`source<TAB>target`; each may be packed (.gz). A folder may hold several: those called train, val and test are the
splits, and train is among them; one alone is split by the hash of its pairs. The endings can be others, such as the
languages `en` and `de`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from data.makers import Made, MakerError, Sample, Split, TextEntry, text_made
from data.makers.files import SPLITS, lines_of
from data.modalities.text import record_bytes

Ending = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,40}$")]


class Config(TextEntry):
    """The entry of params.yaml."""

    maker: Literal["pairs"]
    source: Ending = "source"  # how the files of the sources end
    target: Ending = "target"
    test: str | None = None  # the name of the test files, where there are several


@dataclass(frozen=True, slots=True)
class Aligned:
    """Files whose lines belong together: a source and a target, or one with tabs."""

    name: str
    files: tuple[Path, ...]
    split: Split | None


def made(config: Config, project: Path) -> Made:
    """Return the pairs.

    Raises:
        MakerError: no such files, or files of different lengths (both are named).
    """
    chosen = [(one, _lines(one)) for one in _chosen(project / config.path, config)]
    return text_made(_samples(chosen), config)


def _chosen(path: Path, config: Config) -> list[Aligned]:
    """Return the aligned files, one a split."""
    if path.is_file() and path.name.removesuffix(".gz").endswith(".tsv"):
        if config.test is not None:
            raise MakerError(f"{path} is one file, there are no files called {config.test}")
        return [Aligned(path.name.partition(".")[0], (path,), None)]
    if not path.is_dir():
        raise MakerError(f"no folder or .tsv file {path}: give your pairs with --path")
    found = dict(_aligned(path, config))
    if not found:
        raise MakerError(
            f"{path} has neither NAME.{config.source} with NAME.{config.target} nor NAME.tsv"
            " (.gz too): name the endings with --source and --target"
        )
    if len(found) == 1 and config.test is None:
        return [Aligned(name, files, None) for name, files in found.items()]
    chosen: dict[Split, Aligned] = {}
    for name, files in found.items():
        split = SPLITS.get(name.lower()) or ("test" if name.lower().startswith("test") else None)
        if split == "test" and config.test not in {None, name}:
            continue
        if split is None:
            raise MakerError(f"{path}: call the files train, val and test, not {name!r}")
        if split in chosen:
            raise MakerError(
                f"{path} has {chosen[split].name} and {name} for {split}: say which with --test"
            )
        chosen[split] = Aligned(name, files, split)
    if "train" not in chosen:
        raise MakerError(f"{path} has no files called train")
    if config.test is not None and "test" not in chosen:
        raise MakerError(f"{path} has no files called {config.test}")
    return list(chosen.values())


def _aligned(folder: Path, config: Config) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Yield the folder's names, each with its two files or its one."""
    for path in sorted(folder.iterdir()):
        ending = path.name.removesuffix(".gz")
        if ending.endswith(".tsv"):
            yield ending.removesuffix(".tsv"), (path,)
        elif ending.endswith(f".{config.source}"):
            name = ending.removesuffix(f".{config.source}")
            target = f"{name}.{config.target}"
            both = [folder / target, folder / f"{target}.gz"]
            other = next((one for one in both if one.is_file()), None)
            if other is None:
                raise MakerError(f"{path} has no {target} beside it")
            yield name, (path, other)


def _lines(one: Aligned) -> list[tuple[int, bytes, bytes]]:
    """Return (line number, source, target), undecoded."""
    first, *other = (list(lines_of(file)) for file in one.files)
    if other:
        if len(first) != len(other[0]):
            raise MakerError(
                f"{one.files[0]} has {len(first)} lines, {one.files[1]} {len(other[0])}:"
                " every line needs its partner"
            )
        return [(n, source, target) for (n, source), (_, target) in zip(first, *other, strict=True)]
    found = []
    for number, line in first:
        source, tab, target = line.partition(b"\t")
        if not tab or b"\t" in target:
            raise MakerError(
                f"{one.files[0]}:{number}: {line.count(bytes([9]))} tabs, one between source and"
                " target is needed"
            )
        found.append((number, source, target))
    return found


def _samples(chosen: list[tuple[Aligned, list[tuple[int, bytes, bytes]]]]) -> Iterator[Sample]:
    for one, lines in chosen:
        for number, source, target in lines:
            file = f"{one.name}:{number}"
            try:
                pair = [("source", source.decode().strip()), ("target", target.decode().strip())]
            except UnicodeDecodeError as error:
                problem = f"not valid UTF-8: byte {error.start} of the line"
                yield Sample(file, b"", split=one.split, problem=problem)
                continue
            yield Sample(file, record_bytes(pair), split=one.split)
