"""Options of a report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a report.

    Attributes:
        begin: The first moment of the period, aware.
        end: The moment after the period, aware.
        tenant: Only records of this tenant; None: of all.
        query: Only records that it finds, in the language of the search; empty: all.
        subject: The person that a report is about, by id.
        sample: How many records a sample has.
        seed: What a sample is drawn by.
        checkpoint: The size of the checkpoint; None: the latest.
    """

    begin: datetime
    end: datetime
    tenant: str | None = None
    query: str = ""
    subject: str | None = None
    sample: int = 25
    seed: str = "1"
    checkpoint: int | None = None
