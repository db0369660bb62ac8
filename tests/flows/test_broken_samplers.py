"""Samplers that are broken on purpose, of real digits: a gate of ours refuses each, and an honest one passes it."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data.loaders import everything, read_header
from flows.evaluating import pictures
from flows.evaluating.gate import Evaluation, GateReport, check
from flows.evaluating.pipeline import ports_of
from flows.recipe import Evaluation as EvaluationSpec
from flows.recipes.loader import load
from infra.pipelines import PinnedStage, Pipeline
from models.variational.vae import VAE
from tests.data import prepare_kit
from tests.models.test_judges import digit_judge

RECIPES = Path(__file__).parents[2] / "flows" / "recipes"
SEEDS = 60


class Digits:
    """Prepared digits, half of the training split of which nobody learns: an honest sampler's; and their judge."""

    def __init__(self, folder: Path) -> None:
        self.prepared = prepare_kit.prepare(folder, {"maker": "digits"})
        header = read_header(self.prepared)
        self.names = list(next(iter(header["attributes"].values())))
        train, captions, attributes = everything(self.prepared, "train", image_size=8)
        self.judge = digit_judge(train, attributes, 300)
        self.known: dict[str, list[Tensor]] = defaultdict(list)
        self.unknown: dict[str, list[Tensor]] = defaultdict(list)
        for row, (picture, caption) in enumerate(zip(train, captions, strict=True)):
            (self.known if row % 2 else self.unknown)[caption].append(picture)

    def as_squares(self, prepared: Path, split: str, side: int) -> tuple[Tensor, list[str], Tensor]:
        """As `pictures.as_squares`, with the known half as training split."""
        pixels, captions, attributes = everything(prepared, split, image_size=side)
        if split != "train":
            return pixels, captions, attributes
        return pixels[1::2], captions[1::2], attributes[1::2]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Digits]:
    with pytest.MonkeyPatch.context() as patch:
        made = Digits(tmp_path_factory.mktemp("digits"))
        patch.setattr(pictures, "as_squares", made.as_squares)
        yield made


def judged(digits: Digits, recipe: str, sampler: Callable[[str, int], Tensor]) -> GateReport:
    """Return what the gate of a recipe says of a sampler's pictures of each digit, of what it asks about samples."""
    gate = load(RECIPES / f"{recipe}.yaml").gate
    asked = [name for name in digits.names for _ in range(SEEDS)]
    drawn = torch.stack([sampler(name, row % SEEDS) for row, name in enumerate(asked)])
    model = VAE(VAE.presets["tiny"]).eval()
    stage = PinnedStage(
        stage="vae", name="toy.vae", version=1, sha256="0" * 64, family="vae",
        **ports_of(model),
    )  # fmt: skip
    found = pictures.score(
        [pictures.packed(drawn)],
        asked if "alignment" in gate.metrics else [],
        judge=digits.judge,
        prepared=digits.prepared,
        spec=EvaluationSpec(bootstrap=200),
        models=[model],
        pipeline=Pipeline(endpoint="toy", stages=(stage,), vocabulary=(), image_size=(8, 8)),
    )
    kept = {name: bound for name, bound in gate.metrics.items() if name in found.metrics}
    record = Evaluation(evaluation_set="", judge=None, metrics=found.metrics, outcomes={})
    return check(gate.model_copy(update={"metrics": kept}), record, None)


def refused_by(report: GateReport) -> set[str]:
    return {condition.name for condition in report.conditions if not condition.passed}


def shifted(picture: Tensor) -> Tensor:
    return F.pad(picture[None], (1, 0, 0, 0), mode="replicate")[0, :, :, :-1]


def noisy(picture: Tensor, seed: int) -> Tensor:
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed))
    return picture + 0.05 * noise


CAPTIONED = ("digits-ddpm", "digits-gan-by-name")
PLAIN = ("digits-gan",)


@pytest.mark.parametrize("recipe", [*CAPTIONED, *PLAIN])
def test_an_honest_sampler_passes(digits: Digits, recipe: str) -> None:
    report = judged(digits, recipe, lambda name, seed: digits.unknown[name][seed])
    assert report.passed, report.refusal()


@pytest.mark.parametrize("recipe", [*CAPTIONED, *PLAIN])
def test_training_pictures_moved_noisy_or_mixed_are_memorised(digits: Digits, recipe: str) -> None:
    known = digits.known
    samplers: list[Callable[[str, int], Tensor]] = [
        lambda name, seed: known[name][seed],
        lambda name, seed: shifted(known[name][seed]),
        lambda name, seed: noisy(known[name][seed], seed),
        lambda name, seed: (known[name][seed] + known[name][seed + 1]) / 2,
        lambda name, _: (known[name][0] + known[name][1]) / 2,
    ]
    for sampler in samplers:
        assert "memorised" in refused_by(judged(digits, recipe, sampler))


@pytest.mark.parametrize("recipe", CAPTIONED)
def test_one_picture_a_caption_whatever_the_seed_is_refused(digits: Digits, recipe: str) -> None:
    report = judged(digits, recipe, lambda name, _: digits.unknown[name][0])
    assert "spread" in refused_by(report)


@pytest.mark.parametrize("recipe", [*CAPTIONED, *PLAIN])
def test_three_fixed_pictures_a_digit_are_refused(digits: Digits, recipe: str) -> None:
    report = judged(digits, recipe, lambda name, seed: digits.unknown[name][seed % 3])
    assert "coverage" in refused_by(report)
