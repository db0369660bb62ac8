"""How GPT writes: by rule, from a seed, cached or not, alone or beside others."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.family import Rows
from models.parts.draws import drawn
from models.parts.rows import join, take
from models.parts.tokens import CONTROL, EOS, tokenizer
from models.request import Request
from tests.models.gpt_kit import dialogue, gpt
from tests.models.naive_kit import sample_naively


def test_top_p_keeps_the_smallest_set_that_has_the_probability() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()

    def kept(top_p: float, top_k: int = 4, temperature: float = 1.0) -> set[int]:
        draws = torch.linspace(0, 1, 1001, dtype=torch.float64)
        rules = [torch.full_like(draws, value) for value in (temperature, top_k, top_p)]
        return set(drawn(logits.expand(1001, 4), draws, *rules).tolist())

    assert [kept(p) for p in (0.4, 0.6, 0.8, 1.0)] == [{1}, {1, 3}, {1, 3, 2}, {0, 1, 2, 3}]
    assert kept(1.0, top_k=2) == {1, 3}
    assert kept(0.6, top_k=2) == {1}  # of what the two likeliest have, the first has two thirds
    assert kept(1.0, temperature=0) == kept(1.0, top_k=1) == {1}


def test_texts_are_written_as_often_as_their_probability_says() -> None:
    """Two tokens after a prompt, 4,000 seeds: a standard error below 0.008."""
    model = gpt(scale=2)
    written = model.sample(Request(seeds=tuple(range(4000)), prompts=("ab",) * 4000, max_tokens=1))
    start = torch.tensor([[EOS, *tokenizer(model.config.tokenizer).encode("ab")]])
    with torch.no_grad():
        logits = model.logits(start)[0, -1]
    logits[[place for place in range(len(CONTROL)) if place != EOS]] = -torch.inf
    often = written[:, 0].masked_fill(written[:, 0] < 0, EOS).bincount(minlength=len(logits)) / 4000
    torch.testing.assert_close(often, logits.softmax(0), rtol=0, atol=0.03)


def test_temperature_zero_is_the_likeliest_token_whatever_the_seed() -> None:
    model = gpt()
    greedy, one = (
        model.sample(Request(seeds=(1, 2, 3), prompts=("abc",) * 3, **rule))  # type: ignore[arg-type]
        for rule in ({"temperature": 0}, {"top_k": 1})
    )
    assert torch.equal(greedy, one)
    assert torch.equal(greedy[0], greedy[1])
    free = model.sample(Request(seeds=(1, 2, 3), prompts=("abc",) * 3))
    assert not torch.equal(free[0], free[1])


@settings(max_examples=30, deadline=None)
@given(
    temperature=st.floats(0.3, 3),
    top_k=st.integers(1, 20),
    top_p=st.floats(0.05, 1),
    seed=st.integers(0, 99),
)
def test_the_kept_tokens_are_those_of_transformers_warpers(
    temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    from transformers.generation import logits_process as process

    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    warped = logits
    for warper in (
        process.TemperatureLogitsWarper(temperature),
        process.TopKLogitsWarper(top_k),
        process.TopPLogitsWarper(top_p),
    ):
        warped = warper(None, warped)
    draws = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:-1]
    rules = [
        torch.tensor([value] * len(draws), dtype=torch.float64)
        for value in (temperature, top_k, top_p)
    ]
    found = drawn(logits.expand(len(draws), -1), draws, *rules).bincount(minlength=20) / len(draws)
    torch.testing.assert_close(found.double(), warped.softmax(1)[0], rtol=0, atol=2e-4)


@settings(max_examples=8, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4),
    prompt=st.text("abcdefgh ", max_size=20),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([None, 3, 2**80]),
    top_p=st.sampled_from([None, 0.8]),
    context=st.sampled_from([32, 70]),
)
def test_the_cached_text_is_the_naive_one(
    seeds: list[int],
    prompt: str,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    context: int,
) -> None:
    """Sums differ in the last bits, so a token could differ with a chance near 1e-6 each; these do not."""
    model = gpt(context=context)
    prompts = tuple(prompt[: 5 * (place + 1)] for place in range(len(seeds)))
    request = Request(
        seeds=tuple(seeds), prompts=prompts, temperature=temperature, top_k=top_k, top_p=top_p
    )
    assert torch.equal(model.sample(request), sample_naively(model, request))


def test_the_cached_logits_are_the_naive_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is drawn: the numbers behind it, token after token, to 1e-5."""
    seen: list[Tensor] = []

    def watching(logits_BV: Tensor, *rules: Tensor) -> Tensor:
        seen.append(logits_BV)
        return drawn(logits_BV, *rules)

    monkeypatch.setattr("models.language.generation.drawn", watching)
    model, compared = gpt(context=100), 0
    for seed, prompt in itertools.product((1, 2, 3, 4), ("ab", "abcdefgh" * 4)):
        request = Request(seeds=(seed,), prompts=(prompt,), temperature=0.5, max_tokens=60)
        model.sample(request)
        cached = [*seen]
        seen.clear()
        sample_naively(model, request)
        compared += len(cached)
        torch.testing.assert_close(torch.stack(cached), torch.stack(seen), rtol=0, atol=1e-5)
        seen.clear()
    assert compared > 100


