"""What a pipeline version can be asked for, in words and as /v1/models says it."""

from collections.abc import Mapping
from typing import Any, Final

from infra.pipelines import Ability, Pipeline

SAYS: Final[Mapping[Ability, str]] = {
    "images": "pictures at /v1/images/generations",
    "edits": "changed pictures at /v1/images/edits",
    "blends": "blends of two prompts at /v1/images/generations",
    "variations": "variations of pictures at /v1/images/variations",
    "videos": "clips at /v1/videos",
    "animations": "clips of a picture at /v1/videos",
    "alterations": "changed clips at /v1/videos/edits",
    "extensions": "longer clips at /v1/videos/extensions",
    "meshes": "meshes at /v1/meshes",
    "speech": "sound at /v1/audio/speech",
    "completions": "text at /v1/completions",
    "chat": "chat at /v1/chat/completions",
    "embeddings": "embeddings at /v1/embeddings",
    "scores": "likelihoods at /v1/scores",
    "samples": "samples at /v1/samples",
}
CAPABILITIES: Final[Mapping[Ability, str]] = {
    "images": "image_generation",
    "edits": "image_edits",
    "variations": "image_variations",
    "blends": "image_blends",
    "videos": "video_generation",
    "animations": "video_animation",
    "alterations": "video_edits",
    "extensions": "video_extensions",
    "meshes": "mesh_generation",
    "speech": "audio_speech",
    "completions": "completions",
    "chat": "chat_completions",
    "embeddings": "embeddings",
    "scores": "scores",
    "samples": "samples",
}
"""Names in the model's card, by ability."""


def card(pipeline: Pipeline) -> dict[str, Any]:
    """Return what /v1/models says of it."""
    options = pipeline.lead.options
    found: dict[str, Any] = {
        "modality": pipeline.modality,
        "capabilities": [CAPABILITIES[one] for one in pipeline.able],
        "abilities": list(pipeline.able),
        "reads_text": pipeline.reads_text,
        "steps": options.get("steps"),
        "guidance": options.get("guidance"),
        "stages": [stage.pin.ref for stage in pipeline.stages],
        "try_prompts": list(pipeline.try_prompts),
        "adapts": pipeline.base.ref if pipeline.base else None,
    }
    if pipeline.modality in {"image", "clip"}:
        found["size"] = pipeline.size
    if pipeline.modality == "image":
        found["sizes"] = list(pipeline.sizes or (pipeline.size,))
    if pipeline.modality == "clip":
        found |= {"frames": pipeline.frames, "frame_rate": pipeline.rate({})}
        found["seconds"] = pipeline.seconds({})
    if pipeline.modality == "mesh":
        found["resolution"] = pipeline.resolution
    if pipeline.modality == "audio":
        found["sample_rate"] = pipeline.sample_rate
        found["seconds"] = options.get("seconds")
        found["response_formats"] = ["mp3", "opus", "aac", "flac", "wav", "pcm"]
    if pipeline.modality == "embedding":
        found["embeds"] = sorted({"text", "pixels"} & {*pipeline.lead.entries})
    if pipeline.modality == "text":
        found["max_tokens"] = options.get("max_tokens")
        found["temperature"] = options.get("temperature")
        found["tokenizer"] = pipeline.tokenizer and pipeline.tokenizer.model_dump()
    return found
