"""What becomes of a batch: which of its records are refused, moved to another id, or postponed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from otel_audit.delivery.sink import Conflict, Refused
from otel_audit_postgres.rows import Row

_TRIED: Final = 8
"""Records that are tried one by one before the store is taken to refuse all."""


@dataclass(slots=True)
class BatchResult:
    """The result of a batch.

    Attributes:
        refused: Records that are at fault, for the quarantine.
        conflicts: Records that are stored under another id.
        postponed: Records that the store does not take for a reason of its own: ids, and why.
        relies_on_what_is_seen: Some were there already, or seem to be.
        has_taken_any: At least one statement succeeded.
    """

    refused: list[Refused]
    conflicts: list[Conflict] = field(default_factory=list)
    postponed: dict[str, str] = field(default_factory=dict)
    relies_on_what_is_seen: bool = False
    has_taken_any: bool = False

    def postponed_as_sent(self, rows: Iterable[Row]) -> Iterator[str]:
        """Ids of the postponed records, as their sender spelled them."""
        spelled = {str(row.id): row.record_id for row in rows} if self.postponed else {}
        return (spelled.get(record_id, record_id) for record_id in self.postponed)

    @property
    def is_hopeless(self) -> bool:
        """Whether all that was tried is postponed: what is left need not be tried now."""
        return len(self.postponed) >= _TRIED and not self.has_taken_any

    @property
    def last_reason(self) -> str:
        """The reason why the last of them is postponed."""
        return next(reversed(self.postponed.values()), "")


def came_as(row: Row) -> str:
    """Return the id under which a record came."""
    return row.record.conflict_of or row.record_id


def refusal_of(row: Row, reason: str) -> Refused:
    """Return a record for the quarantine, as it came."""
    return Refused(came_as(row), row.payload, reason)
