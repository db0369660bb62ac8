"""Small texts with something to learn, the tokenizer of their words, a plain loop, and peers of equal weights."""

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from models.family import Trainable
from models.language.bert import BERT
from models.language.transformer import Transformer
from models.parts.tokens import BOS, CONTROL, EOS, PAD
from models.request import Record


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SMALL = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen"
)
TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
NUMBER_WORDS = (*SMALL, *TENS, "hundred", "thousand", "and", *"0123456789")

NAMES = words("fay ann bob tim lea max ida joe kim sam")
VERBS = words("drew painted made saw")
SIZES = words("small large tiny huge")
COLOURS = words("red green blue yellow white black pink")
SHAPES = words("circle square triangle star cross ring heart")
PLACES = words("left right top bottom")
SCENE_WORDS = (
    *(*NAMES, *VERBS, *SIZES, *COLOURS, *SHAPES, *PLACES),
    *("a", "on", "the", ".", "is", "and", "says"),
)


def of_words(words: Sequence[str]) -> str:
    """Return the document of a tokenizer whose tokens are these words, and each digit alone."""
    vocabulary = {token: place for place, token in enumerate((*CONTROL, *dict.fromkeys(words)))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    )
    made.add_special_tokens(list(CONTROL))
    return json.dumps(json.loads(made.to_str()))


def spelled(number: int) -> str:
    """Return an English number below a million in words: "three hundred and forty two"."""
    if number < 20:
        return SMALL[number]
    if number < 100:
        rest = f" {SMALL[number % 10]}" if number % 10 else ""
        return TENS[number // 10 - 2] + rest
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = number % unit
    joint = "" if not rest else " and " if rest < 100 else " "
    return f"{spelled(number // unit)} {name}" + (joint + spelled(rest) if rest else "")


def number_pairs(numbers: Sequence[int]) -> list[Record]:
    return [(("source", spelled(number)), ("target", str(number))) for number in numbers]


def scenes(seed: int, count: int) -> list[Record]:
    """Return documents of two lines about one scene each, all different."""
    every = list(itertools.product(NAMES, VERBS, SIZES, COLOURS, SHAPES, PLACES))
    return [
        (
            (
                "text",
                f"{name} {verb} a {size} {colour} {shape} on the {place} .\n"
                f"the {shape} is {colour} and {size} says {name} .",
            ),
        )
        for name, verb, size, colour, shape, place in random.Random(seed).sample(every, count)
    ]


def fit(
    model: Trainable, batch: Mapping[str, Tensor], *, steps: int, rows: int, rate: float, seed: int
) -> None:
    """Train with AdamW, warmed up over 50 steps and annealed by a cosine to 5 % as the recipes are; seeds torch."""
    torch.manual_seed(seed)
    count = len(next(iter(batch.values())))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        now = 0.05 + 0.95 * (1 + torch.tensor(torch.pi * step / steps).cos().item()) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * now * min(1, (step + 1) / 50)
        index = torch.randint(count, (rows,))
        optimizer.zero_grad()
        model({name: value[index] for name, value in batch.items()}).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def marian(model: Transformer) -> Any:
    """Return the peer of the same shape with the same weights."""
    import transformers

    c, size = model.config, model.embedding.num_embeddings
    sizes = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("layers", c.layers),
            ("attention_heads", c.heads),
            ("ffn_dim", c.feedforward),
        )
    }
    peer = transformers.MarianMTModel(
        transformers.MarianConfig(
            vocab_size=size,
            d_model=c.width,
            max_position_embeddings=c.max_source,
            scale_embedding=True,
            dropout=0.0,
            activation_function="relu",
            pad_token_id=PAD,
            eos_token_id=EOS,
            bos_token_id=BOS,
            decoder_start_token_id=BOS,
            **sizes,
        )
    ).eval()
    ours = model.state_dict()
    names = {
        **{"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj"},
        "out": "self_attn.out_proj",
    }
    theirs = {}
    for name, value in ours.items():
        side, number, *rest = name.split(".")
        if side == "embedding":
            theirs["model.shared.weight"] = value
            continue
        at, kind = f"model.{side}.layers.{number}.", rest[-1]
        if rest[0] in {"attention", "source"}:
            to = (
                names[rest[1]]
                if rest[0] == "attention"
                else names[rest[1]].replace("self", "encoder")
            )
        elif rest[0] == "feedforward":
            to = {"hidden": "fc1", "out": "fc2"}[rest[1]]
        else:
            last = {"encoder": "norm2", "decoder": "norm3"}[side]
            to = {
                "norm1": "self_attn_layer_norm",
                last: "final_layer_norm",
            }.get(rest[0], "encoder_attn_layer_norm")
        theirs[f"{at}{to}.{kind}"] = value
    for side in ("encoder", "decoder"):
        theirs[f"model.{side}.embed_positions.weight"] = model.places_TE
    missing, unexpected = peer.load_state_dict(theirs, strict=False)
    assert not unexpected
    assert all(
        "embed_tokens" in name or "lm_head" in name or "final_logits_bias" in name
        for name in missing
    )
    return peer


def peer_bert(model: BERT) -> Any:
    """Return transformers' BERT of the same shape with the same weights."""
    import transformers

    c = model.config
    found = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=model.token.num_embeddings,
            hidden_size=c.width,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            intermediate_size=c.feedforward,
            max_position_embeddings=c.max_tokens,
            layer_norm_eps=1e-5,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=PAD,
        )
    ).eval()
    names = {
        **{"token": "embeddings.word_embeddings", "place": "embeddings.position_embeddings"},
        **{"segment": "embeddings.token_type_embeddings", "norm": "embeddings.LayerNorm"},
        "pooler": "pooler.dense",
    }
    inside = {
        **{f"attention.{name}": f"attention.self.{name}" for name in ("query", "key", "value")},
        **{"attention.out": "attention.output.dense", "norm1": "attention.output.LayerNorm"},
        **{"feedforward.hidden": "intermediate.dense", "feedforward.out": "output.dense"},
        "norm2": "output.LayerNorm",
    }
    heads = {
        **{"transform": "transform.dense", "transform_norm": "transform.LayerNorm"},
        **{"follows": "seq_relationship"},
    }
    weights = {"cls.predictions.bias": model.token_bias}
    for name, value in model.state_dict().items():
        first, _, kind = name.rpartition(".")
        if first in names:
            weights[f"bert.{names[first]}.{kind}"] = value
        elif first.startswith("encoder."):
            _, number, part = first.split(".", 2)
            weights[f"bert.encoder.layer.{number}.{inside[part]}.{kind}"] = value
        elif first in heads:
            at = "cls." if first == "follows" else "cls.predictions."
            weights[f"{at}{heads[first]}.{kind}"] = value
    missing, unexpected = found.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    return found
