"""Model cards: what a version is, what it was made of, how it was judged; Markdown, from the facts alone."""

from collections.abc import Sequence
from typing import Any, Final

from jinja2 import Environment, StrictUndefined

from flows.judging.gate import Evaluation, GateReport
from flows.judging.pipeline import Pipeline
from flows.recipe import Recipe, TrainingSpec
from infra.ledger import Row

MODEL: Final = """\
# {{ spec.name }}

A `{{ spec.family }}` ({{ spec.preset }}) trained on `{{ spec.dataset }}`\
{% if spec.image_size %} at {{ spec.image_size }} pixels{% endif %}: \
{{ spec.training.steps }} steps of {{ spec.training.batch_size }} samples, seed {{ spec.seed }}.

| lineage | |
|---|---|
| data | `{{ spec.data_identity }}` |
| code | `{{ spec.code_identity }}` (commit `{{ facts.git_commit[:12] }}`) |
| MLflow run | `{{ facts.run_id }}` |
{% for name, version in facts.environment.items() -%}
| {{ name }} | {{ version }} |
{% endfor %}
| metric at the end of training | value |
|---|---|
{% for name, value in facts.metrics.items() -%}
| {{ name }} | {{ "%.4g" % value }} |
{% endfor %}
"""

PIPELINE: Final = """\
# {{ recipe.name }}

{{ recipe.description or "A pipeline made by Atelier." }}

| stage | version | sha256 |
|---|---|---|
{% for stage in pipeline.stages -%}
| {{ stage.stage }} | {{ stage.name }}:{{ stage.version }} | `{{ stage.sha256[:12] }}` |
{% endfor %}
Data `{{ recipe.data.name }}`, identity `{{ data_identity }}`.
{% if evaluation.judge %}
Judged by {{ evaluation.judge.version }}, right on {{ "%.1f" % (100 * evaluation.judge.accuracy) }} % of \
held-out real pictures.
{% endif %}
| metric | value | 95 % interval | samples |
|---|---|---|---|
{% for name, metric in evaluation.metrics.items() -%}
| {{ name }} | {{ "%.4g" % metric.value }} | {{ "%.4g" % metric.low }} .. {{ "%.4g" % metric.high }} \
| {{ metric.count }} |
{% endfor %}
Gate ({{ "passed" if report.passed else "failed" }}):
{% for condition in report.conditions %}
- {{ "pass" if condition.passed else "FAIL" }}: {{ condition.says }}
{%- endfor %}
"""

STANDING: Final = """\

| stands in | since (UTC) | by | why | approved by |
|---|---|---|---|---|
{% for row in rows -%}
| {{ row.stage }} | {{ row.at.strftime("%Y-%m-%d %H:%M:%S") }} | {{ row.actor }} | \
{{ "forced: " if row.forced }}{{ row.reason }} | \
{{ (row.approvals or []) | map(attribute="actor") | join(", ") or "-" }} |
{% endfor %}"""


def model_card(spec: TrainingSpec, facts: dict[str, Any]) -> str:
    """Return card.md of a model version."""
    return _render(MODEL, spec=spec, facts=facts)


def pipeline_card(
    recipe: Recipe,
    pipeline: Pipeline,
    data_identity: str,
    evaluation: Evaluation,
    report: GateReport,
) -> str:
    """Return card.md of a pipeline version."""
    return _render(
        PIPELINE,
        recipe=recipe,
        pipeline=pipeline,
        data_identity=data_identity,
        evaluation=evaluation,
        report=report,
    )


def standing_card(rows: Sequence[Row]) -> str:
    """Return what follows a card on MLflow's page: where the version stands by the ledger, and who put it there."""
    return _render(STANDING, rows=sorted(rows, key=lambda row: row.stage))


def _render(template: str, **values: Any) -> str:
    # Markdown, not HTML: escaping would spoil it, and nothing here is shown unescaped on a page.
    environment = Environment(
        undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    return environment.from_string(template).render(**values)
