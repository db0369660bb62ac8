"""No family's loss makes the host wait for the device: no path and no shape depends on what a tensor holds."""

from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models import FAMILIES, trainable
from models.declared import declared
from tests.models.families_kit import batch_of, tiny

CONFIGS: Final[list[tuple[str, dict[str, object]]]] = [
    *((name, {}) for name in FAMILIES if not trainable(name).counts),
    *((name, {"dropout": 0.1}) for name in FAMILIES if "dropout" in declared(name).settings),
    ("ddpm", {"objective": "v", "sampler": "ddim"}),
    ("ddpm", {"backbone": "dit", "widths": (16,)}),
    ("dvae", {"likelihood": "logit-laplace"}),
    ("dvae", {"sigma": 1.0}),
    ("edm", {"augmented": True}),
    ("gan", {"loss": "wasserstein"}),
    ("gpt", {"learns": "dialogues"}),
    ("pixelrnn", {"cell": "row"}),
    ("vae", {"likelihood": "gaussian", "binarize": "none"}),
]


@pytest.mark.parametrize(("name", "changes"), CONFIGS)
def test_a_loss_and_what_follows_it_need_no_value(name: str, changes: dict[str, object]) -> None:
    """Tensors here have shapes and no values: `item`, `bool`, `nonzero`, masks as indices and `bincount` fail.

    Nor may a table lie outside of the model's buffers: it would be copied to the device at every step.
    """
    model: Any = tiny(name, **changes)
    batch = batch_of(model)
    mode = FakeTensorMode()
    for module in model.modules():
        for kept in (module._parameters, module._buffers):
            for key, value in kept.items():
                if value is not None:
                    fake = mode.from_tensor(value.detach())
                    kept[key] = nn.Parameter(fake) if kept is module._parameters else fake
    if getattr(model.config, "augmented", False):
        batch["augmentation"] = torch.rand(16, 9)
    fakes: dict[str, Tensor] = {key: mode.from_tensor(rows) for key, rows in batch.items()}
    with mode:
        for player in model.players:
            losses = model({**fakes, **model.survey(fakes, player)}, player)
            if losses.seen:
                model.follow(losses.seen, torch.ones(()))
