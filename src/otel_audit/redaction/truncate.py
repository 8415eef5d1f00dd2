"""Values that are longer than what is kept of them, and how a record says so.

| field | meaning |
|---|---|
| ``_truncated`` | ``true`` |
| ``_original_size`` | bytes of the whole: of a body as it passed, of a value its (JSON) text |
| ``_head`` | the beginning, redacted: text of a text, and what is whole of a list or an object |
| ``_sha256`` | of the redacted (JSON) text, where all of it was read |

Text is cut before it is looked at: looking first would cost what the sender likes. Where a cut goes
through a secret, half of it is not a secret to any rule; so the cut is moved back to where a word,
a parameter, a segment or a JSON value ends.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from otel_audit.redaction.labelled_values import (
    LABEL,
    VALUE,
    WEAK_LABEL,
    WEAK_VALUE,
    label_role,
    label_roles,
)
from otel_audit.redaction.placeholders import TRUNCATED, WITHHELD

_QUERY_END: Final = "%5BTRUNCATED%5D"

_SHOWN: Final = 256
"""Characters of a value's text that are kept as its head."""

_NO_HEAD: Final = object()

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode

_OPENERS: Final = {b"{": b"}", b"[": b"]"}
_CLOSERS: Final = frozenset(_OPENERS.values())
_NEAR_THE_CUT: Final = 64
"""Characters before a cut that are left out with what was cut: longer than any card or IBAN."""
# a string, whole or cut, is one token: its brackets do not count
_TOKEN: Final = re.compile(rb'(?s)"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]')


def describe_cut(
    size: int | None, head: Any = _NO_HEAD, sha256: str | None = None
) -> dict[str, Any]:
    """Describe a value that is not kept whole, see the table above.

    Args:
        size: Bytes of the whole, None if nobody has read to its end.
        head: What is kept of it, redacted; nothing by default.
        sha256: Digest of the whole, redacted.
    """
    found: dict[str, Any] = {"_truncated": True}
    if size is not None:
        found["_original_size"] = size
    if head is not _NO_HEAD:
        found["_head"] = head
    if sha256 is not None:
        found["_sha256"] = sha256
    return found


def is_cut(form: Any) -> bool:
    """Return whether a JSON form describes a value that was cut."""
    return isinstance(form, dict) and form.get("_truncated") is True


def shorten(value: Any, longest: int) -> Any:
    """Cut a JSON value that is too long.

    Args:
        value: A JSON value that is redacted already.
        longest: Characters of a text, bytes of the JSON text of a list or an object.

    Returns:
        The value itself, or a description of it with its head, size and hash.
    """
    if isinstance(value, str):
        return value if len(value) <= longest else _cut(value.encode(), value[:_SHOWN])
    if isinstance(value, dict | list):
        text = _encode(value)
        return value if len(text) <= longest else _cut(text, whole_head(text))
    return value


def whole_head(text: bytes) -> Any:
    """Parse what is whole of the beginning of the JSON text of a list or an object."""
    head = whole_json(text[:_SHOWN])
    return _decode(head) if head is not None else [] if text[:1] == b"[" else {}


def head_of_text(text: str) -> str:
    """Keep the beginning of a redacted text."""
    return text[:_SHOWN]


def _cut(text: bytes, head: Any) -> dict[str, Any]:
    return describe_cut(len(text), head, hashlib.sha256(text).hexdigest())


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
            if not label_roles(opened) & (LABEL | WEAK_LABEL):
                for key in [key for key in opened if label_role(key) & (VALUE | WEAK_VALUE)]:
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
