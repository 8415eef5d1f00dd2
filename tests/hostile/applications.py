"""Applications of the shapes that matter, each of which writes down what it was given."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from jose import jwt
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from hostile.generated import CANARIES, KEY, TENANT_HEADER


@dataclass
class Seen:
    """What the application was given of one request, by its own account.

    Attributes:
        user: Whom it let in.
        tenant: For whom it worked.
        method, path: What its router saw; None where a middleware answered.
        body: What its handler read.
        handled: Whether a handler ran.
    """

    user: str | None = None
    tenant: str | None = None
    method: str | None = None
    path: str | None = None
    body: bytes | None = None
    handled: bool = False


class Log:
    """What the application has been given, by the request that is under way.

    A client that has lost its patience sends the next request while the one before is answered.
    """

    def __init__(self) -> None:
        self._last: ContextVar[Seen] = ContextVar("last", default=Seen())  # noqa: B039

    @property
    def last(self) -> Seen:
        return self._last.get()

    def begin(self) -> Seen:
        self._last.set(found := Seen())
        return found


@dataclass(frozen=True)
class Shape:
    """A kind of application, and how it is audited.

    Attributes:
        make: Makes one; called twice, as one of the two is not audited.
        root_path: What the server says that it is mounted below.
        settings: Of the audit trail, beside those that all have.
    """

    make: Callable[[Log], Any]
    root_path: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


class Witness:
    """The innermost middleware: writes down what the router is about to see."""

    def __init__(self, app: Any, log: Log) -> None:
        self.app, self.log = app, log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            path, root = scope["path"], scope.get("root_path", "")
            below = path.removeprefix(root) if root and path.startswith(root + "/") else path
            self.log.last.path = below
            self.log.last.method = scope.get("method", "WEBSOCKET")
        await self.app(scope, receive, send)


class Identifies:
    """Verifies the bearer token as applications do, with python-jose and the first header."""

    def __init__(self, app: Any, log: Log) -> None:
        self.app, self.log = app, log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            identify(scope, self.log.last)
        await self.app(scope, receive, send)


def identify(scope: Any, seen: Seen) -> None:
    """Write down whom the application lets in, and for which tenant."""
    headers = Headers(scope=scope)
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    claims: dict[str, Any] = {}
    if scheme.lower() == "bearer":
        # python-jose raises more than its own errors for what is no token
        with contextlib.suppress(Exception):
            claims = jwt.decode(credentials, KEY, algorithms=["HS256"])
    seen.user = claims.get("sub") or None
    tenant = claims.get("tenant_id")
    told = str(tenant) if isinstance(tenant, str | int) else ""
    seen.tenant = told or headers.get(TENANT_HEADER) or None


class OverridesMethod:
    """Lets a header override the method, as several frameworks offer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            other = Headers(scope=scope).get("x-http-method-override")
            if other:
                scope = {**scope, "method": other.upper()}
        await self.app(scope, receive, send)


