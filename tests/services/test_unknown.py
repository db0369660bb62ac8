"""What a model never learned to read is refused with what it knows, or left unread and said: one rule for all."""

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import pytest

from data import tokenizing
from tests.services.served_kit import with_toys
from tests.services.text_kit import CHAT, COMPLETIONS, events, gpt
from tests.services.toys import Voice

Ask = Callable[..., httpx.Response]
WORDS: Final = tokenizing.train(["a red square is on the left ."], "words", 40)
SPEECH, SCORES = "/v1/audio/speech", "/v1/scores"
IMAGES, SAMPLES = "/v1/images/generations", "/v1/samples"


@pytest.fixture(scope="module")
def gateways(workshop: Any) -> Iterator[dict[str, Any]]:
    """One that refuses, as they do, and one that is set to read on."""
    with with_toys():
        workshop.publish_alone("reads-words", gpt(document=WORDS), max_tokens=4)
        workshop.publish_alone("reads-signs", gpt("dialogues"), max_tokens=4)
        workshop.publish_alone("says", Voice(Voice.presets["tiny"]), seconds=0.1)
        stages = {rule: workshop.stage(unknown_words=rule) for rule in ("refuse", "map")}
        yield {rule: workshop.gateway(stage) for rule, stage in stages.items()}
    for stage in stages.values():
        stage.close()


def said(answer: httpx.Response) -> tuple[int, str | None, str]:
    told = answer.json()["error"]
    return answer.status_code, told["param"], told["message"]


def turn(content: str) -> dict[str, Any]:
    return {"model": "reads-signs", "messages": [{"role": "user", "content": content}], "seed": 1}


CASES: Final = [
    (
        COMPLETIONS,
        {"model": "reads-words", "prompt": "a rad square"},
        "prompt",
        "unknown word 'rad'; did you mean 'red'?",
    ),
    (
        COMPLETIONS,
        {"model": "reads-words", "prompt": "a red "},
        "prompt",
        "unknown character ' '; a space belongs to the word after it",
    ),
    (CHAT, turn("bad Zcafe"), "messages", "unknown character 'Z'"),
    (
        IMAGES,
        {"model": "shapes", "prompt": "a smal red circle"},
        "prompt",
        "unknown word 'smal'; did you mean 'small'?",
    ),
    (
        SAMPLES,
        {"model": "shapes", "prompt": "a xyz circle"},
        "prompt",
        "unknown word 'xyz'; the nearest that the model knows: ",
    ),
    (
        SPEECH,
        {"model": "says", "input": "low hum", "voice": "alloy"},
        "input",
        "unknown word 'hum'",
    ),
    (SCORES, {"model": "reads-words", "input": "a big square"}, "input", "unknown word 'big'"),
]


@pytest.mark.parametrize(("path", "body", "param", "message"), CASES)
def test_a_word_that_was_never_learned_is_refused_with_the_nearest(
    gateways: dict[str, Any], ask: Ask, path: str, body: Any, param: str, message: str
) -> None:
    status, named, told = said(ask(gateways["refuse"], "POST", path, json=body))
    assert (status, named) == (400, param)
    assert message in told


def test_read_on_an_answer_says_what_was_not_read(gateways: dict[str, Any], ask: Ask) -> None:
    app = gateways["map"]
    drawn = ask(app, "POST", IMAGES, json={**CASES[3][1], "seed": 3}).json()
    assert drawn["warnings"] == ["never learned, and not read: 'smal'"]
    plain = ask(app, "POST", IMAGES, json={"model": "shapes", "prompt": "a red circle", "seed": 3})
    assert "warnings" not in plain.json()
    written = ask(app, "POST", COMPLETIONS, json=CASES[0][1]).json()
    assert written["warnings"] == ["never learned, and not read: 'rad'"]
    score = ask(app, "POST", SCORES, json=CASES[6][1]).json()
    assert score["data"][0]["warnings"] == ["never learned, and not read: 'big'"]
    *_, last = events(ask(app, "POST", CHAT, json={**turn("bad Zcafe Q"), "stream": True}))
    assert last["warnings"] == ["never learned, and not read: 'Z', 'Q'"]
    heard = ask(app, "POST", SPEECH, json={"model": "says", "input": "low", "voice": "alloy"})
    assert "x-atelier-warnings" not in heard.headers


def test_read_on_a_caption_of_nothing_known_is_refused(gateways: dict[str, Any], ask: Ask) -> None:
    body = {"model": "says", "input": "hum", "voice": "alloy"}
    status, param, told = said(ask(gateways["map"], "POST", SPEECH, json=body))
    assert (status, param) == (400, "input")
    assert told.startswith("unknown word 'hum'")


def test_a_sound_s_warning_is_in_its_header(gateways: dict[str, Any], ask: Ask) -> None:
    answer = ask(gateways["map"], "POST", SPEECH, json=CASES[5][1])
    assert answer.status_code == 200
    assert json.loads(answer.headers["x-atelier-warnings"]) == [
        "never learned, and not read: 'hum'"
    ]
