"""Recordings of speech: the layouts that people have, what is refused in them, and batches of unequal rows."""

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from data.loaders import DatasetError, Loader, facts_of, modality_of, sounds, utterances
from data.makers import MakerError, speech
from data.makers.speech_layouts import Said, laid_out
from data.modalities.speech import levelled, trimmed
from data.reading.order import bucketed
from models.text_to_speech.front_end import Spoken
from tests.data import speech_kit as kit
from tests.data.prepare_kit import prepare, refused, sound_file

HERE = Path()
WORDS = kit.SENTENCES


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.ljspeech(tmp_path_factory.mktemp("speech") / "lj")


@pytest.fixture(scope="module")
def prepared(source: Path) -> Path:
    return prepare(source.parent, {"maker": "speech", "path": str(source)})


def test_a_folder_like_ljspeech_works_as_it_is(prepared: Path) -> None:
    assert modality_of(prepared) == "speech"
    assert facts_of(prepared) == {
        "sample_rate": 8000,
        "most_seconds": 30.0,
        "speakers": ("speaker",),
        "attributes": (("speaker", ("speaker",)),),
    }
    rows = [row for split in ("train", "validation", "test") for row in utterances(prepared, split)]
    found = {text: (len(sound), speaker) for sound, text, speaker in rows}
    said = [*(text.lower() for text in WORDS[:-1]), f'{WORDS[-1]} "So"']
    assert found == {
        text: (round((0.7 + 0.04 * number) * 8000), "speaker") for number, text in enumerate(said)
    }
    with pytest.raises(DatasetError, match="has modality speech, not audio"):
        sounds(prepared, "test")


@pytest.mark.parametrize(
    ("write", "first"),
    [
        (kit.ljspeech, Said("wavs/LJ-00.wav", "she has two cats.")),
        (kit.vctk, Said("wav48_silence_trimmed/p225/p225_000_mic1.flac", WORDS[0], "p225")),
        (kit.common_voice, Said("clips/en_0.mp3", f'The "{WORDS[0]}', "cdcdcdcd")),
        (kit.audio_folder, Said("0.wav", WORDS[0], "0")),
        (kit.labelled, Said("0.wav", WORDS[0], "ann", "train")),
        (kit.beside, Said("ann/one/0.wav", WORDS[0], "ann")),
        (kit.digits, Said("recordings/0_ann_0.wav", "zero", "ann")),
    ],
)
def test_each_layout_is_found_by_itself(
    write: Callable[[Path], Path], first: Said, tmp_path: Path
) -> None:
    found = laid_out(write(tmp_path), None, {})
    assert found[0] == first
    assert len(found) == {kit.ljspeech: 24, kit.digits: 12}.get(write, 6)
    assert all((tmp_path / one.file).is_file() for one in found)


def test_an_audio_folder_keeps_its_splits_and_mp3_is_read(tmp_path: Path) -> None:
    found = laid_out(kit.audio_folder(tmp_path / "a", ("train", "dev", "test")), None, {})
    assert [(one.file, one.split) for one in found[::2]] == [
        ("dev/1.wav", "validation"), ("test/2.wav", "test"), ("train/0.wav", "train"),
    ]  # fmt: skip
    folder = kit.common_voice(tmp_path / "cv")
    ready = prepare(tmp_path, {"maker": "speech", "path": str(folder)})
    assert facts_of(ready)["speakers"] == ("abababab", "cdcdcdcd")
    assert facts_of(ready)["sample_rate"] == 16000
    assert {speaker for _, _, speaker in utterances(ready, "train")} == {"abababab", "cdcdcdcd"}


def test_spoken_digits_are_texts_speakers_and_classes(tmp_path: Path) -> None:
    folder = kit.digits(tmp_path / "d", of=8)
    entry = {
        "maker": "speech",
        "path": str(folder / "recordings"),
        "pattern": "{digit}_{speaker}_{index}.wav",
        "test": {"index": ["0"]},
    }
    ready = prepare(tmp_path, entry)
    classes = (("text", ("zero", "one", "two")), ("speaker", ("ann", "bob")))
    assert facts_of(ready)["attributes"] == classes
    assert sorted((text, speaker) for _, text, speaker in utterances(ready, "test")) == sorted(
        (text, speaker) for text in ("zero", "one", "two") for speaker in ("ann", "bob")
    )
    batch = Loader(ready, "test", batch_size=6).batch(0)
    assert torch.equal(batch["attributes"][:, 1], batch["speaker"])


