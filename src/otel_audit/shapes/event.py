"""An event: a record together with its place in the ledger."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import msgspec

from otel_audit.record import AuditRecord

_TIMES: Final = range(1, 1 << 63)
"""Nanoseconds that fit in 64 bits with a sign; 0 is OTLP's "not known"."""


class UnshapeableError(ValueError):
    """A record that a shape cannot take; the message says why, without its values.

    Example::

        try:
            read_event("[]", leaf=None, log="example.com/log", content_hash=content_hash)
        except UnshapeableError as error:
            print(error)
    """


@dataclass(frozen=True)
class Event:
    """A record that leaves the trail.

    Attributes:
        document: The record's payload as JSON values.
        leaf: The number of its leaf in the log; None before it is sealed.
        log: The log's name.
        content_hash: SHA-256 in hex of the payload as it is stored.
        is_as_sealed: Whether the row is what was sealed.
        payload: The payload's text.
        recorded_ns: When the store took it, Unix nanoseconds; None where that is not known.
        is_exact: Whether the payload is the text that the content hash is of: not where personal
            values were replaced.
        text: The payload as it was read, mended where that was needed.

    Example::

        event: Event = read_event(payload, leaf=7, log="l.example", content_hash=content_hash)
        event.is_failure
    """

    document: dict[str, Any]
    leaf: int | None
    log: str
    content_hash: str
    is_as_sealed: bool
    payload: str
    recorded_ns: int | None = None
    is_exact: bool = True
    text: bytes = b""

    @property
    def id(self) -> str:
        """The record's id."""
        return str(self.document.get("record_id", ""))

    @property
    def name(self) -> str:
        """The event's name; empty where it has none."""
        name = self.document.get("event_name")
        return name if isinstance(name, str) else ""

    @property
    def time_ns(self) -> int | None:
        """The event's time in Unix nanoseconds; None if it is before 1970."""
        moment = self.document.get("occurred_at")
        return moment if type(moment) is int and moment in _TIMES else None

    @property
    def is_failure(self) -> bool:
        """Whether its outcome is a failure."""
        return self.document.get("outcome") == "failure"

    @cached_property
    def record(self) -> AuditRecord | None:
        """The document, typed, which not every shape needs; None if it is not a record of ours."""
        try:
            return msgspec.json.decode(self.text, type=AuditRecord)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None

    def typed(self) -> AuditRecord:
        """The record.

        Raises:
            UnshapeableError: The payload is not a record of ours.
        """
        if self.record is None:
            raise UnshapeableError("the payload is not a record of otel-audit's")
        return self.record


def read_event(  # noqa: PLR0913 - what an event is
    payload: str,
    *,
    leaf: int | None,
    log: str,
    content_hash: bytes,
    is_as_sealed: bool = True,
    recorded_ns: int | None = None,
) -> Event:
    """Read an event from a row of the trail.

    Example::

        read_event(payload, leaf=7, log="example.com/log", content_hash=content_hash).name

    Args:
        payload: The record's text.
        leaf: Its leaf, where it is sealed.
        log: The log's name.
        content_hash: Of the text as stored, 32 bytes.
        is_as_sealed: Whether the row is what was sealed.
        recorded_ns: When the store took it.

    Raises:
        UnshapeableError: The text is not a JSON object.
    """
    document, text = _document(payload)
    return Event(
        document, leaf, log, content_hash.hex(), is_as_sealed, payload, recorded_ns,
        hashlib.sha256(payload.encode("utf-8", "surrogatepass")).digest() == content_hash, text,
    )  # fmt: skip


def _document(payload: str) -> tuple[dict[str, Any], bytes]:
    text = payload.encode("utf-8", "replace")
    try:
        found = msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # an escape of half a pair, or a number that no double holds: stored before that was refused
        try:
            read = json.loads(payload, parse_constant=str, parse_float=_number_or_text)
            mended = json.dumps(read, ensure_ascii=False)
            text = mended.encode("utf-8", "replace")
            found = msgspec.json.decode(text)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise UnshapeableError("the payload is not JSON that can be read") from None
    if not isinstance(found, dict):
        raise UnshapeableError("the payload is not a JSON object")
    return found, text


def _number_or_text(digits: str) -> float | str:
    number = float(digits)
    return number if math.isfinite(number) else digits
