import json
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from data import stages
from data.catalog import (
    CatalogError,
    PrepareError,
    add_own,
    datasets,
    entered,
    forget,
    identity,
    point,
    prepare,
    prepared,
    repair_locks,
)
from data.loaders import everything, facts_of, records
from data.params import add
from data.repro import reason, reproduce, sweep
from tests.s3_kit import BUCKET, bucket, keys

ROOT = Path(__file__).parents[2]
OWN = "  # our own\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of its own: our code, our dvc.yaml, an empty DVC repository without git."""
    folder = tmp_path_factory.mktemp("project")
    ignore = shutil.ignore_patterns("made", "prepared", "raw", "quarantine", "__pycache__")
    shutil.copytree(ROOT / "data", folder / "data", ignore=ignore)
    shutil.copytree(ROOT / "infra", folder / "infra", ignore=ignore)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "--quiet"], cwd=folder, check=True, timeout=120)
    subprocess.run([*dvc, "config", "core.analytics", "false"], cwd=folder, check=True, timeout=120)
    return folder


@pytest.mark.parametrize("stage", ["make", "facts", "shards"])
def test_a_change_of_how_pictures_clips_and_sounds_are_read_prepares_anew(stage: str) -> None:
    needed = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["do"]["deps"]
    code = [one for place in needed for one in (ROOT / place).glob("*.py")]
    media = {
        name for one in code for name in re.findall(r"from (infra\.media\.\w+)", one.read_text())
    }
    assert media
    for name in media:
        file = Path(f"{name.replace('.', '/')}.py")
        assert any(file.is_relative_to(place) for place in needed), file


@pytest.fixture(autouse=True)
def without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATELIER_RAY_ADDRESS", raising=False)


def pictures(folder: Path, count: int = 20) -> dict[str, str]:
    """Draw soft colourful photographs; returns their captions."""
    (folder / "pictures").mkdir(parents=True)
    generator = np.random.default_rng(0)
    captions = {}
    for number in range(count):
        name = f"pictures/{number:03d}.jpg"
        corners = generator.integers(0, 256, (3, 4, 3), np.uint8)
        Image.fromarray(corners).resize((80, 60), Image.Resampling.BICUBIC).save(folder / name)
        captions[name] = f"my picture {number % 4}"
    return captions


def list_them(folder: Path, captions: dict[str, str]) -> None:
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in captions.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    for name in captions:
        (folder / name).touch()


@pytest.mark.slow
def test_own_pictures_are_prepared_and_a_second_time_costs_no_stage(
    project: Path, tmp_path: Path
) -> None:
    list_them(tmp_path, pictures(tmp_path))
    add_own("folder", "mine", tmp_path, {"image_size": 32}, project)
    with pytest.raises(CatalogError, match="mine was never prepared: run `atelier data prepare"):
        prepared("mine", project)
    with ThreadPoolExecutor() as pool:  # two at once: one prepares, the other waits for it
        both = [pool.submit(prepare, "mine", project) for _ in range(2)]
    second, first = sorted((done.result() for done in both), key=lambda found: len(found.ran))
    assert first.ran == ("make", "facts", "validate", "shards")
    assert second.ran == ()
    assert first.report is not None
    assert "accepted" in first.report.read_text()
    rows = {split: entry["rows"] for split, entry in first.header["splits"].items()}
    assert sum(rows.values()) == 20
    assert all(rows.values())
    pixels, captions, _ = everything(first.path, "train")
    assert pixels.shape == (rows["train"], 3, 32, 32)
    assert set(captions) <= {f"my picture {number}" for number in range(4)}

    again = prepare("mine", project)
    assert again.ran == ()
    assert again.identity == first.identity == identity("mine", project)
    row = next(row for row in datasets(project) if row.name == "mine")
    assert (row.identity, row.rows) == (first.identity, rows)

    shutil.rmtree(project / ".dvc" / "cache")  # the identity can be told from the bytes alone
    assert prepared("mine", project).identity == first.identity
    header = first.path / "dataset.json"
    header.write_text(header.read_text().replace("my picture", "no picture"))
    with pytest.raises(CatalogError, match=r"mine is not what dvc.lock names"):
        prepared("mine", project)