def test_what_is_wrong_with_a_list_is_said_with_its_line(tmp_path: Path) -> None:
    folder = kit.ljspeech(tmp_path)
    (folder / "wavs" / "LJ-07.wav").unlink()
    with pytest.raises(MakerError, match=r"no such file 'wavs/LJ-07.wav' in .*"):
        made(folder)
    path = folder / "metadata.csv"
    for text, told in (
        ("a|b\nc|d|e|f\n", r"metadata.csv:2: 4 fields, expected id\|text or id\|text\|normalised"),
        ("../a|b\n", r"metadata.csv:1: '../a' does not stay inside the folder"),
        ("file_name,speaker\na.wav,x\n", "metadata.csv:2: no column of normalized_text, text, tra"),
        ("text,speaker\na,x\n", "metadata.csv:2: no column of .*; it has text, speaker"),
        ("file_name,text\na.wav\n", "metadata.csv:2: not as many values as columns"),
        ("file_name,text\n", "metadata.csv lists no sound"),
        ("file_name,text,split\na.wav,b,c\n", "metadata.csv:2: split 'c' is none of train"),
    ):
        path.write_text(text)
        with pytest.raises(MakerError, match=told):
            made(folder)
    path.write_bytes(b"a|\xff\n")
    with pytest.raises(MakerError, match="as UTF-8"):
        made(folder)
    path.unlink()
    with pytest.raises(MakerError, match=r"laid out in no way that is known: metadata.csv of id"):
        made(folder)
    with pytest.raises(MakerError, match=r"no folder .*none: give the folder of your recordings"):
        made(folder / "none")
    with pytest.raises(MakerError, match="told by a field of --pattern: give one"):
        made(folder, test={"index": ("0",)})


def test_bad_recordings_are_refused_one_by_one(tmp_path: Path) -> None:
    folder = kit.ljspeech(tmp_path / "lj")
    wavs = folder / "wavs"
    listed = (folder / "metadata.csv").read_text()
    text = listed.splitlines()
    text[1] = "LJ-01||"
    (folder / "metadata.csv").write_text("\n".join(text))
    sound_file(wavs / "LJ-02.wav", level=4)
    sound_file(wavs / "LJ-03.wav", level=0)
    content = (wavs / "LJ-04.wav").read_bytes()
    (wavs / "LJ-04.wav").write_bytes(content[:40] + struct.pack("<I", 10**6) + content[44:])
    (wavs / "LJ-05.wav").write_bytes(b"RIFF\x10\0\0\0WAVEfmt \x04\0\0\0abcd")
    (wavs / "LJ-06.wav").write_bytes((wavs / "LJ-07.wav").read_bytes())
    sound_file(wavs / "LJ-08.wav", 0.05)
    sound_file(wavs / "LJ-09.wav", 2.5)
    (wavs / "LJ-10.wav").write_bytes(b"")
    sound_file(wavs / "LJ-11.wav", 1.9, hertz=99)
    told = "\n".join(refused(tmp_path, {"maker": "speech", "path": str(folder), "most_seconds": 2}))
    for line in (
        "wavs/LJ-01.wav: no transcript: say what is spoken, or take it out of the list",
        "wavs/LJ-02.wav: clipped: ",
        "wavs/LJ-03.wav: silent: its peak is 0.00000 of full scale",
        "wavs/LJ-04.wav: truncated WAV (cannot be decoded fully)",
        "wavs/LJ-05.wav: damaged WAV (cannot be decoded fully)",
        "wavs/LJ-07.wav: duplicate of wavs/LJ-06.wav",
        "wavs/LJ-08.wav: 0.05 s, between 0.1 and 2 s are needed: cut it or change most_seconds",
        "wavs/LJ-09.wav: 2.50 s, between 0.1 and 2 s are needed",
        "wavs/LJ-10.wav: empty file",
        "expectation 'decodes fully' is broken by 3 of 24 samples",
    ):
        assert line in told
    assert "LJ-11" not in told


