"""The verbs as a person types them, over an installation without servers."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from flows.context import registry, signing
from flows.provenance.bundle import export as export_folder
from flows.provenance.bundle import import_folder
from infra.ledger.votes import wins
from infra.receipts.receipts import attach, read
from infra.settings import settings
from tests.command_kit import commands
from tests.flows.test_bundle import Install
from tests.flows.versions_kit import Installation

ROOT = Path(__file__).parents[2]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "flows", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200"}


def atelier(*words: str, code: int = 0) -> str:
    """Run `atelier words...`; give what it printed."""
    done = commands.run(*words, env=environment())
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed
    assert "Traceback" not in printed
    return printed


def test_a_picture_is_verified_and_drawn_again_and_a_false_receipt_fails(
    here: Installation, tmp_path: Path
) -> None:
    version = here.pipeline()
    picture = here.picture(version, tmp_path / "picture.png", epoch=here.promote(version))
    assert "picture.png: verified" in atelier("verify", str(picture))
    replayed = atelier("replay", str(picture), "-o", str(tmp_path / "again.png"))
    assert "identical: all 256 pixels" in replayed
    assert "on the CPU, since no gateway answers" in replayed
    assert read(tmp_path / "again.png").request_id == "replay"

    content = picture.read_bytes()
    false = read(content).model_copy(update={"epoch": 5, "seed": 8})
    picture.write_bytes(attach(content, false))
    refused = atelier("verify", str(picture), code=1)
    assert "NOT VERIFIED" in refused
    assert "the ledger has no row for production of toys at epoch 5" in refused
    assert re.search(r"\d+ of 256 pixels differ", atelier("replay", str(picture), code=1))


def test_votes_are_cast_on_the_page_and_the_win_rate_ends_it(here: Installation) -> None:
    first, second = here.pipeline(0), here.pipeline(1)
    with subprocess.Popen(
        command("vote", first.ref, second.ref, "--count", "4"), cwd=ROOT, env=environment(),
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as voting:  # fmt: skip
        try:
            assert voting.stdout is not None
            said = voting.stdout.readline()
            address = said.split()[2]
            origin = {"origin": address.partition("/")[0] + "//" + address.split("/")[2]}
            with httpx.Client(
                base_url=address, headers=origin, timeout=20, trust_env=False
            ) as page:
                for choice in ("alike", "left"):
                    pair = page.get("pair").json()["pair"]
                    answer = page.post("vote", json={"pair": pair, "choice": choice})
                    assert answer.status_code == 200
            voting.send_signal(signal.SIGINT)
            rest = voting.stdout.read()
            assert voting.wait(timeout=20) == 0
        finally:
            voting.kill()
    won, count = wins(settings().database, second.digest, first.digest)
    assert count == 2
    assert won in {0.5, 1.5}
    assert f"B (toys:2) won {won:g} of 2 votes against A (toys:1)" in rest
    assert "Traceback" not in rest


def test_a_version_goes_from_one_installation_to_another_by_two_commands(
    install: Install, tmp_path: Path
) -> None:
    version = install("there").pipeline()
    said = atelier("export", version.ref, str(tmp_path / "sent"))
    trusting = re.search(r"atelier import \S+ --trust \S+", said)
    assert trusting is not None
    install("here")
    refused = atelier("import", str(tmp_path / "sent"), code=1)
    assert trusting[0] in refused, "the refusal has the command in one piece"
    printed = atelier(*trusting[0].split()[1:], "--json")
    document = json.loads(printed[printed.index("{") :])
    assert document["digest"] == version.digest
    assert f"sha256 {version.digest}" in atelier("show", "toys:1")


@pytest.mark.parametrize("place", ["registry.logged", "registry.registered"])
def test_an_interrupted_import_is_finished_by_the_next(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    version = install("there").pipeline()
    export_folder(version.ref, tmp_path / "sent")
    signer = signing().fingerprint()
    install("here")
    monkeypatch.setenv("ATELIER_FAULT", f"{place}:enospc")
    with pytest.raises(OSError, match="No space left"):
        import_folder(tmp_path / "sent", signer)
    monkeypatch.delenv("ATELIER_FAULT")
    listed = json.loads(atelier("models", "--json"))
    assert len(listed) == (1 if place == "registry.registered" else 0)
    assert not signing().trusts(signer), "it is trusted when all of it is here"
    assert import_folder(tmp_path / "sent", signer).version.digest == version.digest
    assert {name: len(registry().versions(name)) for name in registry().names()} == {
        "toys": 1, "toys.base": 1, "toys.judge": 1, "toys.upscaler": 1,
    }  # fmt: skip
