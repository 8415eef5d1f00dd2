"""Placeholders for values that were removed, and how to recognise them."""

from __future__ import annotations

from typing import Final

from otel_audit._util.lazy_pattern import LazyPattern

REDACTED: Final = "[REDACTED]"
"""Stands for a value that a rule took out."""

WITHHELD: Final = "[WITHHELD]"
"""Stands for what was not understood, or was beyond a bound, and so was not passed on."""

WITHHELD_FOR_WORK: Final = "[WITHHELD: work]"
"""Stands for what was not looked at, because the document had used up the work it may cause."""

WITHHELD_FOR_SIZE: Final = "[WITHHELD: size]"
"""Stands for what would have made a record, or one value of it, too large."""

TRUNCATED: Final = "[TRUNCATED]"
"""Stands for the rest of a text that was longer than what is kept of it."""

_STANDS_FOR_ANOTHER: Final = LazyPattern(
    r"\[REDACTED\](?: \([0-9]+\))?|\[WITHHELD(?:: (?:work|size))?\]|"
    r"hmac:[A-Za-z0-9_-]{1,32}:[0-9a-f]{64}"
)


def is_token(text: str) -> bool:
    """Return whether a text is exactly one of our own words, so that nothing is redacted twice."""
    return text[:1] in "[h" and _STANDS_FOR_ANOTHER.fullmatch(text) is not None
