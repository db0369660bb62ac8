"""Sentences beside their peers: what an independent recogniser understands, how good it sounds, and what it costs.

`python -m benchmarks.sentences CORPUS ACOUSTIC VOCODER --out OUT [--count 100]` says the sentences of CORPUS/unseen.txt
(`benchmarks.sentence_corpus`) by the acoustic model and the vocoder in these folders of runs (.atelier/runs/IDENTITY:
the end of a training, or the averaged weights of its newest checkpoint), by the corpus's own voice, there and back
through its mels (copy-synthesis), and by flite, espeak-ng (`apt-get install flite espeak-ng`) and piper. One thread.

A row a system: word error rate of Whisper tiny.en and DNSMOS with 95 % intervals (bootstrap over sentences),
CPU-seconds a second of sound and characters a CPU-second of one sentence after the other, starts of programs included,
and how many streams a core can feed at real time: ours 16 rows at a time. All is brought to 16 kHz and to one loudness
before it is heard. A system whose program is missing has a row that says so. OUT keeps the sounds and what was heard of
each: the same bytes are not heard again. Whisper, DNSMOS and piper are in .venv-sentences, made by uv from
sentences.txt.
"""

import argparse
import hashlib
import json
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file
from scipy.signal import resample_poly
from torch import Tensor

from benchmarks.clients import environment
from benchmarks.sentence_corpus import RATE, speak
from benchmarks.word_errors import errors, interval
from data import loaders
from flows.training.run_folder import RunFolder
from flows.training.spec import TrainingSpec
from flows.training.starting import config_of
from models import trainable
from models.family import Family
from models.request import Request
from models.text_to_speech.griffin_lim import GriffinLim

HERE: Final = Path(__file__).parent
LOUDNESS: Final = -26.0  # dB of full scale, root mean square
PROGRAMS: Final[Mapping[str, tuple[str, ...]]] = {
    "flite, kal16": ("flite", "-voice", "kal16", "-t", "{text}", "-o", "{file}"),
    "flite, slt": ("flite", "-voice", "slt", "-t", "{text}", "-o", "{file}"),
    "espeak-ng, en-us": ("espeak-ng", "-v", "en-us", "-w", "{file}", "{text}"),
}
AT_ONCE: Final = 16
FIT: Final = 200  # of the corpus's sounds that Griffin-Lim counts

System = Callable[[Mapping[Path, str]], list[float]]
"""Writes each text's sound as a WAV file; returns the CPU-seconds of each."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("corpus", "acoustic", "vocoder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of systems' names")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    texts = (asked.corpus / "unseen.txt").read_text().splitlines()[: asked.count]
    ours = Ours(asked.acoustic, asked.vocoder, asked.corpus)
    systems: dict[str, System] = {
        "corpus's own voice (festival)": _festival,
        "copy-synthesis": lambda files: ours.copied(files, ours.vocoder, asked.out),
        "copy-synthesis, Griffin-Lim": lambda files: ours.copied(files, ours.baseline, asked.out),
        "ours": lambda files: ours.said(files, ours.vocoder),
        "ours, Griffin-Lim": lambda files: ours.said(files, ours.baseline),
        **{name: _by(command) for name, command in PROGRAMS.items()},
        "piper, joe": _piper,
    }
    print(
        f"acoustic: step {ours.steps[0]}, vocoder: step {ours.steps[1]}; {len(texts)} sentences\n"
    )
    print(
        "| system | word error rate | DNSMOS, overall | DNSMOS, P.808 | real-time factor | characters/s | streams |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, system in systems.items():
        if not asked.only or any(name.startswith(one) for one in asked.only):
            folder = asked.out / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            print(_row(name, folder, system, texts, ours), flush=True)


def _row(name: str, folder: Path, system: System, texts: Sequence[str], ours: "Ours") -> str:
    """Return a system's row, of what it says now, or said when it was asked before."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {folder / f"{number:03d}.wav": text for number, text in enumerate(texts)}
    try:
        spent = system(files)
    except FileNotFoundError as error:
        return f"| {name} | not installable here: {error.filename} |"
    for file in files:
        _levelled(file)
    heard = _heard(folder, list(files))
    wrong = np.array([errors(text, one["text"]) for text, one in zip(texts, heard, strict=True)])
    seconds = sum(soundfile.info(file).duration for file in files)
    cells = [name, interval(wrong, 100, " %")]
    for kind in ("ovrl_mos", "p808_mos"):
        cells.append(interval(np.array([(one[kind], 1) for one in heard]), 1, ""))
    if spent:
        factor = sum(spent) / seconds
        streams = 1 / (ours.batched_factor(texts) if name == "ours" else factor)
        cells += [f"{factor:.4f}", f"{sum(map(len, texts)) / sum(spent):.0f}", f"{streams:.0f}"]
    return f"| {' | '.join(cells)} |"


