"""What is measured of few pictures, and on which device."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from data.loaders import everything, read_header
from flows.evaluating import pictures
from flows.evaluating import scores as scoring
from flows.evaluating.evaluate import Order, load_judge
from flows.evaluating.gate import Interval
from flows.evaluating.pipeline import ports_of
from flows.recipe import Evaluation
from infra.pipelines import PinnedStage, Pipeline
from models import describe
from models.autoregressive.pixelcnn import PixelCNN
from models.family import Batch, Capabilities
from models.judges.attribute_judge import AttributeJudge
from models.variational.vae import VAE
from models.variational.vqvae import VQVAE
from models.variational.wae import WAE
from tests.flows.training_kit import prepare


class Elsewhere(VAE):
    """A network on a device of its own, as on a GPU."""

    def log_prob(self, batch: Any, *_: Any, **__: Any) -> Tensor:
        assert batch["pixels"].device == next(self.parameters()).device
        return torch.zeros(len(batch["pixels"]))


def test_a_likelihood_is_measured_where_the_network_is() -> None:
    found = scoring.Scores(Evaluation(bootstrap=2))
    model = Elsewhere(VAE.presets["tiny"]).to("meta")
    scoring.likelihood(found, model, "vae", {"pixels": torch.rand(5, 1, 8, 8)})
    assert found.metrics["vae_nats"].count == 5


def test_what_a_family_tells_of_itself_is_a_metric_of_its_stage() -> None:
    """Of rows that are many it tells in parts; each row has its value of all, of a statistic of many rows as well."""
    found = scoring.Scores(Evaluation(bootstrap=5))
    batch = {"pixels": torch.rand(60, 1, 8, 8)}
    scoring.own(found, WAE(WAE.presets["tiny"]).eval(), "base", batch, rows=30)
    counts = {name: metric.count for name, metric in found.metrics.items()}
    assert counts == {"base_mmd_excess": 60, "base_cost": 60}


def test_a_model_of_captioned_pictures_is_told_the_captions_of_those_it_rates() -> None:
    torch.manual_seed(0)
    config = replace(PixelCNN.presets["tiny"], vocabulary=("one", "two"), max_words=1)
    model, pixels = PixelCNN(config), torch.rand(5, 1, 8, 8).round()
    found = {}
    for captions in (["one"] * 5, ["two"] * 5):
        kept = scoring.Scores(Evaluation(bootstrap=2))
        scoring.likelihood(
            kept, model, "digits", scoring.rated(model, {"pixels": pixels}, captions)
        )
        tokens = model.encode(captions)
        assert tokens is not None
        nats = -model.log_prob({"pixels": pixels, "tokens": tokens}).mean().item()
        assert kept.metrics["digits_nats"].value == pytest.approx(nats)
        found[captions[0]] = nats
    assert found["one"] != found["two"]


class Heeding(VAE):
    """Rates a picture by its first pixel where its caption says so, and by nothing else."""

    heeds = True

    def encode(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[["one", "two"].index(text)] for text in texts])

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, condition="text")

    def log_prob(self, batch: Batch) -> Tensor:
        if not self.heeds:
            return torch.zeros(len(batch["pixels"]))
        return -5 * (batch["pixels"][:, 0, 0, 0] - batch["tokens"][:, 0]).abs()


@pytest.mark.parametrize(("heeds", "gain"), [(True, 5.0), (False, 0.0)])
def test_what_captions_save_tells_a_model_that_is_deaf_to_them(heeds: bool, gain: float) -> None:
    model = Heeding(VAE.presets["tiny"]).eval()
    model.heeds = heeds
    captions = ["one"] * 30 + ["two"] * 30
    shown = torch.tensor([0.0] * 30 + [1.0] * 30)[:, None, None, None].expand(-1, 1, 8, 8)
    rows = {"pixels": shown}
    found = scoring.Scores(Evaluation(bootstrap=20))
    nats = scoring.likelihood(found, model, "vae", scoring.rated(model, rows, captions))
    scoring.caption_gain(found, model, "vae", rows, captions, nats)
    assert found.metrics["vae_caption_gain"].value == pytest.approx(gain)


@pytest.mark.parametrize("count", [1, 25])
def test_few_pictures_are_judged_by_what_they_can_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    header = {"format": 1, "held_out": [], "attributes": {"digit": ["one", "two"]}}
    (tmp_path / "dataset.json").write_text(json.dumps(header))
    real = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def by_size(_: Path, split: str, *__: Any) -> list[tuple[Tensor, list[str], Tensor]]:
        rows = real[:count] if split == "test" else real[count:]
        return [(rows, ["one"] * len(rows), torch.zeros(len(rows), 1, dtype=torch.long))]

    monkeypatch.setattr(pictures, "by_size", by_size)
    model = VAE(VAE.presets["tiny"]).eval()
    stage = PinnedStage(
        stage="vae", name="toy.vae", version=1, sha256="0" * 64, family="vae",
        **ports_of(model),
    )  # fmt: skip
    drawn = (torch.rand(90, 1, 8, 8) * 255).byte().numpy()
    judged = pictures.score(
        [drawn[:20], drawn[20:]],
        [],
        judge=AttributeJudge(AttributeJudge.presets["tiny"]).eval(),
        prepared=tmp_path,
        spec=Evaluation(bootstrap=5),
        models=[model],
        pipeline=Pipeline(endpoint="toy", stages=(stage,), vocabulary=(), image_size=(8, 8)),
    )
    metrics = judged.metrics
    of_many = {"memorised", "pixel_distance", "fd_judge", "precision", "recall", "coverage"}
    assert of_many & metrics.keys() == (set() if count == 1 else of_many)
    assert metrics["vae_nats"].count == count
    if count > 1:
        assert metrics["fd_judge"].count == len(drawn)
        assert metrics["vae_sample_gap"].count == 3 * count, (
            "nats of all of them cost much and tell no more"
        )
    assert judged.files.keys() == {"gallery.png"}


def test_the_frechet_distance_is_of_all_that_is_drawn_and_all_that_nobody_learned_from() -> None:
    """Beside ten or twenty times as many pictures of one distribution the interval ends far nearer to nought."""
    judge = AttributeJudge(AttributeJudge.presets["tiny"]).eval()
    drawn, test, validation = torch.rand(
        3, 400, 1, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    ends = []
    for few in (40, 400):
        found = scoring.Scores(Evaluation(bootstrap=2))
        pictures.distribution(found, judge, drawn[:few], test[:few], validation[: 10 * (few - 40)])
        ends.append(found.metrics["fd_judge"].high)
        assert found.metrics["fd_judge"].count == few
        assert found.metrics["coverage"].count == few
    assert ends[1] < ends[0] / 3, ends


def test_held_out_pictures_that_were_learned_too_are_set_aside_and_told() -> None:
    """Such as things that stand a pixel further: data are checked for equal pictures alone. No training is lost."""
    pixels = torch.rand(90, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    learned, unseen, honest = pixels.split(30)
    for held_out, there in ((torch.cat([unseen, learned[:10]]), True), (learned, False)):
        found = scoring.Scores(Evaluation(bootstrap=5))
        pictures.copies(found, learned, learned, held_out)
        assert ("memorised" in found.metrics) == there
        assert "distinct" in found.metrics
        count = 10 if there else 30
        of = f"{count} of {len(held_out)}"
        assert found.left_out == [f"memorised: {of} held-out ones are also training pictures"]
        if there:
            assert found.metrics["memorised"].value == 1
            own = scoring.Scores(Evaluation(bootstrap=5))
            pictures.copies(own, honest, learned, held_out)
            assert own.metrics["memorised"].value < 0.2


class OneSided(AttributeJudge):
    """Sees the first value of every attribute."""

    def predict(self, pixels: Tensor) -> Tensor:
        return torch.zeros(len(pixels), 1, dtype=torch.int64)


def test_captions_that_all_were_held_out_have_an_alignment_of_their_own() -> None:
    facts = {"attributes": {"hue": ["red", "blue"]}, "held_out": ["blue"]}
    for prompts, part in ((["blue"] * 3, "held_out"), (["red"] * 3, "trained")):
        found = scoring.Scores(Evaluation(bootstrap=5))
        judge = OneSided(AttributeJudge.presets["tiny"])
        pictures.alignment(found, judge, torch.zeros(3, 1, 8, 8), prompts, facts)
        assert {name for name in found.metrics if name.startswith("alignment_")} == {
            "alignment_hue",
            f"alignment_{part}",
        }


def test_what_is_no_finite_number_is_in_no_metric_and_ends_no_evaluation() -> None:
    found = scoring.Scores(Evaluation(bootstrap=5))
    found.mean("vae_nats", torch.tensor([1.0, math.inf]), keep=True)
    found.mean("vae_cost", torch.tensor([1.0, 2.0]), keep=True)
    assert [*found.metrics] == [*found.outcomes] == ["vae_cost"]
    assert found.left_out == ["vae_nats, which is no finite number"]


def test_one_sample_has_no_gap_and_equal_likelihoods_a_finite_one() -> None:
    found = scoring.Scores(Evaluation(bootstrap=2))
    scoring.gap(found, "one", torch.ones(1), torch.rand(30))
    assert not found.metrics
    scoring.gap(found, "flat", torch.ones(9), torch.ones(30))
    assert found.metrics["flat"].value == 0


def test_the_pictures_that_are_compared_come_from_every_prompt() -> None:
    prompts = torch.arange(10).repeat_interleave(10)  # in the order of captions
    assert scoring.evenly(prompts, 10).tolist() == list(range(10))


@pytest.mark.parametrize(("right", "low", "high"), [(True, 0.722467, 1.0), (False, 0.0, 0.277533)])
def test_a_share_of_all_or_none_is_no_surer_than_so_few_can_be(
    right: bool, low: float, high: float
) -> None:
    found = scoring.Scores(Evaluation(bootstrap=20))
    for count in (10, 40):
        found.mean(f"of {count}", torch.full((count,), right), over=[f"{n}" for n in range(count)])
    few, more = found.metrics.values()
    assert (few.low, few.high) == pytest.approx((low, high), abs=1e-6)
    assert few.value == more.value == right
    assert more.high - more.low == pytest.approx(3.841459 / 43.841459, abs=1e-5)


def test_values_that_are_no_shares_keep_the_interval_of_their_own() -> None:
    found = scoring.Scores(Evaluation(bootstrap=20))
    found.mean("flicker", torch.zeros(10))
    assert (found.metrics["flicker"].low, found.metrics["flicker"].high) == (0, 0)


def test_pictures_of_one_prompt_are_resampled_together() -> None:
    """60 prompts of which half always succeed: ten seeds of each tell no more about the prompts than one."""
    prompts = [f"prompt {number}" for number in range(60)]
    right = torch.tensor([number % 2 for number in range(60)])
    widths = []
    for seeds in (1, 10):
        found = scoring.Scores(Evaluation(bootstrap=500))
        found.mean("alignment", right.repeat(seeds), over=prompts * seeds)
        metric = found.metrics["alignment"]
        assert (metric.value, metric.count) == (0.5, 60 * seeds)
        widths.append(metric.high - metric.low)
    assert widths[0] == pytest.approx(widths[1])
    assert widths[0] > 0.2


class Told(AttributeJudge):
    """A judge that reads the digit and its certainty from the first two pixels."""

    def probabilities(self, pixels: Tensor) -> list[Tensor]:
        digit, sure = (pixels[:, 0, 0, 0] * 10).round().long(), pixels[:, 0, 0, 1]
        rest = ((1 - sure) / 9)[:, None].expand(-1, 10).clone()
        return [rest.scatter(1, digit[:, None], sure[:, None])]


def classes(digits: Tensor, sure: float, prompts: list[str]) -> dict[str, Interval]:
    pixels = torch.zeros(len(digits), 1, 8, 8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = digits / 10, sure
    found = scoring.Scores(Evaluation(bootstrap=200))
    pictures._classes(found, Told(AttributeJudge.presets["tiny"]), pixels, prompts)
    return found.metrics


def test_a_lost_class_and_an_unsure_judge_are_seen() -> None:
    honest = classes(torch.arange(500) % 10, 0.97, [])
    assert honest["least_class"].value == pytest.approx(0.1)
    assert 0.04 < honest["least_class"].low < honest["least_class"].high <= 0.1
    assert honest["judge_confidence"].value == pytest.approx(0.97)
    collapsed = classes(torch.arange(500) % 9, 0.5, [])
    assert collapsed["least_class"].value == collapsed["least_class"].high == 0
    assert collapsed["judge_confidence"].value == pytest.approx(0.5)


class Reader(AttributeJudge):
    """A judge that reads the digit from the first pixel."""

    def predict(self, pixels: Tensor) -> Tensor:
        return (pixels[:, 0, 0, :1] * 10).round().long()


class Levels(VQVAE):
    """A tokenizer of a picture's first pixel, of which it loses every digit of `lost` and above."""

    lost = 10

    def codes(self, pixels: Tensor) -> Tensor:
        return (pixels[:, 0, 0, :1] * 10).round().long().clamp(max=self.lost - 1)

    def painted(self, index_BP: Tensor) -> Tensor:
        return (index_BP / 10)[:, :, None, None].expand(-1, 1, 8, 8)


