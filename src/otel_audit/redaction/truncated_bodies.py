"""The whole part of a body that was cut; only that can be judged.

A value that was cut in the middle cannot be recognised (half a token is no token to a rule), so
nothing of it is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from otel_audit.redaction.labelled_values import (
    LABEL,
    VALUE,
    WEAK_LABEL,
    WEAK_VALUE,
    role_of,
    roles_of,
)
from otel_audit.redaction.placeholders import WITHHELD

_OPENERS: Final = {b"{": b"}", b"[": b"]"}
_CLOSERS: Final = frozenset(_OPENERS.values())
_NEAR_THE_CUT: Final = 64
# a string, whole or cut, is one token: its brackets do not count
_TOKEN: Final = re.compile(rb'(?s)"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]')


def whole_json(head: bytes) -> bytes | None:
    """Close a JSON document behind its last whole value.

    Args:
        head: The beginning of a JSON text, valid or not.

    Returns:
        JSON text if ``head`` is the beginning of a valid one; None if no value in it is whole.
    """
    safe = _last_whole(head)
    if safe is None:
        return None
    open_ends: list[bytes] = []
    for sign in _signs(head[:safe]):
        if sign in _OPENERS:
            open_ends.append(_OPENERS[sign])
        elif sign in _CLOSERS:
            open_ends.pop()
    return head[:safe] + b"".join(reversed(open_ends))


def _last_whole(head: bytes) -> int | None:
    """Find the place behind the last whole value; None if there is none, or brackets do not fit."""
    open_ends: list[bytes] = []
    safe: int | None = None
    for found in _TOKEN.finditer(head):
        sign = found.group()
        if sign in _OPENERS:
            open_ends.append(_OPENERS[sign])
            safe = found.end()
        elif sign in _CLOSERS:
            if not open_ends or open_ends.pop() != sign:
                return None
            safe = found.end()
        elif sign == b"," and open_ends:
            safe = found.start()
    return safe


def _signs(head: bytes) -> Iterator[bytes]:
    return (found.group() for found in _TOKEN.finditer(head))


def withhold_undecided(document: Any) -> Any:
    """Withhold, in what the cut left open, values whose name may be behind the cut.

    Args:
        document: What the head of a JSON text parses to; it is changed in place.

    Returns:
        The document, without the value of ``{"value": …, "name": …}`` where no name is left.
    """
    opened = document
    while opened and isinstance(opened, dict | list):
        if isinstance(opened, dict):
            if not roles_of(opened) & (LABEL | WEAK_LABEL):
                for key in [key for key in opened if role_of(key) & (VALUE | WEAK_VALUE)]:
                    opened[key] = WITHHELD
            opened = next(reversed(opened.values()))
        else:
            opened = opened[-1]
    return document


def whole_lines(head: bytes) -> bytes:
    """Keep the lines that are whole."""
    return head[: head.rfind(b"\n") + 1]


def whole_parameters(head: bytes) -> bytes:
    """Keep the parameters of a form that are whole."""
    return head[: max(head.rfind(b"&"), 0)]


def whole_words(head: str) -> str:
    """Keep a text up to its last whole line, or up to a word well before the cut.

    A number or a phrase may go on over several words, so the last few are left out.
    """
    line = head.rfind("\n")
    if line > len(head) // 2:
        return head[:line]
    near = head[: max(len(head) - _NEAR_THE_CUT, 0)]
    return near[: max(near.rfind(" "), near.rfind("\n"), 0)]
