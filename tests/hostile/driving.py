"""Sends a request to an application over ASGI, as a server would, and measures what it costs."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

from hostile.generated import Hostile


@dataclass
class Answer:
    """What a client is given, and what giving it has cost.

    Attributes:
        sent: Kind and status or code of each message, in order.
        headers: Of the response, without the request's id, which the audit trail adds.
        body: Of the response, or what was said over the WebSocket.
        raised: Type of the exception that the server would see.
        cpu: Seconds of this thread's time.
        calls: Of functions, ours and Python's; 0 where nobody counts them.
    """

    sent: list[tuple[Any, ...]] = field(default_factory=list)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    raised: str | None = None
    cpu: float = 0.0
    calls: int = 0

    @property
    def status(self) -> int | None:
        """What the client is answered with, 101 where a WebSocket is opened."""
        for kind, value in self.sent:
            if kind.endswith("http.response.start"):
                return int(value)
            if kind == "websocket.accept":
                return 101
            if kind == "websocket.close":
                return 403
        return None

    def same_as(self, other: Answer) -> bool:
        """Tell whether a client can tell the one from the other."""
        return (self.sent, self.headers, self.body, self.raised) == (
            other.sent, other.headers, other.body, other.raised,
        )  # fmt: skip


async def send(app: Any, request: Hostile, root_path: str = "", *, counts: bool = False) -> Answer:
    """Send a request; what the application raises is part of the answer."""
    found = Answer()
    given = iter(_messages(request))

    async def receive() -> dict[str, Any]:
        gone = "websocket.disconnect" if request.kind == "websocket" else "http.disconnect"
        return next(given, {"type": gone})

    async def take(message: Any) -> None:
        kind = message["type"]
        if kind != "http.response.body":
            found.sent.append((kind, message.get("status", message.get("code"))))
        headers = [(bytes(name).lower(), value) for name, value in message.get("headers") or ()]
        found.headers += [pair for pair in headers if pair[0] != b"x-request-id"]
        found.body += message.get("body") or message.get("bytes") or b""
        found.body += (message.get("text") or "").encode("utf-8", "surrogatepass")

    scope = request.scope(root_path)

    def count(_frame: Any, event: str, _argument: Any) -> None:
        found.calls += event in ("call", "c_call")

    begun = time.thread_time()
    if counts:
        sys.setprofile(count)
    try:
        await app(scope, receive, take)
    except Exception as error:
        found.raised = type(error).__name__
    finally:
        if counts:
            sys.setprofile(None)
    found.cpu = time.thread_time() - begun
    return found


def _messages(request: Hostile) -> list[dict[str, Any]]:
    if request.kind == "websocket":
        return [{"type": "websocket.connect"}, *request.messages]
    pieces = request.body or (b"",)
    return [
        {"type": "http.request", "body": piece, "more_body": place < len(pieces)}
        for place, piece in enumerate(pieces, start=1)
    ]
