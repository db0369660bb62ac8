"""The bodies of answers, as /v1/openapi.json shows them in OpenAI's words; `seed` and `receipt` are ours."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from infra.pipelines import Modality, Tokenizer
from infra.receipts.receipts import Receipt


class Body(BaseModel):
    """A body, or a part of one, in which every field is known."""

    model_config = ConfigDict(extra="forbid")


class Failure(Body):
    """What is wrong, and where."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class Error(Body):
    """Every answer that is none."""

    error: Failure


class Health(Body):
    """That the process answers."""

    status: Literal["ok"]


class Model(Body):
    """A model: what answers to its name now and what that can do. Null or left out: it has no meaning here."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    version: str
    root: str
    digest: str
    alias: str | None
    adapts: str | None
    modality: Modality
    capabilities: list[str]
    abilities: list[str]
    reads_text: bool
    steps: int | None
    guidance: float | None
    stages: list[str]
    try_prompts: list[str]
    size: str | None = None
    sizes: list[str] | None = None  # that may be asked for
    frames: int | None = None
    frame_rate: float | None = None
    resolution: int | None = None  # voxels a side, of what a mesh is cut from
    sample_rate: int | None = None
    seconds: float | None = None
    response_formats: list[str] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    tokenizer: Tokenizer | None = None
    embeds: list[str] | None = None  # "text", "pixels"


class Models(Body):
    """What is served."""

    object: Literal["list"]
    data: list[Model]


class Voice(Body):
    """One voice of a model."""

    id: str
    name: str
    object: Literal["voice"]
    model: str


class Voices(Body):
    """In whose voices models speak."""

    object: Literal["list"]
    data: list[Voice]


class Picture(Body):
    """A picture with its receipt inside."""

    seed: int
    b64_json: str | None = None
    url: str | None = None


class Pictures(Body):
    """Pictures, by their seeds."""

    created: int
    model: str
    size: str
    quality: str
    background: str
    output_format: str
    data: list[Picture]
    warnings: list[str] | None = None  # what of the request was not read


class Usage(Body):
    """Tokens, control tokens apart."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Likely(Body):
    """A token and log p of it in nats; `bytes` is null where its text is half of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class SaidToken(Likely):
    """A token of a chat turn, and the likeliest in its place."""

    top_logprobs: list[Likely]


class SaidLogprobs(Body):
    """How likely a chat turn's tokens were."""

    content: list[SaidToken]
    refusal: None


class WrittenLogprobs(Body):
    """How likely a completion's tokens were; null of a prompt's first token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(Body):
    """What both kinds of text have."""

    index: int
    finish_reason: Literal["stop", "length"]
    seed: int
    receipt: Receipt


class WrittenChoice(Choice):
    """A completion."""

    text: str
    logprobs: WrittenLogprobs | None


class Said(Body):
    """A chat turn's message."""

    role: Literal["assistant"]
    content: str
    refusal: None


class SaidChoice(Choice):
    """A chat turn."""

    message: Said
    logprobs: SaidLogprobs | None


class Written(Body):
    """What both kinds of answer have."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage
    warnings: list[str] | None = None  # what of the request was not read


class Completion(Written):
    """Completions."""

    object: Literal["text_completion"]
    choices: list[WrittenChoice]


class ChatCompletion(Written):
    """Chat turns."""

    object: Literal["chat.completion"]
    choices: list[SaidChoice]


class Sample(Body):
    """A sample of anything: a PNG or WAV in base64, or a text."""

    object: Literal["sample"]
    index: int
    seed: int
    content_type: str
    b64: str | None = None
    text: str | None = None
    finish_reason: Literal["stop", "length"] | None = None
    receipt: Receipt | None = None


class SampleList(Body):
    """Samples, by their seeds."""

    object: Literal["list"]
    created: int
    model: str
    modality: Modality
    data: list[Sample]
    warnings: list[str] | None = None  # what of the request was not read


class Embedding(Body):
    """A vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Body):
    """Tokens, control tokens apart."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Body):
    """A vector an input."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
    warnings: list[str] | None = None  # what of the request was not read


class Score(Body):
    """log p of an input in nats, null where it is minus infinity, and of how many numbers it is."""

    object: Literal["score"]
    index: int
    nats: float | None
    bits_per_dim: float | None = None  # of a picture
    dimensions: int | None = None  # of a picture
    samples: int | None = None  # of a sound
    tokens: int | None = None  # of a text
    warnings: list[str] | None = None  # what of the request was not read


class Scores(Body):
    """A likelihood an input."""

    object: Literal["list"]
    model: str
    data: list[Score]


class ProvenanceResult(BaseModel):
    """What one kind of signal says of a file; OpenAI's own are not looked for."""

    type: Literal["atelier_receipt", "c2pa", "synthid"]
    outcome: Literal["detected", "not_detected"]
    validation_state: Literal["trusted", "valid", "invalid", "not_present"] | None = None
    issuer: str | None
    model: str | None
    generated_at: str | None
    says: str | None = None


class Provenance(Body):
    """What a file carries of where it came from."""

    object: Literal["content_provenance_check"]
    created_at: int
    results: list[ProvenanceResult]


class ReadinessReport(Body):
    """Whether stages and ledger answer and, of the digests that were asked for, why they are not loaded."""

    status: Literal["ready", "not ready"]
    ledger: bool
    stages: bool
    missing: dict[str, str] | None = None


def listing(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """Return a part of a list as OpenAI's clients page through it."""
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    body = {"first_id": ends[0], "last_id": ends[1], "has_more": has_more}
    return {"object": "list", "data": data, **body}