@pytest.mark.slow
def test_own_text_is_prepared_from_a_file_to_a_loader_and_travels_by_s3(
    project: Path, tmp_path: Path
) -> None:
    (tmp_path / "book.txt").write_text("".join(f"line {number}\n" for number in range(9000)))
    settings = {"tokenizer": {"kind": "characters", "size": 100}}
    add_own("text", "book", tmp_path / "book.txt", settings, project)
    found = prepare("book", project)
    assert "tokenizer" in facts_of(found.path)
    assert "accepted" in (found.report.read_text() if found.report else "")
    row = next(row for row in datasets(project) if row.name == "book")
    assert (row.modality, row.size) == ("text", "characters, 100 at most")
    assert records(found.path, "train")[0][0][1].startswith("line 0\nline 1\n")

    (project / ".dvc" / "config.local").write_text(
        f"[core]\n    remote = far\n['remote \"far\"']\n    url = s3://{BUCKET}/data\n"
    )
    elsewhere = tmp_path / "elsewhere"  # as git clones it, with the remote's name and nothing made
    left = shutil.ignore_patterns("made", "prepared", "cache", "tmp")
    shutil.copytree(project, elsewhere, ignore=left)
    with bucket() as client:
        for verb, folder in (("push", project), ("pull", elsewhere)):
            command = [sys.executable, "-m", "dvc", verb, "--quiet", "shards@book"]
            subprocess.run(command, cwd=folder, check=True, timeout=120)
        assert keys(client, "data/files/md5/")
    assert prepared("book", elsewhere).identity == found.identity
    assert records(elsewhere / "data/prepared/book", "train") == records(found.path, "train")


@pytest.mark.slow
def test_bad_pictures_are_refused_one_by_one(project: Path, tmp_path: Path) -> None:
    captions = pictures(tmp_path)
    photo = tmp_path / "pictures" / "007.jpg"
    photo.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    shutil.copy(tmp_path / "pictures/004.jpg", tmp_path / "pictures/013.jpg")
    list_them(tmp_path, captions | {"pictures/011.jpg": ""})
    add_own("folder", "bad", tmp_path, {"image_size": 32}, project)
    with pytest.raises(PrepareError) as caught:
        prepare("bad", project)
    lines = str(caught.value).splitlines()
    assert lines[0] == "bad is refused"
    assert "expectation 'decodes fully' is broken by 1 of 20 samples" in lines
    assert lines[4:7] == [
        "pictures/007.jpg: truncated JPEG (cannot be decoded fully)",
        "pictures/011.jpg: empty caption",
        "pictures/013.jpg: duplicate of pictures/004.jpg",
    ]
    quarantine = (project / "data" / "quarantine" / "bad.csv").read_text()
    assert "pictures/011.jpg,caption present,empty caption" in quarantine
    assert "refused" in stages.report_path("bad", project).read_text()
    with pytest.raises(CatalogError, match="never prepared"):
        prepared("bad", project)


