"""Prefilter for parsed documents: a clean one need not be walked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otel_audit.redaction.number_spelling import SpelledFloat

if TYPE_CHECKING:
    from otel_audit.redaction.scan import Scan
    from otel_audit.redaction.walker import Limits


@dataclass(frozen=True, slots=True)
class PrefilterResult:
    """Result of the prefilter.

    Attributes:
        names_clean: No key is one that a rule could touch.
        values_clean: No string and no number is one that a rule could touch.
    """

    names_clean: bool
    values_clean: bool


NOT_JUDGED = PrefilterResult(names_clean=False, values_clean=False)


def prefilter(document: Any, scan: Scan, limits: Limits) -> PrefilterResult:
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
        return NOT_JUDGED
    names, strings = gathered
    every_name, every_string = '":\n"'.join(names), '"\n"'.join(strings)
    if len(every_name) + len(every_string) > limits.length or "\0" in every_string + every_name:
        return NOT_JUDGED
    try:
        raw_names, raw_strings = every_name.encode(), every_string.encode()
    except UnicodeEncodeError:
        return NOT_JUDGED
    return PrefilterResult(
        # of an authorization code the names say it, and each by itself is an ordinary one
        names_clean="code" not in names
        and every_name.count('"') == 2 * max(len(names) - 1, 0)
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
        nodes += len(level)
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
            elif not _is_plain(item):
                return None
        if nodes > limits.nodes:
            return None
        if not below:
            return (names, strings) if all(type(name) is str for name in names) else None
        level = below
    return None


def _is_plain(item: Any) -> bool:
    """Return whether a value is a short number, a bool, or None."""
    kind = type(item)
    if kind is int:
        return bool(-LONG_NUMBER < item < LONG_NUMBER)
    if kind is float or kind is SpelledFloat:
        return bool(-LONG_NUMBER < item < LONG_NUMBER)
    return item is None or kind is bool


LONG_NUMBER = 10**12
"""Numbers below it are shorter than any card's."""
