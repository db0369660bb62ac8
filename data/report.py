"""The validation report: one static HTML page from a verdict, its facts and a few of the samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from data.expectations import Verdict
from infra.pages import STYLE, data_uri, environment
from infra.storage import atomic_write

SHOWN: Final = 200  # broken rows on the page; the quarantine file has all
TYPES: Final = {"picture": "image/png", "strip": "image/png", "sound": "audio/wav"}
PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{{ verdict.name }}: validation</title>
<style>{{ style|safe }}
.badge { color: #fff; border-radius: 4px; padding: .1rem .5rem; font-size: .9rem; vertical-align: middle }
.badge.good { background: var(--good) } .badge.bad { background: var(--bad) }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem } dt { color: var(--soft); font-size: .85rem }
dd { margin: 0; font-size: 1.15rem } td.n { text-align: right }
figure { display: inline-block; margin: 0 .75rem .75rem 0; width: 96px; vertical-align: top }
figure img { width: 96px; height: 96px; image-rendering: pixelated; border-radius: 4px; display: block }
figure.strip { width: 32rem } figure.strip img { width: 100%; height: auto }
figure.sound { width: 18rem } figure.sound audio { width: 100% }
pre { white-space: pre-wrap; border-left: 3px solid var(--line); padding-left: .75rem; margin: .75rem 0 }
figcaption { font-size: .75rem; line-height: 1.25; color: var(--soft); overflow-wrap: anywhere }
</style>
{% macro badge(ok, yes, no) %}
<span class="badge {{ 'good' if ok else 'bad' }}">{{ yes if ok else no }}</span>{% endmacro %}
<h1>{{ verdict.name }} {{ badge(verdict.ok, 'accepted', 'refused') }}</h1>
<dl>
{% for name, value in summary.items() %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{% endfor %}</dl>
{% if verdict.faults %}<h2>What is wrong</h2>
<table><tr><th>file</th><th>reason</th><th>expectation</th></tr>
{% for fault in verdict.faults[:shown] %}<tr><td>{{ fault.file }}</td><td>{{ fault.reason }}</td>
<td>{{ fault.rule }}</td></tr>
{% endfor %}</table>
{% if verdict.faults|length > shown %}<p>... and {{ verdict.faults|length - shown }} more;
{{ quarantine }} has all.</p>{% endif %}
{% endif %}<h2>Expectations</h2>
<table><tr><th></th><th>expectation</th><th>judged</th><th>broken</th><th>Great Expectations</th></tr>
{% for check in verdict.checks %}<tr><td>{{ badge(check.ok, 'met', 'broken') }}</td><td>{{ check.rule }}</td>
<td class="n">{{ '{:,}'.format(check.checked) }}</td><td class="n">{{ '{:,}'.format(check.broken) }}</td>
<td><code>{{ check.expectation }}{% if check.column %}({{ check.column }}){% endif %}</code></td></tr>
{% endfor %}</table>
{% if samples %}<h2>Some of the samples</h2>
{% for sample in samples %}{% if sample.text is defined %}<pre>{{ sample.text }}</pre>
{% elif sample.sound is defined %}<figure class="sound"><audio controls preload="none" src="{{ sample.sound }}"></audio>
<figcaption>{{ sample.caption }}</figcaption></figure>
{% elif sample.strip is defined %}<figure class="strip"><img alt="" src="{{ sample.strip }}">
<figcaption>{{ sample.caption }}</figcaption></figure>
{% else %}<figure><img alt="" src="{{ sample.picture }}">
<figcaption>{{ sample.caption }}</figcaption></figure>
{% endif %}{% endfor %}{% endif %}
</html>
"""


def write(
    path: Path,
    verdict: Verdict,
    summary: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    quarantine: str,
) -> None:
    """Write the page; `samples` are {"picture": PNG}, {"strip": PNG}, {"sound": WAV} or {"text"}, and "caption"."""
    shown = [
        {key: data_uri(value, TYPES[key]) if key in TYPES else value for key, value in one.items()}
        for one in samples
    ]
    text = environment().from_string(PAGE).render(
        verdict=verdict, summary=summary, samples=shown, quarantine=quarantine, shown=SHOWN, style=STYLE
    )  # fmt: skip
    with atomic_write(path) as file:
        file.write(text.encode())
