"""Which stage runs where: pools of replicas, in the gateway's own process or apart from it.

A pipeline says what is drawn after what, a placement where; neither knows the other. It is a YAML file that
ATELIER_PLACEMENT names; a machine without one has one pool and reserves nothing:

    layout: staged
    gateway: {cpus: 1, replicas: {min: 2, max: 2}}
    pools:
      - {name: upscalers, stages: ["*.up*"], gpus: 0.5, cpus: 1, batch: [16], replicas: {max: 8}}
      - {name: voices, families: [wavenet], gpus: 1, replicas: {min: 0, max: 2}}
      - {name: stages, gpus: 0.5, cpus: 1, batch: [16], replicas: {min: 2, max: 8}}
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from infra.documents import DocumentError, read_yaml
from infra.settings import Settings

Layout: TypeAlias = Literal["fused", "staged"]
GATEWAY: Final = "Gateway"
"""The deployment that HTTP requests come to."""
BUSY: Final = 64  # requests under way at a gateway apart from its stages before another comes
BATCHES: Final = (1, 2, 4, 6, 8, 10, 12, 14, 16)
"""Rows a call: many sizes, since what fills a batch up to the next one is drawn for nobody."""
UPSCALE_S: Final = 5.0  # a burst is followed soon,
DOWNSCALE_S: Final = 300.0  # and what was loaded stays while another may come
SERVED: Final[Mapping[str, Any]] = {
    "health_check_period_s": 1,
    "health_check_timeout_s": 30,
    "max_surge_percent": 100,  # the new replica is there before the old one goes
    "graceful_shutdown_timeout_s": 20,
    "user_config": {"versions": []},
}
"""What every deployment has."""


class PlacementError(ValueError):
    """A placement that cannot be read or does not hold together; one line that names the file and the field."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Replicas(_Part):
    """How many replicas there may be; more than the fewest where requests wait."""

    min: int = Field(default=1, ge=0)
    max: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _are_in_order(self) -> "Replicas":
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, more than max, {self.max}")
        return self


class Pool(_Part):
    """Replicas that hold the same versions: those of the stages or families that it names, or what no other takes."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")]
    stages: tuple[str, ...] = ()  # patterns of versions' names: "shapes.base", "*.up*"
    families: tuple[str, ...] = ()  # patterns of families' names: "wavenet", "pixel*"
    gpus: float = Field(default=0, ge=0, le=1)  # a replica's part of one
    cpus: float = Field(
        default=0, ge=0, le=64
    )  # reserved for a replica; a step computes on so many, on 1 at least
    batch: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (
        BATCHES  # rows; tried, see services.stages.batch_invariance
    )
    max_waiting: PositiveInt = 256  # rows
    replicas: Replicas = Replicas()

    @field_validator("batch")
    @classmethod
    def _sorted(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _name_one_kind(self) -> "Pool":
        if self.stages and self.families:
            raise ValueError("give stages or families, not both")
        return self

    @property
    def takes_the_rest(self) -> bool:
        """Whether it names nothing."""
        return not self.stages and not self.families

    def takes(self, stage: str, family: str) -> bool:
        """Return whether it names a version of this name or family."""
        named = any(fnmatchcase(stage, one) for one in self.stages)
        return named or any(fnmatchcase(family, one) for one in self.families)


class Door(_Part):
    """The replicas of the gateway itself."""

    cpus: float = Field(default=0, ge=0, le=64)
    replicas: Replicas = Replicas()

    @field_validator("replicas")
    @classmethod
    def _never_none(cls, value: Replicas) -> Replicas:
        if value.min == 0:
            raise ValueError("the gateway cannot scale to zero: nobody would answer")
        return value


class Placement(_Part):
    """The pools, and whether they are in the gateway's process (`fused`: no hop) or apart (`staged`)."""

    layout: Layout = "fused"
    gateway: Door = Door()
    pools: tuple[Pool, ...] = (Pool(name="stages"),)

    @model_validator(mode="after")
    def _hold_together(self) -> "Placement":
        names = [pool.name for pool in self.pools]
        if len(set(names)) < len(names):
            raise ValueError(f"two pools have one name: {', '.join(names)}")
        rest = [pool.name for pool in self.pools if pool.takes_the_rest]
        if len(rest) != 1:
            found = f"{', '.join(rest)} do" if rest else "none does"
            raise ValueError(
                f"one pool names neither stages nor families and takes the rest; {found}"
            )
        if self.layout == "fused":
            self._check_one_process()
        return self

    def _check_one_process(self) -> None:
        asleep = [pool.name for pool in self.pools if pool.replicas.min == 0]
        if asleep:
            raise ValueError(
                f"{asleep[0]} cannot scale to zero in the gateway's process: set layout: staged"
            )
        if sum(pool.gpus for pool in self.pools) > 1:
            raise ValueError(
                "the pools ask for more than the one GPU that a process has: set layout: staged"
            )

    def pool_of(self, stage: str, family: str) -> Pool:
        """Return the pool that draws versions of this name (`shapes.base`) and family: the first that names them.

        >>> Placement().pool_of("shapes.base", "ddpm").name
        'stages'
        """
        rest = next(pool for pool in self.pools if pool.takes_the_rest)
        return next((pool for pool in self.pools if pool.takes(stage, family)), rest)

    def split(self, versions: "list[dict[str, Any]]") -> dict[str, list[dict[str, Any]]]:
        """Return which of the versions (name, number, digest, family) each pool holds, by the pool's name."""
        found: dict[str, list[dict[str, Any]]] = {pool.name: [] for pool in self.pools}
        for version in versions:
            found[self.pool_of(version["name"], version["family"]).name].append(version)
        return found

    def device(self, pool: Pool) -> str:
        """Return where a pool computes: on a GPU where it asks for one, and where nobody does on what is there."""
        if pool.gpus:
            return "cuda"
        return "cpu" if any(other.gpus for other in self.pools) else "auto"

    def gpu_share(self, pool: Pool) -> float:
        """Return the part of a GPU's memory that the pool's process may use."""
        if self.layout == "fused":
            return sum(other.gpus for other in self.pools)
        return pool.gpus

    def deployments(self) -> dict[str, dict[str, Any]]:
        """Return the Serve options of each deployment by its name, the gateway's first."""
        if self.layout == "staged":
            # the gateway refuses beyond its bound itself, with an envelope; Serve's refusals are plain text
            door = _options(self.gateway.replicas, self.gateway.cpus, 0, BUSY)
            pools = {
                pool.name: {
                    **_options(pool.replicas, pool.cpus, pool.gpus, pool.batch[-1]),
                    "max_ongoing_requests": 1000,
                    "max_queued_requests": 1000,
                }
                for pool in self.pools
            }
            return {GATEWAY: {**door, "max_ongoing_requests": 10_000}, **pools}
        parts: list[Door | Pool] = [self.gateway, *self.pools]
        replicas = Replicas(
            min=max(part.replicas.min for part in parts),
            max=max(part.replicas.max for part in parts),
        )
        cpus, gpus = sum(part.cpus for part in parts), sum(pool.gpus for pool in self.pools)
        busy = max(pool.batch[-1] for pool in self.pools)
        return {GATEWAY: {**_options(replicas, cpus, gpus, busy), "max_ongoing_requests": 10_000}}


