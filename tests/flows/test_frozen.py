"""What a stage learns from beside the data: made once by a trained one of every row, and refused where it misfits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

import models
from data.loaders import DatasetError, Loader
from data.reading.outputs import folder_of, shard_of
from flows.recipes.loader import RecipeError, load
from flows.training.frozen import make
from flows.training.ray_train import fit
from flows.training.spec import Need, TrainingSpec
from infra.settings import settings
from infra.storage import seal, write_json
from models import describe
from models.family import Batch, Losses, Trainable
from models.variational.vqvae import VQVAE, VQVAEConfig
from tests.flows.training_kit import prepare, spec_of

VQ = VQVAEConfig(image_size=4, channels=3, hidden=(8,), codes=16, width=4)


@dataclass(frozen=True, kw_only=True)
class CountsConfig:
    codes: int = 2
    places: int = 1
    codebook: str = ""


class Counts(Trainable):
    """How likely each code is in each place: it learns from codes alone."""

    Config = CountsConfig
    presets: ClassVar[Mapping[str, CountsConfig]] = {"tiny": CountsConfig()}
    needs = ("codes",)

    def __init__(self, config: CountsConfig) -> None:
        super().__init__()
        self.config = config
        self.logits = nn.Parameter(torch.zeros(config.places, config.codes))

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002
        codes = batch["codes"]
        logits = self.logits.expand(len(codes), -1, -1).transpose(1, 2)
        return Losses(nn.functional.cross_entropy(logits, codes), len(codes))


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "FAMILIES", {**models.FAMILIES, "counts": f"{__name__}:Counts"})


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    return prepare(tmp_path / "prepared" / "shades", rows=40, validation=9)


@pytest.fixture
def need(tmp_path: Path, prepared: Path) -> Need:
    return need_of(tmp_path / "vq", prepared, seed=0)


def need_of(folder: Path, prepared: Path, seed: int) -> Need:
    """Seal an untrained VQ-VAE of four pixels, half of the dataset's."""
    torch.manual_seed(seed)
    model = VQVAE(VQ)
    folder.mkdir()
    write_json(folder / "config.json", describe(model))
    save_file(model.state_dict(), folder / "model.safetensors")
    digest = seal(folder, {"kind": "model", "name": "shades.vq"})
    made = folder_of(prepared, "0" * 32, digest, "encode")
    return Need(name="shades.vq", version=1, digest=digest, entry="encode", path=folder, made=made)


def network(need: Need) -> VQVAE:
    from flows.training.frozen import opened

    found = opened(need)
    assert isinstance(found, VQVAE)
    return found


def loader_of(prepared: Path, need: Need, split: str = "train", **settings: Any) -> Loader:
    return Loader(prepared, split, batch_size=5, beside={"codes": need.made}, **settings)


def pairs(loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
    for step in range(20):  # two epochs and more
        batch = loader.batch(step)
        yield batch["pixels"], batch["codes"]


def test_every_row_has_what_the_frozen_stage_makes_of_it(prepared: Path, need: Need) -> None:
    assert make(need, prepared, None, here=True)
    vq = network(need)
    for split in ("train", "validation"):
        for pixels, codes in pairs(loader_of(prepared, need, split, image_size=4)):
            assert torch.equal(codes, vq.codes(pixels)), "at the stage's own size"


def test_it_is_made_once_and_again_for_other_weights_or_where_it_was_altered(
    prepared: Path, need: Need, tmp_path: Path
) -> None:
    assert make(need, prepared, None, here=True)
    assert not make(need, prepared, None, here=True)
    other = need_of(tmp_path / "other", prepared, seed=1)
    assert other.made != need.made
    assert make(other, prepared, None, here=True)
    kept = shard_of(need.made, "train", 0)
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + b"\1")
    need.made.with_name(f".{need.made.name}-killed").mkdir()
    with pytest.raises(DatasetError, match=r"was altered.*they are made anew"):
        loader_of(prepared, need).batch(0)
    assert make(need, prepared, None, here=True)
    assert kept.read_bytes() == whole
    assert not [*need.made.parent.glob(".*-*")], "nothing half-made is left"


