"""Which stage runs where: pools by name and family, and what Serve is asked for."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.placement import Placement, PlacementError, Pool, placement_of, read_placement
from infra.settings import Settings

STAGED = """
layout: staged
gateway: {cpus: 1, replicas: {min: 2, max: 2}}
pools:
  - {name: large, stages: ["*.up*"], gpus: 0.5, cpus: 2, batch: [16, 4], replicas: {min: 1, max: 4}}
  - {name: rare, families: [wavenet, "pixel*"], gpus: 1, replicas: {min: 0, max: 2}}
  - {name: rest, gpus: 0.25}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "placement.yaml"
    path.write_text(STAGED)
    return path


def test_the_first_pool_that_names_a_stage_or_its_family_draws_it_and_one_takes_the_rest(
    file: Path,
) -> None:
    placement = read_placement(file)
    assert placement.pool_of("shapes.up1", "wavenet").name == "large"
    assert placement.pool_of("vowels.base", "wavenet").name == "rare"
    assert placement.pool_of("digits.base", "pixelcnn").name == "rare"
    assert placement.pool_of("shapes.base", "ddpm").name == "rest"
    assert Placement().pool_of("shapes.up1", "ddpm").name == "stages"


@given(st.lists(st.sampled_from(["a.base", "a.up1", "b.base", "b.voice"]), unique=True))
def test_every_version_is_held_by_one_pool_which_is_the_one_that_draws_it(
    names: list[str],
) -> None:
    pools = (
        Pool(name="bases", stages=("*.base",)),
        Pool(name="bs", stages=("b.*",)),
        Pool(name="rest"),
    )
    placement = Placement(layout="staged", pools=pools)
    versions = [{"name": name, "number": 1, "digest": name, "family": "ddpm"} for name in names]
    split = placement.split(versions)
    assert sorted(one["name"] for held in split.values() for one in held) == sorted(names)
    for pool, held in split.items():
        assert all(placement.pool_of(one["name"], one["family"]).name == pool for one in held)


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated")
def test_pools_apart_are_deployments_of_their_own_and_fused_ones_are_the_gateway(
    file: Path,
) -> None:
    from ray.serve.schema import DeploymentSchema  # warns at its import

    staged = read_placement(file).deployments()
    assert list(staged) == ["Gateway", "large", "rare", "rest"]
    for name, options in staged.items():
        DeploymentSchema.model_validate({"name": name, **options})
    assert (
        staged["large"]["autoscaling_config"]["target_ongoing_requests"] == 16
    )  # its largest batch
    assert staged["large"]["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0.5}
    assert staged["rare"]["autoscaling_config"]["min_replicas"] == 0
    assert staged["rest"]["num_replicas"] == 1
    pools = (Pool(name="stages", gpus=0.5, cpus=1, replicas={"min": 1, "max": 3}),)
    inside = Placement(layout="fused", gateway={"cpus": 1}, pools=pools)
    [(name, fused)] = inside.deployments().items()
    assert name == "Gateway"
    assert fused["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0.5}
    assert fused["autoscaling_config"]["max_replicas"] == 3
    assert Placement().deployments()["Gateway"]["ray_actor_options"] == {"num_cpus": 0}


def test_a_pool_computes_on_the_gpu_that_it_asks_for_and_uses_its_part_of_the_memory() -> None:
    half, none = Pool(name="half", stages=("*.up*",), gpus=0.5), Pool(name="rest")
    apart = Placement(layout="staged", pools=(half, none))
    assert (apart.device(half), apart.gpu_share(half)) == ("cuda", 0.5)
    assert apart.device(none) == "cpu"
    assert Placement().device(none) == "auto"
    quarter = Pool(name="rest", gpus=0.25)
    assert (
        Placement(layout="fused", pools=(half, quarter)).gpu_share(half) == 0.75
    )  # one process, one memory


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("gpus: 0.5", "gpus: 2"), r"pools\.0\.gpus: .*less than or equal to 1, got 2"),
        (("cpus: 2", "cpus: 80"), r"pools\.0\.cpus: .*less than or equal to 64, got 80"),
        (("batch: [16, 4]", "batch: []"), r"pools\.0\.batch: "),
        (("{min: 1, max: 4}", "{min: 5, max: 4}"), r"pools\.0\.replicas: min is 5, more than max, 4"),
        (("name: large", "name: Large Pool"), r"pools\.0\.name: .*pattern"),
        (("gpus: 0.25", "nodes: 3"), r"pools\.2\.nodes: Extra inputs are not permitted, got 3"),
        (("gpus: 0.25", "families: [ddpm]"), r"takes the rest; none does"),
        (("families: [wavenet, \"pixel*\"], ", ""), r"takes the rest; rare, rest do"),
        (("name: rest", "name: rare"), r"two pools have one name: large, rare, rare"),
        (("stages: [\"*.up*\"]", "stages: [a], families: [b]"), r"give stages or families, not both"),
        (("layout: staged", "layout: fused"), r"rare cannot scale to zero in the gateway's process"),
        (("replicas: {min: 2, max: 2}", "replicas: {min: 0}"), r"gateway\.replicas: the gateway cannot"),
        (("{cpus: 1, replicas", "{cpus: .inf, replicas"), r"gateway\.cpus: .*less than or equal to 64"),
        (("pools:", "pool:"), r"pool: Extra inputs"),
        (("layout: staged", "layout: [staged"), r"placement\.yaml"),
    ],
)  # fmt: skip
def test_a_placement_that_does_not_hold_together_is_refused_in_a_line(
    file: Path, change: tuple[str, str], why: str
) -> None:
    assert change[0] in STAGED
    file.write_text(STAGED.replace(*change))
    with pytest.raises(PlacementError, match=why) as raised:
        read_placement(file)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlacementError, match=r"none\.yaml cannot be read: No such file"):
        read_placement(tmp_path / "none.yaml")


def test_the_settings_say_where_and_a_cluster_keeps_what_its_operator_deployed(file: Path) -> None:
    def found(deployed: Any = None, **given: Any) -> Placement:
        return placement_of(Settings(project=file.parent, home=file.parent, **given), deployed)

    deployed = read_placement(file).model_dump(mode="json")
    assert found() == Placement()
    assert found(deployed) == Placement()  # a laptop's own
    assert found(placement=Path("placement.yaml")) == read_placement(file)
    assert found(deployed, ray_address="head:6379") == read_placement(file)
    assert found(layout="staged").layout == "staged"
    with pytest.raises(PlacementError, match=r"ATELIER_LAYOUT=fused: rare cannot scale to zero"):
        found(deployed, ray_address="head:6379", layout="fused")
