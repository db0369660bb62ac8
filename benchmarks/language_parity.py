"""The Transformer and BERT against transformers' Marian and BERT of the same shape, weights and batches, in turns.

`python -m benchmarks.language_parity` prints a row a family: optimiser steps a CPU second of both, their ratio, and how
far their logits are apart before the first step; one thread. Our BERT draws its masks and exchanged sentences within
the step, and looks for words at the masked places alone; the peer is given ready ones, and looks at every place.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.language.bert import BERT
from models.language.transformer import Transformer
from models.parts.tokens import BOS, PAD
from tests.models.language_kit import (
    NUMBER_WORDS,
    SCENE_WORDS,
    marian,
    number_pairs,
    of_words,
    peer_bert,
    scenes,
)

ROWS = 64


def stepper(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Return one optimiser step: gradients, clipping, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def rates(ours: Callable[[], None], theirs: Callable[[], None], turns: int) -> tuple[float, float]:
    """Return both sides' steps a CPU second, taken in turns of five steps."""
    spent = [0.0, 0.0]
    for side in (ours, theirs):
        side()  # warm
    for _ in range(turns):
        for place, side in enumerate((ours, theirs)):
            began = time.process_time()
            for _ in range(5):
                side()
            spent[place] += time.process_time() - began
    return 5 * turns / spent[0], 5 * turns / spent[1]


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Return the greatest difference of two sets of logits."""
    return (ours - theirs).abs().max().item()


def transformer(turns: int) -> tuple[float, float, float]:
    """Return the rates on number words, and the difference of the logits of all real places."""
    torch.manual_seed(0)
    config = dataclasses.replace(Transformer.presets["small"], tokenizer=of_words(NUMBER_WORDS))
    model = Transformer(config).eval()
    peer = marian(model)
    batch = model.examples(number_pairs(range(10_007, 10_007 + 1009 * ROWS, 1009)))
    asked, label = batch["target"][:, :-1], batch["target"][:, 1:]
    assert asked[0, 0] == BOS

    def peer_logits() -> Tensor:
        found: Tensor = peer(
            input_ids=batch["source"],
            attention_mask=batch["source"] != PAD,
            decoder_input_ids=asked,
            decoder_attention_mask=asked != PAD,
            use_cache=False,
        ).logits
        return found

    def peer_loss() -> Tensor:
        return F.cross_entropy(
            peer_logits().flatten(0, 1), label.flatten(), ignore_index=PAD, label_smoothing=0.1
        )

    with torch.no_grad():
        real = asked != PAD
        far = apart(model.logits(batch["source"], asked)[real], peer_logits()[real])
    return *rates(stepper(model, lambda: model(batch).total), stepper(peer, peer_loss), turns), far


def bert(turns: int) -> tuple[float, float, float]:
    """Return the rates on scenes, and the difference of both heads' logits."""
    torch.manual_seed(0)
    config = dataclasses.replace(BERT.presets["small"], tokenizer=of_words(SCENE_WORDS))
    model = BERT(config).eval()
    peer: Any = peer_bert(model)
    batch = model.examples(scenes(0, ROWS))
    shown = model.masked(batch, torch.Generator().manual_seed(0))
    given = {
        "input_ids": shown.tokens_BT,
        "attention_mask": shown.tokens_BT != PAD,
        "token_type_ids": shown.segment_BT,
    }
    labels = {
        "labels": shown.label_BT.masked_fill(~shown.selected_BT, -100),
        "next_sentence_label": shown.is_random_B,
    }
    with torch.no_grad():
        (words, follows), theirs = model.logits(shown), peer(**given)
        far = max(
            apart(
                words,
                theirs.prediction_logits[torch.arange(len(words))[:, None], shown.position_BM],
            ),
            apart(follows, theirs.seq_relationship_logits),
        )
    ours = stepper(model, lambda: model(batch).total)
    return *rates(ours, stepper(peer, lambda: peer(**given, **labels).loss), turns), far


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--turns", type=int, default=20, help="of five steps each")
    given = options.parse_args()
    torch.set_num_threads(1)
    print("| family | peer | steps/CPU-s ours | peer | ratio | logits differ by |")
    print("|---|---|---|---|---|---|")
    for name, other, measured in (("transformer", "Marian", transformer), ("bert", "BERT", bert)):
        ours, theirs, far = measured(given.turns)
        row = (f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f}", f"{far:.1e}")
        print(f"| {name} | transformers' {other} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
