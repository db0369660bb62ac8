"""LDA and naive Bayes against scikit-learn, against brute force, and with what breaks them."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.naive_bayes import BernoulliNB, GaussianNB, MultinomialNB
from sklearn.svm import SVC
from torch import Tensor

from models.classical.lda import LDA, LDAConfig
from models.classical.naive_bayes import NaiveBayes, NaiveBayesConfig
from models.family import Family
from models.request import Request

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAIN = 1300
M = TypeVar("M", LDA, NaiveBayes)

LDAS = [{"shrinkage": amount} for amount in (0, 0.01, 0.3, "ledoit-wolf")]
BAYES: list[dict[str, Any]] = [
    {"likelihood": "gaussian", "var_smoothing": 0.01},
    {"likelihood": "gaussian", "var_smoothing": 0.001},
    {"likelihood": "bernoulli"},
    {"likelihood": "bernoulli", "alpha": 0.25},
    {"likelihood": "multinomial"},
]


def label(change: dict[str, Any]) -> str:
    return "-".join(str(value) for value in change.values())


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits in one random order: pixels (N, 1, 8, 8) in [0, 1] and their classes."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pixels = torch.tensor(found.images[order] / 16, dtype=torch.float32)[:, None]
    return pixels, torch.tensor(found.target[order])


def lda(**change: Any) -> LDA:
    return LDA(dataclasses.replace(LDAConfig(image_size=8, vocabulary=WORDS), **change))


def bayes(**change: Any) -> NaiveBayes:
    config = NaiveBayesConfig(image_size=8, vocabulary=WORDS)
    return NaiveBayes(dataclasses.replace(config, **change))


def counted(model: M, pixels: Tensor, wanted: Tensor, parts: int = 7) -> M:
    for number in range(len(model.sums)):
        for x, y in zip(pixels.chunk(parts), wanted.chunk(parts), strict=True):
            model.absorb({"pixels": x, "tokens": y[:, None] + 1}, number)
        model.settle(number)
    return model


def learned(model: M, digits: tuple[Tensor, Tensor]) -> M:
    return counted(model, *(part[:TRAIN] for part in digits))


def agrees(ours: Tensor, theirs: np.ndarray[Any, Any], wanted: Tensor) -> None:
    mine = (ours.argmax(1) == wanted).double().mean()
    peers = (torch.from_numpy(theirs).argmax(1) == wanted).double().mean()
    assert abs(float(mine - peers)) <= 0.003
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", LDAS, ids=label)
def test_lda_is_scikit_learns(change: dict[str, Any], digits: tuple[Tensor, Tensor]) -> None:
    rows, wanted = digits[0].flatten(1).double().numpy(), digits[1].numpy()
    amount = change["shrinkage"]
    solver = {0: ("svd", None), "ledoit-wolf": ("lsqr", "auto")}.get(amount, ("lsqr", amount))
    peer = LinearDiscriminantAnalysis(solver=solver[0], shrinkage=solver[1])
    score = torch.from_numpy(peer.fit(rows[:TRAIN], wanted[:TRAIN]).decision_function(rows[TRAIN:]))
    ours = learned(lda(**change), digits).log_joint(digits[0][TRAIN:])
    agrees(ours.log_softmax(1), score.log_softmax(1).numpy(), digits[1][TRAIN:])


@pytest.mark.parametrize("change", BAYES, ids=label)
def test_naive_bayes_is_scikit_learns_priors_included(
    change: dict[str, Any], digits: tuple[Tensor, Tensor]
) -> None:
    rows, wanted = digits[0].flatten(1).double().numpy(), digits[1].numpy()
    alpha, kind = change.get("alpha", 1.0), change["likelihood"]
    peer: Any = {
        "gaussian": lambda: GaussianNB(var_smoothing=change["var_smoothing"]),
        "bernoulli": lambda: BernoulliNB(alpha=alpha, binarize=0.5),
        "multinomial": lambda: MultinomialNB(alpha=alpha),
    }[kind]()
    if kind == "multinomial":
        rows = rows * 16
    peer.fit(rows[:TRAIN], wanted[:TRAIN])
    model, held_out = learned(bayes(**change), digits), digits[0][TRAIN:]
    joint = model.log_joint(held_out)
    agrees(joint.log_softmax(1), peer.predict_log_proba(rows[TRAIN:]), digits[1][TRAIN:])
    if kind != "multinomial":  # scikit-learn leaves the coefficient out
        np.testing.assert_allclose(
            joint.numpy(), peer.predict_joint_log_proba(rows[TRAIN:]), atol=1e-6
        )


def two_classes(model: M, pixels: int) -> M:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.arange(30) % 3 // 2  # a class is twice as frequent
    noise = torch.rand(30, pixels, 1, 1, generator=generator) * 0.6
    return counted(model, noise + 0.4 * wanted[:, None, None, None], wanted, parts=3)


def test_bernoulli_probabilities_sum_to_one_over_all_pictures() -> None:
    model = two_classes(bayes(image_size=1, channels=4, vocabulary=("a", "b")), 4)
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).view(-1, 4, 1, 1)
    assert float(model.log_prob({"pixels": every}).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_multinomial_probabilities_sum_to_one_over_all_counts() -> None:
    config = {"image_size": 1, "channels": 3, "vocabulary": ("a", "b"), "levels": 3}
    model = two_classes(bayes(likelihood="multinomial", **config), 3)
    counts = [row for row in itertools.product(range(10), repeat=3) if sum(row) <= 9]
    every = torch.tensor(counts).view(-1, 3, 1, 1) / 3
    assert float(model.log_prob({"pixels": every}).exp().sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    "build", [lda, lambda **change: bayes(likelihood="gaussian", **change)], ids=["lda", "bayes"]
)
def test_densities_integrate_to_one(build: Callable[..., LDA | NaiveBayes]) -> None:
    model = two_classes(build(image_size=1, channels=2, vocabulary=("a", "b")), 2)
    axis = torch.linspace(-2, 3, 501, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).view(-1, 2, 1, 1)
    mass = model.log_prob({"pixels": grid}).exp().sum() * 0.01**2
    assert float(mass) == pytest.approx(1, abs=1e-6)


def test_ldas_density_is_the_mixture_of_gaussians(digits: tuple[Tensor, Tensor]) -> None:
    model, held_out = learned(lda(), digits), digits[0][TRAIN : TRAIN + 20]
    covariance = (model.colour_DD @ model.colour_DD.T).numpy()
    rows = held_out.flatten(1).double().numpy()
    each = [multivariate_normal(mean, covariance).logpdf(rows) for mean in model.mean_YD.numpy()]
    expected = (torch.tensor(np.array(each)) + model.log_prior_Y[:, None]).logsumexp(0)
    torch.testing.assert_close(model.log_prob({"pixels": held_out}), expected, rtol=1e-6, atol=0)


def test_classes_are_worth_four_nats_of_a_binarised_digit(digits: tuple[Tensor, Tensor]) -> None:
    """And shuffled captions, or no classes at all, are not: the gate of 20.5 tells them apart."""
    held_out = {"pixels": digits[0][TRAIN:]}

    def nats(model: NaiveBayes) -> float:
        return -float(model.log_prob(held_out).mean())

    assert nats(learned(bayes(), digits)) < 20.5
    order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(0))
    shuffled = counted(bayes(), digits[0][:TRAIN], digits[1][:TRAIN][order])
    alone = learned(bayes(vocabulary=()), digits)
    assert min(nats(shuffled), nats(alone)) > 24


@pytest.mark.parametrize("model", [lda(shrinkage=0.05), *(bayes(**b) for b in BAYES)])
def test_samples_are_of_the_class_asked_for(
    model: LDA | NaiveBayes, digits: tuple[Tensor, Tensor]
) -> None:
    judge = SVC().fit(digits[0][:TRAIN].flatten(1).numpy(), digits[1][:TRAIN].numpy())
    wanted = torch.arange(300) % 10
    request = Request(seeds=tuple(range(300)), prompts=tuple(WORDS[y] for y in wanted.tolist()))

    def aligned() -> float:
        named = judge.predict(model.sample(request).flatten(1).numpy())
        return float((torch.from_numpy(named) == wanted).double().mean())

    assert judge.score(digits[0][TRAIN:].flatten(1).numpy(), digits[1][TRAIN:].numpy()) > 0.98
    learned(model, digits)
    assert aligned() > 0.85
    order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(0))
    for name in itertools.chain(*model.sums):
        model.get_buffer(name).zero_()
    counted(model, digits[0][:TRAIN], digits[1][:TRAIN][order])
    assert aligned() < 0.3


def test_without_a_prompt_a_class_is_drawn_from_the_prior() -> None:
    model = two_classes(bayes(image_size=1, channels=1, vocabulary=("a", "b")), 1)
    model.mean_YD.copy_(torch.tensor([[0.0], [1.0]]))  # so that the pixel is the class
    drawn = model.sample(Request(seeds=tuple(range(2000)))).mean()
    assert float(drawn) == pytest.approx(1 / 3, abs=0.04)


def test_samples_have_the_models_own_moments(digits: tuple[Tensor, Tensor]) -> None:
    """Pixels in the middle of the range, so that cutting off at [0, 1] does not bend them."""
    model = counted(lda(), 0.4 + 0.2 * digits[0], digits[1])
    drawn = model.sample(Request(seeds=tuple(range(4000)), prompts=("three",) * 4000)).flatten(1)
    torch.testing.assert_close(drawn.mean(0).double(), model.mean_YD[3], rtol=0, atol=0.006)
    spread = (model.colour_DD @ model.colour_DD.T).diagonal().sqrt()
    torch.testing.assert_close(drawn.std(0).double(), spread, rtol=0.06, atol=0)


@pytest.mark.parametrize("build", [lda, bayes], ids=["lda", "bayes"])
def test_what_cannot_be_learned_or_asked_for_says_why(
    build: Callable[..., LDA | NaiveBayes], digits: tuple[Tensor, Tensor]
) -> None:
    pixels, wanted = (part[:TRAIN] for part in digits)
    with pytest.raises(ValueError, match="class 'nine' has no rows to learn from"):
        counted(build(), pixels[wanted < 9], wanted[wanted < 9])
    with pytest.raises(ValueError, match=r"10 classes are learned .* the batch needs tokens"):
        build().absorb({"pixels": pixels})
    with pytest.raises(ValueError, match="a caption of one word, got 'a red dot'"):
        build().encode(["nine", "a red dot"])
    model = counted(build(), pixels, wanted)
    with pytest.raises(ValueError, match="unknown word 'nin'; did you mean 'nine'"):
        model.sample(Request(seeds=(0,), prompts=("nin",)))


def test_pictures_that_are_all_equal_are_refused() -> None:
    equal = torch.full((20, 1, 8, 8), 0.5)
    for model in (lda(), bayes(likelihood="gaussian")):
        with pytest.raises(ValueError, match=r"pictures .*are (all )?equal"):
            counted(model, equal, torch.arange(20) % 10)


def test_without_shrinkage_pictures_have_no_density(digits: tuple[Tensor, Tensor]) -> None:
    model: Family = learned(lda(shrinkage=0), digits)
    assert not model.capabilities.likelihood
    with pytest.raises(NotImplementedError, match="declares no likelihood"):
        model.log_prob({"pixels": digits[0][:2]})
