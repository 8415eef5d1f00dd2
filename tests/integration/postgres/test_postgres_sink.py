"""Writing to the store: once each, durable, whatever the records and the server do."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from datetime import timedelta

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from otel_audit_postgres import PostgresSink, record_from_payload
from otel_audit_postgres import sink as sink_module
from otel_audit_postgres.connection import OwnConnection
from otel_audit_postgres.rows import LONGEST_KEY, bounded_key, projections
from postgres_servers import in_time
from strategies import a_record, records

from otel_audit._util import ratelimited_log
from otel_audit._util.ids import uuid7
from otel_audit.delivery.sink import Written
from otel_audit.errors import StoreError, StoreUnavailableError
from otel_audit.record import Actor, Body, Change, Request, Source, Target, Tenant


@pytest.fixture
async def sink(audit_store):
    ratelimited_log.forget()
    sink = PostgresSink(audit_store)
    yield sink
    await sink.close()


def new_record(**fields):
    """A record of now, so that it lands in this month's partition."""
    return a_record(record_id=uuid7(), **fields)


def raw(text):
    return msgspec.Raw(text)


class TestWrite:
    async def test_stores_the_record_whole(self, sink, admin):
        """What is in the row is the record, its hash, and what follows from it."""
        record = new_record(
            tenant=Tenant(id="acme"),
            request=Request(body=Body(content=raw(b'{"b": 1,  "a":2}'))),
            changes=(Change(operation="update", entity="Order", table="orders", key={"id": 7}),),
        )
        assert await sink.write([record]) == Written(stored=1)
        row = await admin.fetchrow("SELECT * FROM audit.audit_logs")
        assert record_from_payload(row["payload"]) == record
        assert row["content_hash"] == hashlib.sha256(row["payload"].encode()).digest()
        assert row["entities"] == ["order:7"]
        expected = projections(row["payload"])
        expected["payload"] = expected["payload"].decode()
        assert {name: row[name] for name in expected} == expected
        age = await admin.fetchval("SELECT now()") - row["recorded_at"]
        assert timedelta(seconds=-10) < age < timedelta(seconds=10)

    async def test_stores_once_what_comes_twice(self, sink, admin):
        """Delivering again is no failure and makes no second row."""
        batch = [new_record() for _ in range(20)]
        assert await sink.write(batch) == Written(stored=20)
        assert await sink.write([*batch, *batch, new_record()]) == Written(stored=41)
        assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 21

    async def test_takes_nothing_as_nothing(self, sink):
        """An empty batch needs no connection."""
        assert await PostgresSink("postgresql://127.0.0.1:1/x").write([]) == Written(stored=0)

    async def test_takes_thousands_at_once(self, sink, admin):
        """Five thousand records are one write."""
        batch = [new_record(sequence_number=number) for number in range(5000)]
        assert await sink.write(batch) == Written(stored=5000)
        assert await admin.fetchval("SELECT count(DISTINCT id) FROM audit.audit_logs") == 5000

    async def test_splits_what_is_too_large_for_one_statement(self, sink, admin, monkeypatch):
        """A batch of large records arrives in parts, complete."""
        monkeypatch.setattr(sink_module, "LARGEST_STATEMENT", 10_000)
        batch = [new_record(metadata={"note": "x" * size}) for size in (1, 4000, 30_000, 5000, 9)]
        assert await sink.write(batch) == Written(stored=5)
        assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 5

    async def test_takes_a_large_record(self, sink, admin):
        """Ten megabytes of body are a row like any other."""
        body = Body(content=raw(b'"' + b"x" * 10_000_000 + b'"'))
        assert await sink.write([new_record(request=Request(body=body))]) == Written(stored=1)
        assert await admin.fetchval("SELECT length(payload::text) > 1e7 FROM audit.audit_logs")

    @settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        max_examples=25,
    )
    @given(batch=st.lists(records(), min_size=1, max_size=20))
    async def test_brings_back_every_record(self, audit_store, batch):
        """Whatever the records are like, the store gives back the same."""
        sink = PostgresSink(audit_store)
        connection = await asyncpg.connect(audit_store)
        try:
            assert await sink.write(batch) == Written(stored=len(batch))
            rows = await connection.fetch(
                "SELECT payload, content_hash FROM audit.audit_logs WHERE id = ANY($1::uuid[])",
                [record.record_id for record in batch],
            )
        finally:
            await sink.close()
            await connection.close()
        found = {
            record.record_id: record for record in map(record_from_payload, (r[0] for r in rows))
        }
        assert found == {record.record_id: record for record in batch}
        assert all(hashlib.sha256(r[0].encode()).digest() == r[1] for r in rows)


