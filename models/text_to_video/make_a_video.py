"""Make-A-Video (Singer et al. 2022, arXiv:2209.14792): a caption to a clip, without captioned clips but for few.

    y = SR_h . SR_l . up_F . D . P (x, C_x(x))                                                     eq. 1 of the paper

| in the paper | here |
|---|---|
| P, a prior from a caption x and its CLIP embedding C_x(x) to one of a picture | `unclip.Prior`, as it is |
| D, a decoder of that to 16 frames at a low rate | `VideoDecoder`: unCLIP's, inflated over time |
| up_F, frames between these, or after | `Interpolation` |
| SR_l, over space and time | `VideoUpsampler` |
| SR_h, of one frame, by the same noise for each | `VideoUpsampler` with `temporal: false` and `shared_noise: true` |

Each starts from a network of pictures (`start_from`) and is that, frame by frame, until it has learned from clips how
things move (`pseudo3d.py`). All are told how fast frames come (section 3.2.3), in training at several rates.
`frames.py` has what is common to them.

Shape letters: B clips, F frames, L frames of the data, C channels, H and W pixels, E numbers of an embedding, K tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from models.diffusion import schedules, super_resolution
from models.diffusion.super_resolution import Low
from models.family import Batch, Rows
from models.ports import Port
from models.request import Request
from models.text_to_image.unclip import Decoder, DecoderConfig
from models.text_to_video.frames import Clips, ClipsConfig, Timed


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoDecoderConfig(Timed, DecoderConfig):
    """As of unCLIP's decoder, of clips."""

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        DecoderConfig.__post_init__(self)
        Timed.__post_init__(self)


