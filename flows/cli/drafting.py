"""A first recipe for a user's own data: what can be measured of them, and a broken control that its gate refuses.

The bounds are what can be said of any data: better than guessing every pixel, sample or token alike. They are there to
be tightened once a first version has been judged.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from models import near
from models.judges import LEAST_HELD_OUT

LEVELS: Final = 256  # of a pixel's number, of a sample of sound
INNER: Final = 16  # places a side on which a network of pictures works, at most
PROMPTS: Final = 6
DRAWN: Final = 60  # pictures that are judged, at least: of a handful no share is sure
HALF_LIFE: Final = 69  # steps, of averaged weights
STEPS: Final = {
    **{"edm": 1000, "ddpm": 1000, "gpt": 1000, "transformer": 1000},
    **{"wavenet": 500, "matcha": 1000},
}
NARROW_HZ: Final = 12_000  # a sample rate below which 40 mels, of 10 ms frames, are enough


class DraftError(ValueError):
    """A recipe that cannot be drafted, in one line that says what could be."""


def draft(name: str, data: Mapping[str, Any], roles: Sequence[str], family: str = "") -> str:
    """Return a recipe for a prepared dataset as YAML with remarks.

    Args:
        name: the recipe's, and the model's.
        data: what dataset.json says.
        roles: those of a record of text, in their order; empty for pictures and sounds.
        family: what is to learn it; empty: what suits the data.

    Raises:
        DraftError: there is no draft of the family for such data.
    """
    drafts = _drafts(data, roles)
    chosen = family or next(iter(drafts))
    if chosen not in drafts:
        raise DraftError(
            f"no draft of {chosen!r} for {data['name']}{near(chosen, list(drafts))}"
            " (other families: start from their recipe in flows/recipes)"
        )
    return drafts[chosen](name, data)


def _drafts(
    data: Mapping[str, Any], roles: Sequence[str]
) -> dict[str, Callable[[str, Mapping[str, Any]], str]]:
    """Return the drafts that suit the data, the first of them first."""
    if data["modality"] == "audio":
        return {"wavenet": _wavenet}
    if data["modality"] == "speech":
        return {"matcha": _speech}
    if data["modality"] == "text":
        if "source" in roles:
            return {"transformer": _transformer}
        return {"gpt": _dialogues if "user" in roles else _documents}
    if "sizes" in data:
        return {"ddpm": _ddpm}
    if data["attributes"]:
        return {"edm": _edm, "ddpm": _ddpm}
    return {"edm": _edm}  # of a DDPM's pictures nothing is measured but by a judge


def _edm(name: str, data: Mapping[str, Any]) -> str:
    enough = data["splits"]["test"]["rows"] >= LEAST_HELD_OUT
    nats = LEVELS.bit_length() - 1  # bits of a pixel's number
    if enough:
        metric, bound = "edm_bits_per_dim", f"{{at_most: {nats}}} # all levels alike: {nats} bits"
    else:
        most = round(nats * math.log(2) * data["channels"] * data["image_size"] ** 2)
        metric, bound = "edm_nats", f"{{at_most: {most}}} # all levels alike, a picture"
    control = "control: # the network is given noisy pictures as they are\n"
    control += "  set: {stages.edm.config.precondition: none}\n"
    control += f"  refused_by: [{metric}]\n"
    return _pictures(name, data, "edm", {metric: bound}, control)


def _ddpm(name: str, data: Mapping[str, Any]) -> str:
    control = "control: # pictures learn other pictures' captions\n"
    control += "  set: {stages.ddpm.training.shuffle_captions: true}\n  refused_by: [alignment]\n"
    return _pictures(name, data, "ddpm", {}, control if data["attributes"] else "")


def _pictures(
    name: str, data: Mapping[str, Any], family: str, bounds: Mapping[str, str], control: str
) -> str:
    """Return a recipe of pictures: alignment where captions are classes, memorisation where enough are held out."""
    gate = dict(bounds)
    if data["attributes"]:
        gate["alignment"] = "{at_least: 0.5} # the judge sees the class that was asked for"
    if data["splits"]["test"]["rows"] >= LEAST_HELD_OUT:
        gate["memorised"] = "{at_most: 0.5} # of a small folder much is remembered"
    judge = "\njudge:\n  family: attribute-judge\n  training: {steps: 400}\n"
    side = data["image_size"]
    what = f"{'Captioned pictures' if data['vocabulary'] else 'Pictures'} of {side} pixels"
    return "\n".join(
        [
            *_head(name, data, what),
            *_stage(family, "base", _config(side, _unit(data)), batch=16, rate=0.002),
            *(["    guidance: 2.0"] if data["vocabulary"] else []),
            *(judge.rstrip().split("\n") if data["attributes"] else []),
            *(_seeds(data["captions"]) if data["vocabulary"] else []),
            *_gate(gate),
            *(["", control.rstrip()] if control else []),
            *_prompts(data["captions"]),
            "",
        ]
    )


def _seeds(captions: Sequence[str]) -> list[str]:
    """Return how often each caption is asked for, where they are few."""
    count = -(-DRAWN // max(1, len(captions)))
    seeds = f"evaluation: {{seeds: {list(range(count))}}} # of each of the {len(captions)} captions"
    return ["", seeds] if count > 1 else []


def _unit(data: Mapping[str, Any]) -> int:
    """Return what all sides of the pictures are multiples of."""
    sides = (int(side) for size in data.get("sizes", ()) for side in size.split("x"))
    return math.gcd(data["image_size"], *sides)


def _config(side: int, unit: int) -> str:
    """Return the config of a U-Net for pictures of `side` pixels: two resolutions, of 16 places a side at most.

    Sides are multiples of `unit`.
    """
    patch = 1
    while side // patch > INNER and unit % (4 * patch) == 0:
        patch *= 2
    widths = "" if unit % (2 * patch) == 0 else ", widths: [96]"
    return f"{{patch: {patch}{widths}}}"


def _documents(name: str, data: Mapping[str, Any]) -> str:
    return _text(name, data, "gpt", "nano", {}, "Writes on in the manner of")


def _dialogues(name: str, data: Mapping[str, Any]) -> str:
    return _text(name, data, "gpt", "chat", {}, "Answers in the manner of")


def _transformer(name: str, data: Mapping[str, Any]) -> str:
    sizes = {"max_source": 128, "max_target": 128, "dropout": 0.1}
    return _text(name, data, "transformer", "small", sizes, "Targets from sources, learned from")


def _text(
    name: str,
    data: Mapping[str, Any],
    family: str,
    preset: str,
    sizes: Mapping[str, Any],
    what: str,
) -> str:
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_str(data["tokenizer"]).get_vocab_size()
    alike = math.log(tokens)
    metric = f"{family}_nats_per_token"
    bound = f"{{at_least: 0.05, at_most: {0.9 * alike:.3g}}} # all tokens alike: {alike:.3g}; who sees ahead: 0"
    config = ", ".join(f"{key}: {value}" for key, value in sizes.items())
    return "\n".join(
        [
            *_head(name, data, f"{what} {data['name']}"),
            *_stage(family, preset, f"{{{config}}}" if config else "", batch=16, rate=0.001),
            *_gate({metric: bound}),
            "",
            "control: # next to nothing is learned",
            f"  set: {{stages.{family}.training.steps: 1}}",
            f"  refused_by: [{metric}]",
            "",
        ]
    )


def _wavenet(name: str, data: Mapping[str, Any]) -> str:
    most = LEVELS.bit_length() - 1
    bound = f"{{at_least: 1, at_most: {most}}} # all levels alike: {most}; who sees itself: 0"
    return "\n".join(
        [
            *_head(name, data, f"Sounds of {data['sample_rate']} Hz"),
            *_stage("wavenet", "small", "", batch=4, rate=0.004),
            *_gate({"wavenet_bits_per_sample": bound}),
            "",
            "control: # a sample sees itself",
            "  set: {stages.wavenet.config.shift: false}",
            "  refused_by: [wavenet_bits_per_sample]",
            *_prompts(data["captions"]),
            "",
        ]
    )


def _speech(name: str, data: Mapping[str, Any]) -> str:
    """Return a recipe of two stages; words are judged, and a control lies about them, where texts are classes."""
    rate = data["sample_rate"]
    hop = rate // 100 if rate < NARROW_HZ else 256
    size, mels = (2 ** (3 * hop).bit_length(), 40) if rate < NARROW_HZ else (1024, 80)
    hop -= hop % 2
    mel = f"{{sample_rate: {rate}, n_fft: {size}, hop: {hop}, window: {size}, mels: {mels}, low_hz: 0, "
    mel += f"high_hz: {min(8000, rate / 2):g}}}"
    bounds = {"acoustic_mel_l1": "{at_most: 1.5} # of real recordings' mels, in nats"}
    control: list[str] = []
    if "text" in data["attributes"]:
        bounds |= {"word_accuracy": "{at_least: 0.5} # a recogniser hears what was asked for"}
        control += ["", "control: # recordings learn other recordings' texts"]
        control += ["  set: {stages.acoustic.training.shuffle_captions: true}"]
        control += ["  refused_by: [word_accuracy]"]
    acoustic = _stage("matcha", "base", f"{{mel: {mel}}}", batch=24, rate=0.003)
    acoustic[1] = "  acoustic:"
    return "\n".join(
        [
            *_head(name, data, f"Speech of {rate} Hz, from text by way of mel spectrograms"),
            *acoustic,
            "  vocoder: # without a network; hifi-gan and vocos learn to do better",
            "    family: griffin-lim",
            "    preset: small",
            f"    config: {{mel: {mel}}}",
            "    training: {steps: 1, batch_size: 64}",
            *_gate(bounds),
            *control,
            *_prompts(data["captions"]),
            "",
        ]
    )


def _head(name: str, data: Mapping[str, Any], what: str) -> list[str]:
    splits = ", ".join(f"{split} {facts['rows']}" for split, facts in data["splits"].items())
    return [
        f"# A first recipe for {data['name']} ({splits}), written by `atelier recipe new`.",
        "# Its bounds are right for any data: tighten them to what a first version reaches.",
        f"name: {_quoted(name)}",
        f"description: {what}",
        "seed: 0",
        f"data: {{name: {data['name']}}}",
        "",
    ]


def _stage(family: str, preset: str, config: str, *, batch: int, rate: float) -> list[str]:
    steps = STEPS[family]
    return [
        "stages:",
        f"  {family}:",
        f"    family: {family}",
        f"    preset: {preset}",
        *([f"    config: {config}"] if config else []),
        "    training:",
        f"      steps: {steps}",
        f"      batch_size: {batch}",
        f"      optimizers: {{model: {{learning_rate: {rate}}}}}",
        f"      ema_half_life: {round(HALF_LIFE * batch)} # samples; of the weights that are averaged",
    ]


def _gate(bounds: Mapping[str, str]) -> list[str]:
    lines = [f"    {name}: {bound}" for name, bound in bounds.items()]
    return ["", "gate:", "  metrics:", *lines, "  no_worse_than: production"]


def _prompts(captions: Sequence[str]) -> list[str]:
    """Return some of the captions as prompts to try, evenly taken."""
    asked = [caption for caption in captions if caption]
    count = min(PROMPTS, len(asked))
    chosen = [asked[number * len(asked) // count] for number in range(count)]
    return ["", "try_prompts:", *(f"  - {_quoted(one)}" for one in chosen)] if chosen else []


def _quoted(text: str) -> str:
    """Return a text as YAML that cannot be read as anything else: "no" is a word here."""
    import json

    return json.dumps(text, ensure_ascii=False)
