"""The two ASGI taps: they look at what passes, and pass it on unchanged and at once.

The outer tap stands right inside the application's outermost error handler: it opens and closes
the action. The inner tap stands right outside the router: it copies the bodies as the handler
sees them, before any middleware of the application encodes them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from otel_audit.capture.exchange import Exchange

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

EXCHANGE = "otel_audit.exchange"
"""The ASGI scope's key under which the exchange under way is found."""


class Capture(Protocol):
    """What the taps need: how to open an exchange, what to do when the server comes and goes."""

    def open(self, scope: Scope) -> Exchange | None:
        """Begin to observe a request; None where there is nothing to observe. Never raises."""

    async def started(self) -> None:
        """The application has started. Never raises."""

    async def stopping(self) -> None:
        """The application has shut down: deliver what waits. Never raises."""


class OuterTap:
    """Opens the action, adds the request id's header, and closes the action when the app returns.

    An inner application's taps find the exchange of the outer one and stay out of its way.
    """

    def __init__(self, app: ASGIApp, capture: Capture) -> None:
        """Wrap an application.

        Args:
            app: What comes next.
            capture: What to do with what is seen.
        """
        self.app = app
        self._capture = capture

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI 3)."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        exchange = (
            self._capture.open(scope) if scope["type"] == "http" and EXCHANGE not in scope else None
        )
        if exchange is None:
            await self.app(scope, receive, send)
            return
        if exchange.refused:
            await _refuse(send)
            return

        async def tapped_send(message: Message) -> None:
            kind = message["type"]
            if kind == "http.response.start":
                message = exchange.response_started(message)
            elif _is_last(kind, message):
                exchange.answered()
            await send(message)

        scope[EXCHANGE] = exchange
        exchange.enter()
        try:
            await self.app(scope, receive, tapped_send)
        except BaseException as error:
            exchange.failed(error)
            raise
        finally:
            exchange.close()

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tapped_send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                await self._capture.started()
            elif message["type"].startswith("lifespan.shutdown."):
                await self._capture.stopping()
            await send(message)

        await self.app(scope, receive, tapped_send)


class InnerTap:
    """Copies request and response bodies, up to a bound, while they pass."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application.

        Args:
            app: What comes next.
        """
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI 3)."""
        exchange = scope.get(EXCHANGE)
        if exchange is None or exchange.inner_scope is not None:
            await self.app(scope, receive, send)
            return
        exchange.inner_scope = scope
        request_copy = exchange.request_copy
        response_copy = exchange.response_copy

        async def tapped_receive() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                request_copy.add(message.get("body", b""), last=not message.get("more_body", False))
            return message

        async def tapped_send(message: Message) -> None:
            kind = message["type"]
            if kind == "http.response.body":
                response_copy.add(
                    message.get("body", b""), last=not message.get("more_body", False)
                )
            elif kind == "http.response.start":
                exchange.inner_response_headers = message.get("headers", ())
            await send(message)

        await self.app(
            scope,
            receive if request_copy is None else tapped_receive,
            send if response_copy is None else tapped_send,
        )


# a problem document, RFC 9457
_REFUSAL = (
    b'{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"The request '
    b'cannot be recorded in the audit trail now, so it was not carried out. Try again later."}'
)


async def _refuse(send: Send) -> None:
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(_REFUSAL)),
        (b"retry-after", b"10"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": _REFUSAL})


def _is_last(kind: str, message: Message) -> bool:
    if kind == "http.response.body":
        return not message.get("more_body", False)
    return kind == "http.response.pathsend"
