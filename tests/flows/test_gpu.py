"""What only a GPU can show: every family's numbers are the CPU's, bf16 stays near them, and trainings find the card."""

from pathlib import Path

import pytest
import torch

from flows.evaluating.pipeline import load_model
from flows.recipe import Resources
from flows.training.captured import Captured
from flows.training.ranks import Ranks
from flows.training.ray_train import fit
from flows.training.spec import TrainingSpec
from models import FAMILIES
from models.parts import noise
from tests.flows.shared_batches import learned_by_gradients
from tests.flows.training_kit import prepare, spec_of
from tests.flows.two_workers import stepped
from tests.models.families_kit import batch_of, request, shaken, tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GPU = "cuda"
EXACT = ("gpt", "made", "nade", "pixelcnn", "pixelrnn", "transformer")


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data") / "shades", validation=16)


def on_gpu(spec: TrainingSpec, workers: int = 0) -> TrainingSpec:
    return spec.model_copy(update={"resources": Resources(num_workers=workers)})


@pytest.mark.parametrize("name", EXACT)
def test_a_family_with_an_exact_loss_learns_the_same_as_on_a_cpu(name: str) -> None:
    expected = stepped(name)
    found = stepped(name, Ranks(device=torch.device(GPU)))
    for key, value in found.items():
        torch.testing.assert_close(value.cpu(), expected[key], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", learned_by_gradients())
def test_a_family_s_loss_in_bf16_is_near_that_in_fp32(name: str) -> None:
    full, reduced = tiny(name).to(GPU), tiny(name).to(GPU)
    batch = {key: value.to(GPU) for key, value in batch_of(full).items()}
    for player in full.players:
        losses = []
        for model in (full, reduced):
            torch.manual_seed(0)
            with torch.autocast(GPU, torch.bfloat16, enabled=model is reduced):
                losses.append(model(batch, player).total)
        losses[1].backward()
        given = [one.grad for one in reduced.player_parameters(player) if one.grad is not None]
        assert all(bool(gradient.isfinite().all()) for gradient in given)
        assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.05, abs=0.05)


def test_a_seed_draws_a_cpu_s_bits_and_normals_to_rounding() -> None:
    seeds, draws, gpu = [0, 8203, 34867, -1, 2**63 - 1], [0, 1, 2, 3, 4], torch.device(GPU)
    bits = noise.by_torch(seeds, draws, 5, 1001, gpu)
    assert torch.equal(bits.cpu(), noise.by_numpy(seeds, draws, 5, 1001))
    for draw in (noise.uniforms, noise.normals):
        ours, cpu_s = (
            draw(seeds, (3, 65, 65), one, draws=draws) for one in (gpu, torch.device("cpu"))
        )
        torch.testing.assert_close(ours.cpu(), cpu_s, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_answers_the_same_request_as_on_a_cpu(name: str) -> None:
    """Up to rounding: where tokens are drawn, few draws fall on another side of a border."""
    model = shaken(name)
    asked = request(model, seeds=(0, 1, 2, 3))
    expected = model.sample(asked).float()
    found = model.to(GPU).sample(asked).float().cpu()
    same = torch.isclose(found, expected, rtol=1e-2, atol=1e-2).float().mean().item()
    assert same > 0.95


@pytest.mark.parametrize("name", EXACT)
def test_a_captured_loss_has_the_gradients_of_the_loss_itself(name: str) -> None:
    plain, model = tiny(name).to(GPU), tiny(name).to(GPU)
    captured = Captured(model, model)
    for shift in range(3):
        batch = {key: value.roll(shift, -1).to(GPU) for key, value in batch_of(plain).items()}
        (player,) = plain.players
        found = []
        for call, parameters in ((plain, plain.parameters()), (captured, model.parameters())):
            weights = list(parameters)
            losses = call(batch, player)
            gradients = torch.autograd.grad(losses.total, weights, allow_unused=True)
            found.append([losses.total.clone(), *losses.parts.values(), *gradients])
        for one, other in zip(*found, strict=True):
            if one is not None or other is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["edm", "gpt", "pixelcnn"])
