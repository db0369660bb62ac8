import gzip
import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from data import stages, tokenizing
from data.loaders import DatasetError, Loader, Record, everything, facts_of, modality_of, records
from data.makers import MakerError, chat, dialogues, numbers, pairs, scenes, text
from data.modalities import SampleError, modality
from data.modalities.text import record_bytes, record_of, role_fault
from models.family import Batch, Columns, Examples
from models.language.examples import columns, laid
from models.parts.tokens import CONTROL, Tokenizer, of_signs, tokenizer
from services.stages.text_stream import Writing
from tests.data.prepare_kit import prepare, refused
from tests.flows.sequences_kit import Bigram, BigramConfig

HERE = Path()
CHARACTERS = {"kind": "characters", "size": 200}
TEXT = "The fox said: <user> 42 times, no <pad>!\n\n" * 30
lines = st.lists(st.text("ab \n", max_size=30), min_size=1).map("\n".join)


def own(maker: str, path: Path, **settings: Any) -> dict[str, Any]:
    return {"maker": maker, "path": str(path), "tokenizer": CHARACTERS, **settings}


def many(count: int = 40) -> list[str]:
    return [f"this is line {number} of {count}" for number in range(count)]


class Characters:
    """A row a record: the characters of its texts, 0 after each and -1 after the last."""

    reads = "characters"

    def tokenized(self, records: Sequence[Record]) -> Columns:
        told = [[[*map(ord, text), 0] for _, text in record] for record in records]
        return columns(told, tokenizer(of_signs("a")))

    def examples_of(self, columns: Columns) -> Examples:
        return Whole(columns)

    def examples(self, records: Sequence[Record]) -> torch.Tensor:
        found = self.examples_of(self.tokenized(records))
        return found.take(np.arange(len(found)))["characters"]


class Whole(Examples):
    def __init__(self, columns: Columns) -> None:
        self.tokens = columns["tokens"]
        self.places = columns["texts"][:][columns["records"][:]]

    def __len__(self) -> int:
        return len(self.places) - 1

    def take(self, index_B: Any) -> Batch:
        width = int(np.diff(self.places).max())
        rows = laid(self.tokens, self.places[index_B], self.places[index_B + 1], width, -1)
        return {"characters": torch.from_numpy(rows)}


@pytest.mark.parametrize(
    ("kind", "size"), [("characters", 100), ("words", 100), ("bytes", tokenizing.LEAST_BYTES + 40)]
)
def test_a_tokenizer_begins_with_the_models_control_tokens_and_no_text_becomes_one(
    kind: str, size: int
) -> None:
    assert tokenizing.CONTROL == CONTROL
    document = tokenizing.train([TEXT, " ".join(CONTROL) * 50], kind, size)
    assert document == tokenizing.train([TEXT, " ".join(CONTROL) * 50], kind, size)
    found = Tokenizer(document)
    assert found.size <= size
    for said in (TEXT, *CONTROL, "\n<user>", "<mask> <mask>"):
        tokens = found.encode(said)
        assert min(tokens) >= len(CONTROL)
        assert found.decode(tokens) == said


MANY_SCRIPTS = st.text(
    st.sampled_from("  a1.\n\t\r\0▁_'é")
    | st.sampled_from("कि\u200dष İßمر한字")
    | st.sampled_from("😀\u200d🚀\ufe0f🏽")
    | st.characters(codec="utf-8", exclude_characters="\ufffd"),
    max_size=30,
)
BYTES = Tokenizer(tokenizing.train([TEXT], "bytes", tokenizing.LEAST_BYTES + 20))


