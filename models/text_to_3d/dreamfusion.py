"""DreamFusion (Poole et al. 2022, arXiv:2209.14988): things in space by a diffusion model of their pictures.

Training is that of the diffusion model: pictures from all sides, and captions (models/diffusion/ddpm.py). Sampling is
score distillation, the paper's section 3 and eq. 3: a volume is seen from random sides, the pictures are noised, and
what the frozen network would have otherwise in them moves the volume by Adam, until it looks right from everywhere.

Two things are other than in the paper. The volume is a grid of voxels in place of a network that is asked along every
ray (Sun et al. 2022, arXiv:2111.11215, section 4), and its colours have the light in them: no light is varied.

Shape letters: B volumes, V views of one, R voxels a side, H and W pixels, K view words, T words, D text width.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from models.diffusion import ddpm, objectives, samplers
from models.diffusion.ddpm import DDPM, DDPMConfig
from models.family import Capabilities, Rows
from models.parts import bounds
from models.parts.noise import normals, uniforms
from models.parts.words import cut, hint, unknown
from models.ports import Port
from models.request import DiffusionOptions, Request
from models.text_to_3d import volumes

BOUNDS: Final[Mapping[str, bounds.Range]] = {
    **ddpm.BOUNDS,
    "resolution": (4, 256),
    "cameras": (1, 64),
    "steps": (1, 20_000),
    "rate": (1e-4, 1),
    "sparsity": bounds.WEIGHT,
}
ELEVATIONS: Final = (math.radians(-10), math.radians(90))  # section 3.2, step 1
OVERHEAD: Final = math.radians(60)  # from where a view is one from above
TIMES: Final = (0.02, 0.98)  # of the noise, as shares of all; section 3.2, step 3
LAST: Final = 0.5  # the most noise at the end, where what is there is only bettered
BETAS: Final = (0.9, 0.99)  # of Adam
CAMERAS: Final = 1  # the stage of the numbers that cameras, times and backgrounds are drawn by
HARD: Final = 24.0  # how much steeper opacity is at the end, of a surface, than at first, of a haze
SET: Final = 0.75  # the share of the steps after which it is as steep as that
PICTURES: Final = {"eta": 0.0, "variance": "small", "shift": 1.0}
"""Fields of a DDPM's Config that no volume is drawn by, as they are where nobody asks for them."""
MOVED: Final = ("volume", "mean", "square")  # what a step changes of a row


