"""Ids, numbers and producers of others: whoever may send can take none of them from their owner."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from otel_audit_postgres.ledger.verify.verify import verify
from otel_audit_postgres.query.gaps import ProducerStream, find_gaps
from otel_audit_postgres.sink import PostgresSink
from sinks import Sink, request, serving, span
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.cli.main import cli
from otel_audit.delivery.producer_records import ENDED, STARTED
from otel_audit.delivery.receipts import await_receipt
from otel_audit.errors import StoreUnavailableError
from otel_audit.record import Received, Tenant


@pytest.fixture(scope="module")
def senders(tmp_path_factory, shared_store) -> Iterator[tuple[Sink, Sink]]:
    """Two sinks on one store, whose tokens have two names: acme's and globex's."""
    acme, globex = tmp_path_factory.mktemp("acme"), tmp_path_factory.mktemp("globex")
    with (
        serving(acme, shared_store.dsn, token={"name": "acme", "tenant": "acme"}) as one,
        serving(globex, shared_store.dsn, token={"name": "globex", "tenant": "globex"}) as other,
    ):
        yield one, other


def numbered(producer: str, number: int, name: str = "order.created"):
    return span(
        number % 100_000 + 1, name=name, audit__producer__id=producer,
        audit__sequence__number=number, audit__record__id=uuid7(),
    )  # fmt: skip


def stream(producer: str, numbers: range | list[int], last: int) -> bytes:
    names = {1: STARTED, last: ENDED}
    return request(*(numbered(producer, n, names.get(n, "order.created")) for n in numbers))


async def streams(store, producer: str) -> dict[str | None, ProducerStream]:
    found = await find_gaps(store.dsn)
    return {one.received_by: one for one in found if one.producer_id == producer}


class TestProducer:
    async def test_nobody_fills_the_gap_of_another(self, senders, shared_store):
        """The missing number that globex sends is still missing in acme's stream."""
        acme, globex = senders
        producer = uuid7()
        acme.traces(stream(producer, [1, 2, 4, 5], 5))
        globex.traces(stream(producer, [3], 0))

        found = await streams(shared_store, producer)

        assert found["token:acme"].missing == ((3, 3),)
        assert found["token:acme"].is_first
        assert not found["token:globex"].is_first
        printed = await asyncio.to_thread(
            CliRunner().invoke, cli, ["gaps", "--dsn", shared_store.dsn]
        )
        assert printed.exit_code == 1
        assert "missing: 3" in printed.output
        assert f"warning: producer {producer} (orders, by token:globex)" in printed.output

    async def test_nobody_makes_a_gap_in_that_of_another(self, senders, shared_store):
        """A number of nine million by globex is no gap of acme's; nor has globex one by it."""
        acme, globex = senders
        producer = uuid7()
        acme.traces(stream(producer, range(1, 6), 5))
        globex.traces(stream(producer, [9_000_000], 0))

        found = await streams(shared_store, producer)

        assert (found["token:acme"].missing, found["token:acme"].highest) == ((), 5)
        assert found["token:acme"].ended
        report = await verify(shared_store.dsn)
        told = [line for line in report.warnings if producer in line]
        assert len(told) == 1
        assert "by token:globex: that id came by another credential before" in told[0]

    async def test_an_application_is_not_a_sender(self, senders, shared_store):
        """What an application writes itself has no credential, and is a stream of its own."""
        _, globex = senders
        producer = uuid7()
        sink = PostgresSink(shared_store.dsn)
        for number, name in ((1, STARTED), (2, "order.created"), (3, ENDED)):
            record = a_record(
                record_id=uuid7(), event_name=name, producer_id=producer, sequence_number=number
            )
            await sink.write([record])
        await sink.close()
        globex.traces(stream(producer, [2, 7], 0))

        found = await streams(shared_store, producer)

        assert (found[None].missing, found[None].is_first, found[None].ended) == ((), True, True)

    @pytest.mark.parametrize("number", [0, -1, -(2**63), 2**53 + 1, 2**63 - 1])
    async def test_a_number_that_none_can_have_is_left_out(
        self, shared, shared_store, actor, number
    ):
        """The record is stored, and says so; no reader has to bear the number."""
        sent = span(1, audit__actor__id=actor, audit__sequence__number=number)
        answer = shared.traces(request(sent))

        assert answer.status_code == 200
        assert b"audit.sequence.number is not from 1 to 2^53" in answer.content
        (row,) = await shared_store.rows(actor)
        assert row["sequence_number"] is None
        assert "audit.sequence.number" in str(json.loads(row["payload"])["metadata"])


