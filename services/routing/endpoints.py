"""Which version answers: a model's name is looked up in the ledger for every request.

`shapes` is what the ledger has in production, `shapes@staging` and `shapes@production` its stages, `shapes:7` a
version by number. `shapes+teal` is `shapes-teal`, which adapts shapes. While a rollout runs, a share of the requests
for `shapes` is the challenger's: `shapes@canary` or `shapes@shadow`. What a version is made of stands in its
pipeline.json, read once a digest.
"""

import hashlib
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from infra.database import DatabaseError
from infra.ledger.ledger import Ledger, Row, Stage
from infra.ledger.rollout_rules import PLACES, Place, Terms
from infra.pipelines import Ability, Pipeline, PipelineError, read_pipeline
from infra.registry.registry import Registry, RegistryError, Unreachable, Version
from infra.storage import IntegrityError
from services.gateway.errors import ApiError, logger, unavailable
from services.pipelines.cards import SAYS, card

_MODEL: Final = re.compile(
    r"(?P<name>[a-z][a-z0-9-]{0,40})(\+(?P<adapter>[a-z0-9-]{1,40}))?(@(?P<stage>staging|production|canary|shadow)|:(?P<number>[1-9][0-9]{0,8}))?"
)
_REMEMBERED: Final = 512  # pipelines, and versions by number
_AWAY: Final = (DatabaseError, Unreachable)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model as it is now: the version that answers and how."""

    model: str  # as asked for
    name: str
    number: int
    digest: str
    stage: str | None  # production, staging, canary, shadow, or None for a version by number
    epoch: int  # of the ledger's row; 0 for a version by number
    created: int  # unix seconds
    pipeline: Pipeline

    @property
    def ref(self) -> str:
        """The version: "shapes:4"."""
        return f"{self.name}:{self.number}"

    def must(self, ability: Ability) -> None:
        """Check that a request of this kind can be answered.

        Raises:
            ApiError: 400 unsupported_capability, with what the version can do.
        """
        if ability not in self.pipeline.able:
            can = ", ".join(SAYS[one] for one in self.pipeline.able) or "nothing known here"
            message = f"{self.name} gives no {SAYS[ability]}; it gives {can}"
            raise ApiError(400, message, code="unsupported_capability", param="model")

    def card(self) -> dict[str, Any]:
        """Return the model object of /v1/models."""
        return {
            "id": self.model,
            "object": "model",
            "created": self.created,
            "owned_by": "atelier",
            "version": self.ref,
            "root": f"models:/{self.name}/{self.number}",
            "digest": self.digest,
            "alias": self.stage,
            **card(self.pipeline),
        }


@dataclass(frozen=True, slots=True)
class Rollout:
    """A challenger beside the champion, as a ledger row says."""

    name: str
    place: Place
    epoch: int
    terms: Terms

    @property
    def key(self) -> tuple[str, Place, int]:
        """The ledger row."""
        return self.name, self.place, self.epoch


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes."""

    endpoint: Endpoint  # what its model names: the champion while a rollout runs
    rollout: Rollout | None = None
    chosen: bool = False  # for the challenger: to answer (canary) or to be compared (shadow)
    challenger: Endpoint | None = None  # None too where it was chosen and cannot be had


