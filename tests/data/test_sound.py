import io
import shutil
import struct
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from data import stages
from data.loaders import DatasetError, Loader, facts_of, modality_of, records, sounds
from data.makers import DIGITS, MakerError, labelled_audio, vowels
from data.modalities import SampleError
from data.modalities.audio import decode
from infra.media.sounds import wav
from infra.storage import IntegrityError
from services.media.codecs import MediaError, learned_sound
from tests.data.prepare_kit import prepare, refused, sound_file

HERE = Path()
SPEAKERS = ("ann", "bob")
PATTERN = "{digit}_{speaker}_{index}.wav"
ENTRY: dict[str, Any] = {
    "maker": "labelled-audio",
    "pattern": PATTERN,
    "test": {"index": ["0", "1"]},
    "clip_samples": 2600,
}


def spoken(folder: Path) -> Path:
    """Write 2 speakers' 3 digits, ten times each, every one another tone."""
    folder.mkdir()
    pitch = iter(range(120, 2000, 7))
    for digit in range(3):
        for speaker in SPEAKERS:
            for index in range(10):
                path = folder / f"{digit}_{speaker}_{index}.wav"
                sound_file(path, 0.1 + 0.02 * index, hertz=next(pitch))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoken(tmp_path_factory.mktemp("spoken") / "wav")


@pytest.fixture(scope="module")
def prepared(source: Path) -> Path:
    return prepare(source.parent, ENTRY | {"path": str(source)})


def test_names_are_labels_and_some_are_only_tested(prepared: Path) -> None:
    sound, length, captions, attributes = sounds(prepared, "test")
    assert sound.shape == (12, 2600)
    assert sorted(set(length.tolist())) == [800, 960]
    assert set(captions) == {f"{DIGITS[d]} {speaker}" for d in range(3) for speaker in SPEAKERS}
    facts = facts_of(prepared)
    assert facts == {
        "sample_rate": 8000,
        "clip_samples": 2600,
        "vocabulary": ("ann", "bob", "one", "two", "zero"),
        "max_words": 3,
        "attributes": (("digit", ("zero", "one", "two")), ("speaker", SPEAKERS)),
    }
    for caption, row in zip(captions, attributes.tolist(), strict=True):
        assert caption == f"{DIGITS[row[0]]} {SPEAKERS[row[1]]}"
    assert [len(sounds(prepared, split)[0]) for split in ("train", "validation")] == [46, 2]
    assert modality_of(prepared) == "audio"
    page = stages.report_path("mine", prepared.parents[2]).read_text()
    assert 'src="data:audio/wav;base64,UklGR' in page
    with pytest.raises(DatasetError, match="has modality audio, not text"):
        records(prepared, "train")


def test_batches_have_sound_and_length_and_silence_behind(prepared: Path) -> None:
    def words(captions: list[str]) -> torch.Tensor:
        return torch.tensor([[len(word) for word in caption.split()] for caption in captions])

    loader = Loader(prepared, "train", batch_size=loader_rows(prepared), encode=words)
    batch = loader.batch(0)
    assert set(batch) == {"sound", "length", "tokens", "attributes"}
    assert batch["sound"].dtype == torch.float32
    assert batch["length"].dtype == torch.int64
    places = torch.arange(2600)
    assert not batch["sound"][places >= batch["length"][:, None]].any()
    assert 0.49 < float(batch["sound"].abs().max()) < 0.51
    sound, _, captions, _ = sounds(prepared, "train")
    known = {row.numpy().tobytes(): caption for row, caption in zip(sound, captions, strict=True)}
    found = [known[row.numpy().tobytes()] for row in batch["sound"]]
    assert torch.equal(batch["tokens"], words(found))
    again = Loader(prepared, "train", batch_size=loader_rows(prepared), shuffle_captions=True)
    assert torch.equal(again.batch(0)["sound"], batch["sound"])
    assert not torch.equal(again.batch(0)["attributes"], batch["attributes"])


def loader_rows(prepared: Path) -> int:
    return Loader(prepared, "train", batch_size=1).rows


