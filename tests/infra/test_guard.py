"""The guard around a small application: who comes in, and how a browser is signed in."""

import asyncio
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from infra.stack import guard
from infra.stack.guard import Guard

SECRET = "5" * 64
PORT = 4200
HOST = f"127.0.0.1:{PORT}"
OURS = guard.basic(guard.USER, SECRET)
PAGES = {"prefect": (f"http://{HOST}/", "", ""), "ray": ("http://127.0.0.1:1/", "ray-cookie", "t")}


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


@pytest.fixture
def door() -> Guard:
    return Guard(inside, PORT, SECRET, PAGES)


def ask(
    door: Guard, path: str = "/", headers: Mapping[str, str] | None = None, host: str = HOST
) -> httpx.Response:
    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app=door)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client:
            return await client.get(path, headers={"Host": host, **(headers or {})})

    return asyncio.run(asked())


@pytest.mark.parametrize("path", ["/", "/api/health", "/docs", "/openapi.json", "/static/x.js"])
def test_nothing_answers_without_a_credential_and_programs_with_one_are_let_in(
    door: Guard, path: str
) -> None:
    refused = ask(door, path)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (
        401,
        'Bearer realm="atelier"',
    )
    assert "atelier open" in refused.text
    for good in (OURS, {"Authorization": f"Bearer {SECRET}"}):
        assert ask(door, path, good).text == "inside"


def test_a_page_may_ask_this_server_alone(door: Guard) -> None:
    policy = ask(door, headers=OURS).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert set(rules["connect-src"].split()) == {
        *("'self'", "data:", "blob:"),
        *(f"ws://127.0.0.1:{PORT}", f"ws://localhost:{PORT}"),
    }
    assert "//" not in rules["default-src"]
    assert rules["frame-ancestors"] == "'self'"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126)))
def test_no_other_word_is_a_credential(word: str) -> None:
    door = Guard(inside, PORT, SECRET, PAGES)
    for scheme in ("Basic", "Bearer"):
        assert ask(door, headers={"Authorization": f"{scheme} {word}"}).status_code == 401
    assert ask(door, headers={"Cookie": f"atelier-{PORT}={word}"}).status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.com", f"evil.com:{PORT}", "127.0.0.1", "127.0.0.1:1", f"{HOST}.evil.com", ""]
)
def test_a_rebound_name_is_refused_even_with_the_credential(door: Guard, host: str) -> None:
    assert ask(door, headers=OURS, host=host).status_code == 403


@pytest.mark.parametrize(
    "header",
    [
        {"Origin": "http://evil.com"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": f"http://localhost:{PORT}"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_origin_is_refused_even_with_the_credential(
    door: Guard, header: Mapping[str, str]
) -> None:
    assert ask(door, headers={**OURS, **header}).status_code == 403


def test_a_link_on_another_page_is_followed_from_here_so_that_the_cookie_goes_along(
    door: Guard,
) -> None:
    followed = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    shown = ask(door, '/runs/a"b?x=1&y=2', {**OURS, **followed})
    assert f'url=http://{HOST}/runs/a%22b?x=1&amp;y=2"' in shown.text
    assert "inside" not in shown.text
    framed = {**followed, "Sec-Fetch-Dest": "iframe"}
    sent = {**followed, "Origin": "http://evil.com"}
    for headers in (framed, sent):
        assert ask(door, headers={**OURS, **headers}).status_code == 403


def test_its_own_page_is_let_in(door: Guard) -> None:
    own = {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}
    assert ask(door, headers={**OURS, **own}).status_code == 200
    assert ask(door, headers={**OURS, "Sec-Fetch-Site": "none"}).status_code == 200


def test_a_link_signs_a_browser_in_once(door: Guard) -> None:
    link = guard.sign_in_link(f"http://{HOST}", SECRET, "prefect")
    assert SECRET not in link
    opened = ask(door, link, {"Sec-Fetch-Site": "cross-site"})
    assert f"url=http://{HOST}/" in opened.text
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    session = {"Cookie": cookie.partition(";")[0]}
    assert ask(door, headers=session).text == "inside"
    assert ask(door, headers={**session, "Origin": "http://127.0.0.1:1"}).status_code == 403
    again = ask(door, link)
    assert (again.status_code, "set-cookie" in again.headers) == (403, False)


def test_a_link_opens_ray_s_page_by_ray_s_own_cookie(door: Guard) -> None:
    opened = ask(door, guard.sign_in_link(f"http://{HOST}", SECRET, "ray"))
    assert opened.headers["set-cookie"].startswith("ray-cookie=t;")
    assert "HttpOnly" in opened.headers["set-cookie"]
    assert "url=http://127.0.0.1:1/" in opened.text


def test_a_link_of_another_key_page_or_time_opens_nothing(
    door: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = guard.sign_in_link(f"http://{HOST}", "6" * 64, "prefect")
    swapped = guard.sign_in_link(f"http://{HOST}", SECRET, "prefect").replace(
        "page=prefect", "page=ray"
    )
    session = guard.sign_in_link(f"http://{HOST}", SECRET, "prefect")
    ticket = dict(parse_qsl(urlsplit(session).query))["ticket"]
    with monkeypatch.context() as past:
        past.setattr(guard, "LINK_S", -1)
        old = guard.sign_in_link(f"http://{HOST}", SECRET, "prefect")
    before = Guard(inside, PORT, SECRET, PAGES)
    before._began += 3600  # it started after the link was made
    for link in (stranger, swapped, old, guard.SIGN_IN, f"{guard.SIGN_IN}?page=x&ticket=1"):
        assert ask(door, link).status_code == 403, link
    assert ask(before, session).status_code == 403
    assert ask(door, headers={"Cookie": f"atelier-{PORT}={ticket}"}).status_code == 401


def test_a_websocket_is_closed_before_it_is_accepted(door: Guard) -> None:
    sent: list[Message] = []

    async def knock(headers: list[tuple[bytes, bytes]]) -> None:
        async def receive() -> Message:
            return {"type": "websocket.connect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "websocket", "path": "/api/events/out", "query_string": b""}
        await door({**scope, "headers": headers}, receive, send)

    asyncio.run(knock([(b"host", HOST.encode())]))
    asyncio.run(knock([(b"host", b"evil.com"), (b"authorization", b"Bearer " + SECRET.encode())]))
    assert sent == [{"type": "websocket.close", "code": 1008}] * 2
