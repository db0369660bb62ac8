"""Networks of VITS: mels to latents, a flow that simplifies these, and latents to a spectrum.

Convolutions over frames are gated and dilated as WaveNet's (van den Oord et al. 2016, arXiv:1609.03499), and see who
speaks. The generator is Vocos' instead of HiFi-GAN's: one inverse Fourier transform in place of transposed convolutions
(as iSTFT-VITS has it, Kawamura et al. 2023, arXiv:2210.15975). What is outside a row changes nothing inside.

Shape letters: B rows, F frames, M mels, Z numbers of a latent frame, W width, K frequencies.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from models.parts.mel import Mel
from models.text_to_speech.vocoder import near_0
from models.text_to_speech.vocos import KERNEL, LOUDEST, Block

QUIET: Final = -6.0  # the usual log mel, before any was learned


class Gated(nn.Module):
    """Layers of a gated, dilated convolution over frames, in a speaker's voice."""

    def __init__(self, width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 3, padding=one, dilation=one) for one in dilations
        )
        self.voices = nn.Linear(width, 2 * width * len(dilations))
        self.outs = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in dilations)

    def forward(self, x_BWF: Tensor, voice_BW: Tensor, inside_B1F: Tensor) -> Tensor:
        """Return (B, W, F)."""
        total_BWF: Tensor = torch.zeros_like(x_BWF)
        voices = self.voices(voice_BW)[..., None].chunk(len(self.convs), 1)
        for conv, out, voice in zip(self.convs, self.outs, voices, strict=True):
            a, b = (conv(x_BWF * inside_B1F) + voice).chunk(2, 1)
            on_BWF, skip_BWF = out(a.tanh() * b.sigmoid()).chunk(2, 1)
            x_BWF, total_BWF = x_BWF + on_BWF, total_BWF + skip_BWF
        return total_BWF


class Posterior(nn.Module):
    """Mels to the distribution of their latents: q(z | x)."""

    def __init__(self, mels: int, latent: int, width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.first = nn.Conv1d(mels, width, 1)
        self.layers = Gated(width, dilations)
        self.last = nn.Conv1d(width, 2 * latent, 1)

    def forward(
        self, mel_BMF: Tensor, voice_BW: Tensor, inside_B1F: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the means and the logarithms of the deviations, (B, Z, F) each, float32."""
        x_BWF = self.layers(self.first(near_0(mel_BMF)), voice_BW, inside_B1F)
        mean_BZF, log_scale_BZF = self.last(x_BWF).float().chunk(2, 1)
        return mean_BZF, log_scale_BZF


class Coupling(nn.Module):
    """Moves one half of a frame's numbers by what the other half says (Dinh et al. 2015): no volume changes."""

    def __init__(self, latent: int, width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.first = nn.Conv1d(latent // 2, width, 1)
        self.layers = Gated(width, dilations)
        self.last = nn.Conv1d(width, latent // 2, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type] # there is one

    def forward(self, kept_BZF: Tensor, voice_BW: Tensor, inside_B1F: Tensor) -> Tensor:
        """Return by how much (B, Z / 2, F)."""
        x_BWF = self.layers(self.first(kept_BZF), voice_BW, inside_B1F)
        by_BZF: Tensor = self.last(x_BWF).float()
        return by_BZF


class Flow(nn.Module):
    """Couplings, each of which moves the half that the one before kept; its Jacobian's determinant is 1."""

    def __init__(self, latent: int, width: int, dilations: Sequence[int], couplings: int) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(latent, width, dilations) for _ in range(couplings))

    def forward(self, z_BZF: Tensor, voice_BW: Tensor, inside_B1F: Tensor) -> Tensor:
        """Return what a posterior's latents are in the prior's space."""
        kept_BZF, moved_BZF = z_BZF.chunk(2, 1)
        for coupling in self.couplings:
            moved_BZF = moved_BZF + coupling(kept_BZF, voice_BW, inside_B1F)
            kept_BZF, moved_BZF = moved_BZF, kept_BZF
        return torch.cat([kept_BZF, moved_BZF], 1)

    def back(self, z_BZF: Tensor, voice_BW: Tensor, inside_B1F: Tensor) -> Tensor:
        """Return the latents that `forward` turns into these."""
        kept_BZF, moved_BZF = z_BZF.chunk(2, 1)
        for coupling in reversed(self.couplings):
            kept_BZF, moved_BZF = moved_BZF, kept_BZF
            moved_BZF = moved_BZF - coupling(kept_BZF, voice_BW, inside_B1F)
        return torch.cat([kept_BZF, moved_BZF], 1)


class Generator(nn.Module):
    """Latents to the spectrum of a sound."""

    def __init__(self, mel: Mel, latent: int, voice: int, width: int, layers: int) -> None:
        super().__init__()
        self.mel = mel
        self.first = nn.Conv1d(latent, width, KERNEL, padding=KERNEL // 2)
        self.voice = nn.Linear(voice, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, 3 * width, layers) for _ in range(layers))
        self.last = nn.LayerNorm(width)
        self.loud = nn.Linear(width, mel.mels)
        self.head = nn.Linear(width, mel.n_fft + 2)

    def forward(self, z_BZF: Tensor, voice_BW: Tensor, inside_B1F: Tensor) -> Tensor:
        """Return complex spectra (B, K, F): by mels first, and how much louder each frequency is than these have it."""
        inside_BF1 = inside_B1F.mT
        x_BFW = self.norm(self.first(z_BZF * inside_B1F).mT + self.voice(voice_BW)[:, None])
        for block in self.blocks:
            x_BFW = block(x_BFW * inside_BF1)
        x_BFW = self.last(x_BFW)
        louder_BKF, angle_BKF = self.head(x_BFW).float().mT.chunk(2, 1)
        mel_BMF = 2 * self.loud(x_BFW).float().mT + QUIET
        loud_BKF = (self.mel.envelope(mel_BMF) * louder_BKF.exp()).clamp(max=LOUDEST)
        return torch.polar(loud_BKF * inside_B1F, angle_BKF)
