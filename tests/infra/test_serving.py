from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import serving
from infra.settings import Settings
from services.application import Arguments

PIN = {"name": "shapes.base", "number": 1, "digest": "a" * 64}


def settings(folder: Path, **changes: Any) -> Settings:
    return Settings(project=folder, home=folder, **changes)


def test_a_deploy_keeps_what_an_operator_sized(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "infra/deploy/serve/cluster.yaml"
    [operator] = yaml.safe_load(file.read_text())["applications"]
    mine = settings(tmp_path)
    application = serving._application(mine, [PIN], {"deployed_app_config": operator})
    sizes = {one["name"]: one for one in application["deployments"]}
    assert sizes["Generate"]["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0.5}
    assert (
        sizes["Generate"]["user_config"] == sizes["Upscale"]["user_config"] == {"versions": [PIN]}
    )
    assert sizes["Gateway"]["num_replicas"] == 2
    assert application["args"]["buckets"] == [16]
    assert application["args"]["database"] == mine.database
    again = serving._application(mine, [PIN], {"deployed_app_config": application})
    assert again == application


def test_a_deploy_to_a_cluster_keeps_the_folders_that_its_nodes_mount(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "infra/deploy/serve/cluster.yaml"
    [operator] = yaml.safe_load(file.read_text())["applications"]
    mine = settings(
        tmp_path, ray_address="ray://head:10001", database_url="postgresql://db/atelier"
    )
    args = serving._application(mine, [PIN], {"deployed_app_config": operator})["args"]
    for name in ("host", "cache", "files"):
        assert args[name] == operator["args"][name]
    assert args["database"] == "postgresql://db/atelier"
    assert args["samples"] == operator["args"]["samples"]


def test_kept_answers_lie_where_drift_reads_them(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "infra/deploy/serve/cluster.yaml"
    [operator] = yaml.safe_load(file.read_text())["applications"]
    mine = settings(tmp_path, ray_address="head:6379", storage_uri=str(tmp_path / "mount"))
    args = serving._application(mine, [PIN], {"deployed_app_config": operator})["args"]
    assert args["samples"] == str(mine.samples) == str(tmp_path / "mount" / "samples")
    assert settings(tmp_path).samples == settings(tmp_path).state / "samples"


def test_links_lead_to_the_public_address_and_a_cluster_is_asked_there(tmp_path: Path) -> None:
    public = "https://models.example.org"
    here = settings(tmp_path, host="0.0.0.0", gateway_port=9, public_url=f"{public}/v1/")
    assert here.gateway_url == f"{public}/v1"
    assert serving.address(here) == "http://127.0.0.1:9"
    assert settings(tmp_path, host="0.0.0.0", gateway_port=9).gateway_url == "http://127.0.0.1:9/v1"
    there = settings(tmp_path, ray_address="head:6379", public_url=public)
    assert serving.address(there) == public
    assert serving._application(there, [PIN], None)["args"]["public_url"] == public
    operator = {"deployed_app_config": {"args": {"public_url": "http://operator"}}}
    kept = serving._application(settings(tmp_path, ray_address="head:6379"), [PIN], operator)
    assert kept["args"]["public_url"] == "http://operator"
    with pytest.raises(ValueError, match="give the gateway's address"):
        settings(tmp_path, public_url="models:8000")


def test_a_gateway_on_ipv6_loopback_is_asked_by_a_valid_address(tmp_path: Path) -> None:
    mine = settings(tmp_path, host="::1", gateway_port=9)
    assert mine.gateway_url == "http://[::1]:9/v1"
    assert serving._missing(mine, []) is None  # nobody answers, and nothing is raised


def test_the_cluster_config_builds_the_application(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "infra/deploy/serve/cluster.yaml"
    [operator] = yaml.safe_load(file.read_text())["applications"]
    assert operator["import_path"] == serving.IMPORT_PATH
    given = Arguments.model_validate(operator["args"])
    assert given.for_stages()["device"] == "cuda"


def test_an_open_host_without_a_key_is_not_deployed(tmp_path: Path) -> None:
    with pytest.raises(serving.ServingError, match="atelier keys add"):
        serving.deploy(settings(tmp_path, host="0.0.0.0"), [PIN])


def test_without_a_dashboard_one_line_says_how_to_start_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(serving.ServingError, match="atelier up"):
        serving.deploy(settings(tmp_path), [PIN])
    assert serving.status(settings(tmp_path)) is None