@pytest.mark.slow
def test_a_full_disk_publishes_nothing_and_a_torn_lock_is_mended(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = project / ".dvc" / "tmp" / "rwlock"
    torn.parent.mkdir(exist_ok=True)
    torn.write_text('{"write": {"data/made')
    monkeypatch.setenv("ATELIER_FAULT", "storage.rename:enospc")
    with pytest.raises(PrepareError, match=r"^no space left on the disk: free some"):
        prepare("digits", project)
    assert not (project / "data" / "prepared" / "digits").exists()
    monkeypatch.delenv("ATELIER_FAULT")
    json.loads(torn.read_text())


@pytest.mark.slow
def test_what_a_killed_maker_left_is_gone_at_the_next_try(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_FAULT", "storage.rename:kill")
    for _ in range(2):
        with pytest.raises(PrepareError, match="cannot prepare digits: stage make of digits"):
            prepare("digits", project)
        assert len(list((project / "data" / "made" / "digits").glob(".samples-*"))) == 1


def test_a_lock_that_is_whole_or_being_written_is_left_alone(tmp_path: Path) -> None:
    import fcntl

    path = tmp_path / ".dvc" / "tmp" / "rwlock"
    assert not repair_locks(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert not repair_locks(tmp_path)
    path.write_text("{")
    with (path.parent / "rwlock.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        assert not repair_locks(tmp_path)
    assert repair_locks(tmp_path)
    assert not path.exists()


def test_missing_files_are_named_before_anything_runs(project: Path, tmp_path: Path) -> None:
    where = project / "data" / "raw" / "mnist"
    with pytest.raises(CatalogError, match=f"mnist: no folder {where}: put the four MNIST"):
        prepare("mnist", project)
    with pytest.raises(CatalogError, match="mnist: no folder /nowhere"):
        point("mnist", Path("/nowhere"), project)
    with pytest.raises(
        CatalogError, match=r"shapes is made up by data/makers/shapes.py and reads no"
    ):
        point("shapes", tmp_path, project)
    row = next(row for row in datasets(project) if row.name == "mnist")
    assert row.identity is None
    assert "no folder" in row.problem


def test_two_makers_at_once_leave_one_whole_dataset(project: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("datasets: {shapes: {maker: shapes, count: 480}}")
    with ThreadPoolExecutor() as pool:
        outcomes = [pool.submit(stages.make, "shapes", tmp_path) for _ in range(3)]
    assert any(outcome.exception() is None for outcome in outcomes)
    found = sorted(path.name for path in (tmp_path / "data/made/shapes/samples").iterdir())
    assert found == ["made.json", "part-00000.parquet"]
    assert [path.name for path in (tmp_path / "data/made/shapes").iterdir()] == ["samples"]


def test_samples_with_a_part_missing_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("datasets: {digits: {maker: digits}}")
    stages.make("digits", tmp_path)
    next((tmp_path / "data/made/digits/samples").glob("part-*")).unlink()
    with pytest.raises(CatalogError, match=r"run `dvc repro --force make@digits`"):
        stages.facts("digits", tmp_path)


def test_a_project_without_dvc_says_so(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("datasets: {shapes: {maker: shapes}}")
    with pytest.raises(PrepareError, match="is not a DVC repository: run `dvc init`"):
        prepare("shapes", tmp_path)


def test_an_unknown_dataset_lists_the_known_ones(project: Path) -> None:
    with pytest.raises(
        CatalogError, match="unknown dataset 'shape'; choose one of shapes, shapes-teal, "
    ):
        prepare("shape", project)
    assert stages.main(["make", "shape"]) == 1
    assert stages.main(["prepare", "shapes"]) == 2


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("My Pictures", 32, "dataset name 'My Pictures'"),
        ("shapes", 32, "'shapes' is already a dataset made by 'shapes'"),
        ("mine", 7, "datasets.mine.image_size: Input should be greater than or equal to 8"),
    ],
)
def test_a_folder_that_cannot_be_added_says_why(
    project: Path, tmp_path: Path, name: str, size: int, message: str
) -> None:
    before = (project / "params.yaml").read_text()
    list_them(tmp_path, {"a.png": "x"})
    with pytest.raises(CatalogError, match=message):
        add_own("folder", name, tmp_path, {"image_size": size}, project)
    assert (project / "params.yaml").read_text() == before


def test_adding_keeps_the_other_lines_of_params(tmp_path: Path) -> None:
    text = f"# mine\ndatasets:{OWN}  shapes: {{maker: shapes}}\n\nother: 3  # kept\n"
    (tmp_path / "params.yaml").write_text(text)
    photos = tmp_path / "photos"
    photos.mkdir()
    list_them(photos, {"a.png": "x"})
    add_own("folder", "cats", photos, {"image_size": 16}, tmp_path)
    add_own("folder", "cats", photos, {"image_size": 32}, tmp_path)
    found = (tmp_path / "params.yaml").read_text()
    line = "  cats: {maker: folder, path: photos, image_size: 32}\n"
    assert found == text.replace("{maker: shapes}\n", "{maker: shapes}\n" + line)
    assert yaml.safe_load(found)["other"] == 3
    add("dogs", {"maker": "folder", "path": "photos"}, tmp_path)
    add_own("folder", "cats", photos, {"image_size": 16}, tmp_path)
    assert [*yaml.safe_load((tmp_path / "params.yaml").read_text())["datasets"]][-2:] == [
        "cats",
        "dogs",
    ]


def test_of_many_who_add_at_once_each_is_added(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("datasets:\n  shapes: {maker: shapes}\n")
    together = threading.Barrier(8)

    def add_one(number: int) -> None:
        together.wait()
        add(f"shapes-{number}", {"maker": "shapes", "count": 100 + number}, tmp_path)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add_one, range(8)))
    found = yaml.safe_load((tmp_path / "params.yaml").read_text())["datasets"]
    assert found.keys() == {"shapes", *(f"shapes-{number}" for number in range(8))}


@pytest.mark.parametrize("before", [None, 16])
def test_a_refused_dataset_leaves_params_as_they_were(tmp_path: Path, before: int | None) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(f"# mine\ndatasets:{OWN}  shapes: {{maker: shapes}}\nother: 3\n")
    photos = tmp_path / "photos"
    photos.mkdir()
    list_them(photos, {"a.png": "x"})
    if before is not None:
        add_own("folder", "cats", photos, {"image_size": before}, tmp_path)
    found = params.read_text()

    def prepare_own() -> None:
        with entered("cats", tmp_path):
            add_own("folder", "cats", photos, {"image_size": 32}, tmp_path)
            prepare("cats", tmp_path)  # where there is no DVC

    with pytest.raises(PrepareError):
        prepare_own()
    assert params.read_text() == found


def test_a_forgotten_dataset_leaves_the_files_it_was_made_from(tmp_path: Path) -> None:
    others = f"# mine\ndatasets:{OWN}  shapes: {{maker: shapes}}\n"
    lock = "schema: '2.0'\nstages:\n  make@shapes:\n    cmd: x\n"
    (tmp_path / "params.yaml").write_text(others + "  cats: {maker: folder, path: photos}\n")
    (tmp_path / "dvc.lock").write_text(lock + "  make@cats:\n    deps:\n    - path: photos\n")
    for folder in ("photos", "data/made/cats/samples", "data/prepared/cats", "data/made/shapes"):
        (tmp_path / folder).mkdir(parents=True)
    told = stages.report_path("cats", tmp_path), stages.quarantine_path("cats", tmp_path)
    for page in told:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("with pictures of cats")
    forget("cats", tmp_path)
    assert not [page for page in told if page.exists()]
    told[1].parent.rmdir()
    assert (tmp_path / "params.yaml").read_text() == others
    assert (tmp_path / "dvc.lock").read_text() == lock
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_dir()}
    assert left == {"photos", "data", "data/made", "data/made/shapes", "data/prepared"}
    with pytest.raises(CatalogError, match="unknown dataset 'cats'"):
        forget("cats", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: [", "is not YAML"),
        ("models: {}", "has no section `datasets`"),
        ("datasets: {x: {count: 3}}", r"datasets.x needs a `maker`, one of shapes"),
        ("datasets: {x: {maker: shape}}", r"datasets.x: unknown maker 'shape'"),
        ("datasets: {x: {maker: shapes, cout: 3}}", r"datasets.x.cout: Extra inputs are not"),
    ],
)
def test_a_typo_in_params_names_dataset_and_field(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(CatalogError, match=message):
        datasets(tmp_path)


def test_a_damaged_lock_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("datasets: {shapes: {maker: shapes}}")
    (tmp_path / "dvc.lock").write_text("stages: [")
    with pytest.raises(CatalogError, match="delete it and prepare again"):
        prepared("shapes", tmp_path)


@pytest.mark.parametrize("file", ["dvc.yaml", "dvc.lock", "params.yaml"])
def test_a_file_that_unfolds_without_end_is_named_before_dvc_reads_it(
    tmp_path: Path, file: str
) -> None:
    (tmp_path / ".dvc").mkdir()
    steps = (f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    (tmp_path / file).write_text("a0: &a0 [x]\n" + "".join(steps))
    with pytest.raises(PrepareError, match=rf"{file} unfolds to more than 100000 nodes"):
        reproduce("shapes", tmp_path)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["/bin/python: No module named dvc"], "DVC is not installed beside"),
        (
            ["ERROR: unexpected error - [Errno 28] No space left on device"],
            "x: no space left on the disk: free some and prepare again",
        ),
        (
            ["ERROR: '/p/samples' is busy, it is being blocked by:", "  (PID 42): dvc repro"],
            "x is being prepared by process 42: wait for it and prepare again",
        ),
        (
            [
                "Traceback (most recent call last):",
                "KeyError: 'caption'",
                "ERROR: failed to reproduce 'facts@x': failed to run: python -m data.stages",
            ],
            "cannot prepare x: stage facts of x: KeyError: 'caption'",
        ),
        ([], "cannot prepare x: no word from DVC"),
    ],
)
def test_what_dvc_says_becomes_one_line(lines: list[str], said: str) -> None:
    found = reason("x", lines)
    assert found.startswith(said)
    assert "\n" not in found


@pytest.mark.slow
def test_a_cache_that_other_projects_may_share_is_left_alone(project: Path, tmp_path: Path) -> None:
    assert sweep(project, really=False) == "nothing that the workspace does not use"
    kept = tmp_path / "shared" / "files" / "md5" / "00" / ("0" * 30)
    kept.parent.mkdir(parents=True)
    kept.touch()
    config = project / ".dvc" / "config.local"
    config.write_text(f"[cache]\n    dir = {tmp_path / 'shared'}\n")
    try:
        assert "is outside of this project, and others may use it" in sweep(project, really=True)
    finally:
        config.unlink()
    assert kept.exists(), "what another project put there"


def test_the_locked_hashes_are_of_the_code_that_is_here() -> None:
    """Else a run on a fresh clone leaves dvc.lock changed; `atelier data prepare NAME` writes a dataset's anew."""
    stages = [*yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]]
    command = [sys.executable, "-m", "dvc", "status", "--json", *stages]
    done = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
    )
    stale = {
        stage.partition("@")[2]
        for stage, found in json.loads(done.stdout).items()
        for one in found
        for path, how in one.get("changed deps", {}).items()
        if how != "deleted" and not path.startswith("data/made/")
    }
    assert not stale, "atelier data prepare each of them"
