"""A sink for a first look: each record as one line of JSON on standard output. Keeps nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from otel_audit._util.printable import ascii_json
from otel_audit.delivery.sink import Refused, Written
from otel_audit.record import AuditRecord, to_json


class ConsoleSink:
    """Writes records to standard output."""

    async def check(self) -> None:
        """Standard output is always there."""

    async def write(self, records: Sequence[AuditRecord]) -> Written:
        """Print a batch, a line for each record; for one that is not JSON only a note."""
        lines, refused = [], 0
        for record in records:
            try:
                lines.append(_line(record))
            except (ValueError, TypeError, RecursionError) as error:
                refused += 1
                lines.append(_refusal(record.record_id, f"it is not JSON ({type(error).__name__})"))
        sys.stdout.write("".join(lines))
        sys.stdout.flush()
        return Written(stored=len(records) - refused, quarantined=refused)

    async def quarantine(self, refused: Sequence[Refused]) -> None:
        """Print items that could not become a record, a line each."""
        sys.stdout.write("".join(_refusal(item.record_id, item.reason) for item in refused))
        sys.stdout.flush()

    async def known(self, _record_ids: Sequence[str]) -> set[str]:
        """Nothing is kept, so nothing is known."""
        return set()

    async def close(self) -> None:
        """Nothing to close."""


def _refusal(record_id: str, reason: str) -> str:
    return _line({"refused": reason, "record_id": record_id})


def _line(value: object) -> str:
    return ascii_json(to_json(value).decode()) + "\n"
