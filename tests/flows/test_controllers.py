"""The lean controller stands on Ray's internals: whatever of them is gone is named, and the plain trainer is there."""

import sys

import pytest

import flows.training
from flows.training.controllers import changed, mark


def test_ray_is_inside_as_the_lean_controller_knows_it() -> None:
    assert not changed()


def test_a_module_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ray.train.v2._internal.execution.failure_handling"
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "flows.training.lean_trainer", raising=False)
    monkeypatch.delattr(flows.training, "lean_trainer", raising=False)
    assert name in changed()


def test_a_method_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.v2._internal.execution.scaling_policy import ScalingPolicy

    monkeypatch.delattr(ScalingPolicy, "_maybe_send_resource_request")
    assert "_maybe_send_resource_request" in changed()


def test_another_signature_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.v2._internal.execution.controller import TrainController

    def other(self: object, workers: object) -> None: ...

    monkeypatch.setattr(TrainController, "__init__", other)
    assert "'workers'" in changed()


def test_every_call_has_a_mark_of_its_own_up_to_a_mebibyte() -> None:
    assert mark("0" * 32) == 1
    assert mark("f" * 32) == 2**20
    assert mark("00001" + "0" * 27) != mark("00002" + "0" * 27)
