"""Sampling without caches, a whole `logits` a value: what the families' samplers are proven and timed against."""

import itertools
from functools import singledispatch

import torch
from torch import Tensor
from torch.nn import functional as F

from models.autoregressive.nade import NADE
from models.autoregressive.pixelcnn import PixelCNN
from models.autoregressive.pixelrnn import PixelRNN
from models.autoregressive.wavenet import WaveNet
from models.family import Family
from models.language.gpt import GPT
from models.parts import draws
from models.parts.levels import drawn
from models.parts.noise import uniforms
from models.request import Request
from models.text_to_image.dalle import DALLE

CPU = torch.device("cpu")


@singledispatch
def sample_naively(model: Family, request: Request) -> Tensor:
    """Draw what `model.sample(request)` draws, bit for bit."""
    raise NotImplementedError(type(model).__name__)


@sample_naively.register
@torch.no_grad()
def _nade(model: NADE, request: Request) -> Tensor:
    u_BD = uniforms(request.seeds, (len(model.order_D),), CPU)
    x_BD = torch.zeros_like(u_BD)
    for d in range(u_BD.shape[1]):
        x_BD[:, d] = (u_BD[:, d] < model.logits(x_BD)[:, d].sigmoid()).float()
    raster_BD = torch.empty_like(x_BD).index_copy_(1, model.order_D, x_BD)
    return raster_BD.view(-1, *model.config.shape)


@sample_naively.register(PixelCNN)
@sample_naively.register(PixelRNN)
@torch.no_grad()
def _pixels(model: PixelCNN | PixelRNN, request: Request) -> Tensor:
    side, tokens = model.config.image_size, model.encode(request.prompts)
    u_BHW = uniforms(request.seeds, (side, side), CPU)
    x_B1HW = torch.zeros_like(u_BHW)[:, None]
    for r, c in itertools.product(range(side), repeat=2):
        logits_BK = model.logits(x_B1HW, tokens)[:, :, r, c]
        x_B1HW[:, 0, r, c] = drawn(logits_BK, u_BHW[:, r, c])
    return x_B1HW / (model.config.levels - 1)


@sample_naively.register
@torch.no_grad()
def _wavenet(model: WaveNet, request: Request) -> Tensor:
    rows, tokens = model.begin(request), model.encode(request.prompts)
    for t in range(int(rows["samples"][0])):
        logits_BTK = model.logits(rows["level"][:, : t + 1], tokens)
        rows["level"][:, t] = drawn(logits_BTK[:, t], rows["u"][:, t]).long()
    return model.finish({**rows, "index": rows["count"]})


@sample_naively.register
@torch.no_grad()
def _gpt(model: GPT, request: Request) -> Tensor:
    rows, prompts = model.begin(request), model._prompts(request)
    while not model.done(rows).all():
        both = zip(prompts, model.preview(rows).tolist(), strict=True)
        seen = [[*prompt, *(t for t in more if t >= 0)] for prompt, more in both]
        longest = min(max(map(len, seen)), model.config.context)
        read = [(text + [0] * longest)[:longest] for text in seen]
        last_B = torch.tensor([min(len(text), longest) - 1 for text in seen])
        found_BTE = model.hidden(torch.tensor(read))
        last_BE = found_BTE[torch.arange(len(seen)), last_B]
        rows = model._appended(rows, F.linear(last_BE, model.tokens.weight))
    return model.finish(rows)


@sample_naively.register
@torch.no_grad()
def _dalle(model: DALLE, request: Request) -> Tensor:
    rows, words_BT = model.begin(request), model.encode(request.prompts)
    assert words_BT is not None
    rules = rows["temperature"], rows["top_k"], rows["top_p"]
    codes_BP = rows["codes"].clone()
    for place, u_B in enumerate(rows["u"].double().unbind(1)):
        given_BK, without_BK = (
            model.logits(words, codes_BP)[1][:, place]
            for words in (words_BT, torch.zeros_like(words_BT))
        )
        logits_BK = without_BK + rows["guidance"][:, None] * (given_BK - without_BK)
        codes_BP[:, place] = draws.drawn(logits_BK, u_B, *rules)
    return codes_BP
