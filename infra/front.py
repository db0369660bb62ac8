"""What stands before Serve's proxy on this machine: its own routes (`/-/routes`, `/-/healthz`) answer nobody.

They would name every application to whoever asks. The gateway's /healthz and /readyz are there for those who look
after it. Ray's head tells the proxy of this module (`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`).
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Receive, Scope, Send

CALLBACK: Final = "infra.front.middlewares"
OWN: Final = "/-/"


class Front:
    """ASGI middleware around Serve's proxy."""

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Let a request through to the gateway."""
        from starlette.responses import PlainTextResponse

        if scope["type"] == "http" and scope["path"].startswith(OWN):
            why = PlainTextResponse(
                "Serve's own routes are closed; the gateway has /healthz\n", 403
            )
            await why(scope, receive, send)
            return
        await self._app(scope, receive, send)


def middlewares() -> "list[Middleware]":
    """Return what Serve puts around its proxy, the first inside."""
    from starlette.middleware import Middleware

    return [Middleware(Front)]
