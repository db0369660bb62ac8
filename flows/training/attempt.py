"""One attempt at a training, on one rank, by the loop that its family asks for."""

from collections.abc import Mapping
from types import MappingProxyType

from flows.training.counting import CountingLoop
from flows.training.hearts import beating
from flows.training.loop import Loop
from flows.training.ranks import Ranks
from flows.training.run_folder import RunFolder
from flows.training.spec import TrainingSpec
from flows.training.validation import OnValidation
from models import trainable


def train(
    spec: TrainingSpec,
    folder: RunFolder,
    ranks: Ranks,
    *,
    lease: str,
    seconds: Mapping[str, float] = MappingProxyType({}),
    on_validation: OnValidation | None = None,
) -> None:
    """Train to the end from the newest good checkpoint, and publish the result in `folder.final`.

    `on_validation(step, loss)` is called on rank 0 between two steps; what it raises ends the training there.

    Raises:
        flows.training.loop.Diverged: the gradient was NaN or infinite at `training.max_skipped` steps in a row; says
            at which step and which checkpoint is good.
        flows.training.run_folder.Fenced: a newer attempt has taken over.
        infra.storage.IntegrityError: there were checkpoints and all of them are damaged.
    """
    kind = CountingLoop if trainable(spec.family).counts else Loop
    loop = kind(spec, folder, ranks, lease, seconds, on_validation)
    try:
        with beating(folder.journal, loop.attempt, ranks.rank):
            loop.run()
    finally:
        loop.close()
