import csv
import gzip
import json
import os
import struct
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from data.loaders import everything, read_header
from data.makers import DIGITS, MAKERS, MakerError, digits, folder, maker, mnist, shapes
from data.makers.words import UNKNOWN, cut, normal, pieces
from data.modalities import modality
from infra.media.pictures import decode, png
from tests.data.prepare_kit import prepare

HERE = Path()


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist_folder(path: Path, zipped: bool = False) -> Path:
    path.mkdir()
    generator = np.random.default_rng(0)
    for prefix, rows in (("train", 30), ("t10k", 10)):
        for kind, array in (
            ("images-idx3", generator.integers(0, 256, (rows, 28, 28), np.uint8)),
            ("labels-idx1", np.arange(rows, dtype=np.uint8) % 10),
        ):
            content = idx(array)
            name = f"{prefix}-{kind}-ubyte"
            if zipped:
                (path / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (path / name).write_bytes(content)
    return path


def from_mnist(path: Path) -> mnist.Config:
    return mnist.Config(maker="mnist", path=path, validation=5)


def test_every_maker_has_an_entry_and_an_unknown_name_lists_them() -> None:
    assert all(maker(name).Config and maker(name).made for name in MAKERS)
    with pytest.raises(MakerError, match="'shape'; choose one of shapes, digits, mnist, folder"):
        maker("shape")


def test_an_entry_says_which_modality_its_samples_have() -> None:
    for name in ("shapes", "digits", "scenes", "numbers", "chat", "vowels"):
        module = maker(name)
        found = module.made(module.Config(maker=name), HERE)
        assert found.modality == module.Config.modality
        sample = next(iter(found.samples))
        looked = modality(found.modality).look(sample.content, found.settings)
        assert len(looked["digest"]) == 64


def test_shapes_have_every_caption_equally_often_and_repeat_for_a_seed() -> None:
    config = shapes.Config(maker="shapes", count=480, image_size=16, seed=3)
    first, second = (list(shapes.made(config, HERE).samples) for _ in range(2))
    assert first == second
    captions = [picture.caption for picture in first]
    assert {captions.count(caption) for caption in shapes.CAPTIONS} == {2}
    assert decode(first[0].content, 16, 3).width == 16


def test_digits_are_captioned_by_their_words() -> None:
    made = digits.made(digits.Config(maker="digits"), HERE)
    pictures = list(made.samples)
    assert len(pictures) == 1797
    assert [picture.caption for picture in pictures[:10]] == list(DIGITS)
    assert decode(pictures[0].content, 8, 1).pixels.max() == 239  # 15 of 16 levels


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_reads_idx_files(tmp_path: Path, zipped: bool) -> None:
    made = mnist.made(from_mnist(mnist_folder(tmp_path / "mnist", zipped)), HERE)
    pictures = list(made.samples)
    assert [picture.split for picture in pictures] == ["train"] * 30 + ["test"] * 10
    assert pictures[13].caption == "three"
    assert made.validation_rows == 5
    expected = np.random.default_rng(0).integers(0, 256, (30, 28, 28), np.uint8)
    assert (decode(pictures[7].content, 28, 1).pixels[..., 0] == expected[7]).all()


def test_mnist_reads_the_packed_binarised_file_with_its_own_splits(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (6, 784), np.uint8)
    packed = np.packbits(bits, axis=1)
    np.savez(tmp_path / "packed.npz", train=packed[:3], valid=packed[3:4], test=packed[4:])
    made = mnist.made(from_mnist(tmp_path), HERE)
    pictures = list(made.samples)
    assert [picture.split for picture in pictures] == ["train"] * 3 + ["validation"] + ["test"] * 2
    assert not made.captioned
    levels = decode(pictures[5].content, 28, 1).pixels.reshape(-1)
    assert (levels == bits[5] * 255).all()


def test_mnist_names_what_is_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(MakerError, match=r"no folder .*/nowhere: put the four MNIST IDX files"):
        mnist.made(from_mnist(tmp_path / "nowhere"), HERE)
    path = mnist_folder(tmp_path / "mnist")
    labels = path / "t10k-labels-idx1-ubyte"
    content = labels.read_bytes()
    labels.write_bytes(content[:-1])
    with pytest.raises(
        MakerError, match=r"t10k-labels-idx1-ubyte has 17 bytes, its header says 18"
    ):
        list(mnist.made(from_mnist(path), HERE).samples)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        mnist.Config(maker="mnist", path=path, validation=-1)
    labels.unlink()
    with pytest.raises(MakerError, match=rf"t10k-labels-idx1-ubyte\[.gz\] is missing in {path}"):
        mnist.made(from_mnist(path), HERE)


@hypothesis(max_examples=50, deadline=None)
@given(content=st.binary(max_size=40))
def test_an_idx_file_of_any_bytes_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("idx") / "train-labels-idx1-ubyte"
    path.write_bytes(bytes((0, 0, 8, 1)) + content)
    try:
        assert mnist.read_idx(path, 1).ndim == 1
    except MakerError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right


def pictures_in(path: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        x = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
        (path / name).write_bytes(png(x))
    return path


def listed(path: Path, kind: str, rows: list[tuple[str, str]]) -> None:
    if kind == "captions.tsv":
        (path / kind).write_text("".join(f"{file}\t{caption}\n" for file, caption in rows))
    elif kind == "metadata.jsonl":
        lines = [json.dumps({"file_name": file, "caption": text}) for file, text in rows]
        (path / kind).write_text("\n".join(lines))
    else:
        with (path / kind).open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "text"), *rows])


