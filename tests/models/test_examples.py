"""What is learned from text: rows cut from columns are those of the straightforward reading, which holds them all."""

from collections.abc import Sequence
from itertools import chain, pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from models.family import Batch, Family
from models.language.bert import BERT, BERTConfig
from models.language.gpt import GPT, GPTConfig
from models.language.transformer import Transformer, TransformerConfig
from models.parts.tokens import ASSISTANT, BOS, EOS, SYSTEM, USER, of_signs, padded, tokenizer
from models.request import Record

SIGNS = of_signs("abc ")
WORDS = tokenizer(SIGNS)
texts = st.text("abc ", min_size=1, max_size=9)
few = st.lists(texts, min_size=1, max_size=7)
SIZE = {"tokenizer": SIGNS, "width": 4, "layers": 1, "heads": 1}


def check(model: Family, records: Sequence[Record], expected: Batch) -> None:
    """Compare all rows, and some of them taken in another order."""
    found = model.examples(records)
    assert found.keys() == expected.keys()
    index = torch.randperm(len(next(iter(expected.values()))), generator=torch.manual_seed(0))[:4]
    some = model.examples_of(model.tokenized(records)).take(index.numpy())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
        torch.testing.assert_close(some[name], tensor[index], rtol=0, atol=0)


@settings(max_examples=60)
@given(few, st.integers(1, 12), st.data())
def test_windows(texts: list[str], context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    model = GPT(GPTConfig(context=context, stride=stride, **SIZE))
    stream = torch.tensor([EOS, *chain.from_iterable([*WORDS.encode(one), EOS] for one in texts)])
    more = -(-max(0, len(stream) - 1 - context) // stride)
    stream = F.pad(stream, (0, context + 1 + more * stride - len(stream)), value=-1)
    expected = {"tokens": stream.unfold(0, context + 1, stride)}
    if stride < context:
        expected["fresh"] = torch.ones(more + 1, context, dtype=torch.bool)
        expected["fresh"][1:, : context - stride] = False
    check(model, [(("text", one),) for one in texts], expected)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), few), min_size=1, max_size=6), st.integers(28, 60))
def test_dialogues(texts: list[tuple[bool, list[str]]], context: int) -> None:
    """Every last exchange fits; the longer dialogues lose their oldest ones."""
    records, rows = [], []
    for system, said in texts:
        turns = [one for text in said for one in (("user", text[::-1]), ("assistant", text))]
        records.append([("system", "ab"), *turns] if system else turns)
        sign = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
        row = [
            [sign[role], *WORDS.encode(text), *[EOS] * (role == "assistant")]
            for role, text in records[-1]
        ]
        while 1 + sum(map(len, row)) > context + 1:
            del row[system : system + 2]
        rows.append([[BOS], *row])
    longest = max(sum(map(len, row)) for row in rows)
    tokens = torch.full((len(rows), longest), -1)
    answer = torch.zeros(len(rows), longest, dtype=torch.bool)
    for place, row in enumerate(rows):
        at = 0
        for turn in row:
            tokens[place, at : at + len(turn)] = torch.tensor(turn)
            answer[place, at + 1 : at + len(turn)] = turn[0] == ASSISTANT
            at += len(turn)
    model = GPT(GPTConfig(context=context, learns="dialogues", **SIZE))
    check(model, records, {"tokens": tokens, "answer": answer[:, 1:]})
    long = sum(len(row) - 1 < len(record) for row, record in zip(rows, records, strict=True))
    assert model.left_out.startswith(f"{long} of {len(rows)} " if long else "")


@settings(max_examples=60)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=7), st.integers(2, 9))
def test_pairs(texts: list[tuple[str, str]], most: int) -> None:
    texts = [("a", "b"), *texts]  # one is short enough
    model = Transformer(
        TransformerConfig(max_source=most, max_target=most, feedforward=4, beams=1, **SIZE)
    )
    rows = [
        ([*WORDS.encode(source), EOS], [BOS, *WORDS.encode(target), EOS])
        for source, target in texts
        if len(source) < most and len(target) < most
    ]
    expected = {"source": padded([a for a, _ in rows]), "target": padded([b for _, b in rows])}
    check(model, [(("source", a), ("target", b)) for a, b in texts], expected)
    gone = len(texts) - len(rows)
    assert model.left_out.startswith(f"{gone} of {len(texts)} pairs" if gone else "")


@settings(max_examples=60)
@given(st.lists(st.lists(texts, max_size=5), max_size=5))
def test_neighbours(texts: list[list[str]]) -> None:
    texts = [["ab", "c"], *texts]  # one has two lines
    model = BERT(BERTConfig(max_tokens=11, feedforward=4, dropout=0, **SIZE))
    pairs, documents = [], []
    for number, lines in enumerate(texts):
        kept = [WORDS.encode(line)[:4] for line in lines if line.strip()]
        pairs += pairwise(kept)
        documents += [number] * max(0, len(kept) - 1)
    expected = {
        "first": padded([first for first, _ in pairs]),
        "second": padded([second for _, second in pairs]),
        "document": torch.tensor(documents),
    }
    check(model, [(("text", "\n".join(lines)),) for lines in texts], expected)