class Inflates:
    """Unpacks gzip before the handler sees the body; of what is none it passes on the bytes."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or Headers(scope=scope).get("content-encoding") != "gzip":
            await self.app(scope, receive, send)
            return
        raw, more = b"", True
        while more:
            message = await receive()
            raw += message.get("body", b"")
            more = message.get("more_body", False)
        with contextlib.suppress(zlib.error):
            raw = zlib.decompressobj(31).decompress(raw, 2_000_000)
        given = iter([{"type": "http.request", "body": raw, "more_body": False}])

        async def inflated() -> Any:
            return next(given, None) or await receive()

        await self.app(scope, inflated, send)


def denying(log: Log) -> Any:
    """A middleware answers 401 to whoever has no valid token."""

    async def deny(request: Request, call_next: Any) -> Response:
        if log.last.user is None:
            return JSONResponse({"detail": "Not authenticated"}, 401)
        return await call_next(request)

    return Starlette(
        routes=_routes(log),
        middleware=[
            Middleware(Identifies, log),
            Middleware(BaseHTTPMiddleware, dispatch=deny),
            Middleware(Witness, log),
        ],
    )


def catching_all(log: Log) -> Any:
    """A raw ASGI application serves every path and method, as a proxy does."""

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope, receive)
        log.last.body = await request.body()
        log.last.handled = True
        await PlainTextResponse("served")(scope, receive, send)

    return _identified(log, [Mount("/", proxy)])


def mounting(log: Log) -> Any:
    """FastAPI with another one mounted below a path parameter."""
    app, inner = FastAPI(), FastAPI()

    async def change(order_id: str, request: Request) -> dict[str, str]:
        await _handled(request, log)
        log.last.tenant = log.last.tenant or request.path_params.get("tenant") or None
        return {"order": order_id}

    for one in (app, inner):
        one.api_route("/orders/{order_id}", methods=["GET", "POST", "PUT", "DELETE"])(change)
        one.post("/orders/{order_id}:cancel")(change)
    app.mount("/t/{tenant}", inner)
    app.add_middleware(Witness, log=log)
    app.add_middleware(Identifies, log=log)
    return app


def plain(log: Log) -> Any:
    """Routes as usual; used below a root path."""
    return _identified(log, _routes(log))


def talking(log: Log) -> Any:
    """WebSockets that are accepted, denied, closed, answered with a response, or that fail."""
    return _identified(log, [*_sockets(log), *_routes(log)])


def inflating(log: Log) -> Any:
    """A middleware unpacks the request's body."""
    return _identified(log, _routes(log), Middleware(Inflates))


def overriding(log: Log) -> Any:
    """A middleware takes the method from a header."""
    return _identified(log, _routes(log), Middleware(OverridesMethod))


SHAPES = {
    "denying": Shape(denying),
    "catching all": Shape(catching_all),
    "catching all, without anonymous": Shape(catching_all, settings={"log_anonymous": False}),
    "mounting": Shape(mounting, settings={"tenant_path_parameter": "tenant"}),
    "below a root path": Shape(plain, root_path="/api/v1"),
    "talking": Shape(talking, settings={"capture_socket_messages": True}),
    "inflating": Shape(inflating),
    "overriding": Shape(overriding),
}


def _identified(log: Log, routes: list[Any], *further: Middleware) -> Starlette:
    return Starlette(
        routes=routes,
        middleware=[Middleware(Identifies, log), *further, Middleware(Witness, log)],
    )


async def _handled(request: Request, log: Log) -> None:
    log.last.body = await request.body()
    log.last.handled = True


def _routes(log: Log) -> list[Any]:
    async def change(request: Request) -> Response:
        await _handled(request, log)
        return JSONResponse({"order": 1, "token": CANARIES["password"]})

    async def echo(request: Request) -> Response:
        await _handled(request, log)
        return Response(log.last.body, media_type="application/json")

    async def fail(request: Request) -> Response:
        await _handled(request, log)
        raise ValueError(f"password={CANARIES['password']} in {log.last.body!r}")

    every = ["GET", "POST", "PUT", "PATCH", "DELETE", "QUERY"]
    return [
        Route("/orders/{order_id}", change, methods=every),
        Route("/orders/{order_id}/{action:path}", echo, methods=every),
        Route("/users/me/{rest:path}", change, methods=every),
        Route("/reset/{token}", change, methods=every),
        Route("/fail/{what:path}", fail, methods=every),
        Route("/health/{rest:path}", change, methods=every),
        Route("/docs/{rest:path}", change, methods=every),
    ]


def _sockets(log: Log) -> list[Any]:
    async def talk(socket: WebSocket) -> None:
        log.last.handled = True
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                if message.get("text") == "boom":
                    raise RuntimeError("boom")
                if message.get("text") == "close":
                    await socket.close(4001, "bye")
                    return
                await socket.send_text("heard")

    async def deny(socket: WebSocket) -> None:
        await socket.close(1008)

    async def answer(socket: WebSocket) -> None:
        await socket.send_denial_response(PlainTextResponse("no", 403))

    async def fail(_socket: WebSocket) -> None:
        raise RuntimeError("before it was accepted")

    return [
        WebSocketRoute("/socket", talk),
        WebSocketRoute("/socket/1", deny),
        WebSocketRoute("/socket/42", answer),
        WebSocketRoute("/socket/me", fail),
        WebSocketRoute("/socket/{rest:path}", talk),
    ]
