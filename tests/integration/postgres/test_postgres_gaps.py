"""Finding what is missing by the numbers of the records, in a real store."""

from __future__ import annotations

import asyncio
import random
import uuid
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from click.testing import CliRunner
from otel_audit_postgres.query.gaps import ProducerStream, find_gaps
from otel_audit_postgres.sink import PostgresSink
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.cli.main import cli
from otel_audit.delivery.producer_records import ENDED, STARTED
from otel_audit.record import AuditRecord


def a_stream(count: int, *, ended: bool = True) -> list[AuditRecord]:
    """All the records of one producer."""
    producer = uuid7()
    names = [STARTED, *["order.created"] * (count - 2), ENDED if ended else "order.created"]
    return [
        a_record(
            record_id=uuid7(), event_name=name, producer_id=producer, sequence_number=number,
            resource={"service.name": "shop"},
        )
        for number, name in enumerate(names, 1)
    ]  # fmt: skip


async def store(dsn: str, records: list[AuditRecord]) -> None:
    sink = PostgresSink(dsn)
    try:
        assert (await sink.write(records)).stored == len(records)
    finally:
        await sink.close()


async def only(dsn: str) -> ProducerStream:
    (stream,) = await find_gaps(dsn)
    return stream


async def run(*arguments: str):
    return await asyncio.to_thread(CliRunner().invoke, cli, ["gaps", *arguments])


class TestFindGaps:
    async def test_a_whole_stream_has_none(self, audit_store):
        """Begun, numbered without a hole, ended: nothing to report."""
        await store(audit_store, a_stream(10))
        stream = await only(audit_store)
        assert (stream.highest, stream.missing, stream.started, stream.ended) == (
            10,
            (),
            True,
            True,
        )

    @pytest.mark.parametrize("seed", range(5))
    async def test_every_number_that_was_left_out_is_reported(self, audit_store, seed):
        """Whichever numbers are left out, below the last that is there: just those are reported."""
        chosen = random.Random(seed)
        records = a_stream(60)
        lost = set(chosen.sample(range(1, 60), chosen.randint(1, 30)))
        await store(audit_store, [r for r in records if r.sequence_number not in lost])
        stream = await only(audit_store)
        reported = {n for first, last in stream.missing for n in range(first, last + 1)}
        assert reported == lost
        assert stream.missing_count == stream.lost_at_least == len(lost)

    async def test_an_action_that_was_cut_down_may_explain_a_number(self, audit_store):
        """A record without a number makes one missing number uncertain: `at least` says so."""
        records = a_stream(5, ended=False)
        cut = msgspec.structs.replace(records[2], sequence_number=None)
        await store(audit_store, [*records[:2], cut, records[4]])
        stream = await only(audit_store)
        assert stream.missing == ((3, 4),)
        assert (stream.unnumbered, stream.lost_at_least) == (1, 1)
        assert not stream.ended

    async def test_what_comes_after_the_end_is_not_ended(self, audit_store):
        """An end that is not the last number does not count."""
        records = a_stream(4)
        late = msgspec.structs.replace(records[1], record_id=uuid7(), sequence_number=5)
        await store(audit_store, [*records, late])
        assert not (await only(audit_store)).ended

    async def test_a_time_leaves_out_what_was_before(self, audit_store):
        """With a time only later records count, and their first number is taken as it is."""
        old = datetime.now(UTC) - timedelta(days=1)
        records = a_stream(6)
        aged = [
            msgspec.structs.replace(record, record_id=uuid7(int(old.timestamp() * 1e9)))
            for record in records[:3]
        ]
        await store(audit_store, aged + records[3:])
        (stream,) = await find_gaps(audit_store, since=datetime.now(UTC) - timedelta(hours=1))
        assert (stream.missing, stream.highest, stream.started) == ((), 6, False)


class TestCommand:
    async def test_nothing_missing_is_exit_status_0(self, audit_store):
        """A whole stream: one line, and 0."""
        await store(audit_store, a_stream(3))
        result = await run("--dsn", audit_store)
        assert result.exit_code == 0
        assert (
            "1 producer: 0 numbers missing, at least 0 records lost, 0 processes" in result.output
        )

    async def test_what_is_missing_is_named(self, audit_store):
        """Numbers, producers that fell silent, and at least how many: named, and 1."""
        records = a_stream(9, ended=False)
        await store(audit_store, [r for r in records if r.sequence_number not in (3, 5, 6)])
        result = await run("--dsn", audit_store, "--quiet-after", "0")
        assert result.exit_code == 1
        assert str(uuid.UUID(records[0].producer_id)) in result.output
        assert "missing: 3, 5-6" in result.output
        assert "cut off" in result.output
        assert (
            "1 producer: 3 numbers missing, at least 3 records lost, 1 process cut" in result.output
        )

    async def test_a_process_that_lives_is_not_reported(self, audit_store):
        """A stream without an end is no fault while it was heard of lately."""
        await store(audit_store, a_stream(3, ended=False))
        assert (await run("--dsn", audit_store)).exit_code == 0

    async def test_a_store_that_is_not_there_is_named(self, audit_store):
        """A wrong DSN is one line that says what to mend."""
        result = await run("--dsn", audit_store.replace("/audit_", "/nowhere_"))
        assert result.exit_code == 1
        assert "the database that --dsn names does not exist" in result.output
