"""The drift page: one line a question, and for what was asked for the shares then and now as bars."""

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from infra.pages import STYLE, environment
from infra.settings import settings
from infra.storage import atomic_write

PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{{ report.name }}: drift</title>
<style>{{ style|safe }}
.bars { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.6rem 2.4rem }
.bars svg { width: 100%; height: auto; display: block } .bars text { fill: var(--ink); font-size: 12px }
.bars .then { fill: var(--soft); opacity: .45 } .bars .now { fill: var(--a) }
.bars h3 { font-size: .95rem; margin: 0 0 .3rem }
</style></head><body>
<h1>{{ report.name }}: <span class="{{ 'bad' if report.drifted else 'good' }}">
{{- 'drifted' if report.drifted else 'no drift' }}</span></h1>
<p class="soft">{{ report.answers }} kept answers of {{ report.version }}
(<code>{{ report.digest[:12] }}</code>). Prompts are compared with those that it was promoted on, pictures with what it
draws for the same prompts from other seeds.</p>
<div class="wide"><table><tr><th></th><th>question</th><th>found</th><th>limit</th></tr>
{% for finding in report.findings %}<tr>
<td class="{{ 'bad' if finding.drifted else 'good' }}">{{ 'drifted' if finding.drifted else 'steady' }}</td>
<td>{{ finding.about }}</td><td>{{ finding.says }}</td><td class="n">{{ finding.limit }}</td></tr>
{% endfor %}</table></div>
{% if charts %}<h2>What was asked for</h2>
<p class="soft">Share of the prompts that name each value: grey when it was promoted, blue now.</p>
<div class="bars">{% for chart in charts %}<section><h3>{{ chart.title }}</h3>
<svg viewBox="0 0 280 {{ chart.height }}" role="img" aria-label="{{ chart.title }}">
{% for bar in chart.bars %}<text x="0" y="{{ bar.y + 15 }}">{{ bar.label }}</text>
<rect class="then" x="80" y="{{ bar.y }}" width="{{ '%.1f' % bar.then }}" height="9" rx="2"/>
<rect class="now" x="80" y="{{ bar.y + 11 }}" width="{{ '%.1f' % bar.now }}" height="9" rx="2"/>
{% endfor %}</svg></section>
{% endfor %}</div>{% endif %}
</body></html>
"""
STEP: Final = 30  # px a value
WIDEST: Final = 190  # px of a bar


class Finding(BaseModel):
    """One question, its answer in numbers, and whether that is drift."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str
    value: float
    limit: str
    drifted: bool
    says: str
    expected: dict[str, int] = {}
    found: dict[str, int] = {}


class DriftReport(BaseModel):
    """What the kept answers of one version show, beside its baseline."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    digest: str
    answers: int
    findings: list[Finding]

    @property
    def drifted(self) -> bool:
        """Whether any finding is drift."""
        return any(finding.drifted for finding in self.findings)


def write_page(report: DriftReport) -> Path:
    """Write the page of a report below the state folder; returns where."""
    charts = []
    for finding in report.findings:
        if not finding.found:
            continue
        then, now = (
            {label: count / max(1, sum(counts.values())) for label, count in counts.items()}
            for counts in (finding.expected, finding.found)
        )
        most = max([*then.values(), *now.values()])
        bars = [
            {
                "label": label,
                "y": place * STEP,
                "then": WIDEST * then[label] / most,
                "now": WIDEST * now[label] / most,
            }
            for place, label in enumerate(now)
        ]
        charts.append({"title": finding.about, "bars": bars, "height": STEP * len(bars)})
    text = environment().from_string(PAGE).render(report=report, charts=charts, style=STYLE)
    path = settings().state / "reports" / f"drift-{report.name}.html"
    with atomic_write(path) as file:
        file.write(text.encode())
    return path