def test_a_captured_loss_drops_anew_at_every_replay(name: str) -> None:
    """And as after a restart, where the generator is as it was."""
    model = tiny(name, dropout=0.5).to(GPU)
    captured = Captured(model, model)
    batch = {key: value.to(GPU) for key, value in batch_of(model).items()}
    captured(batch, "model").total.backward()
    state = torch.cuda.get_rng_state()
    first = [captured(batch, "model").total.item() for _ in range(3)]
    torch.cuda.set_rng_state(state)
    second = [captured(batch, "model").total.item() for _ in range(3)]
    assert len(set(first)) == 3
    assert second == first


def test_a_training_finds_the_card_and_comes_near_the_cpu_s_loss(
    shades: Path, tmp_path: Path
) -> None:
    losses = {}
    for name, spec in {
        "cpu": spec_of(shades, family="vae", steps=200, batch_size=32),
        "fp32": on_gpu(spec_of(shades, family="vae", steps=200, batch_size=32, precision="fp32")),
        "bf16": on_gpu(spec_of(shades, family="vae", steps=200, batch_size=32)),
        "compiled": on_gpu(spec_of(shades, family="vae", steps=200, batch_size=32, compile=True)),
        "captured": on_gpu(
            spec_of(shades, family="vae", steps=200, batch_size=32, cuda_graph=True)
        ),
    }.items():
        made = fit(spec, run_id=None, tracking_uri=None, runs=tmp_path / name)
        losses[name] = made.metrics["loss"]
    for name in ("fp32", "bf16", "compiled", "captured"):
        assert losses[name] == pytest.approx(losses["cpu"], rel=0.05)


def test_a_training_in_bf16_goes_on_from_its_checkpoint(shades: Path, tmp_path: Path) -> None:
    spec = on_gpu(spec_of(shades, steps=12, checkpoint_every=4))
    whole = fit(spec, run_id=None, tracking_uri=None, runs=tmp_path / "whole")

    def stop(step: int, loss: float) -> None:
        if step == 8:
            raise KeyboardInterrupt

    halted = spec.model_copy(
        update={"training": spec.training.model_copy(update={"validate_every": 8})}
    )
    runs = tmp_path / "halted"
    with pytest.raises(KeyboardInterrupt):
        fit(halted, run_id=None, tracking_uri=None, runs=runs, on_validation=stop)
    again = fit(halted, run_id=None, tracking_uri=None, runs=runs)
    assert (again.attempts, again.repeated_steps) == (2, 4)  # from the checkpoint at step 4
    first, second = (load_model(one.directory).state_dict() for one in (whole, again))
    torch.testing.assert_close(first, second, rtol=1e-2, atol=1e-3)


@pytest.mark.cluster
def test_ray_lends_a_worker_the_card(shades: Path, tmp_path: Path) -> None:
    from flows.training.supervisor import _request
    from infra.stack.cluster import connect

    connect(None)
    spec = on_gpu(spec_of(shades, steps=12), workers=1)
    assert _request(spec).gpus == 1
    made = fit(spec, run_id=None, tracking_uri=None, runs=tmp_path)
    assert (made.steps, made.attempts) == (12, 1)
    here = fit(
        on_gpu(spec_of(shades, steps=12)), run_id=None, tracking_uri=None, runs=tmp_path / "here"
    )
    assert made.metrics["loss"] == pytest.approx(here.metrics["loss"], rel=1e-2)


def test_capturing_leaves_no_trace_in_what_is_drawn() -> None:
    losses = []
    for captures in (False, True):
        model = tiny("vae").to(GPU)
        batch = {key: value.to(GPU) for key, value in batch_of(model).items()}
        call = Captured(model, model) if captures else model
        torch.manual_seed(0)
        losses.append([call(batch, "model").total.item() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_another_shape_than_the_first_is_refused() -> None:
    model = tiny("nade").to(GPU)
    batch = {key: value.to(GPU) for key, value in batch_of(model).items()}
    captured = Captured(model, model)
    captured(batch, "model")
    with pytest.raises(ValueError, match="leave out training"):
        captured({key: value[:2] for key, value in batch.items()}, "model")
