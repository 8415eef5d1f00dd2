"""The two ASGI middlewares: they observe messages, and pass them on unchanged and at once.

The outer one is directly inside the application's outermost error handler: it opens and closes
the action. The inner one is directly outside the router: it copies the bodies as the handler
sees them, before any middleware of the application encodes them.
"""

from __future__ import annotations

import dataclasses
import logging
import weakref
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.http.deferred import AsgiScope, DeferredRequest, Message
from otel_audit.http.exchange import Exchange
from otel_audit.http.health_endpoint import Send, answer_health
from otel_audit.http.request_metadata import method_of, path_below_root
from otel_audit.policy.routes import routes_of

if TYPE_CHECKING:
    from otel_audit.http.options import CaptureOptions


Receive = Callable[[], Awaitable[Message]]
ASGIApp = Callable[[AsgiScope, Receive, Send], Awaitable[None]]

EXCHANGE = "otel_audit.exchange"
"""The ASGI scope's key of a weak reference to the exchange under way.

The outer middleware keeps the exchange. A strong reference would close a cycle, in whatever copy of
the scope: each request would wait for the garbage collector, and so would all that it refers to.
"""

OBSERVED = frozenset({"http", "websocket"})
"""Kinds of ASGI scopes that are actions."""

_TRY_AGAIN_LATER = 1013  # registered with IANA for RFC 6455


class _Common(Protocol):
    """What is the same for each application of the process."""

    @property
    def refuses_unrecorded(self) -> bool:
        """Whether a request that cannot be observed must not be carried out."""

    @property
    def health_path(self) -> str | None:
        """The path of the health endpoint, None if there is none."""

    def health(self) -> Mapping[str, Any]:
        """Report the trail's health. Never raises."""

    async def started(self) -> None:
        """The application has started. Never raises."""

    async def stopping(self) -> None:
        """The application has shut down: deliver what waits. Never raises."""


class Capture(_Common, Protocol):
    """The needs of the middleware of one application."""

    def open(self, scope: AsgiScope, path: str) -> Exchange | DeferredRequest | None:
        """Begin to observe a request; None if that is not possible. Never raises.

        Args:
            scope: The ASGI scope.
            path: Its path, as the application's own router reads it.
        """


class ProcessCapture(_Common, Protocol):
    """The capture of the whole process, from which each application gets its own."""

    @property
    def required(self) -> bool:
        """Whether an application that cannot be observed must not run."""

    @property
    def reason_not_to_run(self) -> str | None:
        """Why the application must not run as it is set up; None if it may."""

    def open_with(
        self, options: CaptureOptions, scope: AsgiScope, path: str, /
    ) -> Exchange | DeferredRequest | None:
        """Begin to observe a request as the options say; otherwise as `Capture.open`."""

    def for_app(self, app: Any, /) -> Capture:
        """Return what observes one application, by what its routes say about themselves."""