class Ours:
    """An acoustic model, its vocoder, and Griffin-Lim in its place."""

    def __init__(self, acoustic: Path, vocoder: Path, corpus: Path) -> None:
        self.corpus = corpus
        (self.acoustic, first), (self.vocoder, second) = _opened(acoustic), _opened(vocoder)
        self.steps = first, second
        mel = self.vocoder.config.mel
        self.baseline: Family = GriffinLim(GriffinLim.Config(mel=mel, sample_rate=mel.sample_rate))
        learned = sorted((corpus / "wavs").glob("*.wav"))[:FIT]
        for start in range(0, len(learned), AT_ONCE):
            self.baseline.absorb(_batch(learned[start : start + AT_ONCE]))
        self.baseline.settle()

    def said(self, files: Mapping[Path, str], vocoder: Family) -> list[float]:
        """Say one text after the other."""
        self._made(["It is warm."], vocoder)
        spent = []
        for file, text in files.items():
            began = time.process_time()
            (sound_T,) = self._made([text], vocoder)
            spent.append(time.process_time() - began)
            soundfile.write(file, sound_T.numpy(), RATE, subtype="PCM_16")
        return spent

    def copied(self, files: Mapping[Path, str], vocoder: Family, out: Path) -> list[float]:
        """Make sound of the mels of what the corpus's own voice says."""
        own = {out / "own" / file.name: text for file, text in files.items()}
        _festival(own)
        spent = []
        for file, source in zip(files, own, strict=True):
            began = time.process_time()
            given = vocoder.given_of(_batch([source]))
            sound_T = vocoder.sample(Request(seeds=(0,), given=given))[0]
            spent.append(time.process_time() - began)
            soundfile.write(file, sound_T.numpy(), RATE, subtype="PCM_16")
        return spent

    def batched_factor(self, texts: Sequence[str]) -> float:
        """Return CPU-seconds a second of sound where 16 texts are said together."""
        began = time.process_time()
        made = self._made(texts[:AT_ONCE], self.vocoder)
        spent = time.process_time() - began
        return spent * RATE / sum(map(len, made))

    def _made(self, texts: Sequence[str], vocoder: Family) -> list[Tensor]:
        seeds = tuple(range(len(texts)))
        mel_BMF = self.acoustic.sample(Request(seeds=seeds, prompts=tuple(texts)))
        made_BT = vocoder.sample(Request(seeds=seeds, given={"mel": mel_BMF}))
        mel = vocoder.config.mel
        ends = (mel.lengths(mel_BMF) * mel.hop).tolist()
        return [made_T[:end] for made_T, end in zip(made_BT, ends, strict=True)]


def _opened(folder: Path) -> tuple[Family, int]:
    """Return the network of a run's folder, and after how many steps it is."""
    run = RunFolder(folder)
    spec = TrainingSpec.model_validate_json((folder / "spec.json").read_bytes())
    model = trainable(spec.family)(config_of(spec, loaders.facts_of(spec.prepared)))
    assert isinstance(model, Family)
    if run.final.is_dir():
        weights, step = run.final / "model.safetensors", spec.training.steps
    elif newest := run.newest():
        weights, step = newest / "average.safetensors", run.step()
    else:
        sys.exit(f"{folder} has neither an end nor a checkpoint: train it first")
    model.load_state_dict(load_file(weights))
    return model.eval(), step


def _batch(files: Sequence[Path]) -> dict[str, Tensor]:
    sounds = [torch.from_numpy(soundfile.read(one, dtype="float32")[0]) for one in files]
    return {
        "sound": torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True),
        "length": torch.tensor([len(one) for one in sounds]),
    }


def _festival(files: Mapping[Path, str]) -> list[float]:
    if shutil.which("festival") is None:
        raise FileNotFoundError(2, "", "festival")
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    before = _children()
    speak(dict(files))
    return [(_children() - before) / len(files)] * len(files)


def _by(command: Sequence[str]) -> System:
    def said(files: Mapping[Path, str]) -> list[float]:
        spent = []
        for file, text in files.items():
            before = _children()
            words = [part.format(text=text, file=file) for part in command]
            subprocess.run(words, check=True, capture_output=True)
            spent.append(_children() - before)
        return spent

    return said


def _piper(files: Mapping[Path, str]) -> list[float]:
    told = _listeners({"say": {str(file): text for file, text in files.items()}, "hear": []})
    return [one["cpu_s"] for one in told]


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _levelled(file: Path) -> None:
    """Bring a sound to 16 kHz and the common loudness."""
    x_T, rate = soundfile.read(file)
    heard_T = resample_poly(x_T, RATE, rate) if rate != RATE else x_T
    gain = 10 ** (LOUDNESS / 20) / max(1e-9, float(np.sqrt(np.mean(heard_T**2))))
    heard_T = heard_T * min(gain, 0.99 / max(1e-9, float(np.abs(heard_T).max())))
    soundfile.write(file, heard_T, RATE, subtype="PCM_16")


def _heard(folder: Path, files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return what was heard of every file; what was heard before is kept by its bytes."""
    kept_at = folder / "heard.json"
    kept: dict[str, Any] = json.loads(kept_at.read_text()) if kept_at.is_file() else {}
    digests = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    new = [file for file, digest in digests.items() if digest not in kept]
    for one in _listeners({"say": {}, "hear": new}) if new else []:
        kept[digests[one.pop("file")]] = one
    kept_at.write_text(json.dumps(kept))
    return [kept[digest] for digest in digests.values()]


def _listeners(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    python = environment(".venv-sentences", HERE / "sentences.txt") / "python"
    command = [str(python), "-W", "ignore", str(HERE / "sentence_listeners.py")]
    text = json.dumps(asked)
    ran = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]


if __name__ == "__main__":
    main()
