"""Times in RFC 3339."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1) - 1


def rfc3339(unix_ns: int) -> str:
    """Write a time with all its nanoseconds, in UTC (RFC 3339); one beyond 9999 is cut to that."""
    seconds, rest = divmod(max(unix_ns, 0), 1_000_000_000)
    moment = _EPOCH + timedelta(seconds=min(seconds, _LAST))
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