def test_a_text_that_cannot_be_of_its_sound_is_refused(tmp_path: Path) -> None:
    folder = kit.ljspeech(tmp_path / "lj")
    rows = (folder / "metadata.csv").read_text().splitlines()
    rows[0] = f"LJ-00|{'far too much ' * 20}|"
    rows[23] = "LJ-23|a|a"
    sound_file(folder / "wavs" / "LJ-23.wav", 1.6, hertz=80)
    (folder / "metadata.csv").write_text("\n".join(rows))
    told = "\n".join(refused(tmp_path, {"maker": "speech", "path": str(folder)}))
    assert "LJ-00.wav: 0.0027 s a character, between 0.02 and 1.5 are needed: is the tran" in told
    assert "LJ-23.wav: 1.6 s a character" in told


def test_a_speaker_with_next_to_nothing_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    lines = ["file_name,text,speaker"]
    for number in range(12):
        kit.tone(folder / f"{number}.wav", number, 20.0 if number else 0.11)
        text = "a long text, so that its pace is that of people " if number else "oh"
        lines.append(f'{number}.wav,"{text}",{"ann" if number else "bob"}')
    (folder / "labels.csv").write_text("\n".join(lines))
    told = "\n".join(refused(tmp_path, {"maker": "speech", "path": str(folder)}))
    assert "0.wav: speaker 'bob' has 0.1 s to learn from, 0.00" in told


