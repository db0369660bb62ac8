"""The lineage page: the graph as one inline SVG in columns, drawn here, and a table of every identity."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from flows.provenance.lineage import COLUMNS, Graph, Node
from infra.pages import STYLE, environment

WIDTH: Final = 204  # px of a box
GAP_X: Final = 66
GAP_Y: Final = 20
LINE: Final = 17
TOP: Final = 40
SWEEPS: Final = 4
LETTERS: Final = 28  # of a line in a box
HEADS: Final = ("data", "runs", "versions", "pipeline", "served as", "picture")

PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{{ graph.title }}</title>
<style>{{ style|safe }}
body { max-width: 92rem }
svg { display: block; min-width: {{ least }}px; width: 100%; max-width: {{ width }}px; height: auto; margin: 1.2rem 0 }
svg text { fill: var(--ink); font-size: 12px } svg .head { fill: var(--soft); font-size: 12px }
svg .line { fill: var(--soft); font-size: 11.5px } svg .says { fill: var(--soft); font-size: 11px }
svg rect { fill: var(--card); stroke: var(--line) } svg .edge { fill: none; stroke: var(--soft); stroke-opacity: .55 }
svg .tip { fill: var(--soft) } svg .title { font-weight: 600; font-size: 13px } svg a .title { fill: var(--a) }
svg .says { paint-order: stroke; stroke: var(--paper); stroke-width: 4px }
td code { overflow-wrap: anywhere }
</style></head><body>
<h1>{{ graph.title }}</h1>
<p class="soft">From left to right: what was learned from, the runs, the versions that they made, the pipeline that pins
them{% if served %}, and where the ledger put it{% endif %}.
{%- if graph.note %} <b>{{ graph.note[0]|upper }}{{ graph.note[1:] }}.</b>{% endif %}</p>
<div class="wide"><svg viewBox="0 0 {{ width }} {{ height }}" role="img" aria-label="{{ graph.title }}">
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path class="tip" d="M0 0.8 L8 4 L0 7.2 Z"/></marker></defs>
{% for head, x in heads %}<text class="head" x="{{ x }}" y="18">{{ head }}</text>
{% endfor %}
{% for edge in edges %}<path class="edge" d="{{ edge.path }}" marker-end="url(#tip)"/>
{% endfor %}
{% for edge in edges if edge.says %}
<text class="says" x="{{ edge.x }}" y="{{ edge.y }}" text-anchor="end">{{ edge.says }}</text>
{% endfor %}
{% for box in boxes %}
<g><title>{{ box.node.identity }}</title>
<rect x="{{ box.x }}" y="{{ box.y }}" width="{{ box_width }}" height="{{ box.height }}" rx="7"/>
{% if box.node.links %}<a href="{{ box.node.links[0][1] }}">{% endif %}
<text class="title" x="{{ box.x + 12 }}" y="{{ box.y + 22 }}">{{ short(box.node.title, 24) }}</text>
{% if box.node.links %}</a>{% endif %}
{% for line in box.node.lines %}
<text class="line" x="{{ box.x + 12 }}" y="{{ box.y + 22 + line_px * loop.index }}">{{ short(line, letters) }}</text>
{% endfor %}</g>
{% endfor %}</svg></div>
<h2>Identities</h2>
<div class="wide"><table><tr><th>what</th><th>name</th><th>identity</th><th>look at</th></tr>
{% for box in boxes %}<tr><td class="soft">{{ box.node.column }}</td><td>{{ box.node.title }}</td>
<td><code>{{ box.node.identity }}</code></td>
<td>{% for label, address in box.node.links %}<a href="{{ address }}">{{ label }}</a> {% endfor %}</td></tr>
{% endfor %}</table></div>
</body></html>
"""


@dataclass(slots=True)
class Box:
    """A node with its place, in px."""

    node: Node | None  # None: a place where an edge passes a column
    x: float
    y: float
    height: float

    @property
    def middle(self) -> float:
        """Where edges arrive and leave."""
        return self.y + self.height / 2


