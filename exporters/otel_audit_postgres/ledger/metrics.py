"""The sealer's numbers as OpenTelemetry metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

from opentelemetry.metrics import CallbackOptions, Meter, Observation


class MeasuredSealer(Protocol):
    """The measured sealer. Counts are since it was made."""

    @property
    def sealed_rows(self) -> int:
        """Rows that it sealed."""

    @property
    def faulty_rows(self) -> int:
        """Rows that were changed or deleted before they were sealed."""

    @property
    def failed_publications(self) -> int:
        """Number of failed reads and writes of anchors."""

    @property
    def size(self) -> int:
        """Leaves under the last checkpoint that this sealer knows."""

    @property
    def lag(self) -> float:
        """Seconds that the oldest row that is not sealed has waited, at its last round."""


_COUNTERS: Final = (
    ("audit.seal.rows", "{row}", lambda watched: watched.sealed_rows),
    ("audit.seal.faulty_rows", "{row}", lambda watched: watched.faulty_rows),
    ("audit.seal.publish_failures", "{failure}", lambda watched: watched.failed_publications),
)
_GAUGES: Final = (
    ("audit.seal.size", "{row}", lambda watched: watched.size),
    ("audit.seal.lag", "s", lambda watched: watched.lag),
)


def publish(meter: Meter, watched: MeasuredSealer) -> None:
    """Offer the numbers; reading them costs sealing nothing.

    Args:
        meter: Where to; a no-op meter where the process has no metrics.
        watched: The sealer.
    """
    for name, unit, read in _COUNTERS:
        meter.create_observable_counter(name, [_reader(read, watched)], unit=unit)
    for name, unit, read in _GAUGES:
        meter.create_observable_gauge(name, [_reader(read, watched)], unit=unit)


def _reader(
    read: Callable[[MeasuredSealer], float], watched: MeasuredSealer
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(read(watched))

    return observe