@pytest.mark.parametrize("kind", ["characters", "words", "bytes"])
@hypothesis(max_examples=150, deadline=None)
@given(said=MANY_SCRIPTS, place=st.integers(0, 30))
@example(said="a red square", place=2)
@example(said=" 1 a\n b ", place=3)
def test_prompt_and_completion_are_the_text_whole_and_streamed(
    kind: str, said: str, place: int
) -> None:
    found = BYTES if kind == "bytes" else Tokenizer(tokenizing.train([said], kind, 5000))
    tokens = found.encode(said)
    assert found.decode(tokens) == said
    prompts = [found.decode(tokens[:end]) for end in range(len(tokens) + 1)]
    whole = [end for end, text in enumerate(prompts) if found.encode(text) == tokens[:end]]
    end = whole[place % len(whole)]
    prompt, written = prompts[end], tokens[end:]
    assert prompt + found.decode(written, continued=bool(prompt)) == said
    writing, pieces = Writing(), []
    for count in range(len(written) + 1):
        text = found.decode(written[:count], continued=bool(prompt))
        pieces.append(writing.grow(text, last=count == len(written)))
    assert prompt + "".join(pieces) == prompt + writing.text == said
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["characters", "words", "bytes"])
@hypothesis(max_examples=150, deadline=None)
@given(said=MANY_SCRIPTS)
@example(said="a red square")
@example(said="e\u0301 😀 x")
def test_each_token_has_its_part_of_a_text_and_the_parts_are_the_text(kind: str, said: str) -> None:
    found = BYTES if kind == "bytes" else Tokenizer(tokenizing.train([said], kind, 5000))
    tokens = tuple(found.encode(said))
    assert found.pieces(said) == found.pieces(tokens)
    assert len(found.pieces(said)) == len(tokens)
    assert "".join(found.pieces(said)) == said
    for token, part in zip(tokens, found.pieces(said), strict=True):
        alone = found.decode([token])
        assert "\ufffd" in alone or part.strip() == alone.strip()


class Counting(Tokenizer):
    """One that counts the tokens that it decodes."""

    decoded = 0

    def decode(self, tokens: Iterable[int], *, continued: bool = False) -> str:
        tokens = list(tokens)
        self.decoded += len(tokens)
        return super().decode(tokens, continued=continued)


