"""Prefilter for single values: plain ones, which no value rule can match, need no search."""

from __future__ import annotations

import re
from typing import Any

_SHORTEST_FIND = 9
"""Characters; no value rule matches a text of letters and digits below this."""

_FEW_DIGITS = 10**9
"""Below this a number is no card, account or social security number."""

# below the shortest key that letters alone can spell, which is AWS's: twenty
# a segment that fits is never read again in the other way: that would be two ways for each
_ORDINARY_PATH = re.compile(r"(?:/(?:[A-Za-z]{0,19}|[A-Za-z0-9]{0,8})(?=/|\Z))*+")
_MOST_DIGITS = 8

_AMOUNT = re.compile(r"-?[0-9]{1,7}(?:\.[0-9]{1,2})?")
_MOMENT = re.compile(
    r"[12][0-9]{3}-[01][0-9]-[0-3][0-9]"
    r"(?:T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](?:\.[0-9]{3}(?:[0-9]{3})?)?(?:Z|[+-][0-9]{2}:[0-9]{2})?)?"
)


def is_plain_path(path: str) -> bool:
    """Return whether a URL path clearly holds no secret: words, short numbers.

    Args:
        path: As requested.

    Returns:
        As for `is_plain`.
    """
    if _ORDINARY_PATH.fullmatch(path) is None:
        return False
    return sum(map(path.count, "0123456789")) <= _MOST_DIGITS


def is_plain(value: Any) -> bool:
    """Return whether a value clearly holds no secret by its content.

    Args:
        value: Of any type; only JSON's own small ones are ever plain.

    Returns:
        True for booleans, small integers, short words, amounts, dates and times. False says
        nothing: such a value has to be looked at.
    """
    kind = type(value)
    if kind is str:
        if value.isascii() and value.isalnum() and len(value) < _SHORTEST_FIND:
            return True
        return _AMOUNT.fullmatch(value) is not None or _MOMENT.fullmatch(value) is not None
    if kind is int:
        return bool(-_FEW_DIGITS < value < _FEW_DIGITS)
    return kind is bool
