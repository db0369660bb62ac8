"""DALL-E 2: a prior has the spread of real embeddings, and a decoder paints what an embedding and a caption say."""

import dataclasses
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.diffusion import super_resolution
from models.diffusion.ddpm import DDPM
from models.family import Batch
from models.request import Request
from models.text_to_image.unclip import Decoder, Prior

WORDS = ("red", "blue")
E = 8


def embeddings(count: int, spread: float, seed: int) -> Batch:
    """Pictures of two captions: around a direction each, within a caption spread along one more."""
    draws = torch.Generator().manual_seed(seed)
    caption_B = torch.arange(count) % 2
    centre_BE = torch.eye(E)[caption_B]
    along_BE = torch.eye(E)[2 + caption_B] * torch.randn(count, 1, generator=draws)
    real = F.normalize(centre_BE + spread * along_BE, dim=1)
    return {"embedding": real, "text_embedding": centre_BE, "tokens": 1 + caption_B[:, None]}


@cache
def learned() -> Prior:
    """A prior that has learned two captions' embeddings."""
    torch.manual_seed(0)
    sizes = {"width": 32, "layers": 1, "steps": 12, "candidates": 1}
    facts = {"embedding": E, "vocabulary": WORDS, "max_words": 1}
    made = Prior(dataclasses.replace(Prior.presets["tiny"], **sizes, **facts))
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 250)
    for step in range(250):
        optimizer.zero_grad()
        made(embeddings(64, 0.4, step)).total.backward()
        optimizer.step()
        schedule.step()
    return made.eval()


def changed(prior: Prior, **changes: object) -> Prior:
    made = Prior(dataclasses.replace(prior.config, **changes))  # type: ignore[arg-type]
    made.load_state_dict(prior.state_dict())
    return made.eval()


def measured(prior: Prior, batch: Batch) -> tuple[float, float]:
    found = prior.measure(batch)
    return float(found["variance_ratio"].mean()), float(found["squared_error"].mean())


def test_a_prior_has_the_spread_of_real_embeddings_and_a_mean_has_none() -> None:
    """In one step a sampler gives the mean of all that a caption may be: what a regression would have learned."""
    real = embeddings(400, 0.4, 10_000)
    ratio, error = measured(learned(), real)
    assert 0.4 < ratio < 1.5
    assert error < 0.01
    ratio, error = measured(changed(learned(), steps=1, sampler="ddim"), real)
    assert ratio < 0.3
    assert error < 0.0225, "the mean is in its place: only the spread tells it from a prior"


def test_an_error_is_told_of_means_that_lie_elsewhere_and_not_of_few_rows() -> None:
    """Two rows a caption have other means than all: that is left out, on average."""
    few = [measured(learned(), embeddings(4, 0.4, seed))[1] for seed in range(20)]
    assert sum(few) / 20 < 0.08
    elsewhere = dict(embeddings(400, 0.4, 3))
    elsewhere["embedding"] = elsewhere["embedding"].roll(1, 0)
    assert measured(learned(), elsewhere)[1] > 1


def test_the_candidate_that_is_nearest_to_the_text_is_kept() -> None:
    batch = embeddings(64, 0.4, 5)
    asked = Request(
        seeds=tuple(range(64)),
        prompts=WORDS * 32,
        given={"text_embedding": batch["text_embedding"]},
    )

    def near(candidates: int) -> Tensor:
        drawn = changed(learned(), candidates=candidates).sample(asked)
        return (drawn * batch["text_embedding"]).sum(1).mean()

    assert near(1) < near(2) < near(8)


def test_guidance_of_a_prior_goes_from_any_caption_to_this_one() -> None:
    text = torch.eye(E)[:1]
    other = Request(seeds=(1,), prompts=("blue",), given={"text_embedding": torch.eye(E)[1:2]})
    one = Request(seeds=(1,), prompts=("red",), given={"text_embedding": text})

    def drawn(request: Request, guidance: float) -> Tensor:
        return learned().sample(dataclasses.replace(request, options={"guidance": guidance}))

    torch.testing.assert_close(drawn(one, 0), drawn(other, 0))
    assert (drawn(one, 1) - drawn(other, 1)).abs().max() > 0.5
    with pytest.raises(ValueError, match="guidance must be between 0 and 50, got 60"):
        drawn(one, 60)


@pytest.mark.parametrize(("guidance", "rows"), [(0, 2), (1, 2), (3, 4)])
def test_a_prior_that_nothing_guides_asks_its_network_once_a_candidate(
    guidance: float, rows: int
) -> None:
    prior, seen = changed(learned(), candidates=2), list[int]()
    prior.network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    given = {"text_embedding": torch.eye(E)[:1]}
    prior.sample(Request((1,), prompts=("red",), given=given, steps=2, guidance=guidance))
    assert seen == [rows, rows]


def test_a_walk_between_embeddings_stays_on_the_sphere_and_ends_at_its_ends_bit_by_bit() -> None:
    start, end = F.normalize(
        torch.randn(2, 5, E, generator=torch.Generator().manual_seed(1)), dim=2
    )

    def at(weight: float, there: Tensor = end) -> Tensor:
        given = {"embedding": start, "other": there, "weight": torch.full((5,), weight)}
        return learned().enter("blend", given)

    assert torch.equal(at(0.0), start)
    assert torch.equal(at(1.0), end)
    torch.testing.assert_close(at(0.3).norm(dim=1), torch.ones(5))
    turned = [(start * at(weight)).sum(1).acos() for weight in (0.25, 0.5)]
    torch.testing.assert_close(2 * turned[0], turned[1], rtol=1e-3, atol=0)
    torch.testing.assert_close(at(0.5, start), start)


