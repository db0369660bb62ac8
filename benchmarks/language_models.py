"""GPT against transformers' GPT-2 of equal size, on nanoGPT's CPU setting, and cached against naive generation.

`python -m benchmarks.language_models speed`: training steps and logits on the same batches, rounds alternating.
`python -m benchmarks.language_models generation`: the factor that keys and values kept of what was read make.
`python -m benchmarks.language_models shakespeare PATH`: nanoGPT's CPU setting on tinyshakespeare's input.txt, 2,000
steps: a sound implementation ends between 1.80 and 1.97 nats a sign (nanoGPT's README has 1.88 of 20 batches).
`--leak` lets tokens see those after them.

One thread; seconds are CPU seconds, so that neighbours on the machine do not count.
"""

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flows.recipe import Optimizer
from flows.training.optimizers import AdamW, Average, clip, rate_at
from models.family import Batch
from models.language.gpt import GPT
from models.parts.tokens import EOS, of_signs
from models.request import Request
from tests.models.naive_kit import sample_naively

RULE = Optimizer(
    learning_rate=1e-3, betas=(0.9, 0.99), weight_decay=0.1, warmup_steps=100, final_fraction=0.1
)


def transformers_gpt2(model: GPT) -> Any:
    """Return transformers' GPT-2 with our weights: its biases, which we have none of, are zero."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = model.config
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    sizes = {
        "vocab_size": model.tokens.num_embeddings,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
    }
    ends = {"bos_token_id": EOS, "eos_token_id": EOS}
    theirs = GPT2LMHeadModel(GPT2Config(**sizes, **dropout, **ends, activation_function="gelu"))
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


def sized(preset: str, **change: Any) -> GPT:
    """Return a fresh model of 65 signs beside the control tokens, as tinyshakespeare has."""
    torch.manual_seed(0)
    signs = of_signs("".join(chr(0x100 + place) for place in range(65)))
    return GPT(dataclasses.replace(GPT.presets[preset], tokenizer=signs, **change))


def seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def apart(model: GPT, tokens: Tensor) -> float:
    """Return how far our logits and theirs are apart at most, with the same weights."""
    theirs = transformers_gpt2(model).eval()
    model.eval()
    with torch.no_grad():
        found: float = (model.logits(tokens) - theirs(tokens).logits).abs().max().item()
    model.train()
    return found


def speed(preset: str, rows: int, rounds: int) -> None:
    """Print steps a second of ours and theirs, and how far the logits are apart before and after the steps."""
    ours = sized(preset)
    theirs = transformers_gpt2(ours).train()
    tokens = torch.randint(10, 75, (rows, ours.config.context + 1))
    seen, targets = tokens[:, :-1], tokens[:, 1:].flatten()
    losses: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours({"tokens": tokens}).total,
        "theirs": lambda: F.cross_entropy(theirs(seen).logits.flatten(0, 1), targets),
    }
    optimizers = {
        "ours": AdamW(ours, list(ours.parameters()), RULE),
        "theirs": AdamW(theirs, list(theirs.parameters()), RULE),
    }
    first = apart(ours, seen)
    spent: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(rounds + 1):
        for name, loss_of in losses.items():
            taken = seconds(lambda loss=loss_of, by=optimizers[name]: step(loss, by, 1e-3))  # type: ignore[misc]
            spent[name].append(taken)
    mine, peer = (1 / statistics.median(taken[1:]) for taken in spent.values())
    print(
        "| preset | rows | ours, steps/CPU-s | transformers, steps/CPU-s | ours / theirs | logits differ by |"
    )
    print("|---|---|---|---|---|---|")
    figures = (f"{mine:.2f}", f"{peer:.2f}", f"{mine / peer:.2f}")
    print(f"| {preset} | {rows} | {' | '.join(figures)} | {first:.1e}, {apart(ours, seen):.1e} |")


def step(loss: Callable[[], Tensor], optimizer: AdamW, rate: float) -> None:
    """Take one optimiser step, the gradient clipped to a norm of 1."""
    for parameter in optimizer.parameters:
        parameter.grad = None
    loss().backward()  # type: ignore[no-untyped-call]
    one = torch.ones(())
    clip([p.grad for p in optimizer.parameters if p.grad is not None], 1.0, one)
    optimizer.step(rate, one)


def generation(preset: str, counts: Sequence[int], rounds: int) -> None:
    """Print CPU seconds of cached and of naive generation up to the context's end."""
    print("| preset | texts | tokens | cached, s | naive, s | factor | tokens that differ |")
    print("|---|---|---|---|---|---|---|")
    model = sized(preset).eval()
    with torch.no_grad():  # never the likeliest: no text ends before the context does
        model.tokens.weight[EOS] = 0
    model.sample(Request(seeds=(0,), max_tokens=2))  # warm
    for count in counts:
        prompts = tuple(chr(0x100 + place % 65) for place in range(count))
        request = Request(seeds=tuple(range(count)), prompts=prompts, temperature=0)
        made: dict[str, Tensor] = {}

        def write(name: str, asked: Request = request, made: dict[str, Tensor] = made) -> None:
            made[name] = model.sample(asked) if name == "cached" else sample_naively(model, asked)

        ours, naive = (
            min(seconds(lambda who=name: write(who)) for _ in range(rounds))  # type: ignore[misc]
            for name in ("cached", "naive")
        )
        differ = int((made["cached"] != made["naive"]).sum())
        length = int((made["cached"] >= 0).sum(1).max())
        print(
            f"| {preset} | {count} | {length} | {ours:.3f} | {naive:.2f} | {naive / ours:.1f} | {differ} |"
        )


