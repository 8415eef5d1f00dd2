"""Counters of records by result, for the metrics and the health report."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Final, Protocol

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from otel_audit._util.fork import renew_in_child
from otel_audit._util.own_lock import OwnLock, is_mine, own_lock

_METRIC: Final = "metric"
"""In the metadata of a field: name and unit of its metric."""


def _counter(metric: str, unit: str = "{record}") -> int:
    counter: int = field(default=0, metadata={_METRIC: (metric, unit)})
    return counter


@dataclass(slots=True, weakref_slot=True, eq=False)
class Counters:
    """Counts since the process began; a forked child counts from 0.

    Attributes:
        emitted: Records handed to delivery.
        exported: Records that the store has acknowledged.
        dropped: Records that are lost; each one is also logged.
        quarantined: Records that the store refused and quarantined.
        conflicts: Records that the store has under another id, as another record has theirs, or
            their time is in the future.
        retries: Writes that failed and are tried again.
        capture_errors: Failures of ours while an action was observed.
        redaction_errors: Values that were withheld because redacting them failed.
        refused: Requests that were refused because they could not have been recorded.
        spool_errors: Times that the spool did not take, or not keep, what it should.
        relayed: Records of the outbox that the store has acknowledged.
        outbox_errors: Transactions that failed because the outbox did not take their entries.
    """

    emitted: int = _counter("audit.records.emitted")
    exported: int = _counter("audit.records.exported")
    dropped: int = _counter("audit.records.dropped")
    quarantined: int = _counter("audit.records.quarantined")
    conflicts: int = _counter("audit.records.conflicts")
    retries: int = _counter("audit.export.retries", "{retry}")
    capture_errors: int = _counter("audit.capture.errors", "{error}")
    redaction_errors: int = _counter("audit.redaction.errors", "{error}")
    refused: int = _counter("audit.requests.refused", "{request}")
    spool_errors: int = _counter("audit.spool.errors", "{error}")
    relayed: int = _counter("audit.outbox.relayed")
    outbox_errors: int = _counter("audit.outbox.errors", "{error}")
    _lock: OwnLock = field(default_factory=own_lock, repr=False)
    _between: deque[tuple[str, int]] = field(default_factory=deque, repr=False)

    def __post_init__(self) -> None:
        renew_in_child(self, Counters._reset_in_child)

    def _reset_in_child(self) -> None:
        # another thread of the parent may have held it
        self._lock = own_lock()
        self._between.clear()
        for name in _COUNTED:
            setattr(self, name, 0)

    def add(self, name: str, count: int = 1) -> None:
        """Count; safe from any thread, and in the middle of itself."""
        if self.is_held:
            self._between.append((name, count))
            return
        with self._lock:
            setattr(self, name, getattr(self, name) + count)
        if self._between:
            self._catch_up()

    def snapshot(self) -> dict[str, int]:
        """All counts as they are now."""
        self._catch_up()
        with self._lock:
            return {name: getattr(self, name) for name in _COUNTED}

    @property
    def is_held(self) -> bool:
        """Whether the calling thread is in the middle of counting."""
        return is_mine(self._lock)

    def _catch_up(self) -> None:
        """Count what came in the middle of counting."""
        while self._between and not self.is_held:
            with self._lock:
                if self._between:  # else another thread was faster
                    name, count = self._between[0]
                    setattr(self, name, getattr(self, name) + count)
                    self._between.popleft()


_COUNTED: Final[dict[str, tuple[str, str]]] = {
    one.name: one.metadata[_METRIC] for one in fields(Counters) if _METRIC in one.metadata
}
"""Names of the counters, with the names and units of their metrics."""


class Watched(Protocol):
    """The source of the gauges."""

    @property
    def depth(self) -> int:
        """Records that wait."""

    @property
    def spool_bytes(self) -> int:
        """Bytes of the spool."""

    @property
    def spool_limit(self) -> int:
        """Bytes that the spool may have; 0 where there is none."""

    @property
    def oldest_age(self) -> float:
        """Seconds that the oldest record has waited."""


def publish(meter: Meter, counters: Counters, watched: Watched) -> Callable[[float], None]:
    """Offer the counts as OpenTelemetry metrics; reading them costs the hot path nothing.

    Args:
        meter: Where to; a no-op meter where the application has no metrics.
        counters: What to read.
        watched: What to read the gauges from.

    Returns:
        Called with the duration of each successful write, in seconds.
    """
    for name, (metric, unit) in _COUNTED.items():
        count = functools.partial(_count, counters, name)
        meter.create_observable_counter(metric, callbacks=[_reader(count)], unit=unit)
    for metric, unit, read in (
        ("audit.queue.depth", "{record}", lambda: watched.depth),
        ("audit.spool.bytes", "By", lambda: watched.spool_bytes),
        ("audit.spool.limit", "By", lambda: watched.spool_limit),
        ("audit.spool.oldest_age", "s", lambda: watched.oldest_age),
    ):
        meter.create_observable_gauge(metric, callbacks=[_reader(read)], unit=unit)
    return meter.create_histogram("audit.export.duration", unit="s").record


def _count(counters: Counters, name: str) -> int:
    return counters.snapshot()[name]


def _reader(value: Callable[[], float]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def read(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(value())

    return read
