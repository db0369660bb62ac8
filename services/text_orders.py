"""The bodies of POST /v1/completions and /v1/chat/completions, in OpenAI's words; `top_k` is ours."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from services.orders import LARGEST_SEED, Label, Order, plain_text
from services.work import Dialogue

LONGEST_TEXT: Final = 65_536  # characters of a prompt, or of a dialogue's turns together
MOST_PROMPTS: Final = 32
MOST_ROWS: Final = 64  # prompts times n
MOST_TURNS: Final = 256
LONGEST_STOP: Final = 200  # characters
COMPLETION_TOKENS: Final = 16  # where neither request nor pipeline says, as OpenAI has it
ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def _texts(value: Any) -> Any:
    """Return a text or a list of texts as a tuple; lists of token ids are not taken."""
    many = [value] if isinstance(value, str) else value
    if not isinstance(many, list) or not all(isinstance(one, str) for one in many):
        raise ValueError("send a string or a list of strings; token ids are not taken")
    if not 1 <= len(many) <= MOST_PROMPTS:
        raise ValueError(f"send 1 to {MOST_PROMPTS} prompts, got {len(many)}")
    for one in many:
        if len(one) > LONGEST_TEXT:
            raise ValueError(f"a prompt has at most {LONGEST_TEXT} characters, got {len(one)}")
        plain_text(one)
    return tuple(many)


def _stops(value: Any) -> Any:
    many = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(many, list) or not all(isinstance(one, str) for one in many):
        raise ValueError("send a string or a list of strings")
    if len(many) > 4:
        raise ValueError(f"at most 4 stop strings, got {len(many)}")
    if any(not 1 <= len(one) <= LONGEST_STOP for one in many):
        raise ValueError(f"a stop string has 1 to {LONGEST_STOP} characters")
    return tuple(many)


def _nothing(value: Any) -> None:
    """Refuse what would change the answer and is not done here; values that ask for nothing are taken."""
    if value not in (None, False, "", [], {}, 0, "none"):
        raise ValueError("this server does not do it; leave it out")


Zero = Annotated[float, Field(ge=0, le=0)]  # penalties: there are none
Nothing = Annotated[None, BeforeValidator(_nothing)]


class StreamOptions(BaseModel):
    """What a stream says beside the text."""

    include_usage: bool | None = False


class TextOrder(Order):
    """What both kinds of request have."""

    n: Annotated[int, Field(ge=1, le=16)] | None = 1
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None  # None: the pipeline's
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_stops)] = ()
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None = None  # choice i has seed + i
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    # Taken where they change nothing: there are no penalties, biases, tiers or tools.
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Nothing = None
    logprobs: Nothing = None
    user: Label | None = None
    safety_identifier: Label | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: it needs stream: true")
        return self

    @property
    def usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class CompletionOrder(TextOrder):
    """A request for text that goes on from a prompt."""

    prompt: Annotated[tuple[str, ...], BeforeValidator(_texts)]
    echo: bool | None = False
    best_of: Annotated[int, Field(ge=1, le=16)] | None = None
    suffix: Nothing = None

    @model_validator(mode="after")
    def _few(self) -> Self:
        if len(self.prompt) * self.count > MOST_ROWS:
            raise ValueError(
                f"n: prompts times n is at most {MOST_ROWS}, got {len(self.prompt)} x {self.count}"
            )
        if self.best_of not in {None, self.count}:
            raise ValueError(
                f"best_of: no answers are thrown away; leave it out, got {self.best_of}"
            )
        return self

    @property
    def session(self) -> str:
        """Whose request it is: the user, else the first prompt."""
        return self.user or self.safety_identifier or self.prompt[0]


class Message(BaseModel):
    """A turn of a dialogue; its text may come in parts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]
    name: Label | None = None

    @property
    def turn(self) -> tuple[str, str]:
        """(role, text)."""
        if isinstance(self.content, str):
            return ROLES[self.role], plain_text(self.content)
        texts = []
        for part in self.content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError('a message has a string or parts {"type": "text", "text": ...}')
            texts.append(part["text"])
        return ROLES[self.role], plain_text("".join(texts))


class ChatOrder(TextOrder):
    """A request for the next turn of a dialogue."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_TURNS)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    top_logprobs: Nothing = None
    tools: Nothing = None
    tool_choice: Nothing = None
    functions: Nothing = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _a_dialogue(self) -> Self:
        if self.response_format not in (None, {"type": "text"}):
            raise ValueError('response_format: only {"type": "text"} is given')
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("give max_tokens or max_completion_tokens, not both")
        if sum(len(text) for _, text in self.dialogue) > LONGEST_TEXT:
            raise ValueError(f"messages: together they have at most {LONGEST_TEXT} characters")
        if self.messages[-1].role != "user":
            raise ValueError(f"messages: the last one is a user's, got {self.messages[-1].role}'s")
        return self

    @property
    def dialogue(self) -> Dialogue:
        """The turns, as families take them."""
        return tuple(message.turn for message in self.messages)

    @property
    def session(self) -> str:
        """Whose request it is: the user, else how the dialogue began."""
        return self.user or self.safety_identifier or self.dialogue[0][1]
