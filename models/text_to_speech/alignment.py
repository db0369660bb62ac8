"""Which frames of a recording say which token: monotonic paths, and Gaussian states from a flat start.

`monotonic_path` is the alignment search of Glow-TTS (Kim et al. 2020, arXiv:2005.11129, algorithm 1): the likeliest
path through given scores. `FlatStart` has scores of its own: two Gaussian states a token, first of equal parts of each
recording, then by Viterbi training (Juang & Rabiner 1990), counted in closed form, so that workers' sums add up.

Shape letters: B rows, S tokens, N = 2 S states, F frames, M mel bands, C cepstra, K symbols, G = 2 K Gaussians, X
features.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn

STATES: Final = 2  # a token, so that its onset and its end may differ
SKIP: Final = STATES + 1  # states from the end of a token to the beginning of the next but one
LEAST_SHARE: Final = 0.01  # of the variance of all frames that a state has at least
CEPSTRA: Final = 13  # of a frame: the shape of its spectrum, without the pitch's ripples
SLOPE: Final = 2  # frames on either side that say where a cepstrum moves


def monotonic_path(log_p_BSF: Tensor, token_length_B: Tensor, frames_B: Tensor) -> Tensor:
    """Return the likeliest hard alignment (B, S, F), 1 where a token has a frame, in the scores' type.

    Every token has at least one frame, and they follow one another. A row that has fewer frames than tokens has no
    such path, and is 0. Nothing waits for the device.

    Args:
        log_p_BSF: how well each token explains each frame; what lies behind a row's lengths is not looked at.
        token_length_B: tokens of a row, 1 or more.
        frames_B: frames of a row, 1 or more.

    Example:
        >>> log_p = torch.tensor([[[0.0, -1, -5], [-5, -2, 0]]])
        >>> monotonic_path(log_p, torch.tensor([2]), torch.tensor([3]))[0].int().tolist()
        [[1, 1, 0], [0, 0, 1]]
    """
    state_BF = best_states(log_p_BSF, token_length_B, frames_B)
    token_S1 = torch.arange(log_p_BSF.shape[1], device=log_p_BSF.device)[:, None]
    return (state_BF[:, None] == token_S1).to(log_p_BSF.dtype)


def nearest_path(
    mean_BSX: Tensor, x_BXF: Tensor, token_length_B: Tensor, frames_B: Tensor
) -> Tensor:
    """Return the likeliest hard alignment (B, S, F) of features under Gaussians of deviation 1 around tokens' means.

    In float32 under autocast, too: 8 bits of a score do not tell neighbours apart.
    """
    with torch.autocast(x_BXF.device.type, enabled=False):
        # the frame's own square is the same for all tokens
        near_BSF = mean_BSX @ x_BXF - mean_BSX.square().sum(2, keepdim=True) / 2
    return monotonic_path(near_BSF, token_length_B, frames_B)


def uniform_path(token_length_B: Tensor, frames_B: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an alignment (B, S, F) of this size, in which all tokens of a row have equally many frames: a control."""
    tokens, frames = size
    frame_F = torch.arange(frames, device=frames_B.device)
    place_BF = frame_F * token_length_B[:, None] // frames_B[:, None].clamp(min=1)
    place_BF = torch.where(frame_F < frames_B[:, None], place_BF, -1)
    return (place_BF[:, None] == torch.arange(tokens, device=frames_B.device)[:, None]).float()


