"""From a picture back to its data: by digest, with what the ledger said, drawn again; and as a graph."""

import hashlib
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from PIL import Image

from flows import context
from flows.context import signing
from flows.promotion.release import project_aliases, readable, stage_versions
from flows.provenance.cards import live_card, renew
from flows.provenance.lineage import COLUMNS, Graph, Node, graph_of, mermaid_text
from flows.provenance.tracing import (
    Untraceable,
    compare_pixels,
    compare_sounds,
    compare_texts,
    redraw,
    trace,
    verify,
)
from flows.reports.lineage import page
from infra.receipts import provenance
from infra.receipts.receipts import ReceiptError, attach, read
from infra.receipts.signing import Signing
from infra.registry.registry import Registry
from infra.storage import seal
from tests.flows.conftest import installations
from tests.flows.versions_kit import NAME, Installation
from tests.infra.test_provenance import lying


@pytest.fixture(scope="module")
def promoted(empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installation with a version in production and a picture of it, of which tests have copies."""
    with installations(empty_mlflow, tmp_path_factory.mktemp("promoted")) as make:
        there = make("there")
        version = there.pipeline()
        there.picture(version, there.home / "picture.png", epoch=there.promote(version))
        return there.home


@pytest.fixture
def picture(promoted: Path, here: Installation) -> Path:
    shutil.copytree(promoted, here.home, dirs_exist_ok=True)
    return here.home / "picture.png"


def altered(picture: Path, **changes: object) -> Path:
    """Return the picture with other values in its receipt."""
    content = picture.read_bytes()
    receipt = read(content)
    other = picture.with_name("altered.png")
    other.write_bytes(attach(content, receipt.model_copy(update=changes)))
    return other


def test_a_picture_leads_to_version_run_data_and_the_ledgers_row(picture: Path) -> None:
    found = trace(picture)
    assert found.verdict == "agrees"
    assert re.fullmatch(
        r"the ledger names toys:1 in production of toys at epoch 1, since .* UTC, by test",
        found.says,
    )
    document = found.as_json()
    assert document["data_identity"] == "d0"
    assert document["run"]
    assert document["stages_here"] == ["toys.base:1", "toys.upscaler:1"]


def test_a_version_is_found_by_digest_whatever_its_number(picture: Path) -> None:
    found = trace(altered(picture, version=f"{NAME}:77"))
    assert found.version.ref == "toys:1"
    with pytest.raises(Untraceable, match="this registry does not have"):
        trace(altered(picture, digest="0" * 64))


def test_a_receipt_that_the_ledger_contradicts_says_so(here: Installation, picture: Path) -> None:
    other = here.pipeline(1)
    here.promote(other)
    superseded = trace(picture)
    assert superseded.verdict == "agrees"
    assert re.search(r"from .* until .* UTC", superseded.says)
    wrong = trace(altered(picture, epoch=2))
    assert wrong.verdict == "contradicts"
    assert wrong.says == ("the ledger names toys:2 in production of toys at epoch 2, not toys:1")
    never = trace(altered(picture, epoch=9))
    assert never.verdict == "contradicts"
    assert "no row for production of toys at epoch 9" in never.says
    early = read(picture).created.replace(year=2020)
    assert "before toys:1 came to" in trace(altered(picture, created=early)).says
    assert trace(altered(picture, place=None, epoch=0)).verdict == "silent"


def test_a_strangers_picture_is_verified_once_its_signer_is_trusted(
    picture: Path, tmp_path: Path
) -> None:
    stranger, content = Signing(tmp_path / "theirs"), picture.read_bytes()
    theirs, signer = tmp_path / "theirs.png", stranger.fingerprint()
    theirs.write_bytes(attach(content, provenance.sign(read(content), content, stranger)))
    wrong = altered(theirs, seed=8)
    for file, trust in ((theirs, ""), (theirs, "0" * 64), (wrong, signer), (picture, signer)):
        assert not verify(file, trust=trust).verified
        assert not signing().trusts(signer), "only what is right makes a signer known"
    assert verify(theirs, trust=signer).verified
    assert verify(theirs).says == "verified"
    assert verify(picture).says == "verified"


def test_verifying_says_what_was_checked_and_what_was_not(
    here: Installation, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome(file: Path) -> tuple[str, dict[str, bool | None]]:
        checked = verify(file)
        assert checked.as_json()["verified"] == checked.verified
        return checked.says, {check.name: check.passed for check in checked.checks}

    good = {"signature": True, "signer": True, "content": True, "registry": True, "ledger": True}
    assert outcome(picture) == ("verified", good)
    by_number = here.picture(here.pipeline(), picture.with_name("number.png"), place=None, epoch=0)
    assert outcome(by_number) == ("verified, but for: ledger", {**good, "ledger": None})
    for changes in ({"prompt": "green circle"}, {"seed": 8}, {"signature": None}):
        says, checks = outcome(altered(picture, **changes))
        assert says == "NOT VERIFIED"
        assert (checks["signature"], checks["content"], checks["ledger"]) == (False, None, True)
    assert "altered after it was signed" in graph_of(str(altered(picture, seed=8))).note
    gone = Registry("http://127.0.0.1:9", here.home / "elsewhere")
    monkeypatch.setattr("flows.provenance.tracing.registry", lambda: gone)
    says, checks = outcome(picture)
    assert says == "verified, but for: registry, ledger"
    assert checks == {**good, "registry": None, "ledger": None}


def test_a_receipt_with_another_stage_is_refused(here: Installation, picture: Path) -> None:
    stages = read(picture).stages
    swapped = stages[0].model_copy(update={"sha256": here.stage("base", 5).digest})
    with pytest.raises(Untraceable, match="names stages that toys:1 does not pin"):
        trace(altered(picture, stages=(swapped, *stages[1:])))


def test_a_picture_is_drawn_again_to_the_pixel(picture: Path) -> None:
    found = trace(picture)
    again = redraw(found)
    compared = compare_pixels(found, picture.read_bytes(), again, where="here")
    assert compared.same
    assert compared.says == "identical: all 256 pixels"
    assert read(again).place is None


@pytest.mark.parametrize(("step", "same"), [(1, True), (2, False), (90, False)])
def test_a_changed_pixel_is_counted_and_more_than_rounding_is_a_difference(
    picture: Path, step: int, same: bool
) -> None:
    found = trace(picture)
    receipt = read(picture)
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    pixels[3, 4, 1] += step if pixels[3, 4, 1] < 128 else -step
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    compared = compare_pixels(
        found, picture.read_bytes(), attach(file.getvalue(), receipt), where=""
    )
    assert (compared.differing, compared.most, compared.same) == (1, step, same)
    assert any("names no device" in note for note in compared.notes)


def test_a_picture_of_an_older_generator_is_told_why_it_is_another(
    picture: Path, tmp_path: Path
) -> None:
    """Its receipt names none, as all did before there were two."""
    other = tmp_path / "other.png"
    with Image.open(picture) as image:
        Image.fromarray(255 - np.asarray(image)).save(other)
    first = attach(other.read_bytes(), read(picture).model_copy(update={"generator": None}))
    picture.write_bytes(first)
    found = trace(picture)
    compared = compare_pixels(found, first, redraw(found), where="")
    assert not compared.same
    assert any("noise by generator 1, now by 2" in note for note in compared.notes)
    assert not any("names no device" in note for note in compared.notes)


@pytest.mark.parametrize(
    ("size", "says"), [((5000, 8), "is 5000x8, at most 4096"), ((60000, 60000), "cannot be read")]
)
def test_a_picture_whose_header_lies_is_not_compared(
    picture: Path, size: tuple[int, int], says: str
) -> None:
    forged = attach(lying(size), read(picture))
    with pytest.raises(Untraceable, match=says):
        compare_pixels(trace(picture), forged, picture.read_bytes(), where="here")


@pytest.mark.parametrize(("step", "same"), [(0, True), (1, True), (90, False)])
def test_a_sound_made_again_is_compared_level_by_level(
    picture: Path, step: int, same: bool
) -> None:
    import soundfile

    found = trace(picture)
    found = replace(found, pipeline=found.pipeline.model_copy(update={"sample_rate": 8000}))
    levels = (np.sin(np.arange(400) / 9) * 9000).astype(np.int16)
    files = []
    for change in (0, step):
        file = io.BytesIO()
        told = np.where(np.arange(400) == 7, levels + change, levels).astype(np.int16)
        soundfile.write(file, told, 8000, format="WAV", subtype="PCM_16")
        files.append(attach(file.getvalue(), read(picture)))
    compared = compare_sounds(found, files[0], files[1], where="here")
    assert (compared.differing, compared.most, compared.same) == (int(step > 0), step, same)
    assert "400 samples" in compared.says
    shorter = io.BytesIO()
    soundfile.write(shorter, levels[:399], 8000, format="WAV", subtype="PCM_16")
    with pytest.raises(Untraceable, match="the sound has 400 samples, made again it has 399"):
        compare_sounds(found, files[0], shorter.getvalue(), where="here")


@pytest.mark.parametrize(("said", "same"), [("you have 3 things .", True), ("3 .", False)])
def test_a_text_made_again_is_the_same_or_another(picture: Path, said: str, same: bool) -> None:
    found = trace(picture)
    told = ("you have 3 things .", said)
    first, again = (
        found.receipt.model_copy(update={"text_sha256": hashlib.sha256(one.encode()).hexdigest()})
        for one in told
    )
    choice = {"text": said, "receipt": again.model_dump(mode="json")}
    answer = json.dumps({"choices": [choice]}).encode()
    compared = compare_texts(replace(found, receipt=first), answer, where="here")
    assert compared.same == same
    assert compared.says == ("identical: the same text" if same else "another text came")


def test_another_seed_stage_or_version_is_told_plainly(here: Installation, picture: Path) -> None:
    other = here.pipeline(1)
    drawn = here.picture(other, picture.with_name("other.png"), seed=8)
    compared = compare_pixels(trace(picture), picture.read_bytes(), drawn.read_bytes(), where="")
    assert not compared.same
    says = " | ".join(compared.notes)
    assert "another version drew it: toys:2" in says
    assert "another stage drew: toys.base" in says
    assert "seed was 7, now 8" in says


def test_the_graph_goes_from_data_to_the_picture(picture: Path) -> None:
    graph = graph_of(str(picture))
    titles = {column: [n.title for n in graph.nodes if n.column == column] for column in COLUMNS}
    assert titles["data"] == ["nowhere"]
    assert len(titles["run"]) == 4
    assert titles["version"] == ["toys.base:1", "toys.upscaler:1", "toys.judge:1"]
    assert titles["endpoint"] == ["toys, production"]
    reached = {graph.nodes[-1].identity}
    for _ in range(10):
        reached |= {before for before, after, _ in graph.edges if after in reached}
    assert reached == {node.identity for node in graph.nodes}
    assert json.dumps(graph.as_json())
    assert graph_of(f"{NAME}.base").nodes[0].title == "toys.base:1"


def test_the_graph_of_found_values_has_their_search(here: Installation) -> None:
    search = here.registry.start_run(NAME, "search", {})
    found = {"search": search, "trial": 3, "values": {"training.ema_decay": 0.9}}
    graph = graph_of(here.pipeline(found_by=found).ref)
    (node,) = (node for node in graph.nodes if node.title == "search")
    assert node.identity == f"run {search}"
    assert "the best: trial 3" in node.lines
    pipeline = next(node for node in graph.nodes if node.column == "pipeline")
    assert (node.identity, pipeline.identity, "found its values") in graph.edges


def test_what_is_neither_a_picture_nor_a_version_is_named(here: Installation) -> None:
    with pytest.raises(ReceiptError, match=r"cannot read .*nowhere\.png"):
        graph_of("nowhere.png")
    with pytest.raises(RuntimeError, match="no model is called 'nothing'"):
        graph_of("nothing")


TEXT = st.text(max_size=20)
NODES = st.lists(
    st.builds(Node, st.sampled_from(COLUMNS), TEXT, TEXT, st.lists(TEXT, max_size=4).map(tuple)),
    min_size=1,
    max_size=14,
    unique_by=lambda node: node.identity,
)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    nodes = draw(NODES)
    graph = Graph("any", draw(TEXT), "", nodes)
    for left, right in draw(
        st.lists(st.tuples(st.sampled_from(nodes), st.sampled_from(nodes)), max_size=20)
    ):
        if COLUMNS.index(left.column) < COLUMNS.index(right.column):
            graph.link(left.identity, right.identity, draw(TEXT))
    return graph


@given(graphs())
def test_mermaid_has_safe_ids_and_no_text_that_ends_a_label(graph: Graph) -> None:
    node = r'    n\d+\["[\w .,:\-+/()@#;<>]*"\]'
    edge = r'  n\d+ -->(\|"[\w .,:\-+/()@#;]*"\|)? n\d+'
    group = rf'  subgraph ({"|".join(COLUMNS)})_\["\w+"\]|  end|flowchart LR'
    for line in mermaid_text(graph).splitlines():
        assert re.fullmatch(f"{node}|{edge}|{group}", line, re.ASCII), line
        assert not re.sub("<br/>", "", line).count("<")


@trials(max_examples=60, deadline=None)
@given(graphs())
def test_the_page_has_every_box_once_with_what_it_was_made_from(graph: Graph) -> None:
    text = page(graph)
    places = {node.identity: place for place, node in enumerate(graph.nodes)}
    assert re.findall(r'<div class="box" id="n(\d+)"', text) == [
        str(places[node.identity])
        for column in COLUMNS
        for node in graph.nodes
        if node.column == column
    ]
    made_from = re.findall(r'<span class="from">from <a href="#n(\d+)"', text)
    assert sorted(made_from) == sorted(str(places[before]) for before, _, _ in graph.edges)
    assert "<script" not in text
    assert not re.search(r"url\(|@import|src=", text)


def test_a_card_tells_where_its_version_stands_and_how_it_came_there(here: Installation) -> None:
    first, second = here.pipeline(0), here.pipeline(1)
    assert "Nowhere: no place of the ledger holds it." in live_card(first)
    here.promote(first)
    project_aliases(NAME)
    assert "**production** since" in described(here, 1)
    here.promote(second)
    project_aliases(NAME)
    assert "Nowhere" in described(here, 1)
    assert "| production | 1 | 2 | test | a trial |" in described(here, 1)
    assert "**production** since" in described(here, 2)
    renew(NAME, 2)
    assert described(here, 2) == live_card(second)


def described(here: Installation, number: int) -> str:
    return here.registry.get(f"{NAME}:{number}").description


def test_what_a_person_wrote_cannot_break_the_card(here: Installation) -> None:
    version = here.pipeline()
    context.ledger().transition(
        name=NAME, stage="staging", to_version=1, to_digest=version.digest, expected_epoch=0,
        key="k", actor="eve|<b>", reason="a\n# head | [x](y) " + "long " * 60, forced=True,
        approvals=[{"actor": "bob"}, {"actor": "cy"}],
    )  # fmt: skip
    for _ in range(30):
        here.promote(version)
    card = live_card(version)
    assert len(card) < 5000, "MLflow keeps no more on Postgres"
    assert "19 earlier transitions" in card
    assert "\n# head" not in card
    assert "by eve\\|\\<b\\>, approved by bob, approved by cy: a \\# head" in card
    assert "eve\\|\\<b\\>" in card


def test_a_pinned_stage_is_found_by_digest_where_its_number_is_another_versions(
    here: Installation,
) -> None:
    pinned, other = here.stage("base", 1), here.stage("base", 2)
    fresh = type(here.registry)(f"sqlite:///{here.home / 'mlflow.db'}", here.home / "second-cache")
    assert fresh.fetch(other.name, other.number, digest=pinned.digest).name == pinned.digest
    assert fresh.fetch(f"{NAME}.base:99", digest=pinned.digest).name == pinned.digest
    pipeline = here.pipeline(3)
    assert [one["number"] for one in stage_versions({pipeline.ref: pipeline.digest})] == [3, 1]


def test_a_pipeline_that_a_newer_atelier_wrote_is_told_beside_those_that_can_be_read(
    here: Installation,
) -> None:
    good, making = here.pipeline(), here.home / "making"
    making.mkdir()
    (making / "pipeline.json").write_text('{"format": 99}')
    seal(making, {"kind": "pipeline", "data_identity": "d0", "git_commit": "c0"})
    newer = here.registry.publish("newer", making, key="newer", tags={})
    there, lost = readable({newer.ref: newer.digest, good.ref: good.digest})
    assert there == {good.ref: good.digest}
    assert lost.keys() == {newer.ref}
    assert "pipeline.json is no pipeline of format 1 or 2" in lost[newer.ref]
    assert len(stage_versions(there)) == 2