@hypothesis(max_examples=25, deadline=None)
@given(batch=st.integers(1, 9), world=st.integers(1, 3), window=st.sampled_from([1, 1 << 30]))
def test_ranks_are_disjoint_and_walk_over_every_sound_once(
    prepared: Path, batch: int, world: int, window: int
) -> None:
    ranks = [
        Loader(prepared, "train", batch_size=batch, rank=rank, world=world, window_bytes=window)
        for rank in range(world)
    ]
    alone = Loader(prepared, "train", batch_size=batch * world, window_bytes=window)
    together = torch.cat([rank.batch(5)["sound"] for rank in ranks])
    assert torch.equal(together, alone.batch(5)["sound"])
    walked = torch.cat([part["sound"] for rank in ranks for part in rank.once()])
    assert sorted(map(bytes, walked.numpy())) == sorted(
        map(bytes, sounds(prepared, "train")[0].numpy())
    )


def test_an_altered_shard_of_sound_is_found(prepared: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mine"
    shutil.copytree(prepared, copy)
    shard = copy / "train-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"train-00000.parquet was altered"):
        sounds(copy, "train")


def test_bad_sounds_are_refused_one_by_one(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wav"
    shutil.copytree(source, folder)
    cut = folder / "0_ann_2.wav"
    cut.write_bytes(cut.read_bytes()[:900])
    sound_file(folder / "0_ann_3.wav", level=0)
    shutil.copy(folder / "0_ann_4.wav", folder / "0_ann_5.wav")
    sound_file(folder / "0_ann_6.wav", 0.4)
    sound_file(folder / "0_ann_7.wav", level=4)
    (folder / "0_ann_8.wav").write_bytes(b"<html>")
    (folder / "0_ann_9.wav").write_bytes(b"")
    sound_file(folder / "0_bob_2.wav", 0.005)
    sound_file(folder / "0_bob_3.wav", channels=3)
    told = "\n".join(refused(tmp_path, ENTRY | {"path": str(folder)}))
    for line in (
        "0_ann_2.wav: truncated WAV (cannot be decoded fully)",
        "0_ann_3.wav: silent: its peak is 0.00000 of full scale",
        "0_ann_5.wav: duplicate of 0_ann_4.wav",
        "0_ann_6.wav: 3200 samples, 0.40 s, at most 2600: cut it or raise clip_samples",
        "0_ann_7.wav: clipped: ",
        "0_ann_8.wav: not a sound that can be read (WAV, FLAC, OGG, MP3)",
        "0_ann_9.wav: empty file",
        "0_bob_2.wav: 40 samples: shorter than 10 ms",
        "0_bob_3.wav: 3 channels, at most 2",
    ):
        assert line in told


def decoded(content: bytes) -> Any:
    return decode(content, 8000).wave


def uploaded(content: bytes) -> Any:
    return np.rint(learned_sound(content, 8000) * 2**15).astype(np.int16)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_a_cut_file_is_never_taken_for_a_shorter_one(
    tmp_path: Path, kind: str, share: float
) -> None:
    content = sound_file(tmp_path / "a", 0.6, kind=kind).read_bytes()
    assert len(decode(content, 8000).wave) == 4800
    with pytest.raises(SampleError, match=rf"(truncated|damaged) {kind}"):
        decode(content[: int(share * len(content))], 8000)
    with pytest.raises(MediaError, match=r"cut short|not a sound that can be read"):
        learned_sound(content[: int(share * len(content))], 8000)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0])
@pytest.mark.parametrize("whole", [0xFFFFFFFF, 0, 36])
@pytest.mark.parametrize("read", [decoded, uploaded])
def test_a_wav_that_came_through_a_pipe_is_read_to_its_end(
    read: Any, length: int, whole: int
) -> None:
    wave = np.arange(-400, 400, dtype=np.int16)
    content = bytearray(wav(wave, 8000))
    assert content[36:40] == b"data"
    struct.pack_into("<I", content, 4, whole)
    struct.pack_into("<I", content, 40, length)
    assert np.array_equal(read(bytes(content)), wave)


