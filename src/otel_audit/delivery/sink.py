"""The interface of a sink."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from otel_audit.record import AuditRecord, Receipt

__all__ = ["Accepted", "Conflict", "Receipt", "Refused", "Sink", "Written"]


@dataclass(frozen=True, slots=True)
class Written:
    """The result of a batch: each record is stored, in quarantine, or postponed.

    Attributes:
        stored: Records that are in the store now, including those that were there before.
        quarantined: Records that the store refused and quarantined, with the reason.
        conflicts: Of those stored, how many are under another id, as their own is taken.
        postponed: Ids of sound records that the store does not take, for a reason of its own: they
            are neither stored nor in quarantine, and have to wait until that is fixed.
        why_postponed: What that reason is, and what to do.
    """

    stored: int
    quarantined: int = 0
    conflicts: int = 0
    postponed: tuple[str, ...] = ()
    why_postponed: str = ""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A record whose id another one has: it is stored beside that one, under a new id.

    Attributes:
        record_id: The id under which it came.
        stored_as: The id under which it is stored.
    """

    record_id: str
    stored_as: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The result of received records.

    Attributes:
        refused: Those that are in quarantine.
        conflicts: Those that are stored under another id than their own.
        postponed: Ids of those that are neither stored nor refused; see `Written`.
        why_postponed: As there.
    """

    refused: list[Refused] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    postponed: frozenset[str] = frozenset()
    why_postponed: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that cannot become a row of the trail, for quarantine with the reason.

    Attributes:
        record_id: Its id as it came, empty where it has none.
        received: It as text, UTF-8 as far as it is valid; redacted like any record.
        reason: Why, without showing values.
    """

    record_id: str
    received: bytes
    reason: str


class Sink(Protocol):
    """A destination that makes records durable. Used from one event loop only."""

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

    async def quarantine(self, refused: Sequence[Refused]) -> None:
        """Keep what never became a record, with the reason. Doing so twice keeps it once.

        Raises:
            StoreUnavailableError: As for `write`.
            StoreError: As for `write`.
        """

    async def known(self, record_ids: Sequence[str]) -> set[str]:
        """Return which records are stored already, of any tenant; none if that is not known.

        Raises:
            StoreUnavailableError: As for `write`.
            StoreError: As for `write`.
        """

    async def close(self) -> None:
        """Give back connections. Never raises."""


class ReceivingSink(Sink, Protocol):
    """A sink that can be queried, and that stores also what others have sent."""

    async def receiving_key(self) -> bytes:
        """Read the key under which received records are hashed; one for the store.

        Raises:
            StoreUnavailableError: As for `write`.
            StoreError: As for `write`.
        """

    async def accept(
        self, records: Sequence[AuditRecord], refused: Sequence[Refused] = ()
    ) -> Accepted:
        """Store a batch that others sent; return only after it is durable. Twice stores once.

        Raises:
            StoreUnavailableError: As for `write`.
            StoreError: As for `write`.
        """

    async def receipts(self, record_ids: Sequence[str]) -> dict[str, Receipt]:
        """Say what is stored under several ids; ids that are not stored have none.

        Raises:
            StoreUnavailableError: As for `write`.
            StoreError: As for `write`.
        """

    async def receipt(self, record_id: str, content_hash: str | None = None) -> Receipt | None:
        """Say what is stored of this process's own under an id, with this hash if one is given.

        Raises:
            StoreUnavailableError: As for `write`.
            StoreError: As for `write`.
        """
