"""Text that every store and every reader of JSON takes."""

from __future__ import annotations


def storable(text: str) -> str:
    """Replace by U+FFFD what PostgreSQL cannot store (NUL) and UTF-8 cannot spell (surrogates)."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        # two surrogates that belong together become the one character that they stand for
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
