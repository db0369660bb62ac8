"""GPT against its definition: it sees what came before and no more, and is transformers' GPT-2."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.language_models import transformers_gpt2
from models.language.gpt import GPT, GPTConfig
from models.parts.tokens import ASSISTANT, BOS, CONTROL, EOS, USER, of_signs, tokenizer
from models.request import Request
from tests.models.gpt_kit import dialogue, document, gpt


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


def test_the_logits_are_those_of_transformers_gpt2() -> None:
    model = gpt(scale=3, layers=3)
    theirs = transformers_gpt2(model).eval()
    tokens = torch.randint(0, 25, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.logits(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)
        loss = theirs(tokens, labels=tokens).loss  # shifted there
    assert model({"tokens": tokens}).total.item() == pytest.approx(float(loss), abs=1e-5)


def test_greedy_text_is_that_of_transformers_generate() -> None:
    model = gpt(scale=3)
    theirs = transformers_gpt2(model).eval()
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
        (model, Request(seeds=(1,), dialogues=(ask,)), "dialogues: this model does not chat"),
        (chat, Request(seeds=(1,)), "give one prompt a seed"),
        (
            chat,
            Request(seeds=(1,), dialogues=((("tool", "a"),),)),
            "dialogue 0 has turns of system, user, assistant; got tool",
        ),
        (
            chat,
            Request(seeds=(1,), prompt_tokens=((10,),)),
            "prompt_tokens: this model reads no tokens",
        ),
        (model, Request(seeds=(1,), prompt_tokens=((7,),)), "token 7 is none of this model's"),
        (model, Request(seeds=(1,), prompt_tokens=((9, 3),)), "token 9 is none of this model's"),
        (
            model,
            Request(seeds=(1,), prompt_tokens=((100_257,),)),
            r"which are 10 to .* of its own WordLevel tokenizer \(sha256 [0-9a-f]{16}\)",
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


def test_of_windows_that_overlap_every_token_is_measured_once_and_learned_often() -> None:
    model = gpt(stride=3, context=8)
    batch = model.examples([document("the quick brown fox"), document("jumps")])
    words = tokenizer(model.config.tokenizer)
    stream = [EOS, *words.encode("the quick brown fox"), EOS, *words.encode("jumps"), EOS]
    fresh = batch["tokens"][:, 1:][batch["fresh"]]
    assert fresh[fresh >= 0].tolist() == stream[1:]
    with torch.no_grad():
        log_p_NTV = model.logits(batch["tokens"][:, :-1].clamp(min=0)).log_softmax(2)
    nats_NT = -log_p_NTV.gather(2, batch["tokens"][:, 1:, None].clamp(min=0))[:, :, 0]
    there_NT = batch["tokens"][:, 1:] >= 0
    torch.testing.assert_close(
        -model.log_prob(batch), (nats_NT * (there_NT & batch["fresh"])).sum(1)
    )
    whole = (nats_NT * there_NT).sum() / there_NT.sum()
    torch.testing.assert_close(model(batch).total.detach(), whole)


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
