"""What happened to records, counted; the numbers behind the metrics and the health report."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from opentelemetry.metrics import CallbackOptions, Meter, Observation


@dataclass(slots=True)
class Counters:
    """Counts since the process began.

    Attributes:
        emitted: Records handed to delivery.
        exported: Records that the store has acknowledged.
        dropped: Records that are lost; each one is also logged.
        quarantined: Records the store put aside as unfit.
        retries: Writes that failed and are tried again.
        capture_errors: Failures of ours while an action was observed.
        refused: Requests that were refused because they could not have been recorded.
        spool_errors: Times that the spool did not take, or not keep, what it should.
    """

    emitted: int = 0
    exported: int = 0
    dropped: int = 0
    quarantined: int = 0
    retries: int = 0
    capture_errors: int = 0
    refused: int = 0
    spool_errors: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, name: str, count: int = 1) -> None:
        """Count; safe from any thread."""
        with self._lock:
            setattr(self, name, getattr(self, name) + count)

    def snapshot(self) -> dict[str, int]:
        """All counts as they are now."""
        with self._lock:
            return {name: getattr(self, name) for name in _COUNTED}


_COUNTED = (
    "emitted",
    "exported",
    "dropped",
    "quarantined",
    "retries",
    "capture_errors",
    "refused",
    "spool_errors",
)


def publish(meter: Meter, counters: Counters, queue_depth: Callable[[], int]) -> None:
    """Offer the counts as OpenTelemetry metrics; reading them costs the hot path nothing.

    Args:
        meter: Where to; a no-op meter where the application has no metrics.
        counters: What to read.
        queue_depth: Gives the number of records that wait now.
    """
    for name, metric in (
        ("emitted", "audit.records.emitted"),
        ("exported", "audit.records.exported"),
        ("dropped", "audit.records.dropped"),
        ("quarantined", "audit.records.quarantined"),
        ("capture_errors", "audit.capture.errors"),
        ("refused", "audit.requests.refused"),
        ("spool_errors", "audit.spool.errors"),
    ):
        meter.create_observable_counter(
            metric, callbacks=[_reader(counters, name)], unit="{record}"
        )

    def depth(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(queue_depth())

    meter.create_observable_gauge("audit.queue.depth", callbacks=[depth], unit="{record}")


def _reader(counters: Counters, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def read(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(counters.snapshot()[name])

    return read