@pytest.mark.parametrize(("lost", "right"), [(10, 1.0), (7, 0.7), (1, 0.1)])
def test_what_real_pictures_lose_by_becoming_codes_is_seen(lost: int, right: float) -> None:
    """Of 1000 pictures in the order of their captions 500 are looked at, evenly, each beside its own caption."""
    facts = {"attributes": {"digit": [str(digit) for digit in range(10)]}}
    digits = torch.arange(10).repeat_interleave(100)
    pixels = (digits / 10)[:, None, None, None].expand(-1, 1, 8, 8)
    model = Levels(VQVAE.presets["tiny"])
    model.lost = lost
    found = scoring.Scores(Evaluation(bootstrap=50))
    captions = [str(int(digit)) for digit in digits]
    judge = Reader(AttributeJudge.presets["tiny"])
    pictures._reconstruction(found, judge, model, "vqvae", pixels, captions, facts)
    metric = found.metrics["vqvae_reconstruction_alignment"]
    assert metric.value == pytest.approx(right)
    assert metric.count == 500
    assert "vqvae_relative_alignment" not in found.metrics, "nothing was drawn of a caption"


def test_drawn_codes_are_measured_by_what_real_ones_show() -> None:
    """Half of the drawn pictures are right where .7 of the real ones are: .71, its interval as wide as both."""
    facts = {"attributes": {"digit": [str(digit) for digit in range(10)]}}
    digits = torch.arange(10).repeat_interleave(100)
    pixels = (digits / 10)[:, None, None, None].expand(-1, 1, 8, 8)
    model = Levels(VQVAE.presets["tiny"])
    model.lost = 7
    found = scoring.Scores(Evaluation(bootstrap=200))
    found.mean("alignment", torch.arange(400) % 2)
    captions = [str(int(digit)) for digit in digits]
    judge = Reader(AttributeJudge.presets["tiny"])
    pictures._reconstruction(found, judge, model, "vqvae", pixels, captions, facts)
    real, share = (
        found.metrics[f"vqvae_{one}_alignment"] for one in ("reconstruction", "relative")
    )
    assert share.value == pytest.approx(0.5 / 0.7)
    assert share.low < 0.45 / real.value < share.value < 0.55 / real.value < share.high