@torch.no_grad()
def best_states(
    log_p_BNF: Tensor, count_B: Tensor, frames_B: Tensor, skip_BN: Tensor | None = None
) -> Tensor:
    """Return the state of each frame on the likeliest way from the first to the last, (B, F); -1 where there is none.

    Args:
        log_p_BNF: the score of each frame in each state.
        count_B: states of a row.
        frames_B: frames of a row.
        skip_BN: where a state may be entered from SKIP before it, or be the first: the token between may be left out.
            One more state than of any row stands for the end.
    """
    rows, states, frames = log_p_BNF.shape
    place_N = torch.arange(states, device=log_p_BNF.device)
    log_p_FBN = log_p_BNF.masked_fill((place_N >= count_B[:, None])[..., None], -math.inf)
    log_p_FBN = log_p_FBN.permute(2, 0, 1)
    first_BN = (place_N == 0).expand(rows, states)
    if skip_BN is not None:
        first_BN = first_BN | (place_N == STATES) & skip_BN[:, :states]
    score_BN = log_p_FBN[0].masked_fill(~first_BN, -math.inf)
    jump_FBN = torch.zeros(frames, rows, states, dtype=torch.int8, device=log_p_BNF.device)
    for frame in range(1, frames):
        best_BN, jump_BN = score_BN, jump_FBN[frame]
        came = [(1, None)] if skip_BN is None else [(1, None), (SKIP, skip_BN[:, :states])]
        for far, allowed_BN in came:
            before_BN = _shifted(score_BN, far)
            better_BN = before_BN > best_BN
            better_BN = better_BN if allowed_BN is None else better_BN & allowed_BN
            best_BN = torch.where(better_BN, before_BN, best_BN)
            jump_BN.masked_fill_(better_BN, far)
        live_B1 = (frame < frames_B)[:, None]
        score_BN = torch.where(live_B1, best_BN + log_p_FBN[frame], score_BN)
    return _walked_back(jump_FBN, *_last(score_BN, count_B, skip_BN), frames_B)


def _shifted(score_BN: Tensor, far: int) -> Tensor:
    return nn.functional.pad(score_BN, (far, 0), value=-math.inf)[:, : score_BN.shape[1]]