def test_the_parts_of_twice_as_many_tokens_take_twice_the_work() -> None:
    """lm-evaluation-harness sends prompts as tokens, as long as a context, and has each token's part told."""
    found = Counting(tokenizing.train([TEXT], "bytes", tokenizing.LEAST_BYTES))
    tokens, work = found.encode("é 😀 a " * 40), []
    for count in (len(tokens) // 2, len(tokens)):
        found.decoded = 0
        found.pieces(tuple(tokens[:count]))
        work.append(found.decoded)
    assert work[1] < 2.5 * work[0]


def test_a_tokenizer_of_words_as_it_was_stored_before_completes_with_its_space() -> None:
    document = json.loads(tokenizing.train(["a red square"], "words", 100))
    words = document["model"]["vocab"]
    document["model"]["vocab"] = {word.replace(" ", "▁"): place for word, place in words.items()}
    document["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Replace", "pattern": {"Regex": r"\A(?=[^\d\s])"}, "content": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    pattern = r"\d|▁?[^▁\d\p{P}\p{S}\s]+|▁?[\p{P}\p{S}&&[^▁]]|▁|\s"
    document["pre_tokenizer"]["pattern"] = {"Regex": pattern}
    mark = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    document["decoder"]["decoders"].insert(0, mark)
    found = Tokenizer(json.dumps(document))
    tokens = found.encode("a red square")
    assert tokenizing.UNKNOWN not in tokens
    assert found.decode(tokens) == "a red square"
    assert found.decode(tokens[2:], continued=True) == " square"


def test_words_leave_digits_alone_and_the_rare_ones_out() -> None:
    document = tokenizing.train(["one one one 12 21 two"], "words", len(CONTROL) + 4)
    found = Tokenizer(document)
    assert [found.decode([token]) for token in found.encode("12 one")] == ["1", "2", "one"]
    assert tokenizing.unknown_shares(document, [["one two"], ["one"], ["one", "two 1"]]) == [
        0.5,
        0.0,
        1 / 4,
    ]


def test_the_first_word_of_every_turn_is_known_as_families_read_it(tmp_path: Path) -> None:
    folder = prepare(
        tmp_path, {"maker": "chat", "count": 300, "tokenizer": {"kind": "words", "size": 128}}
    )
    found = Tokenizer(facts_of(folder)["tokenizer"])
    for record in records(folder, "test"):
        for _, said in record:
            tokens = found.encode(said)
            assert tokenizing.UNKNOWN not in tokens
            assert found.decode(tokens) == said


def test_a_tokenizer_of_bytes_is_not_smaller_than_the_bytes() -> None:
    with pytest.raises(ValueError, match="at least 266 tokens, not 200"):
        tokenizing.TokenizerSettings(kind="bytes", size=200)


@hypothesis(max_examples=80, deadline=None)
@given(said=lines, piece=st.integers(1, 20))
def test_pieces_joined_are_the_text_and_end_with_lines(said: str, piece: int) -> None:
    found = text.cut(said, piece)
    assert "".join(found) == said
    assert all(0 < len(part) <= piece for part in found)
    assert all(part.endswith("\n") or len(part) == piece for part in found[:-1])


def test_a_long_document_is_tested_beyond_all_that_is_learned(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("".join(f"line {n}\n" for n in range(1000)))
    folder = prepare(tmp_path, own("text", tmp_path / "book.txt", piece=100))
    learned, validated, tested = (
        "".join(said for record in records(folder, split) for _, said in record)
        for split in ("train", "validation", "test")
    )
    assert learned + validated + tested == (tmp_path / "book.txt").read_text()
    assert 0.88 < len(learned) / len(learned + validated + tested) < 0.92
    assert modality_of(folder) == "text"
    assert "<pre>line 0\nline 1\n" in stages.report_path("mine", tmp_path).read_text()
    assert Tokenizer(facts_of(folder)["tokenizer"]).decode([10, 11]) == "\n "


def test_one_short_book_has_all_splits_too(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("".join(f"line {n}\n" for n in range(300)))
    folder = prepare(tmp_path, own("text", tmp_path / "book.txt"))
    assert len(records(folder, "train")) > 15
    assert records(folder, "test")[-1][0][1].endswith("line 299\n")


def test_short_documents_are_whole_and_split_by_hash(tmp_path: Path) -> None:
    source = tmp_path / "notes"
    source.mkdir()
    for number, said in enumerate(many()):
        (source / f"{number}.md").write_text(f"# note\n\n{said}\r\n")
    folder = prepare(tmp_path, own("text", source))
    found = [
        record for split in ("train", "validation", "test") for record in records(folder, split)
    ]
    assert sorted(record[0][1] for record in found) == sorted(f"# note\n\n{s}\n" for s in many())


def test_bad_documents_are_refused_one_by_one(tmp_path: Path) -> None:
    source = tmp_path / "notes"
    source.mkdir()
    for number, said in enumerate(many()):
        (source / f"{number:02d}.txt").write_text(said)
    (source / "05.txt").write_bytes(b"fine\nbut\xff not")
    (source / "06.txt").write_text("")
    (source / "07.txt").write_text("a\x00b")
    (source / "08.txt").write_text("x" * 70_000)
    for number in (10, 11, 12):
        (source / f"{number}.txt").write_text("said before")
    told = refused(tmp_path, own("text", source))
    assert "05.txt: not valid UTF-8: byte 8, in line 2" in told
    assert "06.txt: empty file" in told
    assert "07.txt: 1 control characters: not plain text" in told
    assert any(line.startswith("08.txt: a line of 70000 characters") for line in told)
    assert "12.txt: duplicate of 10.txt" in told
    report = next(tmp_path.rglob("mine.csv")).read_text()
    assert "06.txt,decodes fully,empty file" in report


def test_a_few_repeated_texts_are_left_out_of_training_before_they_are_of_a_test(
    tmp_path: Path,
) -> None:
    (tmp_path / "train.tsv").write_text("".join(f"{said}\tyes\n" for said in many(200)))
    (tmp_path / "test.tsv").write_text(f"{many(200)[3]}\tyes\nnew\tyes\n")
    folder = prepare(tmp_path, own("pairs", tmp_path))
    learned = records(folder, "train") + records(folder, "validation")
    assert len(learned) == 199
    assert len(records(folder, "validation")) == 11  # those with digests in the first 5 %
    assert not set(learned) & set(records(folder, "test"))


def test_what_the_tokenizer_does_not_know_is_refused(tmp_path: Path) -> None:
    said = "".join(f"line {number}\n" for number in range(300))
    (tmp_path / "book.txt").write_text(said + "ПРИВЕТ" * 40)
    told = refused(tmp_path, own("text", tmp_path / "book.txt", piece=100))
    assert any("the tokenizer knows none of" in line for line in told)


def test_a_tokenizer_of_bytes_knows_all_text_and_none_is_trained_to_say_so() -> None:
    said = ["plain", "<unk> <pad>", "\u4f60\U0001f600\x00"]
    document = tokenizing.train([], "bytes", tokenizing.LEAST_BYTES)
    assert tokenizing.unknown_shares(document, [[one] for one in said]) == [0.0] * 3
    rows = pa.table({"decodes": [True, False, True]})
    made = {"tokenizer": {"kind": "bytes", "size": 4096}}

    def unread(name: str) -> list[Any]:
        raise AssertionError(f"{name} was read")

    assert modality("text").relate(rows, unread, made) == {"unknown": [0.0, None, 0.0]}


@pytest.mark.parametrize("packed", [False, True])
def test_aligned_files_are_pairs(tmp_path: Path, packed: bool) -> None:
    source = tmp_path / "pairs"
    source.mkdir()
    for name, count in (("train", 30), ("val", 3), ("test", 5)):
        for ending in ("en", "de"):
            content = "".join(f"{name} {ending} {number}\n" for number in range(count)).encode()
            path = source / f"{name}.{ending}"
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    folder = prepare(tmp_path, own("pairs", source, source="en", target="de"))
    assert [len(records(folder, split)) for split in ("train", "validation", "test")] == [30, 3, 5]
    assert records(folder, "test")[2] == (("source", "test en 2"), ("target", "test de 2"))


def test_pairs_that_are_not_aligned_are_named(tmp_path: Path) -> None:
    def message(**settings: str) -> str:
        config = pairs.Config.model_validate({"maker": "pairs", "path": tmp_path, **settings})
        with pytest.raises(MakerError) as caught:
            pairs.made(config, HERE)
        return str(caught.value)

    assert "neither NAME.source with NAME.target nor NAME.tsv" in message()
    (tmp_path / "a.source").write_text("one\ntwo\n")
    assert "a.source has no a.target beside it" in message()
    (tmp_path / "a.target").write_text("one\n")
    assert "a.source has 2 lines" in message()
    (tmp_path / "a.target").write_text("")
    assert "a.target is empty" in message()
    (tmp_path / "a.target").write_text("one\ntwo\n")
    (tmp_path / "b.tsv").write_text("one\ttwo\nthree\n")
    assert "call the files train, val and test, not 'a'" in message()
    for name in ("a.source", "a.target"):
        (tmp_path / name).unlink()
    assert "b.tsv:2: 0 tabs, one between source and target is needed" in message()
    (tmp_path / "b.tsv").rename(path := tmp_path / "train.tsv")
    assert "has no files called test_2016" in message(test="test_2016")
    assert "there are no files called test_2016" in message(path=str(path), test="test_2016")


def test_a_pair_of_which_half_is_missing_is_refused(tmp_path: Path) -> None:
    said = [f"{line}\tyes".encode() for line in many()]
    said[7], said[8] = b"alone\t ", b"latin \xe9\tno"
    (tmp_path / "mine.tsv").write_bytes(b"\n".join(said))
    told = refused(tmp_path, own("pairs", tmp_path / "mine.tsv"))
    assert "mine:8: 1 of 2 texts are empty" in told
    assert "mine:9: not valid UTF-8: byte 6 of the line" in told


def chatted(*turns: str) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": said} for n, said in enumerate(turns)]
    return json.dumps({"messages": messages})


def test_json_lines_are_dialogues_and_roles_must_alternate(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n\n".join(chatted(said, "indeed") for said in many()))
    folder = prepare(tmp_path, own("dialogues", path))
    assert records(folder, "train")[0][1] == ("assistant", "indeed")
    path.write_text("\n".join([*(chatted(said, "yes") for said in many()), chatted("no answer")]))
    told = refused(tmp_path, own("dialogues", path))
    assert "mine.jsonl:41: the last word is the user's: nothing to learn from" in told


@pytest.mark.parametrize("kind", ["dialogues", "pairs"])
def test_a_folder_without_a_test_is_tested_on_a_share_of_its_training(
    tmp_path: Path, kind: str
) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    for name, said in (("train", many(200)), ("val", many(210)[200:])):
        lines = [chatted(one, "yes") if kind == "dialogues" else f"{one}\tyes" for one in said]
        (source / f"{name}.{'jsonl' if kind == 'dialogues' else 'tsv'}").write_text(
            "\n".join(lines)
        )
    folder = prepare(tmp_path, own(kind, source))
    train, validation, test = (len(records(folder, one)) for one in ("train", "validation", "test"))
    assert (train + test, validation) == (200, 10)
    assert 10 < test < 30


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": [', r"mine.jsonl:2 is not JSON"),
        ('"hello"', "mine.jsonl:2: no list `messages`"),
        ('{"messages": [{"role": "user"}]}', "mine.jsonl:2: a message needs `role` and `content`"),
    ],
)
def test_a_broken_line_of_dialogues_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "mine.jsonl").write_text(f"{chatted('a', 'b')}\n{line}\n")
    config = dialogues.Config(maker="dialogues", path=tmp_path)
    with pytest.raises(MakerError, match=message):
        dialogues.made(config, HERE)


@pytest.mark.parametrize(
    ("roles", "fault"),
    [
        ("text", ""),
        ("source target", ""),
        ("user assistant user assistant", ""),
        ("system user assistant", ""),
        ("target source", "turn 1 is 'target', not 'user'"),
        ("user user", "turn 2 is 'user', not 'assistant'"),
        ("system", "nobody says anything"),
    ],
)
def test_roles_follow_each_other(roles: str, fault: str) -> None:
    assert role_fault(roles.split()) == fault


@given(st.lists(st.tuples(st.text(), st.text())))
def test_a_record_comes_back_as_it_was(record: list[tuple[str, str]]) -> None:
    assert record_of(record_bytes(record)) == tuple(record)


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[1]", b'"ab"x'])
def test_what_is_no_record_is_said(content: bytes) -> None:
    with pytest.raises(SampleError, match=r"not valid UTF-8|not a list of roles and texts"):
        record_of(content)


@pytest.mark.parametrize("module", [scenes, numbers, chat])
def test_written_datasets_have_no_repeats_and_roles_in_order(module: Any) -> None:
    config = module.Config(maker=module.__name__.rpartition(".")[2], count=600, seed=1)
    first, second = ([s.content for s in module.made(config, HERE).samples] for _ in range(2))
    assert first == second
    assert len(set(first)) == 600
    looked = [modality("text").look(content, {}) for content in first]
    assert not any(facts["role_fault"] or facts["empty_segments"] for facts in looked)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "zero"),
        (11, "eleven"),
        (342, "three hundred and forty two"),
        (1007, "one thousand and seven"),
        (80_500, "eighty thousand five hundred"),
        (99_999, "ninety nine thousand nine hundred and ninety nine"),
    ],
)
def test_numbers_are_said_as_people_say_them(number: int, said: str) -> None:
    assert numbers.words(number) == said