def test_where_captions_are_shuffled_what_was_made_of_captions_goes_with_them(
    prepared: Path, need: Need
) -> None:
    codes = np.arange(40, dtype=np.int64)[:, None]
    for of_captions in (False, True):
        folder = need.made.with_name(f"by hand {of_captions}")
        folder.mkdir(parents=True)
        from safetensors.numpy import save_file as save_arrays

        save_arrays({"outputs": codes}, shard_of(folder, "train", 0))
        seal(folder, {"of_captions": of_captions, "dataset": "any"})
        loader = Loader(
            prepared, "train", batch_size=40, beside={"codes": folder, }, shuffle_captions=True,
            encode=lambda captions: torch.arange(len(captions))[:, None],
        )  # fmt: skip
        batch = loader.batch(0)
        light = (batch["pixels"].mean((1, 2, 3)) > 0.35).long()
        parity = batch["codes"][:, 0] % 2  # a row of odd number is light
        told = batch["tokens"][:, 0]
        assert torch.equal(parity, told if of_captions else light)
        assert not torch.equal(told, light)


def test_a_training_is_told_what_it_needs_to_know_and_reads_it(
    prepared: Path, need: Need, tmp_path: Path
) -> None:
    make(need, prepared, None, here=True)
    found = fit(spec(prepared, need), run_id=None, tracking_uri=None, runs=tmp_path / "runs")
    trained = models.build(
        yaml.safe_load((found.directory / "config.json").read_text())  # JSON is YAML
    )
    [entry] = [network(need).entries["encode"]]
    assert {**vars_of(trained.config)} == {**entry.facts}
    assert trained.config.codebook == str(entry.outputs["codes"].space)


def vars_of(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("codes", "places", "codebook")}


def spec(prepared: Path, need: Need, workers: int = 0) -> TrainingSpec:
    plain = spec_of(prepared, family="counts", workers=workers)
    return plain.model_copy(update={"needs": {"codes": need}, "image_size": None})


def test_other_weights_are_another_training_and_another_place_is_none(
    prepared: Path, need: Need, tmp_path: Path
) -> None:
    here = spec(prepared, need).identity
    elsewhere = need.model_copy(update={"path": tmp_path, "made": tmp_path, "version": 7})
    assert spec(prepared, elsewhere).identity == here
    other = need_of(tmp_path / "other", prepared, seed=1)
    assert spec(prepared, other).identity != here


def test_an_adapter_cannot_be_needed(prepared: Path, need: Need) -> None:
    path = need.path / "config.json"
    write_json(path, {**describe(network(need)), "lora": {"rank": 1}})
    digest = seal(need.path, {"kind": "model", "name": "shades.vq"})
    adapter = need.model_copy(update={"digest": digest})
    with pytest.raises(ValueError, match=r"needs: shades\.vq:1/encode is an adapter"):
        network(adapter)


@pytest.mark.cluster
@pytest.mark.filterwarnings(r"ignore:`use_\w+` is deprecated:DeprecationWarning")
def test_ray_data_makes_the_same_bytes(
    stack: Mapping[str, float], prepared: Path, need: Need
) -> None:
    import ray

    try:
        assert make(need, prepared, settings().ray_url)
    finally:
        ray.shutdown()
    shards = [shard_of(need.made, split, 0) for split in ("train", "validation")]
    there = [path.read_bytes() for path in shards]
    again = need.model_copy(update={"made": need.made.with_name("here")})
    assert make(again, prepared, None, here=True)
    assert [
        shard_of(again.made, split, 0).read_bytes() for split in ("train", "validation")
    ] == there


BASE: dict[str, Any] = {
    "name": "toy",
    "data": {"name": "shapes"},
    "stages": {
        "vq": {"family": "vqvae", "training": {"steps": 1}},
        "counts": {"family": "counts", "needs": {"codes": "vq/encode"}, "training": {"steps": 1}},
    },
    "pipeline": {"generate": {"counts": {}, "vq/decode": {"codes": "counts.codes"}}},
}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.counts.needs={codes: vae/encode}", "'vae/encode' is no stage that stands before counts: one of vq"),
        ("stages.vq.needs={codes: counts/encode}", "'counts/encode' is no stage that stands before vq: none is"),
        ("stages.counts.needs={codes: vq}", "name an entry of vq, as in vq/encode, got 'vq'"),
        ("pipeline=null", "stages.counts.needs: say in `pipeline:` how the stages are wired"),
        ("stages.counts.training.augment={flip: 0.5}", "made of the pictures as they are; leave it out"),
        ("pipeline={generate: {counts: {}, 'qv/decode': {codes: counts.codes}}}", "there is no stage 'qv'"),
    ],
)  # fmt: skip
def test_a_recipe_that_needs_what_is_not_there_is_refused(
    tmp_path: Path, override: str, message: str
) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(BASE, sort_keys=False))
    assert load(path).stages["counts"].needs == {"codes": "vq/encode"}
    with pytest.raises(RecipeError) as refusal:
        load(path, [override])
    assert message in str(refusal.value)
