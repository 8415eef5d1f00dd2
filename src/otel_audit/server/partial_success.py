"""OTLP's partial success: what of a request is not in the trail as it came, where, and why.

Rejected records are in quarantine; there is nothing to send again. A warning about a left-out value
helps to fix the sender.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import msgspec

from otel_audit._util.varint import field, varint
from otel_audit.server.convert import NotConvertible
from otel_audit.server.errors import JSON
from otel_audit.server.service import RequestResult

_MOST_NOTES: Final = 10
"""Notes that an answer quotes: senders log it whole."""
_LONGEST: Final = 4_000
"""Characters of that message."""


@dataclass(frozen=True, slots=True)
class PartialSuccess:
    """``ExportTracePartialSuccess``, or the same of log records.

    Attributes:
        rejected: How many are in quarantine.
        message: Which, and what of others could not be read.
    """

    rejected: int
    message: str

    def as_protobuf(self) -> bytes:
        """Write the message."""
        count = b"\x08" + varint(self.rejected) if self.rejected else b""
        return count + field(2, self.message.encode())

    def as_json(self, counter: str) -> dict[str, Any]:
        """Write the object, its counter under the name that the signal has for it."""
        found: dict[str, Any] = {"errorMessage": self.message}
        return {counter: str(self.rejected), **found} if self.rejected else found


def of(outcome: RequestResult) -> PartialSuccess | None:
    """Return the result of a request; None if all of it is stored as received."""
    rejected = len(outcome.quarantined)
    notes = list(islice(_notes(outcome), _MOST_NOTES))
    if not notes:
        return None
    more = rejected + len(outcome.notes) - len(notes)
    if more:
        notes.append(f"and {more} more")
    head = f"{rejected} not stored but kept in audit.quarantine" if rejected else "all is stored"
    message = f"{head}; {'; '.join(notes)}"
    return PartialSuccess(rejected, message[:_LONGEST])


def answer(partial: PartialSuccess | None, content_type: str) -> bytes:
    """Write an ``ExportTraceServiceResponse``.

    Args:
        partial: What is not in the trail as it came, if anything.
        content_type: JSON, or else protobuf is written.
    """
    if content_type == JSON:
        found = {} if partial is None else {"partialSuccess": partial.as_json("rejectedSpans")}
        return msgspec.json.encode(found)
    return b"" if partial is None else field(1, partial.as_protobuf())


def _notes(outcome: RequestResult) -> Iterator[str]:
    for item in outcome.quarantined:
        place = item.place if isinstance(item, NotConvertible) else f"record {item.record_id}"
        yield f"{place}: {item.reason}"
    yield from outcome.notes
