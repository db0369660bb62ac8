"""How pipelines are judged, by what they give: one module a modality, which all do the same."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from flows.recipe import Evaluation as EvaluationSpec
from infra.pipelines import Modality, Pipeline

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from flows.evaluating.scores import Judged
    from models.family import Family

MODULES: Final = {
    "image": "flows.evaluating.pictures",
    "audio": "flows.evaluating.sounds",
    "text": "flows.evaluating.texts",
    "clip": "flows.evaluating.clips",
    "embedding": "flows.evaluating.embeddings",
    "mesh": "flows.evaluating.meshes",
}
SPEECH: Final = "flows.evaluating.speech"
"""Of sound that was learned from utterances: words and voices."""


SEEN: Final = frozenset({"image", "clip", "mesh"})
"""What a judge sees; a mesh in pictures of it."""


def unseen(modality: Modality) -> str:
    """Return why there can be no judge of what comes out; empty where there can."""
    if modality in SEEN:
        return ""
    return f"it sees pictures, clips or meshes, and {modality} comes out: leave the judge out"


class Judging(Protocol):
    """What a modality's module does."""

    def requests(
        self, pipeline: Pipeline, prepared: Path, spec: EvaluationSpec
    ) -> tuple[list[str], list[int]]:
        """Return the fixed prompts (none for a pipeline that reads no text) and seeds that it is judged on."""

    def packed(self, drawn: "Tensor") -> "npt.NDArray[Any]":
        """Return samples as they travel between workers, a row each."""

    def drawn(
        self,
        models: "Sequence[Family]",
        pipeline: Pipeline,
        prompts: Sequence[str],
        seeds: Sequence[int],
        prepared: Path,
    ) -> "Tensor":
        """Return what the pipeline makes of some of these requests, a row a seed."""

    def score(
        self,
        drawn: "Sequence[npt.NDArray[Any]]",
        prompts: Sequence[str],
        *,
        judge: Any,
        prepared: Path,
        spec: EvaluationSpec,
        models: "Sequence[Family]",
        pipeline: Pipeline,
    ) -> "Judged":
        """Return metrics, outcomes and the gallery of the drawn samples, in parts as they were packed."""


def judging(modality: Modality, prepared: Path) -> Judging:
    """Return the module that judges what a pipeline gives: sound by what it learned, words or sounds."""
    found = MODULES[modality]
    if modality == "audio":
        from data.loaders import modality_of

        found = SPEECH if modality_of(prepared) == "speech" else found
    return cast(Judging, import_module(found))
