"""The contract between a generative family and everything that trains, judges or serves it.

Shape letters: B rows of a batch, N examples of a split, F frames, C channels, H and W pixels, P places of a grid of
codes, T places in time (words, tokens or sound samples), E numbers of an embedding, R voxels a side of a volume.
Pixels are in [0, 1] and sound in [-1, 1] at every public edge.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.ports import Port, Source
from models.request import NEUTRAL, UNTAKEN, Options, Prompt, Record, Request

Modality: TypeAlias = Literal["image", "audio", "text", "clip", "mesh"]

Batch: TypeAlias = Mapping[str, Tensor]
"""One row a sample in every tensor.

image: `pixels` (B, C, H, W) in [0, 1]; where training changed them by EDM's pipe, how, as `augmentation` (B, 9).
clip: `frames` (B, F, C, H, W) in [0, 1]; a family whose Config has no `frames` learns clips by their single frames, as
pictures. audio: `sound` (B, T) in [-1, 1] and `length` (B,) int64, after which there is silence; of speech, rows of
similar lengths, also `token_length` (B,) of the text's tokens and `speaker` (B,) int64. All: `tokens` (B, T)
int64 where captions are learned; `attributes` (B, A) int64, one column an attribute of the caption, where the dataset
names any. text: what the family's own `examples` made of the records.
"""

Columns: TypeAlias = Mapping[str, Any]
"""Records as tokens, in arrays that may lie on disk; slices of them are read. `tokens` (T,) has the texts one after the
other. `texts` (N + 1,) are the places where they begin, and the last's end; `records` (R + 1,) as much in `texts`."""

Rows: TypeAlias = dict[str, Tensor]
"""Samples under way: every tensor has one row a sample, so rows join and part by `cat` and index."""


class Examples(ABC):
    """Rows that a family learns from tokens."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many there are."""

    @abstractmethod
    def take(self, index_B: npt.NDArray[np.int64]) -> Batch:
        """Return chosen rows."""


@dataclass(frozen=True, slots=True)
class Losses:
    """One player's loss on some rows, perhaps a part of a step's batch: workers and accumulation share that.

    The whole batch's loss is the mean of its parts' totals, each weighed by its count. So is its gradient, which then
    does not depend on how the batch was shared.
    """

    total: Tensor  # a float32 scalar to minimise, a mean
    count: int | Tensor  # over how many that is a mean: rows or, if of unequal length, tokens
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # scalars to log beside it, means too
    seen: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # for `follow`, of a dimension at least


@dataclass(frozen=True, slots=True)
class Entry:
    """A further way to run a model beside its sampler: rows in, rows out, and nothing drawn."""

    inputs: Mapping[str, Port]  # a text comes as `tokens` of `encode`
    outputs: Mapping[str, Port]  # one
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a family that learns from the output must know, by the names of its Config's fields."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a model can do; endpoints, metrics, gates and contract tests are derived from it."""

    modality: Modality = "image"
    condition: Literal["none", "text"] = "none"
    unprompted: bool = (
        False  # of condition "text": without a prompt it draws from p(x), of all captions
    )
    likelihood: bool = False  # has log_prob
    upscales: bool = False  # its input `low` is a small picture
    stepwise: bool = (
        False  # has begin, step, done, preview, finish, steps_of; of text, can tell logprobs
    )
    chats: bool = False  # takes Request.dialogues
    embeds: bool = False  # has embed
    tokenizes: bool = False  # has codes and painted: a picture as a grid of discrete codes
    recalls: bool = (
        False  # has recalled: its text goes on from the prompt, whose tokens are likely, too
    )


