"""Identifiers: time-ordered UUIDs for records, and derived ones for spans that bring none."""

from __future__ import annotations

import hashlib
import os
import time

_VERSION_7 = 0x7 << 76
_VARIANT = 0x2 << 62


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
    return _compose(ns, int.from_bytes(os.urandom(8), "big"))


def derived_uuid7(unix_ns: int, *parts: str) -> str:
    """Make a UUIDv7 that is the same every time for the same time and parts.

    Args:
        unix_ns: The time to carry, in nanoseconds since the Unix epoch.
        parts: What tells this thing from all others of the same time.

    Returns:
        36 characters, lower case.
    """
    digest = hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).digest()
    return _compose(unix_ns, int.from_bytes(digest[:8], "big"))


def _compose(unix_ns: int, entropy: int) -> str:
    milliseconds, rest = divmod(max(unix_ns, 0), 1_000_000)
    milliseconds = min(milliseconds, (1 << 48) - 1)
    fraction = (rest << 12) // 1_000_000
    value = (
        (milliseconds << 80)
        | _VERSION_7
        | (fraction << 64)
        | _VARIANT
        | (entropy & ((1 << 62) - 1))
    )
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
