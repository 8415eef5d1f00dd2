"""Raw ASGI applications between real taps, with a recorder that keeps what it is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from otel_audit import AuditConfig
from otel_audit.action.compose import Opening
from otel_audit.http.middleware import InnerMiddleware, OuterMiddleware
from otel_audit.record import AuditRecord
from otel_audit.runtime import Runtime

Message = dict[str, Any]
App = Callable[..., Awaitable[None]]


class Kept:
    """A recorder: what was opened, answered, discarded and closed, in order."""

    def __init__(self, *, has_room: bool = True) -> None:
        self.has_room = has_room
        self.frames: list[tuple[str, Any]] = []

    def opened(self, begun: AuditRecord | Opening, span: Any, /) -> bool:
        record = begun.record() if isinstance(begun, Opening) else begun
        self.frames.append(("opened", record))
        return self.has_room

    def answered(self, record: AuditRecord, span: Any, /) -> None:
        self.frames.append(("answered", record))

    def discarded(self, record_id: str, /) -> None:
        self.frames.append(("discarded", record_id))

    def closed(self, record: AuditRecord, span: Any, /) -> None:
        self.frames.append(("closed", record))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.frames]

    def all(self, kind: str) -> list[Any]:
        return [what for name, what in self.frames if name == kind]

    @property
    def record(self) -> AuditRecord:
        (record,) = self.all("closed")
        return record


class _Unrouted:
    """The capture of an application without routes, with the runtime's options of the moment."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def open(self, scope: Any, path: str) -> Any:
        return self._runtime.open_with(self._runtime._options, scope, path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)


class Tapped:
    """An application, with the taps around it and perhaps middleware of its own between them."""

    def __init__(
        self,
        app: App,
        middleware: Callable[[App], App] = lambda app: app,
        *,
        kept: Kept | None = None,
        **settings: Any,
    ) -> None:
        self.kept = kept or Kept()
        self.runtime = Runtime(AuditConfig(exporter="none", **settings), self.kept)
        self.app = OuterMiddleware(middleware(InnerMiddleware(app)), _Unrouted(self.runtime))
        self.sent: list[Message] = []
        self.reads = 0

    async def ask(
        self,
        *chunks: bytes,
        headers: Iterable[tuple[bytes, bytes]] = ((b"content-type", b"application/json"),),
        **scope: Any,
    ) -> list[Message]:
        """Send a request with a body in chunks; return what the application sent."""
        given = chunks or (b"",)
        messages: list[Message] = [
            {"type": "http.request", "body": chunk, "more_body": place < len(given)}
            for place, chunk in enumerate(given, start=1)
        ]
        length = sum(map(len, chunks))
        found = [*headers, *([(b"content-length", b"%d" % length)] if chunks else [])]
        return await self.run(
            {"type": "http", "method": "POST", **scope, "headers": found},
            [*messages, {"type": "http.disconnect"}],
        )

    async def connect(self, *messages: Message, **scope: Any) -> list[Message]:
        """Open a WebSocket and let the application receive messages; return what it sent."""
        given = [{"type": "websocket.connect"}, *messages]
        return await self.run({"type": "websocket", "headers": [], **scope}, given)

    async def run(self, scope: Message, messages: list[Message]) -> list[Message]:
        waiting = iter(messages)

        async def receive() -> Message:
            self.reads += 1
            return next(waiting)

        async def send(message: Message) -> None:
            self.sent.append(message)

        whole = {
            "asgi": {"version": "3.0"}, "http_version": "1.1", "path": "/orders",
            "query_string": b"", "root_path": "", "client": ("192.0.2.7", 5000), **scope,
        }  # fmt: skip
        await self.app(whole, receive, send)
        return self.sent


def answer(*chunks: Any, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> App:
    """Make an application that reads the body and answers in chunks."""

    async def app(scope: Message, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await say(send, *chunks, status=status, headers=headers)

    return app


async def say(
    send: Any, *chunks: Any, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    typed = [(b"content-type", b"application/json"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": typed})
    for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
