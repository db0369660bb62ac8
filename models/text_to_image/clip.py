"""CLIP (Radford et al. 2021, arXiv:2103.00020): pictures and captions in one space, each near to what belongs to it.

Two towers embed a picture and a caption on the unit sphere. Of a batch's N pairs every picture is to find its caption
among all N, and every caption its picture (InfoNCE in both directions, figure 3 of the paper), by a softmax of
cosines times a learned scale. Rows with the same caption are one another's positives, too: the target is spread
evenly over them, and the loss is what the cross-entropy has above the target's own entropy, 0 at best.

The scale begins at 1 / .07 and stays below 100; as 100 times a sigmoid it has a slope everywhere, which a clipped one
loses at the bound.

What a row is told apart from are the rows of all parts and workers that share a step: each part gives its rows'
embeddings to all of them, and takes its own share of the gradient of the whole batch's loss (`contrast`).

Shape letters: B pairs of a part, N of the whole batch, C channels, H and W pixels, T words, W width of a word, E
numbers of an embedding. Pixels are in [0, 1].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Capabilities, Entry, Family, Losses
from models.parts import bounds, words
from models.parts.attention import EncoderLayer
from models.parts.spaces import fingerprint
from models.parts.tables import Table
from models.ports import Port
from models.request import Prompt, Request

FIRST_SCALE: Final = 1 / 0.07
MOST_SCALE: Final = 100.0
GROUPS: Final = 8  # of a group norm


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIPConfig:
    """What is learned and the sizes of both towers."""

    image_size: int = 32  # pixels a side
    channels: int = 3
    vocabulary: tuple[str, ...] = ("dark", "light")  # lower-case words; a dataset brings its own
    max_words: int = 8
    embedding: int = 64  # E
    patch: int = 2  # side of the squares of pixels that enter as channels: cheap, and exact
    hidden: tuple[int, ...] = (32, 64, 128)  # channels; each after the first halves the side
    width: int = 64  # of a word
    layers: int = 2  # of the captions' transformer
    heads: int = 4
    feedforward: int = 256

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        sizes = ("image_size", "channels", "max_words", "embedding", "patch", "layers", "heads")
        bounds.check(self, dict.fromkeys((*sizes, "feedforward", "hidden"), bounds.SIZE))
        if not self.vocabulary:
            raise ValueError("vocabulary is empty: clip learns pictures with their captions")
        if odd := [one for one in self.hidden if one % GROUPS]:
            raise ValueError(f"each of hidden must be a multiple of {GROUPS}, got {odd[0]}")
        if self.image_size % self.patch:
            raise ValueError(
                f"image_size must be a multiple of patch {self.patch}, got {self.image_size}"
            )
        for number, wide in enumerate(self.hidden):
            side = -(-(self.image_size // self.patch) // 2**number)
            bounds.check_norm("each of hidden", wide, side, GROUPS)
        if self.width < 1 or self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads {self.heads}, got {self.width}")

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Return tokens (B, max_words) int64, 0 after the last word.

        Raises:
            ValueError: a caption is empty, longer than max_words or has a word never learned.
        """
        return words.encode(captions, self.vocabulary, self.max_words)


class PixelTower(nn.Module):
    """Convolutions that keep where a thing is until the last layer: it may be what a caption says."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        before, side = config.channels * config.patch**2, config.image_size // config.patch
        layers: list[nn.Module] = [nn.PixelUnshuffle(config.patch)]
        for number, wide in enumerate(config.hidden):
            stride = 2 if number else 1
            layers += [nn.Conv2d(before, wide, 3, stride, padding=1), nn.GroupNorm(GROUPS, wide)]
            layers += [nn.SiLU()]
            before, side = wide, -(-side // stride)
        layers += [nn.Flatten(), nn.Linear(before * side**2, config.embedding)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, E), of any length."""
        out: Tensor = self.layers(x_BCHW * 2 - 1)
        return out


class TextTower(nn.Module):
    """A transformer over a caption's words, and the mean over them."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(len(config.vocabulary) + 1, config.width, padding_idx=0)
        self.place_TW = Table(0.02 * torch.randn(config.max_words, config.width))
        sizes = (config.width, config.heads, config.feedforward, 0.0)
        self.layers = nn.ModuleList(EncoderLayer(*sizes, "gelu") for _ in range(config.layers))
        self.out = nn.Linear(config.width, config.embedding)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return (B, E), of any length."""
        real_BT = tokens_BT != 0
        x_BTW = self.word(tokens_BT) + self.place_TW[: tokens_BT.shape[1]]
        for layer in self.layers:
            x_BTW = layer(x_BTW, real_BT[:, None, None])
        total_BW = (x_BTW * real_BT[..., None]).sum(1)
        out: Tensor = self.out(total_BW / real_BT.sum(1, keepdim=True))
        return out


class Pairs(NamedTuple):
    """Embeddings of pictures and captions that belong together, on the unit sphere, and the captions' tokens."""

    picture: Tensor  # (B, E)
    caption: Tensor  # (B, E)
    tokens: Tensor  # (B, T)


