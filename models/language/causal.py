"""Language models of others, as Hugging Face's transformers has them: GPT-2, Llama, Mistral and Qwen2.

Radford et al. 2019; Touvron et al. 2023, arXiv:2302.13971; Jiang et al. 2023, arXiv:2310.06825; Yang et al. 2024,
arXiv:2407.10671. The layers are transformers' own, built from the checkpoint's config. All else (windows, likelihoods,
rows that write together) is GPT's: our control tokens stand before the checkpoint's tokens, whose numbers are moved up
by as many. `<eos>` is what it ends a text with or, at a row's first place, begins one with; `<unk>` is its own one, and
never written; the others mean nothing to it.

Shape letters: B rows, T places, E width, V tokens of the vocabulary with the control tokens, W those of the checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.language.gpt import GPT, SIGNS
from models.parts import bounds
from models.parts.decoder import KVCache
from models.parts.tokens import CONTROL, EOS, UNK, of_signs, tokenizer

TRUNKS: Final[Mapping[str, str]] = {
    "GPT2LMHeadModel": "GPT2Model",
    "LlamaForCausalLM": "LlamaModel",
    "MistralForCausalLM": "MistralModel",
    "Qwen2ForCausalLM": "Qwen2Model",
}
"""The architectures that are taken, and the class of their layers: no other class is ever looked up."""
WINDOWED: Final = ("sliding_window", "use_sliding_window")
"""Settings by which a token sees but those near to it."""


def tiny() -> dict[str, Any]:
    """Return the config of a Llama that reads signs: one further token begins and ends a text, one is unknown."""
    return {
        **{"vocab_size": len(SIGNS) + 2, "hidden_size": 32, "intermediate_size": 48},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"max_position_embeddings": 32, "tie_word_embeddings": False},
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalConfig:
    """A checkpoint's own settings, and how it reads."""

    tokenizer: str = of_signs(SIGNS)  # its JSON document, behind our control tokens
    architecture: Literal[
        "GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"
    ] = "LlamaForCausalLM"
    network: Mapping[str, Any] = field(default_factory=tiny)  # config.json
    begins: int = len(SIGNS)  # its token at a text's begin
    ends: int = len(SIGNS)  # and at its end
    unknown: int | None = len(SIGNS) + 1  # what its tokenizer makes of what it does not know
    context: int = 32  # tokens that are seen at most
    stride: int | None = None  # tokens from one window of the documents to the next; None: context
    learns: ClassVar[str] = "documents"
    loss_on: ClassVar[str] = "everything"
    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.within("context", self.context, bounds.SIZE)
        if self.stride is not None and not 1 <= self.stride <= self.context:
            raise ValueError(f"stride must be in 1..{self.context} (context), got {self.stride}")
        if self.architecture not in TRUNKS:
            known = ", ".join(TRUNKS)
            raise ValueError(f"architecture must be one of {known}, got {self.architecture!r}")
        for setting in WINDOWED:
            if self.network.get(setting):
                raise ValueError(
                    f"network.{setting}: every token sees all before it here, got"
                    f" {self.network[setting]}"
                )
        words = self.network.get("vocab_size", 0)
        if (found := tokenizer(self.tokenizer).size - len(CONTROL)) > words:
            raise ValueError(f"tokenizer: it has {found} tokens, and the network knows {words}")
        for name in ("begins", "ends", "unknown"):
            bounds.within(name, getattr(self, name) or 0, (0, words - 1))


class Slots:
    """Our cache, where transformers' layers look for theirs."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep a layer's keys and values (B, H, T, D); return all of them (B, H, S, D)."""
        found = self._cache.updated(layer_idx, keys, values)
        return found[0].to(keys.dtype), found[1].to(values.dtype)


class CausalLM(GPT):
    """Tokens in order, by another's checkpoint."""

    Config = CausalConfig  # type: ignore[assignment] # it has of GPT's what is used here
    presets: ClassVar[Mapping[str, Any]] = {
        "tiny": CausalConfig(),
        "base": CausalConfig(),  # of a version that training starts from, which brings its own
    }
    brought: ClassVar[tuple[str, ...]] = (
        *("architecture", "network", "begins", "ends", "unknown", "context"),
    )
    adapts: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "o_proj")
    config: CausalConfig  # type: ignore[assignment]

    def __init__(self, config: CausalConfig) -> None:
        super(GPT, self).__init__()  # none of GPT's layers
        self.config = config
        cls = getattr(import_module("transformers"), TRUNKS[config.architecture])
        self.network: Any = cls(cls.config_class(**config.network))
        sizes = self.network.config
        tied = sizes.tie_word_embeddings
        self.head = None if tied else nn.Linear(sizes.hidden_size, sizes.vocab_size, bias=False)

    @cached_property
    def size(self) -> int:
        """Return V."""
        return tokenizer(self.config.tokenizer).size

    @property
    def kept(self) -> tuple[int, int, int]:
        """Return L, H and D of the keys and values that a token leaves."""
        c = self.network.config
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        features = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return c.num_hidden_layers, heads, features

    def hidden(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the last states (B, T, E) of tokens that begin a row, or that follow on what a cache has read."""
        from_0_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
        place_BT = from_0_BT if cache is None else cache.place_BT
        c, first = self.config, len(CONTROL)
        edge_BT = torch.where(place_BT == 0, c.begins, c.ends)
        unknown = c.ends if c.unknown is None else c.unknown
        control_BT = torch.where(tokens_BT == UNK, unknown, edge_BT)
        ids_BT = torch.where(tokens_BT < first, control_BT, tokens_BT - first)
        told: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            told = {"use_cache": True, "cache": Slots(cache), "attention_mask": cache.mask_B1TS}
        found: Tensor = self.network(
            input_ids=ids_BT, position_ids=place_BT, **told
        ).last_hidden_state
        return found

    def scored(self, hidden_BTE: Tensor) -> Tensor:
        """Return the logits (..., V) of the next token: of control tokens those of `<eos>` and `<unk>`."""
        if self.head is None:
            theirs_BTW = F.linear(hidden_BTE, self.network.get_input_embeddings().weight)
        else:
            theirs_BTW = self.head(hidden_BTE)
        own = {EOS: self.config.ends, UNK: self.config.unknown}
        words = theirs_BTW[..., : self.size - len(CONTROL)]
        none = words.new_full((*words.shape[:-1], 1), -torch.inf)
        control = [
            none if (theirs := own.get(place)) is None else theirs_BTW[..., theirs, None]
            for place in range(len(CONTROL))
        ]
        place_W = torch.arange(words.shape[-1], device=words.device)
        for theirs in own.values():  # they come as ours
            words = words if theirs is None else words.masked_fill(place_W == theirs, -torch.inf)
        return torch.cat([*control, words], -1)
