"""What every family that denoises keeps: its sampler visits what was trained, and guidance costs nothing unasked."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from models import FAMILIES, trainable
from models.family import Family
from models.outline import outline
from models.parts.rows import join
from models.request import Request
from models.text_to_image.diffusers_pipeline import Diffusers
from services.stages.batch_invariance import agreeing
from tests.models.families_kit import batch_of, clips, embeddings

WORDS = ("red", "green")
SMALL = {
    **{"image_size": 8, "widths": (8,), "heads": 1, "blocks": 1, "attention": 0},
    **{"text_width": 8, "text_layers": 0, "backbone": "unet", "latent_shape": (4, 8, 8)},
}


def denoises(name: str) -> bool:
    model = outline(trainable(name), trainable(name).presets["tiny"])
    if not isinstance(model, Family) or model.capabilities.modality == "audio":  # test_matcha.py
        return False
    return model.capabilities.stepwise and "steps" in model.takes


EMBEDDED = "diffusers-decoder"  # reads no caption: test_ancestral.py
DENOISING = [name for name in FAMILIES if denoises(name) and name != EMBEDDED]
ROWS = [name for name in DENOISING if name != "dreamfusion"]
"""Those whose step is a call of the network with a row each: the other's is several views of one."""
OURS = [name for name in DENOISING if "diffusers" not in name]  # others trained its networks
PRESETS = [(name, preset) for name in OURS for preset in trainable(name).presets]
DDPMS: list[tuple[str, dict[str, Any]]] = [
    ("ddpm", {"objective": "v", "sampler": "ddim"}),
    ("ddpm", {"objective": "eps", "sampler": "ddpm", "schedule": "linear"}),
    ("ddpm", {"objective": "v", "sampler": "ddim", "zero_terminal_snr": True}),
    ("ddpm", {"shift": 3.0, "sampler": "dpmpp"}),
    ("latent-diffusion", {"objective": "v", "sampler": "ddim"}),
]
CONFIGS = [
    *((name, dataclasses.asdict(trainable(name).presets[preset])) for name, preset in PRESETS),
    *((name, dataclasses.asdict(trainable(name).presets["tiny"]) | more) for name, more in DDPMS),
]


def painter(name: str, config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    small = {key: value for key, value in SMALL.items() if key in config}
    small |= {"low_size": 4} if config.get("low_size") else {}
    if getattr(trainable(name).Config, "only", "unet") == "dit":  # a transformer has attention
        small |= {"backbone": "dit", "attention": 1}
    known = {field.name for field in dataclasses.fields(trainable(name).Config)}
    given = {key: value for key, value in {**config, **small}.items() if key in known}
    model = trainable(name)(trainable(name).Config(**given))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    assert isinstance(model, Family)
    return model


def watch_levels(model: Any, seen: list[Tensor]) -> None:
    """Keep the noise levels that the network is given: its own and, where there is one, the low picture's.

    They do not hang on what it answers: a call of so many rows is answered as the first one was.
    """
    network, answers = model.network.forward, dict[int, Tensor]()

    def keep(*given: Any) -> Tensor:
        rows = len(given[0])
        levels = given[1].view(len(given[1]), -1)[:, -1:]
        low = given[3][1][:, None] if len(given) > 3 and given[3] is not None else levels
        seen.append(torch.cat([levels, low], 1).detach())
        if rows not in answers:
            answers[rows] = network(*given)
        return answers[rows].clone()

    model.network.forward = keep


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_the_levels_that_a_sampler_visits_lie_within_those_trained(
    name: str, config: dict[str, Any]
) -> None:
    model, seen = painter(name, config), list[Tensor]()
    watch_levels(model, seen)
    with torch.no_grad():
        for _ in range(4):
            model.train()(batch_of(model, 1000))
    trained = torch.cat(seen)
    low = {"low": torch.rand(1, model.config.channels, 4, 4)}
    for steps in (1, 2, 18, 300):
        seen.clear()
        given = {**embeddings(model, model.inputs, 1), **clips(model, 1)}
        given |= low if model.capabilities.upscales and not given else {}
        model.eval().sample(Request(seeds=(0,), steps=steps, given=given))
        visited = torch.cat(seen)
        assert (visited <= trained.amax(0) * (1 + 1e-5)).all()
        assert (visited >= trained.amin(0) * (1 - 1e-5)).all()


def asked(model: Any, seeds: tuple[int, ...], said: str = "", **options: Any) -> Request:
    """Return what is asked of a model; one that sees embeddings is guided by them where nothing is said, too."""
    given = embeddings(model, model.inputs, len(seeds))
    unguided = {"guidance": 0.0} if given and not said else {}
    prompts = (said,) * len(seeds) if said else ()
    seen = {**given, **clips(model, len(seeds))}
    return Request(seeds, prompts=prompts, given=seen, options={**unguided, **options})


def calls(model: Any) -> list[int]:
    sizes: list[int] = []
    network = model.denoiser if isinstance(model, Diffusers) else model.network
    network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    return sizes


def reader(name: str) -> Any:
    tiny = dataclasses.asdict(trainable(name).presets["tiny"])
    return painter(name, {**tiny, "vocabulary": WORDS, "max_words": 2}).eval()


@pytest.mark.parametrize("name", OURS)
def test_a_network_that_is_ready_copies_no_filters_and_draws_the_same_bits(name: str) -> None:
    model = reader(name)
    request = asked(model, (1, 2), "red", steps=2)
    before = model.sample(request)
    filters = [
        (layer, layer.weight)
        for net in model.modules()
        if getattr(net, "channels_last", False)
        for layer in net.modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
    ]
    assert filters or getattr(model.config, "backbone", "unet") == "dit"
    for parameter in model.ready().parameters():
        assert parameter.is_leaf
    assert all(one.is_contiguous(memory_format=torch.channels_last) for _, one in filters)
    assert all(layer.weight is one for layer, one in filters)
    assert torch.equal(model.sample(request), before)


@pytest.mark.parametrize("name", [name for name in DENOISING if name not in OURS])
def test_another_s_filters_lie_as_features_do_in_a_network_that_is_ready(name: str) -> None:
    model = reader(name)
    filters = [one for one in model.ready().parameters() if one.ndim == 4]
    assert filters
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in filters)


