"""Geometry of the histogram; each bar links to the records of its time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from otel_audit_postgres.query.counts import Histogram
from otel_audit_postgres.query.grammar import Query, QueryValue, Term

WIDTH: Final = 1000
"""Units of the drawing; the page scales it."""
HEIGHT: Final = 72
"""In the same units."""
_OUTCOMES: Final = ("success", "unknown", "failure")
_WITHIN: Final = 0.85
"""The share of its place that a bar fills: the rest keeps it apart from the next one."""


@dataclass(frozen=True, slots=True)
class ChartPiece:
    """One outcome's part of a bar."""

    outcome: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class DrawnBar:
    """One bar."""

    begin: datetime
    end: datetime
    x: float
    width: float
    pieces: tuple[ChartPiece, ...]
    outcomes: dict[str, int]
    total: int
    query: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn histogram."""

    bars: tuple[DrawnBar, ...]
    begin: datetime
    end: datetime
    width: timedelta
    highest: int
    total: int
    counted: int | None
    waiting: int
    slots: int
    query: str


def draw(histogram: Histogram, query: Query, *, sees_store: bool) -> Chart | None:
    """Draw a query's histogram; None if it has no bars.

    Args:
        histogram: What was counted.
        query: What was asked.
        sees_store: Say how many records of the whole store wait for their seal.
    """
    bars = histogram.bars
    if not bars:  # nothing is there, or it took too long to count
        return None
    begin, end = bars[0].begin, bars[-1].begin + histogram.width
    slots = max(round((end - begin) / histogram.width), 1)
    slot = WIDTH / slots
    highest = max(sum(bar.outcomes.values()) for bar in bars)
    drawn = []
    for bar in bars:
        x = (bar.begin - begin) / histogram.width * slot
        bar_end = bar.begin + histogram.width
        total = sum(bar.outcomes.values())
        drawn.append(
            DrawnBar(
                bar.begin, bar_end, round(x, 2), round(slot * _WITHIN, 2),
                _pieces(bar.outcomes, highest), bar.outcomes, total,
                str(zoomed(query, bar.begin, bar_end)),
            )
        )  # fmt: skip
    total = sum(bar.total for bar in drawn)
    return Chart(
        tuple(drawn), begin, end, histogram.width, highest, total, histogram.counted,
        histogram.waiting if sees_store else 0, slots, str(_without_time(query)),
    )  # fmt: skip


def zoomed(query: Query, begin: datetime, end: datetime) -> Query:
    """Return the query for another span of time."""
    terms = _without_time(query).terms
    bounds = (QueryValue(_text(begin), ">="),), (QueryValue(_text(end), "<"),)
    return Query((*terms, *(Term("time", bound) for bound in bounds)))


def _without_time(query: Query) -> Query:
    return Query(tuple(one for one in query.terms if one.field != "time" or one.negated))


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _pieces(outcomes: dict[str, int], highest: int) -> tuple[ChartPiece, ...]:
    pieces, y = [], float(HEIGHT)
    for outcome in _OUTCOMES:
        count = outcomes.get(outcome, 0)
        if not count:
            continue
        # one record among thousands is still seen
        height = max(count / highest * HEIGHT, 1.5)
        y -= height
        pieces.append(ChartPiece(outcome, round(y, 2), round(height, 2)))
    return tuple(pieces)
