"""Months of the calendar: the trail's partitions, archives and reports are of one each."""

from __future__ import annotations

from datetime import date
from typing import TypeVar

_Day = TypeVar("_Day", bound=date)


def next_month(day: _Day) -> _Day:
    """The first day of the month after a day's; of a datetime at the same time of day.

    Raises:
        ValueError: The calendar ends with December 9999.
    """
    return day.replace(year=day.year + day.month // 12, month=day.month % 12 + 1, day=1)
