"""Identifiers: time-ordered UUIDs for records, derived UUIDs, and public ones."""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Final

from otel_audit._util.randomness import generator

_VARIANT = 1 << 63
"""The highest bit of a UUID's second half. Above 62 bits of chance it makes the variant of RFC
9562, binary 10."""
_RANDOM = (1 << 62) - 1
"""The 62 bits of that half that are left for chance."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BEHIND_TIME = 80
"""Bits of a UUIDv7 after its time, which has 48."""
_LAST_MILLISECOND = (1 << 48) - 1
_END = (1 << 48) * 1_000_000
"""Nanoseconds that 48 bits of milliseconds can hold."""

UUID_PATTERN: Final = "[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
"""Matches a UUID in its usual spelling, in upper or lower case (RFC 9562, section 4)."""

# a bound method: called for every path segment and attribute, where one more call counts
is_uuid: Final = re.compile(UUID_PATTERN).fullmatch
"""Return whether a whole text is a UUID in its usual spelling; truthy if so."""


def uuid7(unix_ns: int | None = None) -> str:
    """Make a UUIDv7 (RFC 9562, section 5.7) in its text form.

    Args:
        unix_ns: The time to carry, in nanoseconds since the Unix epoch; now by default.
            Times before the epoch or beyond 48 bits of milliseconds are clamped.

    Returns:
        36 characters, lower case. Its first 48 bits are the time in milliseconds, the next 12
        the fraction of the millisecond, the rest is random.
    """
    ns = time.time_ns() if unix_ns is None else unix_ns
    return _compose(ns, (_VARIANT | generator.getrandbits(62)).to_bytes(8, "big").hex("-", 6))


def derived_uuid7(unix_ns: int, *parts: str) -> str:
    """Make a UUIDv7 that is the same every time for the same time and parts.

    Args:
        unix_ns: The time to carry, in nanoseconds since the Unix epoch.
        parts: Distinguish this thing from all others of the same time.

    Returns:
        36 characters, lower case.
    """
    digest = hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).digest()
    return _compose(unix_ns, _last_half(digest[:8]))


def public_id(unix_ns: int | None = None) -> str:
    """Make a UUIDv7 that clients may see: no other id can be predicted from it.

    The numbers behind `uuid7` could be predicted after some hundred of them; these are the
    kernel's.

    Args:
        unix_ns: As for `uuid7`.
    """
    ns = time.time_ns() if unix_ns is None else unix_ns
    return _compose(ns, _last_half(os.urandom(8)))


def conflict_id(record_id: str, *parts: str) -> str:
    """Make the id of a record whose own is taken: of the same time, and the same on every retry.

    Args:
        record_id: The id that is taken, a UUID.
        parts: Distinguish this record from others that claim the id.

    Returns:
        36 characters, lower case.
    """
    taken = uuid.UUID(record_id)
    claim = "\x00".join((str(taken), *parts)).encode("utf-8", "surrogatepass")
    entropy = int.from_bytes(hashlib.sha256(claim).digest()[:8], "big") & _RANDOM
    # the first 64 bits, time and version, are as they were: the same partition
    return str(uuid.UUID(int=taken.int >> 64 << 64 | _VARIANT | entropy))


def milliseconds_of(record_id: uuid.UUID) -> int:
    """The time that a UUIDv7 carries: its first 48 bits, milliseconds since the Unix epoch."""
    return record_id.int >> _BEHIND_TIME


def time_of(record_id: uuid.UUID) -> datetime:
    """The time that a UUIDv7 carries, in UTC.

    Raises:
        OverflowError: It is after the year 9999: the id is no UUIDv7.
    """
    return _EPOCH + timedelta(milliseconds=milliseconds_of(record_id))


def lowest_id(milliseconds: int) -> uuid.UUID:
    """The lowest UUID of a time, in milliseconds since the Unix epoch; clamped to 48 bits."""
    return uuid.UUID(int=min(max(milliseconds, 0), _LAST_MILLISECOND) << _BEHIND_TIME)


def _last_half(entropy: bytes) -> str:
    """Spell the last 64 bits, of which the first two are the variant."""
    # a hyphen before the last six bytes, as in a UUID
    spelled = entropy.hex("-", 6)
    return f"{_VARIANTS[spelled[0]]}{spelled[1:]}"


def _compose(unix_ns: int, last_half: str) -> str:
    """Put a UUIDv7 together out of its time and the spelling of its last 64 bits."""
    global _moment  # noqa: PLW0603 - replaced as a whole: any thread may
    last, start = _moment
    if last != unix_ns:
        start = _start(unix_ns)
        _moment = unix_ns, start
    return start + last_half


def _start(unix_ns: int) -> str:
    """Spell the first 64 bits: the milliseconds, the version, and the fraction of the last one.

    Each request needs it: tables cost half of what formats and slices do.
    """
    global _minute  # noqa: PLW0603 - replaced as a whole: any thread may
    if not 0 <= unix_ns < _END:
        unix_ns = 0 if unix_ns < 0 else _END - 1
    ticks = (unix_ns << 12) // 1_000_000  # of 1/4096 of a millisecond
    high, start = _minute
    if high != ticks >> 28:
        high = ticks >> 28
        start = f"{high:08x}"
        _minute = high, start
    low = ticks & _LOW
    return f"{start}-{_HEX[low >> 24]}{_HEX3[low >> 12 & 0xFFF]}-7{_HEX3[low & 0xFFF]}-"


_LOW: Final = (1 << 28) - 1
"""The last 28 bits of a time: 16 fill the second group, and 12 stand behind the version."""
_HEX: Final = "0123456789abcdef"
_HEX3: Final = tuple(f"{number:03x}" for number in range(4096))
"""All spellings of 12 bits: a table is quicker than formatting."""
_VARIANTS: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in _HEX}
"""A digit as it is where the variant's two bits, 10, come first."""

_minute = -1, ""
"""The first 32 bits of the last id's time, which last for 65 seconds, and how they are spelled."""

_moment = -1, _start(-1)
"""The time of the last id, and how an id of it begins: a request has two of the same."""
