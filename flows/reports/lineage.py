"""The lineage page: a column a kind, in each box what it was made from; the graph as Mermaid text; every identity."""

from typing import Final

from flows.provenance.lineage import COLUMNS, Graph, mermaid_text
from infra.pages import STYLE, environment

HEADS: Final = ("data", "runs", "versions", "pipeline", "served as", "picture")

PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{{ graph.title }}</title>
<style>{{ style|safe }}
body { max-width: 92rem }
.columns { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(11rem, 1fr); gap: 1.2rem; margin: 1.2rem 0 }
.columns h2 { color: var(--soft); font-weight: 400; font-size: .8rem; margin: 0 0 .6rem }
.box { background: var(--card); border: 1px solid var(--line); border-radius: 7px; padding: .5rem .7rem;
  margin: 0 0 1rem; font-size: .8rem; overflow-wrap: anywhere }
.box b { display: block; font-size: .9rem; font-weight: 600 } .box span { display: block; color: var(--soft) }
.box .from { color: var(--ink); margin-top: .3rem } .box .from a { text-decoration: none }
:target { border-color: var(--a); outline: 1px solid var(--a) }
pre { overflow-x: auto; font: .8rem ui-monospace, "DejaVu Sans Mono", monospace }
td code { overflow-wrap: anywhere }
</style></head><body>
<h1>{{ graph.title }}</h1>
<p class="soft">From left to right: what was learned from, the runs, the versions that they made, the pipeline that pins
them{% if served %}, and where the ledger put it{% endif %}.
{%- if graph.note %} <b>{{ graph.note[0]|upper }}{{ graph.note[1:] }}.</b>{% endif %}</p>
<div class="wide"><div class="columns">
{% for head, nodes in columns %}<section><h2>{{ head }}</h2>
{% for node in nodes %}<div class="box" id="n{{ ids[node.identity] }}" title="{{ node.identity }}">
<b>{% if node.links %}<a href="{{ node.links[0][1] }}">{{ node.title }}</a>{% else %}{{ node.title }}{% endif %}</b>
{% for line in node.lines %}<span>{{ line }}</span>
{% endfor %}
{% for before, after, says in graph.edges if after == node.identity %}
<span class="from">from <a href="#n{{ ids[before] }}">{{ titles[before] }}</a>
{%- if says %}, {{ says }}{% endif %}</span>
{% endfor %}</div>
{% endfor %}</section>
{% endfor %}</div></div>
<details><summary>The graph as Mermaid text, which GitHub and others draw</summary><pre>{{ mermaid }}</pre></details>
<h2>Identities</h2>
<div class="wide"><table><tr><th>what</th><th>name</th><th>identity</th><th>look at</th></tr>
{% for node in graph.nodes %}<tr><td class="soft">{{ node.column }}</td><td>{{ node.title }}</td>
<td><code>{{ node.identity }}</code></td>
<td>{% for label, address in node.links %}<a href="{{ address }}">{{ label }}</a> {% endfor %}</td></tr>
{% endfor %}</table></div>
</body></html>
"""


def page(graph: Graph) -> str:
    """Return the page as HTML; it loads nothing."""
    kinds = {kind: [one for one in graph.nodes if one.column == kind] for kind in COLUMNS}
    heads = zip(HEADS, kinds.values(), strict=True)
    text: str = environment().from_string(PAGE).render(
        graph=graph, style=STYLE, columns=[(head, nodes) for head, nodes in heads if nodes],
        ids={node.identity: place for place, node in enumerate(graph.nodes)},
        titles={node.identity: node.title for node in graph.nodes},
        served=bool(kinds["endpoint"]), mermaid=mermaid_text(graph),
    )  # fmt: skip
    return text
