"""`verify`: the verbs that walk from a file back to what made it."""

import json
from pathlib import Path

import typer

from flows.command_line.terminal import AsJson, show_json, show_table, use_stack


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (verify,):
        app.command()(verb)


def verify(file: Path, as_json: AsJson = False) -> None:
    """Read a picture's receipt and walk back to the versions, the run and the data it came from."""
    use_stack()
    from flows.workshop import registry
    from infra.receipts import read

    receipt = read(file)
    version = registry().get(receipt.version)
    if version.digest != receipt.digest:
        raise ValueError(
            f"{file} names {receipt.version} with sha256 {receipt.digest[:12]}, "
            f"but the registry's has {version.digest[:12]}: it was made elsewhere"
        )
    directory = registry().fetch(version)
    manifest = json.loads((directory / "MANIFEST.json").read_text())
    found = {
        **receipt.model_dump(mode="json"),
        "run": manifest["run_id"],
        "data_identity": manifest["data_identity"],
        "git_commit": manifest["git_commit"],
    }
    if as_json:
        show_json(found)
        return
    show_table(
        f"{file}: verified",
        ("", ""),
        [(key, value) for key, value in found.items() if key != "stages"],
    )
    show_table(
        "stages",
        ("name", "version", "sha256"),
        [(s.name, s.version, s.sha256) for s in receipt.stages],
    )
