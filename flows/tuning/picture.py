"""The picture of a search: the loss over every searched value, a point a trial, coloured by the steps it was given."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.tuning.plan import Trial
from flows.tuning.space import Search


def draw_search(trials: Sequence[Trial], rules: Search, path: Path) -> None:
    """Write a PNG with a panel for every searched field; the best trial has a ring, failed ones are not shown."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and picks a screen

    shown = [trial for trial in trials if trial.curve and trial.values]
    losses = [trial.loss for trial in trials if trial.curve]
    own = next((trial for trial in trials if trial.number == 0 and trial.curve), None)
    colours = Normalize(0, rules.max_steps)
    figure = Figure(figsize=(1.5 + 3.5 * len(rules.space), 3.6), layout="constrained", dpi=120)
    axes: Any = figure.subplots(1, len(rules.space), sharey=True, squeeze=False)[0]
    for axis, (field, space) in zip(axes, rules.space.items(), strict=True):
        words = [str(value) for value in space.choice or ()]
        at = [t.values[field] for t in shown]
        if words:  # side by side in the recipe's order
            at = [words.index(str(value)) for value in at]
            axis.set_xticks(range(len(words)), words)
            axis.set_xlim(-0.5, len(words) - 0.5)
        steps = [trial.step for trial in shown]
        axis.scatter(
            at, [t.loss for t in shown], c=steps, norm=colours, cmap="viridis", s=30, zorder=3
        )
        if shown and shown[0] is trials[0]:
            axis.scatter(at[:1], [shown[0].loss], s=130, facecolors="none", edgecolors="crimson")
        if own is not None:
            axis.axhline(own.loss, color="grey", linestyle="--", linewidth=1)
        if space.log_uniform is not None:
            axis.set_xscale("log")
        if losses and max(losses) > 20 * min(losses) > 0:
            axis.set_yscale("log")
        axis.set_xlabel(field.removeprefix("training.").removeprefix("optimizers."))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("validation loss")
    figure.colorbar(ScalarMappable(colours, "viridis"), ax=list(axes), label="steps")
    figure.suptitle("ring: the best; dashed: the recipe's own values", fontsize=9)
    figure.savefig(path)
