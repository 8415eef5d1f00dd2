"""The definition of a report: columns, rows, and supported controls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Final, Literal

from otel_audit_postgres.reports.snapshot import Snapshot

ReportValue = str | int | None
ReportRow = tuple[ReportValue, ...]
Rows = Callable[[Snapshot], AsyncIterator[Sequence[ReportRow]]]
"""Reads the rows of a report, some at a time."""
AT_ONCE: Final = 500
"""Rows that are passed on, and written, together: each piece of output costs as much as several."""


def in_batches(rows: Callable[[Snapshot], AsyncIterator[ReportRow]]) -> Rows:
    """Pass on some rows at a time, where a function yields one after the other."""

    @wraps(rows)
    async def batches(snapshot: Snapshot) -> AsyncIterator[Sequence[ReportRow]]:
        batch: list[ReportRow] = []
        async for row in rows(snapshot):
            batch.append(row)
            if len(batch) == AT_ONCE:
                yield batch
                batch = []
        yield batch

    return batches


@dataclass(frozen=True, slots=True)
class Control:
    """A control of a standard, and how far a report supports it; compliance is never claimed.

    Attributes:
        name: The standard and the control.
        strength: ``strong``: the report shows it as far as the trail goes; ``partial``: in part.
        why: What it shows, and what it does not.
    """

    name: str
    strength: Literal["strong", "partial"]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One kind of report.

    Attributes:
        name: As it is asked for.
        title: Its heading.
        about: What it shows, in a sentence or two.
        columns: Names of its columns.
        rows: Reads its rows.
        controls: What it supports.
        nothing: What it means that there is no row.
        needs: Options that it cannot do without: ``subject``, ``query``.
        is_deep: Whether it is about the evidence itself, month by month.
        of_the_store: Whether it is of what the store itself records, which is not a tenant's.
    """

    name: str
    title: str
    about: str
    columns: tuple[str, ...]
    rows: Rows
    controls: tuple[Control, ...]
    nothing: str
    needs: tuple[Literal["subject", "query"], ...] = field(default=())
    is_deep: bool = False
    of_the_store: bool = False