def _last(score_BN: Tensor, count_B: Tensor, skip_BN: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the state (B,) where each row's best way ends, and whether there is one (B,)."""
    end_B = count_B - 1
    score_B = score_BN.gather(1, end_B[:, None])[:, 0]
    if skip_BN is not None:  # the last token is left out
        other_B = (end_B - STATES).clamp(min=0)
        other = score_BN.gather(1, other_B[:, None])[:, 0]
        may_B = skip_BN.gather(1, count_B[:, None])[:, 0] & (end_B >= STATES)
        taken_B = may_B & (other > score_B)
        end_B, score_B = torch.where(taken_B, other_B, end_B), torch.where(taken_B, other, score_B)
    return end_B, score_B > -math.inf


def _walked_back(jump_FBN: Tensor, end_B: Tensor, found_B: Tensor, frames_B: Tensor) -> Tensor:
    state_B, states = end_B, []
    for frame in range(len(jump_FBN) - 1, -1, -1):
        live_B = frame < frames_B
        states.append(torch.where(live_B & found_B, state_B, -1))
        jump_B = jump_FBN[frame].gather(1, state_B[:, None])[:, 0]
        state_B = torch.where(live_B, state_B - jump_B, state_B).clamp(min=0)
    return torch.stack(states[::-1], 1)


def cepstra(mel_BMF: Tensor, frames_B: Tensor) -> Tensor:
    """Return cepstra less their mean over the recording, and their slopes (Furui 1986), (B, 2 CEPSTRA, F).

    Neighbouring mel bands rise and fall together; cepstra hardly do, as Gaussians of a diagonal covariance have it.
    """
    bands, frames = mel_BMF.shape[1:]
    middle_M = (torch.arange(bands, device=mel_BMF.device) + 0.5) * (torch.pi / bands)
    waves_CM = (torch.arange(CEPSTRA, device=mel_BMF.device)[:, None] * middle_M).cos()
    inside_BF = torch.arange(frames, device=mel_BMF.device) < frames_B[:, None]
    cepstra_BCF = (waves_CM * (2 / bands) ** 0.5) @ mel_BMF * inside_BF[:, None]
    cepstra_BCF = cepstra_BCF - cepstra_BCF.sum(2, keepdim=True) / frames_B[:, None, None]
    # beyond its ends a recording is as at them
    far = torch.arange(-SLOPE, SLOPE + 1, device=mel_BMF.device)
    place_BFN = (torch.arange(frames, device=mel_BMF.device)[:, None] + far).clamp(min=0)
    place_BFN = place_BFN.expand(len(frames_B), -1, -1).minimum(frames_B[:, None, None] - 1)
    index_BCX = place_BFN.flatten(1)[:, None].expand(-1, CEPSTRA, -1)
    around_BCFN = cepstra_BCF.gather(2, index_BCX).unflatten(2, (frames, len(far)))
    slope_BCF = (around_BCFN * far).sum(3) / far.square().sum()
    return torch.cat([cepstra_BCF, slope_BCF], 1)


class FlatStart(nn.Module):
    """Two Gaussians a symbol, of independent features, that recordings and their tokens alone bring forth.

    Pass 0 gives every token of a recording equally many frames; each later one aligns by what the one before found.
    A symbol that is `optional` (a pause) may be left out.
    """

    count_G: Tensor
    sum_GX: Tensor
    square_GX: Tensor
    mean_GX: Tensor
    precision_GX: Tensor
    log_scale_G: Tensor
    optional_K: Tensor

    def __init__(self, symbols: int, features: int, optional: tuple[int, ...] = ()) -> None:
        super().__init__()
        gaussians = STATES * symbols
        self.register_buffer("count_G", torch.zeros(gaussians, dtype=torch.float64))
        for name in ("sum_GX", "square_GX", "mean_GX"):
            self.register_buffer(name, torch.zeros(gaussians, features, dtype=torch.float64))
        self.register_buffer("precision_GX", torch.ones(gaussians, features, dtype=torch.float64))
        self.register_buffer("log_scale_G", torch.zeros(gaussians, dtype=torch.float64))
        optional_K = torch.zeros(symbols, dtype=torch.bool)
        optional_K[list(optional)] = True
        self.register_buffer("optional_K", optional_K, persistent=False)

    @property
    def sums(self) -> tuple[str, ...]:
        """The names of the buffers that `absorb` adds to."""
        return ("count_G", "sum_GX", "square_GX")

    @torch.no_grad()
    def absorb(
        self,
        x_BXF: Tensor,
        frames_B: Tensor,
        tokens_BS: Tensor,
        token_length_B: Tensor,
        *,
        flat: bool,
    ) -> None:
        """Add the frames to the Gaussian that each is of: where `flat` by equal parts, else by Viterbi."""
        find = self._equal_parts if flat else self._states
        state_BF = find(x_BXF, frames_B, tokens_BS, token_length_B)
        found_BF = state_BF >= 0
        gaussian_BF = self._gaussians(tokens_BS).gather(1, state_BF.clamp(min=0))
        frame_NX, index_N = x_BXF.mT[found_BF].double(), gaussian_BF[found_BF]
        self.count_G.index_add_(0, index_N, torch.ones_like(frame_NX[:, 0]))
        self.sum_GX.index_add_(0, index_N, frame_NX)
        self.square_GX.index_add_(0, index_N, frame_NX.square())

    @torch.no_grad()
    def settle(self) -> None:
        """Turn the sums into means and variances, and begin again at zero.

        A Gaussian without a frame is that of all frames. No variance is below LEAST_SHARE of that of all frames.

        Raises:
            ValueError: no recording has the frames that its tokens need.
        """
        count = self.count_G.sum()
        if not count:
            raise ValueError(
                f"no recording has {STATES} frames a phone: its texts are of other sounds, or its frames too long"
            )
        whole_X = self.sum_GX.sum(0) / count
        spread_X = (self.square_GX.sum(0) / count - whole_X.square()).clamp(min=1e-6)
        seen_G1 = (self.count_G > 0)[:, None]
        each_G1 = self.count_G.clamp(min=1)[:, None]
        mean_GX = torch.where(seen_G1, self.sum_GX / each_G1, whole_X)
        variance_GX = torch.where(seen_G1, self.square_GX / each_G1 - mean_GX.square(), spread_X)
        variance_GX = variance_GX.maximum(LEAST_SHARE * spread_X)
        self.mean_GX.copy_(mean_GX)
        self.precision_GX.copy_(1 / variance_GX)
        self.log_scale_G.copy_(-variance_GX.log().sum(1) / 2)
        for name in self.sums:
            self.get_buffer(name).zero_()

    def bounds(
        self, x_BXF: Tensor, frames_B: Tensor, tokens_BS: Tensor, token_length_B: Tensor
    ) -> Tensor:
        """Return where tokens begin, in frames, and the last one's end, (B, S + 1); -1 throughout where nothing fits.

        An optional token that was left out ends where it begins, as does what lies behind a row's length.
        """
        state_BF = self._states(x_BXF, frames_B, tokens_BS, token_length_B)
        found_BF, tokens = state_BF >= 0, tokens_BS.shape[1]
        of_BF = torch.where(found_BF, state_BF // STATES, tokens)
        length_BS = torch.zeros(len(of_BF), tokens + 1, dtype=torch.long, device=of_BF.device)
        length_BS.scatter_add_(1, of_BF, found_BF.long())
        end_BS = nn.functional.pad(length_BS[:, :tokens].cumsum(1), (1, 0))
        return torch.where(found_BF.any(1)[:, None], end_BS, -1)

    def nats(
        self, x_BXF: Tensor, frames_B: Tensor, tokens_BS: Tensor, token_length_B: Tensor
    ) -> Tensor:
        """Return -log p of each row's features on the likeliest way, in nats (B,); infinite where nothing fits."""
        log_p_BNF, skip_BN = self._scores(x_BXF, tokens_BS)
        state_BF = best_states(log_p_BNF, STATES * token_length_B, frames_B, skip_BN)
        found_BF = state_BF >= 0
        log_p_BF = log_p_BNF.gather(1, state_BF.clamp(min=0)[:, None])[:, 0] * found_BF
        return torch.where(found_BF.any(1), -log_p_BF.sum(1), math.inf)

    def _gaussians(self, tokens_BS: Tensor) -> Tensor:
        part_2 = torch.arange(STATES, device=tokens_BS.device)
        return (tokens_BS[..., None] * STATES + part_2).flatten(1)

    def _equal_parts(
        self, x_BXF: Tensor, frames_B: Tensor, tokens_BS: Tensor, token_length_B: Tensor
    ) -> Tensor:
        """Return each frame's state where all have equally many, (B, F); optional tokens have none."""
        place_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        said_BS = (place_S < token_length_B[:, None]) & ~self.optional_K[tokens_BS]
        nth_BS = torch.where(said_BS, said_BS.cumsum(1) - 1, len(place_S))
        order_BS = nth_BS.argsort(dim=1, stable=True)  # tokens that are said, then the others
        states_B = STATES * said_BS.sum(1)
        frame_F = torch.arange(x_BXF.shape[2], device=tokens_BS.device)
        nth_BF = frame_F * states_B[:, None] // frames_B[:, None].clamp(min=1)
        place_BF = order_BS.gather(1, (nth_BF // STATES).clamp(max=len(place_S) - 1))
        fits_BF = (frame_F < frames_B[:, None]) & (states_B <= frames_B)[:, None]
        return torch.where(fits_BF, place_BF * STATES + nth_BF % STATES, -1)

    def _states(
        self, x_BXF: Tensor, frames_B: Tensor, tokens_BS: Tensor, token_length_B: Tensor
    ) -> Tensor:
        """Return the likeliest state of each frame, (B, F)."""
        log_p_BNF, skip_BN = self._scores(x_BXF, tokens_BS)
        return best_states(log_p_BNF, STATES * token_length_B, frames_B, skip_BN)

    def _scores(self, x_BXF: Tensor, tokens_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p of each frame in each state (B, N, F), and where a state may be skipped to, (B, N + 1)."""
        x_BFX = x_BXF.mT.double()
        log_p_BFG = x_BFX @ (self.precision_GX * self.mean_GX).T
        log_p_BFG -= x_BFX.square() @ self.precision_GX.T / 2
        constant_G = self.log_scale_G - (self.precision_GX * self.mean_GX.square()).sum(1) / 2
        log_p_BFG += constant_G - math.log(2 * math.pi) * x_BFX.shape[2] / 2
        index_BFN = self._gaussians(tokens_BS)[:, None].expand(-1, x_BFX.shape[1], -1)
        log_p_BNF = log_p_BFG.gather(2, index_BFN).mT
        between_BS = nn.functional.pad(self.optional_K[tokens_BS], (1, 0))  # the token before
        skip_BN = between_BS.new_zeros(len(log_p_BNF), log_p_BNF.shape[1] + 1)
        skip_BN[:, ::STATES] = between_BS
        return log_p_BNF, skip_BN
