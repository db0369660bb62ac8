"""GPT against its definition: it sees what came before and no more, and writes what it says, cached or not."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import build, describe
from models.family import Record, Request, Rows
from models.language.drawing import drawn, uniform
from models.language.gpt import GPT, GPTConfig
from models.parts.rows import join, take
from models.parts.tokens import (
    ASSISTANT,
    BOS,
    CONTROL,
    EOS,
    SYSTEM,
    USER,
    of_signs,
    tokenizer,
)

SIGNS = "abcdefgh <>user?"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads do not pay on networks this small, and cost dearly where other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gpt(seed: int = 0, scale: float = 6, **change: Any) -> GPT:
    """A GPT whose weights are large enough that every token matters to those after it."""
    torch.manual_seed(seed)
    model = GPT(dataclasses.replace(GPT.presets["tiny"], tokenizer=of_signs(SIGNS), **change))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1 if "norm" in name else scale)
    return model.eval()


def document(text: str) -> Record:
    return (("text", text),)


def dialogue(*texts: str, system: str | None = None) -> Record:
    """User and assistant in turn."""
    turns = [(("user", "assistant")[place % 2], text) for place, text in enumerate(texts)]
    return (*((("system", system),) if system is not None else ()), *turns)


def fitted(model: GPT, records: Sequence[Record], steps: int, rate: float = 3e-3) -> float:
    """Train on all examples at once; returns the last loss."""
    model.train()
    batch = model.examples(records)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0)
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(batch).total
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    return loss.item()


# What a token sees


def influence(model: GPT) -> Tensor:
    """|d logits_t / d embedding_s|, the largest of each pair of places, (T, T)."""
    tokens_1T = torch.arange(8)[None] + len(CONTROL)
    seen: list[Tensor] = []

    def watch(module: object, inputs: object, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    handle = model.tokens.register_forward_hook(watch)
    logits_TV = model.logits(tokens_1T)[0]
    handle.remove()
    rows = [
        torch.autograd.grad(logits_V.square().sum(), seen[0], retain_graph=True)[0]
        for logits_V in logits_TV
    ]
    return torch.stack(rows)[:, 0].abs().amax(2)


def test_a_logit_depends_on_every_token_before_it_and_on_none_after() -> None:
    found = influence(gpt())
    assert torch.equal(found.triu(1), torch.zeros_like(found))
    assert (found[torch.ones_like(found).tril().bool()] > 0).all()
    assert (influence(gpt(causal=False)) > 0).all()


@settings(max_examples=6, deadline=None)
@given(cut=st.integers(1, 31), seed=st.integers(0, 1000))
def test_what_follows_changes_nothing_before(cut: int, seed: int) -> None:
    model = gpt()
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randint(len(CONTROL), 25, (2, 1, 32), generator=generator)
    other[:, :cut] = one[:, :cut]
    with torch.no_grad():
        before, after = model.logits(one)[:, :cut], model.logits(other)[:, :cut]
        alone = model.logits(one[:, :cut])
    torch.testing.assert_close(before, after, rtol=0, atol=1e-5)
    torch.testing.assert_close(before, alone, rtol=0, atol=1e-5)


def test_the_probabilities_of_all_texts_sum_to_one() -> None:
    """Texts of two tokens after <eos>, all 12 tokens: 144; exact, so a model that peeks is found out."""
    for learns, causal in itertools.product(("documents", "dialogues"), (True, False)):
        change = {"learns": learns, "causal": causal, "loss_on": "everything", "context": 2}
        torch.manual_seed(0)
        model = GPT(GPTConfig(tokenizer=of_signs("ab"), width=16, layers=1, heads=2, **change))  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(20 if parameter.ndim == 2 else 1)
        texts = torch.tensor(list(itertools.product(range(12), repeat=2)))
        tokens = torch.cat([torch.full((144, 1), EOS), texts], 1)
        answer = torch.ones(144, 2, dtype=torch.bool)
        total = model.log_prob({"tokens": tokens, "answer": answer}).double().exp().sum().item()
        assert (total == pytest.approx(1, abs=1e-5)) == causal


# Against a peer


def transformers_gpt2(model: GPT) -> Any:
    """transformers' GPT-2 with our weights: its biases, which we have none of, are zero."""
    transformers = pytest.importorskip("transformers")
    config = model.config
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=model.tokens.num_embeddings,
            n_positions=config.context,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            activation_function="gelu",
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            bos_token_id=EOS,
            eos_token_id=EOS,
        )
    ).eval()
    known = {
        "tokens": "transformer.wte",
        "places": "transformer.wpe",
        "norm": "transformer.ln_f",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "hidden": "mlp.c_fc",
        "out": "mlp.c_proj",
    }
    state = {name: torch.zeros_like(value) for name, value in theirs.state_dict().items()}
    for name, value in model.state_dict().items():
        block, _, inner = name.removeprefix("blocks.").partition(".")
        part = (inner if block.isdigit() else name).removesuffix(".weight")
        where = f"transformer.h.{block}.{known[part]}" if block.isdigit() else known[part]
        is_filter = part.endswith(("qkv", "out", "hidden"))  # theirs are (inputs, outputs)
        state[f"{where}.weight"] = value.T if is_filter else value
    state["lm_head.weight"] = state["transformer.wte.weight"]
    theirs.load_state_dict(state)
    return theirs