class TestHostileContent:
    async def test_does_not_stop_a_record(self, sink, admin):
        """NUL, surrogates, endless texts and numbers: all stored, and all can be searched."""
        endless = "ä" * 100_000
        batch = [
            new_record(actor=Actor(id="\x00", type="user")),
            new_record(actor=Actor(id="\ud800\udfff", type="user")),
            new_record(request=Request(headers={"x": "\x00"}, path="/\x00", id="\udcff")),
            new_record(request=Request(body=Body(content=raw(b'"\\u0000\\ud800"')))),
            new_record(actor=Actor(id=endless, type="user"), tenant=Tenant(id=endless)),
            new_record(target=Target(type=endless, id=endless), event_name=endless),
            new_record(request=Request(id=endless, path=endless), trace_id=endless),
            new_record(source=Source(address=endless, user_agent='{"\\},{'), action=endless),
            new_record(occurred_at=2**200, duration=2**200, sequence_number=2**200),
            new_record(metadata={"n": 10**1000, "f": float("nan"), "o": object()}),
            new_record(
                changes=tuple(
                    Change(operation="insert", entity='E"\\,{}', table="t", key={"id": key})
                    for key in ('"', "\\", "{", ",", "NULL", "", " ", "\x00", endless)
                )
            ),
        ]
        assert await sink.write(batch) == Written(stored=len(batch))
        assert await admin.fetchval(
            "SELECT count(*) FROM audit.audit_logs WHERE payload->'actor'->>'id' <> '' "
            "AND coalesce(payload->'request'->'headers'->>'x', '') <> 'y'"
        ) == len(batch)
        assert (
            await admin.fetchval(
                "SELECT count(*) FROM audit.audit_logs WHERE tenant_id = $1", bounded_key(endless)
            )
            == 1
        )
        assert (
            await admin.fetchval("SELECT max(length(request_id)) FROM audit.audit_logs")
            == LONGEST_KEY
        )
        entities = await admin.fetchval(
            "SELECT entities FROM audit.audit_logs ORDER BY cardinality(entities) DESC LIMIT 1"
        )
        assert entities[:8] == [f"e:{key}" for key in ('"', "\\", "{", ",", "NULL", "", " ", "�")]

    async def test_is_kept_where_no_row_can_hold_it(self, sink, admin, caplog):
        """What the table refuses is in quarantine with its reason, and the others are stored."""
        good = [new_record() for _ in range(100)]
        bad = [
            a_record(record_id="no uuid"),
            new_record(metadata={"x": raw(b"{")}),
            new_record(metadata={"x": raw(b"\xff secret")}),
            new_record(actor=Actor(id=5, type="user")),
            new_record(metadata={"x": raw(b"[" * 50_000 + b"]" * 50_000)}),
        ]
        batch = [*good[:30], *bad[:2], *good[30:60], *bad[2:], *good[60:]]
        assert await sink.write(batch) == Written(stored=100, quarantined=5)
        rows = await admin.fetch("SELECT * FROM audit.quarantine ORDER BY reason")
        assert {row["record_id"] for row in rows} == {record.record_id for record in bad}
        assert all(row["reason"] and "order.created" in row["received"] for row in rows)
        assert "5 audit records could not be stored" in caplog.text
        assert "secret" not in caplog.text

    async def test_is_kept_once(self, sink, admin):
        """Delivering a bad record again leaves one trace of it."""
        bad = a_record(record_id="no uuid")
        for _ in range(3):
            assert await sink.write([bad]) == Written(stored=0, quarantined=1)
        assert await admin.fetchval("SELECT count(*) FROM audit.quarantine") == 1

    async def test_does_not_hide_behind_a_known_id(self, sink, admin):
        """Another record under an id that is taken is kept aside, not dropped."""
        first = new_record()
        other = msgspec.structs.replace(first, event_name="order.deleted")
        assert await sink.write([first, new_record()]) == Written(stored=2)
        assert await sink.write([first, other]) == Written(stored=2, conflicts=1)
        assert await admin.fetchval("SELECT count(*) FROM audit.quarantine") == 0