class Trainable(nn.Module, ABC):
    """A network that the training loop can fit; `forward` is the loss, so that DDP hooks surround it.

    A model with several optimisers (a GAN) names them in `players`: the loop calls `forward` once a
    player and steps the optimiser over `player_parameters(player)`. One that has several `turns` at each
    step does so on one part of the batch after the other.

    A family that `counts` has no parameters: the loop shows every training row to `absorb` once a pass, adds up
    `sums` over the workers, puts what it `gathers` together and calls `settle`; `forward` only measures.
    """

    Config: ClassVar[type[Any]]  # a frozen dataclass that round-trips through JSON
    presets: ClassVar[Mapping[str, Any]]  # named Configs; always has "tiny"
    players: ClassVar[tuple[str, ...]] = ("model",)
    counts: ClassVar[bool] = False  # has sums, absorb, settle
    measures: ClassVar[tuple[str, ...]] = ()  # names that `measure` may give
    ranks: ClassVar[bool] = False  # embeds captions and pictures alike
    needs: ClassVar[tuple[str, ...]] = ()  # what a batch must have beside the data: "codes"
    gone: ClassVar[tuple[str, ...]] = ()  # fields of older versions' configs that mean nothing now
    brought: ClassVar[tuple[str, ...]] = ()  # fields that are the base's, where training has one
    implied: ClassVar[Mapping[str, Any]] = {}  # fields that older versions' configs do not have yet
    config: Any
    steps_taken: int = 0  # in training, before this step; who trains says it
    left_out: str = ""  # what the last `examples_of` could not use, counted and said in a sentence
    adapts: ClassVar[tuple[str, ...]] = ()  # linear layers that adapters may change, of any config
    lora: Any = None  # a LoRA of `parts.lora`, where it is an adapter's network
    adapter_place: Any = None  # a Place of `parts.adapter_rows`, where adapters share its steps
    lone: ClassVar[bool] = False  # `step` takes each row by itself: it has its bits in any batch
    call_sizes: tuple[int, ...] | None = None
    """Rows of a call of the network that were found to give a row equal bits, where `step` fills its calls up to one of
    them and so takes any batch; () as long as none were tried. None: a step's call is of the batch's size."""

    @abstractmethod
    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """Return `player`'s losses on one batch; randomness comes from torch's global generator.

        Nothing in it waits for the device: no path or shape depends on a tensor's values.
        """

    def survey(self, batch: Batch, player: str = "model") -> Batch:  # noqa: ARG002 - a mean over rows
        """Return what a loss that is no mean over rows must know of the others', without gradients.

        Where parts or workers share a step's batch, `forward` finds what all of them returned in its batch, joined
        along the first dimension, under the same names.
        """
        return {}

    def follow(self, seen: Mapping[str, Tensor], taken: Tensor) -> None:
        """Move buffers that are no parameters by a training step.

        Args:
            seen: what `Losses.seen` had, of all parts and workers, joined along the first dimension.
            taken: scalar 1., or 0. where the step was skipped because it was not finite; `seen` then is zeros.
        """

    def player_parameters(self, player: str) -> list[nn.Parameter]:  # noqa: ARG002 - one player
        """Return the parameters that `player`'s optimiser owns."""
        return list(self.parameters())

    def turns(self, player: str) -> int:  # noqa: ARG002 - every player has one
        """Return how many optimiser steps `player` takes at each step; 0 where this config has no such player."""
        return 1

    @property
    def sums(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the buffers that `absorb` adds to, one tuple a pass over the rows."""
        return ()

    @property
    def gathers(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of buffers that `absorb` adds rows to, as many as it likes, one tuple a pass over the rows.

        The loop puts those of all workers behind one another. What `settle` makes of them must not depend on who
        brought which, nor on their order.
        """
        return ((),) * len(self.sums)

    def absorb(self, batch: Batch, number: int = 0) -> None:
        """Add a batch's sufficient statistics to the sums of pass 0, 1, ..."""
        raise NotImplementedError(f"{type(self).__name__} does not count")

    def settle(self, number: int = 0) -> None:
        """Turn the sums, complete up to pass `number`, into what the model is made of."""
        raise NotImplementedError(f"{type(self).__name__} does not count")

    def start_from(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the first values of its own tensors, by their names, made of another trained stage's weights.

        Those of the same names, unless a family knows better: a network of clips that begins as one of pictures keeps
        what it drew by lot where that has nothing. It may run on no device, where only shapes are looked at.

        Raises:
            ValueError: these weights are of no such network.

        Example:
            >>> from models import configure, trainable
            >>> one, other = (trainable("vae")(configure("vae", "tiny", {}, {})) for _ in range(2))
            >>> other.start_from(one.state_dict()).keys() == one.state_dict().keys()
            True
        """
        own = self.state_dict()
        if odd := sorted(own.keys() ^ weights.keys()):
            where = "it lacks" if odd[0] in own else "it has besides"
            raise ValueError(f"{where} {odd[0]} and {len(odd) - 1} more")
        return weights

    def encode(self, captions: Sequence[str]) -> Tensor | None:
        """Return captions as `tokens` (B, T) int64, 0 after the last word; None for a model that learns none.

        By its Config's `encode`, which it has from `words.Captioned` or `classes.Classed` of `parts`.

        Raises:
            ValueError: a caption is empty, longer than max_words or has a word never learned.

        Example:
            >>> from models import build
            >>> model = build({"family": "pixelcnn", "config": {"vocabulary": ["red", "dot"], "max_words": 3}})
            >>> model.encode(["Red dot!"]).tolist()
            [[1, 2, 0]]
        """
        config = self.config
        tokens_BT: Tensor | None = config.encode(captions) if hasattr(config, "encode") else None
        return tokens_BT

    @property
    def reads(self) -> str:
        """Return what names the tokens of `tokenized`: others, by another tokenizer or of other texts, have another."""
        raise NotImplementedError(f"{type(self).__name__} learns no text")

    def tokenized(self, records: Sequence[Record]) -> Columns:
        """Return the tokens of text records; those of a split are kept, so this is called once for each record.

        Raises:
            ValueError: the records have other roles than the family learns from.
        """
        raise NotImplementedError(f"{type(self).__name__} learns no text")

    def examples_of(self, columns: Columns) -> Examples:
        """Return what is learned from such tokens: N rows, each made when it is asked for.

        N is the family's own affair: windows of a long text, pairs of neighbouring sentences, a row a dialogue.

        Raises:
            ValueError: nothing fits its context.
        """
        raise NotImplementedError(f"{type(self).__name__} learns no text")

    def examples(self, records: Sequence[Record]) -> Batch:
        """Return all rows that are learned from these records.

        Raises:
            ValueError: the records have other roles than the family learns from, or nothing fits its context.

        Example:
            >>> from models import configure, trainable
            >>> model = trainable("gpt")(configure("gpt", "tiny", {"context": 4}, {}))
            >>> model.examples([[("text", "a cat")]])["tokens"].shape
            torch.Size([2, 5])
        """
        found = self.examples_of(self.tokenized(records))
        return found.take(np.arange(len(found)))


class Family(Trainable):
    """A trainable sampler."""

    Options: ClassVar[type[Any]] = Options  # what a caller may say of how it draws

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Return what this model, with this config, can do."""

    @abstractmethod
    def sample(self, request: Request) -> Tensor:
        """Return samples, a row a seed; a seed gives its sample alone or in a batch.

        image: (B, C, H, W) in [0, 1]. clip: (B, F, C, H, W) in [0, 1]. audio: (B, T) in [-1, 1], at
        `config.sample_rate`. text: (B, T) int64, the tokens that were written, -1 from the end of each row's text on.
        mesh: (B, 4, R, R, R) in [0, 1], a colour and an opacity a voxel, as `text_to_3d.volumes` lays them out.

        Raises:
            ValueError: the request cannot be answered. Where a field other than the prompt is why, the message begins
                with its name.

        Example:
            >>> from models import configure, trainable
            >>> model = trainable("vae")(configure("vae", "tiny", {}, {}))
            >>> model.sample(Request(seeds=(7, 8))).shape
            torch.Size([2, 1, 8, 8])
        """

    def ready(self) -> Self:
        """Return it as samples are drawn: in evaluation mode, its filters in the order of the features they meet.

        A convolution copies filters of another order at every call, which is a fifth of a U-Net's time of few rows.
        """
        laid = (part for part in self.modules() if getattr(part, "channels_last", False))
        for parameter in (one for part in laid for one in part.parameters() if one.ndim == 4):
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return self.eval()

    @property
    def inputs(self) -> Mapping[str, Port]:
        """Return what it draws from, by name, beside seeds: a text where it reads any."""
        able = self.capabilities
        return {"text": Port("text", optional=able.unprompted)} if able.condition == "text" else {}

    def given_of(self, batch: Batch) -> dict[str, Tensor]:
        """Return inputs, beside texts, that stand for a batch's real samples: what it can be tried on.

        Example:
            >>> from models import configure, trainable
            >>> model = trainable("ddpm")(configure("ddpm", "tiny", {"low_size": 4}, {}))
            >>> model.given_of({"pixels": torch.zeros(2, 3, 8, 8)})["low"].shape
            torch.Size([2, 3, 4, 4])
        """
        return {name: batch[name] for name in self.needs if name in self.inputs}

    @property
    def outputs(self) -> Mapping[str, Port]:
        """Return what it gives, by name."""
        kind, c = self.capabilities.modality, self.config
        if kind == "image":
            return {"pixels": Port("pixels", (c.channels, c.image_size, c.image_size))}
        if kind == "clip":
            size = (c.frames, c.channels, c.image_size, c.image_size)
            return {"frames": Port("clip", size)}
        if kind == "mesh":
            return {"volume": Port("volume", (4, c.resolution, c.resolution, c.resolution))}
        if kind == "audio":
            return {"sound": Port("sound", (None,), space=f"{c.sample_rate} Hz")}
        return {"text": Port("text")}

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Return further ways to run it, by name: to `encode` a picture, to `decode` it.

        Example:
            >>> from models import configure, trainable
            >>> model = trainable("vqvae")(configure("vqvae", "tiny", {}, {}))
            >>> {name: str(entry.outputs.popitem()[1])[:8] for name, entry in model.entries.items()}
            {'encode': 'codes 16', 'decode': 'pixels 1'}
        """
        return {}

    def enter(self, entry: str, given: Mapping[str, Tensor]) -> Tensor:
        """Return what one of the `entries` makes of its inputs, a row a row."""
        raise NotImplementedError(f"{type(self).__name__} has no entry {entry!r}")

    @property
    def takes(self) -> tuple[str, ...]:
        """Return the names of its options: guidance is by what it reads, and one token after the other has logprobs."""
        able = self.capabilities
        read = {port.kind for port in self.inputs.values()}
        useless = {"guidance": not read & {"text", "embedding"}, "logprobs": not able.stepwise}
        useless["size"] = not getattr(self.config, "sizes", ())
        useless["negative_prompt"] = "text" not in read
        return tuple(one.name for one in fields(self.Options) if not useless.get(one.name))

    def check(self, request: Request) -> None:
        """Refuse what the model has no use for, and what it cannot do without; every sampler begins with it.

        A model that reads text wants a prompt a seed. Without one it draws from p(x), of all captions, where it is
        `unprompted`, and is not guided.

        Raises:
            ValueError: begins with the field's name, unless the prompt is missing.
        """
        for line in self.useless(request.options):
            raise ValueError(line)
        self._check_texts(request)
        self._check_given(request.given)

    def _check_texts(self, request: Request) -> None:
        able = self.capabilities
        reads, writes = able.condition == "text", able.modality == "text"
        may = {
            "prompts": reads,
            "prompt_tokens": reads and writes and not able.chats,
            "dialogues": able.chats,
        }
        for name, reading in may.items():
            if (value := getattr(request, name)) and not reading:
                raise ValueError(_useless(name, value))
        asked = request.texts or request.dialogues
        if reads and not able.unprompted and not asked:
            raise ValueError("this model makes what a prompt asks for: give one prompt a seed")
        guidance = request.options.get("guidance")
        guided = asked or "embedding" in {port.kind for port in self.inputs.values()}
        if "guidance" in self.takes and not guided and guidance not in {None, 0, 1}:
            raise ValueError(f"guidance: there is no prompt; leave it out, got {guidance}")

    def _check_given(self, given: Mapping[str, Tensor]) -> None:
        ports = {name: port for name, port in self.inputs.items() if port.kind != "text"}
        if odd := given.keys() - ports.keys():
            raise ValueError(f"{min(odd)}: this model takes no such input; leave it out")
        for name, port in ports.items():
            found = tuple(given[name].shape[1:]) if name in given else None
            if found is None and not port.optional:
                raise ValueError(f"{name}: this model needs {port}, got none")
            if found is not None and not port.takes(Port(port.kind, found, port.space)):
                got = "x".join(map(str, found))
                raise ValueError(f"{name}: this model takes {port}, got {got}")

    def sources(self, request: Request) -> Sequence[Sequence[Source]]:
        """Return what each sample of a request is made of, where it is parts of training rows; a list a seed.

        A family that draws its samples has none.
        """
        return [[] for _ in request.seeds]

    def useless(self, asked: Mapping[str, Any]) -> list[str]:
        """Return why it has no use for options, by name; values that ask for nothing are no reason."""
        takes = self.takes
        return [
            _useless(name, value)
            for name, value in asked.items()
            if name not in takes and value is not None and value != NEUTRAL.get(name)
        ]

    def tokens_of(self, batch: Batch) -> Tensor | None:
        """Return the batch's `tokens` where captions are learned, else None.

        Raises:
            ValueError: there are none.
        """
        if self.capabilities.condition == "none":
            return None
        if "tokens" not in batch:
            raise ValueError("this model learned p(x | caption): the batch needs tokens")
        return batch["tokens"]

    def drawing(self, request: Request) -> Iterator[Tensor | None]:
        """Yield None after each part of the work that `sample` is, so that others come between; then the samples."""
        yield self.sample(request)

    def steps_of(self, request: Request) -> int:  # noqa: ARG002 - in one go, or until the text ends
        """Return how many steps, or parts of a `drawing`, a row of this request takes at the least."""
        return 1

    def text_of(self, tokens_T: Tensor, prompt: Prompt = "") -> str:
        """Return the text that the tokens of a sample stand for, control tokens left out.

        Of a family that goes on from its prompt, the two put together are the whole text.
        """
        raise NotImplementedError(f"{type(self).__name__} writes no text")

    @property
    def readable(self) -> str:
        """Return a text that it can read, where it reads any: a word that it learned, or a letter."""
        known: Sequence[str] = getattr(self.config, "vocabulary", ())
        return known[0] if known else "a"

    def unknown(self, text: str) -> list[str]:
        """Return the words or characters of a prompt that it never learned, each once."""
        from models.parts import tokens, words  # they know this contract

        if self.capabilities.modality == "text":
            return tokens.tokenizer(self.config.tokenizer).unknown(text)
        known = getattr(self.config, "vocabulary", ())
        return words.unknown(text, known) if known else []

    def hint(self, word: str) -> str:
        """Return what an unknown word could have meant, to be put behind it; empty where nothing is near."""
        from models.parts import tokens, words

        if self.capabilities.modality == "text":
            return tokens.tokenizer(self.config.tokenizer).hint(word)
        return words.hint(word, self.config.vocabulary)

    def embed(self, texts: Sequence[Prompt]) -> Tensor:
        """Return an embedding a text, (B, E); where `embeds` is declared.

        Example:
            >>> from models import configure, trainable
            >>> model = trainable("bert")(configure("bert", "tiny", {}, {})).eval()
            >>> model.embed(["a cat sat", "a dog ran"]).shape
            torch.Size([2, 16])
        """
        raise NotImplementedError(f"{type(self).__name__} declares no embeddings")

    def codes(self, pixels: Tensor) -> Tensor:
        """Return the codes of pictures, (B, P) int64 in 0..config.codes - 1; where `tokenizes` is declared.

        P places of the grid in raster order, each the one code that a stage which learns from codes would see.

        Example:
            >>> from models import configure, trainable
            >>> model = trainable("vqvae")(configure("vqvae", "tiny", {}, {})).eval()
            >>> codes = model.codes(torch.rand(2, 1, 8, 8))
            >>> codes.shape, model.painted(codes).shape
            (torch.Size([2, 16]), torch.Size([2, 1, 8, 8]))
        """
        raise NotImplementedError(f"{type(self).__name__} declares no codes")

    def painted(self, index_BP: Tensor) -> Tensor:
        """Return the pictures (B, C, H, W) in [0, 1] that codes stand for; where `tokenizes` is declared."""
        raise NotImplementedError(f"{type(self).__name__} declares no codes")

    def recalled(self, prompt: Prompt) -> Rows:
        """Return how likely the tokens of a prompt are, from one pass; where `recalls` is declared.

        `tokens` (T,), log p of each given those before it in nats as `nats` (T,), and the likeliest in its place as
        `likeliest` and `likeliest_nats` (T, K).

        Raises:
            ValueError: the prompt is too long, or has tokens that the model does not know.

        Example:
            >>> from models import configure, trainable
            >>> model = trainable("gpt")(configure("gpt", "tiny", {}, {})).eval()
            >>> model.recalled("a cat")["nats"].shape
            torch.Size([5])
        """
        raise NotImplementedError(f"{type(self).__name__} declares no recall of prompts")

    def log_prob(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return log p(x), or its lower bound, in nats a sample (B,); where `likelihood` is declared.

        What is drawn for it (bits of grey levels, a code) comes from `generator`, on the model's device, or from
        torch's global one.

        Raises:
            ValueError: the model learned p(x | caption) and the batch has no `tokens`.

        Example:
            >>> from models import configure, trainable
            >>> model = trainable("nade")(configure("nade", "tiny", {}, {}))
            >>> nats = model.log_prob({"pixels": torch.zeros(2, 1, 8, 8)})
            >>> nats.shape, bool((nats < 0).all())
            (torch.Size([2]), True)
        """
        raise NotImplementedError(f"{type(self).__name__} declares no likelihood")

    def rating(
        self, batch: Batch, generator: torch.Generator | None = None
    ) -> Iterator[Tensor | None]:
        """Yield None after each part of the work that `log_prob` is; then what it returns."""
        yield self.log_prob(batch, generator)

    def measure(self, batch: Batch) -> Mapping[str, Tensor]:  # noqa: ARG002 - nothing of its own
        """Return what the model itself can tell of samples that it never learned, beside the judge's metrics.

        Values (N,) by name, of `measured`; evaluation reports their mean as STAGE_NAME, and a gate may ask for it.
        What is right or wrong is told as booleans: a share's interval keeps its width where all rows agree.
        What is no mean of rows is told as what each row contributes, by `parts.influence`: its interval is over rows.

        Example:
            >>> from models import configure, trainable
            >>> model = trainable("wavenet")(configure("wavenet", "tiny", {}, {}))
            >>> list(model.measure({"sound": torch.zeros(2, 100)}))
            ['bits_per_sample']
        """
        return {}

    @property
    def measured(self) -> tuple[str, ...]:
        """Return the names that `measure` gives with this config."""
        return self.measures


def _useless(name: str, value: Any) -> str:
    return (
        f"{name}: {UNTAKEN.get(name, 'this model has none')}; leave it out, got {str(value)[:40]}"
    )


def mixed(value: int) -> int:
    """Return a 63-bit hash of an integer: the finaliser of splitmix64 (Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return (value ^ (value >> 31)) >> 1


def heard(seed: int) -> int:
    """Return a seed for torch's generators, which keep 32 bits of one: itself, or the hash of a longer one."""
    return seed if 0 <= seed < 2**32 else mixed(seed)
