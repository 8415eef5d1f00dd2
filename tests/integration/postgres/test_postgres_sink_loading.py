"""Large batches go by COPY, small ones by one statement: whichever it is, the store is the same."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import uuid

import asyncpg
import msgspec
import pytest
from otel_audit_postgres import PostgresSink, copy_load, init, record_from_payload, row_feed
from otel_audit_postgres import sink as sink_module
from otel_audit_postgres.batch_insert import INSERT, parameters
from otel_audit_postgres.copy_load import SMALLEST_LOAD
from otel_audit_postgres.rows import COLUMNS, projections, to_row
from strategies import a_record

from otel_audit._util import ratelimited_log
from otel_audit._util.ids import conflict_id, uuid7
from otel_audit.delivery.sink import Written
from otel_audit.errors import StoreUnavailableError
from otel_audit.record import Actor, Change, Received, Source, Tenant

LARGE = SMALLEST_LOAD * 3
TABLE = "pg_temp.otel_audit_batch"


@pytest.fixture
async def writer_dsn(postgres, audit_store):
    """A role that may do what `init --roles` allows a writer, and is bound by row-level security."""
    role = f"loading_{uuid.uuid4().hex[:8]}"
    await postgres.execute(f"CREATE ROLE {role} LOGIN")
    await init(audit_store, roles=True, writer=role)
    yield postgres.dsn(name_of(audit_store), role)
    await postgres.execute(f"DROP OWNED BY {role}", database=name_of(audit_store))
    await postgres.execute(f"DROP ROLE {role}")


@pytest.fixture
async def sink(writer_dsn):
    ratelimited_log.forget()
    sink = PostgresSink(writer_dsn)
    yield sink
    await sink.close()


def name_of(dsn):
    return dsn.partition("?")[0].rpartition("/")[2]


def new_record(**fields):
    return a_record(record_id=uuid7(), **fields)


def a_batch(size=LARGE):
    return [new_record(sequence_number=number) for number in range(size)]


async def stored(admin):
    return await admin.fetchval("SELECT count(*) FROM audit.audit_logs")


async def leaves_nothing(sink):
    """See that what a batch was staged in, if anything, is empty."""
    await loads(sink)


async def loads(sink):
    """Whether the sink's connection has a table to load into; nothing may be left in it."""
    connection = sink._connection
    if await connection.fetchval(f"SELECT to_regclass('{TABLE}')") is None:
        return False
    assert await connection.fetchval(f"SELECT count(*) FROM {TABLE}") == 0
    return True


