"""Samplers of unCLIP's checkpoints as tables: rows go where diffusers' schedulers go, clipped and with noise."""

import json
from typing import Any

import pytest
import torch

from models.parts.rows import join
from models.request import Request
from models.text_to_image.diffusers_unclip import ancestral, tiny
from tests.models.families_kit import shaken

LEARNED = {"variance_type": "learned_range"}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "kandinsky": ("DDPMScheduler", {**LEARNED, "clip_sample": False, "thresholding": True}),
    "large": ("DDPMScheduler", {"variance_type": "fixed_large"}),
    "offset": ("DDPMScheduler", {**LEARNED, "steps_offset": 1, "clip_sample_range": 2.0}),
    "clean": ("DDPMScheduler", {"prediction_type": "sample"}),
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}),
    "prior": ("UnCLIPScheduler", {"clip_sample_range": 5.0, "prediction_type": "sample"}),
    "decoder": ("UnCLIPScheduler", LEARNED),
}


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("steps", [2, 25])
def test_a_table_goes_where_diffusers_own_scheduler_goes(
    monkeypatch: pytest.MonkeyPatch, name: str, steps: int
) -> None:
    import diffusers

    kind, settings = ASKED[name]
    solver = getattr(diffusers, kind)(**settings)
    document = json.dumps({"_class_name": kind, **solver.config})
    learns = ancestral.learns_variance(document)
    assert learns == (settings.get("variance_type") == "learned_range")
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(steps, 2, 3, 4, 4, generator=draw)
    said = torch.randn(steps, 2, 6 if learns else 3, 4, 4, generator=draw).clamp(-1, 1)
    ours = theirs = torch.randn(2, 3, 4, 4, generator=draw)
    solver.set_timesteps(steps)
    table_SK = ancestral.table(document, steps)
    for step, time in enumerate(solver.timesteps):
        for module in ("ddpm", "unclip"):
            path = f"diffusers.schedulers.scheduling_{module}.randn_tensor"
            monkeypatch.setattr(path, lambda *_, step=step, **__: noise[step])
        more = {}
        if kind == "UnCLIPScheduler" and step + 1 < steps:
            more = {"prev_timestep": solver.timesteps[step + 1]}
        theirs = solver.step(said[step], time, theirs, **more).prev_sample
        e, variance = said[step].chunk(2, 1) if learns else (said[step], None)
        rows_BK = table_SK[step].expand(2, -1)
        ours, _ = ancestral.advance(rows_BK, ours, e, variance, noise[step], document)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_decoder_s_row_has_the_same_bits_however_its_neighbours_are_guided_and_stepped() -> None:
    model: Any = shaken("diffusers-decoder")
    model.call_sizes = (8,)
    pairs = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(0))
    asked = [
        Request(seeds=(7,), given={"embedding": pairs}, steps=steps, guidance=guidance)
        for steps, guidance in ((2, 1.0), (4, 2.0), (3, 0.0), (3, 4.0))
    ]
    ended = []
    for requests in (asked, *([one] * 4 for one in asked)):
        rows = join([model.begin(one) for one in requests])
        while not model.done(rows).all():
            rows = model.step(rows)
        ended.append(model.finish(rows))
    mixed, *alike = ended
    for row, alone in enumerate(alike):
        assert torch.equal(alone[row], mixed[row])
        torch.testing.assert_close(model.sample(asked[row])[0], mixed[row], rtol=0, atol=1e-4)


def test_a_decoder_that_does_not_say_how_much_noise_a_step_adds_is_refused() -> None:
    networks = tiny.decoder()
    networks["unet"]["out_channels"] = 4
    with pytest.raises(ValueError, match="unet: out_channels must be 8, got 4"):
        shaken("diffusers-decoder", networks=networks)


def test_a_scheduler_that_no_table_has_is_refused_with_those_that_there_are() -> None:
    faults = {
        "'EulerDiscreteScheduler' is none of an unCLIP's; take one of DDPMScheduler": {
            "_class_name": "EulerDiscreteScheduler"
        },
        "DDIMScheduler must predict epsilon, got 'sample'": {
            **{"_class_name": "DDIMScheduler", "prediction_type": "sample"}
        },
        "variance_type must be one of fixed_small, .* got 'learned'": {
            **{"_class_name": "DDPMScheduler", "variance_type": "learned"}
        },
    }
    for message, document in faults.items():
        with pytest.raises(ValueError, match=message):
            ancestral.scheduler(json.dumps(document))
