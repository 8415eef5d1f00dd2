"""Counters of received items and their results, for metrics and the health report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation


class ServerMetrics:
    """Counts since the process began; used from one event loop only."""

    def __init__(self) -> None:
        """Start all counters at 0."""
        self.counts: Counter[str] = Counter()
        self.http_requests: Counter[tuple[str, int]] = Counter()
        self.grpc_requests: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[str] = Counter()
        self.quarantined: Counter[str] = Counter()
        self.default_partition_rows = 0
        self._duration: Histogram | None = None
        self._size: Histogram | None = None

    def note_default_rows(self, rows: int) -> None:
        """Note how many rows the store's default partition has; the store counts to a bound."""
        self.default_partition_rows = rows

    def snapshot(self) -> dict[str, Any]:
        """All counts, as plain values."""
        return {
            "records": dict(self.counts),
            "quarantined": dict(self.quarantined),
            "requests_refused": dict(self.refused),
            "default_partition_rows": self.default_partition_rows,
        }

    def publish(
        self, meter: Meter, in_flight: Callable[[], int], waiting: Callable[[], int]
    ) -> None:
        """Offer the counts as OpenTelemetry metrics.

        Args:
            meter: Where to; a no-op meter where the process has no metrics.
            in_flight: Bytes of requests under way.
            waiting: Records that wait for a writer.
        """
        for name in ("stored", "ignored", "conflicts", "chains.broken"):
            meter.create_observable_counter(
                f"audit.sink.records.{name}",
                callbacks=[_one(lambda name=name: self.counts[name])],  # type: ignore[misc]
                unit="{record}",
            )
        meter.create_observable_counter(
            "audit.sink.records.quarantined",
            callbacks=[_each(self.quarantined, "reason")],
            unit="{record}",
        )
        meter.create_observable_counter(
            "audit.sink.requests.refused",
            callbacks=[_each(self.refused, "reason")],
            unit="{request}",
        )
        meter.create_observable_counter(
            "audit.sink.requests", callbacks=[self._requests], unit="{request}"
        )
        meter.create_observable_gauge(
            "audit.sink.in_flight", callbacks=[_one(in_flight)], unit="By"
        )
        meter.create_observable_gauge(
            "audit.sink.queue.depth", callbacks=[_one(waiting)], unit="{record}"
        )
        self._duration = meter.create_histogram("audit.sink.write.duration", unit="s")
        self._size = meter.create_histogram("audit.sink.write.records", unit="{record}")

    def observe_write(self, seconds: float, records: int) -> None:
        """Note one write to the store."""
        if self._duration is not None and self._size is not None:
            self._duration.record(seconds)
            self._size.record(records)

    def _requests(self, _: CallbackOptions) -> Iterable[Observation]:
        for (route, status), count in list(self.http_requests.items()):
            yield Observation(count, {"http.route": route, "http.response.status_code": status})
        for (method, code), count in list(self.grpc_requests.items()):
            yield Observation(
                count,
                {
                    "rpc.system.name": "grpc",
                    "rpc.method": method,
                    "rpc.response.status_code": code,
                },
            )


def _one(value: Callable[[], int]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [Observation(value())]


def _each(counts: Counter[str], label: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [Observation(count, {label: name}) for name, count in list(counts.items())]
