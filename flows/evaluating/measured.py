"""Which metrics an evaluation will have, told before anything is trained: what a gate asks for must be among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from flows.recipe import Evaluation
from models.declared import Declared
from models.judges import LEAST_HELD_OUT

if TYPE_CHECKING:
    from models.family import Family

COSTS = ("seconds_per_sample", "cpu_seconds_per_sample")
DISTRIBUTION: Final = ("fd_judge", "precision", "recall", "coverage")
GIVEN: Final = 10  # frames that a prediction has, and as many that it gives


@dataclass(frozen=True, kw_only=True, slots=True)
class Able:
    """What of a stage decides about its metrics."""

    measures: tuple[str, ...]
    likelihood: bool = True
    reads: bool = True  # captions
    upscales: bool = True
    tokenizes: bool = True
    steps: bool = True  # draws token by token
    ranks: bool = True  # embeds captions and pictures alike
    between: bool = True  # draws frames between others
    goes_on: int = 1  # how many frames it sees, after which it draws more; 0: none

    @classmethod
    def perhaps(cls, declared: Declared) -> "Able":
        """Return all that some config of a family may have measured."""
        return cls(measures=declared.measures, ranks=declared.ranks)

    @classmethod
    def surely(cls, model: "Family") -> "Able":
        """Return what a model has measured."""
        able = model.capabilities
        clips = {name for name, port in model.inputs.items() if port.kind == "clip"}
        return cls(
            measures=model.measured,
            likelihood=able.likelihood,
            reads=able.condition == "text",
            upscales=able.upscales,
            tokenizes=able.tokenizes,
            steps=able.stepwise,
            ranks=model.ranks,
            between="half" in clips,
            goes_on=goes_on_from(model),
        )


def goes_on_from(model: "Family") -> int:
    """Return the last frames of a clip after which a model draws more, 0 where it cannot: its first half."""
    port = model.inputs.get("start")
    return model.config.frames // 2 + 1 if port is not None and port.kind == "clip" else 0


def measured(
    data: Mapping[str, Any],
    stages: Mapping[str, Able],
    *,
    judged: bool,
    prompted: bool | None,
    seeds: int,
    draws: bool = True,
    made: str = "",
) -> dict[str, str]:
    """Return the metrics by name, each with what keeps it from being measured: nothing where it will be.

    Args:
        data: as `data.catalog.known` returns it.
        stages: what each stage can do, by name.
        judged: whether the recipe has a judge.
        prompted: whether the first stage reads captions; None: not known yet.
        seeds: how many of them each prompt is drawn with.
        draws: whether anything is drawn, and not only embedded.
        made: the modality of what comes out; empty: the data's. Of clips single frames may be drawn.
    """
    few = _few(data)
    if (made or data["modality"]) == "clip":
        return _of_clips(data, stages, few, judged=judged, prompted=prompted, seeds=seeds)
    if made == "mesh":
        return _of_meshes(data, few, judged=judged, prompted=prompted)
    if data["modality"] == "clip":
        data = {**data, "modality": "image", "attributes": _shown(data)}
    found, drawn = dict.fromkeys(COSTS, ""), dict[str, str]()
    for name, able in stages.items():
        if able.likelihood:
            found[f"{name}_nats"] = ""
            found |= _told(name, able, data, alone=len(stages) == 1)
            if len(stages) == 1 and data["modality"] in {"image", "audio"}:
                drawn[f"{name}_sample_gap"] = few
        found |= {f"{name}_{one}": few for one in able.measures}
        if data["modality"] == "image":
            found |= _of_pictures(name, able, data, judged=judged, prompted=prompted)
            if able.ranks:
                drawn[f"{name}_score"] = _unprompted(prompted)
    if data["modality"] == "audio":
        drawn |= _heard(data, prompted) | {"memorised": few, "distinct": few}
    elif data["modality"] == "speech":
        drawn |= _spoken(data, prompted)
    else:
        drawn["memorised"] = few
    if data["modality"] == "image":
        drawn["distinct"] = drawn["pixel_distance"] = few
        drawn |= _judged(data, few if judged else "the recipe has no judge", prompted)
        alone = "" if seeds > 1 else "evaluation.seeds has one seed, and it needs two"
        no_judge = "" if judged else "the recipe has no judge"
        drawn["spread"] = no_judge or _unprompted(prompted) or alone
    nothing = "" if draws else "embeddings come out of the recipe, and nothing is drawn"
    return found | {name: nothing or why for name, why in drawn.items()}


def asked_of(captions: Sequence[str], spec: Evaluation) -> list[str]:
    """Return the captions that are asked for, each with every seed: evenly taken, about `samples` in all."""
    return list(captions)[:: max(1, len(captions) * len(spec.seeds) // spec.samples)]


def unmeasured(data: Mapping[str, Any], spec: Evaluation, *, prompted: bool) -> dict[str, str]:
    """Return the metrics that too few drawn pictures, or clips, keep from being measured, each with what does.

    Args:
        data: as `data.catalog.known` returns it; nothing is said where its captions are not known yet.
        spec: what is drawn.
        prompted: whether the first stage reads captions.
    """
    count, found = spec.samples, dict[str, str]()
    if prompted:
        if "captions" not in data:
            return {}
        asked, held_out = asked_of(data["captions"], spec), set(data["held_out"])
        known = [caption for caption in asked if caption not in held_out]
        count = len(known) * len(spec.seeds)
        why = f"none of the {len(asked)} captions that are asked for is such a one: raise evaluation.samples"
        found["alignment_trained"] = "" if known else why
        found["alignment_held_out"] = "" if len(known) < len(asked) else why
        rows = sum(part["rows"] for part in data["splits"].values())
        alone = f"no two rows of {data['name']} have one caption"
        found["spread"] = "" if len(data["captions"]) < rows else alone
    more = "give evaluation.seeds more of them" if prompted else "raise evaluation.samples"
    few = f"{count} samples are drawn, and it needs {LEAST_HELD_OUT}: {more}"
    return found | dict.fromkeys(DISTRIBUTION, few if count < LEAST_HELD_OUT else "")


def _few(data: Mapping[str, Any]) -> str:
    """Return why little can be said of a small test split of pictures, clips or sounds."""
    nouns = {"image": "pictures", "clip": "clips", "audio": "sounds"}
    noun = nouns.get(data["modality"])
    if "splits" not in data or noun is None:
        return ""
    rows = data["splits"]["test"]["rows"]
    what = f"the test split of {data['name']} has {rows} {noun}"
    return f"{what}, and it needs {LEAST_HELD_OUT}" if rows < LEAST_HELD_OUT else ""


def _of_clips(
    data: Mapping[str, Any],
    stages: Mapping[str, Able],
    few: str,
    *,
    judged: bool,
    prompted: bool | None,
    seeds: int,
) -> dict[str, str]:
    """Return as `measured`, of clips."""
    found = dict.fromkeys((*COSTS, "jerk", "travel"), "")
    found |= dict.fromkeys(("memorised", "pixel_distance"), few)
    for name, able in stages.items():
        found |= {f"{name}_{one}": few for one in able.measures}
        if able.upscales or able.between:
            found |= dict.fromkeys((f"{name}_gain_db", f"{name}_gain_ssim"), "")
        if able.goes_on:
            why = _unpredicted(data, able.goes_on)
            found |= dict.fromkeys((f"{name}_prediction_mse", f"{name}_prediction_ssim"), why)
    no_judge = "" if judged else "the recipe has no judge"
    told = _judged(data, few if judged else no_judge, prompted)
    alone = "" if seeds > 1 else "evaluation.seeds has one seed, and it needs two"
    told["spread"] = no_judge or _unprompted(prompted) or alone
    unseen = (
        "" if _shown(data) else f"no single frame of {data['name']} shows what its caption says"
    )
    told["constancy"], told["frame_alignment"] = no_judge or unseen, told["alignment"] or unseen
    for name in ("judge_confidence", "least_class"):
        told.pop(name)
    return found | told


def _of_meshes(
    data: Mapping[str, Any], few: str, *, judged: bool, prompted: bool | None
) -> dict[str, str]:
    """Return as `measured`, of meshes."""
    no_judge = "" if judged else "the recipe has no judge"
    told = _judged(data, no_judge or few, prompted)
    for name in ("judge_confidence", "least_class"):
        told.pop(name)
    return dict.fromkeys((*COSTS, "connected"), "") | told


def _unpredicted(data: Mapping[str, Any], seen: int) -> str:
    """Return why frames after GIVEN ones are not compared, of a stage that goes on from so many."""
    if data["frames"] < 2 * GIVEN:
        return f"{data['name']} has clips of under {2 * GIVEN} frames"
    if seen > GIVEN:
        most = 2 * GIVEN - 1
        return f"it goes on from {seen} frames, and {GIVEN} are given: config.frames must be at most {most}"
    return ""


def _shown(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that single frames show."""
    return {name: of for name, of in data["attributes"].items() if name not in data["moving"]}


