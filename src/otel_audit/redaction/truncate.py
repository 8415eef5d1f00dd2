"""Texts that are longer than what is kept of them: cut before they are looked at.

Looking first would cost what the sender likes. Where a cut goes through a secret, half of it is no
secret to any rule; so the cut is moved back to where a word, a parameter or a segment ends.
"""

from __future__ import annotations

from typing import Final

from otel_audit.redaction.placeholders import TRUNCATED
from otel_audit.redaction.truncated_bodies import whole_words

_QUERY_END: Final = "%5BTRUNCATED%5D"


def cut_text(text: str, longest: int) -> str:
    """Keep the beginning of a text that is too long, up to a word well before the cut.

    Args:
        text: Not redacted yet.
        longest: Characters.

    Returns:
        The text, or what is whole of its beginning and ``[TRUNCATED]``.
    """
    if len(text) <= longest:
        return text
    return f"{whole_words(text[:longest])} {TRUNCATED}".lstrip()


def cut_path(path: str, longest: int) -> str:
    """Keep the first segments of a path that is too long."""
    if len(path) <= longest:
        return path
    return f"{path[: path.rfind('/', 0, longest) + 1]}{TRUNCATED}"


def cut_query(query: str, longest: int) -> str:
    """Keep the first parameters of a query that is too long; it stays a valid one."""
    if len(query) <= longest:
        return query
    return f"{query[: query.rfind('&', 0, longest) + 1]}{_QUERY_END}"
