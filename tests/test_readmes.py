"""Every example of every README.md: commands are the command line's own, Python runs, and answers are looked at."""

import base64
import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from data.makers import chat
from flows import recipe
from flows.__main__ import app as command_line
from infra import receipts
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
        parsed(words)
    else:
        assert Path(first).name.partition("=")[0] in NOT_OURS or first.isupper()


def parsed(words: list[str]) -> None:
    """Parse without running anything; what an example leaves open (--cron, RECIPE) may be missing."""
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


@pytest.mark.parametrize(("readme", "command"), TYPED)
def test_the_recipes_that_are_named_are_there_and_take_what_is_set(
    readme: str, command: str
) -> None:
    words = shlex.split(command)
    made = {name for found in MADE.findall((ROOT / readme).read_text()) for name in found}
    sets = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    for path in (word for word in words if re.fullmatch(r"flows/recipes/[\w-]+\.yaml", word)):
        if Path(path).stem not in made:
            recipe.load(ROOT / path, sets)


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
    generate, upscale = workshop.stage("generate"), workshop.stage("upscale")
    app = workshop.gateway(generate, upscale)
    with listening(app) as address:
        yield address
    generate.close()
    upscale.close()


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
