"""The diffusion transformer: nothing at first, then every place and every word matters to every place."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.diffusion.dit import Block, DiT, modulated, places


def transformer(zero: bool = False) -> DiT:
    torch.manual_seed(0)
    made = DiT(
        inputs=3,
        outputs=5,
        grids=[(4, 4)],
        width=16,
        blocks=2,
        heads=2,
        embedding=8,
        context=8,
        dropout=0.0,
    )
    with torch.no_grad():
        for parameter in () if zero else made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


def given(count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Return places, an embedding and words."""
    torch.manual_seed(1)
    return torch.randn(count, 3, 4, 4), torch.randn(count, 8), torch.randn(count, 3, 8)


def test_every_block_is_the_identity_at_first_and_nothing_comes_out() -> None:
    """The zero of adaLN-Zero; the gates and the last layer have gradients nevertheless, so that they can leave it."""
    made, (x, embedding, words) = transformer(zero=True), given()
    tokens = torch.randn(2, 16, 16)
    for block in made.blocks:
        assert torch.equal(block(tokens, embedding, words), tokens)
    out = made(x, embedding, words)
    assert out.shape == (2, 5, 4, 4)
    assert not out.any()
    (out - 1).square().sum().backward()
    assert made.out.weight.grad is not None
    assert made.out.weight.grad.abs().max() > 0


def test_a_block_is_attention_and_a_feed_forward_layer_as_in_the_paper() -> None:
    """Against torch's own attention, without words."""
    block, (_, embedding, _) = transformer().blocks[0], given()
    assert isinstance(block, Block)
    x = torch.randn(2, 16, 16)
    theirs = nn.MultiheadAttention(16, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(block.qkv.weight)
        theirs.in_proj_bias.copy_(block.qkv.bias)
        theirs.out_proj.weight.copy_(block.out.weight)
        theirs.out_proj.bias.copy_(block.out.bias)
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            block.modulation(embedding).unsqueeze(1).chunk(6, dim=2)
        )
        h = F.layer_norm(x, (16,)) * (1 + scale1) + shift1
        middle = x + gate1 * theirs(h, h, h, need_weights=False)[0]
        h = block.hidden(modulated(middle, shift2, scale2))
        wanted = middle + gate2 * block.back(F.gelu(h, approximate="tanh"))
        torch.testing.assert_close(block(x, embedding, None), wanted)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_every_place_hears_of_every_place_of_the_time_and_of_every_word(argument: int) -> None:
    made, arguments = transformer(), given(1)
    asked = arguments[argument].requires_grad_()
    out = made(*arguments)
    for place in ((0, 0), (1, 2), (3, 3)):
        (gradient,) = torch.autograd.grad(out[0, :, *place].sum(), asked, retain_graph=True)
        reached = gradient.abs().sum(1) if argument == 0 else gradient.abs().sum(-1)
        assert (reached > 0).all()


def test_a_row_hears_of_no_other_row() -> None:
    made, (x, embedding, words) = transformer(), given(2)
    both = made(x, embedding, words)
    torch.testing.assert_close(both[:1], made(x[:1], embedding[:1], words[:1]))


def test_no_two_places_look_alike_and_a_place_is_its_row_beside_its_column() -> None:
    found = places(8, 8, 32).view(8, 8, 32)
    assert torch.cdist(found.view(64, 32), found.view(64, 32)).fill_diagonal_(1).min() > 0.1
    assert torch.equal(found[3, 1, :16], found[3, 6, :16])
    assert torch.equal(found[1, 6, 16:], found[5, 6, 16:])
    assert torch.equal(found[0, 0, :8], torch.zeros(8))  # sin 0