def test_ffmpeg_s_own_stream_is_read_to_its_end() -> None:
    class Pipe(io.RawIOBase):
        """What cannot be gone back in."""

        def __init__(self) -> None:
            self.content = b""

        def writable(self) -> bool:
            return True

        def write(self, part: Any) -> int:
            self.content += bytes(part)
            return len(part)

    pipe, wave = Pipe(), (9000 * np.sin(np.arange(2000) / 5)).astype(np.int16)
    with av.open(pipe, "w", format="wav") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert struct.pack("<I", 0xFFFFFFFF) in pipe.content[:100]
    assert np.array_equal(decoded(pipe.content), wave)
    assert np.array_equal(uploaded(pipe.content), wave)


def test_a_sound_without_samples_is_not_taken_for_a_stream() -> None:
    content = wav(np.zeros(0, np.int16), 8000)
    more = content + b"LIST" + struct.pack("<I", 4) + b"INFO"
    whole = more[:4] + struct.pack("<I", len(more) - 8) + more[8:]
    assert len(decoded(whole)) == 0


@hypothesis(max_examples=60, deadline=None)
@given(place=st.integers(0, 299), value=st.integers(0, 255))
def test_damaged_bytes_are_a_sound_or_a_reason(place: int, value: int) -> None:
    content = bytearray(wav(np.arange(-50, 78, dtype=np.int16), 8000))
    content[place % len(content)] = value
    with suppress(SampleError):
        assert decode(bytes(content), 8000).wave.dtype == np.int16


@given(levels=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=50))
def test_sixteen_bits_at_the_rate_stay_as_they_are(levels: list[int]) -> None:
    wave = np.array(levels, np.int16)
    assert np.array_equal(decode(wav(wave, 8000), 8000).wave, wave)


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone_keeps_pitch_and_level_at_another_rate(
    tmp_path: Path, rate: int, channels: int
) -> None:
    path = sound_file(tmp_path / "a.wav", 1.0, hertz=440, rate=rate, channels=channels)
    found = decode(path.read_bytes(), 8000)
    assert (found.rate, found.channels, len(found.wave)) == (rate, channels, 8000)
    spectrum = np.abs(np.fft.rfft(found.wave[800:7200] / 2**15 * np.hanning(6400)))
    assert abs(int(spectrum.argmax()) * 8000 / 6400 - 440) < 2
    assert abs(float(np.abs(found.wave[800:7200]).max()) / 2**15 - 0.5) < 0.01


def test_an_endless_sound_is_not_decoded() -> None:
    content = bytearray(wav(np.zeros(8, np.int16), 8000))
    content[24:28] = struct.pack("<I", 1)  # Hz
    with pytest.raises(SampleError):
        decode(bytes(content)[:20] + bytes(content)[20:] * 400, 8000)


def made(folder: Path, **settings: Any) -> list[tuple[str, str, str | None]]:
    entry = {"maker": "labelled-audio", "path": folder, **settings}
    found = labelled_audio.made(labelled_audio.Config.model_validate(entry), HERE)
    return [(sample.file, sample.caption, sample.split) for sample in found.samples]


