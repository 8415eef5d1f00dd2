"""Records out of the spools that dead processes of this service left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice

import msgspec

from otel_audit.complaints import complain
from otel_audit.pipeline.counters import Counters
from otel_audit.pipeline.spool import AbandonedSpool
from otel_audit.record import AuditRecord

_logger = logging.getLogger(__name__)

_decode = msgspec.json.Decoder(AuditRecord).decode

Adopt = Callable[[], list[AbandonedSpool]]


def batches_of(spool: AbandonedSpool, size: int, counters: Counters) -> Iterator[list[AuditRecord]]:
    """Read the records of a dead process: closed ones as they are, cut-down ones as far as known.

    Args:
        spool: What it left.
        size: Records in a batch.
        counters: Where what cannot be read is counted as dropped.

    Yields:
        Batches, in order. The record of an action that was cut down says ``unknown``.
    """
    found = _records(spool, counters)
    while batch := list(islice(found, size)):
        yield batch
    report = spool.report
    if not report.clean:
        counters.add("dropped", report.damaged_frames + len(report.unreadable))
        _logger.critical(
            "The spool of a dead process is damaged: %s: %d places altered, %d files unreadable; "
            "the records there are lost",
            spool.path, report.damaged_frames, len(report.unreadable),
        )  # fmt: skip


def _records(spool: AbandonedSpool, counters: Counters) -> Iterator[AuditRecord]:
    for recovered in spool.records():
        try:
            yield _decode(recovered.payload)
        except msgspec.MsgspecError as error:
            counters.add("dropped")
            complain(
                _logger, "recovery", "A record of a dead process cannot be read; it is lost",
                level=logging.CRITICAL, error=error,
            )  # fmt: skip
