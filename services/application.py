"""The gateway: OpenAI's API over the pipelines that the ledger names, as a Ray Serve application.

`services.application:build` is the import path of the application: the ingress `Gateway`, and the pools of stages that
the placement names, in its process (`fused`) or behind handles (`staged`). The routes each have a file.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fastapi import Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from starlette.types import ASGIApp

from infra.placement import GATEWAY, Placement, Pool
from infra.receipts.signing import Signing
from services.api.answers import (
    ChatCompletion,
    Completion,
    Embeddings,
    Health,
    Model,
    Models,
    Pictures,
    Provenance,
    ReadinessReport,
    SampleList,
    Scores,
)
from services.api.edits import FORM, EditOrder, plan_edit, read_form
from services.api.embeddings import EmbeddingOrder, answer_embeddings
from services.api.images import PictureAnswer, plan_drawing
from services.api.provenance import UPLOAD, answer_provenance
from services.api.requests import ImageOrder, Order, whole
from services.api.samples import SampleOrder, give_samples, plan_samples
from services.api.scores import ScoreOrder, answer_scores
from services.api.speech import WRITERS, SpeechAnswer, SpeechOrder, plan_speech
from services.api.text import TextAnswer, plan_completion, plan_turn
from services.api.text_requests import ChatOrder, CompletionOrder
from services.gateway import errors, sockets
from services.gateway.errors import ApiError
from services.gateway.guard import Guard, KeyStore, require_key_off_loopback
from services.gateway.openapi import ANYWHERE, STREAM, Api, answers
from services.gateway.readiness import Readiness
from services.media.answer_log import Samples
from services.media.result_store import Files
from services.pipelines.executor import Executor
from services.pipelines.payload import GenerationSpec
from services.pipelines.request import StageOf, Stages
from services.pipelines.stage_client import Remote
from services.routing.canary import Arms
from services.routing.endpoints import Endpoint, Endpoints
from services.routing.request_session import Exchange, from_the_house
from services.stages.deployment import Stage, StageArguments

if TYPE_CHECKING:
    from ray import serve
    from ray.serve.handle import DeploymentHandle

Body = TypeVar("Body", bound=BaseModel)
Asked = TypeVar("Asked", bound=Order)


class Arguments(BaseModel):
    """What the application is built with: JSON in the declarative config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    database: str
    tracking_uri: str
    cache: Path  # verified copies of versions
    files: Path  # pictures answered by url
    samples: Path  # answers kept for the drift check
    public_url: str | None = None  # of links; None: as the request came
    signing: Path  # the key that signs receipts and exports
    timeout_s: float = Field(default=120.0, gt=0)  # of a request, all attempts together
    max_body: int = Field(default=2**20, ge=1)  # bytes
    max_under_way: int = Field(default=512, ge=1)  # requests in the gateway
    unknown_words: Literal["refuse", "map"] = "refuse"  # see services.stages.unknown_words
    placement: Placement = Placement()

    def for_pool(self, pool: Pool) -> dict[str, Any]:
        """Return what the stage of a pool is built with."""
        given = StageArguments.model_validate(
            {
                "tracking_uri": self.tracking_uri,
                "cache": self.cache,
                "device": self.placement.device(pool),
                "threads": max(1, int(pool.cpus)),
                "buckets": pool.batch,
                "max_waiting": pool.max_waiting,
                "apart": self.placement.layout == "staged",
                "gpu_share": self.placement.gpu_share(pool),
                "unknown_words": self.unknown_words,
            }
        )
        return given.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes use."""

    endpoints: Endpoints
    arms: Arms
    stage_of: StageOf
    files: Files
    samples: Samples
    signing: Signing
    keys: KeyStore
    readiness: Readiness
    arguments: Arguments


def create(parts: Parts, *, behind_proxy: bool = False) -> ASGIApp:
    """Return the whole gateway as an ASGI application; `behind_proxy` is Serve's."""
    app = Api()
    errors.install(app)
    _health_routes(app, parts)
    _model_routes(app, parts)
    _image_routes(app, parts)
    _sample_routes(app, parts)
    _question_routes(app, parts)
    arguments = parts.arguments
    return Guard(
        app,
        parts.keys,
        host=arguments.host,
        max_body=arguments.max_body,
        max_under_way=arguments.max_under_way,
        behind_proxy=behind_proxy,
    )


def _health_routes(app: Api, parts: Parts) -> None:
    unlocked: dict[str, Any] = {"response_model": None, "openapi_extra": {"security": []}}

    @app.get("/healthz", responses=answers(Health, [400]), **unlocked)
    async def healthz() -> dict[str, str]:
        """Return that the process answers."""
        return {"status": "ok"}

    report = answers(ReadinessReport, [400])
    report[503] = {"model": ReadinessReport, "description": "Not ready."}

    @app.get("/readyz", responses=report, **unlocked)
    async def readyz(
        digest: list[str] = Query(default=[], max_length=200),  # noqa: B008 - FastAPI's form
    ) -> JSONResponse:
        """Return 200 when stages and ledger answer and every `digest` is loaded, else 503."""
        ready, document = await parts.readiness.report(digest)
        return JSONResponse(document, 200 if ready else 503)


