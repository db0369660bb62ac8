"""A corpus of sentences of one synthesised voice, as an LJSpeech-layout folder, and sentences that it has none of.

`python -m benchmarks.sentence_corpus NOVELS OUT [--hours 2.2]` speaks sentences of five of Jane Austen's novels (public
domain) by festival's voice cmu_us_slt_arctic_hts, which it brings to 16 kHz: OUT/metadata.csv of `id|text|text` and
OUT/wavs. OUT/unseen.txt has 100 sentences of the sixth novel. What was spoken is kept, so that it may be stopped and go
on. Debian has all of it: `apt-get install festival festvox-us-slt-hts`, and the novels come, without R, by `apt-get
download r-cran-janeaustenr` and `dpkg -x r-cran-janeaustenr_*.deb NOVELS`. Then `atelier data prepare sentences` reads
OUT as data/raw/sentences.
"""

import argparse
import io
import random
import re
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import soundfile
from scipy.signal import resample_poly

LIBRARY: Final = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
TEXT: Final = re.compile(rb"\x00\x04\x00\x09(.{4})", re.DOTALL)  # R's CHARSXP, and its length
UNSEEN: Final = 100
WORDS: Final = (5, 16)  # of a sentence
PLAIN: Final = re.compile(r"[A-Z][a-z]+(?: [a-zI][a-z']*|[,;] [a-zI][a-z']*| [A-Z][a-z]+)+[.?!]")
ABBREVIATED: Final = re.compile(r"\b(?:Mr|Mrs|Dr|St|Esq)\.")
RATE: Final = 16_000  # Hz
AT_ONCE: Final = 50  # sentences that a process of festival speaks
USUAL_S: Final = 3.4  # seconds of a sentence


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("novels", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hours", type=float, default=2.2)
    asked = parser.parse_args()
    tested, *learned = sorted(novels((asked.novels / LIBRARY).read_bytes()), key=len)
    chooser = random.Random(0)
    unseen = sentences(tested)
    (asked.out / "wavs").mkdir(parents=True, exist_ok=True)
    chosen = chooser.sample(unseen, UNSEEN)
    (asked.out / "unseen.txt").write_text("".join(f"{one}\n" for one in chosen))
    texts = [one for novel in learned for one in sentences(novel)]
    texts = sorted(set(texts) - set(chosen))
    chooser.shuffle(texts)
    _spoken(asked.out, texts, asked.hours * 3600)


def novels(library: bytes) -> Iterator[str]:
    """Return the texts of R's lazy-load file: packed ones, each behind four bytes of its size."""
    while library:
        unpacked = zlib.decompressobj()
        content, library = unpacked.decompress(library[4:]), unpacked.unused_data
        lines, place = [], 0
        while found := TEXT.search(content, place):
            place = found.end() + int.from_bytes(found[1])
            lines.append(content[found.end() : place].decode())
        yield "\n".join(lines)


def sentences(text: str) -> list[str]:
    """Return the plain sentences of a text, in its order, each once: nothing quoted, abbreviated or in figures."""
    flat = ABBREVIATED.sub(lambda one: one[0][:-1], re.sub(r"[_\s]+", " ", text))
    flat = re.sub(r"\bMr\b", "Mister", re.sub(r"\bMrs\b", "Missis", flat))
    parts = re.split(r"(?<=[.?!])[\"']? ", flat)
    kept = (one for one in parts if PLAIN.fullmatch(one))
    return list(dict.fromkeys(one for one in kept if WORDS[0] <= len(one.split()) <= WORDS[1]))


def _spoken(out: Path, texts: list[str], seconds: float) -> None:
    """Speak one text after the other until there are so many seconds, and list them."""
    listed, total = [], 0.0
    for first in range(0, len(texts), AT_ONCE):
        part = {
            out / "wavs" / f"s{first + number:05d}.wav": text
            for number, text in enumerate(texts[first : first + AT_ONCE])
        }
        speak({file: text for file, text in part.items() if not file.exists()})
        listed += [f"{file.stem}|{text}|{text}" for file, text in part.items()]
        total += sum(soundfile.info(file).duration for file in part)
        print(f"{len(listed)} sentences, {total / 3600:.2f} h", flush=True)
        if total >= seconds:
            break
    (out / "metadata.csv").write_text("".join(f"{line}\n" for line in listed))


def speak(texts: dict[Path, str]) -> None:
    """Write what festival's voice says as WAV files of 16 kHz."""
    if not texts:
        return
    asked = ["(voice_cmu_us_slt_arctic_hts)"]
    for file, text in texts.items():
        raw = file.with_suffix(".part").absolute()
        asked.append(f'(utt.save.wave (SynthText "{text}") "{raw}" \'riff)')
    script = "\n".join(asked)
    subprocess.run(["festival", "--pipe"], input=script, text=True, check=True)
    for file in texts:
        raw = file.with_suffix(".part")
        x_T, rate = soundfile.read(io.BytesIO(raw.read_bytes()))
        heard_T = resample_poly(x_T, RATE, rate)
        soundfile.write(file, np.clip(heard_T, -1, 1), RATE, subtype="PCM_16")
        raw.unlink()


if __name__ == "__main__":
    main()
