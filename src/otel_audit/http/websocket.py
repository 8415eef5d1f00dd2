"""The capture of a WebSocket: how it opened, how it closed, how much went in each direction."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from otel_audit.http.websocket_messages import MessageCopies

if TYPE_CHECKING:
    from otel_audit.record import Body
    from otel_audit.redaction import Redactor
    from otel_audit.redaction.budget import Budget

SWITCHING: int = 101
"""Status of a connection that was opened (RFC 6455, section 4.2.2)."""

_REFUSED = 403  # what a server answers where the application closes before it has accepted
_LEFT_OPEN = 1006  # RFC 6455, section 7.1.5: no close frame, so never one that was sent
_GOOD_ENDS = frozenset({1000, 1001, 1005, _LEFT_OPEN})  # RFC 6455, section 7.4.1


class SocketTally:
    """Counts the messages of one connection, and keeps them if configured.

    Attributes:
        status: What the client's handshake was answered with; None while it was not.
        code: The close code, None while the connection is open.
        closed_by: Who closed it first.
        messages_received, messages_sent: Counts, from the application's point of view.
        bytes_received, bytes_sent: Of their payloads; of text as UTF-8.
    """

    __slots__ = ("_began", "_copied_in", "_copied_out", "bytes_received", "bytes_sent", "closed_by",
                 "code", "messages_received", "messages_sent", "status")  # fmt: skip

    def __init__(self) -> None:
        self._copied_in: MessageCopies | None = None
        self._copied_out: MessageCopies | None = None
        self._began = time.monotonic()
        self.status: int | None = None
        self.code: int | None = None
        self.closed_by: Literal["client", "application"] | None = None
        self.messages_received = self.messages_sent = 0
        self.bytes_received = self.bytes_sent = 0

    def copy(self, limit: int, *, received: bool, sent: bool) -> None:
        """Keep messages from now on, at most ``limit`` bytes of them each way."""
        self._copied_in = MessageCopies(limit) if received else None
        self._copied_out = MessageCopies(limit) if sent else None

    def received(self, message: Mapping[str, Any]) -> None:
        """See a message that the application receives."""
        kind = message["type"]
        if kind == "websocket.receive":
            self.messages_received += 1
            self.bytes_received += _length(message)
            self._keep(self._copied_in, message)
        elif kind == "websocket.disconnect" and self.closed_by is None:
            self.closed_by = "client"
            # ASGI: a frame without a code is 1005, "no status received" (RFC 6455, 7.4.1)
            self.code = message.get("code", 1005)

    def sent(self, message: Mapping[str, Any]) -> None:
        """See a message that the application sends."""
        kind = message["type"]
        if kind == "websocket.send":
            self.messages_sent += 1
            self.bytes_sent += _length(message)
            self._keep(self._copied_out, message)
        elif kind == "websocket.accept":
            self.status = SWITCHING
        elif kind == "websocket.http.response.start":
            self.status = message["status"]
        elif kind == "websocket.close" and self.closed_by is None:
            self.closed_by = "application"
            if self.status is None:
                self.status = _REFUSED
            else:
                self.code = message.get("code", 1000)

    def returned(self) -> None:
        """The application has returned; the server drops a connection that is still open."""
        if self.status == SWITCHING and self.closed_by is None and self.code is None:
            self.closed_by, self.code = "application", _LEFT_OPEN

    def _keep(self, copies: MessageCopies | None, message: Mapping[str, Any]) -> None:
        if copies is not None:
            number = self.messages_received + self.messages_sent
            copies.add(message, number, round((time.monotonic() - self._began) * 1000))

    def bodies(
        self, redactor: Redactor, limit: int, budget: Budget, *, received: bool, sent: bool
    ) -> tuple[Body | None, Body | None]:
        """Turn what was kept into what is stored, as far as it is wanted after all."""
        into, out = self._copied_in, self._copied_out
        return (
            into.body(redactor, limit, budget.request_body)
            if received and into is not None
            else None,
            out.body(redactor, limit, budget.response_body) if sent and out is not None else None,
        )

    @property
    def ended_badly(self) -> bool:
        """Whether the application closed the connection for anything but its orderly end."""
        return self.closed_by == "application" and self.code not in (None, *_GOOD_ENDS)

    def facts(self) -> dict[str, Any]:
        """The connection's facts for the record's metadata; unknown ones are left out."""
        known = {
            "opened": self.status == SWITCHING,
            "close_code": self.code,
            "closed_by": self.closed_by,
            "messages_received": self.messages_received,
            "messages_sent": self.messages_sent,
            "bytes_received": self.bytes_received,
            "bytes_sent": self.bytes_sent,
        }
        return {name: value for name, value in known.items() if value is not None}


def _length(message: Mapping[str, Any]) -> int:
    raw = message.get("bytes")
    if raw is not None:
        return len(raw)
    text: str = message.get("text") or ""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
