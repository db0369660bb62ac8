"""Every example of every README.md: commands are the command line's own, Python runs, and answers are looked at."""

import base64
import io
import json
import re
import runpy
import shlex
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.main
import yaml
from PIL import Image

from data import stages
from data.catalog import add_own
from data.makers import chat
from data.reading.splits import read_header
from flows.__main__ import app as command_line
from flows.cli import data_verbs
from flows.recipes.loader import load
from infra.media.clips import encoded
from infra.receipts import receipts
from tests.data.prepare_kit import sound_file
from tests.data.speech_kit import ljspeech
from tests.services.conftest import Workshop, network
from tests.services.served_kit import listening

ROOT = Path(__file__).parent.parent
READMES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
INLINE = re.compile(r"`(atelier [^`]+)`")
MADE = re.compile(r"^atelier recipe new (\S+)|^cp \S+ flows/recipes/(\S+)\.yaml", re.M)
SPOKEN = re.compile(r'^atelier generate chat-gpt "(?P<question>[^"]+)" +# (?P<answer>.+)$', re.M)


def blocks(kind: str) -> list[tuple[str, str]]:
    """(file, text) of every fenced example of a kind."""
    return [
        (path.relative_to(ROOT).as_posix(), text)
        for path in READMES
        for found, text in BLOCK.findall(path.read_text())
        if found == kind
    ]


def commands() -> Iterator[tuple[str, str]]:
    """(file, command line) of what is to be typed, in examples and in sentences."""
    for name, text in blocks("sh"):
        for line in text.splitlines():
            if command := line.partition("#")[0].strip():
                yield name, command
    for path in READMES:
        for text in INLINE.findall(path.read_text()):
            yield path.relative_to(ROOT).as_posix(), text.removesuffix(" ...")


TYPED = sorted(set(commands()))
NOT_OURS = ("git", "cd", "cp", "export", "prefect", "pip", "pytest", "kubectl", "ray", "helm")
TOOLS = ("pre-commit",)  # of the development group, typed with their path


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_says_what_it_is_so_that_it_is_tried(path: Path) -> None:
    """Fenced, as sh, python or yaml; what is fenced without a word is a picture of signs."""
    text = path.read_text()
    assert {kind for kind, _ in BLOCK.findall(text)} <= {"sh", "python", "yaml"}
    rest = BLOCK.sub("", text)
    typed = re.compile(r"^ *(?:(?:\S*bin/)?(?:atelier|python|git|pip) .*|make \w.*)$", re.M)
    pictures = re.findall(r"^```\n(.*?)^```", rest, re.M | re.S)
    assert not [line for one in pictures for line in typed.findall(one)]
    indented = re.findall(r"^\n {4}\S.*$", rest, re.M)
    assert not indented, "an indented block is fenced"


@pytest.mark.parametrize(("readme", "command"), TYPED)
def test_what_is_to_be_typed_is_a_command_with_its_options(readme: str, command: str) -> None:
    first, *rest = shlex.split(command)
    if first == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(rest) <= set(targets)
    elif Path(first).name == "python" and rest[:1] == ["-m"]:
        assert (ROOT / f"{rest[1].replace('.', '/')}.py").is_file() or rest[1] == "pytest"
    elif Path(first).name == "atelier":
        words = [word.partition("|")[0] for word in rest]  # one of several
        typed(words)
    else:
        assert Path(first).name.partition("=")[0] in (*NOT_OURS, *TOOLS) or first.isupper()


def typed(words: list[str]) -> dict[str, Any]:
    """Parse without running anything; what an example leaves open (--cron, RECIPE) may be missing.

    Returns what the command is given, by the names of its function's arguments.
    """
    group = typer.main.get_command(command_line)
    context = group.make_context("atelier", list(words), resilient_parsing=True)
    rest = [*context._protected_args, *context.args]
    command: Any = group
    while hasattr(command, "commands") and rest:
        assert rest[0] in command.commands, f"there is no `atelier {' '.join(words)}`"
        command, rest = command.commands[rest[0]], rest[1:]
    if not hasattr(command, "commands"):
        options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        used = {word.partition("=")[0] for word in rest if word.startswith("-")}
        assert used <= options | {"--help"}
        return dict(command.make_context("", rest, resilient_parsing=True).params)
    return {}


@pytest.mark.parametrize(("readme", "command"), TYPED)
def test_the_recipes_that_are_named_are_there_and_take_what_is_set(
    readme: str, command: str
) -> None:
    words = shlex.split(command)
    made = {name for found in MADE.findall((ROOT / readme).read_text()) for name in found}
    sets = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    for path in (word for word in words if re.fullmatch(r"flows/recipes/[\w-]+\.yaml", word)):
        if Path(path).stem not in made:
            load(ROOT / path, sets)


@pytest.mark.parametrize(("readme", "text"), blocks("yaml"))
def test_examples_of_recipes_are_parts_of_one(readme: str, text: str) -> None:
    recipes = ROOT / "flows" / "recipes"
    shown = yaml.safe_load(text)
    alike = [
        path
        for path in recipes.glob("*.yaml")
        if shown.items() <= yaml.safe_load(path.read_text()).items()
    ]
    assert alike, f"no recipe has what {readme} shows"


def photos(folder: Path, given: dict[str, Any]) -> None:
    folder.mkdir()
    lines, sizes = ["file_name,text"], (given.get("sizes") or "32x32").split(",")
    for number in range(60):
        width, height = map(int, sizes[number % len(sizes)].split("x"))
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,a {('red', 'blue')[number % 2]} flower")
    (folder / "metadata.csv").write_text("\n".join(lines))


