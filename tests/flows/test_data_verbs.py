import json
from pathlib import Path
from typing import Any

import pytest

from data import catalog
from data.makers import OWN
from flows.cli import data_verbs
from infra.settings import settings


def test_the_list_of_datasets_is_numbers_and_whole_hashes_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = "0" * 32 + ".dir"
    found = catalog.Listed("toys", "folder", Path("toys"), "image", "32 px", known, {"train": 18})
    monkeypatch.setattr(catalog, "datasets", lambda _: [found])
    data_verbs.list_datasets(as_json=True)
    [told] = json.loads(capsys.readouterr().out)
    assert (told["size"], told["identity"], told["rows"]) == ("32 px", known, {"train": 18})
    data_verbs.list_datasets()
    shown = capsys.readouterr().out
    assert "train, val., test" in shown
    assert " 18 " in shown


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("text", {"path": Path("x"), "image_size": 8}, "data prepare text` takes no --image-size"),
        (
            "pairs",
            {"path": Path("x"), "sample_rate": 8000},
            "prepare pairs` takes no --sample-rate",
        ),
        ("scenes", {"tokenizer": "words:9"}, "data prepare scenes` takes no --tokenizer"),
        (
            "digits",
            {"as_name": "mine"},
            "data prepare digits` takes no --name: it is called digits",
        ),
        ("dialogues", {}, "which files\\? `atelier data prepare dialogues --path PATH`"),
        (
            "text",
            {"path": Path("x"), "tokenizer": "words:many"},
            "'words:many': give a kind and a size",
        ),
        (
            "text",
            {"path": Path("x"), "tokenizer": "signs"},
            r"datasets.x.tokenizer.kind: Input should",
        ),
        (
            "text",
            {"path": Path("x"), "tokenizer": "bytes:99"},
            r"datasets.x.tokenizer: .* at least 266",
        ),
        ("text", {"path": Path("none.txt")}, r"no file or folder .*none.txt: give your text with"),
        ("labelled-audio", {"path": Path("x")}, r"no folder .*x: give the folder of your sounds"),
    ],
)
def test_an_option_that_does_not_suit_is_refused(
    name: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        data_verbs.prepare(name, **given)


def test_the_help_names_every_kind_of_own_files() -> None:
    assert not [kind for kind in OWN if kind not in data_verbs.NAME_HELP]


def test_options_become_entries() -> None:
    assert data_verbs._tokenizer("words:2000") == {"kind": "words", "size": 2000}
    assert data_verbs._tokenizer("characters") == {"kind": "characters"}
    assert data_verbs._tested("index=0,1") == {"index": ["0", "1"]}
    assert data_verbs._tested("test_2016") == "test_2016"
    assert data_verbs._called(Path("/a/My Book.txt")) == "my-book"


def test_who_removes_a_dataset_is_told_which_recipes_learn_from_it(
    private_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipes = tmp_path / "flows" / "recipes"
    recipes.mkdir(parents=True)
    cats = "cats: {maker: folder, path: photos, image_size: 8}"
    (tmp_path / "params.yaml").write_text(f"datasets:\n  {cats}\n  dogs: {{maker: shapes}}\n")
    stages = "stages: {vae: {family: vae, training: {steps: 1}}}"
    judge = "judge: {family: attribute-judge, training: {steps: 1}, data: {name: cats}}"
    for name, data, more in (("a", "cats", ""), ("b", "dogs", judge), ("c", "dogs", "")):
        text = f"name: {name}\ndata: {{name: {data}}}\n{stages}\n{more}\n"
        (recipes / f"{name}.yaml").write_text(text)
    (recipes / "broken.yaml").write_text("cats")
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path))
    settings.cache_clear()
    data_verbs.remove("cats")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("cats is removed")
    assert [line.partition(" ")[0] for line in said[1:]] == [
        *("flows/recipes/a.yaml", "flows/recipes/b.yaml")
    ]