def made_from(path: Path) -> folder.Made:
    return folder.made(folder.Config(maker="folder", path=path), HERE)


@pytest.mark.parametrize("kind", folder.LISTS)
def test_a_folder_is_read_from_each_kind_of_list(tmp_path: Path, kind: str) -> None:
    rows = [("a.png", "My cat, sleeping"), ("in/b.png", "Zoë's well-fed DOG!")]
    pictures_in(tmp_path, [file for file, _ in rows])
    listed(tmp_path, kind, rows)
    made = made_from(tmp_path)
    found = list(made.samples)
    assert [picture.file for picture in found] == ["a.png", "in/b.png"]
    assert [picture.caption for picture in found] == ["my cat sleeping", "zoë's well-fed dog"]
    assert made.vocabulary == ["cat", "dog", "my", "sleeping", "well-fed", "zoë's"]
    assert made.attributes == {}


def test_captions_are_classes_where_each_has_pictures_enough(tmp_path: Path) -> None:
    rows = [(f"{i}.png", ("cat", "dog")[i % 2]) for i in range(16)]
    pictures_in(tmp_path, [file for file, _ in rows])
    listed(tmp_path, "captions.tsv", rows)
    assert made_from(tmp_path).attributes == {"caption": ["cat", "dog"]}
    listed(tmp_path, "captions.tsv", rows[:14])
    assert made_from(tmp_path).attributes == {}


def test_a_class_of_two_words_is_not_the_class_that_is_one_of_them(tmp_path: Path) -> None:
    rows = [(f"{i}.png", ("dog", "Hot dog")[i % 2]) for i in range(40)]
    source = pictures_in(tmp_path / "mine", [file for file, _ in rows])
    listed(source, "metadata.csv", rows)
    entry = {"maker": "folder", "path": str(source), "image_size": 9}
    prepared = prepare(tmp_path, entry)
    for split in ("train", "validation", "test"):
        _, captions, attributes = everything(prepared, split)
        values = [("dog", "hot dog")[place] for place in attributes[:, 0].tolist()]
        assert values == captions


@pytest.mark.parametrize(
    ("caption", "learned"),
    [
        ("किताब, कतब", ["किताब", "कतब"]),  # vowel signs are combining marks
        ("ก็ ก", ["ก็", "ก"]),
        ("क्\u200dष क्ष", ["क्\u200dष", "क्ष"]),  # so are joiners inside
        ("İstanbul ISTANBUL i\u0307zmir", ["istanbul", "istanbul", "izmir"]),
        ("cafe\u0301 CAFÉ", ["café", "café"]),
        ("hot_dog (1) don't", ["hot", "dog", "1", "don't"]),
    ],
)
def test_a_word_keeps_its_combining_marks(caption: str, learned: list[str]) -> None:
    assert normal(caption).split() == learned


