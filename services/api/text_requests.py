"""The bodies of POST /v1/completions and /v1/chat/completions, in OpenAI's words; `top_k` is ours."""

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic.json_schema import JsonSchemaValue

from services.api.requests import (
    LARGEST_TOKEN,
    Absent,
    Label,
    Order,
    TopK,
    apart,
    needs_stream,
    plain_text,
)
from services.pipelines.payload import Dialogue, Prompt

LONGEST_TEXT: Final = 65_536  # characters of a prompt, or of a dialogue's turns together; or tokens
MOST_PROMPTS: Final = 128
MOST_ROWS: Final = 128  # prompts times n
MOST_TURNS: Final = 256
MOST_LIKELIEST: Final = 20  # tokens in a token's place
LONGEST_STOP: Final = 200  # characters
COMPLETION_TOKENS: Final = 16  # where neither request nor pipeline says, as OpenAI has it
ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def prompts(most: int, least: int) -> Callable[[Any], tuple[Prompt, ...]]:
    """Return a validator: a text, a list of texts, a list of tokens or a list of such lists, as texts or tokens.

    Args:
        most: how many texts there may be.
        least: how many characters a text must have; tokens are one at least.
    """

    def check(value: Any) -> tuple[Prompt, ...]:
        many = value if isinstance(value, list) else [value]
        if many and all(type(one) is int for one in many):
            many = [many]  # tokens of one text
        if len({type(one) for one in many}) > 1:
            raise ValueError("send texts or tokens, not both")
        if not 1 <= len(many) <= most:
            raise ValueError(f"send 1 to {most} texts, got {len(many)}")
        return tuple(_prompt(one, least) for one in many)

    return check


def _prompt(one: Any, least: int) -> Prompt:
    if isinstance(one, str):
        if not least <= len(one) <= LONGEST_TEXT:
            raise ValueError(f"a text has {least} to {LONGEST_TEXT} characters, got {len(one)}")
        return plain_text(one)
    if not isinstance(one, list) or not all(type(token) is int for token in one):
        raise ValueError("send a string, a list of strings, or tokens as whole numbers")
    if not 1 <= len(one) <= LONGEST_TEXT:
        raise ValueError(f"a text has 1 to {LONGEST_TEXT} tokens, got {len(one)}")
    odd = next((token for token in one if not 0 <= token <= LARGEST_TOKEN), None)
    if odd is not None:
        raise ValueError(f"a token is in 0..{LARGEST_TOKEN}, got {odd}")
    return tuple(one)


def prompts_schema(most: int, least: int) -> JsonSchemaValue:
    """Return the JSON schema of what `prompts` takes."""
    text = {"type": "string", "minLength": least, "maxLength": LONGEST_TEXT}
    token = {"type": "integer", "minimum": 0, "maximum": LARGEST_TOKEN}
    tokens = {"type": "array", "minItems": 1, "maxItems": LONGEST_TEXT, "items": token}
    several = {"type": "array", "minItems": 1, "maxItems": most}
    return {"anyOf": [text, {**several, "items": text}, tokens, {**several, "items": tokens}]}


def _stops(value: Any) -> tuple[str, ...]:
    many = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(many, list) or not all(isinstance(one, str) for one in many):
        raise ValueError("send a string or a list of strings")
    if len(many) > 4:
        raise ValueError(f"at most 4 stop strings, got {len(many)}")
    if any(not 1 <= len(one) <= LONGEST_STOP for one in many):
        raise ValueError(f"a stop string has 1 to {LONGEST_STOP} characters")
    return tuple(plain_text(one) for one in many)


STOP: Final = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
Stops = Annotated[
    tuple[str, ...],
    PlainValidator(_stops),
    WithJsonSchema(
        {"anyOf": [STOP, {"type": "array", "maxItems": 4, "items": STOP}, {"type": "null"}]}
    ),
]
Penalty = Annotated[None, Absent("penalties", (0,))]


class StreamOptions(BaseModel):
    """What a stream says beside the text; other options than these change nothing here."""

    include_usage: bool | None = False