def _model_routes(app: Api, parts: Parts) -> None:
    @app.get("/v1/models", response_model=None, responses=answers(Models, ANYWHERE))
    async def list_models() -> dict[str, Any]:
        """Return what is served."""
        found = await asyncio.to_thread(parts.endpoints.everything)
        return {"object": "list", "data": [endpoint.card() for endpoint in found]}

    @app.get(
        "/v1/models/{model:path}",
        response_model=None,
        responses=answers(Model, [*ANYWHERE, 404]),
    )
    async def retrieve_model(model: str) -> dict[str, Any]:
        """Return one model: NAME, NAME@staging, NAME@production or NAME:7."""
        return (await asyncio.to_thread(parts.endpoints.resolve, model)).card()


def _image_routes(app: Api, parts: Parts) -> None:
    @app.takes("/v1/images/generations", ImageOrder, Pictures, STREAM)
    async def generate(request: Request) -> Response:
        """Draw pictures."""
        order = await _order(request, ImageOrder)
        exchange = await _exchange(parts, request, order, plan_drawing)
        answer = PictureAnswer(exchange, order, parts.files, parts.samples)
        return await (answer.stream() if order.stream else answer.whole())

    @app.takes("/v1/images/edits", EditOrder, Pictures, STREAM, FORM)
    async def edit(request: Request) -> Response:
        """Change pictures where a mask says so."""
        order, files = await read_form(request)
        exchange = await _exchange(parts, request, order, partial(plan_edit, files))
        answer = PictureAnswer(exchange, order, parts.files, parts.samples, "image_edit")
        return await (answer.stream() if order.stream else answer.whole())

    @app.get(
        "/v1/files/{name}",
        response_class=Response,
        response_model=None,
        responses=answers(None, [*ANYWHERE, 403, 404], {"image/png": {}}),
    )
    async def file(name: str, expires: str = "", signature: str = "") -> Response:
        """Return a picture that was answered by url: the link opens for an hour, without a key."""
        content, left_s = await asyncio.to_thread(parts.files.open, name, expires, signature)
        headers = {"cache-control": f"private, max-age={left_s}, immutable"}
        return Response(content, media_type="image/png", headers=headers)


def _sample_routes(app: Api, parts: Parts) -> None:
    @app.takes("/v1/completions", CompletionOrder, Completion, STREAM)
    async def complete(request: Request) -> Response:
        """Go on from prompts."""
        order = await _order(request, CompletionOrder)
        answer = TextAnswer(await _exchange(parts, request, order, plan_completion), order)
        return await (answer.stream() if order.stream else answer.whole())

    @app.takes("/v1/chat/completions", ChatOrder, ChatCompletion, STREAM)
    async def chat(request: Request) -> Response:
        """Say the next turn of a dialogue."""
        order = await _order(request, ChatOrder)
        answer = TextAnswer(await _exchange(parts, request, order, plan_turn), order)
        return await (answer.stream() if order.stream else answer.whole())

    sounds: dict[str, Any] = {kind: {} for kind, _ in WRITERS.values()}

    @app.takes("/v1/audio/speech", SpeechOrder, None, {**sounds, **STREAM})
    async def speech(request: Request) -> Response:
        """Say something."""
        order = await _order(request, SpeechOrder)
        answer = SpeechAnswer(await _exchange(parts, request, order, plan_speech), order)
        return await (answer.stream() if order.stream_format == "sse" else answer.whole())

    @app.takes("/v1/samples", SampleOrder, SampleList)
    async def sample(request: Request) -> Response:
        """Make whatever the model makes."""
        order = await _order(request, SampleOrder)
        return await give_samples(await _exchange(parts, request, order, plan_samples))


def _question_routes(app: Api, parts: Parts) -> None:
    timeout_s = parts.arguments.timeout_s

    @app.takes("/v1/embeddings", EmbeddingOrder, Embeddings)
    async def embed(request: Request) -> Response:
        """Embed texts."""
        order = await _order(request, EmbeddingOrder)
        route = await asyncio.to_thread(parts.endpoints.route, order.model, "")
        ahead = from_the_house(request)
        return await answer_embeddings(
            parts.stage_of, route.endpoint, order, timeout_s, ahead=ahead
        )

    @app.takes("/v1/scores", ScoreOrder, Scores)
    async def score(request: Request) -> Response:
        """Return how likely given inputs are."""
        order = await _order(request, ScoreOrder)
        route = await asyncio.to_thread(parts.endpoints.route, order.model, "")
        ahead = from_the_house(request)
        return await answer_scores(parts.stage_of, route.endpoint, order, timeout_s, ahead=ahead)

    @app.post(
        "/v1/content_provenance_checks",
        openapi_extra=UPLOAD,
        response_model=None,
        responses=answers(Provenance, [*ANYWHERE, 415]),
    )
    async def check_provenance(request: Request) -> Response:
        """Check the receipt of a picture or sound."""
        return await answer_provenance(request, parts.signing)


