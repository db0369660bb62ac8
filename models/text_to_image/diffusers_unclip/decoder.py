"""CLIP's embeddings of pictures to pictures, by the decoder of another's unCLIP: Kandinsky 2.2, Karlo.

Ramesh et al. 2022, arXiv:2204.06125, section 2.1; Razzhigaev et al. 2023, arXiv:2310.03502. The networks are diffusers'
own, built from the checkpoint's configs. Of Kandinsky a U-Net that denoises latents given an embedding (`unet`), and a
MoVQ between latents and pictures (`movq`; entries `encode` and `decode`); of Karlo (`karlo.py`) a U-Net that denoises
pictures given an embedding and a text (`decoder`, `text_proj`), and two that enlarge them (`super_res_first`,
`super_res_last`). One class is any of the four, and Kandinsky's U-Net alone learns, since Karlo has nothing that embeds
pictures. It also says how much noise a step adds, which nothing here trains: the adapters of others do not, either.

Shape letters: B rows, C channels of what is denoised, H and W its places, E numbers of an embedding, L rows of what is
known of a prompt, K of what is told, or columns of a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.diffusion import samplers, schedules
from models.family import Batch, Capabilities, Entry, Family, Losses, Rows
from models.parts import bounds
from models.parts.noise import normals
from models.parts.rows import drawn, filled
from models.ports import Port
from models.request import DiffusionOptions, Request
from models.text_to_image.checkpoint_parts import agreed, network
from models.text_to_image.diffusers_unclip import ancestral, karlo, tiny

BOUNDS: Final[Mapping[str, bounds.Range]] = {
    "image_size": (8, 4096),
    "channels": (1, 4),
    "embedding": (1, 65536),
    "steps": (2, 1000),
    "guidance": (0, 50),
    "embedding_drop": (0, 1),
}
KINDS: Final[Mapping[str, str]] = {
    "unet": "UNet2DConditionModel",
    "movq": "VQModel",
    **karlo.KINDS,
}
PARTS: Final = (("unet",), ("movq",), karlo.DECODER, karlo.SUPER_RESOLUTION)
"""The networks that are a stage, named by the first of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusersDecoderConfig:
    """The settings of one of the parts, and what it must know of others."""

    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=tiny.decoder)
    """config.json of each that it is made of, by its part of the pipeline."""
    scheduler: str = tiny.NOISY  # scheduler_config.json
    latent_shape: tuple[int, int, int] = (4, 8, 8)  # of what is denoised; Karlo's: pictures
    autoencoder: str = ""  # the fingerprint of what encodes pictures
    embedding: int = tiny.KNOWN[1]  # numbers of an embedding
    clip: str = ""  # the fingerprint of what embeds pictures
    prompt_shape: tuple[int, int] | None = None  # L and E of what is known of a prompt, where told
    texts: str = ""  # the fingerprint of the text tower
    low_size: int | None = None  # pixels a side of what is enlarged
    image_size: int = 16  # pixels a side
    channels: int = 3
    steps: int = 100
    guidance: float = 4.0
    embedding_drop: float = 0.1  # share of embeddings that training leaves out

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(self, BOUNDS)
        if self.networks.keys() not in [{*one} for one in PARTS]:
            parts = ", ".join(" with ".join(one) for one in PARTS)
            got = " with ".join(self.networks) or "none"
            raise ValueError(f"networks: one of {parts} is needed, got {got}")
        for name, part in (("prompt_shape", "decoder"), ("low_size", "super_res_first")):
            if (getattr(self, name) is not None) != (self.part == part):
                raise ValueError(f"{name}: the {part} has one, got {getattr(self, name)}")
        if self.image_size % self.latent_shape[1]:
            raise ValueError(
                f"image_size must be a multiple of the latent's {self.latent_shape[1]}, got {self.image_size}"
            )

    @property
    def part(self) -> str:
        """Which of the parts it is."""
        return next(first for first, *_ in PARTS if first in self.networks)


