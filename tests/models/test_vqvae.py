"""The codebook against its definition, whole and in parts, and what it is without revival."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from models.parts.codes import perplexity
from models.variational.vqvae import VQVAE
from tests.models.autoencoder_kit import fitted, found


def vqvae(**change: object) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(dataclasses.replace(VQVAE.presets["tiny"], **change))  # type: ignore[arg-type]


def pictures(count: int = 32) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_code_is_the_nearest_vector() -> None:
    model = vqvae()
    z_BPD = model.encodings(pictures()) * 5
    distance = torch.cdist(z_BPD.flatten(0, 1), model.codebook.vectors_KD)
    assert torch.equal(model.codebook.nearest(z_BPD).flatten(), distance.argmin(1))


def test_gradients_pass_the_choice_straight_through_and_the_codebook_gets_none() -> None:
    """d cost / d encoding is d cost / d code, and the commitment adds 2 beta (z - e) a picture."""
    model, x = vqvae(), pictures(4)
    model.eval()
    z = model.encodings(x).detach().requires_grad_()
    model.encodings = lambda _: z  # type: ignore[method-assign,assignment]
    model({"pixels": x}).total.backward()
    e = model.codebook.vectors_KD[model.codebook.nearest(z)].clone().requires_grad_()
    ((model.decode(e) - x).square().sum() / 4).backward()
    assert e.grad is not None
    torch.testing.assert_close(z.grad, e.grad + 0.25 * 2 * (z - e).detach() / 4)
    assert not model.codebook.vectors_KD.requires_grad


def test_vectors_are_the_moving_mean_of_what_chose_them() -> None:
    """Without decay, one step puts each vector on the mean of its encodings; what was not chosen stays nowhere."""
    book = vqvae(decay=0.0, revive_below=0.0).codebook
    z_BPD = torch.randn(64, 16, 4, generator=torch.Generator().manual_seed(0))
    index = book.nearest(z_BPD)
    book.follow(book.seen(z_BPD, index), torch.ones(()))
    for code in index.unique():
        mean = z_BPD[index == code].mean(0)
        torch.testing.assert_close(book.vectors_KD[code], mean, rtol=1e-4, atol=1e-4)
    assert book.counts_K.sum() == 64 * 16
    torch.testing.assert_close(book.places_PK.sum(1), torch.full((16,), 64.0))


def test_unused_codes_start_anew_at_encodings_of_the_batch() -> None:
    model = vqvae()
    model.follow(model({"pixels": pictures()}).seen, torch.ones(()))
    book = model.codebook
    book.counts_K[3], book.sums_KD[3], book.vectors_KD[3] = 0.0, 0.0, 1000.0
    z_BPD = model.encodings(pictures())
    book.follow(book.seen(z_BPD, book.nearest(z_BPD)), torch.ones(()))
    nearest = (z_BPD.flatten(0, 1) - book.vectors_KD[3]).norm(dim=1).min()
    assert nearest < 1e-4
    assert book.counts_K[3] == pytest.approx(book.counts_K.mean().item(), rel=0.5)


def followed(parts: int, **change: object) -> dict[str, Tensor]:
    """Return the codebook after three steps, each of `parts` parts."""
    model = vqvae(decay=0.5, **change)
    for step in range(3):
        whole = torch.randn(32, 16, 4, generator=torch.Generator().manual_seed(step))
        seen = [model.codebook.seen(z, model.codebook.nearest(z)) for z in whole.chunk(parts)]
        joined = {name: torch.cat([one[name] for one in seen]) for name in seen[0]}
        model.follow(joined, torch.ones(()))
    return model.codebook.state_dict()


def test_parts_of_a_batch_keep_the_codebook_of_the_whole() -> None:
    torch.testing.assert_close(
        followed(4, revive_below=0.0), followed(1, revive_below=0.0), rtol=1e-5, atol=1e-5
    )


def test_each_part_lends_encodings_to_codes_that_start_anew() -> None:
    """At the first step all codes do, each at an encoding of its own."""
    model = vqvae(decay=0.5)
    whole = torch.randn(32, 16, 4, generator=torch.Generator().manual_seed(0))
    seen = [model.codebook.seen(z, model.codebook.nearest(z)) for z in whole.chunk(4)]
    model.follow({name: torch.cat([one[name] for one in seen]) for name in seen[0]}, torch.ones(()))
    far_KN = torch.cdist(model.codebook.vectors_KD, whole.flatten(0, 1))
    near = far_KN.min(1)
    assert near.values.max() < 1e-3
    assert set((near.indices // 128).tolist()) == {0, 1, 2, 3}
    assert len(near.indices.unique()) == 16


def test_a_step_that_is_not_taken_moves_no_code() -> None:
    model = vqvae()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = model({"pixels": pictures()}).seen
    model.follow({name: torch.zeros_like(rows) for name, rows in seen.items()}, torch.zeros(()))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_a_codebook_without_revival_is_seen() -> None:
    """Measured 47 codes against 1 in use, cost .32 of the mean picture's against 1.01."""
    config = VQVAE.presets["digits"]
    torch.manual_seed(0)
    ours = found(fitted(VQVAE(config), 250, 4e-3))
    torch.manual_seed(0)
    theirs = found(fitted(VQVAE(dataclasses.replace(config, revive_below=0.0)), 60, 4e-3))
    assert ours["perplexity"] > 40
    assert ours["relative_cost"] < 0.42
    assert theirs["perplexity"] < 30
    assert theirs["relative_cost"] > ours["relative_cost"] + 0.05


def test_perplexity_counts_codes_in_even_use() -> None:
    for used in (1, 4, 16):
        index = torch.from_numpy(np.arange(64) % used).view(4, 16)
        assert perplexity(index, 16).item() == pytest.approx(used, rel=1e-5)