async def _order(request: Request, kind: type[Body]) -> Body:
    """Return the body.

    Raises:
        ApiError: 415, it is no JSON; 400 that names its first wrong field.
    """
    content = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content != "application/json":
        raise ApiError(415, "send the body as application/json", code="unsupported_media_type")
    try:
        given = from_json(await request.body())
    except ValueError as error:
        raise errors.invalid(f"no JSON: {error}", "body", "invalid_json") from None
    try:
        return kind.model_validate(whole(given))
    except ValidationError as error:
        raise errors.from_validation(error) from None


async def _exchange(
    parts: Parts,
    request: Request,
    order: Asked,
    planning: Callable[[Asked, tuple[int, ...], Endpoint], GenerationSpec],
) -> Exchange:
    """Return the request with where it goes and what it wants there."""
    seeds = order.seeds()
    session = order.session or str(seeds[0])  # who says nothing at all is somebody else each time
    return Exchange(
        arms=parts.arms,
        timeout_s=parts.arguments.timeout_s,
        request=request,
        route=await asyncio.to_thread(parts.endpoints.route, order.model, session),
        planning=partial(planning, order, seeds),
        signing=parts.signing,
        public_url=parts.arguments.public_url,
    )


def drawn_by(placement: Placement, stages: Mapping[str, Stages]) -> StageOf:
    """Return which of the pools' `stages` draws a pinned one."""
    return lambda pinned: stages[placement.pool_of(pinned.name, pinned.family).name]


class Gateway:
    """The ingress deployment: before the handles of its pools, or without any, the pools in its own process."""

    def __init__(
        self, arguments: Mapping[str, Any], pools: "Mapping[str, DeploymentHandle[Any]]"
    ) -> None:
        from infra.keys import Keys
        from infra.ledger.ledger import Ledger
        from infra.ledger.rollout_metrics import Observations
        from infra.registry.registry import Registry
        from services.gateway.listening import listen_on_the_node
        from services.routing.observer import Observer

        listen_on_the_node()
        given = Arguments.model_validate(arguments)
        keys, ledger = Keys(given.database), Ledger(given.database)
        require_key_off_loopback(given.host, keys)
        signing = Signing(given.signing)
        endpoints = Endpoints(ledger, Registry(given.tracking_uri, given.cache))
        self._own = (
            {} if pools else {one.name: Stage(given.for_pool(one)) for one in given.placement.pools}
        )
        remote = {name: Remote(handle) for name, handle in pools.items()}
        stage_of = drawn_by(given.placement, self._own or remote)
        observer = Observer(ledger, Observations(given.database))
        self._parts = Parts(
            endpoints=endpoints,
            arms=Arms(Executor(stage_of), observer, given.timeout_s),
            stage_of=stage_of,
            files=Files(given.files, signing),
            samples=Samples(given.samples),
            signing=signing,
            keys=keys,
            readiness=Readiness(given.placement, self._own or remote, endpoints),
            arguments=given,
        )

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take over which versions the pools hold, and load those that this process holds itself."""
        versions = user_config["versions"]
        self._parts.readiness.expect(versions)
        mine = self._parts.arguments.placement.split(versions)
        for name, stage in self._own.items():
            await stage.reconfigure({"versions": mine[name]})

    def check_health(self) -> None:
        """Tell Serve to replace this replica when a stage of its own has died.

        Raises:
            RuntimeError: it has.
        """
        for stage in self._own.values():
            stage.check_health()

    def close(self) -> None:
        """Stop the stages of its own; what is under way there fails as `stopped`."""
        for stage in self._own.values():
            stage.close()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application; Serve calls this in the replica."""
        app = create(self._parts, behind_proxy=True)
        place = sockets.folder()
        return app if place is None else sockets.Listening(app, place)


def build(args: dict[str, Any]) -> "serve.Application":
    """Return the Serve application "atelier"; `args` are `Arguments` as JSON, the placement among them.

    Without a placement replicas ask for no CPUs, so that training and serving share a laptop.
    """
    from ray import serve

    given = Arguments.model_validate(args)
    options = given.placement.deployments()
    pools = {
        pool.name: serve.deployment(name=pool.name, **options[pool.name])(Stage).bind(
            given.for_pool(pool)
        )
        for pool in given.placement.pools
        if pool.name in options
    }
    ingress = serve.deployment(name=GATEWAY, **options[GATEWAY])(serve.ingress()(Gateway))
    application: serve.Application = ingress.bind(given.model_dump(mode="json"), pools)
    return application
