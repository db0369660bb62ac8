"""Pictures a second of a Stable Diffusion: our sampler against diffusers' own pipeline around the same networks.

`python -m benchmarks.checkpoint_sampling` prints a table row a batch size: prompts that were asked for before, whose
embeddings are kept, and new ones. Both sides have the same networks (random weights, sizes between a toy's and a real
one's), scheduler, steps and guidance. One thread; seconds are CPU seconds; medians of rounds in which both take turns
at going first.
"""

import argparse
import copy
import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.sampling import seconds
from models.request import Request
from models.text_to_image.diffusers_pipeline import Diffusers

GUIDANCE = 7.5
PROMPTS = tuple(f"a {size} {colour} cat" for size in ("large", "small") for colour in "abcdefgh")


def checkpoint(width: int, layers: int) -> Diffusers:
    """Return the family with networks of so many channels, whose text encoder has so many layers."""
    torch.manual_seed(0)
    tiny = Diffusers.presets["tiny"]
    networks = {name: dict(one) for name, one in tiny.networks.items()}
    text = {"hidden_size": 2 * width, "intermediate_size": 8 * width, "num_attention_heads": 4}
    networks["text_encoder"] |= {**text, "num_hidden_layers": layers}
    channels = {"block_out_channels": [width, 2 * width], "attention_head_dim": 4}
    networks["unet"] |= {**channels, "cross_attention_dim": 2 * width}
    return Diffusers(dataclasses.replace(tiny, networks=networks)).eval()


def diffusers_pipeline(model: Any) -> Any:
    """Return diffusers' own pipeline of the same networks."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    reader = model.config.readers["text_encoder"]
    words = Tokenizer.from_str(reader["document"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=reader["length"],
        pad_token=words.id_to_token(reader["pad"]),
    )
    pipeline = StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=DDIMScheduler.from_config(json.loads(model.config.scheduler)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(pipeline: Any, prompts: Sequence[str], steps: int) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    found: Tensor = pipeline(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        generator=generators,
        output_type="pt",
    ).images
    return found


def ours(model: Diffusers, prompts: Sequence[str], steps: int) -> Tensor:
    seeds = tuple(range(len(prompts)))
    return model.sample(Request(seeds, prompts=tuple(prompts), steps=steps, guidance=GUIDANCE))


def measured(
    sides: Sequence[Callable[[Sequence[str]], object]], size: int, rounds: int, *, new: bool
) -> list[list[float]]:
    """Return each side's CPU seconds of drawing a batch, a round each."""
    spent: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 1):
        named = f" {number}" if new else ""
        prompts = [f"{PROMPTS[place % len(PROMPTS)]}{named}" for place in range(size)]
        for side in range(len(sides)) if number % 2 else reversed(range(len(sides))):
            spent[side].append(seconds(partial(sides[side], prompts)))
    return [one[1:] for one in spent]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--text-layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = checkpoint(given.width, given.text_layers)
    pipeline = diffusers_pipeline(copy.deepcopy(model))
    model.ready()  # as a replica draws; the pipeline's networks stay as diffusers makes them
    sides = (
        lambda prompts: ours(model, prompts, given.steps),
        lambda prompts: theirs(pipeline, prompts, given.steps),
    )
    print("| batch | prompts | ours, pictures/CPU-s | diffusers, pictures/CPU-s | ratio |")
    print("|---|---|---|---|---|")
    for size in given.batches:
        for new in (False, True):
            spent = measured(sides, size, given.rounds, new=new)
            mine, peer = (size / statistics.median(one) for one in spent)
            ratio = statistics.median(b / a for a, b in zip(*spent, strict=True))
            kind = "new" if new else "asked before"
            print(f"| {size} | {kind} | {mine:.1f} | {peer:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
