"""Versions on a real MLflow: published once, verified before use, found again by name."""

import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from infra.registry.registry import Registry, RegistryError, Unreachable, Version, no_such
from infra.settings import QUIET
from infra.storage import MANIFEST, IntegrityError, seal, sha256_of
from tests.ports_kit import free_ports
from tests.s3_kit import BUCKET, bucket, keys

FACTS = {"kind": "model", "data_identity": "d0", "code_identity": "c0", "seed": 3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MLflow's database, which takes seconds to make: shared, so tests take names of their own."""
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def uri(home: Path) -> str:
    return f"sqlite:///{home / 'mlflow.db'}"


@pytest.fixture
def registry(uri: str, tmp_path: Path) -> Registry:
    return Registry(uri, tmp_path / "cache")


def version_directory(folder: Path, weights: bytes = b"weights", **facts: object) -> Path:
    directory = folder / f"version-{sha256_of_bytes(weights)}"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(weights)
    (directory / "config.json").write_text('{"family": "ddpm"}')
    (directory / "card.md").write_text("# A card\n")
    seal(directory, {**FACTS, **facts})
    return directory


def sha256_of_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def test_a_store_on_s3_without_its_client_is_one_line_with_the_way_out(
    registry: Registry, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setitem(sys.modules, "boto3", None)  # as where it is not installed
    MlflowClient(uri).create_experiment("bucket", "s3://bucket/artifacts")
    with pytest.raises(RegistryError, match=r"cannot be reached: .*boto3.* AWS_\*") as refusal:
        registry.publish("bucket.base", version_directory(tmp_path), key="k", tags={})
    assert "\n" not in str(refusal.value)


def test_a_version_is_published_to_s3_and_fetched_verified_elsewhere(
    registry: Registry, uri: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    MlflowClient(uri).create_experiment("far", f"s3://{BUCKET}/artifacts")
    made = version_directory(tmp_path)
    with bucket() as client:
        version = registry.publish("far.base", made, key="k", tags={})
        assert registry.place(version) is None, "no folder of this machine holds it"
        (weights,) = (one for one in keys(client, "artifacts/") if one.endswith(".safetensors"))

        elsewhere = Registry(uri, tmp_path / "elsewhere")
        found = elsewhere.documents(version, ("config.json",))
        assert found == {"config.json": {"family": "ddpm"}}
        fetched = elsewhere.fetch("far.base:1")
        assert (fetched / "model.safetensors").read_bytes() == b"weights"
        assert sha256_of(fetched / MANIFEST) == version.digest

        client.put_object(Bucket=BUCKET, Key=weights, Body=b"others")
        with pytest.raises(IntegrityError, match=r"far\.base:1 is damaged in the store"):
            Registry(uri, tmp_path / "late").fetch(version)
        registry.remove(version)
        assert keys(client, "artifacts/") == []


def publish(registry: Registry, folder: Path, name: str, count: int = 1) -> list[Version]:
    return [
        registry.publish(
            name, version_directory(folder, f"{name} {number}".encode()), key=f"k{number}", tags={}
        )
        for number in range(count)
    ]


def test_documents_are_read_without_the_weights_and_verified(
    registry: Registry, tmp_path: Path
) -> None:
    [version] = publish(registry, tmp_path, "papers.base")
    found = registry.documents(version, ("config.json", "none.json"))
    assert found == {"config.json": {"family": "ddpm"}}
    assert not (tmp_path / "cache").exists()
    kept = registry.fetch(version)
    assert registry.documents(version, ("config.json",)) == found
    shutil.rmtree(kept)
    place = registry.place(version)
    assert place is not None
    (place / "config.json").write_text('{"family": "gan"}')
    with pytest.raises(IntegrityError, match=r"papers\.base:1 is damaged .*config\.json"):
        registry.documents(version, ("config.json",))


def test_a_version_comes_back_with_its_bytes_and_its_lineage(
    registry: Registry, tmp_path: Path
) -> None:
    directory = version_directory(tmp_path)
    run_id = registry.start_run("whole", "whole-1", {})
    made = registry.publish(
        "whole.base", directory, key="k", tags={"atelier.parents": "judge:2"}, run_id=run_id
    )
    assert (made.ref, made.kind, made.digest) == (
        "whole.base:1",
        "model",
        sha256_of(directory / MANIFEST),
    )
    lineage = {
        "atelier.data_identity": "d0",
        "atelier.code_identity": "c0",
        "atelier.parents": "judge:2",
    }
    assert lineage.items() <= made.tags.items()
    fetched = registry.fetch(made)
    assert fetched.name == made.digest
    for file in directory.iterdir():
        assert (fetched / file.name).read_bytes() == file.read_bytes()
    assert registry.get("whole.base") == registry.get("whole.base:1") == made
    assert registry.find("whole.base", "k") == made


def test_publishing_again_under_a_key_gives_the_same_version(
    registry: Registry, tmp_path: Path
) -> None:
    directory = version_directory(tmp_path)
    first = registry.publish("again", directory, key="k", tags={})
    assert registry.publish("again", directory, key="k", tags={}) == first
    assert registry.versions("again") == [first]
    assert registry.find("again", "other") is None
    other = version_directory(tmp_path, b"other weights")
    with pytest.raises(
        RegistryError, match=r"key 'k' published again:1 with digest .* take a new key"
    ):
        registry.publish("again", other, key="k", tags={})


@pytest.mark.parametrize("place", ["registry.named", "registry.logged", "registry.registered"])
def test_an_interrupted_publication_is_finished_by_the_next(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    name, directory = place.replace("registry.", "cut-"), version_directory(tmp_path)
    monkeypatch.setenv("ATELIER_FAULT", f"{place}:enospc")
    with pytest.raises(OSError, match="No space left"):
        registry.publish(name, directory, key="k", tags={})
    monkeypatch.delenv("ATELIER_FAULT")
    made = registry.publish(name, directory, key="k", tags={})
    assert registry.versions(name) == [made]
    assert registry.fetch(made).is_dir()


def test_a_name_whose_first_publication_was_cut_off_has_no_version_and_says_so(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_FAULT", "registry.named:enospc")
    with pytest.raises(OSError, match="No space left"):
        publish(registry, tmp_path, "halfway")
    assert "halfway" in registry.names()
    assert registry.versions("halfway") == []
    for ref in ("halfway", "halfway:1"):
        with pytest.raises(RegistryError, match=r"^halfway has no version: .*publish it again$"):
            registry.get(ref)
    with pytest.raises(RegistryError, match=r"halfway has no version at 'production'"):
        registry.get("halfway@production")
    with pytest.raises(RegistryError, match=r"no model is called 'halfwey'; did you mean halfway"):
        registry.versions("halfwey")


def test_publishers_who_race_under_one_key_make_one_version(uri: str, tmp_path: Path) -> None:
    directory = version_directory(tmp_path)

    def one(number: int) -> Version:
        return Registry(uri, tmp_path / f"{number}").publish("race", directory, key="k", tags={})

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(one, range(4)))
    standing = Registry(uri, tmp_path / "cache").versions("race")
    assert [version.number for version in standing] == [min(version.number for version in made)]
    assert {version.number for version in made} == {standing[0].number}


@pytest.mark.parametrize(
    "file", ["weights.pkl", "model.pt", "pytorch_model.bin", "run.py", "noname"]
)
def test_files_that_could_run_are_refused(registry: Registry, tmp_path: Path, file: str) -> None:
    directory = version_directory(tmp_path)
    (directory / file).write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/canary'\ntR.")
    seal(directory, FACTS)
    with pytest.raises(RegistryError, match=rf"{file} may not be published"):
        registry.publish("canary", directory, key="k", tags={})
    assert "canary" not in registry.names()


def test_what_is_not_sealed_or_was_altered_is_not_published(
    registry: Registry, tmp_path: Path
) -> None:
    with pytest.raises(IntegrityError, match="never finished"):
        registry.publish("unsealed", tmp_path, key="k", tags={})
    directory = version_directory(tmp_path)
    (directory / "config.json").write_text('{"family": "DDPM"}')
    with pytest.raises(IntegrityError, match="was altered"):
        registry.publish("unsealed", directory, key="k", tags={})


def test_names_versions_and_aliases_are_listed(registry: Registry, tmp_path: Path) -> None:
    first, second, third = publish(registry, tmp_path, "listed", count=3)
    assert registry.versions("listed") == [first, second, third]
    assert registry.get("listed") == third
    assert "listed" in registry.names()
    registry.project("listed", {"staging": 2, "production": 1})
    assert registry.get("listed@staging") == second
    registry.project("listed", {"production": 3})
    assert registry.get("listed@production") == third
    with pytest.raises(RegistryError, match=r"no version at 'staging' \(it has: production\)"):
        registry.get("listed@staging")


def test_of_many_models_some_are_named_and_no_stages() -> None:
    many = [f"m{number:02d}" for number in range(20)] + ["m00.base"]
    assert no_such("zzz", many) == (
        "no model is called 'zzz'; there are: m00, m01, m02, m03, m04, m05, m06, m07 and 12 more (atelier models)"
    )
    assert no_such("zzz", ["m00", "m00.base"]) == "no model is called 'zzz'; there are: m00"
    assert no_such("zzz", ["m00.base"]) == "no model is called 'zzz'; there are: m00.base"
    assert no_such("zzz", []) == "no model is called 'zzz'; there are: none yet"


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("knwon.base", r"no model is called 'knwon.base'; did you mean known.base"),
        ("known.base:9", r"known.base has no version 9; it has 1, 2"),
        ("zzzzzz@staging", r"no model is called 'zzzzzz'; there are: [a-z]"),
        ("known.base:x", r"names no version; write NAME, NAME:3 or NAME@staging"),
        ("a' or 1=1", r"cannot be a model name"),
    ],
)
def test_an_unknown_reference_shows_the_way(
    registry: Registry, tmp_path: Path, ref: str, message: str
) -> None:
    if "known.base" not in registry.names():
        publish(registry, tmp_path, "known.base", count=2)
    with pytest.raises(RegistryError, match=message) as refused:
        registry.get(ref)
    assert "\n" not in str(refused.value)


def test_a_damaged_copy_is_set_aside_and_fetched_anew(uri: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    [made] = publish(Registry(uri, cache), tmp_path, "damaged")
    kept = Registry(uri, cache).fetch(made)
    (kept / "model.safetensors").write_bytes(b"WEIGHTS")
    again = Registry(uri, cache).fetch(made)
    assert (again / "model.safetensors").read_bytes() == b"damaged 0"
    assert len(list(cache.glob("*.damaged-*"))) == 1
    assert not list(cache.glob("*.tmp-*"))


def test_a_version_that_is_damaged_in_the_store_is_never_served(
    uri: str, home: Path, tmp_path: Path
) -> None:
    [made] = publish(Registry(uri, tmp_path / "cache"), tmp_path, "rotten")
    [stored] = [
        path
        for path in (home / "artifacts").rglob("model.safetensors")
        if path.read_bytes() == b"rotten 0"
    ]
    stored.write_bytes(b"Rotten 0")
    with pytest.raises(IntegrityError, match=r"rotten:1 is damaged in the store: .*was altered"):
        Registry(uri, tmp_path / "cache").fetch("rotten:1")
    assert list((tmp_path / "cache").iterdir()) == []
    assert made.number == 1


def test_a_pinned_digest_is_served_from_disk_alone_and_never_exchanged(
    registry: Registry, tmp_path: Path
) -> None:
    first, second = publish(registry, tmp_path, "pinned", count=2)
    kept = registry.fetch("pinned", 1, digest=first.digest)
    offline = Registry("http://127.0.0.1:1", tmp_path / "cache")
    assert offline.fetch("pinned", 1, digest=first.digest) == kept
    with pytest.raises(RegistryError, match=r"pinned:2 has digest .*, but .* is pinned"):
        registry.fetch("pinned", 2, digest="0" * 64)
    assert registry.fetch("pinned:2") == registry.fetch(second)


def test_a_publication_s_copy_is_kept_once_and_read_without_mlflow(
    registry: Registry, tmp_path: Path
) -> None:
    directory = version_directory(tmp_path)
    made = registry.publish("copied", directory, key="copied", tags={})
    for _ in range(2):
        registry.keep(made, directory)
    kept = Registry("http://127.0.0.1:1", tmp_path / "cache").fetch("copied:1", digest=made.digest)
    assert kept == tmp_path / "cache" / made.digest
    assert sha256_of(kept / MANIFEST) == made.digest
    assert [one.name for one in (tmp_path / "cache").iterdir()] == [made.digest]


def test_a_server_that_is_not_there_is_named_at_once(tmp_path: Path) -> None:
    started = time.process_time()
    with pytest.raises(
        Unreachable, match=r"does not answer at http://127\.0\.0\.1:1 .*`atelier up`"
    ):
        Registry("http://user:secret@127.0.0.1:1", tmp_path).names()
    assert time.process_time() - started < 5


class Closed(BaseHTTPRequestHandler):
    """A server that lets nobody in."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def test_where_a_credential_is_missing_is_said(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Closed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(RegistryError, match=r"401.*MLFLOW_TRACKING_USERNAME .* Ray cluster"):
            Registry(f"http://127.0.0.1:{server.server_port}", tmp_path).names()
    finally:
        server.shutdown()
        server.server_close()


def test_equal_work_is_one_run_until_it_is_finished(registry: Registry) -> None:
    tags = {"atelier.identity": "runs-abc"}
    first = registry.start_run("runs", "a name", tags)
    assert registry.start_run("runs", "another name", tags) == first
    registry.end_run(first, "FAILED")
    assert registry.start_run("runs", "a name", tags) == first
    registry.end_run(first)
    assert registry.start_run("runs", "a name", tags) != first
    assert registry.start_run("runs", "b", {}) != first


def test_a_run_takes_many_metrics_params_and_files(
    registry: Registry, uri: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    run_id = registry.start_run("logging", "many", {"why": "test"})
    metrics = {f"metric_{number}": number / 7 for number in range(1200)}
    for step in (10, 20):
        registry.log_metrics(run_id, metrics, step)
    registry.log_params(run_id, {f"param_{number}": number for number in range(150)})
    registry.log_params(run_id, {"param_1": 1})
    (tmp_path / "grid.png").write_bytes(b"picture")
    registry.log_file(run_id, tmp_path / "grid.png", "samples")
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    assert run.data.metrics == metrics
    assert [point.step for point in client.get_metric_history(run_id, "metric_3")] == [10, 20]
    assert len(run.data.params) == 150
    assert run.data.tags["why"] == "test"
    assert [file.path for file in client.list_artifacts(run_id, "samples")] == ["samples/grid.png"]
    with pytest.raises(RegistryError, match="Changing param values is not allowed"):
        registry.log_params(run_id, {"param_1": 2})


class DroppingProxy(BaseHTTPRequestHandler):
    """Hands each request on; of one path it does so, and loses the first answer."""

    upstream: ClassVar[int]
    drop: ClassVar[str | None] = None
    dropped: ClassVar[int] = 0
    protocol_version = "HTTP/1.1"

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name != "Host"}
        server.request(self.command, self.path, body, headers)
        answer = server.getresponse()
        content = answer.read()
        server.close()
        self.close_connection = True
        if DroppingProxy.drop and self.path.endswith(DroppingProxy.drop):
            DroppingProxy.drop = None
            DroppingProxy.dropped += 1
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers["Content-Type"] or "")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def server(home: Path, uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real MLflow server of one worker on a copy of the database; its port."""
    Registry(uri, home).names()
    folder, [port] = tmp_path_factory.mktemp("server"), free_ports(1)
    shutil.copy(home / "mlflow.db", folder / "mlflow.db")
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--allowed-hosts", f"127.0.0.1:{port}"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, **QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + 120
        while not answers(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "MLflow did not start within 120 s"
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def through_proxy(server: int, tmp_path: Path) -> Iterator[Registry]:
    DroppingProxy.upstream, DroppingProxy.dropped = server, 0
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), DroppingProxy)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
    thread.start()
    yield Registry(f"http://127.0.0.1:{proxy.server_port}", tmp_path / "cache")
    proxy.shutdown()
    thread.join()
    proxy.server_close()


@pytest.mark.cluster
@pytest.mark.parametrize(
    "lost", ["logged-models", "model-versions/create", "registered-models/create"]
)
def test_a_lost_answer_makes_no_second_version(
    through_proxy: Registry, tmp_path: Path, lost: str
) -> None:
    name, directory = "lost-" + lost.replace("/", "-"), version_directory(tmp_path)
    DroppingProxy.drop = f"/{lost}"
    made = through_proxy.publish(name, directory, key="k", tags={})
    assert DroppingProxy.dropped == 1
    assert through_proxy.versions(name) == [made]
    assert made.number == 1
    fetched = through_proxy.fetch(made)
    assert (fetched / "model.safetensors").read_bytes() == b"weights"
    assert through_proxy.publish(name, directory, key="k", tags={}) == made


@pytest.mark.cluster
def test_a_lost_answer_makes_no_second_run(through_proxy: Registry) -> None:
    DroppingProxy.drop = "/runs/create"
    run_id = through_proxy.start_run("lost", "lost-run", {})
    assert DroppingProxy.dropped == 1
    assert through_proxy.start_run("lost", "lost-run", {}) == run_id
    through_proxy.log_metrics(run_id, {"loss": 0.5}, step=1)
    through_proxy.end_run(run_id)
    assert through_proxy.start_run("lost", "lost-run", {}) != run_id


def test_a_digest_that_names_another_folder_moves_nothing(uri: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    registry = Registry(uri, tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    for digest in ("../mine", str(tmp_path / "mine"), "..", "A" * 64):
        with pytest.raises(RegistryError, match="cannot be a sha256"):
            registry.fetch("shapes:1", digest=digest)
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "cache"}
