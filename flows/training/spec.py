"""All that fixes one training's outcome, as the flow hands it to the workers."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import Field

from flows.recipe import Resources, Training
from flows.tuning.space import Strict


class Base(Strict):
    """A registered version whose weights a training starts from, found by `flows.provenance.bases`."""

    name: str
    version: int
    digest: str
    path: Path  # of its sealed directory, absolute, where every worker sees it

    @property
    def says(self) -> str:
        """How cards and errors name it."""
        return f"{self.name}:{self.version} (sha256 {self.digest[:12]})"


class Need(Strict):
    """Outputs of a trained stage that a training learns from, made by `flows.training.frozen` of every row."""

    name: str
    version: int
    digest: str
    entry: str
    path: Path  # of the stage's sealed directory, absolute, where every worker sees it
    made: Path  # the folder of the outputs, absolute

    @property
    def says(self) -> str:
        """How cards and notes name it."""
        return f"{self.name}:{self.version}/{self.entry}"


class TrainingSpec(Strict):
    """All that fixes one training's outcome; passed whole to the workers as JSON."""

    name: str  # the registered model: "shapes.base"
    family: str
    preset: str
    config: dict[str, Any]
    image_size: int | None
    seed: int
    training: Training
    resources: Resources
    dataset: str  # its name
    prepared: Path  # its folder, absolute
    data_identity: str
    code_identity: str
    base: Base | None = None  # what `training.from`, `training.lora` or `starts_from` names
    inherits: bool = False  # it is what the stage's `starts_from` names
    needs: dict[str, Need] = Field(default_factory=dict)  # by the input's name

    @property
    def stills(self) -> bool:
        """Whether it learns the single frames of clips: of a family that knows of no more."""
        from models import trainable

        return "frames" not in {field.name for field in fields(trainable(self.family).Config)}

    @property
    def beside(self) -> dict[str, Path]:
        """The folders of what it needs, by the input's name."""
        return {name: one.made for name, one in self.needs.items()}

    @property
    def identity(self) -> str:
        """The run's name: equal work has an equal one and resumes; how many CPUs it was lent does not count.

        Nor does what the version is called that it starts from: its digest does.
        """
        unsaid: dict[str, Any] = {
            **{"prepared": True, "training": {"base": True, "lora": {"base"}}, "base": True},
            **{"needs": True, "inherits": True},
        }
        document = self.model_dump(mode="json", exclude=unsaid)
        document["base"] = self.base and self.base.digest
        if self.inherits:
            document["inherits"] = True
        if self.needs:
            document["needs"] = {name: [one.digest, one.entry] for name, one in self.needs.items()}
        document["resources"] = {"num_workers": max(1, self.resources.num_workers)}
        text = json.dumps(document, sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