def filmed(folder: Path, given: dict[str, Any]) -> None:
    folder.mkdir()
    lines, frames, rate = [], int(given["frames"]), float(given["frame_rate"])
    for number in range(40):
        seen = np.random.default_rng(number).integers(0, 256, (frames, 64, 64, 3), np.uint8)
        (folder / f"{number}.webp").write_bytes(encoded(seen, rate, "webp").content)
        lines.append(f"{number}.webp\ta {('red', 'blue')[number % 2]} flower\n")
    (folder / "captions.tsv").write_text("".join(lines))


def book(path: Path, _: dict[str, Any]) -> None:
    lines = (f"and on day {number} it rained , or it did not .\n" for number in range(3000))
    path.write_text("".join(lines))


def translations(folder: Path, given: dict[str, Any]) -> None:
    folder.mkdir()
    for ending, word in ((given["source"], "one dog"), (given["target"], "ein hund")):
        text = "".join(f"{word} {number}\n" for number in range(200))
        (folder / f"train.{ending}").write_text(text)


def chats(path: Path, _: dict[str, Any]) -> None:
    turns = (
        [{"role": "user", "content": f"{n} ?"}, {"role": "assistant", "content": f"{n} !"}]
        for n in range(200)
    )
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))


def recordings(folder: Path, given: dict[str, Any]) -> None:
    folder.mkdir()
    lines = ["file_name,text"]
    for number in range(60):
        name = f"{number % 3}_{('ann', 'bob')[number % 2]}_{number // 6}.wav"
        sound_file(folder / name, 0.05, hertz=100 + 5 * number)
        lines.append(f"{name},{('zero', 'one', 'two')[number % 3]}")
    if not given["pattern"]:
        (folder / "labels.csv").write_text("\n".join(lines))


def sentences(folder: Path, _: dict[str, Any]) -> None:
    ljspeech(folder)


def shards(folder: Path, given: dict[str, Any]) -> None:
    photos(folder, given)
    _, *lines = (folder / "metadata.csv").read_text().splitlines()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for name, caption in (line.split(",") for line in lines):
            tar.add(folder / name, name)
            info = tarfile.TarInfo(f"{name.partition('.')[0]}.txt")
            info.size = len(caption.encode())
            tar.addfile(info, io.BytesIO(caption.encode()))


def table(folder: Path, given: dict[str, Any]) -> None:
    photos(folder, given)
    _, *lines = [line.split(",") for line in (folder / "metadata.csv").read_text().splitlines()]
    pictures = [{"bytes": (folder / name).read_bytes(), "path": None} for name, _ in lines]
    rows = {"image": pictures, "text": [caption for _, caption in lines]}
    pq.write_table(pa.table(rows), folder / "pictures.parquet")


FILES: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "folder": photos,
    "webdataset": shards,
    "parquet": table,
    "clips": filmed,
    "text": book,
    "pairs": translations,
    "dialogues": chats,
    "labelled-audio": recordings,
    "speech": sentences,
}
"""What a user has, as data/README.md says that it lies there, by what reads it."""
OWN = [one for one in TYPED if one[1].startswith("atelier data prepare") and "--path" in one[1]]


@pytest.mark.parametrize(("readme", "command"), [one for one in OWN if "DIR" not in one[1]])
def test_files_of_ones_own_are_prepared_as_the_example_says(
    readme: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert readme
    given = typed(shlex.split(command)[1:])
    project, home = tmp_path / "project", tmp_path / "home"
    project.mkdir()
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    FILES[given["name"]](given["path"].expanduser(), given)
    (project / "params.yaml").write_text("datasets:\n  shapes: {maker: shapes}\n")
    name = given["as_name"] or "mine"
    asked = {key: value for key, value in given.items() if key not in {"name", "path", "as_name"}}
    add_own(given["name"], name, given["path"], data_verbs.settings_of(**asked), project)
    for stage in ("make", "facts", "validate", "shards"):  # as DVC does
        stages.VERBS[stage](name, project)
    header = read_header(project / "data" / "prepared" / name)
    assert {split for split, found in header["splits"].items() if found["rows"]} >= {
        "train",
        "test",
    }


def test_the_chat_example_asks_what_was_learned_and_shows_the_answer() -> None:
    found = SPOKEN.search((ROOT / "README.md").read_text())
    assert found, 'README.md has no line: atelier generate chat-gpt "QUESTION"   # ANSWER'
    answers = {record[0][1]: record[1][1] for record in chat.make(3000, 0)}
    assert answers[found["question"]] == found["answer"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a gateway with a small `shapes`."""
    workshop = Workshop(tmp_path)
    workshop.cache.mkdir()
    workshop.promote(workshop.publish_pipeline("shapes", network("base"), network("upscaler")))
    stage = workshop.stage()
    app = workshop.gateway(stage)
    with listening(app) as address:
        yield address
    stage.close()


def picture(names: dict[str, Any]) -> None:
    file = base64.b64decode(names["picture"].data[0].b64_json)
    receipt = receipts.read(file)
    assert (receipt.prompt, receipt.seed) == ("a small red circle on the left", 7)


LOOKED_AT: dict[str, Callable[[dict[str, Any]], None]] = {"picture": picture}
"""What is made of the names that an example assigns."""


@pytest.mark.parametrize(("readme", "text"), blocks("python"))
def test_python_examples_run_and_give_what_they_say(
    readme: str, text: str, served: str, tmp_path: Path
) -> None:
    assert "http://127.0.0.1:8000" in text, "an example speaks to the gateway"
    script = tmp_path / "example.py"
    script.write_text(text.replace("http://127.0.0.1:8000", served))
    names = runpy.run_path(str(script))
    looked = [look for name, look in LOOKED_AT.items() if name in names]
    assert looked, f"nobody looks at what {sorted(names)} are"
    for look in looked:
        look(names)
    names["client"].close()
