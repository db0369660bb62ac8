"""The page for blind votes: two pictures, three keys, a count."""

from typing import Final

from infra.pages import STYLE, environment

PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Which is better?</title>
<style nonce="{{ nonce }}">{{ style|safe }}
body { max-width: 56rem; text-align: center; padding-top: 3rem }
#prompt { font-size: 1.2rem; min-height: 2rem; margin: .4rem auto 1.4rem; max-width: none }
#pair { display: flex; gap: 1.6rem; justify-content: center }
button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .8rem; cursor: pointer } button:hover, button:focus-visible { border-color: var(--a); outline: none }
#pair button { width: min(22rem, 45vw) }
img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated; border-radius: 5px;
  display: block }
kbd { font: .86rem ui-monospace, monospace; border: 1px solid var(--line); border-radius: 4px; padding: .05rem .4rem }
#pair kbd { display: inline-block; margin-top: .7rem } #alike { margin-top: 1.4rem; padding: .5rem 1.2rem }
#count { margin: 1.6rem auto 0 } [hidden] { display: none !important }
</style></head><body>
<h1>Which picture is the better one for this prompt?</h1>
<p id="prompt"></p>
<div id="pair"><button id="left" type="button"><img id="one" alt="the left picture"><kbd>1</kbd></button>
<button id="right" type="button"><img id="two" alt="the right picture"><kbd>2</kbd></button></div>
<button id="alike" type="button"><kbd>0</kbd> &nbsp;alike</button>
<p id="count" class="soft" role="status"></p>
<script nonce="{{ nonce }}">
const at = id => document.getElementById(id);
let shown = null, busy = false;
function show(next) {
  at("count").textContent = next.done + " of " + next.of;
  shown = next.pair ?? null;
  if (shown === null) {
    for (const id of ["pair", "alike"]) at(id).hidden = true;
    at("prompt").textContent = "Thank you, every pair has your vote. This page can be closed.";
    return;
  }
  at("prompt").textContent = next.prompt;
  at("one").src = next.left; at("two").src = next.right;
}
async function vote(choice) {
  if (shown === null || busy) return;
  busy = true;
  try {
    const answer = await fetch("vote", {method: "POST", body: JSON.stringify({pair: shown, choice})});
    show(answer.ok ? await answer.json() : await (await fetch("pair")).json());
  } catch { at("count").textContent = "the server has ended; start `atelier vote` again to go on"; }
  busy = false;
}
const keys = {"1": "left", "2": "right", "0": "alike"};
addEventListener("keydown", event => { if (keys[event.key] && !event.repeat) vote(keys[event.key]); });
for (const id of ["left", "right", "alike"]) at(id).addEventListener("click", () => vote(id));
fetch("pair").then(answer => answer.json()).then(show);
</script></body></html>
"""


def page(nonce: str) -> str:
    """Return the page; only what has this nonce is run or styled."""
    text: str = environment().from_string(PAGE).render(nonce=nonce, style=STYLE)
    return text
