"""What came in, before it is a record: one shape for spans and log records of either encoding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

T = TypeVar("T")

MOST_ITEMS: Final = 100_000
"""Spans or log records in one request."""

AT_ONCE: Final = 64
"""Items of a batch: whoever reads them lets others have their turn in between."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Origin:
    """The resource that several items of a request share.

    Attributes:
        attributes: The resource's attributes.
    """

    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Incoming:
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
    """

    name: str
    trace_id: str
    span_id: str
    parent_span_id: str
    start_time: int
    end_time: int
    attributes: dict[str, Any]
    scope: str
    origin: Origin
    is_log: bool = False
    body: Any = None


@dataclass(slots=True)
class Batch:
    """A part of what a request holds.

    Attributes:
        items: What is to be recorded.
        ignored: How many spans were not flagged.
        broken: What seems to be flagged and cannot be decoded: what is left of it, and why.
    """

    items: list[Incoming] = field(default_factory=list)
    ignored: int = 0
    broken: list[tuple[Incoming, str]] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether it holds as many as are read at once."""
        return len(self.items) + len(self.broken) + self.ignored >= AT_ONCE


def batched(found: Iterable[T], add: Callable[[Batch, T], None]) -> Iterator[Batch]:
    """Put what was found into batches.

    Args:
        found: What came under one scope.
        add: Reads one of it into a batch.

    Yields:
        Each batch as soon as it is full, and the last one, which may be empty.
    """
    batch = Batch()
    for one in found:
        add(batch, one)
        if batch.is_full:
            yield batch
            batch = Batch()
    yield batch
