"""OpenTelemetry metrics of streams; their only attribute is the stream's name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from otel_audit.streams.stream import Stream, StreamProgress

_COUNTERS: Final[tuple[tuple[str, str, Callable[[StreamProgress], float]], ...]] = (
    ("audit.destination.sent", "{record}", lambda progress: progress.sent),
    ("audit.destination.parked", "{record}", lambda progress: progress.parked),
    ("audit.destination.failures", "{failure}", lambda progress: progress.failures),
    ("audit.destination.altered", "{record}", lambda progress: progress.altered),
)
_GAUGES: Final[tuple[tuple[str, str, Callable[[StreamProgress], float]], ...]] = (
    ("audit.destination.position", "{leaf}", lambda progress: progress.next_leaf),
    ("audit.destination.behind", "{leaf}", lambda progress: progress.size - progress.next_leaf),
    ("audit.destination.lag", "s", lambda progress: progress.lag),
    # without a unit: of "1" Prometheus makes a ratio
    ("audit.destination.refused", "", lambda progress: progress.state == "refused"),
)


def publish(meter: Meter, streams: Sequence[Stream]) -> None:
    """Register the metrics of streams."""
    for name, unit, read in _COUNTERS:
        meter.create_observable_counter(name, [_reader(read, streams)], unit=unit)
    for name, unit, read in _GAUGES:
        meter.create_observable_gauge(name, [_reader(read, streams)], unit=unit)


def _reader(
    read: Callable[[StreamProgress], float], streams: Sequence[Stream]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for stream in streams:
            yield Observation(read(stream.progress), {"audit.destination.name": stream.name})

    return observe