def page(graph: Graph) -> str:
    """Return the page as HTML."""
    drawing = layout(graph)
    boxes = [box for box in drawing.boxes if box.node is not None]
    columns = {box.node.column: box.x for box in boxes if box.node is not None}
    heads = [
        (head, columns[column])
        for column, head in zip(COLUMNS, HEADS, strict=True)
        if column in columns
    ]
    text: str = environment().from_string(PAGE).render(
        graph=graph, style=STYLE, boxes=boxes, heads=heads, width=drawing.width, height=drawing.height,
        edges=[_drawn(way, says) for way, says in drawing.ways],
        least=int(drawing.width * 0.75), box_width=WIDTH, line_px=LINE, letters=LETTERS, short=_short,
        served="endpoint" in columns,
    )  # fmt: skip
    return text


@dataclass(frozen=True, slots=True)
class Drawing:
    """Boxes with their places, and edges as the boxes that they pass."""

    boxes: list[Box]
    ways: list[tuple[list[Box], str]]
    width: int
    height: int


def layout(graph: Graph) -> Drawing:
    """Return where everything goes: columns by kind, rows by the mean of the neighbours' (Sugiyama et al. 1981).

    Boxes of a column never overlap; an edge over several columns has a gap of its own in each.
    """
    kinds = [name for name in COLUMNS if any(node.column == name for node in graph.nodes)]
    columns: list[list[Box]] = [[] for _ in kinds]
    boxes: dict[str, Box] = {}
    for node in graph.nodes:
        place = kinds.index(node.column)
        boxes[node.identity] = Box(node, _x(place), 0, 34 + LINE * len(node.lines))
        columns[place].append(boxes[node.identity])
    ways = []
    for before, after, says in graph.edges:
        first, last = boxes[before], boxes[after]
        span = range(_place(first) + 1, _place(last))
        passed = [Box(None, _x(place), 0, 2) for place in span]
        for place, one in zip(span, passed, strict=True):
            columns[place].append(one)
        ways.append(([first, *passed, last], says))
    near: dict[int, list[Box]] = {}
    for way, _ in ways:
        for left, right in pairwise(way):
            near.setdefault(id(left), []).append(right)
            near.setdefault(id(right), []).append(left)
    for column in columns:
        _stack(column)
    for sweep in range(SWEEPS):
        for column in columns if sweep % 2 else reversed(columns):
            for box in column:
                if found := near.get(id(box)):
                    box.y = sum(other.middle for other in found) / len(found) - box.height / 2
            column.sort(key=lambda box: box.middle)
            _stack(column, keep=True)
    everything = [box for column in columns for box in column]
    top = min((box.y for box in everything), default=0)
    for box in everything:
        box.y = round(box.y - top + TOP, 1)
    bottom = max((box.y + box.height for box in everything), default=TOP)
    return Drawing(everything, ways, _x(len(kinds)) - GAP_X + 1, int(bottom) + 10)


def _x(place: int) -> int:
    return 1 + place * (WIDTH + GAP_X)


def _place(box: Box) -> int:
    return int(box.x) // (WIDTH + GAP_X)


def _stack(column: list[Box], *, keep: bool = False) -> None:
    """Part the boxes of a column, in their order; with `keep` around the middle that they wish for."""
    wished = sum(box.middle for box in column) / len(column) if keep else 0.0
    y: float | None = None
    for box in column:
        box.y = box.y if keep and (y is None or box.y >= y) else (y or 0.0)
        y = box.y + box.height + GAP_Y
    shift = wished - sum(box.middle for box in column) / len(column)
    for box in column:
        box.y += shift


def _drawn(way: list[Box], says: str) -> dict[str, object]:
    """Return an edge's path: level through the columns that it passes, bent in the gaps between them."""
    path = ""
    for left, right in pairwise(way):
        x1, x2 = left.x + WIDTH, right.x
        middle = (x1 + x2) / 2
        start = f"M{x1} {left.middle:g}" if not path else f" L{x1} {left.middle:g}"
        path += (
            f"{start} C{middle:g} {left.middle:g} {middle:g} {right.middle:g} {x2} {right.middle:g}"
        )
    last = way[-1]
    if last.node is None or last.node.column not in {"endpoint", "receipt"}:
        says = ""  # a stage's name stands in its version's title
    return {
        "path": path,
        "says": says,
        "x": last.x - 9,
        "y": way[-2].middle * 0.3 + last.middle * 0.7 - 5,
    }


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 3]}..."
