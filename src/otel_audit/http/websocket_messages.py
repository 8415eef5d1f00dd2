"""The kept messages of one direction of a WebSocket."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from otel_audit.http.body import make_body
from otel_audit.record import NO_CONTENT, Body
from otel_audit.redaction.budget import WorkBudget

if TYPE_CHECKING:
    from otel_audit.redaction import Redactor

_encode: Final = msgspec.json.Encoder().encode

_MOST: Final = 200
"""Messages that are kept each way, however small they are."""

_BINARY: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class _Message:
    number: int
    at_ms: int
    raw: bytes
    size: int
    is_text: bool


class MessageCopies:
    """Keeps messages of one direction up to a bound; says what it left out."""

    __slots__ = ("_kept", "_left_out", "_room", "_size")

    def __init__(self, limit: int) -> None:
        """Set the bound.

        Args:
            limit: Bytes of messages to keep, over the whole connection.
        """
        self._room = limit
        self._kept: list[_Message] = []
        self._left_out = self._size = 0

    def add(self, message: Mapping[str, Any], number: int, at_ms: int) -> None:
        """Keep a message, as far as there is room.

        Args:
            message: As ASGI has it: with ``text`` or ``bytes``.
            number: Its place among all messages of the connection, from 1.
            at_ms: Milliseconds since the connection began.
        """
        text, raw = message.get("text"), message.get("bytes")
        is_text = raw is None
        whole: bytes = raw if raw is not None else (text or "").encode("utf-8", "surrogatepass")
        self._size += len(whole)
        if (whole and self._room <= 0) or len(self._kept) >= _MOST:
            self._left_out += 1
            return
        head = bytes(whole[: self._room])
        self._room -= len(head)
        self._kept.append(_Message(number, at_ms, head, len(whole), is_text))

    def body(self, redactor: Redactor, limit: int, work: WorkBudget | None = None) -> Body | None:
        """Turn what was kept into what is stored; None if nothing went this way.

        Args:
            redactor: Takes secrets out.
            limit: Bytes of it that are wanted after all.
            work: What redacting all of them may cost; by their size if None.

        Returns:
            Its content is a JSON array with an object for each message: ``n``, its place among all
            messages of the connection; ``at_ms``; and ``message``, stored as a body of its kind.
            The last object says what was left out, if anything.
        """
        if not self._kept and not self._left_out:
            return None
        if work is None:
            work = WorkBudget(min(limit, sum(len(message.raw) for message in self._kept)))
        left_out, cut, found = self._left_out, False, list[dict[str, Any]]()
        for message in self._kept:
            head = message.raw[:limit]
            if message.size and not head:
                left_out += 1
                continue
            limit -= len(head)
            cut = cut or len(head) < message.size
            found.append(_stored(message, head, redactor, work))
        if left_out:
            cut = True
            rest = {"_messages_left_out": left_out, "_original_size": self._size}
            found.append({"_truncated": True, **rest})
        content = _encode(found)
        return Body(
            content=msgspec.Raw(content),
            size=self._size,
            sha256=hashlib.sha256(content).hexdigest(),
            absent="truncated" if cut else None,
        )


def _stored(message: _Message, head: bytes, redactor: Redactor, work: WorkBudget) -> dict[str, Any]:
    body = make_body(
        head,
        size=message.size,
        content_type=None if message.is_text else _BINARY,
        content_encoding=None,
        complete=len(head) == message.size,
        redactor=redactor,
        limit=len(head),
        work=work,
    )
    entry: dict[str, Any] = {"n": message.number, "at_ms": message.at_ms}
    if body.content is not NO_CONTENT:
        return {**entry, "message": body.content}
    return {**entry, "message": "" if body.absent is None else {"_absent": body.absent}}
