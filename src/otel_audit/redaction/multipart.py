"""Multipart forms (RFC 7578): names, values and facts about files, never a file's content."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import Any, Final
from urllib.parse import unquote

from otel_audit.redaction.json_values import describe_bytes
from otel_audit.redaction.placeholders import WITHHELD

_MOST_PARTS: Final = 100
"""Parts that are described; of more, the rest is left out, and the record says so."""
_MOST_NAMES: Final = 8
"""Names of one part: senders give one, and readers differ on several."""
_LONGEST_HEADER: Final = 8_192
"""Bytes of a part's headers; a part with more is left out."""
_LONGEST_BOUNDARY: Final = 70
"""RFC 2046, section 5.1.1."""
_UNREADABLE: Final = (TypeError, ValueError, LookupError)
"""Exceptions of `email` for parameters (RFC 2231) of an odd order, charset or content."""
_FOLD: Final = re.compile(r"\r\n[ \t]+")
"""RFC 5322, section 2.2.3."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Attributes:
        names: The field's name, and its other possible readings; none if it is not known
            which name the application uses.
        filename: The file's name, None for a plain field.
        content_type: As declared.
        content: The bytes that are there.
        complete: Whether they are all.
    """

    names: tuple[str, ...]
    filename: str | None
    content_type: str | None
    content: bytes
    complete: bool


def boundary_of(content_type: str) -> bytes | None:
    """Read the boundary from a content type, None if there is none that is valid."""
    message = Message()
    message["content-type"] = content_type
    try:
        boundary = message.get_boundary()
    except _UNREADABLE:
        return None
    if not boundary or len(boundary) > _LONGEST_BOUNDARY:
        return None
    return boundary.encode("latin-1", "replace")


def split_parts(raw: bytes, boundary: bytes) -> tuple[list[Part], bool]:
    """Split a multipart body, whole or cut.

    Args:
        raw: The body or its head.
        boundary: Without the leading dashes.

    Returns:
        Its parts, at most a hundred, and whether they are all; the last one is not complete if the
        body was cut in it. A part whose headers are not whole is left out.
    """
    delimiter = b"--" + boundary
    if not raw.startswith(delimiter):
        start = raw.find(b"\r\n" + delimiter)
        if start < 0:
            return [], True
        raw = raw[start + 2 :]
    parts: list[Part] = []
    sections = raw[len(delimiter) :].split(b"\r\n" + delimiter, _MOST_PARTS)
    for place, section in enumerate(sections):
        if section.startswith(b"--"):
            break
        if place == _MOST_PARTS:
            return parts, False
        complete = place + 1 < len(sections)
        head, blank, content = section.partition(b"\r\n\r\n")
        if blank and len(head) <= _LONGEST_HEADER:
            parts.append(_part(head, content, complete=complete))
    return parts, True


def _part(head: bytes, content: bytes, *, complete: bool) -> Part:
    headers = Message()
    lines = _FOLD.sub(" ", head.decode("utf-8", "replace")).split("\r\n")
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name.strip().isascii():
            headers[name.strip()] = value.strip()
    try:
        given = headers.get_params([], header="content-disposition")
        names = tuple(_text(value) for key, value in given if key.lower() == "name")
        filename = next((_text(value) for key, value in given if key.lower() == "filename"), None)
    except _UNREADABLE:
        return Part((), None, None, b"", complete=False)
    # what no client sends, and what readers understand in different ways
    unclear = (
        len(names) > _MOST_NAMES
        or len(headers.get_all("content-disposition", [])) > 1
        or any("\r" in line or "\n" in line for line in lines)
    )
    names = () if unclear else _readings(names)
    return Part(names, filename, headers.get("content-type"), content, complete)


def _readings(names: tuple[str, ...]) -> tuple[str, ...]:
    """Add the decoded forms of encoded names; return none if they are not known."""
    try:
        words = (str(make_header(decode_header(name))) for name in names if "=?" in name)
        return tuple(dict.fromkeys((*names, *map(unquote, names), *words)))
    except (HeaderParseError, LookupError, ValueError):
        return ()


def _text(value: Any) -> str:
    return collapse_rfc2231_value(value)


def describe_part(part: Part) -> Any:
    """Spell a part as a value still to be redacted: a text, or what a file is.

    A value that was cut, or is not a text, is described and never quoted; one without a name is
    withheld, for the name may be what says that it is a secret.
    """
    if part.filename is None:
        return _describe_value(part)
    found: dict[str, Any] = {"_file": part.filename, "_content_type": part.content_type}
    if not part.complete:
        return {**found, "_truncated": True}
    facts = describe_bytes(part.content)
    return {**found, **{key: facts[key] for key in ("_size", "_sha256") if key in facts}}


def _describe_value(part: Part) -> Any:
    if not part.names:
        return WITHHELD
    if not part.complete:
        return {"_truncated": True}
    if b"\0" in part.content:
        return describe_bytes(part.content)
    try:
        return part.content.decode()
    except UnicodeDecodeError:
        return describe_bytes(part.content)
