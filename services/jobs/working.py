"""The runner's place in a gateway: it works between the start and the end of the server around it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.jobs.runner import Runner


class Working:
    """ASGI middleware around the gateway: it starts the runner, and at the end has it give back what it works on."""

    def __init__(self, app: ASGIApp, runner: Runner) -> None:
        self._app, self._runner = app, runner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start and stop the runner as the server that runs the gateway starts and ends."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def heard() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._runner.start()
            elif message["type"] == "lifespan.shutdown":
                await self._runner.stop()
            return message

        await self._app(scope, heard, send)
