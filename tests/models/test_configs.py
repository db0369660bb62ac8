"""What no Config takes: sizes and settings that would fail late are refused early, by name, value and limit."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

import pytest

from models import FAMILIES, JUDGES, configure, trainable
from models.language.causal import tiny
from models.parts import kinds
from models.parts.bounds import SHARE, SIZE, WEIGHT, within

Refused = tuple[Mapping[str, Any], str]
THREE_HALVINGS: Final = {"network": "conv", "hidden": (8, 8, 8)}
WIDE_DCGAN: Final = {"network": "dcgan", "image_size": 28, "hidden": (8, 12)}
ONE_PLACE: Final = "must be at least 16 where pictures have come down to one place, .* got 8"
"""A norm of one number is 0: in a batch all rows would be the same, and torch refuses to norm one row alone."""
UNLIKELY: Final = r"must be above 0, got .* probability 0"
"""Without smoothing, one pixel that training never saw on makes a picture impossible: -log p is infinite."""

REFUSED: Final[Mapping[str, tuple[Refused, ...]]] = {
    "aae": (
        ({"discriminator": ()}, "each of discriminator must be at least 1"),
        ({"adversary": -1.0}, "adversary must be at least 0, got -1.0"),
        (THREE_HALVINGS, "multiple of 8 for 3 convolutions, got 28"),
    ),
    "clip-judge": (
        ({"frames": 1}, "frames must be at least 2, got 1"),
        ({"attributes": (("direction", ("left",)),)}, "'direction' needs at least 2 values"),
        ({"width": 12}, "multiple of 8, got 12"),
        ({"image_size": 33}, "a multiple of 2, got 33"),
    ),
    "attribute-judge": (
        ({"attributes": ()}, "attributes is empty"),
        ({"attributes": (("digit", ("one",)),)}, "'digit' needs at least 2 values"),
        ({"attributes": (("joint", ("a", "b")),)}, "other than 'joint'"),
        ({"width": 12}, "multiple of 8, got 12"),
        ({"image_size": 33}, "a multiple of 2, got 33"),
    ),
    "bert": (
        ({"width": 100}, "a multiple of heads 12, got 100"),
        ({"max_tokens": 4}, "max_tokens must be at least 5, got 4"),
        ({"masked": 0.0}, r"masked must be in \(0, 1\), got 0.0"),
    ),
    "causal-lm": (
        ({"architecture": "BloomForCausalLM"}, "architecture must be one of GPT2LMHeadModel"),
        ({"network": {**tiny(), "sliding_window": 8}}, "network.sliding_window: every token sees"),
        ({"network": {**tiny(), "vocab_size": 9}}, "tokenizer: it has 46 tokens, and .* knows 9"),
        ({"ends": 48}, "ends must be between 0 and 47, got 48"),
        ({"unknown": 48}, "unknown must be between 0 and 47, got 48"),
        ({"context": 0}, "context must be"),
        ({"stride": 33}, r"stride must be in 1..32 \(context\), got 33"),
    ),
    "clip": (
        ({"vocabulary": ()}, "clip learns pictures with their captions"),
        ({"hidden": (32, 60)}, "each of hidden must be a multiple of 8, got 60"),
        ({"image_size": 33}, "image_size must be a multiple of patch 2, got 33"),
        ({"width": 30}, "width must be a multiple of heads 4, got 30"),
        ({"embedding": 0}, "embedding must be at least 1, got 0"),
        ({"image_size": 3, "patch": 1, "hidden": (32, 16, 8)}, f"each of hidden {ONE_PLACE}"),
    ),
    "make-a-video-decoder": (
        ({"frames": 0}, "frames must be between 1 and 1024, got 0"),
        ({"skips": ()}, "each of skips must be between 1 and 64"),
        ({"sizes": ("24x40",)}, "sizes: CLIP embeds squares"),
        ({"frame_rate": 0.0}, "frame_rate must be between 0.1 and 240, got 0.0"),
        ({"embedding": 0}, "embedding must be between 1 and 4096, got 0"),
        (
            {"backbone": "dit", "widths": (64,), "attention": 1},
            "backbone must be 'unet' for clips, got 'dit'",
        ),
    ),
    "make-a-video-interpolation": (
        ({"frames": 8}, "one more than a multiple of 4.*got 8"),
        ({"frames": 1}, "one more than a multiple of 4.*got 1"),
        ({"frames": 8, "tasks": ("start",)}, "one more than a multiple of 2.*got 8"),
        ({"tasks": ()}, "tasks must be some of half, .*, got \\[\\]"),
        ({"tasks": ("half", "end")}, "tasks must be some of half, .*, got \\['half', 'end'\\]"),
        ({"low_size": 8}, "low_size: frames come as they are, leave it out, got 8"),
        ({"sizes": ("24x40",)}, "sizes: frames of clips are squares"),
    ),
    "mcvd": (
        ({"temporal": False}, "temporal: all frames are seen at once, leave it out, got False"),
        ({"tasks": ("end",)}, "tasks must be some of half, .*, got \\['end'\\]"),
    ),
    "make-a-video-upsampler": (
        ({"frames": 0}, "frames must be between 1 and 1024, got 0"),
        ({"image_size": 16, "low_size": 5}, "low_size must divide image_size 16, got 5"),
        ({"shared_noise": True}, "shared_noise: each frame has noise of its own in training"),
    ),
    "dalle": (
        ({"codes": 1}, "codes must be at least 2, got 1"),
        ({"places": 12}, "places must be a square, as of a grid of 4 x 4, got 12"),
        ({"width": 100, "heads": 3}, "width 100 must be divisible by heads, got 3"),
        ({"text_share": 1.0}, r"text_share must be in \[0, 1\), got 1.0"),
        ({"caption_drop": 1.5}, "caption_drop must be between 0 and 1, got 1.5"),
        ({"guidance": -1.0}, "guidance must be between 0 and 50, got -1.0"),
    ),
    "ddpm": (
        ({"objective": "flow", "sampler": "ddpm"}, "cannot use sampler 'ddpm'; choose one of eul"),
        ({"objective": "eps", "sampler": "euler"}, "cannot use sampler 'euler'; choose one of dd"),
        (
            {"objective": "eps", "sampler": "ddim", "zero_terminal_snr": True},
            "needs objective 'v', got 'eps'",
        ),
        ({"eta": 0.5}, "eta belongs to sampler 'ddim'"),
        ({"image_size": 15}, "image_size must be a multiple of 4 .*got 15"),
        ({"widths": (20, 24)}, "widths must be multiples of 8 .*got 20"),
        ({"low_size": 3}, "low_size must divide image_size 16, got 3"),
        (
            {"image_size": 10, "patch": 5, "widths": (64,), "low_size": 5},
            "low_size must be a multiple of 2 for patch 5, got 5",
        ),
        ({"image_size": 4, "widths": (64, 8)}, f"each of widths {ONE_PLACE}"),
        ({"caption_drop": 1.5}, "caption_drop must be between 0 and 1, got 1.5"),
        ({"steps": 0}, "steps must be between 1 and 1000, got 0"),
        ({"guidance": math.nan}, "guidance must be between 0 and 50, got nan"),
        ({"low_noise_sampling": 0.9}, "low_noise_sampling 0.9 exceeds"),
        ({"attention": 3}, "attention must be 0 to 2 resolutions, got 3"),
    ),
    "diffusers": (
        ({"pipeline": "KandinskyPipeline"}, "pipeline must be one of StableDiffusionPipeline"),
        ({"networks": {}}, "a StableDiffusionPipeline has text_encoder, unet, vae, got"),
        ({"readers": {}}, "one for each of text_encoder is needed"),
        ({"image_size": 17}, "image_size must be a multiple of 2, got 17"),
        ({"steps": 0}, "steps must be between 1 and 1000, got 0"),
        ({"prompt_drop": 1.5}, "prompt_drop must be between 0 and 1, got 1.5"),
    ),
    "diffusers-clips": (
        ({"frames": 4}, "frames must be a multiple of 2 and one more, got 4"),
        ({"image_size": 18}, "image_size must be a multiple of 4, got 18"),
        ({"frame_rate": 0}, "frame_rate must be between 0.1 and 1000, got 0"),
        ({"pipeline": "StableDiffusionPipeline"}, "pipeline must be one of AnimateDiffPipeline"),
    ),
    "diffusers-decoder": (
        ({"networks": {}}, "networks: one of unet, movq, decoder with text_proj, .*, got none"),
        ({"networks": {"decoder": {}}}, "super_res_first with super_res_last is needed, got deco"),
        ({"low_size": 8}, "low_size: the super_res_first has one, got 8"),
        ({"prompt_shape": (7, 16)}, r"prompt_shape: the decoder has one, got \(7, 16\)"),
        ({"image_size": 18}, "image_size must be a multiple of the latent's 8, got 18"),
        ({"steps": 1}, "steps must be between 2 and 1000, got 1"),
        ({"embedding_drop": 1.5}, "embedding_drop must be between 0 and 1, got 1.5"),
    ),
    "diffusers-prior": (
        ({"networks": {}}, "networks: one of text_encoder, prior, image_encoder is needed, got"),
        ({"reader": {"length": 3}}, "reader: the text_encoder has one, got one of the prior"),
        ({"guidance": -1.0}, "guidance must be between 0 and 50, got -1.0"),
        ({"prompt_drop": 1.5}, "prompt_drop must be between 0 and 1, got 1.5"),
    ),
    "dvae": (
        ({"codes": 1}, "codes must be at least 2, got 1"),
        ({"cold": 2.0}, "temperatures must fall and be above 0, got warm 1.0, cold 2.0"),
        ({"usage_bonus": -1.0}, "usage_bonus must be at least 0, got -1.0"),
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"sigma": 1.0, "likelihood": "logit-laplace"}, "belongs to likelihood 'gaussian'"),
    ),
    "edm": (
        ({"image_size": 15}, "image_size must be a multiple of 4 .*got 15"),
        ({"widths": (20, 24)}, "widths must be multiples of 8 .*got 20"),
        ({"steps": 0}, "steps must be between 1 and 1000, got 0"),
        ({"sigma_min": 90.0}, "sigma_min must be below sigma_max 80.0, got 90.0"),
        ({"attention": 3}, "attention must be 0 to 2 resolutions, got 3"),
        ({"levels": 1}, "levels must be between 2 and 65536, got 1"),
        ({"image_size": 2, "widths": (8,)}, f"each of widths {ONE_PLACE}"),
    ),
    "gan": (
        ({"hidden": ()}, "each of hidden must be at least 1"),
        ({"r1": -1.0}, "r1 must be at least 0, got -1"),
        ({"gradient_penalty": math.inf}, "gradient_penalty must be at least 0 and finite, got inf"),
        ({**WIDE_DCGAN, "image_size": 30, "hidden": (8, 16)}, "multiple of 4 .* got 30"),
        (WIDE_DCGAN, "multiples of 8, got 12"),
        ({"network": "dcgan", "hidden": (16, 16, 8)}, f"the last of hidden {ONE_PLACE}"),
    ),
    "gpt": (
        ({"width": 30}, "width 30 must be divisible by heads, got 4"),
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"stride": 65}, r"stride must be in 1..64 \(context\), got 65"),
        ({"tokenizer": "{}"}, "no tokenizers document"),
    ),
    "lda": tuple(
        ({"shrinkage": amount}, "shrinkage must be 0 to 1 or 'ledoit-wolf'")
        for amount in (-0.1, 1.1, "auto", math.nan)
    ),
    "griffin-lim": (
        ({"steps": 0}, "steps must be between 1 and 1000, got 0"),
        ({"sample_rate": 16000}, "mel is of sound of 8000 Hz, and sample_rate is 16000 Hz"),
        ({"mel": "9khz"}, "mel has no preset '9khz'"),
    ),
    "hifi-gan": (
        ({"rates": (5, 4)}, "rates must multiply to the mel's hop 80, got 20"),
        ({"width": 12}, "width must be a multiple of 8, got 12"),
        ({"kernels": (3, 4)}, "each of kernels must be odd, got 4"),
        ({"mel": "22khz"}, "mel is of sound of 22050 Hz, and sample_rate is 8000 Hz"),
        ({"scales": 9}, "scales must be between 1 and 8, got 9"),
        ({"adversary": -1.0}, "adversary must be at least 0, got -1.0"),
        (
            {"segment": 1, "scales": 8},
            "its 80 samples are none at the lowest of 8 scales, which takes 128",
        ),
    ),
    "kl-autoencoder": (
        ({"image_size": 30}, "multiple of 4 for 2 convolutions, got 30"),
        ({"sizes": ("40x26",)}, "a side of size 40x26 must be a multiple of 4 .*, got 26"),
        (
            {"image_size": 4, "hidden": (8,), "critic": (8, 8, 8), "adversary": 0.5},
            "multiple of 8 for 3 convolutions, got 4",
        ),
        ({"latent": 0}, "latent must be at least 1, got 0"),
        ({"kl_weight": -1.0}, "kl_weight must be at least 0, got -1.0"),
    ),
    "dreamfusion": (
        ({"resolution": 2}, "resolution must be between 4 and 256, got 2"),
        ({"cameras": 0}, "cameras must be between 1 and 64, got 0"),
        ({"steps": 0}, "steps must be between 1 and 20000, got 0"),
        ({"rate": 0.0}, "rate must be between 0.0001 and 1, got 0.0"),
        ({"sparsity": -1.0}, "sparsity must be at least 0, got -1.0"),
        ({"channels": 1}, "seen in squares of three colours, .* got channels 1"),
        ({"low_size": 4}, "by no low picture, got .* low_size 4"),
        ({"sizes": ("8x16",)}, r"seen in squares of three colours, .* sizes \('8x16',\)"),
        ({"shift": 3.0}, "shift is of how pictures are drawn, and volumes are, got 3.0"),
        ({"variance": "large"}, "variance is of how pictures are drawn, .* got large"),
        ({"eta": 0.5, "objective": "v", "sampler": "ddim"}, "eta is of how pictures .* got 0.5"),
        ({"views": ("from above",)}, r"views are two, .* got \('from above',\)"),
        (
            {"views": ("low", "hihg"), "vocabulary": ("low", "high")},
            "views: unknown word 'hihg'; did you mean 'high'",
        ),
    ),
    "latent-clips": (
        ({"frames": 0}, "frames must be between 1 and 1024, got 0"),
        ({"patch_frames": 2}, "patch_frames must divide frames 9, got 2"),
        ({"knows": 1.5}, "knows must be between 0 and 1, got 1.5"),
        ({"backbone": "unet"}, "backbone must be 'dit' for clips, got 'unet'"),
        (
            {"temporal": False, "patch_frames": 3},
            "patch_frames must be 1 and attending 'factorised', got 3 and 'factorised'",
        ),
        ({"latent_shape": (4, 8, 6)}, "must have equal sides, got "),
    ),
    "latent-diffusion": (
        ({"latent_shape": (4, 8, 6)}, "must have equal sides, got "),
        ({"latent_shape": (0, 8, 8)}, "latent_shape's channels must be at least 1, got 0"),
        ({"latent_shape": (4, 5, 5)}, "image_size must be a multiple of 2 .*got 5"),
        ({"low_size": 16}, "low_size belongs to pixels, .* got 16"),
        ({"sizes": ("40x26",)}, r"sizes must be multiples of 4, .* got \('40x26',\)"),
        ({"sizes": ("wide",)}, "sizes are written like 40x24, width and height, got 'wide'"),
        ({"backbone": "dit"}, r"one width, with attention, got widths \(64, 96\) and attention 1"),
    ),
    "made": (
        ({"image_size": 1}, "at least 2 bits, got 1"),
        ({"hidden": (8, 0)}, r"each of hidden must be at least 1, got \(8, 0\)"),
    ),
    "matcha": (
        ({"width": 50, "heads": 4}, "width 50 must be divisible by heads, got 4"),
        ({"sample_rate": 16000}, "mel is of sound of 8000 Hz, and sample_rate is 16000 Hz"),
        ({"mel": "9khz"}, "mel has no preset '9khz'; choose one of tiny, 8khz"),
        ({"dilations": ()}, "each of dilations must be between 1 and 1024"),
        ({"temperature": -1.0}, "temperature must be between 0 and 2, got -1.0"),
        ({"front_end": "none 1"}, "front_end: this model reads text by 'none 1'"),
    ),
    "nade": (({"hidden": 0}, "hidden must be at least 1, got 0"),),
    "naive-bayes": (
        ({"alpha": 0.0}, UNLIKELY),
        ({"var_smoothing": 0.0}, UNLIKELY),
        ({"alpha": math.nan}, UNLIKELY),
    ),
    "pixelcnn": (
        ({"channels": 3}, "channels must be 1, got 3"),
        ({"levels": 1}, "levels must be between 2 and 256, got 1"),
        ({"kernel": 4}, "kernel must be odd and at least 3, got 4"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
    ),
    "pixelrnn": (
        ({"channels": 3}, "channels must be 1, got 3"),
        ({"levels": 1}, "levels must be between 2 and 256, got 1"),
        ({"row_kernel": 4}, "row_kernel must be odd and at least 3, got 4"),
        ({"state": 0}, "state must be at least 1, got 0"),
    ),
    "speecht5": (
        (
            {"speakers": ()},
            "speakers: SpeechT5 speaks in a voice that it is given, and there is none",
        ),
        (
            {"mel": {"n_fft": 32, "hop": 8, "window": 32, "mels": 6}},
            "mel.mels must be 8, the network's, got 6",
        ),
        ({"sample_rate": 16000}, "sample_rate must be the vocoder's, 8000 Hz, got 16000"),
        (
            {"mel": {"n_fft": 32, "hop": 16, "window": 32, "mels": 8}},
            "mel.hop must be .* 8, got 16",
        ),
        ({"longest": 0.0}, "longest must be between 0.1 and 100, got 0.0"),
    ),
    "transformer": (
        ({"width": 16, "heads": 3}, "a multiple of heads 3, got 16"),
        ({"smoothing": 1.0}, r"smoothing must be in \[0, 1\), got 1"),
    ),
    "unclip-decoder": (
        ({"image_size": 15}, "image_size must be a multiple of 4 .*got 15"),
        ({"sizes": ("24x40",)}, r"sizes: CLIP embeds squares, got \('24x40',\)"),
        ({"embedding_drop": 1.5}, "embedding_drop must be between 0 and 1, got 1.5"),
        ({"embedding_tokens": 0}, "embedding_tokens must be between 1 and 4096, got 0"),
    ),
    "unclip-prior": (
        ({"width": 30}, "width 30 must be divisible by heads, got 4"),
        ({"candidates": 0}, "candidates must be between 1 and 64, got 0"),
        ({"caption_drop": -1.0}, "caption_drop must be between 0 and 1, got -1.0"),
    ),
    "unit-selection": (
        ({"minutes": 0.0}, "minutes must be between 0.01 and 100000.0, got 0.0"),
        ({"passes": 1}, "passes must be between 2 and 100, got 1"),
        ({"candidates": 0}, "candidates must be at least 1, got 0"),
        ({"costs": "none"}, "costs must be 'target-join' or 'random', got 'none'"),
        ({"sample_rate": 16000}, "mel.sample_rate must be 16000, the sounds', got 8000"),
        ({"mel": "9khz"}, "mel has no preset '9khz'"),
        ({"front_end": "none 1"}, "this model reads text by 'none 1'"),
        ({"speakers": ("a", "a")}, "speakers: one is there twice in a, a"),
    ),
    "vae": (
        (THREE_HALVINGS, "multiple of 8 for 3 convolutions, got 28"),
        ({"likelihood": "gaussian"}, "needs binarize 'none'"),
        ({"kl_weight": -1.0}, "kl_weight must be at least 0, got -1.0"),
        ({"hidden": ()}, "each of hidden must be at least 1"),
        ({"latent": 0}, "latent must be at least 1, got 0"),
    ),
    "vits": (
        ({"width": 50, "heads": 4}, "width 50 must be divisible by heads, got 4"),
        ({"latent": 7}, "latent must be even, for a flow that halves it, got 7"),
        ({"couplings": 0}, "couplings must be between 1 and 4096, got 0"),
        ({"temperature": 3.0}, "temperature must be between 0 and 2, got 3.0"),
        ({"kl_weight": -1.0}, "kl_weight must be at least 0, got -1.0"),
        ({"sample_rate": 16000}, "mel is of sound of 8000 Hz, and sample_rate is 16000 Hz"),
        ({"segment": 0}, "segment must be at least 1, got 0"),
        ({"front_end": "none 1"}, "front_end: this model reads text by 'none 1'"),
        ({"speakers": ("a", "a")}, "speakers: one is there twice in a, a"),
    ),
    "vits-checkpoint": (
        ({"speakers": ("ann",)}, "speakers: the network has 2, got 1 names"),
        ({"speakers": ("ann", "ann")}, "one is there twice in ann, ann"),
        ({"sample_rate": 16000}, "sample_rate must be the network's, 8000 Hz, got 16000"),
        ({"reader": {"vocabulary": {}}}, "its vocabulary is empty"),
        ({"reader": {"vocabulary": {"a": 29}}}, "it has a sign 29, and the network knows 29"),
        (
            {"reader": {"vocabulary": {"a": 1}, "phonemize": True}},
            "the setting phonemize asks for .*: install phonemizer, and espeak-ng",
        ),
        ({"reader": {"vocabulary": {"a": 1}, "is_uroman": True}}, "install uroman"),
    ),
    "vocos": (
        ({"segment": 0}, "segment must be at least 1, got 0"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"mel": {"hop": 300}}, "window must be between 300 and 256, got 256"),
        (
            {"spectra_weight": 1.0, "mel": {"n_fft": 14, "hop": 4, "window": 14, "mels": 2}},
            "mel.n_fft must be at least 16 for three resolutions, got 14",
        ),
    ),
    "vqvae": (
        ({"image_size": 10}, "multiple of 4 for 2 convolutions, got 10"),
        ({"codes": 1}, "codes must be at least 2, got 1"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
    ),
    "wae": (({"penalty": -1}, "penalty must be at least 0, got -1"),),
    "wavenet": (
        ({"levels": 1}, "levels must be between 2 and 65536, got 1"),
        ({"dilations": ()}, "at least one"),
        ({"dilations": (0,)}, "dilations must be at least 1"),
        ({"window": 100}, "window must be more than the receptive field of 511, got 100"),
        ({"seconds": 0.0}, "seconds must be above 0"),
        ({"block": 0}, "block must be at least 1, got 0"),
    ),
}


@pytest.mark.parametrize("name", [*FAMILIES, *JUDGES])
def test_a_config_that_would_fail_late_fails_early(name: str) -> None:
    for change, message in REFUSED[name]:
        with pytest.raises(ValueError, match=message):
            trainable(name).Config(**change)


def test_the_ends_of_a_range_are_inside_and_what_is_no_number_is_not() -> None:
    for value, allowed in ((1, SIZE), (0, WEIGHT), (0, SHARE), (2, (2, 5)), (5, (2, 5))):
        within("it", value, allowed)
    for value in (math.nan, math.inf, -math.inf):
        for allowed in (SIZE, WEIGHT, SHARE, (2, 5)):
            with pytest.raises(ValueError, match=f"it must be .*, got {value}"):
                within("it", value, allowed)


@pytest.mark.parametrize("name", [*FAMILIES, *JUDGES])
def test_every_preset_is_of_the_kinds_that_its_config_declares(name: str) -> None:
    cls = trainable(name)
    for preset in cls.presets.values():
        kinds.check(cls.Config, {one.name: getattr(preset, one.name) for one in fields(preset)})


@pytest.mark.parametrize(
    ("family", "asked", "message"),
    [
        ("made", {"mask": "C"}, r"^mask must be one of A, B, got 'C'"),
        ("made", {"mask": ["A"]}, r"^mask must be one of A, B, got \('A',\)"),
        ("made", {"hidden": "1e9"}, r"^hidden must be a list, each a whole number, got '1e9' as a"),
        ("made", {"hidden": [64, True]}, r"^hidden must be a list, each a whole number, got"),
        ("vae", {"latent": True}, r"^latent must be a whole number, got True"),
        ("vae", {"latent": 2.0}, r"^latent must be a whole number, got 2.0"),
        ("vae", {"kl_weight": "1e-3"}, r"got '1e-3' as a text: YAML's numbers have a dot, as 1.0e"),
        ("vae", {"kl_weight": math.nan}, r"^kl_weight must be a number, got nan"),
        ("ddpm", {"low_size": "8"}, r"^low_size must be a whole number or null, got '8'"),
        (
            "latent-diffusion",
            {"latent_shape": [4, 8]},
            r"^latent_shape must be a list of 3, each a",
        ),
        ("matcha", {"mel": {"hop": "80"}}, r"^hop must be a whole number, got '80'"),
    ],
)
def test_a_setting_of_another_kind_is_refused_by_its_name(
    family: str, asked: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        configure(family, "tiny", asked, {})