def test_the_logits_are_those_of_transformers_gpt2() -> None:
    model = gpt(scale=3, layers=3)
    theirs = transformers_gpt2(model)
    tokens = torch.randint(0, 25, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.logits(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)
        loss = theirs(tokens, labels=tokens).loss  # shifted there
    assert model({"tokens": tokens}).total.item() == pytest.approx(float(loss), abs=1e-5)


def test_greedy_text_is_that_of_transformers_generate() -> None:
    model = gpt(scale=3)
    theirs = transformers_gpt2(model)
    others = [token for token in range(len(CONTROL)) if token != EOS]
    start = torch.tensor([[EOS, *tokenizer(model.config.tokenizer).encode("bad")]])
    made = theirs.generate(
        start,
        attention_mask=torch.ones_like(start),
        do_sample=False,
        max_new_tokens=20,
        suppress_tokens=others,
        pad_token_id=0,
    )
    ours = model.sample(Request(seeds=(0,), prompts=("bad",), temperature=0, max_tokens=20))
    assert ours[0].tolist() == made[0, 4:].tolist()


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
    process = pytest.importorskip("transformers.generation.logits_process")
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


# Drawing


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


def test_the_numbers_that_draw_are_even_and_of_their_own_place() -> None:
    """10,000 numbers of a seed and 10,000 seeds at a place: in each tenth 1,000, a standard deviation of 30."""
    of_one_seed = [uniform(7, place) for place in range(10_000)]
    of_one_place = [uniform(seed, 7) for seed in range(10_000)]
    for numbers in (of_one_seed, of_one_place):
        assert all(0 <= number < 1 for number in numbers)
        tenths = torch.tensor(numbers).histc(10, 0, 1)
        assert (tenths - 1000).abs().max() < 150
    both = torch.tensor([of_one_seed[:-1], of_one_seed[1:]])
    assert abs(both.corrcoef()[0, 1].item()) < 0.05


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


# Steps


@settings(max_examples=8, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4),
    prompt=st.text("abcdefgh ", max_size=20),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([None, 3]),
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
    assert torch.equal(model.sample(request), model.sample_naively(request))


def test_the_cached_logits_are_the_naive_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is drawn: the numbers behind it, token after token, to 1e-5."""
    seen: list[Tensor] = []

    def watching(logits_BV: Tensor, *rules: Tensor) -> Tensor:
        seen.append(logits_BV)
        return drawn(logits_BV, *rules)

    monkeypatch.setattr("models.language.gpt.drawn", watching)
    model, compared = gpt(context=100), 0
    for seed, prompt in itertools.product((1, 2, 3, 4), ("ab", "abcdefgh" * 4)):
        request = Request(seeds=(seed,), prompts=(prompt,), temperature=0.5, max_tokens=60)
        model.sample(request)
        cached = [*seen]
        seen.clear()
        model.sample_naively(request)
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


# What is learned


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
    kept = model.examples([record])["tokens"][0]
    a, b = len(CONTROL), len(CONTROL) + 1
    h = len(CONTROL) + 7
    assert kept.tolist() == [BOS, SYSTEM, h, USER, a, a, a, ASSISTANT, b, b, b, EOS]
    with pytest.raises(
        ValueError, match="last exchange of record 1 has 15 tokens, but a context of 12"
    ):
        model.examples([record, dialogue("a" * 6, "b" * 5)])


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


def test_equal_parts_of_a_batch_average_to_the_whole() -> None:
    """So that two workers, or two accumulated parts, learn what one does, however long the answers are."""
    model = gpt(learns="dialogues")
    batch = model.examples(
        [dialogue("a", "b"), dialogue("ab", "cdefgh"), dialogue("c", ""), dialogue("", "hg")]
    )
    whole = model(batch).total
    parts = [
        model({name: value[rows] for name, value in batch.items()}).total
        for rows in ([0, 1], [2, 3])
    ]
    torch.testing.assert_close(sum(parts) / 2, whole)
    nats = model.measure(batch)["nats_per_token"].mean()
    torch.testing.assert_close(nats, whole.detach(), rtol=0, atol=1e-5)


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
        before = model.measure(model.examples(CHAT))["exact_match"].mean()
        assert before < 0.1
        fitted(model, CHAT, 200, 1e-2)
        after = model.measure(model.examples(CHAT))
        found[causal] = {name: float(values.mean()) for name, values in after.items()}
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


# Text and control


def test_no_control_token_is_written_and_none_is_made_of_text() -> None:
    model = gpt()
    with torch.no_grad():  # a model that wants nothing but control tokens
        model.tokens.weight[: len(CONTROL)] *= 30
    written = model.sample(Request(seeds=tuple(range(50)), prompts=("abc",) * 50))
    kept = written[written >= 0]
    assert (kept >= len(CONTROL)).all()
    typed = model._prompts(Request(seeds=(1,), prompts=("<user>",)))[0]
    assert typed[0] == EOS
    assert all(token >= len(CONTROL) for token in typed[1:])
    assert model.text_of(torch.tensor([*typed, -1])) == "<user>"
    chat = gpt(learns="dialogues")
    asked = chat._prompts(Request(seeds=(1,), prompts=("<user>",)))[0]
    assert asked[:2] == [BOS, USER]
    assert asked[-1] == ASSISTANT
    assert all(token >= len(CONTROL) for token in asked[2:-1])


def test_a_prompt_is_a_dialogue_of_one_question() -> None:
    model = gpt(learns="dialogues")
    by_prompt = model.sample(Request(seeds=(3,), prompts=("ab",)))
    by_dialogue = model.sample(Request(seeds=(3,), dialogues=(dialogue("ab"),)))
    assert torch.equal(by_prompt, by_dialogue)
    longer = model.sample(Request(seeds=(3,), dialogues=(dialogue("ab", "c", "ab"),)))
    assert not torch.equal(longer, by_dialogue[:, : longer.shape[1]])


def test_requests_that_mean_nothing_are_refused() -> None:
    model, chat = gpt(), gpt(learns="dialogues")
    assert not model.capabilities.chats
    assert chat.capabilities.chats
    ask = dialogue("ab")
    cases: list[tuple[GPT, Request, str]] = [
        (model, Request(seeds=(1,), dialogues=(ask,)), "does not chat: give prompts"),
        (chat, Request(seeds=(1,)), "this model answers: give one prompt or dialogue a seed"),
        (
            chat,
            Request(seeds=(1,), dialogues=(dialogue("a", "b"),)),
            "dialogue 0 must be .* end with user; got",
        ),
        (model, Request(seeds=(1,), temperature=-1), "temperature must be in 0..100, got -1"),
        (
            model,
            Request(seeds=(1,), temperature=float("nan")),
            "temperature must be in 0..100, got nan",
        ),
        (model, Request(seeds=(1,), top_k=0), "top_k must be at least 1, got 0"),
        (model, Request(seeds=(1,), top_p=0), r"top_p must be in \(0, 1\], got 0"),
        (model, Request(seeds=(1,), max_tokens=0), "max_tokens must be at least 1, got 0"),
    ]
    for one, request, message in cases:
        with pytest.raises(ValueError, match=message):
            one.sample(request)


def test_records_of_another_kind_are_refused() -> None:
    with pytest.raises(
        ValueError, match="record 1 has the roles user, assistant: set learns: dialogues"
    ):
        gpt().examples([document("a"), dialogue("a", "b")])
    with pytest.raises(ValueError, match=r"record 0 must be .* end with assistant; got text"):
        gpt(learns="dialogues").examples([document("a")])
    with pytest.raises(ValueError, match=r"record 0 must be .* got user, user"):
        gpt(learns="dialogues").examples([(("user", "a"), ("user", "b"))])
    for learns in ("documents", "dialogues"):
        with pytest.raises(ValueError, match="there are no records to learn from"):
            gpt(learns=learns).examples([])


# Config and weights


def test_weights_begin_as_nanogpts_do() -> None:
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(GPT.presets["nano"], width=256, layers=8))
    spread = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.ndim == 2}
    for name, std in spread.items():
        assert std == pytest.approx(0.005 if name.endswith("out.weight") else 0.02, rel=0.05), name
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    assert {p.ndim for name, p in model.named_parameters() if "norm" in name} == {1}


def test_its_size_is_nanogpts() -> None:
    """nanoGPT prints 0.80 M for its CPU setting and 10.65 M for its GPU one, places not counted; 65 signs."""
    signs = of_signs("".join(chr(97 + place) for place in range(65)))
    for preset, millions in (("nano", 0.80), ("small", 10.65)):
        model = GPT(dataclasses.replace(GPT.presets[preset], tokenizer=signs))
        count = sum(p.numel() for p in model.parameters()) - model.places.weight.numel()
        assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_a_chatting_model_is_rebuilt_from_json() -> None:
    model = gpt(learns="dialogues")
    again = build(describe(model)).eval()
    again.load_state_dict(model.state_dict())
    assert isinstance(again, GPT)
    request = Request(seeds=(7,), prompts=("ab",))
    assert torch.equal(again.sample(request), model.sample(request))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 30}, "width 30 must be divisible by heads, got 4"),
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"stride": 65}, r"stride must be in 1..64 \(context\), got 65"),
        ({"tokenizer": "{}"}, "no tokenizers document"),
    ],
)
def test_a_config_that_would_fail_late_fails_early(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPTConfig(**change)
