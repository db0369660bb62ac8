"""Drift is found where prompts or pictures moved, and nowhere else."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from torch import Tensor

from flows.drift import DriftReport, Sample, TooFew, _asked, compare, kept
from flows.reports.drift import write_page
from infra.pipelines import PinnedStage
from infra.receipts.receipts import Receipt, attach
from infra.settings import settings
from models.judges.attribute_judge import AttributeJudge, AttributeJudgeConfig

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}
SIDES = ("left", "right")
PROMPTS = [f"a {colour} patch on the {side}" for colour in COLOURS for side in SIDES]


def pictures(prompts: Sequence[str], seed: int) -> Tensor:
    """Patches of a colour on a side of noisy grey, (N, 3, 8, 8)."""
    noise = torch.rand(len(prompts), 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    drawn = 0.4 + 0.2 * noise
    for picture, prompt in zip(drawn, prompts, strict=True):
        words = prompt.split()
        at = slice(0, 4) if "left" in words else slice(4, 8)
        colour = next(value for name, value in COLOURS.items() if name in words)
        picture[:, :, at] = torch.tensor(colour)[:, None, None]
    return drawn


@pytest.fixture(scope="module")
def judge() -> AttributeJudge:
    torch.manual_seed(0)
    attributes = (("colour", tuple(COLOURS)), ("side", SIDES))
    network = AttributeJudge(
        AttributeJudgeConfig(image_size=8, width=8, features=16, attributes=attributes)
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, fused=True)
    prompts = PROMPTS * 10
    wanted = torch.tensor(
        [[list(COLOURS).index(p.split()[1]), SIDES.index(p.split()[-1])] for p in prompts]
    )
    for step in range(60):
        optimizer.zero_grad()
        network({"pixels": pictures(prompts, step), "attributes": wanted}).total.backward()
        optimizer.step()
    return network.eval()


def examined(judge: AttributeJudge, prompts: list[str], served: Tensor) -> dict[str, bool]:
    findings = compare(
        judge, PROMPTS * 8, Sample(prompts=prompts, pictures=served), pictures(prompts, 999)
    )
    return {finding.about: finding.drifted for finding in findings}


def test_answers_like_those_it_was_promoted_on_are_steady(judge: AttributeJudge) -> None:
    prompts = PROMPTS * 20
    assert not any(examined(judge, prompts, pictures(prompts, 7)).values())


def test_a_colour_that_everybody_asks_for_is_drift_of_the_prompts_alone(
    judge: AttributeJudge,
) -> None:
    prompts = [prompt for prompt in PROMPTS if "red" in prompt] * 50 + PROMPTS * 4
    found = examined(judge, prompts, pictures(prompts, 7))
    assert [about for about, drifted in found.items() if drifted] == ["colour asked for"]


def test_few_prompts_of_many_values_are_no_drift_by_chance() -> None:
    values = [3 * letter for letter in "abcdefghijklmnopqrst"]
    evaluated = [f"a {value} patch" for value in values] * 4

    def drifted(served: list[str]) -> bool:
        [finding] = _asked({"colour": values}, evaluated, served)
        return finding.drifted

    alike = (Random(seed).choices(evaluated, k=60) for seed in range(60))
    assert sum(map(drifted, alike)) <= 3
    assert drifted(Random(0).choices(evaluated[:8], k=60))


def test_pictures_that_turned_dark_or_show_something_else_are_drift(judge: AttributeJudge) -> None:
    prompts = PROMPTS * 20
    dark = examined(judge, prompts, 0.5 * pictures(prompts, 7))
    assert dark["pictures"]
    other = [prompt.replace("red", "blue") for prompt in prompts]
    swapped = examined(judge, prompts, pictures(other, 7))
    assert swapped["alignment"]


def test_prompts_that_nobody_trained_are_drift(judge: AttributeJudge) -> None:
    prompts = ["a purple patch on the roof"] * 120
    served = Sample(prompts=prompts, pictures=pictures(PROMPTS * 20, 7))
    [unread, drawn] = compare(judge, PROMPTS * 8, served, pictures(PROMPTS * 20, 8))
    assert unread.about == "prompts that the judge cannot read"
    assert unread.drifted
    assert not drawn.drifted


def test_the_page_says_what_drifted(judge: AttributeJudge, private_home: object) -> None:
    prompts = [PROMPTS[0]] * 100
    sample = Sample(prompts=prompts, pictures=pictures(prompts, 7))
    findings = compare(judge, PROMPTS * 8, sample, pictures(prompts, 8))
    report = DriftReport(
        name="patches", version="patches:3", digest="ab" * 32, answers=100, findings=findings
    )
    page = write_page(report).read_text()
    assert report.drifted
    assert 'patches: <span class="bad">drifted' in page
    assert "colour asked for" in page
    assert "<script" not in page


def test_answers_that_a_user_wished_otherwise_or_another_version_drew_do_not_count(
    private_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = PinnedStage(
        stage="base",
        name="patches.base",
        version=1,
        sha256="c" * 64,
        family="ddpm",
        inputs={"text": "text"},
        outputs={"pixels": "pixels 3x8x8"},
        interface="i" * 64,
        steps=12,
        guidance=3.0,
    )
    monkeypatch.setenv("ATELIER_STORAGE_URI", str(tmp_path / "mount"))
    settings.cache_clear()
    folder = tmp_path / "mount" / "samples" / "patches"  # where every node's gateway writes
    folder.mkdir(parents=True)
    for number in range(160):
        steps = 2 if number < 30 else 12
        digest = "b" * 64 if 30 <= number < 50 else "a" * 64
        (folder / f"{number}.png").write_bytes(answered(digest, steps))
    sample = kept("patches", "a" * 64, first, channels=3)
    assert sample.pictures.shape == (110, 3, 8, 8)
    grey = kept("patches", "a" * 64, first, channels=1)
    assert grey.pictures.shape == (110, 1, 8, 8), "what a judge of grey pictures sees"
    assert set(sample.prompts) == {PROMPTS[0]}
    with pytest.raises(TooFew, match="20 answers of patches are kept, 100 are needed"):
        kept("patches", "b" * 64, first, channels=3)


def answered(digest: str, steps: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(file, "PNG")
    receipt = Receipt(
        endpoint="patches",
        version="patches:1",
        digest=digest,
        stages=(),
        prompt=PROMPTS[0],
        seed=1,
        steps=steps,
        guidance=3.0,
        size="8x8",
        created=datetime.now(UTC),
        request_id="r",
    )
    return attach(file.getvalue(), receipt)
