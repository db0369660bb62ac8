"""Training in this process: it ends with equal bits however it was interrupted, and says what is wrong."""

import json
import math
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import models
from flows.recipe import Augment, Optimizer
from flows.training.checkpoints import generators, seed_generators, set_generators
from flows.training.journal import Journal, Progress, Reader, Reporter, repeated_steps
from flows.training.loop import Diverged
from flows.training.optimizers import AdamW, Average, clip, rate_at
from flows.training.previews import grid
from flows.training.ray_train import Trained, fit
from flows.training.rows import check_turns, rows_of
from flows.training.run_folder import Fenced, RunFolder
from infra.stack.cluster import Unreachable, connect
from infra.storage import IntegrityError, verify
from models import build
from models.parts.dropout import Dropout
from tests.flows.training_kit import TOY, prepare, spec_of, train_without_ray, weights_of

FAULTS = (
    "checkpoint.begin",
    "checkpoint.written",
    "checkpoint.sealed",
    "checkpoint.published",
    "checkpoint.read",
    "final.sealed",
    "storage.rename",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data") / "shades")


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(prepared, tmp_path_factory.mktemp("undisturbed"))


def train(
    prepared: Path, runs: Path, told: list[Progress] | None = None, **options: object
) -> Trained:
    """Train, where nothing else is asked with dropout: its masks, too, are part of what must come back."""
    on_progress = None if told is None else told.append
    dropped = {} if "family" in options else {"dropout": 0.25}
    spec = spec_of(prepared, config=dropped, **options)  # type: ignore[arg-type]
    return fit(spec, run_id=None, tracking_uri=None, runs=runs, on_progress=on_progress)


def test_a_result_holds_config_averaged_weights_and_a_picture(undisturbed: Trained) -> None:
    facts = verify(undisturbed.directory)
    assert facts["kind"] == "training"
    assert undisturbed.steps == facts["steps"] == 12
    assert undisturbed.repeated_steps == 0
    assert undisturbed.attempts == 1
    assert {"loss", "gradient_norm", "learning_rate", "samples_per_s"} <= undisturbed.metrics.keys()
    model = build(json.loads((undisturbed.directory / "config.json").read_bytes()))
    model.load_state_dict(load_file(undisturbed.directory / "model.safetensors"))
    with Image.open(undisturbed.directory / "samples.png") as picture:
        assert picture.size == (4 * 100, 4 * 100)  # 8 pixels a side, enlarged to be seen


def test_progress_is_told_at_every_log_step(prepared: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    train(prepared, tmp_path, told, sample_every=4)
    assert [now.step for now in told] == [2, 4, 6, 8, 10, 12]
    assert told[-1].seconds_left == 0
    assert all(math.isfinite(now.loss) and now.samples_per_s > 0 for now in told)
    pictures = sorted(path.name for path in tmp_path.glob("*/journal/*.png"))
    assert pictures == ["1-00000004.png", "1-00000008.png", "1-00000012.png"]


def test_finished_work_is_recognised(prepared: Path, undisturbed: Trained) -> None:
    again = train(prepared, undisturbed.directory.parents[1])
    assert again.directory == undisturbed.directory
    assert again.attempts == 1
    assert again.seconds["fit"] < 1


def test_every_bit_of_a_seed_decides_the_first_weights(prepared: Path, tmp_path: Path) -> None:
    still = {"model": Optimizer(learning_rate=1e-30)}
    short, long = (
        load_file(
            train(prepared, tmp_path, seed=seed, steps=1, optimizers=still).directory
            / "model.safetensors"
        )
        for seed in (7, 2**32 + 7)
    )
    assert max(float((tensor - long[name]).abs().max()) for name, tensor in short.items()) > 1e-3


def test_the_callers_generators_and_threads_are_left_alone(prepared: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train(prepared, tmp_path, steps=2)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_durable_step_changes_no_bit(
    fault: str,
    prepared: Path,
    undisturbed: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if fault == "checkpoint.read":  # needs a checkpoint to read
        monkeypatch.setenv("ATELIER_FAULT", "checkpoint.published:enospc")
        with pytest.raises(OSError, match="No space left"):
            train(prepared, tmp_path)
    monkeypatch.setenv("ATELIER_FAULT", f"{fault}:enospc")
    with pytest.raises(OSError, match="No space left"):
        train(prepared, tmp_path)
    monkeypatch.delenv("ATELIER_FAULT")
    trained = train(prepared, tmp_path)
    assert weights_of(trained.directory) == weights_of(undisturbed.directory)
    assert trained.repeated_steps <= 4  # one checkpoint interval
    assert not list(tmp_path.glob("*/ckpt-*/.*"))


def test_sampling_and_logging_change_no_bit(
    prepared: Path, undisturbed: Trained, tmp_path: Path
) -> None:
    other = train(prepared, tmp_path, sample_every=3, log_every=5)
    assert weights_of(other.directory) == weights_of(undisturbed.directory)


def test_every_flipped_bit_is_found(prepared: Path, undisturbed: Trained) -> None:
    directory = RunFolder(undisturbed.directory.parent).checkpoints()[0]
    files = [path for path in directory.iterdir() if path.is_file()]
    choose = random.Random(0)
    for _ in range(200):
        path = choose.choice(files)
        whole = path.read_bytes()
        position = choose.randrange(len(whole) * 8)
        broken = bytearray(whole)
        broken[position // 8] ^= 1 << position % 8
        path.write_bytes(broken)
        with pytest.raises(IntegrityError):
            verify(directory)
        path.write_bytes(whole)
    verify(directory)


def test_an_altered_checkpoint_is_kept_aside_and_the_one_before_is_taken(
    prepared: Path, undisturbed: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_FAULT", "final.sealed:enospc")
    with pytest.raises(OSError, match="No space left"):
        train(prepared, tmp_path)
    monkeypatch.delenv("ATELIER_FAULT")
    folder = RunFolder(next(tmp_path.iterdir()))
    newest, _ = folder.checkpoints()
    damage(newest / "optimizer.safetensors")
    trained = train(prepared, tmp_path)
    assert [name.partition(".")[0] for name in folder.altered()] == [newest.name]
    assert trained.repeated_steps == 4
    assert weights_of(trained.directory) == weights_of(undisturbed.directory)


def test_no_good_checkpoint_is_an_error_and_not_a_fresh_start(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_FAULT", "final.sealed:enospc")
    with pytest.raises(OSError, match="No space left"):
        train(prepared, tmp_path)
    monkeypatch.delenv("ATELIER_FAULT")
    for directory in RunFolder(next(tmp_path.iterdir())).checkpoints():
        damage(directory / "model.safetensors")
    for _ in range(2):
        with pytest.raises(
            IntegrityError, match=r"no good checkpoint is left .* delete that folder"
        ):
            train(prepared, tmp_path)


def test_an_altered_result_is_published_again(prepared: Path, tmp_path: Path) -> None:
    first = train(prepared, tmp_path)
    weights = weights_of(first.directory)
    damage(first.directory / "model.safetensors")
    assert weights_of(train(prepared, tmp_path).directory) == weights


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_two_good_checkpoints_are_kept(undisturbed: Trained) -> None:
    folder = RunFolder(undisturbed.directory.parent)
    assert [path.name for path in folder.checkpoints()] == ["ckpt-1-12", "ckpt-1-8"]
    assert (folder.path / "LATEST").read_text() == "ckpt-1-12"


def test_a_zombie_attempt_cannot_publish(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    lease = folder.lease()
    zombie, current = folder.claim(lease), folder.claim(lease)

    def write(directory: Path) -> None:
        (directory / "x").write_bytes(b"x")

    with pytest.raises(Fenced, match=r"attempt 1 of .* was replaced by attempt 2"):
        folder.save(zombie, 4, write, {}, keep=2)
    with pytest.raises(Fenced):
        folder.finish(zombie, write, {})
    assert folder.newest() is None
    assert not folder.final.exists()
    assert folder.save(current, 4, write, {}, keep=2) == folder.newest()
    folder.lease()
    with pytest.raises(Fenced, match="taken over by a newer call"):
        folder.claim(lease)


def test_of_two_equal_trainings_one_waits_for_the_other(prepared: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    results: list[Trained] = []
    threads = [
        threading.Thread(target=lambda: results.append(train(prepared, tmp_path, told)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {result.attempts for result in results} == {1}
    assert len({result.directory for result in results}) == 1
    assert any("another process; waiting" in now.note for now in told)


def test_a_loss_that_is_no_number_stops_with_step_and_checkpoint(
    prepared: Path, tmp_path: Path
) -> None:
    rules = {"optimizers": {"model": Optimizer(learning_rate=1e30, warmup_steps=0)}}
    with pytest.raises(
        Diverged,
        match=r"is (nan|inf) at step \d+ of 12, like the 3 .*; the last good checkpoint is",
    ):
        train(prepared, tmp_path, log_every=1, max_skipped=4, **rules)


def test_a_batch_that_cannot_be_shared_is_refused(prepared: Path) -> None:
    with pytest.raises(ValueError, match="batch_size 8 must be a multiple of 6"):
        rows_of(spec_of(prepared, accumulate=3), 2)
    model = build({"family": "gan", "config": {"critic_steps": 3}})
    with pytest.raises(ValueError, match=r"8 rows .* multiple of 6: critic takes 3 turns of 2"):
        check_turns(model, 8, 2)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(models.FAMILIES, "toy", TOY)  # type: ignore[arg-type]
    return "toy"


def test_players_take_turns_and_buffers_are_published(
    toy: str, prepared: Path, tmp_path: Path
) -> None:
    trained = train(prepared, tmp_path / "runs", family=toy, steps=4, accumulate=2)
    assert {
        "loss",
        "critic.loss",
        "generator.loss",
        "generator.gradient_norm",
    } <= trained.metrics.keys()
    weights = load_file(trained.directory / "model.safetensors")
    assert int(weights["seen"]) == 4 * 2 * (2 + 1)  # the critic has two turns
    assert not (trained.directory / "samples.png").exists()


def test_a_player_that_a_config_does_not_have_takes_no_turn(tmp_path: Path) -> None:
    prepared = prepare(tmp_path / "prepared", validation=8)
    spec = spec_of(prepared, family="kl-autoencoder", config={"adversary": 0.0}, validate_every=6)
    trained = fit(spec, run_id=None, tracking_uri=None, runs=tmp_path / "runs")
    assert {"loss", "autoencoder.loss", "validation_loss"} <= trained.metrics.keys()
    assert not [name for name in trained.metrics if name.startswith("critic")]


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(toy: str, prepared: Path, tmp_path: Path) -> None:
    """The toy draws no noise, so only the order of additions differs: 1e-5 of weights around 0.1.

    How a picture is mirrored is its row's own affair.
    """
    rules = {"family": toy, "accumulate": 2, "augment": Augment(flip=0.5)}
    spec = spec_of(prepared, workers=2, **rules)  # type: ignore[arg-type]
    alone = train(prepared, tmp_path / "alone", **rules).directory
    plain = train(prepared, tmp_path / "plain", family=toy, accumulate=2).directory
    together = train_without_ray(spec, tmp_path / "together")
    expected, found, unmirrored = (
        load_file(one / "model.safetensors") for one in (alone, together, plain)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (unmirrored["critic.weight"] - expected["critic.weight"]).abs().max() > 1e-3


def test_adamw_is_torchs_with_no_decay_of_vectors() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(5, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    rule = Optimizer(learning_rate=0.02, betas=(0.8, 0.9), weight_decay=0.3)
    mine = AdamW(ours, list(ours.parameters()), rule)
    groups = [
        {"params": [theirs.weight], "weight_decay": 0.3},
        {"params": [theirs.bias], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.02, betas=(0.8, 0.9), fused=True)
    for _ in range(5):
        batch = torch.randn(7, 5)
        for model in (ours, theirs):
            model.zero_grad()
            model(batch).square().sum().backward()
        mine.step(0.02, torch.ones(()))
        reference.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_clipping_is_torchs() -> None:
    ours = [torch.randn(4, 4), torch.randn(9)]
    theirs = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in ours]
    for parameter, gradient in zip(theirs, ours, strict=True):
        parameter.grad = gradient.clone()
    expected = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    torch.testing.assert_close(clip([*ours], 0.5, torch.ones(())), expected)
    torch.testing.assert_close(ours, [parameter.grad for parameter in theirs])


def test_the_rate_warms_up_and_anneals() -> None:
    rule = Optimizer(learning_rate=1.0, warmup_steps=10, final_fraction=0.1)
    rates = [rate_at(step, 110, rule) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_average_warms_up_has_the_buffers_and_lends_itself() -> None:
    model = torch.nn.BatchNorm1d(1)
    average = Average(model, 0.999)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.running_mean.fill_(7.0)  # type: ignore[union-attr]
    average.update(0, torch.ones(()))  # decay 1 / 10
    assert average.tensors()["weight"].item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    with average.swapped_in():
        assert model.weight.item() == pytest.approx(1.9)
    assert model.weight.item() == 2.0
    assert average.tensors()["running_mean"].item() == 7.0


def test_generators_come_back_to_the_bit() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), *np.random.randn(3), float(torch.randn(()))]

    cpu = torch.device("cpu")
    seed_generators(3, 1)
    random.gauss(0, 1)
    np.random.randn()
    state = generators(cpu)
    first = draw()
    set_generators(state, cpu)
    assert draw() == first
    seed_generators(3, 2)
    assert draw() != first


def test_workers_and_parts_draw_masks_of_their_own() -> None:
    """Of equal rows, too: else a step would drop the same features throughout its batch."""
    dropout, rows = Dropout(0.5), torch.ones(4, 64)
    masks = []
    for rank in range(2):
        seed_generators(3, rank)
        masks += [dropout(rows) for _ in range(2)]  # parts
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 4
    assert len({tuple(row.tolist()) for row in torch.cat(masks)}) == 16
    seed_generators(3, 1)
    assert torch.equal(dropout(rows), masks[2])


def test_the_journal_survives_half_a_line_and_counts_repeated_steps(tmp_path: Path) -> None:
    first, reader = Journal(tmp_path, 1, 0), Reader(tmp_path)
    first.metrics(2, {"loss": 1.0})
    first.count(7)
    with (tmp_path / "1.jsonl").open("a") as file:
        file.write('{"step": 4, "met')
        file.flush()
        assert [line["step"] for line in reader.lines()] == [2]
        file.write('rics": {}}\n')
    assert [line["step"] for line in reader.lines()] == [4]
    second = Journal(tmp_path, 2, 4)
    second.count(12)
    assert repeated_steps(tmp_path) == 3
    for journal in (first, second):
        journal.close()


def test_what_training_cannot_use_is_told_once(tmp_path: Path) -> None:
    journal, told = Journal(tmp_path, 1, 0), list[Progress]()
    journal.note(0, "3 of 9 pairs are left out")
    journal.metrics(1, {"loss": 1.0, "samples_per_s": 2.0})
    reporter = Reporter(told.append, steps=4, batch_size=1)
    for line in Reader(tmp_path).lines():
        reporter.line(line)
    assert [one.note for one in told] == ["3 of 9 pairs are left out", ""]
    journal.close()


def test_a_grid_shows_every_picture_once() -> None:
    pixels = torch.stack([torch.full((1, 2, 2), value) for value in (0.2, 0.4, 0.6)])
    sheet = grid(pixels, columns=2, scale=1)
    assert sheet.shape == (1, 12, 12)
    assert sheet[0, 2:4, 8:10].unique().item() == pytest.approx(0.4)
    assert sheet[0, 8:10, 8:10].sum() == 0


def test_a_cluster_that_does_not_answer_is_named_with_the_way_out() -> None:
    with pytest.raises(Unreachable, match=r"no Ray cluster answers at 127.0.0.1:1 .*`atelier up`"):
        connect("127.0.0.1:1")
