"""Vocoders side by side on real speech: what comes back from the mels of held-out sounds, and how long it takes.

`python -m benchmarks.vocoders FOLDER [--cpu-seconds 300] [--families vocos hifi-gan]` takes a folder of WAV files of 8
kHz named ..._INDEX.wav, learns from those of index 5 on for so many CPU-seconds a family (preset small, batches of 16
rows) and prints a row a system for every tenth of the rest. One thread. The real-time factor is CPU-seconds a second of
sound, of the longest row alone, the median of five.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Final

import soundfile
import torch
from torch import Tensor

from models import trainable
from models.family import Family
from models.request import Request
from models.text_to_speech.griffin_lim import GriffinLim
from models.text_to_speech.vocoder import mel_error

WINDOWS: Final = (128, 256, 512)  # samples, of the multi-resolution distance
RATE: Final = 2e-3  # of learning, the highest
ROWS: Final = 16


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cpu-seconds", type=float, default=300)
    parser.add_argument("--families", nargs="*", default=["vocos", "hifi-gan"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    files = sorted(asked.folder.glob("*.wav"))
    held_out = [one for one in files if _index(one) < 5]
    tried = _batch(held_out[::10])
    systems: dict[str, Family] = {}
    for steps in (32, 60):
        baseline = GriffinLim(GriffinLim.Config(steps=steps))
        baseline.absorb(_batch([one for one in files if _index(one) >= 5][::10]))
        baseline.settle()
        systems[f"Griffin-Lim, {steps} steps"] = baseline
    print("| system | mel error, nats | spectral distance | real-time factor |\n|---|---|---|---|")
    for name, model in systems.items():
        _tell(name, model, tried)
    learned = _batch([one for one in files if _index(one) >= 5])
    for family in asked.families:
        made, steps = _trained(family, learned, asked.cpu_seconds)
        _tell(f"{family}, {steps} steps in {asked.cpu_seconds:.0f} CPU-s", made, tried)


def _index(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _batch(files: list[Path]) -> dict[str, Tensor]:
    sounds = [torch.from_numpy(soundfile.read(one, dtype="float32")[0]) for one in files]
    length = torch.tensor([len(one) for one in sounds])
    return {
        "sound": torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True),
        "length": length,
    }


def _trained(family: str, learned: dict[str, Tensor], cpu_s: float) -> tuple[Family, int]:
    """Return a vocoder that learned for so many CPU-seconds, and how many steps that were."""
    cls = trainable(family)
    model = cls(cls.presets["small"])
    assert isinstance(model, Family)
    players = {
        name: torch.optim.AdamW(model.player_parameters(name), RATE, betas=(0.8, 0.99))
        for name in model.players
    }
    began, step = time.process_time(), 0
    while (spent := time.process_time() - began) < cpu_s:
        index = torch.randint(len(learned["length"]), (ROWS,))
        length = learned["length"][index]
        batch = {"sound": learned["sound"][index, : int(length.max())], "length": length}
        for name, optimizer in players.items():
            optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 30) * (1 - spent / cpu_s)
            optimizer.zero_grad()
            model(batch, name).total.backward()
            torch.nn.utils.clip_grad_norm_(model.player_parameters(name), 10.0)
            optimizer.step()
        step += 1
    return model.eval(), step


def _tell(name: str, model: Family, tried: dict[str, Tensor]) -> None:
    """Print a row."""
    given = model.given_of(tried)
    seeds = tuple(range(len(tried["length"])))
    made = model.sample(Request(seeds=seeds, given=given))[:, : tried["sound"].shape[1]]
    apart = statistics.mean(_apart(made, tried, window) for window in WINDOWS)
    error = mel_error(model, model.config.mel, tried).mean().item()
    long = max(range(len(seeds)), key=lambda row: int(tried["length"][row]))
    alone = Request(seeds=(0,), given={"mel": given["mel"][long : long + 1]})
    seconds = int(tried["length"][long]) / model.config.sample_rate
    factor = statistics.median(_spent(model, alone) for _ in range(5)) / seconds
    print(f"| {name} | {error:.3f} | {apart:.3f} | {factor:.4f} |", flush=True)


def _spent(model: Family, asked: Request) -> float:
    began = time.process_time()
    model.sample(asked)
    return time.process_time() - began


def _apart(made: Tensor, real: dict[str, Tensor], size: int) -> float:
    """Return spectral convergence plus the mean error of log magnitudes (Yamamoto et al. 2020, eq. 5 and 6)."""
    window, hop = torch.hann_window(size), size // 4
    ours, theirs = (
        torch.stft(one, size, hop, window=window, return_complex=True).abs().clamp(min=1e-4)
        for one in (made, real["sound"])
    )
    inside = (torch.arange(ours.shape[2]) * hop < real["length"][:, None])[:, None].float()
    difference = ((ours - theirs) * inside).square().sum((1, 2)).sqrt()
    convergence = (difference / (theirs * inside).square().sum((1, 2)).sqrt()).mean()
    log_error = ((ours.log() - theirs.log()).abs() * inside).sum() / inside.sum() / ours.shape[1]
    return float(convergence + log_error)


if __name__ == "__main__":
    main()
