"""What delivery needs of a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from otel_audit.record import AuditRecord


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch: every record of it is counted in exactly one of the two.

    Attributes:
        stored: Records that are in the store now, including those that were there before.
        quarantined: Records the store could not take; kept aside, with the reason.
    """

    stored: int
    quarantined: int = 0


class Sink(Protocol):
    """Where a record becomes durable. Used from one event loop only."""

    async def check(self) -> None:
        """See whether the store can take records.

        Raises:
            StoreUnavailableError: It cannot be reached now.
            StoreError: It is not in the state it must be in; the message says the remedy.
        """

    async def write(self, records: Sequence[AuditRecord]) -> Written:
        """Store a batch; return only after it is durable. Writing twice stores once.

        Raises:
            StoreUnavailableError: Nothing of the batch is known to be stored; try again later.
            StoreError: As for `check`; trying again helps only after somebody has acted.
        """

    async def close(self) -> None:
        """Give back connections. Never raises."""