def _of_pictures(
    name: str, able: Able, data: Mapping[str, Any], *, judged: bool, prompted: bool | None
) -> dict[str, str]:
    found = {f"{name}_gain_db": ""} if able.upscales else {}
    if able.tokenizes:
        why = ("" if judged else "the recipe has no judge") or _unclassed(data)
        found[f"{name}_reconstruction_alignment"] = why
        found[f"{name}_relative_alignment"] = why or _unprompted(prompted)
    if able.ranks:
        found |= dict.fromkeys((f"{name}_caption_r1", f"{name}_picture_r1"), "")
    return found


def _judged(data: Mapping[str, Any], why: str, prompted: bool | None) -> dict[str, str]:
    """Return what the judge says of drawn pictures; `why` keeps it from that."""
    no_judge = why if "judge" in why else ""
    found = dict.fromkeys(DISTRIBUTION, why)
    aligned = no_judge or _unclassed(data) or _unprompted(prompted)
    found |= {f"alignment_{name}": aligned for name in data["attributes"]}
    found["alignment"] = aligned
    whole = "" if data["held_out"] else f"{data['name']} holds out no captions"
    found |= {f"alignment_{part}": aligned or whole for part in ("trained", "held_out")}
    one = "" if len(data["attributes"]) == 1 else "it is of data with one attribute"
    found["judge_confidence"] = no_judge or one
    asked = "the first stage reads captions, which settle it" if prompted else ""
    found["least_class"] = no_judge or one or asked
    return found