def decoder(**changes: object) -> Decoder:
    """A tiny decoder whose weights are all away from zero."""
    torch.manual_seed(0)
    made = Decoder(dataclasses.replace(Decoder.presets["tiny"], **changes))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.eval()


def test_a_decoder_sees_embedding_and_caption_and_at_guidance_0_neither() -> None:
    made = decoder(vocabulary=WORDS, max_words=1)
    first, second = F.normalize(torch.randn(2, 1, E), dim=2)

    def drawn(embedding: Tensor, *prompt: str, guidance: float = 3.0) -> Tensor:
        given, options = {"embedding": embedding}, {"guidance": guidance}
        return made.sample(Request(seeds=(1,), prompts=prompt, given=given, options=options))

    plain = drawn(first, "red")
    for other in (drawn(second, "red"), drawn(first, "blue"), drawn(first)):
        assert (plain - other).abs().max() > 1e-3
    nothing = [drawn(one, *said, guidance=0) for one in (first, second) for said in (("red",), ())]
    assert all(torch.equal(one, nothing[0]) for one in nothing)


def test_a_decoder_s_guidance_leads_away_from_a_negative_prompt_also_where_nothing_is_said() -> (
    None
):
    made = decoder(vocabulary=WORDS, max_words=1)
    given = {"embedding": F.normalize(torch.randn(1, E), dim=1)}

    def drawn(**options: object) -> Tensor:
        return made.sample(Request(seeds=(1,), given=given, options=options))

    assert (drawn(negative_prompt="red") - drawn()).abs().max() > 1e-4
    assert (drawn(negative_prompt="red") - drawn(negative_prompt="blue")).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r"^negative_prompt: guidance leads away from it"):
        drawn(negative_prompt="red", guidance=1.0)


def test_a_decoder_changes_what_a_mask_leaves_open_and_nothing_else() -> None:
    made = decoder()
    image, mask = torch.rand(2, 3, 8, 8), torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5, 3:7] = 1
    given = {"embedding": F.normalize(torch.randn(2, E), dim=1), "image": image, "mask": mask}
    kept = (mask == 0).expand_as(image)
    drawn = made.sample(Request(seeds=(1, 2), given=given))
    torch.testing.assert_close(drawn[kept], image[kept], rtol=0, atol=1e-6)
    assert (drawn - image)[~kept].abs().max() > 0.05


@pytest.mark.parametrize("kind", [Prior, Decoder])
def test_embeddings_of_another_clip_are_refused_by_name(kind: type[Prior] | type[Decoder]) -> None:
    ports = kind(dataclasses.replace(kind.presets["tiny"], clip="0123456789ab")).inputs
    (port,) = (one for one in ports.values() if one.kind == "embedding")
    assert str(port) == "embedding 8 of 0123456789ab"
    assert port.takes(port)
    assert not port.takes(dataclasses.replace(port, space="ba9876543210"))


def test_a_blur_leaves_a_plain_picture_alone_and_spreads_a_dot() -> None:
    """The Gaussian of sigma .6 in 3 x 3 pixels has weights .166, .667 and .166."""
    plain = torch.full((1, 3, 6, 6), 0.3)
    torch.testing.assert_close(super_resolution.blur(plain), plain)
    dot = torch.zeros(1, 1, 5, 5)
    dot[0, 0, 2, 2] = 1
    weights = torch.tensor([0.1664, 0.6672, 0.1664])
    blurred = super_resolution.blur(dot)[0, 0, 1:4, 1:4]
    torch.testing.assert_close(blurred, torch.outer(weights, weights), rtol=0, atol=1e-3)


def test_a_low_picture_of_one_pixel_is_as_sharp_as_its_blur() -> None:
    """The mean around a pixel whose edges are mirrored is that pixel."""
    dot = torch.rand(2, 3, 1, 1)
    assert torch.equal(super_resolution.blur(dot), dot)
    config = dataclasses.replace(DDPM.presets["tiny"], low_size=1, low_blur=1.0)
    assert DDPM(config)({"pixels": torch.rand(2, 3, 8, 8)}).total.isfinite()


def test_a_share_of_the_low_pictures_is_blurred_in_training() -> None:
    picture = torch.rand(200, 3, 8, 8) * 2 - 1
    sharp = F.interpolate(picture, 4, mode="area")
    soft = super_resolution.blur(sharp)
    for share, least, most in ((0.0, 0, 0), (0.5, 70, 130), (1.0, 200, 200)):
        torch.manual_seed(0)
        _, (low, _) = super_resolution.training_pair(picture, 4, 0.0, 8.0, share)
        is_soft = ((low - soft).abs() < (low - sharp).abs()).flatten(1).all(1)
        assert least <= is_soft.sum() <= most
        assert ((low == sharp).flatten(1).all(1) != is_soft).all()
    assert DDPM.presets["upsampler"].low_blur == 0, "older versions were trained without"