def test_all_numbers_have_words_of_their_own() -> None:
    assert len({numbers.words(number) for number in range(numbers.LIMIT)}) == numbers.LIMIT


def test_a_scenes_second_sentence_follows_from_its_first() -> None:
    for document in scenes.make(500, 0):
        first, second = document.split("\n")
        told = set(second.split()) - set(first.split())
        assert told <= {"the", "is", "and", "says", "of", "on"}
        assert set(scenes.NAMES) & set(second.split())


@pytest.fixture(scope="module")
def couples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("couples")
    (project / "mine.tsv").write_text("".join(f"{s}\t{'x' * n}y\n" for n, s in enumerate(many())))
    return prepare(project, own("pairs", project / "mine.tsv"))


@hypothesis(max_examples=20, deadline=None)
@given(batch=st.integers(1, 9), world=st.integers(1, 3), seed=st.integers(0, 5))
def test_rows_of_examples_come_once_an_epoch_whatever_the_world(
    couples: Path, batch: int, world: int, seed: int
) -> None:
    def loader(rows: int, rank: int, world: int) -> Loader:
        return Loader(
            couples,
            "train",
            batch_size=rows,
            rank=rank,
            world=world,
            seed=seed,
            learner=Characters(),
        )

    ranks = [loader(batch, rank, world) for rank in range(world)]
    alone = loader(batch * world, 0, 1)
    for step in (0, 3, 11):
        together = torch.cat([rank.batch(step)["characters"] for rank in ranks])
        assert torch.equal(together, alone.batch(step)["characters"])
    walked = torch.cat([part["characters"] for rank in ranks for part in rank.once()])
    whole = Characters().examples(records(couples, "train"))
    assert sorted(walked.tolist()) == sorted(whole.tolist())