class TestFutureIds:
    """Records of a host whose clock is wrong."""

    @pytest.fixture
    def asked(self, monkeypatch):
        """What was sent to the server."""
        asked = []

        def spied(name):
            original = getattr(OwnConnection, name)

            def spying(self, query, *args, **options):
                asked.append(query)
                return original(self, query, *args, **options)

            monkeypatch.setattr(OwnConnection, name, spying)

        for name in ("execute", "fetch", "fetchval", "copy_then"):
            spied(name)
        return asked

    @staticmethod
    def ahead(days=400, **fields):
        return a_record(record_id=uuid7(time.time_ns() + days * 86_400 * 10**9), **fields)

    @pytest.mark.parametrize("count", [1, 5, 400])
    async def test_cost_as_many_statements_as_one(self, sink, admin, asked, count):
        """They are moved together, and none is lost or stored twice."""
        await sink.check()
        batch = [record for _ in range(count) for record in (self.ahead(), new_record())]
        asked.clear()
        written = await sink.write(batch)
        assert (written.stored, written.conflicts) == (2 * count, count)
        assert len(asked) <= 6
        assert (await sink.write(batch)).stored == 2 * count

        rows = await admin.fetch("SELECT id, payload FROM audit.audit_logs")
        assert len(rows) == 2 * count
        stored = [record_from_payload(row["payload"]) for row in rows]
        assert {record.conflict_of or record.record_id for record in stored} == {
            record.record_id for record in batch
        }
        assert max(row["id"] for row in rows) < uuid.UUID(self.ahead(days=1).record_id)

    @pytest.mark.parametrize("count", [2, 5, 400])
    @pytest.mark.parametrize("way", ["write", "accept"])
    async def test_under_one_id_are_each_stored_once(self, sink, admin, way, count):
        """What comes twice in a request is stored once, what differs is stored beside it."""
        one, other = self.ahead(), self.ahead()
        batch = [
            msgspec.structs.replace(of, event_name=f"order.{n}")
            for of in (one, other)
            for n in range(count)
            for _ in range(2)
        ]
        batch += [new_record() for _ in range(2)]
        for _ in range(2):
            if way == "write":
                written = await sink.write(batch)
                assert written == Written(stored=len(batch), conflicts=2 * count)
            else:
                accepted = await sink.accept(batch)
                assert not accepted.refused
                assert not accepted.postponed
                assert len({item.stored_as for item in accepted.conflicts}) == 2 * count
                assert len(accepted.conflicts) == 2 * count
        rows = await admin.fetch("SELECT payload FROM audit.audit_logs")
        stored = [record_from_payload(row["payload"]) for row in rows]
        assert len(stored) == 2 * count + 2
        moved = [(record.conflict_of, record.event_name) for record in stored if record.conflict_of]
        assert set(moved) == {(record.record_id, record.event_name) for record in batch[:-2]}

    async def test_that_are_refused_are_all_put_aside(self, sink, admin):
        """Also where several came under one id; one that is sound beside them is stored."""
        sound = self.ahead()
        bad = msgspec.structs.replace(sound, duration=float("inf"))
        batch = [bad, bad, msgspec.structs.replace(bad, event_name="order.1"), sound, sound]
        written = await sink.write(batch)
        assert written == Written(stored=2, quarantined=3, conflicts=1)
        assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 1

    async def test_do_not_hide_what_is_wrong_beside_them(self, sink, admin):
        """A record that no row can hold is refused, whichever of both kinds it is of."""
        fields = {"duration": float("inf")}
        batch = [self.ahead(), self.ahead(**fields), new_record(**fields), new_record()]
        row_of = {record.record_id: record for record in batch}
        written = await sink.write(batch)
        kept = await admin.fetch("SELECT record_id FROM audit.quarantine")
        stored = await admin.fetchval("SELECT count(*) FROM audit.audit_logs")
        assert (written.stored, written.quarantined) == (stored, len(kept))
        assert stored + len(kept) == len(batch)
        assert {row["record_id"] for row in kept} <= set(row_of)

    async def test_go_by_the_databases_clock(self, sink, admin, monkeypatch):
        """This host's own may be the wrong one."""
        batch = [self.ahead(days=3), new_record()]
        monkeypatch.setattr("time.time_ns", lambda: 10**9 * 86_400 * 365 * 80)
        monkeypatch.setattr("time.time", lambda: 86_400.0 * 365 * 80)
        assert (await sink.write(batch)).stored == 2
        assert await admin.fetchval(
            "SELECT bool_and(id < audit.uuid_at(now() + interval '1 day')) AND count(*) = 2 "
            "FROM audit.audit_logs"
        )


