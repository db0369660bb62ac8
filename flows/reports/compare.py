"""The comparison as one page with its pictures or texts inside, and as one PNG sheet."""

import io
from typing import TYPE_CHECKING, Final

from flows.comparing.compare import Comparison, Metric
from flows.comparing.samples import Pictures, Texts
from infra.pages import STYLE, data_uri, environment
from infra.times import utc

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

COLUMNS: Final = 4  # of each panel of the sheet
BAR: Final = 220  # px
PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{{ found.first.version.ref }} and {{ found.second.version.ref }}</title>
<style>{{ style|safe }}
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; margin: 1.4rem 0 0 }
.side { background: var(--card); border: 1px solid var(--line); border-radius: 9px; padding: .9rem 1.1rem }
.side b { font-size: 1.15rem; font-weight: 600 } .side .a, .side .b { font-weight: 600; margin-right: .5rem }
.side div { margin-top: .15rem } .bar line { stroke-width: 2 } .bar .a { stroke: var(--a) } .bar .b { stroke: var(--b) }
.bar circle.a { fill: var(--a) } .bar circle.b { fill: var(--b) } .bar { display: block }
.text { white-space: pre-wrap; vertical-align: top }
.narrow { width: auto } .narrow th, .narrow td { padding-right: 2.6rem }
.same td { color: var(--soft) } .pairs { display: grid; gap: 1.5rem 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, {{ 3 * side + 20 }}px), 1fr)) }
figure { margin: 0; width: {{ 3 * side + 12 }}px; max-width: 100% } .three { display: flex; gap: 6px }
.three img { width: {{ side }}px; height: {{ side }}px; min-width: 0; image-rendering: pixelated;
  border-radius: 4px; background: #000 }
figcaption { font-size: .84rem; line-height: 1.35; margin-top: .35rem } figcaption .soft { white-space: nowrap }
.key { display: flex; gap: 6px; margin: .2rem 0 .8rem; font-size: .84rem } .key span { width: {{ side }}px }
</style></head><body>
<h1>{{ found.first.version.ref }} <span class="soft">and</span> {{ found.second.version.ref }}</h1>
<p class="soft">A difference is B minus A: what changes for whoever goes from A to B.</p>
<div class="sides">{% for letter, one in (("A", found.first), ("B", found.second)) %}
<div class="side"><span class="{{ letter|lower }}">{{ letter }}</span><b>{{ one.version.ref }}</b>
<div class="soft"><code>{{ one.version.digest[:24] }}</code></div>
<div class="soft">made {{ utc(one.version.created) }}
{%- if one.facts.get("data_identity") %}, data <code>{{ one.facts["data_identity"][:12] }}</code>{% endif %}</div>
<div>{% if one.passed is not none %}<span class="{{ 'good' if one.passed else 'bad' }}">
{{- "passed its own gate" if one.passed else "refused by its own gate" }}</span>, {% endif %}
{{ "in " ~ one.stands|join(" and ") if one.stands else "stands nowhere" }}</div></div>{% endfor %}</div>

<h2>Metrics, with 95 % intervals</h2>
<p class="soft">{{ found.paired[0]|upper }}{{ found.paired[1:] }}.
{%- if votes[1] %} Blind votes: B won {{ "%g" % votes[0] }} of {{ votes[1] }}
({{ "%.0f" % (100 * votes[0] / votes[1]) }} %, 95 % interval {{ "%.0f" % (100 * votes[2]) }} to
{{ "%.0f" % (100 * votes[3]) }} %).{% endif %}</p>
{% if found.metrics %}<div class="wide"><table>
<tr><th>metric</th><th class="a">A</th><th class="b">B</th><th></th><th>B - A, paired</th><th></th></tr>
{% for metric in found.metrics %}<tr><td>{{ metric.name }}</td>
{% for one in (metric.first, metric.second) %}<td class="n">{% if one %}{{ "%.4g" % one.value }}
{% if one.low != one.high %}<span class="soft">{{ "%.4g" % one.low }} .. {{ "%.4g" % one.high }}</span>{% endif %}
{% else %}<span class="soft">not measured</span>{% endif %}</td>
{% endfor %}<td><svg class="bar" width="{{ bar_px }}" height="24" aria-hidden="true">{% for mark in bar(metric) %}
<line class="{{ mark.letter }}" x1="{{ mark.low }}" x2="{{ mark.high }}" y1="{{ mark.y }}" y2="{{ mark.y }}"/>
<circle class="{{ mark.letter }}" cx="{{ mark.value }}" cy="{{ mark.y }}" r="3.4"/>{% endfor %}</svg></td>
<td class="n">{% if metric.change %}{{ "%+.4f" % metric.change.value }}
<span class="soft">{{ "%+.4f" % metric.change.low }} .. {{ "%+.4f" % metric.change.high }}</span>{% endif %}</td>
<td>{{ metric.verdict }}</td></tr>
{% endfor %}</table></div>{% endif %}

<h2>Stages</h2>
<div class="wide"><table><tr><th>stage</th><th class="a">A</th><th class="b">B</th><th></th></tr>
{% for stage, a, b, same in found.stages %}<tr{% if same %} class="same"{% endif %}><td>{{ stage }}</td>
<td>{{ a }}</td><td>{{ b }}</td><td>{{ "the same" if same else "differs" }}</td></tr>
{% endfor %}</table></div>

<h2>Recipe</h2>
{% if found.recipe %}<div class="wide"><table class="narrow">
<tr><th>field</th><th class="a">A</th><th class="b">B</th></tr>
{% for field, a, b in found.recipe %}<tr><td><code>{{ field }}</code></td><td>{{ a }}</td><td>{{ b }}</td></tr>
{% endfor %}</table></div>{% else %}<p class="soft">No field differs.</p>{% endif %}

<h2>The same prompts and seeds</h2>
{% if pictures %}
<p class="soft">{{ pictures.seeds|length }} requests, {{ pictures.source }}. {{ pictures.says }}.</p>
<div class="key"><span class="a">A</span><span class="b">B</span>
{%- if pictures.difference is not none %}<span class="soft">|A - B| x {{ pictures.factor }}</span>{% endif %}</div>
<div class="pairs">{% for row in rows %}<figure><div class="three">
{% for source, what in row.images %}<img alt="{{ what }}" src="{{ source }}">{% endfor %}</div>
<figcaption>{{ row.prompt }} <span class="soft">seed {{ row.seed }}</span></figcaption></figure>
{% endfor %}</div>
{% elif texts %}
<p class="soft">{{ texts.seeds|length }} requests, {{ texts.source }}. {{ texts.says }}.</p>
<div class="wide"><table><tr><th>asked</th><th class="a">A</th><th class="b">B</th></tr>
{% for prompt, seed, a, b in said %}<tr{% if a == b %} class="same"{% endif %}>
<td>{{ prompt }} <span class="soft">seed {{ seed }}</span></td>
<td class="text">{{ a }}</td><td class="text">{{ b }}</td></tr>
{% endfor %}</table></div>
{% else %}<p class="soft">{{ why_none }}.</p>{% endif %}
</body></html>
"""


def page(
    found: Comparison,
    drawn: Pictures | Texts | None,
    why_none: str = "",
    votes: tuple[float, int, float, float] = (0.0, 0, 0.0, 1.0),
) -> str:
    """Return the page as HTML.

    Args:
        found: What differs on paper.
        drawn: What both drew or wrote, or None.
        why_none: Why there is nothing.
        votes: What B won of how many blind votes, and the rate's interval.
    """
    rows = []
    pictures = drawn if isinstance(drawn, Pictures) else None
    texts = drawn if isinstance(drawn, Texts) else None
    said = (
        list(zip(texts.prompts, texts.seeds, texts.first, texts.second, strict=True))
        if texts
        else []
    )
    if pictures is not None:
        third = [] if pictures.difference is None else [(pictures.difference, "difference")]
        parts = [(pictures.first, "A"), (pictures.second, "B"), *third]
        for place, (prompt, seed) in enumerate(zip(pictures.prompts, pictures.seeds, strict=True)):
            images = [(data_uri(picture_png(tensor[place])), what) for tensor, what in parts]
            rows.append({"prompt": prompt, "seed": seed, "images": images})
    text: str = environment().from_string(PAGE).render(
        found=found, pictures=pictures, why_none=why_none, votes=votes, rows=rows, style=STYLE, texts=texts, said=said,
        bar=_bar, bar_px=BAR, side=112, utc=utc,
    )  # fmt: skip
    return text


def _bar(metric: Metric) -> list[dict[str, object]]:
    """Return both intervals on one scale, in px of the bar."""
    sides = [one for one in (metric.first, metric.second) if one]
    if all(one.low == one.high for one in sides):
        return []
    ends = [end for one in sides for end in (one.low, one.high)]
    low = min(ends)
    room = (max(ends) - low) or 1.0
    marks = []
    for letter, y, one in (("a", 7, metric.first), ("b", 17, metric.second)):
        if one is not None:
            places = [8 + (BAR - 16) * (end - low) / room for end in (one.low, one.value, one.high)]
            left, middle, right = (round(place, 1) for place in places)
            marks.append({"letter": letter, "y": y, "low": left, "value": middle, "high": right})
    return marks


def sheet(found: Comparison, pictures: Pictures | Texts) -> bytes:
    """Return A's, B's and the difference's pictures as three panels of one sheet, or both's texts by request; PNG."""
    if isinstance(pictures, Texts):
        from flows.evaluating.sheets import of_texts

        asked = zip(pictures.prompts, pictures.seeds, pictures.first, pictures.second, strict=True)
        return of_texts(
            [
                (f"{name}, seed {seed}: {prompt}", text)
                for prompt, seed, *both in asked
                for name, text in zip(
                    (found.first.version.ref, found.second.version.ref), both, strict=True
                )
            ]
        )
    file = io.BytesIO()
    _panels(found, pictures).save(file, "PNG")
    return file.getvalue()


def _panels(found: Comparison, pictures: Pictures) -> "Image.Image":
    from PIL import Image, ImageDraw, ImageFont

    from models.judges.gallery import GAP_PX, INK, PAPER, gallery

    asked = zip(pictures.prompts, pictures.seeds, strict=True)
    labels = [prompt or f"seed {seed}" for prompt, seed in asked]
    panels = [
        (f"A  {found.first.version.ref}", pictures.first),
        (f"B  {found.second.version.ref}", pictures.second),
    ]
    if pictures.difference is not None:
        title = f"|A - B| x {pictures.factor}" if pictures.most else "no difference"
        panels.append((title, pictures.difference))
    drawn = [(title, gallery(part, COLUMNS, labels)) for title, part in panels]
    head = 40
    width = sum(image.width for _, image in drawn) + GAP_PX * (len(drawn) - 1)
    whole = Image.new("RGB", (width, head + max(image.height for _, image in drawn)), PAPER)
    pen, font, left = ImageDraw.Draw(whole), ImageFont.load_default(15), 0
    for title, image in drawn:
        pen.text((left + GAP_PX, 16), title, fill=INK, font=font)
        whole.paste(image, (left, head))
        left += image.width + GAP_PX
    return whole


def picture_png(picture: "Tensor") -> bytes:
    """Return a picture (C, H, W) in [0, 1] as a PNG file."""
    from models.judges.gallery import to_image

    file = io.BytesIO()
    to_image(picture).save(file, "PNG", optimize=True)
    return file.getvalue()
