"""Pools of stages: each draws its own, and what they draw does not depend on where."""

import asyncio
import base64
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.pipelines import read_pipeline
from infra.placement import Placement, Pool
from services.application import Gateway
from services.gateway.errors import ApiError
from services.pipelines.executor import Executor
from services.pipelines.payload import GenerationSpec
from services.pipelines.stage_client import Remote
from services.settings import Arguments

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field` is deprecated"  # Serve's, at its import
)
APART = Placement(
    layout="staged",
    pools=(
        Pool(name="upscalers", stages=("*.up*",)),
        Pool(name="asleep", families=("wavenet",), replicas={"min": 0}),
        Pool(name="bases"),
    ),
)


class Hopping:
    """A deployment handle to a stage that is really in this process; it notes what is called."""

    def __init__(self, stage: Any) -> None:
        self._stage = stage
        self.calls: list[str] = []

    def options(self, **_options: Any) -> "Hopping":
        return self

    def __getattr__(self, name: str) -> Any:
        def remote(work: Any) -> Any:
            self.calls.append(name)
            return asyncio.ensure_future(getattr(self._stage, name)(work))

        return SimpleNamespace(remote=remote)


class Nobody:
    """A pool without replicas."""

    async def statuses(self) -> list[dict[str, Any]]:
        return []


@pytest.fixture
def pools(workshop: Any) -> Any:
    found = [workshop.stage(), Nobody(), workshop.stage()]
    yield found
    found[0].close()
    found[2].close()


def drawn(ask: Any, app: Any) -> list[bytes]:
    body = {"model": "shapes", "prompt": "a small red circle", "seed": 3, "n": 2}
    answer = ask(app, "POST", "/v1/images/generations", json=body).json()
    files = [io.BytesIO(base64.b64decode(entry["b64_json"])) for entry in answer["data"]]
    return [Image.open(file).tobytes() for file in files]


def test_each_pool_draws_its_own_stages_and_the_pictures_are_those_of_one_pool(
    workshop: Any, ask: Any, app: Any, pools: Any
) -> None:
    assert drawn(ask, workshop.gateway(*pools, placement=APART)) == drawn(ask, app)
    upscaler, base = (asyncio.run(pool.status())["loaded"] for pool in (pools[0], pools[2]))
    assert len(upscaler) == len(base) == 1
    assert upscaler != base


def made(pipeline: Any, spec: GenerationSpec, *handles: Any) -> list[Any]:
    """Return what is drawn by pools behind handles: of all stages, or of the base's and the rest's."""
    remotes = [Remote(handle) for handle in handles]

    def stage_of(pinned: Any) -> Any:
        return remotes[0] if pinned.stage == pipeline.stages[0].stage else remotes[-1]

    return list(asyncio.run(Executor(stage_of).draw(pipeline, spec)).made)


def test_stages_that_one_pool_holds_cost_one_hop_and_draw_what_two_pools_draw(
    workshop: Any, networks: Any, pools: Any
) -> None:
    version = workshop.publish_pipeline("shapes", networks("base"), networks("upscaler"))
    pipeline = read_pipeline(workshop.cache / version["digest"])
    spec = GenerationSpec(seeds=(1, 2), prompts=("a small red circle",) * 2)
    alone: Any = Hopping(pools[2])
    base, upscaler = handles = Hopping(pools[2]), Hopping(pools[0])
    np.testing.assert_array_equal(made(pipeline, spec, alone), made(pipeline, spec, *handles))
    assert alone.calls == ["draw_through"]
    assert base.calls == upscaler.calls == ["draw"]


def test_what_a_pool_refuses_on_its_walk_names_the_parameter(
    workshop: Any, networks: Any, pools: Any
) -> None:
    version = workshop.publish_pipeline("shapes", networks("base"), networks("upscaler"))
    pipeline = read_pipeline(workshop.cache / version["digest"])
    with pytest.raises(ApiError, match="unknown word 'blorp'") as raised:
        made(pipeline, GenerationSpec(seeds=(1,), prompts=("a blorp",)), Hopping(pools[2]))
    assert (raised.value.status, raised.value.param) == (400, "prompt")


def test_the_gateway_is_ready_when_each_pool_holds_its_own_and_one_may_sleep(
    workshop: Any, ask: Any, networks: Any, pools: Any
) -> None:
    stages = workshop.publish_pipeline("shapes", networks("base"), networks("upscaler"))["stages"]
    pins = [
        {"name": s["name"], "number": s["version"], "digest": s["sha256"], "family": s["family"]}
        for s in stages
    ]
    voice = {"name": "vowels.base", "number": 1, "digest": "e" * 64, "family": "wavenet"}
    split = APART.split([*pins, voice])
    base, upscaler = (pin["digest"] for pin in pins)

    def missing(told: list[Any]) -> dict[str, str]:
        app = workshop.gateway(*pools, placement=APART)
        workshop.readiness.expect(told)
        wanted = "&".join(f"digest={pin['digest']}" for pin in (*pins, voice))
        answer = ask(app, "GET", f"/readyz?{wanted}")
        assert answer.json()["stages"]
        assert (answer.status_code == 200) == (answer.json()["missing"] == {})
        return dict(answer.json()["missing"])

    assert missing([]).keys() == {base, upscaler, voice["digest"]}  # nobody was told of them yet
    assert missing([*pins, voice]).keys() == {base, upscaler}
    asyncio.run(pools[0].reconfigure({"versions": split["upscalers"]}))
    assert missing([*pins, voice]) == {base: "not loaded"}
    asyncio.run(pools[2].reconfigure({"versions": split["bases"]}))
    assert missing([*pins, voice]) == {}


def test_a_pool_that_does_not_sleep_and_does_not_answer_is_not_ready(
    workshop: Any, ask: Any, pools: Any
) -> None:
    app = workshop.gateway(pools[0], Nobody(), Nobody(), placement=APART)
    answer = ask(app, "GET", "/readyz")
    assert (answer.status_code, answer.json()["stages"]) == (503, False)


def test_a_gateway_without_pools_apart_draws_in_its_own_process(
    workshop: Any, ask: Any, networks: Any, app: Any
) -> None:
    arguments = Arguments(
        database=workshop.database,
        tracking_uri="sqlite:///none",
        cache=workshop.cache,
        files=workshop.folder / "files",
        samples=workshop.folder / "samples",
        signing=workshop.folder / "exchange",
        placement=Placement(layout="fused"),
    )
    gateway = Gateway(arguments.model_dump(mode="json"), {})
    stages = workshop.publish_pipeline("shapes", networks("base"), networks("upscaler"))["stages"]
    pins = [
        {"name": s["name"], "number": s["version"], "digest": s["sha256"], "family": s["family"]}
        for s in stages
    ]
    asyncio.run(gateway.reconfigure({"versions": pins}))
    fused = gateway.__serve_build_asgi_app__()
    wanted = "&".join(f"digest={pin['digest']}" for pin in pins)
    assert ask(fused, "GET", f"/readyz?{wanted}").status_code == 200
    assert drawn(ask, fused) == drawn(ask, app)
    gateway.check_health()
    gateway.close()
    with pytest.raises(RuntimeError, match="the step engine has stopped"):
        gateway.check_health()  # Serve replaces it
