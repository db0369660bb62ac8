"""The gateway: OpenAI's API over the pipelines that the ledger names, as a Ray Serve application.

`services.application:build` is the import path of the application: the ingress `Gateway`, and the pools of stages that
the placement names, in its process (`fused`) or behind handles (`staged`). The routes each have a file.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from infra.placement import GATEWAY, Placement
from infra.receipts.signing import Signing
from services.api import (
    edits,
    embeddings,
    files,
    health,
    images,
    models,
    provenance,
    samples,
    scores,
    speech,
    text,
    variations,
    webhooks,
)
from services.api.served import Parts
from services.batches import routes as batches
from services.batches.batcher import Batcher
from services.gateway import errors, sockets
from services.gateway.guard import Guard, require_key_off_loopback
from services.gateway.openapi import Api
from services.gateway.readiness import Readiness
from services.jobs.runner import Kind, Runner
from services.jobs.store import Store
from services.jobs.webhooks import Courier
from services.jobs.working import Working
from services.media.answer_log import Samples
from services.media.result_store import Files
from services.meshes import routes as meshes
from services.meshes import work as mesh_work
from services.pipelines.executor import Executor
from services.pipelines.request import StageOf, Stages
from services.pipelines.stage_client import Remote
from services.routing.canary import Arms
from services.routing.endpoints import Endpoints
from services.settings import Arguments
from services.stages.deployment import Stage
from services.videos import routes as videos
from services.videos import work as video_work

if TYPE_CHECKING:
    from ray import serve
    from ray.serve.handle import DeploymentHandle


def create(parts: Parts, *, behind_proxy: bool = False) -> ASGIApp:
    """Return the whole gateway as an ASGI application; `behind_proxy` is Serve's."""
    return guarded(inside(parts), parts, behind_proxy=behind_proxy)


def inside(parts: Parts) -> Api:
    """Return the gateway without its door."""
    app = Api()
    errors.install(app)
    app.state.parts = parts
    for module in (
        health,
        models,
        images,
        files,
        edits,
        variations,
        text,
        speech,
        samples,
        embeddings,
        scores,
        provenance,
        videos,
        meshes,
        webhooks,
        batches,
    ):
        app.include(module.routes)
    return app


def guarded(app: Api, parts: Parts, *, behind_proxy: bool = False) -> ASGIApp:
    """Return the gateway behind its door."""
    arguments = parts.arguments
    return Guard(
        app,
        parts.keys,
        host=arguments.host,
        max_body=arguments.max_body,
        max_under_way=arguments.max_under_way,
        behind_proxy=behind_proxy,
    )


def drawn_by(placement: Placement, stages: Mapping[str, Stages]) -> StageOf:
    """Return which of the pools' `stages` draws a pinned one."""
    return lambda pinned: stages[placement.pool_of(pinned.name, pinned.family).name]


def kinds(signing: Signing) -> dict[str, Kind]:
    """Return how jobs are made, by kind."""
    return {
        video_work.KIND: video_work.clips(signing),
        mesh_work.KIND: mesh_work.meshes(signing),
    }


class Gateway:
    """The ingress deployment: before the handles of its pools, or without any, the pools in its own process."""

    def __init__(
        self, arguments: Mapping[str, Any], pools: "Mapping[str, DeploymentHandle[Any]]"
    ) -> None:
        from infra.jobs.jobs import Jobs
        from infra.jobs.webhooks import Webhooks
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
        executor, store, jobs = Executor(stage_of), Store(given.made), Jobs(given.database)
        self._runner = Runner(jobs, store, endpoints, executor, kinds(signing))
        webhooks, private = Webhooks(given.database), given.private_webhooks
        self._courier = Courier(webhooks, signing, private=private)
        self._parts = Parts(
            endpoints=endpoints,
            arms=Arms(executor, observer, given.timeout_s),
            stage_of=stage_of,
            files=Files(given.files, signing),
            jobs=jobs,
            webhooks=webhooks,
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
        app, parts = inside(self._parts), self._parts
        batcher = Batcher(parts.jobs, Store(parts.arguments.made), app)
        door = guarded(app, parts, behind_proxy=True)
        whole = Working(door, self._runner, self._courier, batcher)
        place = sockets.folder()
        return whole if place is None else sockets.Listening(whole, place)


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
