"""The door of a local server (ASGI): an exact Host and Origin, and a credential or the cookie of a signed-in page.

Programs send the credential, which stands in a file of the state folder that its owner alone reads. A person opens a
link of `sign_in_link`, which works once and for two minutes, and gets a cookie that only this installation can make.
Its page talks to this server alone: Prefect's would tell another company that it was opened.
"""

import base64
import hashlib
import hmac
import html
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

USER: Final = "atelier"
SIGN_IN: Final = "/atelier-sign-in"
LINK_S: Final = 120
SESSION_S: Final = 12 * 3600


def basic(user: str, password: str) -> dict[str, str]:
    """Return the header that a program sends."""
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


def sign_in_link(address: str, secret: str, page: str) -> str:
    """Return the link that signs a browser in at the server of `address`, once, and shows `page` of it.

    Args:
        address: scheme://host:port of a guarded server.
        secret: Its credential.
        page: A name in the server's `pages`.
    """
    return f"{address}{SIGN_IN}?page={page}&ticket={_sign(secret, f'ticket {page}', LINK_S)}"


class Guard:
    """Middleware around a whole application, its websockets and static files too."""

    def __init__(
        self, app: "ASGIApp", port: int, secret: str, pages: Mapping[str, tuple[str, str, str]]
    ) -> None:
        """Guard `app`, which listens on `port` of loopback.

        Args:
            app: The application.
            port: Where it listens: the Host that a request must name.
            secret: The credential.
            pages: By name what a link may show: its address, and the name and value of the cookie that opens it;
                an empty value is a session of this guard.
        """
        self._app = app
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._secret = secret
        self._pages = pages
        self._policy = _policy(self._hosts).encode()
        self._cookie = f"atelier-{port}"
        self._began = time.time()
        self._used: dict[str, float] = {}

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Let a request through, or answer why not."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._judge(scope)
        if refusal is None:
            await self._app(scope, receive, self._bounded(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send)

    def _bounded(self, send: "Send") -> "Send":
        """Return `send` with a policy on every page, beside what the application says of its own."""

        async def sent(message: "Message") -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"content-security-policy", self._policy)]
                message = {**message, "headers": headers}
            await send(message)

        return sent

    def _judge(self, scope: "Scope") -> "Response | None":
        from starlette.requests import HTTPConnection

        asked = HTTPConnection(scope)
        host = asked.headers.getlist("host")
        if len(host) != 1 or host[0] not in self._hosts:
            return _refusal(403, f"this server answers to {min(self._hosts)} alone")
        if scope["type"] == "http" and scope["path"] == SIGN_IN:
            return self._sign_in(asked.query_params)
        own = f"http://{host[0]}"
        if _is_foreign(asked.headers, own):
            if _is_followed_link(scope, asked.headers):
                return _page(f"{own}{quote(asked.url.path)}?{asked.url.query}".rstrip("?"))
            return _refusal(403, "this server takes no requests from other pages")
        if not self._knows(asked.headers.get("authorization"), asked.cookies.get(self._cookie)):
            return _refusal(401, "open this page with `atelier open`; programs send the credential")
        return None

    def _knows(self, authorization: str | None, session: str | None) -> bool:
        if authorization is not None:
            good = (basic(USER, self._secret)["Authorization"], f"Bearer {self._secret}")
            return any(_equal(authorization, one) for one in good)
        return session is not None and _expiry(self._secret, "session", session) is not None

    def _sign_in(self, query: Mapping[str, str]) -> "Response":
        name, ticket = query.get("page", ""), query.get("ticket", "")
        expires = _expiry(self._secret, f"ticket {name}", ticket)
        now = time.time()
        self._used = {one: until for one, until in self._used.items() if until > now}
        # a ticket from before this start may have been used: nobody remembers
        fresh = expires is not None and expires - LINK_S >= int(self._began)
        if expires is None or not fresh or ticket in self._used or name not in self._pages:
            return _refusal(403, "this link is used or too old; make another with `atelier open`")
        self._used[ticket] = expires
        address, cookie, value = self._pages[name]
        answer = _page(address)
        answer.set_cookie(
            cookie or self._cookie,
            value or _sign(self._secret, "session", SESSION_S),
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
        )
        return answer


def _policy(hosts: Iterable[str]) -> str:
    """Return what a page may load and whom it may ask: what came from here, and its websockets."""
    sockets = " ".join(f"ws://{host}" for host in sorted(hosts))
    return (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:;"
        f" connect-src 'self' data: blob: {sockets}; frame-ancestors 'self'"
    )


def _is_foreign(headers: "Headers", own: str) -> bool:
    """Whether another page asks; a browser says so, and a program says nothing."""
    if any(origin != own for origin in headers.getlist("origin")):
        return True
    return headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}


def _is_followed_link(scope: "Scope", headers: "Headers") -> bool:
    """Whether a person followed a link on another page, such as a report: no strict cookie came along.

    They are shown the page by asking for it from here; who sent them cannot read it.
    """
    wanted = (scope.get("method"), headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest"))
    return wanted == ("GET", "navigate", "document") and "origin" not in headers


def _page(address: str) -> "Response":
    """Return a page that asks for `address` itself: the strict cookie goes along, as it does not with a redirect."""
    from starlette.responses import HTMLResponse

    content = f'<meta http-equiv="refresh" content="0;url={html.escape(address)}">'
    headers = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    return HTMLResponse(content, headers=headers)


def _refusal(status: int, why: str) -> "Response":
    from starlette.responses import PlainTextResponse

    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="atelier"'  # Basic: a browser would ask people
    return PlainTextResponse(f"{why}\n", status, headers)


def _sign(secret: str, what: str, lasts_s: int) -> str:
    """Return a token for `what` that holds for `lasts_s`: its expiry, a random word and their signature."""
    facts = f"{int(time.time()) + lasts_s}.{secrets.token_hex(16)}"
    return f"{facts}.{_mac(secret, f'{what} {facts}')}"


def _expiry(secret: str, what: str, token: str) -> int | None:
    """Return when a token for `what` ends; None where it has ended or is not ours."""
    facts, _, mac = token.rpartition(".")
    if not _equal(mac, _mac(secret, f"{what} {facts}")):
        return None
    expires = int(facts.partition(".")[0])
    return expires if expires > time.time() else None


def _mac(secret: str, text: str) -> str:
    return hmac.new(
        secret.encode(), text.encode("utf-8", "surrogateescape"), hashlib.sha256
    ).hexdigest()


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode())