@pytest.mark.parametrize("name", DENOISING)
def test_training_goes_on_after_a_sample_which_is_a_tensor_like_any_other(name: str) -> None:
    model = reader(name)
    drawn = model.sample(asked(model, (1,), "red", steps=2))
    assert not drawn.is_inference()
    model.train()(batch_of(model, 2)).total.backward()


@pytest.mark.parametrize("name", ROWS)
def test_guidance_costs_a_second_pass_only_where_it_moves_something(name: str) -> None:
    """Of the rows that it moves, whoever they share the call with; those that are done take part once."""
    model = reader(name)
    sizes = calls(model)
    for rows in (1, 2, 5):
        seeds = tuple(range(rows))
        for guidance, expected in ((0.0, rows), (1.0, rows), (2.0, 2 * rows)):
            sizes.clear()
            model.step(model.begin(asked(model, seeds, "red", guidance=guidance)))
            assert sizes == [expected], (rows, guidance)
        sizes.clear()
        model.step(model.begin(asked(model, seeds)))
        assert sizes == [rows]
    both = [model.begin(asked(model, (1, 2), "red", guidance=scale)) for scale in (1.0, 2.0)]
    sizes.clear()
    model.step(join(both))
    done = {**both[1], "index": both[1]["count"]}
    model.step(join([both[0], done]))
    assert sizes == [6, 4]


@pytest.mark.parametrize("name", ROWS)
def test_a_call_is_filled_up_to_a_size_that_was_tried_and_a_larger_one_is_made_as_it_is(
    name: str,
) -> None:
    model = reader(name)
    model.call_sizes = (4, 7)
    sizes = calls(model)
    seeds = (1, 2, 3)
    for guidance in (1.0, 2.0):
        model.step(model.begin(asked(model, seeds, "red", guidance=guidance)))
    model.step(model.begin(asked(model, tuple(range(8)), "red", guidance=1.0)))
    assert sizes == [4, 7, 8]


@pytest.mark.parametrize("name", ROWS)
def test_guidance_0_is_no_caption_1_the_caption_and_more_goes_on_along_the_line(name: str) -> None:
    model = reader(name)
    begun = {
        scale: model.begin(asked(model, (1,), "red", guidance=scale))
        for scale in (0.0, 1.0, 2.0, 3.0)
    }
    x0 = {scale: model.step(rows)["x0"] for scale, rows in begun.items()}
    assert torch.equal(x0[0.0], model.step(model.begin(asked(model, (1,))))["x0"])
    inside = torch.stack([one != 0 for one in x0.values()]).all(0)  # 0 over black: no darker
    once, twice, thrice = ((x0[scale] - x0[scale - 1])[inside] for scale in (1.0, 2.0, 3.0))
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-5)
    torch.testing.assert_close(thrice, once, rtol=0, atol=1e-5)
    assert once.abs().max() > 1e-4


@pytest.mark.parametrize("name", DENOISING)
def test_a_row_s_bits_do_not_depend_on_how_its_neighbours_are_guided(name: str) -> None:
    model = reader(name)
    agreeing(model, (4,))  # a replica tells it the sizes of calls whose bits agree on this machine
    scales = (1.0, 2.0, 0.0, 3.0)
    apart = [model.begin(asked(model, (7,), "red", steps=3, guidance=scale)) for scale in scales]
    alike = [join([one] * 4) for one in apart]
    for number, rows in enumerate((join(apart), *alike)):
        while not model.done(rows).all():
            rows = model.step(rows)
        if number == 0:
            mixed = model.finish(rows)
        else:
            assert torch.equal(model.finish(rows)[number - 1], mixed[number - 1])
