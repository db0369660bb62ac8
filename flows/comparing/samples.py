"""What two pipeline versions make of the same prompts and seeds: pictures, what is seen of sounds, or texts."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flows.comparing.compare import Incomparable, Side
from flows.comparing.gallery import loaded
from flows.recipe import Recipe
from infra.settings import settings

if TYPE_CHECKING:
    from torch import Tensor

    from infra.pipelines import Modality
    from models.family import Family

PICTURES: Final = 24
FACTORS: Final = (32, 16, 8, 4, 2, 1)


@dataclass(frozen=True, slots=True)
class Pictures:
    """The same requests drawn by both, (N, C, H, W) in [0, 1]; of sounds, clips and meshes as `SEEN` says."""

    prompts: tuple[str, ...]  # "" without text
    seeds: tuple[int, ...]
    source: str
    first: "Tensor"
    second: "Tensor"
    difference: "Tensor | None"  # |A - B| times `factor`, at most 1; None: other sizes
    factor: int
    most: float  # the largest |A - B|, in [0, 1]
    what: str = "pictures"

    @property
    def says(self) -> str:
        """The difference in a sentence."""
        if self.difference is None:
            a, b = (f"{one.shape[-1]}x{one.shape[-2]}" for one in (self.first, self.second))
            return f"A draws {a} pictures, B {b}: they have no pixels to subtract"
        if not self.most:
            return f"both drew the same {self.what}, bit for bit"
        return f"|A - B| x {self.factor}; the largest difference is {self.most * 255:.0f} of 255"


@dataclass(frozen=True, slots=True)
class Texts:
    """What both wrote for the same requests."""

    prompts: tuple[str, ...]  # "" without text
    seeds: tuple[int, ...]
    source: str
    first: tuple[str, ...]
    second: tuple[str, ...]

    @property
    def says(self) -> str:
        """The difference in a sentence."""
        same = sum(a == b for a, b in zip(self.first, self.second, strict=True))
        return f"{same} of {len(self.first)} texts are the same, letter by letter"


def draw_both(first: Side, second: Side, count: int = PICTURES) -> Pictures | Texts:
    """Return what both make of the same requests, on this process's CPU.

    Raises:
        Incomparable: other modalities, or no prompt that both can read.
    """
    from flows.evaluating.pipeline import draw

    kinds = [one.pipeline.modality for one in (first, second)]
    if kinds[0] != kinds[1]:
        says = [f"{one.version.ref} gives {one.pipeline.modality}" for one in (first, second)]
        raise Incomparable(f"{' and '.join(says)}: they make nothing alike")
    if kinds[0] == "embedding":
        raise Incomparable("they give embeddings, which are nothing to look at")
    models = loaded(first), loaded(second)
    prompts, seeds, source = common_requests(first, second, (models[0][0], models[1][0]), count)
    shown = tuple(prompts) or ("",) * len(seeds)
    drawn = [
        draw(networks, one.pipeline, prompts, seeds)
        for networks, one in zip(models, (first, second), strict=True)
    ]
    if kinds[0] == "text":
        ours, theirs = (
            tuple(
                networks[-1].text_of(row[row >= 0], prompt)
                for row, prompt in zip(rows, shown, strict=True)
            )
            for networks, rows in zip(models, drawn, strict=True)
        )
        return Texts(shown, tuple(seeds), source, ours, theirs)
    shown_as, what = SEEN[kinds[0]]
    a, b = map(shown_as, drawn)
    if a.shape != b.shape:
        return Pictures(shown, tuple(seeds), source, a, b, None, 1, 0.0)
    apart = (a - b).abs()
    factor = amplification(apart)
    return Pictures(
        shown,
        tuple(seeds),
        source,
        a,
        b,
        (apart * factor).clamp(0, 1),
        factor,
        float(apart.max()),
        what,
    )


def _spectrograms(sound_NT: "Tensor") -> "Tensor":
    """Return the spectrograms of sounds, (N, 3, H, W) in [0, 1]."""
    import numpy as np
    import torch

    from flows.evaluating.sheets import spectrogram

    levels = np.stack([np.asarray(spectrogram(x_T)) for x_T in sound_NT.float()])
    return torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 255


def _around(volumes_N4RRR: "Tensor") -> "Tensor":
    """Return volumes from four sides, side by side, (N, 3, H, 4 W) in [0, 1]: what is solid of them."""
    from models.text_to_3d import volumes

    side = 2 * volumes_N4RRR.shape[-1]
    return _side_by_side(volumes.seen(volumes.solid(volumes_N4RRR), volumes.around(4), side))


def _side_by_side(frames_NFCHW: "Tensor") -> "Tensor":
    return frames_NFCHW.clamp(0, 1).permute(0, 2, 3, 1, 4).flatten(3)


SEEN: "Final[Mapping[Modality, tuple[Callable[[Tensor], Tensor], str]]]" = {
    "image": (lambda rows: rows.clamp(0, 1), "pictures"),
    "audio": (_spectrograms, "sounds, as their spectrograms show"),
    "clip": (_side_by_side, "clips, their frames side by side"),
    "mesh": (_around, "meshes, from four sides"),
}
"""What is looked at of what is drawn, (N, C, H, W) in [0, 1], and what it is called."""


def amplification(apart: "Tensor") -> int:
    """Return by how much to multiply differences so that all but the largest hundredth stay below white."""
    top = float(apart.flatten()[:: max(1, apart.numel() // 1_000_000)].quantile(0.99))
    return next((factor for factor in FACTORS if top * factor <= 1), 1)


def common_requests(
    first: Side, second: Side, models: "tuple[Family, Family]", count: int
) -> tuple[list[str], list[int], str]:
    """Return prompts and seeds that both can draw, and in words where they come from.

    They are drawn by lot, always the same, from the evaluation's requests where A's dataset is prepared here, else the
    recipes' prompts to try, with numbered seeds.

    Raises:
        Incomparable: only one of them reads text, or no prompt suits both.
    """
    reads = {one.pipeline.reads_text for one in (first, second)}
    a, b = first.version.ref, second.version.ref
    if len(reads) > 1:
        raise Incomparable(f"only one of {a} and {b} reads text: they draw no common request")
    if reads == {False}:
        return [], list(range(count)), f"seeds 0 to {count - 1}"
    fixed = _fixed(first)
    if fixed is None:
        tried = [*first.pipeline.try_prompts, *second.pipeline.try_prompts]
        prompts = list(dict.fromkeys(tried))
        rounds = -(-count // max(1, len(prompts)))
        fixed = prompts * rounds, [seed for seed in range(rounds) for _ in prompts]
        source = "the recipes' prompts to try (the evaluation's dataset is not prepared here)"
    else:
        source = f"by a fixed lot from the evaluation's {len(fixed[1])} requests"
    readable = {
        prompt for prompt in set(fixed[0]) if all(_reads(model, prompt) for model in models)
    }
    pairs = [pair for pair in zip(*fixed, strict=True) if pair[0] in readable]
    if not pairs:
        raise Incomparable(f"{a} and {b} have no prompt that both can read")
    # by lot and not evenly: captions come in an order, and an even step would meet it
    places = sorted(random.Random(0).sample(range(len(pairs)), min(count, len(pairs))))
    chosen = [pairs[place] for place in places]
    return [prompt for prompt, _ in chosen], [seed for _, seed in chosen], source


def _fixed(one: Side) -> tuple[list[str], list[int]] | None:
    """Return the requests that a version was judged on, or None where its data is not prepared here."""
    from data.catalog import CatalogError, prepared
    from flows.evaluating.modalities import judging

    if not one.recipe:
        return None
    recipe = Recipe.model_validate(one.recipe)
    try:
        ready = prepared(recipe.data.name, settings().project)
    except (CatalogError, OSError):
        return None
    if ready.identity != one.facts.get("data_identity"):
        return None
    judges = judging(one.pipeline.modality, ready.path)
    return judges.requests(one.pipeline, ready.path, recipe.evaluation)


def _reads(model: "Family", prompt: str) -> bool:
    try:
        model.encode([prompt])
    except ValueError:
        return False
    return True
