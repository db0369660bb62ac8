"""A page for blind votes: two pictures of one prompt and seed, left or right by chance, nobody told whose they are.

It listens on loopback. Its address holds a token, and a vote must come from the page itself, so that no other page in
the voter's browser can vote or look.
"""

import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.ledger.votes import Votes

if TYPE_CHECKING:
    from fastapi import FastAPI

MOST_BYTES: Final = 1024  # of a vote
HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Pair:
    """Both versions' pictures of one request, as data addresses."""

    prompt: str
    seed: int
    first: str
    second: str


class Ballot(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    pair: Annotated[int, Field(ge=0, le=100_000)]
    choice: Literal["left", "right", "alike"]


class Booth:
    """Which pairs one voter still has to see, in an order of their own, and which picture stands left."""

    def __init__(
        self, pairs: Sequence[Pair], votes: Votes, first: str, second: str, voter: str
    ) -> None:
        self._pairs = pairs
        self._votes = votes
        self._digests = (first, second)
        self._voter = voter
        chance = secrets.SystemRandom()
        self._swapped = [chance.random() < 0.5 for _ in pairs]
        done = votes.by(voter)
        self._open = [i for i, pair in enumerate(pairs) if (pair.prompt, pair.seed) not in done]
        chance.shuffle(self._open)
        self.cast_now = 0

    @property
    def finished(self) -> bool:
        """Whether every pair has this voter's vote."""
        return not self._open

    def next(self) -> dict[str, Any]:
        """Return the next pair for the page: pictures and a prompt, no names; and how many are done."""
        count = {"done": len(self._pairs) - len(self._open), "of": len(self._pairs)}
        if self.finished:
            return count
        place = self._open[0]
        pair = self._pairs[place]
        left, right = (
            (pair.second, pair.first) if self._swapped[place] else (pair.first, pair.second)
        )
        return {**count, "pair": place, "prompt": pair.prompt, "left": left, "right": right}

    def cast(self, ballot: Ballot) -> bool:
        """Keep a vote for the pair that is shown; False for another one, which was voted on already."""
        if self.finished or ballot.pair != self._open[0]:
            return False
        pair = self._pairs[ballot.pair]
        winner = None
        if ballot.choice != "alike":
            is_second = (ballot.choice == "right") != self._swapped[ballot.pair]
            winner = self._digests[is_second]
        self._votes.cast(pair.prompt, pair.seed, winner, self._voter)
        self._open.pop(0)
        self.cast_now += 1
        return True


def application(booth: Booth, token: str, port: int, on_finished: Any) -> "FastAPI":
    """Return the page's application; `on_finished` is called when the last vote is cast."""
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response

    from flows.reports.vote import page

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    origins = {f"http://{host}:{port}" for host in (HOST, "localhost")}
    hosts = {origin.removeprefix("http://") for origin in origins}

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        given = request.url.path.split("/")[1]
        if not hmac.compare_digest(given.encode(), token.encode()):
            return _refused(404, "no such page")
        if request.headers.get("host") not in hosts:  # a name that was rebound to loopback
            return _refused(421, "this page answers on loopback only")
        if request.method != "GET" and request.headers.get("origin") not in origins:
            return _refused(403, "a vote must come from the page itself")
        answer: Response = await call_next(request)
        answer.headers["cache-control"] = "no-store"
        answer.headers["referrer-policy"] = "no-referrer"
        answer.headers["x-content-type-options"] = "nosniff"
        return answer

    @app.get("/{token}/")
    async def look() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; img-src data:; connect-src 'self'; frame-ancestors 'none'; "
            f"base-uri 'none'; form-action 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
        )
        return HTMLResponse(page(nonce), headers={"content-security-policy": policy})

    @app.get("/{token}/pair")
    def pair() -> JSONResponse:
        return JSONResponse(booth.next())

    @app.post("/{token}/vote")
    async def vote(request: Request) -> Response:
        content = b""
        async for part in request.stream():
            content += part
            if len(content) > MOST_BYTES:
                return _refused(413, f"a vote has at most {MOST_BYTES} bytes")
        try:
            ballot = Ballot.model_validate_json(content)
        except ValidationError as error:
            return _refused(422, f"not a vote: {error.errors()[0]['msg']}")
        if not booth.cast(ballot):
            return _refused(409, "this pair has a vote already")
        if booth.finished:
            on_finished()
        return JSONResponse(booth.next())

    def _refused(status: int, message: str) -> Response:
        return Response(json.dumps({"error": message}), status, media_type="application/json")

    return app


def serve(booth: Booth, on_address: Any) -> None:
    """Serve the page on a free loopback port until every pair has a vote, or Ctrl-C; `on_address` gets its address."""
    import socket

    import uvicorn

    token = secrets.token_urlsafe(24)
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        listening.listen()  # whoever is told the address may come at once
        port = listening.getsockname()[1]

        def finished() -> None:
            server.should_exit = True

        app = application(booth, token, port, finished)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        on_address(f"http://{HOST}:{port}/{token}/")
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            return