def _told(name: str, able: Able, data: Mapping[str, Any], *, alone: bool) -> dict[str, str]:
    """Return what a stage with a likelihood makes of captions, and of texts that it writes."""
    if data["modality"] == "text":
        names = (f"{name}_sample_gap", f"{name}_prompt_gain", "ngram_gap", "distinct")
        whole = "" if able.steps else "the stage does not write token by token"
        told = {**dict.fromkeys(names, ""), f"{name}_told_apart": whole}
        return told if alone and able.reads else {}
    return {f"{name}_caption_gain": "" if able.reads else "the stage reads no captions"}


def _heard(data: Mapping[str, Any], prompted: bool | None) -> dict[str, str]:
    """Return what the recogniser says of made sounds."""
    why = _unclassed(data) or _unprompted(prompted)
    names = ("recognised", "alignment", *(f"alignment_{name}" for name in data["attributes"]))
    return dict.fromkeys(names, why)


def _spoken(data: Mapping[str, Any], prompted: bool | None) -> dict[str, str]:
    """Return what the judge of speech says of what is spoken."""
    mute = "no stage reads texts" if prompted is False else ""
    open_ = "" if "text" in data["attributes"] else f"the texts of {data['name']} are no classes"
    words = dict.fromkeys(("recognised_words", "word_accuracy"), mute or open_)
    names = ("recognised_speakers", "speaker_accuracy", "relative_duration", "real_time_factor")
    return words | dict.fromkeys(names, mute)


def _unprompted(prompted: bool | None) -> str:
    return "the first stage reads no captions" if prompted is False else ""


def _unclassed(data: Mapping[str, Any]) -> str:
    return "" if data["attributes"] else f"the captions of {data['name']} are no classes"


def refusals(asked: Sequence[str], found: Mapping[str, str]) -> list[str]:
    """Return a line for each metric asked for that will not be measured."""
    from models import near

    lines = []
    for name in asked:
        if name not in found:
            known = sorted(one for one, why in found.items() if not why)
            lines.append(f"nobody measures {name!r}{near(name, known)}")
        elif found[name]:
            lines.append(f"{name} will not be measured: {found[name]}")
    return lines