class TextOrder(Order):
    """What both kinds of request have."""

    model_config = ConfigDict(
        json_schema_extra={"allOf": [needs_stream("stream_options", {"not": {"type": "null"}})]}
    )

    n: Annotated[int, Field(ge=1, le=MOST_ROWS)] | None = 1
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None  # None: the pipeline's
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: TopK | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    stop: Stops = ()
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    # Taken where they change nothing: there are no penalties, biases or tiers.
    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    logit_bias: Annotated[None, Absent("logit biases", ({},))] = None
    user: Label | None = None
    safety_identifier: Label | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: Label | None = None
    prompt_cache_key: Label | None = None

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: it needs stream: true")
        return self

    @property
    def usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class CompletionOrder(TextOrder):
    """A request for text that goes on from a prompt."""

    prompt: Annotated[
        tuple[Prompt, ...],
        PlainValidator(lambda value: prompts(MOST_PROMPTS, 0)("" if value is None else value)),
        WithJsonSchema({"anyOf": [*prompts_schema(MOST_PROMPTS, 0)["anyOf"], {"type": "null"}]}),
    ]
    max_tokens: Annotated[int, Field(ge=0, le=2**20)] | None = None  # 0: the prompt alone
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELIEST)] | None = None  # 0: no others beside
    best_of: Annotated[int, Field(ge=1, le=MOST_ROWS)] | None = None
    suffix: Annotated[None, Absent("suffixes", ("",))] = None

    @property
    def session(self) -> str:
        """Whose request it is: the user, else the first prompt."""
        return self.user or self.safety_identifier or str(self.prompt[0])


def _content(value: Any) -> str:
    """Return a message's text, which may come in parts; nothing, as of an assistant that called a tool, is none."""
    if value is None:
        return ""
    if isinstance(value, str):
        return plain_text(value)
    if not isinstance(value, list):
        raise ValueError('a message has a string or parts {"type": "text", "text": ...}')
    texts = []
    for part in value:
        known = isinstance(part, dict) and part.get("type") == "text"
        if not known or not isinstance(part.get("text"), str):
            raise ValueError('only parts {"type": "text", "text": ...} are read here')
        texts.append(plain_text(part["text"]))
    return "".join(texts)


PART: Final = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
Content = Annotated[
    str,
    PlainValidator(_content),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": PART}, {"type": "null"}]}
    ),
]


class Message(BaseModel):
    """A turn of a dialogue. An assistant's may come without content, and the last one is gone on with."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = ""
    name: Label | None = None
    tool_calls: Annotated[None, Absent("tools", ([],))] = None
    function_call: Annotated[None, Absent("functions")] = None

    @property
    def turn(self) -> tuple[str, str]:
        """(role, text)."""
        return ROLES[self.role], self.content


class ChatOrder(TextOrder):
    """A request for the next turn of a dialogue."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                needs_stream("stream_options", {"not": {"type": "null"}}),
                apart("max_tokens", "max_completion_tokens"),
                {
                    "if": {
                        "required": ["top_logprobs"],
                        "properties": {"top_logprobs": {"type": "integer"}},
                    },
                    "then": {"required": ["logprobs"], "properties": {"logprobs": {"const": True}}},
                },
            ]
        }
    )

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_TURNS)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELIEST)] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None

    # Taken where they change nothing: there are no tools, formats, predictions or thoughts.
    tools: Annotated[None, Absent("tools", ([],))] = None
    tool_choice: Annotated[None, Absent("tools", ("auto", "none"))] = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[None, Absent("functions", ([],))] = None
    function_call: Annotated[None, Absent("functions", ("auto", "none"))] = None
    response_format: Annotated[
        None, Absent("formats but text (no json_schema, no json_object)", ({"type": "text"},))
    ] = None
    audio: Annotated[None, Absent("sounds in chats")] = None
    prediction: Annotated[None, Absent("predicted outputs")] = None
    web_search_options: Annotated[None, Absent("web searches")] = None
    reasoning_effort: Label | None = None
    verbosity: Label | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens: give max_tokens or max_completion_tokens, not both")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: it needs logprobs: true")
        if sum(len(text) for _, text in self.dialogue) > LONGEST_TEXT:
            raise ValueError(f"messages: together they have at most {LONGEST_TEXT} characters")
        return self

    @property
    def dialogue(self) -> Dialogue:
        """The turns, as families take them."""
        return tuple(message.turn for message in self.messages)

    @property
    def session(self) -> str:
        """Whose request it is: the user, else how the dialogue began."""
        return self.user or self.safety_identifier or self.dialogue[0][1]