class TestConflicts:
    async def test_verify_and_gaps_name_them(self, senders, shared_store):
        """Who wrote both, and which: in the report, in the warnings, in JSON."""
        acme, globex = senders
        record_id, producer = uuid7(), uuid7()
        globex.traces(request(span(1, audit__record__id=record_id, name="weather.checked")))
        acme.traces(request(span(
            2, audit__record__id=record_id, audit__producer__id=producer,
            audit__sequence__number=1,
        )))  # fmt: skip

        report = await verify(shared_store.dsn)

        (beside,) = [one for one in report.conflicts if one.conflict_of == record_id]
        assert (beside.received_by, beside.producer) == ("token:acme", producer)
        assert (beside.is_taken, beside.other_received_by) == (True, "token:globex")
        assert report.ok
        assert any("came under ids that other records have" in line for line in report.warnings)
        assert record_id in json.dumps(report.as_json()["conflicts"])
        assert (await streams(shared_store, producer))["token:acme"].conflicts == 1
        printed = await asyncio.to_thread(
            CliRunner().invoke, cli, ["gaps", "--dsn", shared_store.dsn]
        )
        assert f"warning: producer {producer} (orders, by token:acme): 1" in printed.output

    async def test_the_same_id_for_another_tenant_is_marked_in_process_too(self, shared_store):
        sink = PostgresSink(shared_store.dsn)
        record_id = uuid7()
        mine = a_record(record_id=record_id, tenant=Tenant(id="acme"))
        other = a_record(record_id=record_id, tenant=Tenant(id="globex"))

        assert (await sink.write([other])).conflicts == 0
        assert (await sink.write([mine])).conflicts == 1
        # delivered again, both are what they are
        assert (await sink.write([other])).conflicts == 0
        await sink.close()

        rows = await shared_store.fetch(
            "SELECT tenant_id, payload->>'conflict_of' AS beside FROM audit.audit_logs "
            "WHERE payload->>'conflict_of' = $1 OR id::text = $1 ORDER BY tenant_id",
            record_id,
        )
        assert [tuple(row) for row in rows] == [("acme", record_id), ("globex", None)]


class TestReceipt:
    async def receipt(self, dsn: str, record_id: str, *, pending: int = 0, patience: float = 10):
        return await await_receipt(
            lambda: PostgresSink(dsn), lambda: None, record_id, patience, lambda: pending
        )

    @pytest.mark.parametrize("received", [None, Received(by="token:globex", hash="0" * 64)])
    async def test_it_is_never_of_what_another_has_stored_under_that_id(
        self, shared_store, received
    ):
        """Ours is stored beside it, and that is what the receipt is of."""
        squatter = a_record(event_name="weather.checked", received=received)
        ours = a_record(record_id=squatter.record_id)
        theirs, sink = PostgresSink(shared_store.dsn), PostgresSink(shared_store.dsn)
        if received is None:
            await _as_another_process(theirs, squatter)
        else:
            await theirs.accept([squatter])
        # ours is under way: what is there is not vouched for
        with pytest.raises(StoreUnavailableError):
            await self.receipt(shared_store.dsn, ours.record_id, pending=1, patience=0.5)

        await sink.write([ours])
        found = await self.receipt(shared_store.dsn, ours.record_id)
        await sink.close()
        await theirs.close()

        assert found.conflict_of == ours.record_id != found.record_id
        (row,) = await shared_store.fetch(
            "SELECT event_name, content_hash FROM audit.audit_logs WHERE id = $1::uuid",
            found.record_id,
        )
        assert (row["event_name"], row["content_hash"].hex()) == (
            "order.created", found.content_hash,
        )  # fmt: skip

    async def test_what_came_over_the_network_vouches_for_nothing(self, shared_store):
        """Also of a record that this process has not written: it waits for the application's own."""
        squatter = a_record(received=Received(by="token:globex", hash="1" * 64))
        sink = PostgresSink(shared_store.dsn)
        await sink.accept([squatter])
        await sink.close()
        with pytest.raises(StoreUnavailableError):
            await self.receipt(shared_store.dsn, squatter.record_id, patience=0.5)


async def _as_another_process(sink: PostgresSink, record) -> None:
    """Store a record that this process shall not remember as its own."""
    from otel_audit.delivery import receipts

    await sink.write([record])
    receipts.WRITTEN_HERE.clear()
