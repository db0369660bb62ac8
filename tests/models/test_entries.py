"""What every entry of a family keeps: its port's shape, its weights' space, and a row's bits wherever it stands."""

from collections.abc import Mapping

import pytest
import torch

from models import FAMILIES
from models.family import Family
from models.parts.rows import entered
from models.ports import Port
from tests.models.families_kit import prompts, shaken, tiny

OPEN = 4  # where a port takes any size


@pytest.mark.parametrize("name", FAMILIES)
def test_an_entry_gives_what_its_port_says_in_the_space_of_its_weights(name: str) -> None:
    """Of rows of any number, and the same bits wherever a row stands."""
    model = shaken(name)
    with pytest.raises(NotImplementedError, match="has no entry 'somewhere'"):
        model.enter("somewhere", {})
    for entry, ways in model.entries.items():
        [port] = ways.outputs.values()
        given = rows_for(model, ways.inputs)
        found = entered(model, entry, given)
        assert found.shape == (6, *(size or OPEN for size in port.shape))
        assert torch.equal(found, entered(model, entry, given))
        last = {key: rows[-1:] for key, rows in given.items()}
        assert torch.equal(found[-1:], entered(model, entry, last))
        if port.space:
            others = tiny(name, seed=1).entries[entry].outputs
            assert [one.space for one in others.values()] != [port.space]


def rows_for(model: Family, inputs: Mapping[str, Port]) -> dict[str, torch.Tensor]:
    """Return six rows that an entry takes."""
    generator, found = torch.Generator().manual_seed(0), {}
    for key, port in inputs.items():
        shape = [6, *(size or OPEN for size in port.shape)]
        if port.kind == "text":
            tokens = model.encode(prompts(model, 6))
            assert tokens is not None
            found["tokens"] = tokens
        elif port.kind == "codes":
            found[key] = torch.randint(model.config.codes, shape, generator=generator)
        else:
            found[key] = torch.rand(*shape, generator=generator)
    return found