def test_a_judge_is_rated_on_held_out_pictures_of_its_own_size(tmp_path: Path) -> None:
    """Pictures of 8 pixels are stored; a judge of what a stage of 4 draws sees them at 4."""
    prepared = prepare(tmp_path / "shades", rows=2, validation=12)
    shades = tuple(read_header(prepared)["attributes"]["shade"])
    config = replace(
        AttributeJudge.presets["tiny"],
        image_size=4,
        channels=3,
        attributes=(("shade", shades),),
    )
    judge = AttributeJudge(config)
    (tmp_path / "config.json").write_text(json.dumps(describe(judge)))
    save_file(judge.state_dict(), tmp_path / "model.safetensors")
    order = Order(
        pipeline={},
        judge={"name": "toy.judge", "version": "1", "digest": "0"},
        prepared="",
        judged_on=str(prepared),
        data_identity="",
        spec={},
        tracking_uri="",
        cache="",
        num_gpus=0,
    )
    found, record = load_judge(tmp_path, order)
    pixels, _, attributes = everything(prepared, "validation", image_size=4)
    assert record.accuracy == found.accuracy(pixels, attributes)["joint"]


def test_where_prompts_say_what_is_drawn_no_share_is_measured() -> None:
    found = classes(torch.arange(20) % 10, 0.9, ["one"] * 20)
    assert found.keys() == {"judge_confidence"}
