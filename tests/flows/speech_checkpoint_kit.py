"""Tiny networks that speak as transformers saves them, built from configs."""

import json
from pathlib import Path
from typing import Any, Final

import torch

LETTERS: Final = "abcdefghijklmnopqrstuvwxyz' "
TINY: Final = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 16, "flow_size": 8},
    **{"spectrogram_bins": 9, "upsample_initial_channel": 8, "upsample_rates": [4, 2]},
    **{"upsample_kernel_sizes": [8, 4], "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]]},
    **{"depth_separable_num_layers": 1, "duration_predictor_flow_bins": 4, "duration_predictor_num_flows": 2},
    **{"prior_encoder_num_flows": 2, "prior_encoder_num_wavenet_layers": 1, "wavenet_kernel_size": 3},
    **{"posterior_encoder_num_wavenet_layers": 1, "sampling_rate": 8000},
}  # fmt: skip


def many(folder: Path) -> Any:
    """Save a VITS of three voices, whose durations are drawn, and whose sign 0 is a letter, as MMS has it."""
    signs = {sign: place for place, sign in enumerate("k" + LETTERS.replace("k", ""))}
    more = {"num_speakers": 3, "speaker_embedding_size": 4, "speaking_rate": 0.8}
    return _saved(folder, {**signs, "A": len(signs)}, "k", more)


def one(folder: Path) -> Any:
    """Save a VITS of one voice, whose durations are told, and which reads other letters, without blanks."""
    signs = {sign: place for place, sign in enumerate("_абвгдежзийклмнопрстуфхцчшщъыьэюя ")}
    more = {"use_stochastic_duration_prediction": False}
    return _saved(folder, signs, "_", more, add_blank=False)


def _saved(
    folder: Path, signs: dict[str, int], pad: str, more: dict[str, Any], **reading: Any
) -> Any:
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    torch.manual_seed(0)
    model = VitsModel(VitsConfig(vocab_size=len(signs), **TINY, **more)).eval()
    model.save_pretrained(folder)
    (folder / "signs.json").write_text(json.dumps(signs))
    words = VitsTokenizer(folder / "signs.json", pad_token=pad, phonemize=False, **reading)
    words.save_pretrained(folder)
    (folder / "signs.json").unlink()
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# tiny\n")
    return model


BUILT: Final = {"many": many, "one": one}