def contrast(own: Pairs, everybody: Pairs, scale: Tensor) -> Tensor:
    """Return InfoNCE in both directions, a mean over own rows; the mean over all parts is the whole batch's.

    So is its gradient, although `everybody` has none: an own embedding is moved as one that asks, by the loss of its
    row, and as one that is found, by what the softmax of each row of everybody makes of it.
    """
    positive_BN = (own.tokens[:, None] == everybody.tokens).all(2).float()
    count_B = positive_BN.sum(1)
    target_BN = positive_BN / count_B[:, None]
    with torch.no_grad():
        whole_NN = scale * everybody.picture @ everybody.caption.T
    total = -count_B.log().mean()
    for embedding, others, whole in (
        (own.picture, everybody.caption, whole_NN),
        (own.caption, everybody.picture, whole_NN.T),
    ):
        cosine_BN = embedding @ others.T
        logit_BN = scale * cosine_BN
        asks = -(target_BN * logit_BN.log_softmax(1)).sum(1).mean()
        share_BN = (logit_BN - whole.logsumexp(0)).exp() - target_BN
        found = (share_BN.detach() * scale.detach() * cosine_BN).sum(1).mean()
        total = total + (asks + found - found.detach()) / 2
    return total


class CLIP(Family):
    """What a picture shows and what a caption says, as one embedding; it draws nothing."""

    Config = CLIPConfig
    adapts: ClassVar[tuple[str, ...]] = ("query", "key", "value", "out", "hidden")
    presets: ClassVar[Mapping[str, CLIPConfig]] = {
        "tiny": CLIPConfig(
            image_size=8, channels=1, embedding=16, hidden=(16,), width=16, layers=1, feedforward=32
        ),
        "base": CLIPConfig(),
    }
    ranks: ClassVar[bool] = True
    config: CLIPConfig

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.pixels, self.text = PixelTower(config), TextTower(config)
        self.scale_logit = nn.Parameter(torch.tensor(-math.log(MOST_SCALE / FIRST_SCALE - 1)))

    @property
    def capabilities(self) -> Capabilities:
        """Return what every config can do: embed captions and pictures."""
        return Capabilities(condition="text", embeds=True)

    @property
    def outputs(self) -> Mapping[str, Port]:
        """Return the embedding of what it is asked; its numbers are those of these weights alone."""
        weights = fingerprint(*self.state_dict().values())
        return {"embedding": Port("embedding", (self.config.embedding,), space=weights)}

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Return `text`, `pixels` and the `frames` of a clip, all to an embedding."""
        c, outputs = self.config, self.outputs
        facts = {"embedding": c.embedding, "clip": outputs["embedding"].space}
        picture = (c.channels, c.image_size, c.image_size)
        pixels, frames = Port("pixels", picture), Port("clip", (None, *picture))
        return {
            "text": Entry({"text": Port("text")}, outputs, facts),
            "pixels": Entry({"pixels": pixels}, outputs, facts),
            "frames": Entry({"frames": frames}, outputs, facts),
        }

    def enter(self, entry: str, given: Mapping[str, Tensor]) -> Tensor:
        """Return the embeddings (B, E) of captions, of pictures or, between those of its frames, of a clip."""
        if entry == "text":
            return self.of_text(given["tokens"])
        if entry == "pixels":
            return self.of_pixels(given["pixels"])
        if entry == "frames":
            clips, length = given["frames"].shape[:2]
            each_NE = self.of_pixels(given["frames"].flatten(0, 1))
            return F.normalize(each_NE.reshape(clips, length, -1).mean(1), dim=1)
        return super().enter(entry, given)

    @property
    def scale(self) -> Tensor:
        """By what cosines are multiplied, one over the temperature; above 0, below 100."""
        return MOST_SCALE * self.scale_logit.float().sigmoid()

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the loss of these rows among all that share the step, in nats a row and direction.

        Raises:
            ValueError: the batch has no tokens.
        """
        own = self._pairs(batch)
        names = ("pictures", "captions", "said")
        everybody = Pairs(
            *(batch.get(name, of.detach()) for name, of in zip(names, own, strict=True))
        )
        with torch.autocast(own.picture.device.type, enabled=False):
            total = contrast(own, everybody, self.scale)
        return Losses(total, len(own.picture), {"scale": self.scale.detach()})

    @torch.no_grad()
    def survey(self, batch: Batch, player: str = "model") -> Batch:  # noqa: ARG002 - one player
        """Return the embeddings of these rows, and what their captions are: all are told apart from all."""
        own = self._pairs(batch)
        return {"pictures": own.picture, "captions": own.caption, "said": own.tokens}

    def _pairs(self, batch: Batch) -> Pairs:
        tokens_BT = self.tokens_of(batch)
        assert tokens_BT is not None
        return Pairs(self.of_pixels(batch["pixels"]), self.of_text(tokens_BT), tokens_BT)

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Return the embeddings (B, E) of pictures, of length 1."""
        return F.normalize(self.pixels(pixels).float(), dim=1)

    def of_text(self, tokens: Tensor) -> Tensor:
        """Return the embeddings (B, E) of captions, of length 1."""
        return F.normalize(self.text(tokens).float(), dim=1)

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Return the embeddings (B, E) of the prompts; there is nothing to draw, so seeds do not count."""
        self.check(request)
        return self.embed(request.prompts)

    @torch.no_grad()
    def embed(self, texts: Sequence[Prompt]) -> Tensor:
        """Return the embeddings (B, E) of captions, of length 1.

        Raises:
            ValueError: a caption is given as tokens, is empty, too long or has a word never learned.
        """
        captions = [text for text in texts if isinstance(text, str)]
        if len(captions) < len(texts):
            raise ValueError("this model reads captions of words, and no tokens of them")
        return self.of_text(self.config.encode(captions).to(self.scale_logit.device))