def test_rows_join_in_mid_flight_and_each_writes_what_it_would_alone() -> None:
    """Other prompts, other rules, other positions, caches of other lengths: 64 and 128 slots."""
    model = gpt(context=100)
    asked = [
        Request(seeds=(5,), prompts=("abc",), max_tokens=30),
        Request(seeds=(6,), prompts=("hgf" * 20,), temperature=0.7, max_tokens=20),
        Request(seeds=(5,), prompts=("",), top_k=4, max_tokens=90),
        Request(seeds=(7,), prompts=("dab a",), top_p=0.7, max_tokens=12),
    ]
    alone = [model.sample(request)[0] for request in asked]
    rows, order, waiting = model.begin(asked[0]), [0], [1, 2, 3]
    found: dict[int, Tensor] = {}
    for step in itertools.count():
        done = model.done(rows)
        for place in done.nonzero().flatten().tolist():
            found[order[place]] = model.finish(take(rows, [place]))[0]
        if waiting and step % 5 == 4:
            kept = take(rows, ~done)
            order = [n for n, over in zip(order, done.tolist(), strict=True) if not over]
            rows, order = join([model.begin(asked[waiting[0]]), kept]), [waiting.pop(0), *order]
        elif not waiting and done.all():
            break
        rows = model.step(rows)
    assert len(found) == 4
    for number, text in enumerate(alone):
        assert torch.equal(found[number], text), number


def test_a_row_has_the_same_bits_with_neighbours_of_any_length() -> None:
    """At one batch size: slots beyond a row's own change nothing, not even rounding, on a CPU."""
    model = gpt(context=300)

    def keys_of(neighbour: str, prompt: str = "abc") -> Tensor:
        rows = model.begin(Request(seeds=(1, 2), prompts=(prompt, neighbour), max_tokens=20))
        for _ in range(20):
            rows = model.step(rows)
        return rows["keys"][0, :22]

    assert torch.equal(keys_of("a"), keys_of("hgfe" * 60))


def test_rows_that_were_kept_aside_still_mean_what_they_meant() -> None:
    """The cache is written in place, past every row's position."""
    model = gpt()
    rows = model.begin(Request(seeds=(1, 2), prompts=("abc", "hg"), max_tokens=12))
    for _ in range(3):
        rows = model.step(rows)

    def ended(rows: Rows) -> Tensor:
        while not model.done(rows).all():
            rows = model.step(rows)
        return model.finish(rows)

    first = ended(rows)
    assert torch.equal(ended(rows), first)


def test_a_seed_gives_its_text_alone_or_in_a_batch() -> None:
    model = gpt()
    prompts = ("abc", "h", "", "gfe dc")
    together = model.sample(Request(seeds=(4, 5, 6, 7), prompts=prompts, max_tokens=20))
    for row, prompt in enumerate(prompts):
        alone = model.sample(Request(seeds=(row + 4,), prompts=(prompt,), max_tokens=20))
        assert torch.equal(together[row], alone[0])


def test_a_text_goes_on_as_it_would_have_gone_on() -> None:
    """A token's draw is its place's: half of a text as the prompt, and the same seed, give the other half."""
    model = gpt()
    whole = model.sample(Request(seeds=(9,), prompts=("abc",), top_k=5, max_tokens=20))[0]
    half = model.text_of(whole[:10])
    rest = model.sample(Request(seeds=(9,), prompts=("abc" + half,), top_k=5, max_tokens=10))[0]
    assert torch.equal(rest, whole[10:])


