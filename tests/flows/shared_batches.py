"""A step's batch, whole or shared by parts and workers, with the same draws: what training makes of it is the same."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from flows.training import turns
from flows.training.gradients import Gradients
from flows.training.ranks import Ranks
from models import FAMILIES, trainable
from models.declared import declared
from models.family import Batch, Family
from models.parts.tokens import PAD
from tests.models.families_kit import batch_of, tiny

ROWS: Final = 16
UNSHARED: Final[Mapping[str, Mapping[str, object]]] = {
    "vqvae": {"revive_below": 0.0}  # which encodings codes start anew at is drawn part by part
}
DROPPED: Final = " with dropout"


class DrawsOfTheWhole(TorchFunctionMode):
    """What is drawn for each row of a part is what the whole batch's row gets; a draw for all is moved on to the part.

    Diffusion spreads its levels over the rows from one number: a part's start at its first row.
    """

    def __init__(self, seed: int, first: int, stride: int) -> None:
        super().__init__()
        self.seed, self.first, self.stride, self.calls = seed, first, stride, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in (torch.rand_like, torch.randn_like):
            kind = "rand" if func is torch.rand_like else "randn"
            return self._drawn(kind, tuple(args[0].shape)).to(args[0].device)
        if func is torch.bernoulli:
            drawn = self._drawn("rand", tuple(args[0].shape)).to(args[0].device)
            return (drawn < args[0]).to(args[0].dtype)
        if func in (torch.rand, torch.randn) and named.get("generator") is None:
            shape = args[0] if args and isinstance(args[0], Sequence) else args
            kind = "rand" if func is torch.rand else "randn"
            return self._drawn(kind, tuple(shape)).to(named.get("device"))
        if func is torch.randint and len(args) == 2 and named.get("generator") is None:
            high, size = args  # one of so many, for each row
            return (self._drawn("rand", tuple(size)) * high).long().to(named.get("device"))
        if func is torch.Tensor.random_:  # the bits of a dropout's mask
            return args[0].copy_(self._drawn("bits", tuple(args[0].shape)))
        if func is F.scaled_dot_product_attention and named.get("dropout_p"):
            return self._attended(*args, **named)
        return func(*args, **named)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        """Attention as its documentation writes it out: the fused one draws within."""
        score = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        seen = how.get("attn_mask")
        if how.get("is_causal"):
            seen = torch.ones(score.shape[-2:], dtype=torch.bool, device=score.device).tril()
        if seen is not None:
            score = score.masked_fill(~seen, -torch.inf)
        kept = self._drawn("rand", tuple(score.shape)).to(score.device) >= how["dropout_p"]
        return score.softmax(-1) * kept / (1 - how["dropout_p"]) @ value

    def _drawn(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        self.calls += 1
        generator = torch.Generator().manual_seed(1000 * self.seed + self.calls)
        if not shape:
            return (torch.rand((), generator=generator) + self.first / ROWS) % 1
        each = max(1, shape[0] * self.stride // ROWS)  # of a clip there is a row for each frame
        shape = (shape[0] * self.stride, *shape[1:])
        if kind == "bits":
            whole = torch.empty(shape, dtype=torch.int64).random_(generator=generator)
        else:
            whole = getattr(torch, kind)(*shape, generator=generator)
        rows: Tensor = whole.unflatten(0, (-1, each))[self.first :: self.stride].flatten(0, 1)
        return rows


def learned_by_gradients() -> list[str]:
    return [name for name in FAMILIES if not trainable(name).counts]


def shared_in() -> list[str]:
    """Return what `Shared` takes: every family learned by gradients, with dropout where it has any.

    What is shared with dropout is shared without, too: nothing is drawn then for the places that are dropped.
    """
    return [
        name + DROPPED * ("dropout" in declared(name).settings) for name in learned_by_gradients()
    ]


def uneven(model: Family) -> dict[str, Tensor]:
    """Return a batch whose rows have unequally many tokens or samples, where a family has any."""
    batch = batch_of(model, ROWS)
    number = torch.arange(ROWS)
    if "length" in batch:
        batch["length"] = batch["length"] - 5 * number
    for name, least, filler in (("target", 2, PAD), ("first", 1, PAD), ("tokens", 2, -1)):
        if model.capabilities.modality == "text" and name in batch:
            places = torch.arange(batch[name].shape[1])
            kept = (least + number[:, None] % (batch[name].shape[1] - least)) > places
            batch[name] = batch[name].masked_fill(~kept, filler)
    if "document" in batch:  # so that no second is exchanged for one of another part
        batch["document"] = torch.zeros_like(batch["document"])
    return batch


class Shared:
    """A tiny model that takes turns on this worker's parts of a batch."""

    def __init__(self, name: str, ranks: Ranks | None = None, parts: int = 1) -> None:
        family = name.removesuffix(DROPPED)
        changes = {"dropout": 0.3} if name.endswith(DROPPED) else UNSHARED.get(family, {})
        self.model: Any = tiny(family, **changes)
        self.ranks, self.parts = ranks or Ranks(), parts
        self.model.to(self.ranks.device)
        whole = {key: rows.to(self.ranks.device) for key, rows in uneven(self.model).items()}
        own = {key: rows[self.ranks.rank :: self.ranks.world] for key, rows in whole.items()}
        self.batches = [{k: v[part::parts] for k, v in own.items()} for part in range(parts)]
        self.gradients = {
            player: Gradients(self.model.player_parameters(player), self.ranks.world)
            for player in self.model.players
        }
        self.forward = self._in_order(type(self.model).forward)
        self.model.survey = self._in_order(type(self.model).survey)

    def _in_order(self, call: Callable[..., Any]) -> Callable[[Batch, str], Any]:
        """Return the call with each part's draws; it is made for one part after another."""
        done = [0]

        def drawn(batch: Batch, player: str) -> Any:
            turn, part = divmod(done[0], self.parts)
            done[0] += 1
            first = self.ranks.rank + self.ranks.world * part
            with DrawsOfTheWhole(turn, first, self.ranks.world * self.parts):
                return call(self.model, batch, player)

        return drawn

    def gradient(self, player: str) -> tuple[Tensor, turns.Turn]:
        """Return the gradient of the player's loss on the whole batch, as training takes it, in one vector."""
        turn = turns.take(
            self.model,
            self.forward,
            self.batches,
            player,
            self.gradients[player],
            self.ranks,
            nullcontext,
        )
        flat = torch.cat([one.flatten() for one in turn.gradients]) * turn.share
        return flat.clone(), turn

    def step(self, rate: float = 0.05) -> dict[str, tuple[Tensor, turns.Turn]]:
        """Take a step of plain gradient descent with every player, so that nothing but the family differs.

        Returns each one's gradient and turn, which it had after those before it.
        """
        taken = {}
        for player in self.model.players:
            flat, turn = taken[player] = self.gradient(player)
            for parameter in self.model.player_parameters(player):
                own, flat = flat[: parameter.numel()], flat[parameter.numel() :]
                parameter.data -= rate * own.view_as(parameter)
            if turn.seen:
                self.model.follow(turn.seen, torch.ones((), device=self.ranks.device))
        self.model.steps_taken += 1
        return taken

    def state(self) -> dict[str, Tensor]:
        return {key: value.clone().contiguous() for key, value in self.model.state_dict().items()}