def _options(replicas: Replicas, cpus: float, gpus: float, busy: int) -> dict[str, Any]:
    """Return a deployment's size; more replicas come where each has more than `busy` requests under way."""
    actor = {"num_cpus": cpus, **({"num_gpus": gpus} if gpus else {})}
    found: dict[str, Any] = {**SERVED, "ray_actor_options": actor}
    if replicas.min == replicas.max:
        return {**found, "num_replicas": replicas.min}
    scaling = {
        "min_replicas": replicas.min,
        "max_replicas": replicas.max,
        "target_ongoing_requests": busy,
        "upscale_delay_s": UPSCALE_S,
        "downscale_delay_s": DOWNSCALE_S,
    }
    return {**found, "autoscaling_config": scaling}


def read_placement(path: Path) -> Placement:
    """Return the placement that a YAML file describes.

    Raises:
        PlacementError: it cannot be read, or a field has a value that it cannot have.
    """
    try:
        return Placement.model_validate(read_yaml(path))
    except OSError as error:
        raise PlacementError(f"{path} cannot be read: {error.strerror}") from None
    except DocumentError as error:
        raise PlacementError(str(error)) from None
    except ValidationError as error:
        raise PlacementError(f"{path}: {_first(error)}") from None


def placement_of(settings: Settings, deployed: Mapping[str, Any] | None = None) -> Placement:
    """Return where the settings have stages run; on a cluster where it was `deployed`, unless they say otherwise.

    Raises:
        PlacementError: the file is no placement, or ATELIER_LAYOUT does not fit it.
    """
    path, found = settings.placement, Placement()
    if path is not None:
        found = read_placement(settings.project / path)
    elif deployed is not None and settings.ray_address is not None:
        found = Placement.model_validate(deployed)
    if settings.layout is None:
        return found
    try:
        return Placement.model_validate({**found.model_dump(), "layout": settings.layout})
    except ValidationError as error:
        raise PlacementError(f"ATELIER_LAYOUT={settings.layout}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{field}: {reason}" if field else reason
    return f"{field or 'the document'}: {reason}, got {first['input']!r}"