def test_a_list_has_texts_attributes_and_splits(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        sound_file(tmp_path / f"{name}.wav")
    (tmp_path / "labels.csv").write_text(
        "file_name,text,speaker,split\n"
        "a.wav,Turn LEFT,Ann,train\nb.wav,ann,ann,test\nc.wav,stop,Bob B.,validation\n"
    )
    assert made(tmp_path) == [
        ("a.wav", "turn left ann", "train"),
        ("b.wav", "ann", "test"),
        ("c.wav", "stop bob-b", "validation"),
    ]


def test_each_attribute_is_of_its_own_column(tmp_path: Path) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    lines = ["file_name,text,caller,called"]
    for number in range(40):
        sound_file(folder / f"{number}.wav", hertz=200 + 7 * number)
        caller, called = (("ann", "bob"), ("bob", "ann"))[number % 2]
        text = ("dog", "hot dog")[number // 2 % 2]
        lines.append(f"{number}.wav,{text},{caller},{called}")
    (folder / "labels.csv").write_text("\n".join(lines))
    entry = {"maker": "labelled-audio", "path": str(folder), "clip_samples": 2600}
    prepared = prepare(tmp_path, entry)
    names = dict(facts_of(prepared)["attributes"])
    assert names == {
        "text": ("dog", "hot dog"),
        "caller": ("ann", "bob"),
        "called": ("ann", "bob"),
    }
    _, _, captions, attributes = sounds(prepared, "train")
    for caption, row in zip(captions, attributes.tolist(), strict=True):
        values = (v[place] for v, place in zip(names.values(), row, strict=True))
        assert caption == " ".join(values)


def test_labels_in_names_are_read_however_their_accents_are_composed(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        sound_file(tmp_path / unicodedata.normalize(form, f"é_{form}.wav"))
    assert {caption for _, caption, _ in made(tmp_path, pattern="{vowel}_{index}.wav")} == {"é"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,text\n", r"labels.csv:1: no column `file_name`; it has name, text"),
        ("file_name,text\n", r"labels.csv lists no sound"),
        ("file_name,text\na.wav\n", r"labels.csv:2: not as many values as columns"),
        ("file_name,text\n../a.wav,x\n", r"labels.csv:2: '../a.wav' does not stay inside"),
        ("file_name,text,who\na.wav,x,\n", r"labels.csv:2: no who"),
        ("file_name,text,split\na.wav,x,dev\n", r"labels.csv:2: split 'dev' is none of train"),
    ],
)
def test_a_bad_line_of_a_list_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(MakerError, match=message):
        made(tmp_path)


def test_a_folder_like_ljspeech_is_told_who_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "LJ Speech"
    folder.mkdir()
    (folder / "metadata.csv").write_text("b|Two|two\n")
    with pytest.raises(MakerError, match=r"prepare speech --path '.*LJ Speech'` reads it as it is"):
        made(folder)


def test_a_bad_pattern_or_name_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        MakerError, match=r"has no labels.csv: list every file .* or give a --pattern"
    ):
        made(tmp_path)
    with pytest.raises(MakerError, match=r"no folder .*/none: give the folder of your sounds"):
        made(tmp_path / "none")
    with pytest.raises(MakerError, match=r"has no file that ends in .wav, .flac, .ogg"):
        made(tmp_path, pattern=PATTERN)
    sound_file(tmp_path / "7_ann.wav")
    with pytest.raises(MakerError, match=r"7_ann.wav is not named like \{digit\}_\{speaker\}_"):
        made(tmp_path, pattern=PATTERN)
    with pytest.raises(MakerError, match="has no field 'take' to test by"):
        made(tmp_path, pattern=PATTERN, test={"take": ["1"]})
    with pytest.raises(MakerError, match="needs different fields"):
        made(tmp_path, pattern="{index}.wav")
    assert made(tmp_path, pattern="{digit}_{speaker}.wav") == [("7_ann.wav", "seven ann", None)]


def test_vowels_repeat_for_a_seed_and_have_their_formants() -> None:
    config = vowels.Config(maker="vowels", count=48, seed=3)
    first, second = (list(vowels.made(config, HERE).samples) for _ in range(2))
    assert first == second
    assert len({sample.content for sample in first}) == 48
    assert {sum(s.caption == t.caption for t in first) for s in first} == {2}
    low, high = (
        vowels.sing(v, "low-man", 0.5, 8000, np.random.default_rng(0)) for v in ("oo", "ee")
    )

    def share(wave: Any) -> float:
        """Return how much of the energy above the first formant is at the second of "ee"."""
        power = np.square(np.abs(np.fft.rfft(wave / 2**15)))
        hertz = np.fft.rfftfreq(len(wave), 1 / 8000)
        return float(power[(hertz > 1900) & (hertz < 2600)].sum() / power[hertz > 600].sum())

    assert share(high) > 0.5 > share(low)


def test_mp3s_are_found_by_their_names_and_a_label_is_a_word(tmp_path: Path) -> None:
    sound_file(tmp_path / "one_ann_0.mp3", kind="MP3")
    assert made(tmp_path, pattern="{word}_{speaker}_{index}.mp3") == [
        ("one_ann_0.mp3", "one ann", None)
    ]
    sound_file(tmp_path / "!_ann_0.mp3", kind="MP3")
    with pytest.raises(MakerError, match=r"!_ann_0.mp3: its word '!' is no word"):
        made(tmp_path, pattern="{word}_{speaker}_{index}.mp3")
