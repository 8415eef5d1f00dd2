"""Received items, before they are records: one form for spans and log records of both encodings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

MOST_ITEMS: Final = 100_000
"""Spans or log records in one request."""

AT_ONCE: Final = 64
"""Items of a batch: the reader yields to others in between."""

LARGE: Final = 8_192
"""Bytes of an item that is left to be decoded in a thread: it may take more than a turn."""

LARGEST: Final = 4 << 20
"""Bytes of an item beyond which it is not decoded at all."""

MOST_ATTRIBUTES: Final = 256
"""Attributes of a resource that are kept."""

MOST_SHARED: Final = 256
"""Different resources of one request that are remembered."""

_BYTES_SHARED: Final = 1 << 20
"""Bytes of all that are remembered; decoded, they take several times as much."""

TOO_LARGE: Final = "it is too large, or has too many parts, to be decoded"
"""Why an item is quarantined undecoded."""

ItemPath = tuple[int, int, int]
"""An item's place in its request: the indexes of its resource, its scope, and its own."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Resource:
    """The resource that several items of a request share.

    Attributes:
        attributes: The resource's attributes.
        left_out: How many attributes it had beyond those that are kept.
    """

    attributes: dict[str, Any]
    left_out: int = 0


class SharedResources:
    """The resources of one request: groups with the same bytes share one.

    A Collector's batch joins requests without joining their groups, so a resource is repeated with
    each of them. To redact it costs three times what one record costs.
    """

    __slots__ = ("_known", "_room")

    def __init__(self) -> None:
        """Begin a request."""
        self._known: dict[bytes, Resource] = {}
        self._room = _BYTES_SHARED

    def share(self, raw: bytes, decode: Callable[[bytes], Resource]) -> Resource:
        """Decode a resource, unless one with these bytes was decoded before."""
        found = self._known.get(raw)
        if found is None:
            found = decode(raw)
            # as many as a batch has services; each is kept for as long as the request is read
            if len(self._known) < MOST_SHARED and len(raw) <= self._room:
                self._room -= len(raw)
                self._known[raw] = found
        return found


class ReceivedItem(msgspec.Struct, frozen=True):
    """An audit-flagged span, or an audit log record.

    Attributes:
        name: The span's name, or the log record's event name.
        trace_id: In hex, empty where there is none.
        span_id: In hex, empty where there is none.
        parent_span_id: In hex, empty where there is none.
        start_time: Unix nanoseconds as they came, 0 where they did not.
        end_time: Unix nanoseconds as they came.
        attributes: Names to values; of several with one name the last one.
        scope: The instrumentation scope's name.
        origin: The resource.
        is_log: Whether it is a log record.
        body: A log record's body.
        place: Where it is in its request.
        notes: The parts that were left out or changed: place in the item, and why.
        raw: A log record's original bytes, for its signature.
        signal: Its attributes of the draft audit signal, as they are stored.
    """

    name: str
    trace_id: str
    span_id: str
    parent_span_id: str
    start_time: int
    end_time: int
    attributes: dict[str, Any]
    scope: str
    origin: Resource
    is_log: bool = False
    body: Any = None
    place: ItemPath | None = None
    notes: tuple[str, ...] = ()
    raw: bytes = b""
    signal: Mapping[str, Any] = {}

    def spelled_place(self) -> str:
        """Spell where it is, as a path into the request's JSON."""
        if self.place is None:
            return "the request"
        groups, scopes, items = _LOGS if self.is_log else _SPANS
        group, scope, item = self.place
        return f"{groups}[{group}].{scopes}[{scope}].{items}[{item}]"


_SPANS: Final = ("resourceSpans", "scopeSpans", "spans")
_LOGS: Final = ("resourceLogs", "scopeLogs", "logRecords")


@dataclass(slots=True)
class Batch:
    """A part of what a request holds.

    Attributes:
        items: What is to be recorded.
        ignored: How many spans were not flagged.
        undecodable: What seems to be flagged and cannot be decoded: what is kept of it, and why.
        large: Decodes a large item into a batch; to be called in a thread.
    """

    items: list[ReceivedItem] = field(default_factory=list)
    ignored: int = 0
    undecodable: list[tuple[ReceivedItem, str]] = field(default_factory=list)
    large: list[Callable[[Batch], None]] = field(default_factory=list)

    def __len__(self) -> int:
        """Spans or log records in it."""
        return len(self.items) + len(self.undecodable) + len(self.large) + self.ignored

    def __bool__(self) -> bool:
        """Whether there is any."""
        return len(self) > 0

    @property
    def is_full(self) -> bool:
        """Whether it holds as many as are read at once."""
        return len(self) >= AT_ONCE


class ItemScope(Protocol):
    """The common part of a scope's items, in every encoding."""

    @property
    def is_log(self) -> bool:
        """Whether they are log records."""


S = TypeVar("S", bound=ItemScope)


@dataclass(frozen=True, slots=True)
class ItemDecoder(Generic[S]):
    """Decides when an item is decoded; how, is the encoding's.

    Attributes:
        may_be_flagged: Whether its bytes may hold the flag; a span that cannot is not decoded.
        has_too_many_parts: Whether decoding would make too much of its bytes.
        decode: Puts what it is into a batch.
        add_undecodable: Adds to a batch what is kept of it, and why it is not decoded.
    """

    may_be_flagged: Callable[[bytes], bool]
    has_too_many_parts: Callable[[bytes], bool]
    decode: Callable[[Batch, bytes, ItemPath, S], None]
    add_undecodable: Callable[[Batch, bytes, ItemPath, S, str], None]

    def add(self, batch: Batch, raw: bytes, place: ItemPath, scope: S) -> None:
        """Decode an item into a batch, or leave a large one to be decoded in a thread."""
        if not scope.is_log and not self.may_be_flagged(raw):
            batch.ignored += 1
        elif len(raw) > LARGE:
            batch.large.append(
                functools.partial(self._decode_large, raw=raw, place=place, scope=scope)
            )
        else:
            self.decode(batch, raw, place, scope)

    def _decode_large(self, batch: Batch, raw: bytes, place: ItemPath, scope: S) -> None:
        if len(raw) > LARGEST or self.has_too_many_parts(raw):
            self.add_undecodable(batch, raw, place, scope, TOO_LARGE)
        else:
            self.decode(batch, raw, place, scope)