class VideoDecoder(Clips, Decoder):
    """D: clips of which a frame has a CLIP embedding, and perhaps a caption."""

    Config = VideoDecoderConfig  # type: ignore[assignment]  # a ClipsConfig in all but name
    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    presets: ClassVar[Mapping[str, VideoDecoderConfig]] = {
        "tiny": VideoDecoderConfig(
            image_size=8,
            frames=3,
            widths=(16, 24),
            text_width=16,
            heads=2,
            steps=4,
            embedding=8,
        ),
        "base": VideoDecoderConfig(frames=5, skips=(1, 2), guidance=2.0),
    }
    config: VideoDecoderConfig  # type: ignore[assignment]

    def given_of(self, batch: Batch) -> dict[str, Tensor]:
        """Return the embeddings of real clips, of all their frames those in the middle."""
        found = super().given_of(batch)
        if (embedding := found["embedding"]).dim() == 3:
            found["embedding"] = embedding[:, embedding.shape[1] // 2]
        return found

    def cut(self, batch: Batch) -> Batch:
        """Return the batch with random clips in it; of embeddings of all their frames those in the middle.

        So that it says when, and not only where: what is drawn lies as far before that place as after it.
        """
        found = super().cut(batch)
        if (embedding := found["embedding"]).dim() == 3:
            return {**found, "embedding": embedding[:, self.config.frames // 2]}
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class InterpolationConfig(ClipsConfig):
    """As of clips; `low_noise` is that on the frames that are known, in training."""

    tasks: tuple[str, ...] = ("half", "quarter", "first", "start")  # of TASKS, those it learns
    copies: bool = False  # a broken control: what is not known is the frame that is nearest

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        ClipsConfig.__post_init__(self)
        if not self.tasks or len({*self.tasks} & {*TASKS}) < len(self.tasks):
            raise ValueError(f"tasks must be some of {', '.join(TASKS)}, got {list(self.tasks)}")
        apart = 4 if "quarter" in self.tasks else 2
        if self.frames <= apart or self.frames % apart != 1:
            raise ValueError(
                f"frames must be one more than a multiple of {apart}, of which each second"
                f"{' or fourth' * (apart == 4)} can be known, got {self.frames}"
            )
        if self.low_size is not None:
            raise ValueError(
                f"low_size: frames come as they are, leave it out, got {self.low_size}"
            )

    @property
    def low_shape(self) -> tuple[int, int]:
        """Channels and side of what is seen beside the noisy frame: its guess, and whether it is known."""
        return self.channels + 1, self.image_size


TASKS: Final = ("half", "quarter", "first", "start", "nothing")
"""What is known: each second frame, each fourth, the first, the first half and the one in the middle, or none."""
GAINS: Final = (1, 1 / 2, 1 / 6, 1 / 3)
"""Of `low_gain`, for each of these but the last: the less is known, the more there is over a guess."""
SHARES: Final = (0.4, 0.2, 0.2, 0.2, 0.02)
"""Of the clips of training, by weight: what a caption's clip needs is learned most."""


def known(frames: int) -> tuple[range, ...]:
    """Return the places of the frames that each of the TASKS knows."""
    return (
        *(range(0, frames, 2), range(0, frames, 4), range(1)),
        *(range(frames // 2 + 1), range(0)),
    )


def blend(places: range, frames: int, *, nearest: bool = False) -> list[list[float]]:
    """Return by what weights each of the frames is guessed from each, where those at some places are known.

    On a straight line between the two around it, or as the one that is nearest; beyond the last one, as that; in the
    middle between black and white where none is known.
    """
    if not places:
        return [[0.0] * frames] * frames
    found = []
    for frame in range(frames):
        before = max(place for place in places if place <= frame)
        after = min((place for place in places if place >= frame), default=before)
        share = (frame - before) / (after - before) if after > before else 0.0
        share = float(round(share)) if nearest else share
        of_each = {after: share, before: 1 - share}
        found.append([of_each.get(place, 0.0) for place in range(frames)])
    return found


class Interpolation(Clips):
    """up_F: the frames between known ones, or after them (section 3.3).

    It is D with four channels more, the frames that are known and a mask that tells which. Like super-resolution it
    learns what there is over a simple guess, and forgives what the stage before gets wrong; so that guess, not zeros as
    in the paper, stands where a frame is not known.
    """

    Config = InterpolationConfig
    presets: ClassVar[Mapping[str, InterpolationConfig]] = {
        "tiny": InterpolationConfig(
            image_size=8, frames=5, widths=(16, 24), text_width=16, heads=2, steps=4
        ),
        "base": InterpolationConfig(t_mean=1.0, steps=2, guidance=1.0),
    }
    config: InterpolationConfig

    def __init__(self, config: InterpolationConfig) -> None:
        super().__init__(config)
        self.known_KF: Tensor
        self.blend_KFF: Tensor
        self.gain_K: Tensor
        frames, tasks = config.frames, known(config.frames)
        guesses = [blend(places, frames, nearest=config.copies) for places in tasks]
        there = [[place in places for place in range(frames)] for places in tasks]
        # made from the config, so no version has to hold them
        self.register_buffer("blend_KFF", torch.tensor(guesses), persistent=False)
        self.register_buffer("known_KF", torch.tensor(there), persistent=False)
        gain_K = torch.cat([config.low_gain * torch.tensor(GAINS), torch.ones(1)])
        self.register_buffer("gain_K", gain_K, persistent=False)
        learned = torch.tensor([TASKS.index(name) for name in config.tasks])
        self.learned_J: Tensor
        self.register_buffer("learned_J", learned, persistent=False)

    @property
    def inputs(self) -> Mapping[str, Port]:
        """Return what it draws from: perhaps a text, and one of the tasks; where it learned "nothing", perhaps none.

        Of a clip to `start` from the last frames become the first ones, as many as that task knows.
        """
        c = self.config
        picture = (c.channels, c.image_size, c.image_size)
        clips = {"half": (c.frames + 1) // 2, "quarter": (c.frames + 3) // 4, "start": c.frames}
        ports = {
            name: Port("clip", (count, *picture), optional=True) for name, count in clips.items()
        }
        ports["first"] = Port("pixels", picture, optional=True)
        return {**super().inputs, **{name: ports[name] for name in ports if name in c.tasks}}

    def _training_pair(self, picture: Tensor) -> tuple[Tensor, Low]:
        """Return what clips have over the guess, 0 where they are known, and the noisy frames it is learned from."""
        c, count = self.config, len(picture)
        share_J = torch.tensor(SHARES, device=picture.device)[self.learned_J]
        ends_J = (share_J / share_J.sum())[:-1].cumsum(0)
        task_B = self.learned_J[(torch.rand(count, 1, device=picture.device) > ends_J).sum(1)]
        level_B = schedules.with_ends(torch.rand(count, device=picture.device)) * c.low_noise
        noisy = picture + level_B[:, None, None, None] * torch.randn_like(picture)
        low, guess = self._guess(noisy, task_B)
        gain_B111 = self.gain_K[task_B][:, None, None, None]
        over = super_resolution.residual(picture, guess, gain_B111)
        known_BX = self.known_KF[task_B].repeat_interleave(c.channels, 1)
        return over.masked_fill(known_BX[:, :, None, None], 0), (low, level_B)

    def _guess(self, clip: Tensor, task_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return all frames guessed with the mask of what is known (B, F (C + 1), H, W), and without (B, F C, H, W)."""
        side, planes = clip.shape[-1], self.config.channels
        frames_BFCHW = clip.reshape(len(clip), -1, planes, side, side)
        guess_BFCHW = self._guessed(frames_BFCHW, task_B)
        known_BF111 = self.known_KF[task_B][:, :, None, None, None].to(clip.dtype)
        mask_BF1HW = known_BF111.expand_as(frames_BFCHW[:, :, :1])
        low_BFDHW = torch.cat([guess_BFCHW, mask_BF1HW], 2)
        return low_BFDHW.flatten(1, 2), guess_BFCHW.flatten(1, 2)

    def _guessed(self, frames_BFCHW: Tensor, task_B: Tensor) -> Tensor:
        """Return all frames of clips in [-1, 1], guessed where the task does not know them."""
        return torch.einsum("bfg,bgchw->bfchw", self.blend_KFF[task_B], frames_BFCHW)

    def _low_rows(self, request: Request, device: torch.device) -> Rows:
        """Return the known frames of a request, what is guessed from them, and that they stay as they are.

        Raises:
            ValueError: more than one of the tasks is given, or none where it did not learn "nothing".
        """
        names = [name for name in TASKS if name in request.given]
        allowed = [name for name in self.config.tasks if name != "nothing"]
        if len(names) > 1 or (not names and "nothing" not in self.config.tasks):
            got = ", ".join(names) or "none"
            raise ValueError(
                f"{(names or allowed)[0]}: give one of {', '.join(allowed)}, got {got}"
            )
        [task] = [TASKS.index(name) for name in names or ["nothing"]]
        known_F = self.known_KF[task]
        c = self.config
        size = (c.frames, c.channels, c.image_size, c.image_size)
        clip_BFCHW = torch.zeros(len(request.seeds), *size, device=device)
        for name in names:
            frames = request.given[name].to(device)
            frames_BGCHW = frames[:, None] if name == "first" else frames
            clip_BFCHW[:, known_F] = frames_BGCHW[:, -int(known_F.sum()) :]
        clip = self._inside(clip_BFCHW)
        task_B = torch.full((len(clip),), task, device=device)
        low, guess = self._guess(clip, task_B)
        kept_F = known_F.to(clip.dtype).repeat_interleave(self.config.channels)
        kept = kept_F[None, :, None, None].expand(len(clip), -1, 1, 1)
        gain_B = self.gain_K[task_B]
        return {"low": low, "enlarged": guess, "gain": gain_B, "known": clip, "kept": kept}

    def _gain(self, rows: Rows) -> Tensor:
        return rows["gain"][:, None, None, None]

    def _picture(self, x: Tensor, rows: Rows) -> Tensor:
        """Return the clips in [-1, 1] that x stands for; known frames stay as they are."""
        return super()._picture(0 * x if self.config.copies else x, rows)

    def given_of(self, batch: Batch) -> dict[str, Tensor]:
        """Return what is known of real clips in the first of its tasks."""
        real, task = self.usual(batch), self.config.tasks[0]
        given = {"half": real[:, ::2], "quarter": real[:, ::4], "first": real[:, 0], "start": real}
        return {task: given[task]} if task in given else {}


class VideoUpsampler(Clips):
    """SR_l, over space and time; or SR_h, frame by frame, where `temporal` is false.

    The latter takes the same noise for every frame, so that what it makes up does not flicker (section 3.2.1).
    """

    Config = ClipsConfig
    presets: ClassVar[Mapping[str, ClipsConfig]] = {
        "tiny": ClipsConfig(
            image_size=8, low_size=4, frames=3, widths=(16, 24), text_width=16, heads=2, steps=2
        ),
        "base": ClipsConfig(
            image_size=32, low_size=16, text="none", widths=(32, 48), attention=0, t_mean=1, steps=2
        ),
        "frame": ClipsConfig(
            image_size=64,
            low_size=32,
            text="none",
            widths=(32, 48),
            attention=0,
            t_mean=1,
            steps=2,
            temporal=False,
            shared_noise=True,
        ),
    }
    measures: ClassVar[tuple[str, ...]] = ("flicker",)
    config: ClipsConfig

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return how much a clip that stands still changes from frame to frame when it is upscaled, a level of 255."""
        low_BFChw = self.given_of(batch)["low"]
        given = {"low": low_BFChw[:, :1].expand_as(low_BFChw)}
        drawn = self.sample(Request(seeds=tuple(range(len(low_BFChw))), given=given))
        return {"flicker": 255 * drawn.diff(dim=1).abs().flatten(1).mean(1)}
