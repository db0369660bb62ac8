"""What GPT learns from documents and dialogues, and that it does."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.parts.tokens import ASSISTANT, BOS, CONTROL, EOS, SYSTEM, USER
from models.request import Request
from tests.models.gpt_kit import dialogue, document, fitted, gpt


def test_documents_become_windows_of_one_stream() -> None:
    model = gpt(context=4)
    a, b, c, *_ = range(len(CONTROL), len(CONTROL) + 8)
    tokens = model.examples([document("abcab"), document(""), document("c")])["tokens"]
    assert tokens.tolist() == [
        [EOS, a, b, c, a],
        [a, b, EOS, EOS, c],
        [c, EOS, -1, -1, -1],
    ]
    closer = gpt(context=4, stride=2).examples([document("abcab")])["tokens"]
    assert closer.tolist() == [[EOS, a, b, c, a], [b, c, a, b, EOS]]
    assert gpt(context=4).examples([document("ab")])["tokens"].tolist() == [[EOS, a, b, EOS, -1]]


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text("abcdefgh", max_size=40), min_size=1, max_size=5))
def test_every_token_is_a_target_once(texts: list[str]) -> None:
    model = gpt(context=7)
    tokens = model.examples([document(text) for text in texts])["tokens"]
    targets = tokens[:, 1:].flatten()
    assert model.text_of(targets) == "".join(texts)
    assert int((targets == EOS).sum()) == len(texts)


def test_a_dialogue_is_a_row_and_its_answers_are_marked() -> None:
    model = gpt(learns="dialogues")
    a, b, c, d, *_ = range(len(CONTROL), len(CONTROL) + 8)
    batch = model.examples([dialogue("a", "bc", "d", "a", system="c"), dialogue("a", "b")])
    tokens = [BOS, SYSTEM, c, USER, a, ASSISTANT, b, c, EOS, USER, d, ASSISTANT, a, EOS]
    assert batch["tokens"][0].tolist() == tokens
    assert batch["tokens"][1].tolist() == [BOS, USER, a, ASSISTANT, b, EOS, *[-1] * 8]
    marked = [
        [t for t, is_answer in zip(row[1:], marks, strict=True) if is_answer]
        for row, marks in zip(batch["tokens"].tolist(), batch["answer"].tolist(), strict=True)
    ]
    assert marked == [[b, c, EOS, a, EOS], [b, EOS]]


def test_a_long_dialogue_loses_its_oldest_exchanges() -> None:
    model = gpt(learns="dialogues", context=12)
    record = dialogue("a", "b", "aa", "bb", "aaa", "bbb", system="h")
    kept = model.examples([record, dialogue("a", "b")])["tokens"][0]
    assert model.left_out == (
        "1 of 2 dialogues lose their oldest exchanges: they have more than 13 tokens (context + 1)"
    )
    a, b = len(CONTROL), len(CONTROL) + 1
    h = len(CONTROL) + 7
    assert kept.tolist() == [BOS, SYSTEM, h, USER, a, a, a, ASSISTANT, b, b, b, EOS]
    with pytest.raises(
        ValueError, match="last exchange of record 1 has 15 tokens, but a context of 12"
    ):
        model.examples([record, dialogue("a" * 6, "b" * 5)])
    model.examples([dialogue("a", "b")])
    assert model.left_out == ""


def test_the_loss_is_of_the_answers_alone() -> None:
    """No gradient comes from a place whose target is the user's; with loss_on: everything it comes from all."""
    for loss_on in ("answers", "everything"):
        model = gpt(learns="dialogues", loss_on=loss_on)
        batch = model.examples([dialogue("ab", "cd", "e", "f")])
        seen: list[Tensor] = []

        def watch(
            module: object, inputs: object, output: Tensor, seen: list[Tensor] = seen
        ) -> None:
            output.retain_grad()
            seen.append(output)

        model.norm.register_forward_hook(watch)
        model(batch).total.backward()
        assert seen[0].grad is not None
        heard = seen[0].grad[0].abs().sum(1) > 0
        expected = batch["answer"][0] if loss_on == "answers" else torch.ones_like(heard)
        assert torch.equal(heard, expected)