def written(x_T: "np.ndarray[Any, Any]", rate: int, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, x_T, rate, format="WAV", subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("rate", [8000, 44_100, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_width_rate_and_stereo_is_the_same_sound(
    subtype: str, rate: int, channels: int
) -> None:
    def sine(at: int) -> "np.ndarray[Any, Any]":
        return 0.5 * np.sin(2 * np.pi * 440 * np.arange(at) / at)

    content = written(np.stack([sine(rate)] * channels, 1), rate, subtype)
    settings = {"sample_rate": 8000, "trim": None, "loudness": None}
    wave = np.frombuffer(kind().pack(content, settings), "<i2") / 2**15
    assert len(wave) == 8000
    assert np.abs(wave - sine(8000))[200:-200].max() < (0.01 if subtype == "PCM_U8" else 0.001)


def kind() -> Any:
    from data.modalities import modality

    return modality("speech")


def test_silence_is_cut_and_loudness_made_equal_where_asked_for() -> None:
    quiet = np.random.default_rng(0).normal(0, 3, 8000)
    tone = 3000 * np.sin(np.arange(4000) / 5)
    wave = np.concatenate([quiet, tone, quiet]).astype(np.int16)
    found = trimmed(wave, 8000, 40)
    assert 4000 <= len(found) <= 4000 + 2 * (400 + 80)
    assert np.abs(wave[8000 - 400 : 8000]).max() < 20
    assert np.array_equal(found, wave[8000 - 400 : 8000 - 400 + len(found)])
    loud = levelled(found, -20.0) / 2**15
    assert float(np.sqrt(np.square(loud).mean())) == pytest.approx(0.1, rel=1e-3)
    assert np.abs(levelled(wave, -6.0) / 2**15).max() == pytest.approx(0.891, abs=1e-3)
    silence = np.zeros(100, np.int16)
    assert np.array_equal(levelled(trimmed(silence, 8000, 40), -20.0), silence)


def test_batches_hold_rows_of_similar_length_with_silence_behind(prepared: Path) -> None:
    encode = Spoken(speakers=("speaker",)).encode
    loader = Loader(prepared, "train", batch_size=4, encode=encode)
    known = {text: sound for sound, text, _ in utterances(prepared, "train")}
    tokens = {tuple(encode([text])[0].tolist()): text for text in known}
    for step in range(4):
        batch = loader.batch(step)
        longest = int(batch["length"].max())
        assert batch["sound"].shape == (4, longest)
        assert batch["sound"].dtype == torch.float32
        assert {batch[name].dtype for name in ("length", "tokens", "token_length", "speaker")} == {
            torch.int64
        }
        assert not batch["sound"][torch.arange(longest) >= batch["length"][:, None]].any()
        assert batch["tokens"].shape[1] == int(batch["token_length"].max())
        for row in range(4):
            told = tokens[tuple(batch["tokens"][row, : batch["token_length"][row]].tolist())]
            assert torch.equal(batch["sound"][row, : batch["length"][row]], known[told])
        again = Loader(prepared, "train", batch_size=4, encode=encode).batch(step)
        assert all(torch.equal(again[name], batch[name]) for name in batch)


def test_exchanged_texts_leave_the_speakers_with_their_sounds(tmp_path: Path) -> None:
    ready = prepare(tmp_path, {"maker": "speech", "path": str(kit.digits(tmp_path / "d", of=8))})
    settings: dict[str, Any] = {"batch_size": 30, "encode": Spoken().encode}
    right = Loader(ready, "train", **settings).batch(0)
    wrong = Loader(ready, "train", **settings, shuffle_captions=True).batch(0)
    for name in ("sound", "length", "speaker"):
        assert torch.equal(right[name], wrong[name])
    assert not torch.equal(right["tokens"], wrong["tokens"])
    assert torch.equal(wrong["attributes"][:, 1], wrong["speaker"])
    assert not torch.equal(right["attributes"][:, 0], wrong["attributes"][:, 0])


@hypothesis(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 5),
    world=st.integers(1, 3),
    step=st.integers(0, 12),
    window=st.sampled_from([1, 1 << 30]),
)
def test_a_step_s_rows_are_the_same_for_any_number_of_ranks(
    prepared: Path, batch: int, world: int, step: int, window: int
) -> None:
    ranks = [
        Loader(prepared, "train", batch_size=batch, rank=rank, world=world, window_bytes=window)
        for rank in range(world)
    ]
    alone = Loader(prepared, "train", batch_size=batch * world, window_bytes=window)
    together = [row for rank in ranks for row in rank.batch(step)["length"].tolist()]
    assert together == alone.batch(step)["length"].tolist()
    walked = [row for rank in ranks for part in rank.once() for row in part["length"].tolist()]
    assert sorted(walked) == sorted(len(sound) for sound, _, _ in utterances(prepared, "train"))


@given(rows=st.integers(1, 400), size=st.integers(1, 9), first=st.integers(0, 50))
def test_an_order_by_lengths_is_an_order_of_the_same_rows(rows: int, size: int, first: int) -> None:
    lengths = np.random.default_rng(rows).integers(1, 1000, rows)
    order = np.random.default_rng(size).permutation(rows)
    found = bucketed(order.copy(), lengths[order], size, first, np.random.default_rng(0))
    assert sorted(found.tolist()) == list(range(rows))
    again = bucketed(order.copy(), lengths[order], size, first, np.random.default_rng(0))
    assert np.array_equal(found, again)
    head = -first % size
    if size > 1 and rows > 20 * size:
        batches = lengths[found][head : head + 16 * size].reshape(-1, size)
        at_random = lengths[order][head : head + 16 * size].reshape(-1, size)
        assert np.ptp(batches, axis=1).mean() < np.ptp(at_random, axis=1).mean()


def made(folder: Path, **settings: Any) -> Any:
    return speech.made(speech.Config(maker="speech", path=folder, **settings), HERE)


def test_a_separator_inside_a_transcript_ends_no_line(tmp_path: Path) -> None:
    said = "one\u2028two\x85three"  # JSON allows it, str.splitlines does not
    kit.tone(tmp_path / "a.wav", 0, 0.5)
    kit.tone(tmp_path / "wavs" / "a.wav", 0, 0.5)
    line = json.dumps({"file_name": "a.wav", "text": said}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(f"{line}\n")
    assert [one.text for one in laid_out(tmp_path, None, {})] == [said]
    (tmp_path / "metadata.csv").write_text(f"a|{said}\n")
    assert laid_out(tmp_path, None, {}) == [Said("wavs/a.wav", said)]


def test_spoken_names_may_be_of_mp3s(tmp_path: Path) -> None:
    for word in ("one", "two"):
        sound_file(tmp_path / f"{word}_ann_0.mp3", kind="MP3")
    assert [(one.file, one.text, one.speaker) for one in laid_out(tmp_path, None, {})] == [
        ("one_ann_0.mp3", "one", "ann"),
        ("two_ann_0.mp3", "two", "ann"),
    ]


def test_a_transcript_with_half_a_character_is_told(tmp_path: Path) -> None:
    kit.tone(tmp_path / "a.wav", 0, 0.5)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.wav", "text": "so \\ud83d"}\n')
    with pytest.raises(MakerError, match=r"a.wav: 'so \\ud83d' is no UTF-8"):
        prepare(tmp_path, {"maker": "speech", "path": str(tmp_path)})
