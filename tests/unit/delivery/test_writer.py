"""One batch on its way to a sink, and a writer that does not give up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest
from shelf import Shelf
from strategies import a_record

from otel_audit.delivery.delivery import Delivery, DeliveryOptions
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.sink import Refused, Written
from otel_audit.delivery.writer import write_batch
from otel_audit.errors import StoreUnavailableError
from otel_audit.record import AuditRecord


class Fussy(Shelf):
    """A sink that raises what no sink should where it is given a bad record."""

    def __init__(self, *bad: AuditRecord) -> None:
        super().__init__()
        self.bad = {record.record_id for record in bad}

    async def write(self, records: Sequence[AuditRecord]) -> Written:
        if not self.bad.isdisjoint(record.record_id for record in records):
            raise ValueError("secret")
        return await super().write(records)


def some(count: int) -> list[AuditRecord]:
    return [a_record(event_name=f"order.{number}") for number in range(count)]


class TestBatch:
    async def test_what_never_became_a_record_goes_to_quarantine(self) -> None:
        """Beside the records of the same batch; each is counted."""
        sink, counters, records = Shelf(), Counters(), some(3)
        refused = Refused("x", b"{}", "no record")
        await write_batch(sink, [records[0], refused, *records[1:]], counters)
        assert (sink.stored, sink.quarantined) == (records, [refused])
        assert (counters.exported, counters.quarantined) == (3, 1)

    @pytest.mark.allow_errors
    async def test_bad_records_are_found(self) -> None:
        """The others are stored in their order, in few writes; their reason names no value."""
        records = some(64)
        sink, counters = Fussy(records[5], records[50]), Counters()
        written = await write_batch(sink, records, counters, bad="quarantine")
        assert sink.stored == [one for one in records if one.record_id not in sink.bad]
        assert [one.record_id for one in sink.quarantined] == [
            records[5].record_id, records[50].record_id
        ]  # fmt: skip
        assert {one.reason for one in sink.quarantined} == {"an unexpected ValueError"}
        assert (written.stored, written.quarantined, len(sink.asked)) == (62, 2, 10)
        assert (counters.exported, counters.quarantined) == (62, 2)

    @pytest.mark.allow_errors
    async def test_bad_records_are_postponed(self) -> None:
        """They are named, and are neither stored nor in quarantine."""
        records = some(8)
        sink = Fussy(records[0])
        written = await write_batch(sink, records, Counters(), bad="postpone")
        assert (written.postponed, written.stored) == ((records[0].record_id,), 7)
        assert sink.quarantined == []

    @pytest.mark.parametrize("bad", ["raise", "postpone", "quarantine"])
    @pytest.mark.allow_errors
    async def test_a_sink_that_bears_no_record_is_at_fault_itself(self, bad: str) -> None:
        """Nothing is put aside then, and the error is raised."""
        records = some(64)
        sink = Fussy(*records)
        with pytest.raises(ValueError, match="secret"):
            await write_batch(sink, records, Counters(), bad)  # type: ignore[arg-type]
        assert sink.quarantined == []

    async def test_a_store_that_is_away_is_no_matter_of_records(self) -> None:
        """Its error is raised at once: nothing is halved."""
        sink = Shelf()
        sink.failures = [StoreUnavailableError("away")]
        with pytest.raises(StoreUnavailableError):
            await write_batch(sink, some(64), Counters(), bad="quarantine")
        assert sink.asked == [64]


class TestDelivery:
    @pytest.mark.allow_errors
    def test_a_record_that_no_sink_can_write_holds_up_no_other(self) -> None:
        """It waits, shown as failing, and is stored once it can be written."""
        bad, *others = some(20)
        sink, counters = Fussy(bad), Counters()
        options = DeliveryOptions(batch_interval=0.01, first_pause=0.001, longest_pause=0.01)
        delivery = Delivery(lambda: sink, counters, options)
        for record in (bad, *others):
            delivery.submit(record)
        until(lambda: len(sink.stored) == len(others))
        assert (delivery.depth, delivery.failing_for > 0) == (1, True)
        assert counters.dropped == 0
        sink.bad.clear()
        assert delivery.flush(60)
        assert delivery.close(60)
        assert sink.stored == [*others, bad]

    def test_an_end_is_not_held_up_by_a_pause_that_the_store_asks_for(self) -> None:
        """Whoever ends it may wait less long."""
        sink = Shelf()
        sink.failures = [StoreUnavailableError("away", retry_after=300.0)]
        delivery = Delivery(lambda: sink, Counters())
        delivery.submit(a_record())
        until(lambda: delivery.failing_for > 0)
        began = time.monotonic()
        assert not delivery.close(0.01)
        assert time.monotonic() - began < 60
        assert sink.closed == 1


def until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


async def test_halves_are_written_in_order() -> None:
    """A batch whose every item is bad is tried item by item, the first one first."""
    from otel_audit.delivery.halving import write_by_halves

    tried: list[list[int]] = []
    found: list[int] = []

    async def write(items: Sequence[int]) -> str | None:
        await asyncio.sleep(0)
        tried.append(list(items))
        return "bad" if any(item % 2 for item in items) else None

    async def refuse(item: int, why: str) -> None:
        assert why == "bad"
        found.append(item)

    await write_by_halves([0, 2, 1, 4], write, refuse)
    assert tried == [[0, 2, 1, 4], [0, 2], [1, 4], [1], [4]]
    assert found == [1]
