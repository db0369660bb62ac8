"""Writers that are broken on purpose, under a right likelihood: a gate of ours refuses each, an honest one passes."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flows.evaluating import written
from flows.evaluating.gate import Evaluation, GateReport, check
from flows.evaluating.pipeline import draw, ports_of
from flows.evaluating.scores import Scores
from flows.recipe import Evaluation as EvaluationSpec
from flows.recipes.loader import load
from infra.pipelines import PinnedStage, Pipeline
from models.family import Rows
from models.judges.ngrams import NGrams
from models.language.gpt import GPT
from models.parts.tokens import EOS, of_signs
from models.request import Record, Request
from tests.models.gpt_kit import dialogue, document, gpt

RECIPES = Path(__file__).parents[2] / "flows" / "recipes"
SIGNS = "abcdefghijklmnopqrstuvwxyz ?"


def prose(seed: int, count: int) -> list[Record]:
    """Documents in which one of four signs follows each, some more often."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        at, text = int(generator.integers(len(SIGNS))), ""
        for _ in range(240):
            text += SIGNS[at]
            at = (4 * at + int(generator.choice(4, p=(0.6, 0.2, 0.15, 0.05)))) % len(SIGNS)
        found.append(document(text))
    return found


def chats() -> list[Record]:
    """Answers repeat what the questions name."""
    pairs = itertools.combinations(SIGNS[:12], 2)
    return [dialogue(f"{a}{b}?", f"{b}{a}{a}{b}{b}{a}") for a, b in pairs]


def learned(model: GPT, records: list[Record], steps: int) -> GPT:
    model.train()
    batch = model.examples(records)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(batch["tokens"]), (16,), generator=generator)
        optimizer.zero_grad()
        model({name: value[rows] for name, value in batch.items()}).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.eval()


class Late(GPT):
    """What a step reads is remembered one place too late."""

    def step(self, rows: Rows) -> Rows:
        moved = super().step({**rows, "position": rows["position"] + 1})
        return {**moved, "position": moved["position"] - 1}


class Early(GPT):
    """... and one place too early, where something stands already."""

    def step(self, rows: Rows) -> Rows:
        moved = super().step({**rows, "position": rows["position"] - 1})
        return {**moved, "position": moved["position"] + 1}


class Deaf(GPT):
    """One prompt is as good as another."""

    def _prompts(self, request: Request) -> list[list[int]]:
        found = super()._prompts(request)
        return (
            [[EOS]] * len(found) if self.config.learns == "documents" else [found[0]] * len(found)
        )


class Worst(GPT):
    """Of the tokens it takes the least likely ones."""

    def _appended(self, rows: Rows, logits_BV: Tensor) -> Rows:
        return super()._appended(rows, -logits_BV)


def judged(
    recipe: str, model: GPT, held_out: list[Record], train: list[Record], **sampling: float
) -> GateReport:
    """Return what the gate of a recipe says of what a model writes, of what it asks about samples."""
    stage = PinnedStage(
        stage="gpt", name="toy.gpt", version=1, sha256="0" * 64, family="gpt",
        **ports_of(model), **{"temperature": load(RECIPES / f"{recipe}.yaml").stages["gpt"].temperature, **sampling},
    )  # fmt: skip
    pipeline = Pipeline(endpoint="toy", modality="text", stages=(stage,))
    asked = written.passages(held_out, 24)
    seeds = [seed for seed in written.SEEDS for _ in asked]
    asked *= len(written.SEEDS)
    scores = Scores(EvaluationSpec(bootstrap=100))
    drawn = draw([model], pipeline, [one.asked for one in asked], seeds)
    written.judge_texts(scores, model, "gpt", drawn, asked, train)
    written.tell(scores, model, stage, asked)
    gate = load(RECIPES / f"{recipe}.yaml").gate
    kept = {name: bound for name, bound in gate.metrics.items() if name in scores.metrics}
    assert {"gpt_sample_gap", "gpt_prompt_gain", "gpt_told_apart", "ngram_gap"} <= set(kept)
    record = Evaluation(evaluation_set="", judge=None, metrics=scores.metrics, outcomes={})
    return check(gate.model_copy(update={"metrics": kept}), record, None)


def refused_by(report: GateReport) -> set[str]:
    return {condition.name for condition in report.conditions if not condition.passed}


def broken(model: GPT, kind: type[GPT]) -> GPT:
    found = kind(model.config)
    found.load_state_dict(model.state_dict())
    return found.eval()