@pytest.mark.parametrize("way", ["write", "accept"])
async def test_a_refused_record_takes_no_id_from_a_sound_one(sink, admin, way):
    """Both came in one request: the second is stored, and not held as one that an index keeps out."""
    sound, taken = new_record(), new_record()
    await sink.write([taken])
    bad = msgspec.structs.replace(sound, duration=float("inf"))
    other = msgspec.structs.replace(sound, event_name="order.1")
    batch = [bad, bad, sound, sound, other, msgspec.structs.replace(taken, duration=7)]
    written = await getattr(sink, way)(batch)
    assert not written.postponed
    if way == "write":
        assert written == Written(stored=4, quarantined=2, conflicts=2)
    else:
        assert (len(written.refused), len(written.conflicts)) == (2, 2)
    stored = await admin.fetch("SELECT id FROM audit.audit_logs")
    assert len(stored) == 4
    assert uuid.UUID(sound.record_id) in {row["id"] for row in stored}


@pytest.mark.parametrize("way", ["write", "accept"])
async def test_a_record_that_no_row_can_hold_holds_up_no_other_under_its_id(sink, admin, way):
    """It came second: no other id is made for it, and the rest of the batch is stored."""
    sound = new_record()
    batch = [sound, msgspec.structs.replace(sound, duration=float("inf")), new_record()]
    written = await getattr(sink, way)(batch)
    assert not written.postponed
    assert (written.quarantined if way == "write" else len(written.refused)) == 1
    stored = await admin.fetch("SELECT id FROM audit.audit_logs")
    assert {str(row["id"]) for row in stored} == {sound.record_id, batch[2].record_id}


