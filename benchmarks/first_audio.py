"""How soon a text is heard: time to the first audio of /v1/audio/speech, against the whole, by the number of sentences.

`python -m benchmarks.first_audio [--rounds 7]` serves Matcha `base` and Vocos `small` (untrained: that costs the same;
phonemes last 80 ms) in this process, one thread, and asks by the openai client over HTTP. A row a text: milliseconds to
the first bytes of sound and to the last ones, of a chunked answer; medians.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import openai
import torch
from torch import nn

from models import trainable
from models.family import Family
from tests.services.conftest import Workshop
from tests.services.served_kit import listening

SENTENCE: Final = "The quick brown fox jumps over the lazy dog by the river. "
COUNTS: Final = (1, 4, 16)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        workshop.cache.mkdir()
        workshop.publish_wired("story", {"acoustic": acoustic(), "vocoder": network("vocos")})
        stage = workshop.stage(threads=1)
        with listening(workshop.gateway(stage)) as url:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="-")
            print("| sentences | format | first audio | all of it | seconds of sound |")
            print("|---|---|---|---|---|")
            for count in COUNTS:
                for kind in ("pcm", "mp3"):
                    _tell(client, count, kind, rounds)
        stage.close()


def network(family: str) -> Family:
    """Return an untrained network of 8 kHz."""
    torch.manual_seed(0)
    cls = trainable(family)
    model = cls(cls.Config())
    assert isinstance(model, Family)
    return model.eval()


def acoustic() -> Family:
    """Return an untrained Matcha whose phonemes last eight frames."""
    model: Any = network("matcha")
    *_, last = (one for one in model.durations.modules() if isinstance(one, nn.Linear | nn.Conv1d))
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(torch.tensor(8.0).log1p())
    found: Family = model
    return found


def _tell(client: openai.OpenAI, count: int, kind: Any, rounds: int) -> None:
    """Print a row; the first round warms up."""
    firsts, wholes, size = [], [], 0
    for number in range(rounds + 1):
        began = time.perf_counter()
        create = client.audio.speech.with_streaming_response.create
        asked: Any = {"seed": number}
        with create(
            model="story",
            input=(SENTENCE * count).strip(),
            voice="alloy",
            response_format=kind,
            extra_body=asked,
        ) as answer:
            parts = answer.iter_bytes()
            size = len(next(parts))
            first = time.perf_counter() - began
            size += sum(map(len, parts))
        if number:
            firsts.append(first)
            wholes.append(time.perf_counter() - began)
    seconds = f"{size / 16000:.1f}" if kind == "pcm" else ""
    first, whole = (1000 * statistics.median(one) for one in (firsts, wholes))
    print(f"| {count} | {kind} | {first:.0f} ms | {whole:.0f} ms | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