def test_parts_of_a_batch_average_to_the_whole_by_their_tokens() -> None:
    """So that two workers, or two accumulated parts, learn what one does, however long the answers are."""
    model = gpt(learns="dialogues")
    batch = model.examples(
        [dialogue("a", "b"), dialogue("ab", "cdefgh"), dialogue("c", ""), dialogue("", "hg")]
    )
    whole = model(batch)
    parts = [
        model({name: value[rows] for name, value in batch.items()}) for rows in ([0, 1], [2, 3])
    ]
    assert sum(part.count for part in parts) == whole.count
    torch.testing.assert_close(
        sum(part.total * part.count for part in parts) / whole.count, whole.total
    )
    nats = -model.log_prob(batch).sum() / whole.count
    torch.testing.assert_close(nats, whole.total.detach(), rtol=0, atol=1e-5)


def test_a_likelihood_is_the_sum_of_its_tokens() -> None:
    model = gpt()
    batch = model.examples([document("abcabcfed" * 9)])
    nats = -model.log_prob(batch)
    targets = batch["tokens"][:, 1:]
    with torch.no_grad():
        log_p = model.logits(batch["tokens"][:, :-1].clamp(min=0)).log_softmax(2)
    for row in range(len(targets)):
        there = [place for place, token in enumerate(targets[row].tolist()) if token >= 0]
        expected = -sum(log_p[row, place, targets[row, place]] for place in there)
        torch.testing.assert_close(nats[row], torch.as_tensor(expected))
        each = model.measure(batch)["nats_per_token"][row]
        torch.testing.assert_close(each, nats[row] / len(there))


def test_it_learns_a_small_text_by_heart_and_writes_it() -> None:
    text = "a bad cab fed a head"
    model = gpt(scale=1)
    assert fitted(model, [document(text)], 150, 1e-2) < 0.05
    written = model.sample(Request(seeds=(1,), prompts=("a b",), temperature=0))
    assert "a b" + model.text_of(written[0]) == text
    assert (written[0] < 0).any()  # it ended by itself


ANSWERS = dict(
    zip("abcdefgh", ("bead", "cafe", "deaf", "face", "gab", "head", "fed", "aged"), strict=True)
)
CHAT = [
    dialogue(f"{a}?", ANSWERS[a], f"{b}?", ANSWERS[b])
    for a, b in itertools.permutations(ANSWERS, 2)
]


def test_exact_match_rises_to_one_and_only_for_a_model_that_cannot_peek() -> None:
    """The broken model's likelihood looks as good; what it writes is not."""
    found = {}
    for causal in (True, False):
        model = gpt(scale=1, learns="dialogues", context=24, causal=causal)
        before = model.measure(model.examples(CHAT))["exact_match"].float().mean()
        assert before < 0.1
        fitted(model, CHAT, 120 if causal else 200, 1e-2)
        after = model.measure(model.examples(CHAT))
        found[causal] = {name: float(values.double().mean()) for name, values in after.items()}
    assert found[True]["exact_match"] == 1
    assert found[False]["exact_match"] < 0.5
    assert found[False]["nats_per_token"] < 0.3


def test_exact_match_is_what_a_greedy_chat_turn_gives() -> None:
    model = gpt(scale=1, learns="dialogues", context=24)
    fitted(model, CHAT, 80, 1e-2)
    matched = model.measure(model.examples(CHAT))["exact_match"]
    asked = tuple(record[:-1] for record in CHAT)
    written = model.sample(Request(seeds=(0,) * len(CHAT), dialogues=asked, temperature=0))
    right = [
        model.text_of(tokens) == record[-1][1] and bool((tokens < 0).any())
        for tokens, record in zip(written, CHAT, strict=True)
    ]
    assert matched.tolist() == [float(one) for one in right]
    assert 0 < sum(right) < len(right)