def test_a_preview_is_the_beginning_of_the_text_and_its_end_is_told() -> None:
    model = gpt()
    rows = model.begin(Request(seeds=(1,), prompts=("abc",), max_tokens=8))
    shown = []
    while not model.done(rows).all():
        rows = model.step(rows)
        shown.append(model.preview(rows)[0])
    text = model.finish(rows)[0]
    assert text.shape == (8,)
    assert all(torch.equal(one[: n + 1], text[: n + 1]) for n, one in enumerate(shown[:-1]))


def test_the_text_ends_with_the_context() -> None:
    model = gpt()
    request = Request(seeds=(1, 2), prompts=("a" * 31, "ab"), top_k=1)
    written = model.sample(request)
    assert (written[0] >= 0).sum() <= 1
    assert written.shape == (2, 30)
    with pytest.raises(
        ValueError, match=r"a prompt has 33 tokens, but this model sees 32: shorten it"
    ):
        model.sample(Request(seeds=(1,), prompts=("a" * 32,)))


def test_a_row_tells_how_likely_its_tokens_were_as_the_whole_text_has_it() -> None:
    model = gpt()
    request = Request(seeds=(1, 2), prompts=("abc", "d"), temperature=0.5, logprobs=3)
    rows, logprobs = model.begin(request), []
    for _ in range(6):
        rows = model.step(rows)
        logprobs.append({name: rows[name] for name in ("nats", "likeliest", "likeliest_nats")})
    for row, prompt in enumerate(request.prompts):
        read = tokenizer(model.config.tokenizer).encode(prompt)
        written = model.preview(rows)[row].tolist()[:6]
        tokens = torch.tensor([[EOS, *read, *written]])
        with torch.no_grad():
            nats_TV = model.logits(tokens)[0, len(read) : -1].log_softmax(1)
        for step, token in enumerate(written):
            expected = nats_TV[step].topk(20)
            found = {name: value[row] for name, value in logprobs[step].items()}
            torch.testing.assert_close(found["nats"], nats_TV[step, token], rtol=0, atol=1e-4)
            torch.testing.assert_close(found["likeliest_nats"], expected.values, rtol=0, atol=1e-4)
            assert torch.equal(found["likeliest"][:3], expected.indices[:3])


@settings(max_examples=20, deadline=None)
@given(prompt=st.text(alphabet="abc d", max_size=30))
def test_a_prompt_is_as_likely_as_the_model_has_it_from_one_pass(prompt: str) -> None:
    model = gpt()
    tokens = [EOS, *tokenizer(model.config.tokenizer).encode(prompt)]
    for found in (model.recalled(prompt), model.recalled(tuple(tokens))):
        assert found["tokens"].tolist() == tokens[1:]
        log_p = model.log_prob({"tokens": torch.tensor([[*tokens, -1]])})
        torch.testing.assert_close(found["nats"].sum()[None], log_p, rtol=0, atol=1e-4)
        with torch.no_grad():
            nats_TV = model.logits(torch.tensor([tokens]))[0, :-1].log_softmax(1)
        expected = nats_TV.topk(20)
        torch.testing.assert_close(found["likeliest_nats"], expected.values, rtol=0, atol=1e-4)


def test_tokens_may_begin_a_document_as_the_model_does_itself() -> None:
    model = gpt()
    ids = tuple(tokenizer(model.config.tokenizer).encode("abc d"))
    begun = model.sample(Request(seeds=(4,), prompt_tokens=((EOS, *ids),)))
    assert torch.equal(begun, model.sample(Request(seeds=(4,), prompt_tokens=(ids,))))
    begun = model.sample(Request(seeds=(4,), prompt_tokens=((EOS,),)))
    assert torch.equal(begun, model.sample(Request(seeds=(4,), prompts=("",))))


def test_tokens_as_a_prompt_are_read_as_its_text_is() -> None:
    model = gpt()
    ids = tuple(tokenizer(model.config.tokenizer).encode("abc d"))
    by_text = model.sample(Request(seeds=(4,), prompts=("abc d",)))
    assert torch.equal(model.sample(Request(seeds=(4,), prompt_tokens=(ids,))), by_text)


def test_a_last_turn_of_the_assistants_is_gone_on_with() -> None:
    model = gpt(learns="dialogues")
    whole = model.sample(Request(seeds=(3,), dialogues=(dialogue("ab"),), max_tokens=12))
    half = model.text_of(whole[0, :5])
    more = model.sample(Request(seeds=(3,), dialogues=(dialogue("ab", half),), max_tokens=7))
    assert half + model.text_of(more[0]) == model.text_of(whole[0])