def shakespeare(path: Path, steps: int, rows: int, *, leak: bool) -> None:
    """Train on the first nine tenths, and print the loss on the last one of the weights and of their average."""
    text = path.read_text()
    cut = int(0.9 * len(text))
    torch.manual_seed(0)
    signs = of_signs("".join(sorted(set(text))))
    model = GPT(dataclasses.replace(GPT.presets["nano"], tokenizer=signs, causal=not leak))
    train, test = (model.examples([(("text", part),)]) for part in (text[:cut], text[cut:]))
    optimizer = AdamW(model, list(model.parameters()), RULE)
    average = Average(model, 0.999)
    order = torch.cat(
        [
            torch.randperm(len(train["tokens"]))
            for _ in range(2 + steps * rows // len(train["tokens"]))
        ]
    )
    began = time.process_time()
    print("| step | validation, nats a sign | of the averaged weights | CPU-s |")
    print("|---|---|---|---|")
    for number in range(steps):
        batch = {"tokens": train["tokens"][order[number * rows :][:rows]]}
        rate = rate_at(number, steps, RULE)
        step(lambda rows=batch: model(rows).total, optimizer, rate)  # type: ignore[misc]
        average.update(number, torch.ones(()))
        if (number + 1) % 500 == 0 or number + 1 == steps:
            live = nats(model, test)
            with average.swapped_in():
                averaged = nats(model, test)
            spent = time.process_time() - began
            print(f"| {number + 1} | {live:.4f} | {averaged:.4f} | {spent:.0f} |", flush=True)
    with average.swapped_in():
        tokens = model.eval().sample(Request(seeds=(1,), prompts=("ROMEO:",), temperature=0.8))
    print(f"\nROMEO:{model.text_of(tokens[0])}\n(uniform: {math.log(len(set(text))):.3f})")


def nats(model: GPT, batch: Batch) -> float:
    """Return the mean over all tokens, each counted once."""
    model.eval()
    targets = int((batch["tokens"][:, 1:] >= 0).sum())
    total = -float(model.log_prob(batch).double().sum()) / targets
    model.train()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("speed", "generation"):
        chosen = verbs.add_parser(verb)
        chosen.add_argument("--preset", default="nano")
        chosen.add_argument("--rounds", type=int, default=30 if verb == "speed" else 3)
    verbs.choices["speed"].add_argument("--rows", type=int, default=12)
    verbs.choices["generation"].add_argument("--texts", type=int, nargs="+", default=[1, 16])
    learned = verbs.add_parser("shakespeare")
    learned.add_argument("path", type=Path)
    learned.add_argument("--steps", type=int, default=2000)
    learned.add_argument("--rows", type=int, default=12)
    learned.add_argument("--leak", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.verb == "speed":
        speed(given.preset, given.rows, given.rounds)
    elif given.verb == "generation":
        generation(given.preset, given.texts, given.rounds)
    else:
        shakespeare(given.path, given.steps, given.rows, leak=given.leak)


if __name__ == "__main__":
    main()