@dataclass(frozen=True, kw_only=True, slots=True)
class DreamFusionOptions(DiffusionOptions):
    """What a caller may say of how it draws; `steps` are those of the volume."""

    negative_prompt: str | None = None
    """What guidance leads away from, in place of what is drawn without a prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DreamFusionConfig(DDPMConfig):
    """That of the diffusion model of pictures, and how volumes are made by it."""

    ranges: ClassVar[Mapping[str, bounds.Range]] = BOUNDS
    guidance: float = 5.0  # the paper's 100 is of a model of all pictures that there are
    resolution: int = 24  # R
    cameras: int = 4  # V, at each step
    steps: int = 200  # of the volume
    rate: float = 0.1  # of Adam
    sparsity: float = 0.02  # weight of the opacity, against haze about a thing
    views: tuple[str, ...] = ()  # words behind a prompt: from the side, and from above
    turning: bool = True  # false: a broken control, seen from the front alone

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        DDPMConfig.__post_init__(self)
        if self.low_size is not None or self.sizes or self.channels != 3:
            got = f"channels {self.channels}, low_size {self.low_size} and sizes {self.sizes}"
            raise ValueError(
                f"things are seen in squares of three colours, by no low picture, got {got}"
            )
        asked = {"eta": self.eta, "variance": self.variance, "shift": self.shift}
        for name, usual in PICTURES.items():
            if asked[name] != usual:
                raise ValueError(
                    f"{name} is of how pictures are drawn, and volumes are, got {asked[name]}"
                )
        if len(self.views) not in {0, 2}:
            raise ValueError(f"views are two, from the side and from above, got {self.views}")
        for view in self.views if self.reads_text else ():
            if odd := unknown(view, self.vocabulary):
                raise ValueError(f"views: unknown word {odd[0]!r}{hint(odd[0], self.vocabulary)}")


class DreamFusion(DDPM):
    """Volumes from captions, by a diffusion model of pictures."""

    Config = DreamFusionConfig
    Options = DreamFusionOptions
    presets: ClassVar[Mapping[str, DreamFusionConfig]] = {
        "tiny": DreamFusionConfig(
            image_size=8,
            widths=(16, 24),
            text_width=16,
            heads=2,
            resolution=8,
            cameras=2,
            steps=4,
        ),
        "base": DreamFusionConfig(),
    }
    adapts: ClassVar[tuple[str, ...]] = ()
    lone = True
    call_sizes: tuple[int, ...] | None = None
    config: DreamFusionConfig

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        return replace(super().capabilities, modality="mesh")

    @property
    def inputs(self) -> Mapping[str, Port]:
        """Return what it draws from: perhaps a text."""
        return {name: port for name, port in super().inputs.items() if port.kind == "text"}

    def check(self, request: Request) -> None:
        """Refuse what any family refuses, and a prompt that is too long once a view stands behind it.

        Raises:
            ValueError: begins with the field's name, unless the prompt is missing.
        """
        super().check(request)
        most = self.config.max_words
        for prompt, view in itertools.product(dict.fromkeys(request.prompts), self.config.views):
            if (count := len(cut(f"{prompt} {view}", self.config.vocabulary))) > most:
                raise ValueError(
                    f"prompt: with {view!r} behind it, it has {count} words, the model reads {most}"
                )

    @torch.no_grad()
    def begin(self, request: Request) -> Rows:
        """Return volumes that are a haze in the middle, each with its captions as they are said from every side.

        Raises:
            ValueError: steps, guidance or a caption is missing or out of range.
        """
        self.check(request)
        c, count = self.config, len(request.seeds)
        steps = request.options.get("steps", c.steps)
        guidance = request.options.get("guidance", c.guidance)
        bounds.within("steps", steps, BOUNDS["steps"])
        bounds.within("guidance", guidance, BOUNDS["guidance"])
        if request.options.get("negative_prompt") is None:
            c.check_guidance(guidance)
        device = next(self.parameters()).device
        volume = self._haze(request.seeds, device)
        rows: Rows = {
            "volume": volume,
            "mean": torch.zeros_like(volume),
            "square": torch.zeros_like(volume),
            "index": torch.zeros(count, dtype=torch.long),
            "count": torch.full((count,), steps),
            "seed": torch.tensor(request.seeds, dtype=torch.long),
            "guidance": torch.ones(count),
        }
        if self.null is not None:
            said = [self._sampling_context(one, guidance) for one in self._said(request)]
            rows["context"] = torch.stack([context for context, _ in said], 1)
            rows["guidance"] = said[0][1]
            rows["without"] = self._without(request, guidance)
        return rows

    def _haze(self, seeds: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the logits of volumes (B, 4, R, R, R): denser in the middle, or all would begin at the background."""
        side = self.config.resolution
        volume = 0.1 * normals(seeds, (4, side, side, side), device)
        volume[:, 3] += 2 - 6 * volumes.ball(side, device)
        return volume

    def _said(self, request: Request) -> list[Request]:
        """Return the request as it is said of each kind of view (section 3.2, step 3): "from above" behind a prompt."""
        if not self.config.views:
            return [request]
        return [
            replace(request, prompts=tuple(f"{prompt} {view}" for prompt in request.prompts))
            for view in self.config.views
        ]

    @torch.no_grad()
    def step(self, rows: Rows) -> Rows:
        """Return the rows one step of Adam further; finished rows stay, and each goes its way alone."""
        live_B = ~self.done(rows)
        parts = [
            {name: one[place, None] for name, one in rows.items()} for place in range(len(live_B))
        ]
        moved = [
            self._moved(row) if live else row
            for row, live in zip(parts, live_B.tolist(), strict=True)
        ]
        new = {name: torch.cat([row[name] for row in moved]) for name in MOVED}
        return {**rows, **new, "index": rows["index"] + live_B}

    def _moved(self, row: Rows) -> Rows:
        """Return one volume's logits and moments after a step of Adam along the distilled gradient."""
        count, slope = int(row["index"][0]) + 1, self._distilled(row)
        mean = torch.lerp(slope, row["mean"], BETAS[0])
        square = torch.lerp(slope.square(), row["square"], BETAS[1])
        usual, spread = mean / (1 - BETAS[0] ** count), (square / (1 - BETAS[1] ** count)).sqrt()
        rate = self.config.rate * (1 - (count - 1) / int(row["count"][0]))
        volume = row["volume"] - rate * usual / (spread + 1e-15)
        return {"volume": volume, "mean": mean, "square": square}

    def _distilled(self, row: Rows) -> Tensor:
        """Return the gradient of score distillation, eq. 3: E[w(t) (eps_hat(x_t; y, t) - eps) dx/dvolume].

        As of a loss whose gradient in the pictures is that: the network itself is not differentiated (Algorithm 1).
        """
        c, device = self.config, row["volume"].device
        seeds, draws = row["seed"].tolist(), row["index"].tolist()
        [draws_6V] = uniforms(seeds, (6, c.cameras), device, stage=CAMERAS, draws=draws)
        axes_V33, above_V = self._cameras(draws_6V[:2])
        behind_V3 = draws_6V[3:].T[..., None, None]  # a background that tells no thing from another
        # an engine steps in inference mode, whose tensors take no part in a gradient until they are cloned
        with torch.inference_mode(mode=False), torch.enable_grad():
            logits = row["volume"].clone().requires_grad_()
            [colours], [haze] = _formed(logits, row["index"].clone(), row["count"].clone())
            shown, opaque = volumes.render(
                colours.sigmoid(), F.softplus(haze), axes_V33.clone(), c.image_size
            )
            x0 = self._inside(shown + (1 - opaque) * behind_V3.clone())
            slope = self._residual(row, x0.detach(), above_V, draws_6V[2]).clone()
            loss = (slope * x0).sum() + c.sparsity * opaque.sum()
            (found,) = torch.autograd.grad(loss / c.cameras, logits)
        return found

    def _cameras(self, draws_2V: Tensor) -> tuple[Tensor, Tensor]:
        """Return where a step's cameras are, (V, 3, 3), evenly about the volume; and which look from above (V,)."""
        count = draws_2V.shape[1]
        azimuth_V = (torch.arange(count, device=draws_2V.device) + draws_2V[0]) * (
            2 * math.pi / count
        )
        least, most = ELEVATIONS
        elevation_V = least + (most - least) * draws_2V[1]
        if not self.config.turning:
            azimuth_V, elevation_V = torch.zeros_like(azimuth_V), torch.zeros_like(elevation_V)
        return volumes.axes(azimuth_V, elevation_V), elevation_V >= OVERHEAD

    @torch.no_grad()
    def _residual(self, row: Rows, x0: Tensor, above_V: Tensor, draws_V: Tensor) -> Tensor:
        """Return w(t) (eps_hat - eps) of pictures (V, C, H, W) in [-1, 1], guided, with w = sigma^2."""
        index, count = int(row["index"][0]), int(row["count"][0])
        least, most = TIMES
        most += (LAST - most) * index / count
        times_V3 = self._levels(least + (most - least) * draws_V)
        alpha, sigma = (times_V3[:, place, None, None, None] for place in (1, 2))
        views, shape = len(x0), x0.shape[1:]
        eps = normals(row["seed"].tolist(), (views, *shape), x0.device, draws=[index + 1])[0]
        x = alpha * x0 + sigma * eps
        asked: Rows = {"x": x, "guidance": row["guidance"].expand(views)}
        if "context" in row:
            said_KTD = row["context"][0]
            asked["context"] = said_KTD[above_V.long() % len(said_KTD)]
            asked["without"] = row["without"].expand(views, -1, -1)

        def predict(row_N: Tensor, context: Tensor | None) -> Tensor:
            found: Tensor = self.network(x[row_N], times_V3[row_N], context, None)
            return found

        live = torch.ones(views, dtype=torch.bool)
        prediction = samplers.guided(self, predict, asked, live)
        clean = objectives.clean(self.config.objective, prediction, x, alpha, sigma)
        return sigma.square() * ((x - alpha * clean) / sigma - eps)

    def _levels(self, share_V: Tensor) -> Tensor:
        """Return the network's time 0..1000, alpha and sigma (V, 3) of shares of the noise."""
        if self.config.objective == "flow":
            return torch.stack([share_V * 1000, 1 - share_V, share_V], 1)
        index_V = (share_V * (len(self.alpha_T) - 1)).long()
        alpha_V = self.alpha_T[index_V].float()
        return torch.stack([index_V.float(), alpha_V, (1 - alpha_V.square()).sqrt()], 1)

    def preview(self, rows: Rows) -> Tensor:
        """Return the volumes as they are now, (B, 4, R, R, R) in [0, 1]."""
        return self.finish(rows)

    def finish(self, rows: Rows) -> Tensor:
        """Return volumes (B, 4, R, R, R) in [0, 1]; outside of the unit ball, which no picture shows, is nothing."""
        colours, haze = _formed(rows["volume"], rows["index"], rows["count"])
        found = torch.cat([colours, haze[:, None]], 1).sigmoid()
        found[:, 3] *= volumes.ball(self.config.resolution, found.device) <= 1
        return found


def _formed(logits: Tensor, index_B: Tensor, count_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of colours (B, 3, R, R, R) and of opacity (B, R, R, R) that learned ones stand for.

    The mean with the voxels around, so that surfaces are smooth; and an opacity that goes from haze to surface as steps
    go on (Yariv et al. 2021, arXiv:2106.12052). A thickness of softplus(x) stops a share sigmoid(x) of the light.
    """
    smooth = F.avg_pool3d(logits, 3, 1, 1, count_include_pad=False)
    hard_B = (1 + (HARD - 1) * (index_B / (SET * count_B)).clamp(max=1)).to(logits.device)
    return smooth[:, :3], smooth[:, 3] * hard_B[:, None, None, None]
