import json
from pathlib import Path

import pytest

from data import catalog
from flows.command_line import data_verbs


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
    assert "train 18" in capsys.readouterr().out
