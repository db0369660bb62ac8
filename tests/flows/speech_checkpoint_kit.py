"""Tiny networks that speak as transformers saves them, built from configs."""

import io
import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

LETTERS: Final = "abcdefghijklmnopqrstuvwxyz' "
TINY: Final = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 16, "flow_size": 8},
    **{"spectrogram_bins": 9, "upsample_initial_channel": 8, "upsample_rates": [4, 2]},
    **{"upsample_kernel_sizes": [8, 4], "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]]},
    **{"depth_separable_num_layers": 1, "duration_predictor_flow_bins": 4, "duration_predictor_num_flows": 2},
    **{"prior_encoder_num_flows": 2, "prior_encoder_num_wavenet_layers": 1, "wavenet_kernel_size": 3},
    **{"posterior_encoder_num_wavenet_layers": 1, "sampling_rate": 8000},
}  # fmt: skip

SPEECHT5: Final = {
    **{"hidden_size": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 16},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16},
    **{"num_mel_bins": 8, "speech_decoder_prenet_units": 16, "speaker_embedding_dim": 4},
    **{"speech_decoder_postnet_layers": 2, "speech_decoder_postnet_units": 8},
    **{"max_speech_positions": 900, "max_text_positions": 60, "encoder_max_relative_position": 8},
}
VOCODER: Final = {
    **{"model_in_dim": 8, "sampling_rate": 8000, "upsample_initial_channel": 8},
    **{"upsample_rates": [4, 2], "upsample_kernel_sizes": [8, 4]},
    **{"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]]},
}


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


def speecht5(folder: Path) -> Any:
    """Save a SpeechT5 with its vocoder and two voices, whose tokenizer is one of signs."""
    from transformers import (
        SpeechT5Config,
        SpeechT5FeatureExtractor,
        SpeechT5ForTextToSpeech,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
    )

    torch.manual_seed(2)
    model = SpeechT5ForTextToSpeech(SpeechT5Config(**{**SPEECHT5, "vocab_size": 40})).eval()
    torch.nn.init.normal_(model.speech_decoder_postnet.feat_out.weight)  # unlike mels follow
    torch.nn.init.constant_(model.speech_decoder_postnet.prob_out.bias, -1.3)  # for some steps
    for layer in model.speecht5.decoder.prenet.layers:
        torch.nn.init.normal_(layer.weight)
    model.save_pretrained(folder)
    vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(**VOCODER)).eval()
    for parameter in vocoder.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    vocoder.save_pretrained(folder / "vocoder")
    SpeechT5FeatureExtractor(
        sampling_rate=8000, num_mel_bins=8, hop_length=1, win_length=8, fmin=0, fmax=4000
    ).save_pretrained(folder)
    (folder / "spm_char.model").write_bytes(pieces())
    save_file({"bob": torch.randn(4), "ann": torch.randn(1, 4)}, folder / "voices.safetensors")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    return model, vocoder


def pieces(kind: str = "char") -> bytes:
    """Return a model of SentencePiece, as SpeechT5's tokenizer has it."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog, isn't it.", "abc"]),
        model_writer=written, model_type=kind, vocab_size=36, hard_vocab_limit=False,
        bos_id=0, pad_id=1, eos_id=2, unk_id=3, minloglevel=2,
    )  # fmt: skip
    return written.getvalue()


VITS: Final = {"many": many, "one": one}
BUILT: Final = {**VITS, "speecht5": speecht5}
