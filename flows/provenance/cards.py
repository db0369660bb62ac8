"""Model cards: what a version is, what it was made of, how it was judged; Markdown, from the facts alone."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, StrictUndefined

from flows.evaluating.gate import Evaluation, GateReport
from flows.recipe import Recipe
from flows.training.spec import TrainingSpec
from infra.pipelines import Modality, Pipeline
from infra.times import utc

if TYPE_CHECKING:
    from infra.registry.registry import Version

MODEL: Final = """\
# {{ spec.name }}

A `{{ spec.family }}` ({{ spec.preset }}) trained on `{{ spec.dataset }}`\
{% if spec.image_size %} at {{ spec.image_size }} pixels{% endif %}: \
{{ steps }}{% if steps < spec.training.steps %} of {{ spec.training.steps }}{% endif %} steps of \
{{ spec.training.batch_size }} samples, seed {{ spec.seed }}\
{% if spec.base %}, {{ "started" if spec.inherits else "fine-tuned" }} from {{ spec.base.says }}{% endif %}\
{% for name, need in spec.needs.items() %}\
{{ ", beside " if loop.first else ", " }}{{ name }} of {{ need.says }} (sha256 {{ need.digest[:12] }}){% endfor %}.

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

MADE: Final[Mapping[Modality, str]] = {
    **{"image": "pictures", "audio": "sound", "text": "text"},
    **{"embedding": "embeddings", "clip": "clips", "mesh": "meshes"},
}

PIPELINE: Final = """\
# {{ recipe.name }}

{{ recipe.description or "A pipeline made by Atelier." }}

| stage | version | sha256 | takes | gives |
|---|---|---|---|---|
{% for stage in pipeline.stages -%}
| {{ stage.stage }} | {{ stage.name }}:{{ stage.version }} | `{{ stage.sha256[:12] }}` | \
{% for name, port in stage.inputs.items() %}{{ name }}: {{ port }}{{ "" if loop.last else ", " }}{% endfor %} | \
{% for name, port in stage.outputs.items() %}{{ name }}: {{ port }}{{ "" if loop.last else ", " }}{% endfor %} |
{% endfor %}
It makes {{ made[pipeline.modality] }}{% if pipeline.sample_rate %} at {{ pipeline.sample_rate }} Hz{% endif %}\
{% if pipeline.abilities %} and can be asked for {{ pipeline.abilities|join(", ") }}{% endif %}.
{% for stage in pipeline.stages if stage.options %}
`{{ stage.stage }}` is sampled with {{ stage.sampled|join(", ") }}.

{% endfor %}
Data `{{ recipe.data.name }}`, identity `{{ data_identity }}`.
{% if recipe.found_by %}
Found by trial {{ recipe.found_by.trial }} of the search in MLflow run `{{ recipe.found_by.search }}`:
{% for field, value in recipe.found_by.values.items() %}
- `{{ field }}`: {{ value }}
{%- else %}the recipe's own values were best.{% endfor %}
{% endif %}
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
{%- for one in evaluation.left_out %}
In no metric: {{ one }}.
{% endfor %}
Gate ({{ "passed" if report.passed else "failed" }}):
{% for condition in report.conditions %}
- {{ "pass" if condition.passed else "FAIL" }}: {{ condition.says }}
{%- endfor %}
"""


def model_card(spec: TrainingSpec, facts: dict[str, Any], steps: int) -> str:
    """Return card.md of a model version that was trained for so many steps."""
    return _render(MODEL, spec=spec, facts=facts, steps=steps)


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
        made=MADE,
        data_identity=data_identity,
        evaluation=evaluation,
        report=report,
    )


CHECKPOINT: Final = """\
# {{ name }}

A `{{ kind }}` of others, taken in as it was: nothing of it was trained here.

| origin | |
|---|---|
| source | {{ plain(source) }} |
| licence | {{ plain(licence) }} |
| files | {{ files }}, listed with their sha256 in checkpoint.json |
{% if left_out -%}
| not taken in | {{ left_out|join(", ") }} |
{% endif %}"""


def checkpoint_card(
    name: str, *, kind: str, source: str, licence: str, files: int, left_out: Sequence[str]
) -> str:
    """Return card.md of a checkpoint that was taken in."""
    facts = {
        "kind": kind,
        "source": source,
        "licence": licence,
        "files": files,
        "left_out": left_out,
    }
    return _render(CHECKPOINT, name=name, **facts, plain=_plain)


def _render(template: str, **values: Any) -> str:
    # Markdown, not HTML: escaping would spoil it, and nothing here is shown unescaped on a page.
    environment = Environment(
        undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    return environment.from_string(template).render(**values)


LIVE: Final = """\
## Where it stands

{% if standing -%}
{% for row in standing -%}
- **{{ row.stage }}** since {{ utc(row.at) }}
{%- if row.forced %}, forced past the gate{% endif %}, by {{ plain(row.actor) }}
{%- for approval in row.approvals or [] %}, approved by {{ plain(approval.actor|string) }}{% endfor %}: \
{{ plain(row.reason) }}
{% endfor %}
{%- else -%}
Nowhere: no place of the ledger holds it.
{% endif %}
{% if origin -%}
Imported from the installation `{{ origin }}`.

{% endif -%}
{% if rows -%}
| when | place | from | to | who | why |
|---|---|---|---|---|---|
{% for row in rows -%}
| {{ utc(row.at) }} | {{ row.stage }} | {{ row.from_version or "-" }} \
| {{ row.to_version or "-" }} | {{ plain(row.actor) }} | {{ "forced: " if row.forced }}{{ plain(row.reason) }} |
{% endfor %}
{%- if left_out %}
{{ left_out }} earlier transitions: `atelier history {{ name }}`.
{% endif %}
{%- endif %}"""
SHOWN: Final = 12  # rows of history on a card; MLflow keeps 5000 characters


def live_card(version: "Version") -> str:
    """Return the part of a card that changes: where the version stands now and how it came there."""
    from flows.context import ledger

    name, number = version.name, version.number
    rows = ledger().about(name, number)
    standing = [row for row in ledger().standing(name).values() if row.to_version == number]
    return _render(
        LIVE,
        name=name,
        standing=sorted(standing, key=lambda row: row.at),
        rows=rows[-SHOWN:],
        left_out=max(0, len(rows) - SHOWN),
        origin=version.tags.get("atelier.imported_from", ""),
        plain=_plain,
        utc=utc,
    )


def renew(name: str, version: int) -> None:
    """Write the live part of a version's card beside it in MLflow, as its description, where it changed.

    The sealed card.md stays as it was published: its bytes are part of the digest.
    """
    from flows.context import registry

    found = registry().get(f"{name}:{version}")
    card = live_card(found)
    if found.description != card:
        registry().describe(name, version, card)


def renew_all(name: str) -> None:
    """Renew the cards of the versions that the ledger's newest rows of `name` moved to or away from."""
    from flows.context import ledger
    from infra.registry.registry import RegistryError, Unreachable

    rows = ledger().standing(name).values()
    for number in {number for row in rows for number in (row.to_version, row.from_version)}:
        if number is None:
            continue
        try:
            renew(name, number)
        except Unreachable:
            raise
        except RegistryError:  # deleted in MLflow: there is no card to renew
            continue


def _plain(text: str) -> str:
    """Return what a person wrote as one short line that cannot break a Markdown table."""
    line = " ".join(text.split())
    line = line if len(line) <= 120 else f"{line[:117]}..."
    return "".join(f"\\{sign}" if sign in "\\|`*_[]<>#" else sign for sign in line)