@pytest.mark.parametrize(("listed_as", "stored_as"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_file_is_found_however_its_accents_are_composed(
    tmp_path: Path, listed_as: str, stored_as: str
) -> None:
    name = "cafés/é.png"
    pictures_in(tmp_path, [unicodedata.normalize(stored_as, name)])
    listed(tmp_path, "captions.tsv", [(unicodedata.normalize(listed_as, name), "x")])
    (picture,) = made_from(tmp_path).samples
    assert (picture.problem, bool(picture.content)) == ("", True)


def test_one_bad_picture_is_a_fact_and_not_an_error(tmp_path: Path) -> None:
    inside = pictures_in(tmp_path / "mine", ["good.png"])
    (tmp_path / "secret.png").write_bytes(b"secret")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "empty.png").touch()
    names = ["good.png", "link.png", "empty.png"]
    listed(inside, "captions.tsv", [(name, "x") for name in names])
    found = {picture.file: picture for picture in made_from(inside).samples}
    assert found["good.png"].problem == ""
    assert found["link.png"].problem == "a link that leaves the folder"
    assert found["link.png"].content == b""
    assert found["empty.png"].problem == "empty file"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "b.png"], r"no such file 'b.png' in .*; did you mean 'png64/b.png'\?$"),
        (["a.png", "png/b.png"], r"no such file 'png/b.png' in .*; did you mean 'png64/b.png'\?$"),
        (["[x].png", "y.png"], r"no such file '\[x\].png' in [^;]* \(and 1 more are missing\)$"),
    ],
)
def test_a_file_that_is_not_there_is_named_before_any_is_read(
    tmp_path: Path, names: list[str], message: str
) -> None:
    pictures_in(tmp_path, ["a.png"])
    pictures_in(tmp_path / "png64", ["b.png", "x.png"])
    listed(tmp_path, "captions.tsv", [(name, "x") for name in names])
    with pytest.raises(MakerError, match=message):
        made_from(tmp_path)


@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd", "a/../../x.png", "..\\x.png", "a\0b"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    listed(tmp_path, "metadata.jsonl", [("a.png", "x"), (name, "x")])
    with pytest.raises(MakerError, match=r"metadata.jsonl:2: .* does not stay inside the folder"):
        made_from(tmp_path)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            "metadata.csv",
            "name,text\na,b\n",
            r"metadata.csv:1: no column `file_name`; it has name, text",
        ),
        (
            "metadata.csv",
            "file_name,title\na,b,c\n",
            r"metadata.csv:2: no column `text` or `caption`; it has file_name, title",
        ),
        (
            "metadata.jsonl",
            '{"file_name": 3, "text": "x"}',
            r"jsonl:1: `file_name` and `text` must",
        ),
        ("metadata.jsonl", "{", r"jsonl:1 is not JSON"),
        ("metadata.jsonl", "[]", r"jsonl:1: not an object"),
        ("captions.tsv", "a.png a cat\n", r"captions.tsv:1: no tab between file and caption"),
        ("captions.tsv", "\n", r"captions.tsv lists no picture"),
        ("metadata.csv", f"file_name,text\na,{'x' * 140_000}\n", r"metadata.csv:2: not CSV: field"),
        (
            "metadata.csv",
            "file_name,text\na,a dog, asleep\n",
            r"metadata.csv:2: more values than colu",
        ),
        (
            "metadata.csv",
            'file_name,text\na,"a dog\nb,a cat\n',
            r"metadata.csv:2: not CSV: unexpec",
        ),
        (
            "captions.tsv",
            f"{'a' * 300}.png\tx\n",
            r"captions.tsv:1: 'a+'\.\.\. is longer than the 255",
        ),
    ],
)
def test_a_list_that_cannot_be_used_names_the_line(
    tmp_path: Path, kind: str, text: str, message: str
) -> None:
    (tmp_path / kind).write_text(text)
    with pytest.raises(MakerError, match=message):
        made_from(tmp_path)