@pytest.mark.parametrize("at_once", [1, 300, 1 << 20])
def test_tokens_are_the_same_in_whatever_parts_they_are_made(
    couples: Path, private_home: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """As are the batches: of one order of all rows, which lies on no disk."""
    monkeypatch.setattr("data.reading.examples.AT_ONCE", at_once)
    whole = Characters().examples(records(couples, "train"))
    loader = Loader(couples, "train", batch_size=5, seed=4, learner=Characters())
    for epoch in range(2):
        generator = np.random.default_rng((4, epoch))
        generator.permutation(1)
        order = [*range(len(whole))]
        stream = whole[generator.permutation(order)]
        places = [place for place in range(0, 2 * len(whole), 5) if place // len(whole) == epoch]
        for place in places[:-1]:
            expected = stream[place - epoch * len(whole) :][:5]
            assert torch.equal(loader.batch(place // 5)["characters"], expected)
    assert private_home.joinpath("rows").is_dir()


def test_facts_come_before_examples_and_batches_do_not(couples: Path) -> None:
    loader = Loader(couples, "train", batch_size=2)
    assert set(loader.facts) == {"tokenizer"}
    with pytest.raises(DatasetError, match="is text: give a loader the family that learns"):
        loader.batch(0)
    with pytest.raises(DatasetError, match="image_size 8 is for pictures, and mine is text"):
        Loader(couples, "train", batch_size=2, image_size=8)
    with pytest.raises(DatasetError, match="has modality text, not image"):
        everything(couples, "train")
    none = Bigram(BigramConfig(tokenizer=loader.facts["tokenizer"], context=1 << 20))
    with pytest.raises(DatasetError, match="no examples in the train split"):
        Loader(couples, "train", batch_size=2, learner=none)


def test_shuffled_pairs_have_other_targets_and_plain_text_has_none(
    couples: Path, tmp_path: Path
) -> None:
    loader = Loader(couples, "train", batch_size=1, learner=Characters(), shuffle_captions=True)
    found = [row[row >= 0].tolist() for part in loader.once() for row in part["characters"]]
    told = [[*"".join(map(chr, row)).split("\0")[:-1]] for row in found]
    right = {source: target for (_, source), (_, target) in records(couples, "train")}
    assert {source for source, _ in told} == right.keys()
    assert sorted(target for _, target in told) == sorted(right.values())
    assert sum(right[source] != target for source, target in told) > len(right) / 2
    (tmp_path / "book.txt").write_text("".join(f"{line}\n" for line in many(200)))
    plain = prepare(tmp_path, own("text", tmp_path / "book.txt", piece=100))
    with pytest.raises(DatasetError, match="is plain text: it has no captions, targets or answers"):
        Loader(plain, "train", batch_size=1, learner=Characters(), shuffle_captions=True)


def test_a_split_whose_texts_are_all_left_out_is_refused(tmp_path: Path) -> None:
    """Its one text is in the test split, too, which keeps it: nothing would be left to validate by."""
    (tmp_path / "train.tsv").write_text("".join(f"{said}\tyes\n" for said in many(100)))
    (tmp_path / "val.tsv").write_text("the same\tyes\n")
    (tmp_path / "test.tsv").write_text("the same\tyes\nanother\tyes\n")
    told = refused(tmp_path, own("pairs", tmp_path))
    assert "expectation 'every split has samples' is not met" in told
    assert any(line.startswith("mine: not every one of train, validation, test") for line in told)


def test_control_characters_are_those_of_unicode_but_tab_and_line_feed() -> None:
    signs = [chr(place) for place in range(0x300)]
    odd = [s for s in signs if unicodedata.category(s) == "Cc" and s not in "\n\t"]
    looked = modality("text").look(record_bytes([("text", "".join(signs))]), {})
    assert looked["control"] == len(odd) == 63


def test_a_file_whose_name_is_no_utf_8_is_read_and_told_by_its_bytes(tmp_path: Path) -> None:
    for number, said in enumerate(many()):
        (tmp_path / f"caf\udce9 {number:02d}.txt").write_text(said)
    (tmp_path / "caf\udce9 05.txt").write_text("")
    told = refused(tmp_path, own("text", tmp_path))
    assert "caf\\udce9 05.txt: empty file" in told
