"""The section `search:` of a recipe: what may be changed, how far, and how long it is tried."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _no_truth(value: Any) -> Any:
    """Refuse what pydantic would read as 1 or 0."""
    if isinstance(value, bool):
        raise ValueError("give a number, not true or false")
    return value


Whole = Annotated[int, BeforeValidator(_no_truth)]
Number = Annotated[float, BeforeValidator(_no_truth)]
Positive = Annotated[Whole, Field(gt=0, lt=2**31)]
Seed = Annotated[Whole, Field(ge=0, lt=2**53)]  # every reader of JSON keeps it as it is


class Strict(BaseModel):
    """A section of a recipe: frozen, and a typo is an error that names the field."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=True
    )


class Range(Strict):
    """Where a searched value may lie: one of four."""

    log_uniform: tuple[Number, Number] | None = None
    uniform: tuple[Number, Number] | None = None
    int_uniform: tuple[Whole, Whole] | None = None  # both ends may be drawn
    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _is_one_of_them(self) -> "Range":
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError("give one of log_uniform, uniform, int_uniform or choice")
        if self.choice is None:
            low, high = self.ends
            if not low < high:
                raise ValueError(f"{given[0]} must be [low, high] with low < high")
            if self.log_uniform is not None and low <= 0:
                raise ValueError("log_uniform needs a low end above 0")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """The outermost values, or every choice: where these are fit to be used, so is what lies between."""
        found = self.log_uniform or self.uniform or self.int_uniform or self.choice
        assert found is not None
        return found


class Search(Strict):
    """What `atelier tune` looks for: values of one stage with which a short training validates best."""

    stage: str | None = None  # None: the only one
    space: Annotated[dict[str, Range], Field(min_length=1)]  # by path in the stage
    metric: Literal["validation_loss"] = "validation_loss"  # the least is the best
    trials: Positive = 16  # drawn from the space; the recipe's own values are tried besides
    max_steps: Positive  # of a trial
    grace_steps: Positive  # before which no trial is stopped
    reduction: Annotated[Whole, Field(ge=2)] = 3  # of this many trials, one goes on at each rung
    validate_every: Positive

    @model_validator(mode="after")
    def _steps_are_in_order(self) -> "Search":
        if not self.validate_every <= self.grace_steps <= self.max_steps:
            raise ValueError(
                "validate_every <= grace_steps <= max_steps must hold, got"
                f" {self.validate_every}, {self.grace_steps}, {self.max_steps}"
            )
        return self


class Found(Strict):
    """Which search found a recipe's values."""

    search: str  # the MLflow run of the search
    trial: Annotated[Whole, Field(ge=0)]
    values: dict[str, Any]  # by path in the stage
