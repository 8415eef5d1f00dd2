"""Text that may come from anywhere, made fit for what takes it."""

from __future__ import annotations

from typing import Final

CONTROLS: Final = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
"""Matches a control character, a line end of any kind, or half of a surrogate pair."""


def storable(text: str) -> str:
    """Replace what no store takes, NUL and lone surrogates, by U+FFFD.

    Two halves of a surrogate pair become the one character that they mean.
    """
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
