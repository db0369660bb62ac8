"""What every page shares: its head, colours and type, and the way a picture is put inline."""

import base64
from typing import Any, Final

STYLE: Final = """\
:root { color-scheme: light dark; --paper: #fbfaf8; --ink: #24262b; --soft: #6a6e78; --line: #dcdad5;
  --card: #ffffff; --a: #2f6fb5; --b: #b4642a; --good: #1f7f4f; --bad: #b3323b; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #dfe1e6; --soft: #9297a3; --line: #32363e;
  --card: #1d2025; --a: #7fb2ec; --b: #e3a06c; --good: #62c596; --bad: #ee8088; } }
* { box-sizing: border-box }
body { font: 15px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; background: var(--paper); color: var(--ink);
  margin: 0 auto; padding: 2.2rem 1.4rem 4rem; max-width: 76rem; }
h1 { font-size: 1.55rem; font-weight: 600; margin: 0 0 .3rem; letter-spacing: -.01em }
h2 { font-size: 1.08rem; font-weight: 600; margin: 2.6rem 0 .7rem }
p { margin: .3rem 0; max-width: 46rem } .soft { color: var(--soft) } a { color: var(--a) }
code { font: .86em ui-monospace, "DejaVu Sans Mono", monospace }
table { border-collapse: collapse; width: 100% }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: .87rem }
th, td { padding: .38rem .9rem .38rem 0; border-bottom: 1px solid var(--line); vertical-align: middle }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap }
.wide { overflow-x: auto }
.a { color: var(--a) } .b { color: var(--b) } .good { color: var(--good) } .bad { color: var(--bad) }
"""


def environment() -> Any:
    """Return the Jinja2 environment of all pages: everything is escaped, a missing value is an error."""
    from jinja2 import Environment, StrictUndefined

    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)  # fmt: skip


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Return a picture or a sound as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
