"""How weights move: which of them decay, at which rates, and how long the averaged ones remember."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flows.recipe import Optimizer, Recipe, Training
from flows.recipes.loader import RecipeError, load
from flows.training.optimizers import decaying, rate_at
from models import FAMILIES, JUDGES, trainable
from models.parts.tables import Table
from tests.models.test_families import reader

RECIPES = Path(__file__).parents[2] / "flows" / "recipes"
IN_CAPTIONS = {"text.words.weight", "text.places", "text.null_1TD"}
LOOKED_UP: Mapping[str, set[str]] = {
    "bert": {"token.weight", "place.weight", "segment.weight"},
    "clip": {"text.word.weight", "text.place_TW"},
    "ddpm": IN_CAPTIONS,
    "dalle": {"tokens.weight", "begin_SE", "rows_RE", "columns_CE"},
    "diffusers": {
        f"text_encoder.embeddings.{kind}_embedding.weight" for kind in ("token", "position")
    },
    "diffusers-clips": {
        "text_encoder.shared.weight",
        "text_encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    },
    "dreamfusion": IN_CAPTIONS,
    "dvae": {"vectors.weight"},
    "edm": IN_CAPTIONS,
    "gan": {"critic.words.weight", "generator.words.weight"},
    "causal-lm": {"network.embed_tokens.weight"},
    "gpt": {"tokens.weight", "places.weight"},
    "latent-clips": IN_CAPTIONS,
    "latent-diffusion": IN_CAPTIONS,
    "make-a-video-decoder": {*IN_CAPTIONS, "null_1KD"},
    "make-a-video-interpolation": IN_CAPTIONS,
    "make-a-video-upsampler": IN_CAPTIONS,
    "mcvd": IN_CAPTIONS,
    "matcha": {"encoder.phonemes.weight", "encoder.speakers.weight"},
    "speecht5": {
        "network.speecht5.encoder.prenet.embed_tokens.weight",
        "network.speecht5.encoder.wrapped_encoder.embed_positions.pe_k.weight",
    },
    "transformer": {"embedding.weight"},
    "unclip-decoder": {*IN_CAPTIONS, "null_1KD"},
    "unclip-prior": {"network.words.weight", "network.places_LW", "network.null_1LW"},
    "vits": {"encoder.phonemes.weight", "encoder.speakers.weight", "voices.weight"},
    "vits-checkpoint": {
        "network.embed_speaker.weight",
        "network.text_encoder.embed_tokens.weight",
    },
    "wavenet": {"one_hot.weight"},
}
"""What of a family is looked up and has more than one dimension; captions of PixelCNN, PixelRNN and WaveNet besides."""


@pytest.mark.parametrize("name", [*FAMILIES, *JUDGES])
def test_only_what_is_multiplied_with_decays(name: str) -> None:
    model = (reader(name) if name in FAMILIES else None) or trainable(name)(
        trainable(name).presets["tiny"]
    )
    flat = {key for key, value in model.named_parameters() if value.ndim < 2}
    captions = {key for key, _ in model.named_parameters() if key.endswith("caption.weight")}
    if name not in {"pixelcnn", "pixelrnn", "wavenet"}:
        captions = set()  # of others a caption passes a matrix
    spared = {key for key, _ in model.named_parameters()} - decaying(model)
    assert spared == flat | captions | LOOKED_UP.get(name, set())


def test_a_norm_and_a_table_decay_in_no_shape_and_a_shared_weight_counts_as_an_embedding() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.words = nn.LayerNorm([3, 4]), nn.Embedding(5, 4)
            self.out, self.inner = nn.Linear(4, 5), nn.Linear(4, 4)
            self.token = Table(torch.zeros(1, 1, 4))
            self.scale = nn.Parameter(torch.zeros(4, 4))
            self.out.weight = self.words.weight

    model = Net()
    assert decaying(model) == {"inner.weight", "scale"}
    assert isinstance(model.to(torch.float64).token, Table)


def test_rates_are_those_of_their_papers() -> None:
    def rate(step: int, **rule: Any) -> float:
        return rate_at(step, 110, Optimizer(learning_rate=2.0, warmup_steps=10, **rule))

    for kind in ("cosine", "constant", "inverse_sqrt"):
        assert [rate(step, schedule=kind) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert rate(60) == pytest.approx(2.0 * (0.05 + 0.95 / 2))
    assert rate(60, final_fraction=0) == pytest.approx(1.0)
    assert [rate(step, schedule="constant") for step in (10, 60, 109)] == [2.0, 2.0, 2.0]
    falling = {step: rate(step, schedule="inverse_sqrt") for step in (10, 39, 89, 999)}
    assert falling == pytest.approx({10: 2 * math.sqrt(10 / 11), 39: 1.0, 89: 2 / 3, 999: 0.2})


@given(width=st.integers(8, 1024), warmup=st.integers(1, 5000), step=st.integers(0, 10**6))
def test_the_inverse_root_is_the_transformers(width: int, warmup: int, step: int) -> None:
    """Vaswani et al. 2017, equation 3: width^-.5 min(n^-.5, n warmup^-1.5), n from 1."""
    n, highest = step + 1, (width * warmup) ** -0.5
    rule = Optimizer(learning_rate=highest, warmup_steps=warmup, schedule="inverse_sqrt")
    theirs = width**-0.5 * min(n**-0.5, n * warmup**-1.5)
    assert rate_at(step, 1, rule) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (
            "{schedule: constant, final_fraction: 0.1}",
            "final_fraction is where a cosine ends, cons",
        ),
        ("{schedule: inverse_sqrt, final_fraction: 1}", "inverse_sqrt has none: leave it out"),
        ("{schedule: inverse_sqrt, warmup_steps: 0}", "the end of the warm-up: set warmup_steps"),
        ("{schedule: linear}", "schedule: .*'cosine', 'constant' or 'inverse_sqrt', got 'linear'"),
    ],
)
def test_settings_that_say_nothing_to_a_schedule_are_refused(rule: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as refused:
        load(RECIPES / "shapes.yaml", [f"stages.base.training.optimizers.model={rule}"])
    assert "\n" not in str(refused.value)


@given(rows=st.integers(1, 4096), half=st.floats(100, 1e7))
def test_half_of_a_weight_is_left_after_the_half_life_whatever_the_batch(
    rows: int, half: float
) -> None:
    rules = Training(steps=1, batch_size=rows, ema_half_life=half)
    assert rules.ema_decay ** (half / rows) == pytest.approx(0.5, rel=1e-6)


@given(rows=st.integers(1, 4096), decay=st.floats(0, 1))
def test_what_was_written_with_a_decay_a_step_is_read_with_the_same_one(
    rows: int, decay: float
) -> None:
    document = {"steps": 9, "batch_size": rows, "ema_decay": decay}
    rules = Training.model_validate(document)
    assert rules.ema_decay == pytest.approx(decay, rel=1e-12, abs=1e-15)
    assert "ema_decay" not in json.loads(rules.model_dump_json())
    assert Training.model_validate_json(rules.model_dump_json()) == rules


def test_a_registered_recipe_of_before_is_read() -> None:
    training = {"steps": 2, "ema_decay": 0.99, "optimizers": {"model": {"final_fraction": 1}}}
    old = {
        "name": "old",
        "data": {"name": "d"},
        "stages": {"a": {"family": "vae", "training": training}},
        "found_by": {"search": "run", "trial": 1, "values": {"training.ema_decay": 0.99}},
        "search": {
            "space": {"training.ema_decay": {"choice": [0.9]}},
            **{"max_steps": 2, "grace_steps": 1, "validate_every": 1},
        },
    }
    recipe = Recipe.model_validate_json(json.dumps(old))
    assert recipe.stages["a"].training.ema_decay == pytest.approx(0.99)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize("decay", [2, -0.1, "half", None])
def test_a_decay_that_is_none_is_refused(decay: Any) -> None:
    with pytest.raises(ValueError, match=r"ema_decay must be from 0 to 1, got .* ema_half_life"):
        Training.model_validate({"steps": 1, "ema_decay": decay})
