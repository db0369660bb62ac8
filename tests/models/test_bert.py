"""BERT: what is masked and exchanged, that nothing leaks through padding, and that it equals its peer."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from torch import Tensor

from data import tokenizing
from models.language.bert import BERT, MaskedBatch
from models.parts.tokens import CLS, CONTROL, MASK, PAD, SEP, UNK, of_signs, tokenizer
from models.request import Request
from tests.models.language_kit import SCENE_WORDS, fit, of_words, peer_bert, scenes


def bert(seed: int = 0, **change: Any) -> BERT:
    """A network with no weight at zero."""
    torch.manual_seed(seed)
    config = dataclasses.replace(BERT.presets["tiny"], layers=2, tokenizer=of_words(SCENE_WORDS))
    model = BERT(dataclasses.replace(config, **change))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def scene_pairs(model: BERT, count: int = 64, seed: int = 0) -> dict[str, Tensor]:
    return dict(model.examples(scenes(seed, count)))


def token(word: str) -> int:
    return len(CONTROL) + SCENE_WORDS.index(word)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_two_neighbouring_lines_of_a_document_are_an_example() -> None:
    texts = ("fay saw\n\nann drew a\nthe star .", "joe", "tim made\nkim is")
    batch = bert().examples([(("text", text),) for text in texts])
    names = [[token(one) for one in line.split()] for line in ("fay saw", "ann drew a", "tim made")]
    assert batch["document"].tolist() == [0, 0, 2]
    assert batch["first"].tolist() == [[*names[0], PAD], names[1], [*names[2], PAD]]
    assert batch["second"][0].tolist() == names[1]


def test_long_sentences_are_cut_so_that_any_two_fit() -> None:
    model = bert(max_tokens=10)
    batch = scene_pairs(model, 4)
    assert batch["first"].shape == batch["second"].shape == (4, 3)
    assert model(batch).total.isfinite()
    said = "sentences are cut: they have more than 3 tokens (max_sentence)"
    assert model.left_out.endswith(said)
    model.examples([(("text", "fay saw\nann drew a"),)])
    assert model.left_out == ""
    model.examples([(("text", "fay saw\nann drew a star"),)])
    assert model.left_out == f"1 of 2 {said}"


def test_other_records_and_documents_of_one_line_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"learns from \(text\), but record 0 has the roles source, target: take"
    ):
        bert().examples([(("source", "a"), ("target", "b"))])
    with pytest.raises(ValueError, match="none of 1 documents has two lines"):
        bert().examples([(("text", "fay saw"),)])


@settings(max_examples=30, deadline=None)
@given(documents=st.lists(st.integers(0, 4), min_size=1, max_size=12), seed=st.integers(0, 2**31))
def test_a_second_is_the_next_line_or_one_of_another_document(
    documents: list[int], seed: int
) -> None:
    """Each row's second sentence has its document's number as its word."""
    model, number = bert(), torch.tensor(documents)
    word = number[:, None] + len(CONTROL)
    masked = model.masked({"first": word, "second": word, "document": number}, generator(seed))
    second, first = masked.label_BT[:, 3], masked.label_BT[:, 1]
    assert torch.equal(masked.is_random_B == 1, second != first)
    if len(set(documents)) == 1:
        assert not masked.is_random_B.any()


def test_negatives_of_the_same_document_are_the_broken_control() -> None:
    """With documents of one pair the exchanged second is the one that follows; what is measured stays honest."""
    model, number = bert(negatives="same"), torch.arange(8)
    word = number[:, None] + len(CONTROL)
    batch = {"first": word, "second": word, "document": number}
    masked = model.masked(batch, generator(), "same")
    assert masked.is_random_B.any()
    assert torch.equal(masked.label_BT[:, 3], masked.label_BT[:, 1])
    measured = model.measure(batch)
    assert all(torch.equal(measured[name], value) for name, value in bert().measure(batch).items())


def test_half_of_the_seconds_are_exchanged_and_all_others_may_come() -> None:
    model, number = bert(), torch.arange(40)
    word = number[:, None] + len(CONTROL)
    batch = {"first": word, "second": word, "document": number}
    masked = [model.masked(batch, generator(seed)) for seed in range(200)]
    random = torch.stack([one.is_random_B for one in masked]).float()
    assert random.mean().item() == pytest.approx(0.5, abs=0.02)  # of 8,000: four deviations
    came = {int(one.label_BT[0, 3]) for one in masked if one.is_random_B[0]}
    assert len(came) > 30
    assert len(CONTROL) not in came


def many_masked(model: BERT, batch: dict[str, Tensor], count: int = 200) -> MaskedBatch:
    masked = [model.masked(batch, generator(seed)) for seed in range(count)]
    return MaskedBatch(*(torch.cat(parts) for parts in zip(*masked, strict=True)))


def test_of_the_chosen_tokens_eight_tenths_are_masked_one_exchanged_one_kept() -> None:
    """38,400 chosen: a standard deviation of 0.002 of each share."""
    masked = many_masked(bert(), scene_pairs(bert()))
    tokens, labels = masked.tokens_BT[masked.selected_BT], masked.label_BT[masked.selected_BT]
    another = (tokens != labels) & (tokens != MASK)
    assert (tokens == MASK).float().mean().item() == pytest.approx(0.8, abs=0.008)
    vocabulary = len(SCENE_WORDS)
    assert another.float().mean().item() == pytest.approx(0.1 * (1 - 1 / vocabulary), abs=0.008)
    drawn = tokens[another].bincount(minlength=len(CONTROL) + vocabulary)
    assert drawn[: len(CONTROL)].sum() == 0
    assert drawn[len(CONTROL) :].min() > 0
    untouched = ~masked.selected_BT
    assert torch.equal(masked.tokens_BT[untouched], masked.label_BT[untouched])


def test_three_of_nineteen_words_are_chosen_each_as_often_and_never_a_control_token() -> None:
    masked = many_masked(bert(), scene_pairs(bert()))
    control = masked.label_BT < len(CONTROL)
    assert not (masked.selected_BT & control).any()
    words = (~control).sum(1)
    assert torch.equal(masked.selected_BT.sum(1), (0.15 * words).round().long())
    often = masked.selected_BT.float().mean(0)[~control[0]]
    assert (often - often.mean()).abs().max() < 0.02  # 12,800 rows: six deviations


def test_unknown_words_are_never_chosen_even_where_there_is_nothing_else() -> None:
    unknown = torch.full((4, 3), UNK)
    model = bert()
    batch = {"first": unknown, "second": unknown, "document": torch.arange(4)}
    assert not model.masked(batch, generator()).selected_BT.any()
    assert model(batch).total.isfinite()


def test_masks_are_drawn_anew_at_every_step_and_fixed_where_it_is_measured() -> None:
    model, batch = bert(), scene_pairs(bert())
    torch.manual_seed(0)
    first, second = (model.masked(batch) for _ in range(2))
    assert not torch.equal(first.selected_BT, second.selected_BT)
    before = torch.get_rng_state()
    one, other = (model.measure(batch) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], other[name]) for name in ("mlm_accuracy", "nsp_accuracy"))
    assert set(one["nsp_accuracy"].tolist()) <= {0.0, 1.0}


def test_padding_changes_nothing() -> None:
    """Neither between the sentences nor after them."""
    model = bert()
    lines = [[token(one) for one in text.split()] for text in ("fay saw a star", "the star is red")]
    packed = torch.tensor([[CLS, *lines[0], SEP, *lines[1], SEP]])
    gap, segment = torch.tensor([[PAD, PAD]]), torch.tensor([[0] * 6 + [1] * 5])
    spread = torch.cat([packed[:, :5], gap, packed[:, 5:10], gap, packed[:, 10:], gap], 1)
    parted = torch.cat([segment[:, :5], gap, segment[:, 5:10], gap, segment[:, 10:], gap], 1)
    found = model.hidden(spread, parted)[spread != PAD]
    torch.testing.assert_close(found, model.hidden(packed, segment)[0], rtol=0, atol=1e-5)


def test_every_token_sees_all_others_and_no_padding() -> None:
    model, seen = bert(), []
    tokens = torch.tensor([[CLS, token("fay"), token("saw"), SEP, PAD]])
    hook = model.norm.register_forward_hook(lambda _, __, out: seen.append(out) or out)
    hidden = model.hidden(tokens, torch.zeros_like(tokens))
    hook.remove()
    for place in range(4):
        (gradient,) = torch.autograd.grad(hidden[0, place].square().sum(), seen, retain_graph=True)
        assert (gradient[0].abs().sum(1) > 0).tolist() == [True] * 4 + [False]


def test_blanks_are_filled_and_the_rest_of_the_text_stays() -> None:
    model = bert()
    prompts = ("fay [MASK] a [MASK] star\nthe star is [MASK] .", "[MASK] saw <mask> .")
    written = model.sample(Request(seeds=(1, 2), prompts=prompts))
    text = model.text_of(written[0])
    assert [len(line.split()) for line in text.splitlines()] == [5, 5]
    assert text.split()[::2] == ["fay", "a", "star", "star", text.split()[8]]
    assert set(text.split()) <= set(SCENE_WORDS)
    assert (written[0] == -1).long().diff().min() >= 0
    assert written[1, 2].item() == UNK  # the spelling of a control token is a word like others
    assert not torch.isin(written, torch.tensor([MASK, CLS, PAD])).any()


def test_a_seed_fills_the_same_alone_or_in_a_batch_and_the_likeliest_without_a_temperature() -> (
    None
):
    model = bert()
    prompts = ("fay saw a [MASK] [MASK]", "[MASK] drew", "the star is [MASK]\n[MASK] is red")
    request = Request(seeds=(1, 2, 3), prompts=prompts, temperature=2.0)
    together = model.sample(request)
    for row, prompt in enumerate(prompts):
        alone = model.sample(Request(seeds=(row + 1,), prompts=(prompt,), temperature=2.0))
        assert torch.equal(alone[0], together[row])
    same = tuple(range(10))
    hot = model.sample(Request(seeds=same, prompts=prompts[:1] * 10, temperature=2.0))
    cold = model.sample(Request(seeds=same, prompts=prompts[:1] * 10))
    assert len({tuple(row) for row in hot.tolist()}) > 1
    assert len({tuple(row) for row in cold.tolist()}) == 1


def byte_level(text: str) -> str:
    """Return a byte-level BPE of the text, in which a space belongs to the word after it."""
    made = Tokenizer(tokenizer_models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        [text], trainers.BpeTrainer(special_tokens=list(CONTROL), show_progress=False)
    )
    return str(made.to_str())


def marked(words: tuple[str, ...]) -> str:
    """Return a tokenizer of words that each begin with their space, and of nothing else."""
    vocabulary = {one: place for place, one in enumerate((*CONTROL, *(f"_{w}" for w in words)))}
    made = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\A(?=\S)"), "_"), normalizers.Replace(" ", "_")]
    )
    made.pre_tokenizer = pre_tokenizers.Split(Regex("_?[^_]*"), "isolated")
    made.add_special_tokens(list(CONTROL))
    return str(made.to_str())


def test_a_blank_takes_the_space_before_it_along_where_words_do() -> None:
    line = "nobody drew a [MASK] star"
    for made in (of_words(SCENE_WORDS), marked(SCENE_WORDS), byte_level("drew a ex star " * 9)):
        model = bert(tokenizer=made)
        read = model._tokenizer.encode
        assert model._with_masks(line) == [*read("nobody drew a"), MASK, *read(" star")]
    for made in (
        tokenizing.train(["fay drew a small red circle ."], "words", 40),
        of_signs("abe "),
    ):
        assert bert(tokenizer=made).unknown("a [MASK] a") == []
    assert bert(tokenizer=made).unknown("a [MASK] axe") == ["x"]
    signs = bert(tokenizer=of_signs("abe "))
    a, b, _, space = range(len(CONTROL), len(CONTROL) + 4)
    assert signs._with_masks("ab [MASK]b") == [a, b, space, MASK, b]


def test_what_cannot_be_read_is_refused_with_the_way_out() -> None:
    model = bert(max_tokens=8)
    with pytest.raises(ValueError, match=r"every prompt needs a blank, written \[MASK\]"):
        model.sample(Request(seeds=(1,), prompts=("fay saw",)))
    with pytest.raises(ValueError, match="has 9 tokens with its control tokens, at most 8 fit"):
        model.embed(["fay saw a star on the left"])
    with pytest.raises(ValueError, match="reads one line or two, got 3"):
        model.embed(["a\na\na"])
    with pytest.raises(ValueError, match="reads one line or two, got 0"):
        model.embed([" "])


def test_tokens_are_embedded_and_filled_in_as_their_text_is() -> None:
    model = bert()
    text = " ".join(SCENE_WORDS[:3])
    ids = tuple(tokenizer(model.config.tokenizer).encode(text))
    torch.testing.assert_close(model.embed([ids, ids]), model.embed([text, text]))
    with pytest.raises(ValueError, match="token 99999 is none of this model's"):
        model.embed([(99_999,)])
    with pytest.raises(ValueError, match="every prompt needs a blank"):
        model.sample(Request(seeds=(0,), prompt_tokens=(ids,)))


def test_all_embeddings_begin_equally_quiet_whatever_the_width() -> None:
    """A segment embedding 50 times louder than its tokens drowns them, and NSP is never learned."""
    torch.manual_seed(0)
    for width in (64, 192):
        model = BERT(dataclasses.replace(BERT.presets["small"], width=width))
        for table in (model.token, model.place, model.segment):
            assert table.weight.std().item() == pytest.approx(0.02, rel=0.2)
        assert model.pooler.weight.std().item() == pytest.approx(
            0.02 * (768 / width) ** 0.5, rel=0.1
        )


def test_logits_equal_those_of_transformers_bert_with_the_same_weights() -> None:
    model = bert()
    masked = model.masked(scene_pairs(model, 8), generator(3))
    ours, follows = model.logits(masked)
    theirs = peer_bert(model)(
        input_ids=masked.tokens_BT,
        attention_mask=masked.tokens_BT != PAD,
        token_type_ids=masked.segment_BT,
    )
    row_B1 = torch.arange(len(ours))[:, None]
    chosen = theirs.prediction_logits[row_B1, masked.position_BM]
    torch.testing.assert_close(ours, chosen, rtol=0, atol=1e-4)
    torch.testing.assert_close(follows, theirs.seq_relationship_logits, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_little_training_fills_blanks_and_brings_like_sentences_together() -> None:
    """350 steps; by then the network also tells whether a sentence follows."""
    torch.manual_seed(0)
    small = BERT.presets["small"]
    model = BERT(dataclasses.replace(small, tokenizer=of_words(SCENE_WORDS)))
    fit(model, scene_pairs(model, 4000), steps=350, rows=64, rate=2e-3, seed=0)
    found = model.measure(scene_pairs(model, 400, seed=1))
    assert found["mlm_accuracy"].mean() > 0.65
    assert found["nsp_accuracy"].float().mean() > 0.7
    texts = (
        "fay drew a small [MASK] circle on the left .",
        "the [MASK] is red and small says fay .",
    )
    prompt = f"{texts[0]}\n{texts[1]}"
    filled = model.text_of(model.sample(Request(seeds=(0,), prompts=(prompt,)))[0])
    assert filled.splitlines()[0] == texts[0].replace("[MASK]", "red")
    assert filled.splitlines()[1] == texts[1].replace("[MASK]", "circle")
    near, same, far = model.embed(
        [
            "fay drew a small red circle on the left .",
            "fay drew a small red ring on the left .",
            "the heart is pink and huge says joe .",
        ]
    )
    assert near.norm().item() == pytest.approx(1, abs=1e-5)
    assert near @ same > near @ far + 0.1