@pytest.mark.parametrize("size", [SMALLEST_LOAD - 1, SMALLEST_LOAD, LARGE])
class TestBothWays:
    async def test_store_the_same_rows(self, sink, admin, size):
        """Every column is what follows from the payload, whatever the texts are like."""
        batch = a_batch(size - 3)
        batch += [
            new_record(
                tenant=Tenant(id="ä\x00\ud800"),
                actor=Actor(id='"\\{},\t\n', type="user"),
                changes=tuple(
                    Change(operation="insert", entity='E"\\,{}', table="t", key={"id": key})
                    for key in ('"', "\\", "{", ",", "NULL", "", " ", "\x00")
                ),
            ),
            new_record(occurred_at=-(10**18), duration=2**200, metadata={"n": 10**100}),
            new_record(received=Received(by="shop", hash="ab" * 32)),
        ]
        assert await sink.write(batch) == Written(stored=size)
        await leaves_nothing(sink)
        rows = await admin.fetch("SELECT * FROM audit.audit_logs")
        assert len(rows) == size
        for row in rows:
            expected = projections(row["payload"])
            expected["payload"] = expected["payload"].decode()
            assert {name: row[name] for name in expected} == expected
        assert [bytes(row["received_hash"]) for row in rows if row["received_by"]] == [b"\xab" * 32]

    async def test_store_once_what_comes_twice(self, sink, admin, size):
        """Again, within one batch, and beside new ones."""
        batch = a_batch(size)
        assert await sink.write(batch) == Written(stored=size)
        assert await sink.write(batch) == Written(stored=size)
        assert await sink.write([*batch, *batch, new_record()]) == Written(stored=2 * size + 1)
        assert await stored(admin) == size + 1

    async def test_store_another_record_under_a_known_id_beside_it(self, sink, admin, size):
        """Also where the other one is in the same batch; and once, however often it comes."""
        batch = a_batch(size - 1)
        other = msgspec.structs.replace(batch[0], event_name="order.deleted")
        for _ in range(2):
            assert await sink.write([*batch, other]) == Written(stored=size, conflicts=1)
        (row,) = await admin.fetch(
            "SELECT * FROM audit.audit_logs WHERE entities @> $1",
            [f"audit.record:{other.record_id}"],
        )
        there = record_from_payload(row["payload"])
        assert there.conflict_of == other.record_id
        assert str(row["id"]) == there.record_id != other.record_id
        assert str(row["id"])[:18] == other.record_id[:18]
        assert msgspec.structs.replace(there, record_id=other.record_id, conflict_of=None) == other
        assert {name: row[name] for name in ("entities", "event_name")} == {
            "entities": list(there.entities), "event_name": "order.deleted",
        }  # fmt: skip
        assert await admin.fetchval("SELECT count(*) FROM audit.quarantine") == 0
        assert await stored(admin) == size

    async def test_store_the_true_record_where_its_next_id_is_taken_too(self, sink, admin, size):
        """Whoever knows all of a record beforehand can take more ids than one."""
        batch = a_batch(size - 1)
        other = msgspec.structs.replace(batch[0], event_name="order.deleted")
        next_id = conflict_id(other.record_id, to_row(other).content_hash.hex(), "1")
        squatter = msgspec.structs.replace(batch[0], record_id=next_id, event_name="x.y")

        written = await sink.write([squatter, *batch, other])

        assert written == Written(stored=size + 1, conflicts=1)
        assert await stored(admin) == size + 1

    async def test_take_no_mark_of_a_conflict_from_others(self, sink, admin, size):
        """Only the sink says that a record's id was another's."""
        batch = a_batch(size)
        batch[0] = msgspec.structs.replace(batch[0], conflict_of=batch[0].record_id)
        assert await sink.write(batch) == Written(stored=size)
        query = "SELECT count(*) FROM audit.audit_logs WHERE payload->>'conflict_of' IS NOT NULL"
        assert await admin.fetchval(query) == 0

    async def test_find_what_the_server_refuses(self, sink, admin, size):
        """A record that is no JSON is in quarantine, all others are stored."""
        bad = new_record(metadata={"x": msgspec.Raw(b"{")})
        batch = a_batch(size - 1)
        batch.insert(size // 3, bad)
        assert await sink.write(batch) == Written(stored=size - 1, quarantined=1)
        assert await stored(admin) == size - 1
        row = await admin.fetchrow("SELECT * FROM audit.quarantine")
        assert row["record_id"] == bad.record_id
        assert "22P02" in row["reason"]

    @pytest.mark.parametrize(
        "wrong",
        [
            {"action_id": 5},
            {"span_id": 5},
            {"schema_version": 5},
            {"outcome": ["success"]},
            {"event_name": ("order.created",)},
            {"span_id": []},
            {"source": Source(address=5)},
            {"actor": None},
            {"resource": None},
        ],
        ids=str,
    )
    async def test_find_what_cannot_be_sent(self, sink, admin, size, wrong):
        """A value of a wrong type costs its own record only, and the connection goes on."""
        bad = new_record(**wrong)
        batch = a_batch(size - 1)
        batch.insert(size // 3, bad)
        await sink.check()
        connection = sink._connection
        assert await sink.write(batch) == Written(stored=size - 1, quarantined=1)
        assert await sink.write(a_batch(size)) == Written(stored=size)
        assert await stored(admin) == 2 * size - 1
        assert sink._connection is connection
        await leaves_nothing(sink)
        assert await admin.fetchval("SELECT record_id FROM audit.quarantine") == bad.record_id

    async def test_take_no_id_of_another_tenant_from_others(self, sink, admin, size):
        """What was received is held against all that is stored."""
        first = new_record(tenant=Tenant(id="acme"))
        await sink.write([first])
        forged = msgspec.structs.replace(first, tenant=Tenant(id="evil"))
        became = await sink.accept([*a_batch(size), forged])
        assert became.refused == []
        assert [item.record_id for item in became.conflicts] == [first.record_id]
        assert became.conflicts[0].stored_as != first.record_id
        assert await stored(admin) == size + 2

    async def test_leave_nothing_half_done_when_cancelled(self, sink, admin, size):
        """What was cut short is never half there, and can be written again."""
        batch = a_batch(size)
        await sink.check()
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute("LOCK TABLE audit.audit_logs IN ACCESS EXCLUSIVE MODE")
        writing = asyncio.create_task(sink.write(batch))
        await until_it_waits(admin)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await transaction.rollback()
        # the server may get the lock before it is asked to stop: then all of it is stored
        assert await stored(admin) in (0, size)
        for _ in range(2):
            assert await sink.write(batch) == Written(stored=size)
        assert await stored(admin) == size

    async def test_begin_anew_on_another_connection(self, sink, admin, size):
        """Cut between two writes and within one: no record is lost, none is there twice."""
        assert await sink.write(a_batch(size)) == Written(stored=size)
        await cut(admin)
        async with asyncio.timeout(20):
            while not sink._connection.is_closed():  # noqa: ASYNC110 - until the end is read
                await asyncio.sleep(0.01)
        assert await sink.write(a_batch(size)) == Written(stored=size)
        await leaves_nothing(sink)
        batch = a_batch(size)
        async with admin.transaction():
            await admin.execute("LOCK TABLE audit.audit_logs IN ACCESS EXCLUSIVE MODE")
            writing = asyncio.create_task(sink.write(batch))
            await until_it_waits(admin)
            await cut(admin)
            with pytest.raises(StoreUnavailableError):
                await writing
        assert await sink.write(batch) == Written(stored=size)
        assert await stored(admin) == 3 * size


class TestFeeding:
    """A large batch is sent while its rows are made."""

    async def test_what_another_connection_inserts_meanwhile_is_there_once(
        self, sink, admin, caplog
    ):
        """Its row is not committed when the batch is looked up, and is when the batch goes in."""
        batch = a_batch()
        async with admin.transaction():
            await admin.execute(INSERT, *parameters([to_row(batch[5])]))
            writing = asyncio.create_task(sink.write(batch))
            await until_it_waits(admin)
        assert await writing == Written(stored=LARGE)
        assert await stored(admin) == LARGE
        assert await sink.write(a_batch()) == Written(stored=LARGE)
        assert await loads(sink)
        assert "pooled" not in caplog.text

    async def test_another_record_that_comes_meanwhile_keeps_its_id(self, sink, admin):
        """The batch's own record of that id is stored beside it."""
        batch = a_batch()
        other = msgspec.structs.replace(batch[5], event_name="order.deleted")
        async with admin.transaction():
            await admin.execute(INSERT, *parameters([to_row(other)]))
            writing = asyncio.create_task(sink.write(batch))
            await until_it_waits(admin)
        assert await writing == Written(stored=LARGE, conflicts=1)
        assert await stored(admin) == LARGE + 1

    @pytest.mark.parametrize("end", ["cut", "cancel"])
    async def test_an_end_while_rows_are_made_loses_none_and_doubles_none(
        self, sink, admin, monkeypatch, end
    ):
        """The connection ends, or the task, when half of the batch is on its way."""
        batch = a_batch()
        await sink.check()
        server, made = sink._connection.get_server_pid(), []

        def ends_half_way(record, *, to_copy):
            made.append(record)
            if len(made) == LARGE // 2:
                os.kill(server, signal.SIGTERM) if end == "cut" else writing.cancel()
            return to_row(record, to_copy=to_copy)

        monkeypatch.setattr(row_feed, "to_row", ends_half_way)
        writing = asyncio.create_task(sink.write(batch))
        with pytest.raises(StoreUnavailableError if end == "cut" else asyncio.CancelledError):
            await writing
        assert await stored(admin) == 0
        for _ in range(2):
            assert await sink.write(batch) == Written(stored=LARGE)
        assert await stored(admin) == LARGE

    async def test_two_writers_of_the_same_records_store_each_once(self, sink, writer_dsn, admin):
        """In the same moment, in the opposite order: whoever is refused writes again."""
        other = PostgresSink(writer_dsn)
        batch = a_batch()

        async def write(one, records):
            while True:
                try:
                    return await one.write(records)
                except StoreUnavailableError:
                    continue

        for written in await asyncio.gather(write(sink, batch), write(other, batch[::-1])):
            assert written == Written(stored=LARGE)
        await other.close()
        assert await stored(admin) == LARGE

    async def test_a_batch_goes_in_several_parts(self, sink, admin, monkeypatch):
        """No statement carries more than it should, and one that is refused costs no other part."""
        monkeypatch.setattr(sink_module, "LARGEST_STATEMENT", 20_000)
        bad = new_record(metadata={"x": msgspec.Raw(b"{")})
        batch = [*a_batch(), bad, *a_batch()]
        assert await sink.write(batch) == Written(stored=2 * LARGE, quarantined=1)
        parts = await admin.fetchval("SELECT count(DISTINCT xmin::text) FROM audit.audit_logs")
        assert parts > 5
        assert await stored(admin) == 2 * LARGE

    async def test_a_record_that_no_row_can_hold_is_quarantined(self, sink, admin):
        """It is found while the others are on their way."""
        unfit = new_record(metadata={"x": msgspec.Raw(b'"\\u0000" {')})
        batch = [*a_batch(), unfit, *a_batch()]
        assert await sink.write(batch) == Written(stored=2 * LARGE, quarantined=1)
        assert await stored(admin) == 2 * LARGE
        assert await admin.fetchval("SELECT record_id FROM audit.quarantine") == unfit.record_id


class TestWhereLoadingDoesNotWork:
    async def test_the_right_to_temporary_tables_is_not_needed(
        self, sink, admin, postgres, audit_store, caplog
    ):
        """It is tried once for a connection, said once, and everything is stored."""
        await postgres.execute(f"REVOKE TEMPORARY ON DATABASE {name_of(audit_store)} FROM PUBLIC")
        await sink.check()
        connection, sent = sink._connection, []
        connection.add_query_logger(lambda query: sent.append(query.query))
        with caplog.at_level(logging.INFO):
            for _ in range(3):
                assert await sink.write(a_batch()) == Written(stored=LARGE)
        assert await stored(admin) == 3 * LARGE
        assert sink._connection is connection
        assert sum("CREATE TEMPORARY TABLE" in query for query in sent) == 1
        said = [line for line in caplog.messages if "TEMPORARY" in line]
        assert len(said) == 1
        assert "42501" in said[0]

    async def test_a_server_that_refuses_the_table_itself_is_no_record_s_fault(
        self, sink, admin, monkeypatch, caplog
    ):
        """Where pages are smaller a row of the table cannot be as long: said once, all is stored."""
        wrong = copy_load._CREATE.replace("8160", "8161")
        monkeypatch.setattr(copy_load, "_CREATE", wrong)
        await sink.check()
        sent = []
        sink._connection.add_query_logger(lambda query: sent.append(query.query))
        with caplog.at_level(logging.INFO):
            for _ in range(2):
                assert await sink.write(a_batch()) == Written(stored=LARGE)
        assert await stored(admin) == 2 * LARGE
        assert sent.count(wrong) == 1
        assert "22023" in caplog.text

    @pytest.mark.parametrize("statement", [f"DROP TABLE {TABLE}", "DISCARD ALL"])
    async def test_the_table_may_vanish(self, sink, admin, caplog, statement):
        """As behind a proxy that hands the next transaction to another backend."""
        assert await sink.write(a_batch()) == Written(stored=LARGE)
        connection = sink._connection
        await connection.execute(statement)
        with caplog.at_level(logging.INFO):
            for _ in range(2):
                assert await sink.write(a_batch()) == Written(stored=LARGE)
        assert await stored(admin) == 3 * LARGE
        assert sink._connection is connection
        assert not await loads(sink)
        assert "pooled by transaction" in caplog.text

    async def test_a_bad_record_is_found_all_the_same(self, sink, admin):
        """In the batch that finds out that the table is gone."""
        await sink.write(a_batch())
        await sink._connection.execute(f"DROP TABLE {TABLE}")
        batch = [*a_batch(), new_record(metadata={"x": msgspec.Raw(b"{")}), new_record(span_id=5)]
        assert await sink.write(batch) == Written(stored=LARGE, quarantined=2)
        assert await stored(admin) == 2 * LARGE

    async def test_a_table_of_that_name_is_not_used(self, sink, admin):
        """One that this sink did not make, as on a backend that a proxy shares out."""
        await sink.check()
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS)
        await sink._connection.execute(f"CREATE TEMPORARY TABLE otel_audit_batch ({columns})")
        assert await sink.write(a_batch()) == Written(stored=LARGE)
        assert await stored(admin) == LARGE
        assert await loads(sink)  # it is there, and empty

    async def test_the_next_attempt_after_a_break_goes_the_plain_way(self, sink, admin):
        """What breaks connections each time would else hold up the records for ever."""
        await sink.check()
        sink._statement_timeout = sink._loader._timeout = 0.5
        async with admin.transaction():
            await admin.execute("LOCK TABLE audit.audit_logs IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreUnavailableError, match="in time"):
                await asyncio.wait_for(sink.write(a_batch()), 10)
        sink._statement_timeout = 30
        assert await sink.write(a_batch()) == Written(stored=LARGE)
        assert not await loads(sink)
        assert await sink.write(a_batch()) == Written(stored=LARGE)
        assert await loads(sink)
        assert await stored(admin) == 2 * LARGE


class TestNames:
    async def test_no_other_table_stands_in(self, sink, admin):
        """Neither a temporary table nor one that the search_path finds first."""
        await admin.execute(
            "CREATE TABLE public.otel_audit_batch (LIKE audit.audit_logs INCLUDING DEFAULTS); "
            "GRANT ALL ON public.otel_audit_batch TO PUBLIC"
        )
        await sink.check()
        await sink._connection.execute(
            "CREATE TEMPORARY TABLE audit_logs (LIKE audit.schema_version); "
            "CREATE TEMPORARY TABLE text (x int); SET search_path = public, pg_temp"
        )
        assert await sink.write(a_batch()) == Written(stored=LARGE)
        assert await loads(sink)
        assert await stored(admin) == LARGE
        assert await admin.fetchval("SELECT count(*) FROM public.otel_audit_batch") == 0

    async def test_a_load_is_durable_when_it_returns(self, writer_dsn, admin):
        """Also for a role that commits asynchronously by default."""
        role = writer_dsn.partition("://")[2].partition("@")[0]
        await admin.execute(f"ALTER ROLE {role} SET synchronous_commit = off")
        sink = PostgresSink(writer_dsn)
        assert await sink.write(a_batch()) == Written(stored=LARGE)
        assert await loads(sink)
        assert await sink._connection.fetchval("SHOW synchronous_commit") == "on"
        await sink.close()


async def until_it_waits(admin):
    """Until our own backend waits for a lock that the admin holds."""
    async with asyncio.timeout(20):
        while not await admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND application_name = 'otel-audit' AND datname = current_database()"
        ):
            await admin.execute("SELECT pg_stat_clear_snapshot()")
            await asyncio.sleep(0.01)


async def cut(admin):
    """Terminate our own backends of this database, and wait until they are gone."""
    await admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE application_name = 'otel-audit' AND datname = current_database()"
    )


async def test_another_version_of_the_driver_costs_no_record(sink, admin, monkeypatch):
    """COPY is made of what the driver keeps for itself: where that is another, there is none."""
    monkeypatch.setattr(asyncpg.Connection, "_copy_in", lambda self, statement: None)
    assert await sink.write(a_batch(LARGE)) == Written(stored=LARGE)
    assert await stored(admin) == LARGE
