"""The place of each span or log record in OTLP/JSON, found without decoding any of it.

As a whole a text of JSON is valid or it is not: half of a character in one record, which
JavaScript writes where it cuts a text, would cost all others of its batch. And decoding it as a
whole would hold up all other requests. So the text is gone through bracket by bracket, and each
item is decoded by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from otel_audit.server.errors import too_many

Range = tuple[int, int]

# strings and everything else before the next bracket; bounded, so that no step takes long
_BEFORE_BRACKET: Final = re.compile(
    rb'[^"{}\[\]]{0,65536}+(?:"(?:[^"\\]{1,512}+|\\.){0,64}+"[^"{}\[\]]{0,512}+){0,64}+', re.DOTALL
).match
_IN_STRING: Final = re.compile(rb'(?:[^"\\]{1,4096}+|\\.){0,512}+', re.DOTALL).match
_BLANK: Final = b" \t\r\n"
_CLOSES: Final = {ord("{"): ord("}"), ord("["): ord("]")}
_LONGEST_KEY: Final = 256
"""Bytes before a value in which its key is looked for: names of OTLP are short."""

_PAUSE: Final = 1_000
"""Brackets, or pieces of long texts, after which others may have their turn."""


class StructureError(ValueError):
    """It is not JSON object, or it is cut."""


@dataclass(frozen=True, slots=True)
class ListNames:
    """Names of the lists that lead to the items."""

    groups: bytes
    scopes: bytes
    items: bytes
    what: str


SPANS: Final = ListNames(b"resourceSpans", b"scopeSpans", b"spans", "spans")
LOGS: Final = ListNames(b"resourceLogs", b"scopeLogs", b"logRecords", "log records")


@dataclass(slots=True)
class Scoped:
    """The data of one scope: the place of the scope and of each item; None: it is not an object."""

    scope: Range | None = None
    items: list[Range | None] = field(default_factory=list)


@dataclass(slots=True)
class Group:
    """The data of one resource: the place of the resource, and the data of each scope."""

    resource: Range | None = None
    scopes: list[Scoped] = field(default_factory=list)


@dataclass(slots=True)
class ScannedRequest:
    """The items of a request.

    Attributes:
        groups: By resource.
        is_odd: Whether there is something else than a group or scope.
    """

    groups: list[Group] = field(default_factory=list)
    is_odd: bool = False


# what a bracket that is open has in it
_TOP, _GROUPS, _GROUP, _SCOPES, _SCOPE, _ITEMS, _ITEM, _RESOURCE, _SCOPE_ITSELF, _OTHER = range(10)
_LISTS: Final = (_GROUPS, _SCOPES, _ITEMS)


class Splitter:
    """Goes through one text; what it has found is in `found` once it has ended."""

    def __init__(self, text: bytes, names: ListNames, most_items: int, most_objects: int) -> None:
        """Start before the text's first byte.

        Args:
            text: The body of the request, in JSON.
            names: What the lists of this signal are called.
            most_items: The most items that are taken.
            most_objects: The most objects and lists in all.
        """
        self.found = ScannedRequest()
        self._text = text
        self._names = names
        self._most_items = most_items
        self._most_objects = most_objects
        self._items = 0

    def steps(self) -> Iterator[None]:
        """Go through the text, and yield now and then.

        Raises:
            StructureError: It is not JSON object.
            RequestError: 413, there is too much in it.
        """
        text = self._text
        stack: list[tuple[int, int]] = []
        closers = bytearray()
        segment = opened = 0
        for at in _brackets(text):
            if at is None:
                yield
                continue
            bracket = text[at]
            context = stack[-1][0] if stack else None
            if context in _LISTS and text[segment:at].strip(b"," + _BLANK):
                self._note_odd(context)
            closer = _CLOSES.get(bracket)
            if closer is None:
                if not stack or closers.pop() != bracket:
                    raise StructureError
                self._close(*stack.pop(), at + 1)
            else:
                if not stack and (opened or bracket != ord("{") or text[segment:at].strip(_BLANK)):
                    raise StructureError
                opened += 1
                if opened > self._most_objects:
                    raise too_many(self._most_objects, "JSON objects")
                stack.append((self._open(context, bracket, segment, at), at))
                closers.append(closer)
            segment = at + 1
        if stack or not opened or text[segment:].strip(_BLANK):
            raise StructureError

    def _open(self, context: int | None, bracket: int, segment: int, at: int) -> int:
        if context in (_ITEM, _OTHER, _RESOURCE, _SCOPE_ITSELF):
            return _OTHER
        if context is None:
            return _TOP
        if context in _LISTS:
            return self._open_in_list(context, bracket)
        key = _key_before(self._text, segment, at)
        if bracket == ord("["):
            names = self._names
            wanted = {_TOP: names.groups, _GROUP: names.scopes, _SCOPE: names.items}[context]
            return context + 1 if key == wanted else _OTHER
        if context == _GROUP and key == b"resource":
            return _RESOURCE
        return _SCOPE_ITSELF if context == _SCOPE and key == b"scope" else _OTHER

    def _open_in_list(self, context: int, bracket: int) -> int:
        if bracket != ord("{"):
            self._note_odd(context)
            return _OTHER
        if context == _GROUPS:
            self.found.groups.append(Group())
        elif context == _SCOPES:
            self.found.groups[-1].scopes.append(Scoped())
        return context + 1

    def _close(self, context: int, start: int, stop: int) -> None:
        if context == _ITEM:
            self._add((start, stop))
        elif context == _RESOURCE:
            self.found.groups[-1].resource = (start, stop)
        elif context == _SCOPE_ITSELF:
            self.found.groups[-1].scopes[-1].scope = (start, stop)

    def _note_odd(self, context: int | None) -> None:
        if context == _ITEMS:
            self._add(None)
        else:
            self.found.is_odd = True

    def _add(self, item: Range | None) -> None:
        self._items += 1
        if self._items > self._most_items:
            raise too_many(self._most_items, self._names.what)
        self.found.groups[-1].scopes[-1].items.append(item)


def _brackets(text: bytes) -> Iterator[int | None]:
    """Yield where each bracket is that is in no string; None if it is time for a pause."""
    at, end, steps = 0, len(text), 0
    while True:
        before, at = at, _end(_BEFORE_BRACKET(text, at))
        if at >= end:
            return
        steps += 1
        if steps % _PAUSE == 0:
            yield None
        if text[at] in b"{}[]":
            yield at
            at += 1
        elif at == before:
            # a long string, piece by piece
            at += 1
            while (stop := _end(_IN_STRING(text, at))) > at:
                at = stop
                yield None
            # it ends here, or the text does
            at += 1


def _end(match: re.Match[bytes] | None) -> int:
    assert match is not None  # noqa: S101 - both patterns match the empty text, too
    return match.end()


def _key_before(text: bytes, segment: int, at: int) -> bytes:
    """The key before a value that begins here; empty where there is none."""
    before = text[max(segment, at - _LONGEST_KEY) : at].rstrip(_BLANK)
    if before[-1:] != b":":
        return b""
    before = before[:-1].rstrip(_BLANK)
    start = before.rfind(b'"', 0, -1)
    if before[-1:] != b'"' or start < 0:
        return b""
    key = before[start:]
    if b"\\" not in key:
        return key[1:-1]
    try:
        spelled = json.loads(key)
    except ValueError:
        return b""
    return spelled.encode("utf-8", "replace") if isinstance(spelled, str) else b""
