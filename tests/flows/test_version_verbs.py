import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from flows import context
from flows.cli import version_verbs
from infra.registry.registry import Version
from models import FAMILIES


def test_a_version_that_stands_in_two_places_is_shown_in_both(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = Version("toy", 1, "0" * 64, "pipeline", {}, datetime.now(UTC))
    heads = [SimpleNamespace(name="toy", to_version=1, stage=s) for s in ("production", "staging")]
    registry = SimpleNamespace(names=lambda: ["toy"], versions=lambda _: [version])
    monkeypatch.setattr(version_verbs, "use_stack", lambda: None)
    monkeypatch.setattr(context, "registry", lambda: registry)
    monkeypatch.setattr(context, "ledger", lambda: SimpleNamespace(heads=lambda: heads))
    version_verbs.models(as_json=True)
    assert json.loads(capsys.readouterr().out)[0]["stands in"] == "production staging"


def test_every_family_is_listed_with_all_that_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    version_verbs.models(families=True, as_json=True)
    found = {row["family"]: row for row in json.loads(capsys.readouterr().out)}
    assert found.keys() == FAMILIES.keys()
    assert found["gpt"]["also"] == "likelihood stepwise chats recalls"
    assert found["bert"]["also"] == "embeds"
    assert found["ddpm"]["also"] == "upscales stepwise"
    reads = {name: found[name]["reads"] for name in ("gan", "pixelcnn", "wavenet", "gpt", "nade")}
    assert reads == {
        "gan": "captions",
        "pixelcnn": "captions",
        "wavenet": "captions",
        "gpt": "text",
        "nade": "",
    }
    told = {name: (found[name]["makes"], found[name]["of"]) for name in ("nade", "dalle", "vocos")}
    assert told == {"nade": ("pixels", ""), "dalle": ("codes", ""), "vocos": ("sound", "mel")}