class DiffusersDecoder(Family):
    """Latents or pictures that have an embedding; or what brings them to the size of pictures."""

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
        for name, asked in config.networks.items():
            self.add_module(name, network(KINDS[name], asked))
        self._check_networks()
        if part == "movq":
            self.call_sizes = None  # it takes no steps
        if part != "unet":
            self.requires_grad_(requires_grad=False)
        like = next(self.parameters())
        self.levels_N2: Tensor
        self.nothing_LE: Tensor
        levels_N2 = ancestral.trained(config.scheduler).to(like.device)
        self.register_buffer("levels_N2", levels_N2, persistent=False)
        if config.prompt_shape:
            self.register_buffer("nothing_LE", like.new_zeros(config.prompt_shape))

    def _check_networks(self) -> None:
        c, channels = self.config, self.config.channels
        learns = ancestral.learns_variance(c.scheduler)
        networks = dict(self.named_children())
        if c.part == "unet":
            planes = c.latent_shape[0]
            agreed(networks, {"unet": {"in_channels": planes, "out_channels": 2 * planes}})
        if c.part == "decoder":
            karlo.check_decoder(networks, channels, c.embedding)
            if not learns:
                raise ValueError("scheduler: of a decoder its variance_type must be learned_range")
        if c.part == "super_res_first":
            said = (1 + learns) * channels
            karlo.check_super_resolution(networks, channels, said, c.image_size)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the U-Net: what does not learn drops nothing out either."""
        return super().train(mode and self.config.part == "unet")

    @property
    def capabilities(self) -> Capabilities:
        """Return what its part can do."""
        c = self.config
        return Capabilities(stepwise=c.part != "movq", upscales=c.low_size is not None)

    @property
    def inputs(self) -> Mapping[str, Port]:
        """Return what it draws from: an embedding, with one that guidance leads away from, and a text; or a picture."""
        c = self.config
        given = {"embedding": Port("embedding", (2, c.embedding), c.clip)}
        if c.prompt_shape:
            known = Port("embedding", c.prompt_shape, c.texts, optional=True)
            return {**given, "text_embedding": known}
        if c.low_size:
            return {"low": Port("pixels", (c.channels, c.low_size, c.low_size))}
        return given if c.part == "unet" else {}

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
        if c.part != "movq":
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
        """Return the names of its options: of what takes steps."""
        return () if self.config.part == "movq" else super().takes

    def _said(self, x: Tensor, time_B: Tensor, context_BKE: Tensor) -> Tensor:
        """Return what a U-Net says of noise, and of how much is to be added, (B, 2 C, H, W)."""
        if self.config.part == "decoder":
            return karlo.decoded(self, x, time_B, context_BKE).float()
        unet: Any = self.get_submodule("unet")
        given = {"image_embeds": context_BKE[:, 0]}
        found: Tensor = unet(x, time_B, encoder_hidden_states=None, added_cond_kwargs=given).sample
        return found.float()

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the mean squared error of the noise that the U-Net sees at random times."""
        if self.config.part != "unet":
            raise ValueError(
                f"the {self.config.part} of a checkpoint stays as it is: nothing learns"
            )
        with torch.no_grad():
            x0, (given_BE, blank_BE) = batch["latent"], batch["embedding"].unbind(1)
            count, device = len(x0), x0.device
            dropped_B1 = torch.rand(count, 1, device=device) < self.config.embedding_drop
            context_B1E = torch.where(dropped_B1, blank_BE, given_BE)[:, None]
            index_B = (schedules.spread(count, device) * len(self.levels_N2)).long()
            alpha, sigma = self.levels_N2[index_B][:, :, None, None, None].unbind(1)
            eps = torch.randn_like(x0)
        found = self._said(alpha * x0 + sigma * eps, index_B.float(), context_B1E)
        return Losses(F.mse_loss(found.chunk(2, 1)[0], eps), count)

    def player_parameters(self, player: str) -> list[nn.Parameter]:  # noqa: ARG002 - one player
        """Return what learns: the U-Net, or an adapter in it."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Return latents or pictures (B, C, H, W), of the autoencoder what it makes of noise; a seed gives its own."""
        if self.config.part == "movq":
            self.check(request)
            return self.enter("decode", {"latent": self._noise(request.seeds, 0)})
        return drawn(self, request)

    @torch.no_grad()
    def begin(self, request: Request) -> Rows:
        """Return rows of noise, each with its sampler's table and what it is drawn from.

        Raises:
            ValueError: steps or guidance out of range; begins with its name.
        """
        self.check(request)
        c, count, steps = self.config, len(request.seeds), self.steps_of(request)
        bounds.within("steps", steps, BOUNDS["steps"])
        x = self._noise(request.seeds, [0] * count)
        return {
            "x": x,
            "x0": torch.zeros_like(x),
            "table": ancestral.table(c.scheduler, steps).expand(count, -1, -1),
            "index": torch.zeros(count, dtype=torch.long),
            "count": torch.full((count,), steps),
            "seed": torch.tensor(request.seeds, dtype=torch.long),
            **self._given(request, x.device),
        }

    def _given(self, request: Request, device: torch.device) -> Rows:
        """Return what rows are drawn from."""
        c, given = self.config, request.given
        if c.low_size:
            return {"low": karlo.enlarged(given["low"].to(device), c.image_size)}
        guidance = request.options.get("guidance", c.guidance)
        bounds.within("guidance", guidance, BOUNDS["guidance"])
        context, without = given["embedding"].to(device).chunk(2, 1)
        if c.prompt_shape:
            nothing_BLE = self.nothing_LE.expand(len(context), -1, -1)
            known_BLE = given.get("text_embedding", nothing_BLE).to(device)
            context = torch.cat([context, known_BLE], 1)
            without = torch.cat([without, nothing_BLE], 1)
        return {
            "guidance": torch.full((len(context),), float(guidance or 1)),  # 0: no second pass
            "context": context if guidance else without,
            "without": without,
        }

    def _noise(self, seeds: Sequence[int], draws: int | Sequence[int]) -> Tensor:
        return normals(seeds, self.config.latent_shape, self.levels_N2.device, draws=draws)

    def steps_of(self, request: Request) -> int:
        """Return the steps of the sampler."""
        steps: int = request.options.get("steps", self.config.steps)
        return 1 if self.config.part == "movq" else steps

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
        variances: list[Tensor] = []

        def predict(row_N: Tensor, context: Tensor | None) -> Tensor:
            assert context is not None
            said, variance = self._said(x[row_N], step_BK[row_N, 0], context).chunk(2, 1)
            variances.append(variance[: len(x)])  # of the embeddings to draw: it is not guided
            return said

        if "low" in rows:
            found, channels = self._enlarging(rows, step_BK[:, 0]), x.shape[1]
            e, variances = found[:, :channels], [found[:, channels:]]
        else:
            e = samplers.guided(self, predict, rows, live_B)
        variance = variances[0] if ancestral.learns_variance(scheduler) else None
        moved, x0 = ancestral.advance(step_BK, x, e, variance, noise, scheduler)
        if not all(live_B.tolist()):
            live = live_B.to(x.device, non_blocking=True)[:, None, None, None]
            moved, x0 = torch.where(live, moved, x), torch.where(live, x0, rows["x0"])
        return {**rows, "x": moved, "x0": x0, "index": rows["index"] + live_B}

    def _enlarging(self, rows: Rows, time_B: Tensor) -> Tensor:
        """Return what the networks of super-resolution say of rows, the second of those at their last step."""
        seen = torch.cat([rows["x"], rows["low"]], 1)
        last = (rows["index"] >= rows["count"] - 1).tolist()
        parts, places = [], []
        for name, ending in zip(karlo.SUPER_RESOLUTION, (False, True), strict=True):
            mine = [row for row, one in enumerate(last) if one == ending]
            if not mine:
                continue
            row_N = torch.tensor(filled(mine, self.call_sizes)).to(seen.device, non_blocking=True)
            found = self.get_submodule(name)(seen[row_N], time_B[row_N]).sample.float()
            parts.append(found[: len(mine)])
            places += mine
        whole = torch.cat(parts)
        return whole[torch.tensor(places).argsort().to(seen.device, non_blocking=True)]

    def preview(self, rows: Rows) -> Tensor:
        """Return the current estimate of what is drawn (B, C, H, W)."""
        return self._shown(rows["x0"])

    def finish(self, rows: Rows) -> Tensor:
        """Return the latents or pictures (B, C, H, W) of rows that are done."""
        return self._shown(rows["x"])

    def _shown(self, x: Tensor) -> Tensor:
        return x if self.config.part == "unet" else karlo.pictured(x)