@pytest.fixture(scope="module")
def writers() -> Mapping[str, tuple[GPT, list[Record], list[Record]]]:
    """An honest model a recipe, what it never learned, and what it learned."""
    train, held_out = prose(0, 60), prose(1, 10)
    sizes = {"context": 64, "width": 32, "layers": 2, "heads": 2}
    writes = gpt(scale=1, **sizes)
    writes = GPT(dataclasses.replace(writes.config, tokenizer=of_signs(SIGNS)))
    answers = GPT(dataclasses.replace(writes.config, learns="dialogues"))
    told = chats()
    return {
        "shakespeare-gpt": (learned(writes, train, 110), held_out, train),
        "chat-gpt": (learned(answers, told, 110), told[::2], told),
    }


@pytest.mark.parametrize("recipe", ["shakespeare-gpt", "chat-gpt"])
def test_an_honest_writer_passes(
    recipe: str, writers: Mapping[str, tuple[GPT, list[Record], list[Record]]]
) -> None:
    report = judged(recipe, *writers[recipe])
    assert report.passed, report.refusal()


@pytest.mark.parametrize("recipe", ["shakespeare-gpt", "chat-gpt"])
@pytest.mark.parametrize(
    ("kind", "sampling", "by"),
    [
        (GPT, {"temperature": 3}, {"gpt_sample_gap", "ngram_gap"}),
        (Late, {}, {"gpt_told_apart"}),
        (Early, {}, {"gpt_told_apart"}),
        (Deaf, {}, {"gpt_prompt_gain"}),
        (Worst, {"temperature": 1, "top_k": 3}, {"gpt_sample_gap", "ngram_gap", "gpt_told_apart"}),
    ],
    ids=["noise", "remembers late", "remembers early", "deaf", "takes the least likely"],
)
def test_a_broken_writer_is_refused(
    recipe: str, kind: type[GPT], sampling: dict[str, float], by: set[str],
    writers: Mapping[str, tuple[GPT, list[Record], list[Record]]],
) -> None:  # fmt: skip
    model, held_out, train = writers[recipe]
    assert by <= refused_by(judged(recipe, broken(model, kind), held_out, train, **sampling))


def test_always_the_likeliest_is_refused_where_texts_are_to_differ(
    writers: Mapping[str, tuple[GPT, list[Record], list[Record]]],
) -> None:
    found = judged("shakespeare-gpt", *writers["shakespeare-gpt"], temperature=0)
    assert "distinct" in refused_by(found)


@given(
    texts=st.lists(st.lists(st.integers(0, 4), max_size=9), min_size=1, max_size=4),
    before=st.lists(st.integers(0, 4), max_size=3),
)
def test_n_grams_give_every_token_a_share_and_all_of_them_one(
    texts: list[list[int]], before: list[int]
) -> None:
    counted = NGrams([[1], *texts], size=5)
    shares = [math.exp(-counted.nats([token], before)) for token in range(5)]
    assert min(shares) > 0
    assert sum(shares) == pytest.approx(1)


def test_n_grams_are_as_witten_and_bell_have_them() -> None:
    """Of 1 2 1 3: p(1) = (2 + 3/4) / (4 + 3), and after 1 came 2 and 3: p(2 | 1) = (1 + 2 p(2)) / (2 + 2)."""
    counted = NGrams([[1, 2, 1, 3]], size=4, order=2)
    second = (1 + 3 / 4) / 7
    assert counted.nats([2], [1]) == pytest.approx(-math.log((1 + 2 * second) / 4))
    assert counted.nats([1], [3]) == pytest.approx(-math.log((2 + 3 / 4) / 7))  # nothing followed 3


def test_texts_to_one_question_are_distinct_where_they_share_no_half() -> None:
    texts = ["to be or not", "to be or lot", "abcdef", "to be or not"]
    assert written.distinct(texts, ["a", "a", "a", "b"]).tolist() == [0, 0, 1, 1]
    assert written.distinct(["", "x"], ["a", "b"]).tolist() == [0, 1]


def test_passages_are_first_exchanges_or_places_in_documents() -> None:
    system = (("system", "be kind"), ("user", "hello"), ("assistant", "hi"), ("user", "x"))
    assert written.passages([system], 3) == [
        written.Passage(asked="hello", follows="hi", roles=("user", "assistant"))
    ]
    found = written.passages(prose(0, 3), 5)
    assert len(found) == 5
    whole = "\n".join(text for record in prose(0, 3) for _, text in record)
    assert all(one.goes_on and one.asked + one.follows in whole for one in found)