def test_a_separator_inside_a_caption_ends_no_line(tmp_path: Path) -> None:
    caption = "a red\u2028circle"  # JSON and CSV allow it, str.splitlines does not
    listed(tmp_path, "captions.tsv", [("a.png", caption), ("b.png", "two")])
    assert [text for _, text in folder.read_captions(tmp_path)] == [caption, "two"]
    (tmp_path / "captions.tsv").unlink()
    line = json.dumps({"file_name": "a.png", "text": caption}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(line + "\n")
    assert folder.read_captions(tmp_path) == [("a.png", caption)]


def test_a_folder_needs_exactly_one_list(tmp_path: Path) -> None:
    with pytest.raises(MakerError, match=r"has none of metadata.csv, metadata.jsonl, captions.tsv"):
        made_from(tmp_path)
    for kind in ("metadata.csv", "captions.tsv"):
        listed(tmp_path, kind, [("a.png", "x")])
    with pytest.raises(MakerError, match=r"metadata.csv and captions.tsv: keep one"):
        made_from(tmp_path)
    with pytest.raises(MakerError, match="no folder"):
        made_from(tmp_path / "nowhere")


def test_the_layout_is_hugging_faces(tmp_path: Path) -> None:
    rows = [("a.png", "one cat"), ("in/b.png", "two dogs")]
    source = pictures_in(tmp_path / "source", [file for file, _ in rows])
    listed(source, "metadata.csv", rows)
    program = """
import datasets, json, sys
source, cache = sys.argv[1:]
rows = datasets.load_dataset("imagefolder", data_dir=source, split="train", cache_dir=cache)
rows = rows.cast_column("image", datasets.Image(decode=False))
print(json.dumps([(row["image"]["path"], row["text"]) for row in rows]))
"""  # in a process of its own: the library leaves files to the garbage collector
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "cache")]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    answer = subprocess.run(command, env=offline, capture_output=True, check=True, timeout=120)
    theirs = {
        Path(path).relative_to(source).as_posix(): text for path, text in json.loads(answer.stdout)
    }
    ours = {picture.file: picture.caption for picture in made_from(source).samples}
    assert theirs == ours == dict(rows)


FREE: dict[str, str] = {
    f"{number}.png": text
    for number, text in enumerate(
        [
            *("grinning face", "face with tears of joy", "crying cat", "two hearts", "red heart"),
            *("smiling cat face with heart eyes", "thumbs up", "rocket", "cat", "a heart on fire"),
        ]
        * 3
    )
}


def test_captions_of_free_text_are_cut_into_pieces_and_no_word_is_unknown(tmp_path: Path) -> None:
    """A vocabulary of pieces has every letter, so a word that nobody wrote is read, too."""
    from models.parts import words

    mine = pictures_in(tmp_path / "mine", list(FREE))
    listed(mine, "captions.tsv", list(FREE.items()))
    entry = {"maker": "folder", "path": str(mine), "image_size": 8, "pieces": 48}
    header = read_header(prepare(tmp_path, entry))
    vocabulary = header["vocabulary"]
    assert UNKNOWN in vocabulary
    assert len(vocabulary) <= 48
    assert header["max_words"] == 1 + max(len(cut(text, vocabulary)) for text in FREE.values())
    for text in ("a hearty catfish", "grin", "schön 7"):
        assert not words.unknown(text, vocabulary)
        assert cut(normal(text), vocabulary) == words.cut(text, vocabulary)
        assert (words.encode([text], vocabulary, 40) > 0).any()
    heart = words.cut("hearty", vocabulary)
    assert "".join(piece.removeprefix("##") for piece in heart) == "hearty"
    assert words.cut("ß", vocabulary) == [UNKNOWN]
    again = folder.made(folder.Config.model_validate(entry), tmp_path).vocabulary
    assert list(again) == vocabulary, "equal captions give equal pieces"


@given(st.text(max_size=30))
def test_requests_are_cut_as_captions_are(text: str) -> None:
    from models.parts import words

    vocabulary = pieces(map(normal, FREE.values()), 60)
    assert words.split(text) == normal(text).split()
    for known in (vocabulary, ["red", "heart"]):
        assert words.cut(text, known) == cut(normal(text), known)


def test_a_packed_file_that_is_something_else_is_told(tmp_path: Path) -> None:
    path = tmp_path / "packed.npz"
    for content in (b"<html>not found</html>", b""):
        path.write_bytes(content)
        with pytest.raises(MakerError, match=r"packed.npz is not an .npz file"):
            list(mnist.made(from_mnist(tmp_path), HERE).samples)
    rows = np.zeros((2, 98), np.uint8)
    np.savez(path, train=np.array([{}], object), valid=rows, test=rows)
    with pytest.raises(MakerError, match=r"cannot read .*packed.npz: Object arrays"):
        list(mnist.made(from_mnist(tmp_path), HERE).samples)
