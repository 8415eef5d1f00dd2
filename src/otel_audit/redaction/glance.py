"""One look at a whole document, so that a clean one need not be walked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otel_audit.redaction.scan import Scan
    from otel_audit.redaction.walk import Limits


@dataclass(frozen=True, slots=True)
class Glance:
    """What a look at a document told.

    Attributes:
        names_clean: No key is one that a rule could touch.
        values_clean: No string and no number is one that a rule could touch.
    """

    names_clean: bool
    values_clean: bool


NOT_SEEN = Glance(names_clean=False, values_clean=False)


def glance(document: Any, scan: Scan, limits: Limits) -> Glance:
    """Look at all keys and all strings of a document at once.

    Args:
        document: Any value; one that holds more than JSON's plain types is not judged.
        scan: The search.
        limits: A document beyond them is not judged.

    Returns:
        What is clean; where in doubt, nothing.
    """
    gathered = _gather(document, limits)
    if gathered is None:
        return NOT_SEEN
    names, strings = gathered
    every_name, every_string = '":\n"'.join(names), '"\n"'.join(strings)
    if len(every_name) + len(every_string) > limits.length or "\0" in every_string + every_name:
        return NOT_SEEN
    try:
        raw_names, raw_strings = every_name.encode(), every_string.encode()
    except UnicodeEncodeError:
        return NOT_SEEN
    return Glance(
        names_clean=every_name.count('"') == 2 * max(len(names) - 1, 0)
        and "\\" not in every_name
        and not scan.suspects(b'"%b":' % raw_names),
        values_clean=not ("\\" in every_string and any(map(_may_hide_json, strings)))
        and not scan.suspects(b'"%b"' % raw_strings),
    )


def _may_hide_json(text: str) -> bool:
    return "\\" in text and text.lstrip()[:1] in ("{", "[", '"')


def _gather(document: Any, limits: Limits) -> tuple[list[str], list[str]] | None:
    """Collect keys and strings, level by level; None if there is more than can be judged so."""
    names: list[Any] = []
    strings: list[str] = []
    level = [document]
    nodes = 0
    for _ in range(limits.depth + 1):
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:
                strings.append(item)
            elif kind is dict:
                names += item
                below += item.values()
            elif kind is list:
                below += item
            elif kind is int:
                if not -(10**12) < item < 10**12:
                    if item.bit_length() > 4_096:  # noqa: PLR2004 - as in adapt
                        return None
                    strings.append(str(abs(item)))
            elif kind is float:
                if not math.isfinite(item) or abs(item) >= 10**12:
                    return None
            elif item is not None and kind is not bool:
                return None
        nodes += len(level)
        if nodes > limits.nodes:
            return None
        if not below:
            return None if any(type(name) is not str for name in names) else (names, strings)
        level = below
    return None
