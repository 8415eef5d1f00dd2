"""Times as people write them: ``15m``, ``7d``, ``yesterday``, ``2026-11-21``, ISO 8601."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_AGO: Final = re.compile(r"(\d{1,9})([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_ONE_DAY: Final = timedelta(days=1)
EXPECTED: Final = "30s, 15m, 12h, 7d, 2w, now, today, yesterday, 2026-11-21 or 2026-11-21T12:00:00Z"


def parse_span(text: str, now: datetime | None = None) -> tuple[datetime, datetime | None]:
    """Read a time as the span that it names.

    Args:
        text: See `EXPECTED`. A time without a zone is in UTC.
        now: What ``15m`` is counted back from, aware; the clock's time by default.

    Returns:
        Where it begins, and where it ends, exclusive: a day is 24 hours long; ``15m`` begins so
        long ago and has no end (None); a moment is as long as its last digit.

    Raises:
        ValueError: It is none, or not of the years 1 to 9999; the message says what is expected.
    """
    current = datetime.now(UTC) if now is None else now
    ago = _AGO.fullmatch(text)
    try:
        if ago:
            return current - timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]]), None
        if text == "now":
            return current, None
        midnight = current.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if text == "today":
            return midnight, _after(midnight, _ONE_DAY)
        if text == "yesterday":
            return midnight - _ONE_DAY, midnight
        begin = datetime.fromisoformat(text)
        if begin.tzinfo is None:
            begin = begin.replace(tzinfo=UTC)
        # refuses a time outside the years of UTC
        begin = begin.astimezone(UTC)
        return begin, _after(begin, _ONE_DAY if _DAY.fullmatch(text) else _precision(text))
    except (ValueError, OverflowError):
        raise ValueError(f"{text[:40]!r} is not a time: expected {EXPECTED}") from None


def parse_time(text: str, now: datetime | None = None) -> datetime:
    """Read a time as the moment at which its span begins; see `parse_span`."""
    return parse_span(text, now)[0]


def _after(begin: datetime, length: timedelta) -> datetime | None:
    """The end of a span; None if it is outside the calendar."""
    try:
        return begin + length
    except OverflowError:
        return None


def _precision(text: str) -> timedelta:
    """The duration of the last part of an ISO time."""
    clock = text.partition("T")[2] or text.partition(" ")[2]
    clock = re.split(r"[Zz+-]", clock)[0]
    if "." in clock or "," in clock:
        return timedelta(microseconds=1)
    parts = clock.count(":") + 1
    return (timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1))[min(parts, 3) - 1]
