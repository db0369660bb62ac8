"""Samplers that are broken on purpose, of real digits: a gate of ours refuses each, and an honest one passes it."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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
from models.judges import metrics as m
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


Sampler = Callable[[str, int], Tensor]


def judged(digits: Digits, recipe: str, sampler: Sampler) -> GateReport:
    """Return what the gate of a recipe says of a sampler's pictures of each digit, of what it asks about samples."""
    return judged_by(digits, [recipe], sampler)[recipe]


def judged_by(digits: Digits, recipes: Sequence[str], sampler: Sampler) -> dict[str, GateReport]:
    """Return as `judged`, of recipes all of which are asked by captions, or none."""
    gates = {recipe: load(RECIPES / f"{recipe}.yaml").gate for recipe in recipes}
    [prompted] = {"alignment" in gate.metrics for gate in gates.values()}
    asked = [name for name in digits.names for _ in range(SEEDS)]
    drawn = torch.stack([sampler(name, row % SEEDS) for row, name in enumerate(asked)])
    model = VAE(VAE.presets["tiny"]).eval()
    stage = PinnedStage(
        stage="vae", name="toy.vae", version=1, sha256="0" * 64, family="vae",
        **ports_of(model),
    )  # fmt: skip
    found = pictures.score(
        [pictures.packed(drawn)],
        asked if prompted else [],
        judge=digits.judge,
        prepared=digits.prepared,
        spec=EvaluationSpec(bootstrap=200),
        models=[model],
        pipeline=Pipeline(endpoint="toy", stages=(stage,), vocabulary=(), image_size=(8, 8)),
    )
    record = Evaluation(evaluation_set="", judge=None, metrics=found.metrics, outcomes={})
    reports = {}
    for recipe, gate in gates.items():
        kept = {name: bound for name, bound in gate.metrics.items() if name in found.metrics}
        reports[recipe] = check(gate.model_copy(update={"metrics": kept}), record, None)
    return reports


def refused_by(report: GateReport) -> set[str]:
    return {condition.name for condition in report.conditions if not condition.passed}


def shifted(picture: Tensor) -> Tensor:
    return F.pad(picture[None], (1, 0, 0, 0), mode="replicate")[0, :, :, :-1]


def noisy(picture: Tensor, seed: int) -> Tensor:
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed))
    return picture + 0.05 * noise


CAPTIONED = ("digits-ddpm", "digits-gan-by-name")
COUNTED = ("digits-lda", "digits-naive-bayes")
PLAIN = ("digits-gan",)
AUTOENCODED = ("digits-vqvae", "digits-wae", "digits-aae")


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


@pytest.mark.parametrize("recipes", [COUNTED, AUTOENCODED])
def test_an_honest_sampler_passes_gates_that_tell_less(
    digits: Digits, recipes: tuple[str, ...]
) -> None:
    reports = judged_by(digits, recipes, lambda name, seed: digits.unknown[name][seed])
    for report in reports.values():
        assert report.passed, report.refusal()


def test_one_picture_a_caption_whatever_the_seed_is_refused(digits: Digits) -> None:
    one = judged_by(digits, CAPTIONED + COUNTED, lambda name, _: digits.unknown[name][0])
    mean = {name: torch.stack(of).mean(0) for name, of in digits.known.items()}
    for reports in (one, judged_by(digits, CAPTIONED + COUNTED, lambda name, _: mean[name])):
        assert all("spread" in refused_by(report) for report in reports.values())


def test_a_digit_that_is_never_drawn_is_missed(digits: Digits) -> None:
    reports = judged_by(
        digits,
        PLAIN + AUTOENCODED,
        lambda name, seed: digits.unknown["four" if name == "nine" else name][seed],
    )
    assert all("least_class" in refused_by(report) for report in reports.values())


@pytest.mark.parametrize("recipes", [(*COUNTED, "digits-ddpm", "digits-edm"), AUTOENCODED])
def test_few_pictures_again_and_again_are_refused(digits: Digits, recipes: tuple[str, ...]) -> None:
    """They cover six in seven of the real ones, and are as good as these."""
    reports = judged_by(digits, recipes, lambda name, seed: digits.unknown[name][seed % 6])
    assert all("distinct" in refused_by(report) for report in reports.values())


@pytest.mark.parametrize("recipe", [*CAPTIONED, *PLAIN])
def test_three_fixed_pictures_a_digit_are_refused(digits: Digits, recipe: str) -> None:
    report = judged(digits, recipe, lambda name, seed: digits.unknown[name][seed % 3])
    assert "coverage" in refused_by(report)


def test_pale_dark_and_some_noisy_pictures_are_refused_by_the_values_of_their_pixels(
    digits: Digits,
) -> None:
    def pale(name: str, seed: int) -> Tensor:
        return 0.5 + 0.6 * (digits.unknown[name][seed] - 0.5)

    def dark(name: str, seed: int) -> Tensor:
        return 0.8 * digits.unknown[name][seed]

    def every_fourth_is_noise(name: str, seed: int) -> Tensor:
        noise = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(seed))
        return noise if seed % 4 == 0 else digits.unknown[name][seed]

    for sampler in (pale, dark, every_fourth_is_noise):
        for recipes in ((*CAPTIONED, "digits-edm"), (*PLAIN, *AUTOENCODED)):
            reports = judged_by(digits, recipes, sampler)
            assert all("pixel_distance" in refused_by(report) for report in reports.values())


def test_pale_dark_and_some_noisy_shapes_are_refused_by_the_values_of_their_pixels(
    tmp_path: Path,
) -> None:
    prepared = prepare_kit.prepare(
        tmp_path, {"maker": "shapes", "count": 1200, "image_size": 32, "seed": 0}
    )
    bound = load(RECIPES / "shapes.yaml").gate.metrics["pixel_distance"].at_most
    assert bound is not None
    honest, real = (everything(prepared, split, image_size=32)[0] for split in ("train", "test"))
    noisy = honest.clone()
    noisy[::8] = torch.rand(len(noisy[::8]), 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def apart(pictures: Tensor) -> float:
        return m.pixel_distance(m.levels_reached(pictures), m.levels_reached(real))

    assert apart(honest) < bound / 2
    for broken in (0.5 + 0.6 * (honest - 0.5), 0.5 + 0.9 * (honest - 0.5), 0.8 * honest, noisy):
        assert apart(broken) > bound
