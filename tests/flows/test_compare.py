"""Two versions side by side: what differs is said, what cannot be compared is refused in a sentence."""

import io
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from flows.comparing.compare import (
    Incomparable,
    compare,
    compare_metrics,
    differences,
    side,
)
from flows.comparing.samples import SEEN, Pictures, amplification, draw_both
from flows.evaluating.gate import check
from flows.provenance.cards import pipeline_card
from flows.recipe import Gate, Recipe
from flows.reports.compare import page, sheet
from tests.flows.versions_kit import NAME, Installation


class Page(HTMLParser):
    """Every address that the page would fetch, and every element that runs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]


def test_a_worse_version_is_shown_as_lower_and_equal_ones_are_not(here: Installation) -> None:
    good = here.pipeline(0, outcomes=[1.0] * 40)
    bad = here.pipeline(1, outcomes=[1.0] * 28 + [0.0] * 12)
    metrics, says = compare_metrics(side(good.ref), side(bad.ref))
    assert metrics[0].verdict == "B is lower"
    assert metrics[0].change is not None
    assert metrics[0].change.value == pytest.approx(-0.3)
    assert "40 prompts x seeds" in says
    back, _ = compare_metrics(side(bad.ref), side(good.ref))
    assert back[0].verdict == "B is higher"
    same, _ = compare_metrics(side(bad.ref), side(bad.ref))
    assert same[0].verdict == "no difference shown"


def test_different_evaluation_sets_give_no_paired_difference_and_say_why(
    here: Installation,
) -> None:
    first, second = here.pipeline(0), here.pipeline(1, over="set-2")
    metrics, says = compare_metrics(side(first.ref), side(second.ref))
    assert [metric.change for metric in metrics] == [None]
    assert "toys:1 was judged on evaluation set set-1, toys:2 on set-2" in says


def test_stages_and_recipe_fields_that_differ_are_named(here: Installation) -> None:
    first = here.pipeline(0)
    second = here.pipeline(0, steps=3, description="sharper")
    found = compare(side(first.ref), side(second.ref))
    assert [(stage, same) for stage, _, _, same in found.stages] == [
        ("base", False),
        ("upscaler", False),
    ]
    assert found.stages[0][2].endswith(", steps 3, guidance 2")
    assert found.recipe == (("description", "-", "sharper"),)
    assert found.as_json()["recipe"][0]["field"] == "description"


def test_an_option_that_is_a_text_stands_on_the_page_and_on_the_card(here: Installation) -> None:
    one, other = side(here.pipeline(0).ref), side(here.pipeline(0, negative="circle").ref)
    found = compare(one, other)
    assert found.stages[0][2].endswith(", steps 2, guidance 2, negative prompt circle")
    assert [same for *_, same in found.stages] == [False, True]
    assert other.evaluation is not None
    report = check(Gate(), other.evaluation, production=None)
    recipe = Recipe.model_validate(other.recipe)
    card = pipeline_card(recipe, other.pipeline, "d0", other.evaluation, report)
    assert "`base` is sampled with steps 2, guidance 2, negative prompt circle." in card


def test_nested_fields_are_compared_one_by_one() -> None:
    a = {"stages": {"base": {"steps": 2, "family": "ddpm"}}, "seed": 0}
    b = {"stages": {"base": {"steps": 3, "family": "ddpm"}}, "seed": 0, "gate": {"x": None}}
    assert differences(a, b) == [("stages.base.steps", "2", "3"), ("gate.x", "-", "null")]


def test_both_draw_the_same_requests_and_a_version_beside_itself_differs_nowhere(
    here: Installation,
) -> None:
    first, second = side(here.pipeline(0).ref), side(here.pipeline(1).ref)
    drawn = draw_both(first, second, count=6)
    assert isinstance(drawn, Pictures)
    assert drawn.first.shape == drawn.second.shape == (6, 3, 16, 16)
    assert set(drawn.prompts) == {"red square", "green circle"}
    assert len({*zip(drawn.prompts, drawn.seeds, strict=True)}) == 6
    assert drawn.difference is not None
    apart = (drawn.first - drawn.second).abs()
    torch.testing.assert_close(drawn.difference, (apart * drawn.factor).clamp(0, 1))
    assert f"|A - B| x {drawn.factor}" in drawn.says
    itself = draw_both(first, first, count=2)
    assert itself.says == "both drew the same pictures, bit for bit"


@pytest.mark.parametrize(("top", "factor"), [(0.9, 1), (0.26, 2), (0.1, 8), (0.004, 32), (0.0, 32)])
def test_differences_are_amplified_as_far_as_they_stay_below_white(top: float, factor: int) -> None:
    assert amplification(torch.full((2, 3, 8, 8), top)) == factor


def test_the_page_holds_all_of_itself_and_escapes_what_people_wrote(here: Installation) -> None:
    hostile = "<script>alert(1)</script>"
    first, second = side(here.pipeline(0).ref), side(here.pipeline(1, description=hostile).ref)
    found, drawn = compare(first, second), draw_both(first, second, count=4)
    assert isinstance(drawn, Pictures)
    text = page(found, drawn, votes=(3.0, 4, 0.3, 0.95))
    read = Page(text)
    assert "script" not in read.tags
    assert "&lt;script&gt;" in text
    assert read.tags.count("img") == 12
    assert all(address.startswith("data:image/png;base64,") for address in read.addresses)
    assert not re.search(r"url\(|@import|https?://", text)
    assert f"|A - B| x {drawn.factor}" in text
    assert "B won 3 of 4" in text


def test_the_sheet_has_three_panels(here: Installation) -> None:
    first, second = side(here.pipeline(0).ref), side(here.pipeline(1).ref)
    found, drawn = compare(first, second), draw_both(first, second, count=8)
    image = Image.open(io.BytesIO(sheet(found, drawn)))
    assert image.width > 3 * 4 * 96
    assert len(image.crop((0, 40, *image.size)).getcolors(maxcolors=1_000_000) or ()) > 100


def test_a_stage_is_not_compared(here: Installation) -> None:
    here.pipeline()
    with pytest.raises(Incomparable, match=r"toys\.base:1 is a stage: compare 'toys'"):
        side(f"{NAME}.base")


def test_meshes_are_laid_side_by_side_from_four_sides() -> None:
    volume = torch.zeros(1, 4, 8, 8, 8)  # z, y, x
    volume[:, 3, 2:6, 2:6, 2:6] = 1
    volume[:, 0, 4:] = 1  # red is its front, and blue its back
    volume[:, 2, :4] = 1
    seen_as, what = SEEN["mesh"]
    shown = seen_as(volume)
    assert (shown.shape, what) == ((1, 3, 16, 64), "meshes, from four sides")
    front, back = shown[0, :, 8, 8], shown[0, :, 8, 40]
    assert front[0] > 0.9 > 0.1 > front[2]
    assert back[2] > 0.9 > 0.1 > back[0]
