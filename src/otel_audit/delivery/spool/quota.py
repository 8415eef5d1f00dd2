"""The quota of a service's spools, in bytes and in time."""

from __future__ import annotations

import time
from typing import Final

from otel_audit.delivery.spool.directory import bytes_in, read_label, spools_in
from otel_audit.delivery.spool.errors import SpoolFullError
from otel_audit.delivery.spool.manifest import belongs_elsewhere
from otel_audit.delivery.spool.ownership import ForeignError, OwnDirectory, report_foreign
from otel_audit.delivery.spool.settings import SpoolSettings

RECOUNT_SECONDS: Final = 1.0


class Quota:
    """Bounds of one spool, and what the other spools of its service hold. Not thread-safe.

    Attributes:
        others: Bytes that the other spools held at the last count.
        room: Bytes that this spool may have.
        room_to_begin: Bytes that it may have with a frame that begins an action. It is less than
            `room`, so that frames which end actions still find room.
    """

    __slots__ = ("_counted", "_home", "_name", "_settings", "others", "room", "room_to_begin")

    def __init__(self, settings: SpoolSettings, home: OwnDirectory, name: str) -> None:
        """Measure the other spools.

        Args:
            settings: The bounds.
            home: The service's directory.
            name: Of the spool that is not counted among the others.
        """
        self._settings = settings
        self._home = home
        self._name = name
        self._count()

    def check_room(self, own: int, *, begins: bool) -> None:
        """Count the other spools again, and see that there is room; they may hold less by now.

        Args:
            own: Bytes that this spool would have, more than `room` or `room_to_begin`.
            begins: Whether an action begins with it.

        Raises:
            SpoolFullError: The bound is reached.
        """
        self.recount()
        if own > (self.room_to_begin if begins else self.room):
            raise SpoolFullError(
                "the spools of this service together have no room left in their "
                f"{self._settings.max_bytes} bytes (OTEL_AUDIT_SPOOL_MAX_BYTES)"
            )

    def check_age(self, age: float) -> None:
        """See that no record has waited too long.

        Args:
            age: Seconds that the oldest one has waited.

        Raises:
            SpoolFullError: It is too long.
        """
        if self._settings.max_age is not None and age > self._settings.max_age:
            raise SpoolFullError(
                f"the oldest record has waited longer than {self._settings.max_age} s "
                "(OTEL_AUDIT_SPOOL_MAX_AGE)"
            )

    def recount(self) -> None:
        """Measure the other spools again; at most once a second, they may be many."""
        if time.monotonic() - self._counted >= RECOUNT_SECONDS:
            self._count()

    def _count(self) -> None:
        self._counted = time.monotonic()
        self.others = self._count_others()
        self.room = self._settings.max_bytes - self.others
        # an action that was admitted may finish: what begins is refused sooner
        self.room_to_begin = self.room - self._settings.segment_bytes

    def _count_others(self) -> int:
        try:
            names = spools_in(self._home)
        except OSError:
            return 0
        return sum(self._bytes_of(name) for name in names if name != self._name)

    def _bytes_of(self, name: str) -> int:
        """Count what is ours: what others put there must not refuse our requests."""
        try:
            spool = self._home.directory(name)
        except ForeignError as error:
            report_foreign(error.path, error.why)
            return 0
        except OSError:
            return 0
        try:
            return bytes_in(spool) if self._counts(spool) else 0
        finally:
            spool.close()

    def _counts(self, spool: OwnDirectory) -> bool:
        if not self._settings.apart:
            return True
        try:
            label = read_label(spool)
        except OSError:
            return True
        return label is None or not belongs_elsewhere(label, self._settings.destination)
