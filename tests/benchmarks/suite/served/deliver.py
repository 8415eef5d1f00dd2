"""Delivers records to a store, so many at a time, as it is told on standard input.

Run by `suite.delivery` under callgrind: what the process does beside its main thread is delivery.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from otel_audit_postgres import PostgresSink

from otel_audit.delivery.delivery import Delivery, DeliveryOptions
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.spool import open_spool
from otel_audit.record import AuditRecord, to_json
from tests.benchmarks.suite.writing import records

PATIENCE = 300.0


def main() -> None:
    settings: dict[str, Any] = json.loads(os.environ["BENCH"])
    delivery = Delivery(
        lambda: PostgresSink(settings["store"]),
        Counters(),
        # a batch goes when it is complete, however long the making of its records takes here
        DeliveryOptions(batch_interval=PATIENCE),
        spool=functools.partial(open_spool, Path(settings["spool"]), service="shop"),
    )
    for line in sys.stdin:
        asked = json.loads(line)
        made = [records(asked["batch"]) for _ in range(asked["batches"])]
        # the collector's rare passes over all there is belong to no record
        gc.collect()
        gc.freeze()
        for batch in made:
            deliver(delivery, batch)
        print("done", flush=True)
    delivery.close(PATIENCE)


def deliver(delivery: Delivery, batch: Sequence[AuditRecord]) -> None:
    for record in batch:
        delivery.submit(record, to_json(record))
    if not delivery.flush(PATIENCE):
        raise SystemExit("the store did not take a batch")


if __name__ == "__main__":
    main()
