"""Answers are kept where the recipe asks for it, as they were answered, and only so many."""

import base64
from pathlib import Path
from typing import Any

import pytest

from infra.receipts import receipts
from services.media import answer_log
from services.media.answer_log import Samples


def test_a_share_of_the_answers_in_production_is_kept_with_their_receipts(
    workshop: Any, networks: Any, ask: Any
) -> None:
    base = networks("base")
    for name, share in (("keeping", 1.0), ("silent", 0.0)):
        version = workshop.publish_pipeline(name, base, sample=share)
        for place in ("production", "staging"):
            workshop.promote(version, place)
    stage = workshop.stage()
    app = workshop.gateway(stage)

    def draw(model: str) -> list[bytes]:
        body = {"model": model, "prompt": "a small red circle", "seed": 3, "n": 2}
        answer = ask(app, "POST", "/v1/images/generations", json=body).json()
        return [base64.b64decode(entry["b64_json"]) for entry in answer["data"]]

    answered = draw("keeping")
    draw("silent")
    draw("keeping@staging")
    stage.close()
    kept = sorted(
        path
        for name in ("keeping", "silent")  # the workshop is others', too
        for path in (workshop.folder / "samples" / name).rglob("*.png")
    )
    assert {path.parent.name for path in kept} == {"keeping"}
    assert sorted(path.read_bytes() for path in kept) == sorted(answered)
    assert receipts.read(kept[0]).prompt == "a small red circle"


def test_the_oldest_answers_go_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_log, "MOST", 20)
    keeper = Samples(tmp_path)
    for number in range(200):
        keeper.keep("shapes", 1.0, str(number).encode())
    kept = {int(path.read_bytes()) for path in (tmp_path / "shapes").glob("*.png")}
    assert len(kept) < 20 + answer_log.PRUNE_EVERY
    assert min(kept) > 100


def test_a_folder_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    (tmp_path / "shapes").write_text("in the way")
    Samples(tmp_path).keep("shapes", 1.0, b"picture")