class Endpoints:
    """Finds endpoints; its methods block, briefly, and may run in any thread."""

    def __init__(self, ledger: Ledger, registry: Registry) -> None:
        self._ledger = ledger
        self._registry = registry
        self._pipelines: dict[str, Pipeline] = {}
        self._numbers: dict[str, Version] = {}

    def resolve(self, model: str) -> Endpoint:
        """Return the endpoint that `model` names now; errors as in `route`."""
        return self.route(model, "").endpoint

    def route(self, model: str | None, session: str) -> Route:
        """Return where a request goes that names `model` (None: the only one in production).

        Requests of one `session` stay with one arm as long as a canary lasts.

        Raises:
            ApiError: 404 for an unknown model, 503 when ledger or registry cannot be reached.
        """
        if model is None:
            model = self._only()
        match = _MODEL.fullmatch(model)
        if match is None:
            raise unknown(model)
        name = "-".join(filter(None, (match["name"], match["adapter"])))
        found = self._standing(model, name, match, session)
        base = found.endpoint.pipeline.base
        if match["adapter"] and (base is None or base.name != match["name"]):
            adapts = base.ref if base else "nothing"
            raise unknown(model, f"; {name} adapts {adapts}")
        return found

    def _standing(self, model: str, name: str, match: re.Match[str], session: str) -> Route:
        """Return where a request for a version of `name` goes."""
        if match["number"]:
            return Route(self._by_number(model, f"{name}:{match['number']}"))
        stage = cast(Stage, match["stage"] or "production")
        rows = _asking(lambda: self._ledger.standing(name))
        row = rows.get(stage)
        if row is None or row.to_version is None:
            raise unknown(model)
        endpoint = self._endpoint(model, row)
        if stage != "production" or (rollout := _rollout(rows)) is None:
            return Route(endpoint)
        if not _chosen(rollout, session):
            return Route(endpoint, rollout)
        try:
            challenger = self._endpoint(model, rows[rollout.place])
        except ApiError:  # counted against it; the champion answers
            return Route(endpoint, rollout, chosen=True)
        return Route(endpoint, rollout, True, challenger)

    def pinned(self, ref: str, digest: str) -> Endpoint:
        """Return a version as it was when work was frozen to it, whatever is served now.

        Raises:
            ApiError: 503, it cannot be had.
        """
        name, _, number = ref.partition(":")
        return Endpoint(ref, name, int(number), digest, None, 0, 0, self._pipeline(ref, digest))

    def everything(self) -> list[Endpoint]:
        """Return what the ledger serves: NAME for production, NAME@staging; not what is damaged or missing.

        Raises:
            ApiError: 503, ledger or registry cannot be reached, or nothing can be had.
        """
        rows = [
            row
            for row in _asking(self._ledger.heads)
            if row.to_version is not None and row.stage in {"production", "staging"}
        ]
        found, lost = list[Endpoint](), None
        for row in rows:
            model = row.name if row.stage == "production" else f"{row.name}@{row.stage}"
            try:
                found.append(self._endpoint(model, row))
            except ApiError as error:
                if isinstance(error.__cause__, _AWAY):
                    raise  # a list of what happens to be here would pass for all
                logger.warning("%s is not listed: %s", model, error)
                lost = error
        if lost is not None and not found:
            raise lost
        return found

    def reachable(self) -> bool:
        """Return whether the ledger answers."""
        try:
            self._ledger.heads()
        except DatabaseError:
            return False
        return True

    def _only(self) -> str:
        names = [
            row.name
            for row in _asking(self._ledger.heads)
            if row.stage == "production" and row.to_version is not None
        ]
        if len(names) != 1:
            served = ", ".join(names) or "none"
            raise ApiError(
                400, f"say which model; served: {served}", code="invalid_value", param="model"
            )
        return names[0]

    def _by_number(self, model: str, ref: str) -> Endpoint:
        version = self._numbers.get(ref)
        if version is None:
            version = _asking(lambda: self._registry.get(ref), model)
            _remember(self._numbers, ref, version)
        if version.kind != "pipeline":
            raise unknown(model)
        pipeline = self._pipeline(version.ref, version.digest)
        created = int(version.created.timestamp())
        return Endpoint(
            model, version.name, version.number, version.digest, None, 0, created, pipeline
        )

    def _endpoint(self, model: str, row: Row) -> Endpoint:
        assert row.to_version is not None
        assert row.to_digest is not None
        pipeline = self._pipeline(f"{row.name}:{row.to_version}", row.to_digest)
        created = int(row.at.timestamp())
        return Endpoint(
            model, row.name, row.to_version, row.to_digest, row.stage, row.epoch, created, pipeline
        )

    def _pipeline(self, ref: str, digest: str) -> Pipeline:
        if digest not in self._pipelines:
            directory = _asking(lambda: self._registry.fetch(ref, digest=digest))
            try:
                _remember(self._pipelines, digest, read_pipeline(directory))
            except PipelineError as error:
                raise unavailable(f"{ref} cannot be served") from error
        return self._pipelines[digest]


def _rollout(rows: Mapping[str, Row]) -> Rollout | None:
    """Return the rollout that runs beside production; a challenger that is in production already is none."""
    for place in PLACES:
        row = rows.get(place)
        if row is None or row.to_digest in {None, rows["production"].to_digest}:
            continue
        if (terms := Terms.of(row.report)) is not None:
            return Rollout(row.name, place, row.epoch, terms)
    return None


def _chosen(rollout: Rollout, session: str) -> bool:
    """Return whether a session belongs to the challenger; which ones do changes from rollout to rollout."""
    if rollout.place == "shadow":
        return 100 * random.random() < rollout.terms.percent
    salted = f"{rollout.name}/{rollout.epoch}/{session}".encode("utf-8", "surrogatepass")
    drawn = int.from_bytes(hashlib.sha256(salted).digest()[:8]) / 2**64
    return 100 * drawn < rollout.terms.percent


def unknown(model: str, why: str = "") -> ApiError:
    """Return the answer to a model that is not there."""
    shown = model if len(model) <= 80 else f"{model[:80]}..."
    return ApiError(
        404,
        f"the model {shown!r} does not exist or is not served{why}; GET /v1/models lists what is",
        code="model_not_found",
        param="model",
    )


def _asking(question: Callable[[], T], model: str | None = None) -> T:
    """Return the answer of ledger or registry, or raise what the client is to hear."""
    try:
        return question()
    except _AWAY as error:
        raise unavailable("the registry cannot be reached") from error
    except RegistryError as error:
        if model is not None:
            raise unknown(model) from error
        raise unavailable("a version in production is missing from the registry") from error
    except (IntegrityError, OSError) as error:
        raise unavailable("a version in production is damaged") from error


def _remember(table: dict[str, T], key: str, value: T) -> None:
    if len(table) >= _REMEMBERED:
        table.clear()
    table[key] = value
