"""Options of a report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

SAMPLE: Final = 25
"""Records of a sample: what a person reads in one sitting; `otel-audit report` has it, too."""
LARGEST_SAMPLE: Final = 10_000
"""More than a person can read; it is in memory as a whole."""


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
    sample: int = SAMPLE
    seed: str = "1"
    checkpoint: int | None = None
