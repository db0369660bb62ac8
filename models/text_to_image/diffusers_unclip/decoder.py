"""CLIP's embeddings of pictures to pictures, by the decoder pipeline of another's unCLIP: Kandinsky 2.2.

Ramesh et al. 2022, arXiv:2204.06125, section 2.1; Razzhigaev et al. 2023, arXiv:2310.03502. The networks are diffusers'
own, built from the checkpoint's configs: a U-Net that denoises latents given an embedding (`unet`), and a MoVQ between
latents and pictures (`movq`; entries `encode` and `decode`). One class is either of them, and the U-Net alone learns.
It also says how much noise a step adds, which nothing here trains: the adapters of others do not, either.

Shape letters: B rows, C channels of the latent, H and W its places, E numbers of an embedding, S steps, K columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.diffusion import samplers, schedules
from models.family import Batch, Capabilities, Entry, Family, Losses, Rows
from models.parts import bounds
from models.parts.noise import normals
from models.parts.rows import drawn
from models.ports import Port
from models.request import DiffusionOptions, Request
from models.text_to_image.checkpoint_parts import network
from models.text_to_image.diffusers_unclip import ancestral, tiny

BOUNDS: Final[Mapping[str, bounds.Range]] = {
    "image_size": (8, 4096),
    "channels": (1, 4),
    "embedding": (1, 65536),
    "steps": (2, 1000),
    "guidance": (0, 50),
    "embedding_drop": (0, 1),
}
KINDS: Final[Mapping[str, str]] = {"unet": "UNet2DConditionModel", "movq": "VQModel"}


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusersDecoderConfig:
    """The settings of one of the two networks, and what it must know of others."""

    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=tiny.decoder)
    """config.json of the one that it is, by its part of the pipeline."""
    scheduler: str = tiny.NOISY  # scheduler_config.json
    latent_shape: tuple[int, int, int] = (4, 8, 8)
    autoencoder: str = ""  # the fingerprint of what encodes pictures
    embedding: int = tiny.KNOWN[1]  # numbers of an embedding
    clip: str = ""  # the fingerprint of what embeds pictures
    image_size: int = 16  # pixels a side
    channels: int = 3
    steps: int = 100
    guidance: float = 4.0
    embedding_drop: float = 0.1  # share of embeddings that training leaves out

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(self, BOUNDS)
        if len(self.networks) != 1 or not self.networks.keys() <= KINDS.keys():
            raise ValueError(
                f"networks: one of {', '.join(KINDS)} is needed, got {', '.join(self.networks)}"
            )
        if self.image_size % self.latent_shape[1]:
            raise ValueError(
                f"image_size must be a multiple of the latent's {self.latent_shape[1]}, got {self.image_size}"
            )

    @property
    def part(self) -> Literal["unet", "movq"]:
        """Which of the networks it is."""
        return "unet" if "unet" in self.networks else "movq"


class DiffusersDecoder(Family):
    """Latents that have an embedding; or the autoencoder that they are of."""

    Config = DiffusersDecoderConfig
    Options = DiffusionOptions
    presets: ClassVar[Mapping[str, DiffusersDecoderConfig]] = {
        "tiny": DiffusersDecoderConfig(steps=4, guidance=3.0),
        "base": DiffusersDecoderConfig(),  # of a version that training starts from, which brings its own
    }
    brought: ClassVar[tuple[str, ...]] = ("networks", "scheduler")
    adapts: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    needs: ClassVar[tuple[str, ...]] = ("latent", "embedding")
    call_sizes: tuple[int, ...] | None = ()
    channels_last: ClassVar[bool] = True  # filters, and so features; see `Family.ready`
    config: DiffusersDecoderConfig

    def __init__(self, config: DiffusersDecoderConfig) -> None:
        super().__init__()
        self.config, part = config, config.part
        self.add_module(part, network(KINDS[part], config.networks[part]))
        if part == "movq":
            self.call_sizes = None  # it takes no steps
            self.requires_grad_(requires_grad=False)
        levels_N2 = ancestral.trained(config.scheduler).to(next(self.parameters()).device)
        self.levels_N2: Tensor
        self.register_buffer("levels_N2", levels_N2, persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the U-Net: what does not learn drops nothing out either."""
        return super().train(mode and self.config.part == "unet")

    @property
    def capabilities(self) -> Capabilities:
        """Return what its part can do."""
        return Capabilities(stepwise=self.config.part == "unet")

    @property
    def inputs(self) -> Mapping[str, Port]:
        """Return what the U-Net draws from: an embedding, and one that guidance leads away from."""
        c = self.config
        return (
            {"embedding": Port("embedding", (2, c.embedding), c.clip)} if c.part == "unet" else {}
        )

    @property
    def outputs(self) -> Mapping[str, Port]:
        """Return what it gives: latents, or pictures."""
        return {"latent": self._latent} if self.config.part == "unet" else super().outputs

    @property
    def _latent(self) -> Port:
        return Port("latent", self.config.latent_shape, self.config.autoencoder)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Return of the autoencoder `encode` and `decode`."""
        c = self.config
        if c.part == "unet":
            return {}
        latent, pixels = {"latent": self._latent}, self.outputs
        names = ("latent_shape", "autoencoder", "image_size")
        facts = {name: getattr(c, name) for name in names}
        return {"encode": Entry(pixels, latent, facts), "decode": Entry(latent, pixels)}

    @torch.no_grad()
    def enter(self, entry: str, given: Mapping[str, Tensor]) -> Tensor:
        """Return latents (B, C, H, W) of pictures, or pictures in [0, 1] of latents, which no code is near to."""
        if self.config.part == "movq" and entry in self.entries:
            movq: Any = self.get_submodule("movq")
            if entry == "encode":
                found: Tensor = movq.encode(2 * given["pixels"] - 1).latents
                return found
            pixels: Tensor = movq.decode(given["latent"], force_not_quantize=True).sample
            return (pixels / 2 + 0.5).clamp(0, 1)
        return super().enter(entry, given)

    @property
    def takes(self) -> tuple[str, ...]:
        """Return the names of its options: the U-Net's."""
        return super().takes if self.config.part == "unet" else ()

    def _said(self, x: Tensor, time_B: Tensor, context_B1E: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the U-Net says of noise, and of how much is to be added, both (B, C, H, W)."""
        unet: Any = self.get_submodule("unet")
        given = {"image_embeds": context_B1E[:, 0]}
        found = unet(x, time_B, encoder_hidden_states=None, added_cond_kwargs=given).sample
        noise, variance = found.float().chunk(2, 1)
        return noise, variance

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the mean squared error of the noise that the U-Net sees at random times."""
        if self.config.part != "unet":
            raise ValueError("the movq of a checkpoint stays as it is: nothing learns")
        with torch.no_grad():
            x0, (given_BE, blank_BE) = batch["latent"], batch["embedding"].unbind(1)
            count, device = len(x0), x0.device
            dropped_B1 = torch.rand(count, 1, device=device) < self.config.embedding_drop
            context_B1E = torch.where(dropped_B1, blank_BE, given_BE)[:, None]
            index_B = (schedules.spread(count, device) * len(self.levels_N2)).long()
            alpha, sigma = self.levels_N2[index_B][:, :, None, None, None].unbind(1)
            eps = torch.randn_like(x0)
        found, _ = self._said(alpha * x0 + sigma * eps, index_B.float(), context_B1E)
        return Losses(F.mse_loss(found, eps), count)

    def player_parameters(self, player: str) -> list[nn.Parameter]:  # noqa: ARG002 - one player
        """Return what learns: the U-Net, or an adapter in it."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Return latents (B, C, H, W), or of the autoencoder what it makes of noise; a seed gives its own."""
        if self.config.part == "movq":
            self.check(request)
            return self.enter("decode", {"latent": self._noise(request.seeds, 0)})
        return drawn(self, request)

    @torch.no_grad()
    def begin(self, request: Request) -> Rows:
        """Return rows of noise, each with its sampler's table and its two embeddings.

        Raises:
            ValueError: steps or guidance out of range; begins with its name.
        """
        self.check(request)
        c, count, steps = self.config, len(request.seeds), self.steps_of(request)
        guidance = request.options.get("guidance", c.guidance)
        bounds.within("steps", steps, BOUNDS["steps"])
        bounds.within("guidance", guidance, BOUNDS["guidance"])
        x = self._noise(request.seeds, [0] * count)
        context, without = request.given["embedding"].to(x.device).chunk(2, 1)
        return {
            "x": x,
            "x0": torch.zeros_like(x),
            "table": ancestral.table(c.scheduler, steps).expand(count, -1, -1),
            "index": torch.zeros(count, dtype=torch.long),
            "count": torch.full((count,), steps),
            "seed": torch.tensor(request.seeds, dtype=torch.long),
            "guidance": torch.full((count,), float(guidance or 1)),  # 0 is at no second pass
            "context": context if guidance else without,
            "without": without,
        }

    def _noise(self, seeds: Sequence[int], draws: int | Sequence[int]) -> Tensor:
        return normals(seeds, self.config.latent_shape, self.levels_N2.device, draws=draws)

    def steps_of(self, request: Request) -> int:
        """Return the steps of the sampler."""
        steps: int = request.options.get("steps", self.config.steps)
        return steps if self.config.part == "unet" else 1

    def done(self, rows: Rows) -> Tensor:
        """Return (B,) bool: the rows that have taken all their steps."""
        return rows["index"] >= rows["count"]

    @torch.no_grad()
    def step(self, rows: Rows) -> Rows:
        """Return the rows one step further, each by its own table; finished rows stay."""
        x, live_B, scheduler = rows["x"], ~self.done(rows), self.config.scheduler
        index_B = rows["index"].clamp(max=rows["table"].shape[1] - 1)
        step_BK = rows["table"][torch.arange(len(x)), index_B].to(x.device, non_blocking=True)
        noise = self._noise(rows["seed"].tolist(), (index_B + 1).tolist())
        variances = []

        def predict(row_N: Tensor, context: Tensor | None) -> Tensor:
            assert context is not None
            said, variance = self._said(x[row_N], step_BK[row_N, 0], context)
            variances.append(variance[: len(x)])  # of the embeddings to draw: it is not guided
            return said

        e = samplers.guided(self, predict, rows, live_B)
        variance = variances[0] if ancestral.learns_variance(scheduler) else None
        moved, x0 = ancestral.advance(step_BK, x, e, variance, noise, scheduler)
        if not all(live_B.tolist()):
            live = live_B.to(x.device, non_blocking=True)[:, None, None, None]
            moved, x0 = torch.where(live, moved, x), torch.where(live, x0, rows["x0"])
        return {**rows, "x": moved, "x0": x0, "index": rows["index"] + live_B}

    def preview(self, rows: Rows) -> Tensor:
        """Return the current estimate of the latents (B, C, H, W)."""
        return rows["x0"]

    def finish(self, rows: Rows) -> Tensor:
        """Return the latents (B, C, H, W) of rows that are done."""
        return rows["x"]
