"""Pools of stages: each draws its own, and what they draw does not depend on where."""

import asyncio
import base64
import io
from typing import Any

import pytest
from PIL import Image

from infra.placement import Placement, Pool
from services.application import Gateway
from services.settings import Arguments

APART = Placement(
    layout="staged",
    pools=(
        Pool(name="upscalers", stages=("*.up*",)),
        Pool(name="asleep", families=("wavenet",), replicas={"min": 0}),
        Pool(name="bases"),
    ),
)


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