class TestConnection:
    async def test_is_opened_again_when_it_was_cut_between_writes(self, sink, admin):
        """A terminated backend is noticed, and nobody hears of it."""
        await sink.write([new_record()])
        await cut(admin)
        assert await sink.write([new_record()]) == Written(stored=1)
        assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 2

    async def test_is_opened_again_when_it_was_cut_within_a_write(self, sink, admin):
        """A write that is cut says that the store is away, and can be made again."""
        await sink.check()
        record = new_record()
        async with admin.transaction():
            await admin.execute("LOCK TABLE audit.audit_logs IN ACCESS EXCLUSIVE MODE")
            writing = asyncio.create_task(sink.write([record]))
            while not await admin.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND application_name = 'otel-audit' AND datname = current_database()"
            ):
                await admin.execute("SELECT pg_stat_clear_snapshot()")
            await cut(admin)
            with pytest.raises(StoreUnavailableError, match="OTEL_AUDIT_DSN"):
                await writing
        assert await sink.write([record]) == Written(stored=1)
        assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 1

    async def test_makes_partitions_day_by_day(self, one_day, sink, admin):
        """A process that runs for months has its partitions made ahead of time."""
        await sink.check()
        name = await admin.fetchval(
            "SELECT to_char(now() AT TIME ZONE 'UTC' + interval '1 month', '\"audit_logs_\"YYYY_MM')"
        )
        await admin.execute(f"DROP TABLE audit.{name}")
        await sink.write([new_record()])
        assert await admin.fetchval("SELECT to_regclass($1)", f"audit.{name}") is None
        sink._upkept_on -= timedelta(days=1)
        await sink.write([new_record()])
        assert await admin.fetchval("SELECT to_regclass($1)", f"audit.{name}") is not None

    async def test_names_itself(self, sink, admin):
        """Who looks at the server sees who is connected."""
        await sink.check()
        assert (
            await admin.fetchval(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE application_name = 'otel-audit' AND datname = current_database()"
            )
            == 1
        )

    async def test_gives_up_a_statement_in_time(self, audit_store, admin):
        """A lock that is held makes the store unavailable, not the writer hang."""
        sink = PostgresSink(audit_store, statement_timeout=1.5)
        await in_time(sink.check)
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute("LOCK TABLE audit.audit_logs IN ACCESS EXCLUSIVE MODE")
        record = new_record()
        with pytest.raises(StoreUnavailableError, match="in time"):
            await asyncio.wait_for(sink.write([record]), 30)
        await transaction.rollback()
        assert await in_time(lambda: sink.write([record])) == Written(stored=1)
        await sink.close()

    async def test_survives_being_cancelled(self, sink, admin):
        """A write that is cut short leaves a sink that can write."""
        await sink.check()
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute("LOCK TABLE audit.audit_logs IN ACCESS EXCLUSIVE MODE")
        record = new_record()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sink.write([record]), 0.2)
        await transaction.rollback()
        assert await sink.write([record]) == Written(stored=1)

    async def test_commits_durably_whatever_the_default_is(self, audit_store, admin):
        """A role that commits asynchronously by default does not do so here."""
        await admin.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', "
            "current_database()); END $$"
        )
        sink = PostgresSink(audit_store)
        await sink.check()
        connection = sink._connection
        assert await connection.fetchval("SHOW synchronous_commit") == "on"
        await sink.close()

    async def test_refuses_a_read_only_server(self, sink, admin):
        """A standby takes no records; a fail-over passes."""
        await admin.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', "
            "current_database()); END $$"
        )
        with pytest.raises(StoreUnavailableError, match="read-only"):
            await sink.check()
        with pytest.raises(StoreUnavailableError, match="read-only"):
            await sink.write([new_record()])

    async def test_is_not_traced(self, sink, monkeypatch):
        """Whatever instruments asyncpg is told to look away."""
        seen = []
        fetch = asyncpg.Connection.fetch

        async def spying(self, *args, **kwargs):
            seen.append(is_instrumentation_enabled())
            return await fetch(self, *args, **kwargs)

        monkeypatch.setattr(asyncpg.Connection, "fetch", spying)
        await sink.check()
        assert seen
        assert not any(seen)
        assert is_instrumentation_enabled()