class OuterMiddleware:
    """Opens the action, adds the request id's header, and closes the action when the app returns.

    An inner application's middleware finds the exchange of the outer one and does nothing.
    """

    def __init__(self, app: ASGIApp, capture: Capture) -> None:
        """Wrap an application.

        Args:
            app: What comes next.
            capture: What to do with what is seen.
        """
        self.app = app
        self._capture = capture

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI 3)."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        path = path_below_root(scope)
        capture = self._capture
        if kind == "http" and path == capture.health_path:
            await answer_health(capture.health(), method_of(scope), send)
            return
        observed = kind in OBSERVED and EXCHANGE not in scope
        action = capture.open(scope, path) if observed else None
        if action is None:
            serve = send_refusal if observed and capture.refuses_unrecorded else self.app
            await serve(scope, receive, send)
            return
        if type(action) is not DeferredRequest:
            if action.refused or (action.intent is not None and not await action.admitted()):
                await send_refusal(scope, receive, send)
                return
            receive = _observed_receive(action, receive)
            action.enter()

        # coroutine functions, here and below: frameworks tell ASGI 3 from what is older by that
        async def observed_send(message: Message) -> None:
            message = action.sent(message)
            if may_wait and action.waits_for_disk:
                await action.durable()
            await send(message)

        may_wait = action.may_wait
        scope[EXCHANGE] = weakref.ref(action)
        try:
            await self.app(scope, receive, observed_send)
        except BaseException as error:
            await _close_failed(action, error)
            raise
        exchange = action.finish()
        if exchange is not None:
            await exchange.close_async()

    async def _lifespan(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if EXCHANGE in scope:
            await self.app(scope, receive, send)
            return
        # an outer middleware of the same application handles the server's start and end
        scope[EXCHANGE] = None

        async def observed_send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                await self._capture.started()
            elif message["type"].startswith("lifespan.shutdown."):
                await self._capture.stopping()
            await send(message)

        await self.app(scope, receive, observed_send)


class InnerMiddleware:
    """Copies request and response bodies, up to a bound, while they pass."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application.

        Args:
            app: What comes next.
        """
        self.app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI 3)."""
        found: weakref.ref[Exchange | DeferredRequest] | None = scope.get(EXCHANGE)
        exchange = None if found is None else found()
        if type(exchange) is DeferredRequest:
            exchange = exchange.routed(scope)
        if exchange is None or not exchange.routed(scope):
            await self.app(scope, receive, send)
            return
        if exchange.is_moved and not await exchange.admitted_inside():
            await send_refusal(scope, receive, send)
            return
        if exchange.socket is not None:
            await self.app(scope, receive, send)
            return
        request_copy = exchange.bodies.request_inside

        async def tapped_receive() -> Message:
            message = await receive()
            if request_copy is not None:
                exchange.received(request_copy, message)
            return message

        async def observed_send(message: Message) -> None:
            if copies_answer or message.get("type") != "http.response.body":
                message = exchange.sent_inside(message)
            await send(message)

        copies_answer = exchange.bodies.response is not None
        await self.app(scope, receive if request_copy is None else tapped_receive, observed_send)


async def _close_failed(action: Exchange | DeferredRequest, error: BaseException) -> None:
    """Close an action whose application has raised."""
    exchange = action.finish()
    if exchange is None:
        return
    exchange.failed(error)
    exchange.close()
    if exchange.waits_for_disk and isinstance(error, Exception):
        await exchange.durable()


def _observed_receive(exchange: Exchange, receive: Receive) -> Receive:
    """Let the exchange see what the application or its middleware receives, if it needs to."""
    if exchange.socket is not None:

        async def received_by_socket() -> Message:
            message = await receive()
            exchange.received_by_socket(message)
            return message

        return received_by_socket

    copy = exchange.bodies.request_outside
    if copy is None:
        return receive

    async def received() -> Message:
        message = await receive()
        exchange.received(copy, message)
        return message

    return received


# a problem document, RFC 9457
_REFUSAL = (
    b'{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"The request '
    b'cannot be recorded in the audit trail now, so it was not carried out. Try again later."}'
)
_REFUSAL_HEADERS = [
    (b"content-type", b"application/problem+json"),
    (b"content-length", b"%d" % len(_REFUSAL)),
    (b"retry-after", b"10"),
]


async def send_refusal(scope: AsgiScope, receive: Receive, send: Send) -> None:
    """Answer that an action is not carried out, as it cannot be recorded."""
    prefix = ""
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
            return
        prefix = "websocket."
    start = {"type": f"{prefix}http.response.start", "status": 503, "headers": [*_REFUSAL_HEADERS]}
    await send(start)
    await send({"type": f"{prefix}http.response.body", "body": _REFUSAL})


_logger = logging.getLogger("otel_audit.http")


class RoutedCapture:
    """Opens exchanges of one application.

    A body that only its route's own level wants must be copied from the start, when the request is
    not routed yet. So the routes are read when the first request comes, and again when some have
    been added: an application may do so as it starts, or later.
    """

    def __init__(self, whole: ProcessCapture, options: CaptureOptions, app: Any) -> None:
        """Wait for the first request.

        Args:
            whole: The capture of the process.
            options: How exchanges are observed, whatever the routes say.
            app: The application; it is not kept alive.
        """
        self._whole = whole
        self._plain = self._options = options
        self._app = weakref.ref(app)
        self.health_path = whole.health_path
        self._known = -1

    def open(self, scope: MutableMapping[str, Any], path: str) -> Exchange | DeferredRequest | None:
        """Begin to observe a request. Never raises."""
        try:
            app = self._app()
            if app is not None and len(app.routes) != self._known:
                self._read_routes(app)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._plain.on_error()
            log_limited(_logger, "routes", "The routes' own levels are not known", error=error)
        return self._whole.open_with(self._options, scope, path)

    @property
    def refuses_unrecorded(self) -> bool:
        """Whether a request that cannot be observed must not be carried out."""
        return self._whole.refuses_unrecorded

    def health(self) -> Mapping[str, Any]:
        """Report the trail's health. Never raises."""
        return self._whole.health()

    async def started(self) -> None:
        """The application has started."""
        await self._whole.started()

    async def stopping(self) -> None:
        """The application has shut down."""
        await self._whole.stopping()

    def _read_routes(self, app: Any) -> None:
        self._known = len(app.routes)
        overrides = [(r.methods, r.path, r.override) for r in routes_of(app) if r.override]
        policy = self._plain.policy.with_routes(overrides)
        self._options = dataclasses.replace(self._plain, policy=policy)
