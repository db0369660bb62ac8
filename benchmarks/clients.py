"""Real clients against the gateway: `python -m benchmarks.clients` prints a table of their calls.

A gateway with a small model of each modality is served by uvicorn in this process. The official client is the project's
own; litellm, langchain-openai, instructor and lm-eval live in .venv-clients and litellm's proxy in .venv-proxy, made by
uv from clients.txt and clients_proxy.txt, since their pins are not ours. Exit code 1 where a call neither works nor is
refused with a sentence.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from tests.ports_kit import free_ports
from tests.services.clips_kit import publish_clips
from tests.services.conftest import Workshop, network
from tests.services.served_kit import publish_each_modality, with_toys
from tests.services.text_kit import gpt

HERE = Path(__file__).parent
CALLS = HERE / "client_calls.py"
PATIENCE_S = 600.0
KEY = f"sk-{secrets.token_hex(32)}"  # the proxy insists on one; the gateway has no keys
LOCAL = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # nothing is fetched
MODELS = ("talker", "writer", "reader", "digits", "voice", "moving")


@contextmanager
def gateway(folder: Path) -> Iterator[str]:
    """Yield the URL of a gateway with a model of each modality."""
    workshop = Workshop(folder)
    workshop.cache.mkdir()
    with with_toys():
        workshop.promote(workshop.publish_pipeline("shapes", network("base"), network("upscaler")))
        workshop.promote(workshop.publish_pipeline("digits", network("vae")))
        publish_each_modality(workshop)
        publish_clips(workshop)
        stage = workshop.stage()
        app = workshop.worked(workshop.gateway(stage), stage)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1"
        server.should_exit = True
        thread.join()
        stage.close()


def until(ready: Any) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE_S
    while not ready():
        if time.monotonic() > end:
            sys.exit(f"nothing is ready after {PATIENCE_S:g} s")
        time.sleep(0.1)


def environment(name: str, wanted: Path) -> Path:
    """Return the bin folder of an environment with what a file lists, made where it is not there yet."""
    folder = HERE.parent / name
    made = folder / wanted.name
    if not made.is_file() or made.read_text() != wanted.read_text():
        shutil.rmtree(folder, ignore_errors=True)
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
        python = str(folder / "bin" / "python")
        subprocess.run(
            [*uv, "pip", "install", "-q", "--python", python, "-r", str(wanted)], check=True
        )
        shutil.copy(wanted, made)
    return folder / "bin"


@contextmanager
def proxy(folder: Path, url: str) -> Iterator[str]:
    """Yield the URL of litellm's proxy before the gateway at `url`."""
    params = {"api_base": url, "api_key": "none"}
    served = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", **params}}
        for name in MODELS
    ]
    config, log = folder / "proxy.json", folder / "proxy.log"  # JSON is YAML
    settings = {"general_settings": {"master_key": KEY}, "model_list": served}
    config.write_text(json.dumps(settings))
    with httpx.Client() as client, log.open("w") as out:
        [port] = free_ports(1)
        program = environment(".venv-proxy", HERE / "clients_proxy.txt") / "litellm"
        command = [
            str(program),
            "--config",
            str(config),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        variables = {**os.environ, **LOCAL}
        process = subprocess.Popen(command, stdout=out, stderr=out, env=variables)
        address = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            if process.poll() is not None:
                sys.exit(f"the proxy ended: {log.read_text()[-2000:]}")
            try:
                return client.get(f"{address}/health/liveliness").status_code == 200
            except httpx.HTTPError:
                return False

        try:
            until(answers)
            yield f"{address}/v1"
        finally:
            process.terminate()
            process.wait()


def tokenizer(folder: Path) -> Path:
    """Return a folder with the writer's tokenizer, as transformers reads it."""
    folder.mkdir()
    (folder / "tokenizer.json").write_text(gpt().config.tokenizer)
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


def asked(python: Path, client: str, url: str) -> list[dict[str, str]]:
    """Return what came of a client's calls."""
    bundled = python.parent.parent.glob("lib/*/site-packages/litellm/litellm_core_utils/tokenizers")
    local = {"TIKTOKEN_CACHE_DIR": str(next(bundled, "")), **LOCAL}
    variables = {**os.environ, **local, "OPENAI_API_KEY": KEY}
    quiet = "ignore:The Sora API"  # theirs ends, ours does not
    command = [str(python), "-W", quiet, str(CALLS), client, url]
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        lines.append({"client": client, "call": "start", "outcome": "fails", "says": "see above"})
    return lines


def shown(one: dict[str, str]) -> str:
    """Return a row of the table."""
    outcome, says = one["outcome"], " ".join(one["says"].split()).replace("|", "/")
    if outcome == "refused":
        told = re.search(r"'message': (['\"])(.*?)\1, 'type'", says)
        outcome = (
            f"refused: {told[2] if told else re.sub(r'^.*?(Exception|400) - ', '', says)[:200]}"
        )
    elif outcome == "fails":
        outcome = f"fails: {says[:200]}"
    return f"| {one['client']} | `{one['call']}` | {outcome} |"


def main() -> None:
    """Ask with every client and print the table."""
    others = environment(".venv-clients", HERE / "clients.txt") / "python"
    ours, found = Path(sys.executable), list[dict[str, str]]()

    def ask(python: Path, client: str, url: str) -> None:
        lines = asked(python, client, url)
        print("\n".join(shown(one) for one in lines), flush=True)
        found.extend(lines)

    print("| client | call | outcome |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name, gateway(Path(name)) as url:
        ask(ours, "openai", url)
        os.environ["TOKENIZER"] = str(tokenizer(Path(name) / "tokenizer"))
        for client in ("litellm", "langchain-openai", "instructor", "lm-eval"):
            ask(others, client, url)
        with proxy(Path(name), url) as through:
            ask(ours, "litellm proxy", through)
    faults = sum(one["outcome"] == "fails" for one in found)
    print(f"\n{len(found)} calls, {faults} neither work nor are refused with a sentence")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
