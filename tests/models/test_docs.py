"""What a docstring shows is what happens; and whatever a user calls has an example."""

import doctest
import inspect
import pkgutil
from importlib import import_module
from typing import Final

import models
from models.family import Family
from models.judges import drift, gallery, metrics

USED: Final = (
    *(models.configure, models.trainable, models.describe, models.build),
    *(Family.sample, Family.log_prob, Family.measure, Family.encode, Family.embed),
    *(Family.codes, Family.examples, Family.recalled),
    *(drift.stability_index, drift.energy_test, gallery.gallery),
    *(
        function
        for name, function in inspect.getmembers(metrics, inspect.isfunction)
        if function.__module__ == metrics.__name__ and not name.startswith("_") and name != "mean"
    ),
)
"""What is called from outside of `models`."""


def test_every_example_of_a_docstring_gives_what_it_shows() -> None:
    modules = [one.name for one in pkgutil.walk_packages(models.__path__, "models.")]
    tried = 0
    for name in ("models", *modules):
        found = doctest.testmod(import_module(name), report=True)
        assert found.failed == 0, name
        tried += found.attempted
    assert tried > 50


def test_whatever_a_user_calls_has_an_example() -> None:
    assert not [one.__qualname__ for one in USED if ">>>" not in (one.__doc__ or "")]