class TestCheck:
    async def test_is_content_with_a_fresh_store(self, sink):
        """What init made passes."""
        await sink.check()

    async def test_names_the_missing_schema(self, database):
        """An empty database: the remedy is init; writing says the same."""
        sink = PostgresSink(database)
        with pytest.raises(StoreError, match="otel-audit init") as raised:
            await sink.check()
        assert not isinstance(raised.value, StoreUnavailableError)
        with pytest.raises(StoreError, match="otel-audit init"):
            await sink.write([new_record()])
        await sink.close()

    @pytest.mark.parametrize(("version", "remedy"), [(999, "upgrade otel-audit"), (0, "init")])
    async def test_names_another_version(self, sink, admin, version, remedy):
        """A schema from the future, or from the past."""
        await admin.execute("ALTER TABLE audit.schema_version DISABLE TRIGGER USER")
        await admin.execute("DELETE FROM audit.schema_version")
        await admin.execute("INSERT INTO audit.schema_version VALUES ($1, 'x')", version)
        with pytest.raises(StoreError, match=remedy):
            await sink.check()

    @pytest.mark.parametrize(
        "dsn",
        [
            "postgresql://user:hunter2@127.0.0.1:1/x",
            "postgresql:///x?host=/nowhere",
            "postgresql://u:hunter2@127.0.0.1:1,127.0.0.1:2/x",
        ],
    )
    async def test_names_a_server_that_does_not_answer(self, dsn):
        """Nobody there: the setting is named, the password is not."""
        with pytest.raises(StoreUnavailableError, match="OTEL_AUDIT_DSN") as raised:
            await PostgresSink(dsn).check()
        assert "hunter2" not in str(raised.value)

    @pytest.mark.parametrize(
        "dsn",
        [
            "mysql://u:hunter2@h/x",
            "u hunter2",
            "postgresql://u:hunter2@127.0.0.1:99999/x",
            "postgresql://u:a/hunter2@h:1/x",
        ],
    )
    async def test_names_a_dsn_that_cannot_be_read(self, dsn):
        """What cannot be a DSN is not quoted, as it may hold a password."""
        with pytest.raises(StoreError, match="OTEL_AUDIT_DSN cannot be read") as raised:
            await PostgresSink(dsn).check()
        assert "hunter2" not in str(raised.value)

    async def test_names_a_missing_database(self, postgres):
        """The server is there, the database is not."""
        with pytest.raises(StoreError, match="create it"):
            await PostgresSink(postgres.dsn("no_such_database")).check()

    async def test_names_a_role_that_is_refused(self, postgres):
        """An unknown user cannot be helped by waiting."""
        with pytest.raises(StoreError, match="user or password"):
            await PostgresSink(postgres.dsn("postgres", "nobody_of_this_name")).check()

    async def test_names_the_missing_right(self, postgres, audit_store, admin):
        """A role without rights is named, with the command that grants them."""
        await admin.execute(
            "DO $$ BEGIN CREATE ROLE stranger LOGIN; "
            "EXCEPTION WHEN duplicate_object THEN NULL; END $$"
        )
        dsn = postgres.dsn(audit_store.partition("?")[0].rpartition("/")[2], "stranger")
        for grant, missing in (
            ("SELECT 1", "USAGE"),
            ("GRANT USAGE ON SCHEMA audit TO stranger", "SELECT on audit.schema_version"),
            ("GRANT SELECT ON audit.schema_version TO stranger", "INSERT on audit.audit_logs"),
            ("GRANT INSERT ON audit.audit_logs TO stranger", "SELECT on audit.audit_logs"),
            ("GRANT SELECT ON audit.audit_logs TO stranger", "INSERT on audit.quarantine"),
        ):
            await admin.execute(grant)
            with pytest.raises(
                StoreError, match=rf"(?s){missing}.*--writer stranger|lacks a right"
            ):
                await PostgresSink(dsn).check()
        await admin.execute("GRANT INSERT ON audit.quarantine TO stranger")
        sink = PostgresSink(dsn)
        await sink.check()
        await sink.close()

    async def test_warns_where_partitions_cannot_be_made(
        self, postgres, audit_store, admin, caplog
    ):
        """Records are stored all the same; the missing right is named."""
        ratelimited_log.forget()
        await admin.execute(
            "DO $$ BEGIN CREATE ROLE unhelped LOGIN; "
            "EXCEPTION WHEN duplicate_object THEN NULL; END $$; "
            "GRANT USAGE ON SCHEMA audit TO unhelped; "
            "GRANT INSERT, SELECT ON audit.audit_logs TO unhelped"
        )
        dsn = postgres.dsn(audit_store.partition("?")[0].rpartition("/")[2], "unhelped")
        sink = PostgresSink(dsn)
        with caplog.at_level(logging.WARNING):
            assert await sink.write([new_record()]) == Written(stored=1)
        await sink.close()
        assert "EXECUTE on audit.ensure_partitions" in caplog.text


class TestClose:
    async def test_never_raises(self, sink, admin):
        """Neither before anything was opened, nor twice, nor after the server cut it."""
        await PostgresSink("postgresql://127.0.0.1:1/x").close()
        await sink.check()
        await cut(admin)
        await sink.close()
        await sink.close()

    async def test_can_be_followed_by_more(self, sink):
        """A closed sink opens again when it is needed."""
        await sink.check()
        await sink.close()
        assert await sink.write([new_record()]) == Written(stored=1)


async def cut(connection):
    """Terminate our own backends of this database, and wait until they are gone."""
    await connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE application_name = 'otel-audit' AND datname = current_database()"
    )
