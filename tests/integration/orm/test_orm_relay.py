"""From the outbox to the store: several relays, a store that is away, entries that are none."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import time
import uuid

import asyncpg
import msgspec
import preloaded
import pytest
from acceptance.servers import BIN
from otel_audit_postgres import PostgresSink
from otel_audit_postgres.outbox import PostgresOutbox, init_outbox, inspect_outbox
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.delivery.batch_size import BatchSize
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.outbox_relay import Relay, RelayOptions, relay_all
from otel_audit.delivery.sink import Written
from otel_audit.errors import StoreError, StoreUnavailableError

_INSERT = "INSERT INTO audit.outbox (record_id, record) VALUES ($1, $2)"


@pytest.fixture
async def outbox(database: str) -> str:
    """A database with an outbox; its DSN."""
    await init_outbox(database)
    return database


async def fill(dsn: str, count: int) -> list[str]:
    connection = await asyncpg.connect(dsn)
    records = [a_record(record_id=uuid7()) for _ in range(count)]
    rows = [(one.record_id, msgspec.json.encode(one).decode()) for one in records]
    await connection.executemany(_INSERT, rows)
    await connection.close()
    return [one.record_id for one in records]


async def left(dsn: str) -> int:
    return (await fetch(dsn, "SELECT count(*) FROM audit.outbox"))[0][0]


async def stored(dsn: str) -> list[str]:
    return [str(row[0]) for row in await fetch(dsn, "SELECT id FROM audit.audit_logs ORDER BY id")]


async def fetch(dsn: str, statement: str):
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(statement)
    finally:
        await connection.close()


async def relayed(outbox_dsn: str, store: str, most: int = 50) -> Counters:
    counters = Counters()
    outbox, sink = PostgresOutbox(outbox_dsn), PostgresSink(store)
    try:
        await relay_all(outbox, sink, counters, BatchSize(most, 10**7))
    finally:
        await outbox.close()
        await sink.close()
    return counters


class TestRelaying:
    async def test_everything_once(self, outbox, audit_store):
        """What waits is stored, and gone from the outbox."""
        ids = await fill(outbox, 120)
        counters = await relayed(outbox, audit_store)
        assert await stored(audit_store) == sorted(ids)
        assert await left(outbox) == 0
        assert counters.relayed == 120

    async def test_several_at_once(self, outbox, audit_store):
        """Relays share the work without a leader; nobody waits for another's rows."""
        ids = await fill(outbox, 300)
        done = await asyncio.gather(*(relayed(outbox, audit_store, 10) for _ in range(5)))
        assert await stored(audit_store) == sorted(ids)
        assert sum(counters.relayed for counters in done) == 300
        assert sum(counters.relayed > 0 for counters in done) > 1

    async def test_again_after_dying_before_the_delete(self, outbox, audit_store):
        """A record that the store has already is stored once."""
        (record_id,) = await fill(outbox, 1)
        rows = await fetch(outbox, "SELECT record_id, record FROM audit.outbox")
        await relayed(outbox, audit_store)
        connection = await asyncpg.connect(outbox)
        await connection.execute(_INSERT, *rows[0])
        await connection.close()
        counters = await relayed(outbox, audit_store)
        assert await stored(audit_store) == [record_id]
        assert (counters.relayed, counters.quarantined) == (1, 0)
        assert await left(outbox) == 0

    async def test_locked_rows_are_skipped(self, outbox, audit_store):
        """Rows that another relay has in hand are left to it; they come back if it dies."""
        await fill(outbox, 20)
        other = await asyncpg.connect(outbox)
        transaction = other.transaction()
        await transaction.start()
        await other.fetch(
            "SELECT FROM audit.outbox ORDER BY record_id LIMIT 15 FOR UPDATE SKIP LOCKED"
        )
        await relayed(outbox, audit_store)
        assert await left(outbox) == 15
        other.terminate()
        while await left(outbox):
            await relayed(outbox, audit_store)
        assert len(await stored(audit_store)) == 20

    async def test_large_records(self, outbox, audit_store):
        """No more is taken at once than fits; a record that is larger goes alone."""
        ids = await fill(outbox, 30)
        taken = []

        class Seeing(PostgresSink):
            async def write(self, records):
                taken.append(len(records))
                return await super().write(records)

        box, sink = PostgresOutbox(outbox), Seeing(audit_store)
        await relay_all(box, sink, Counters(), BatchSize(512, 1000))
        await box.close()
        await sink.close()
        assert await stored(audit_store) == sorted(ids)
        assert max(taken) < 10

    async def test_nothing_is_locked_while_the_store_is_written(self, outbox, audit_store):
        """No transaction is open, and no row locked, however long the store takes."""
        ids = await fill(outbox, 20)
        seen = []

        class Looking(PostgresSink):
            async def write(self, records):
                seen.append(
                    await fetch(
                        outbox,
                        "SELECT state, backend_xmin, backend_xid FROM pg_stat_activity WHERE "
                        "application_name = 'otel-audit' AND datname = current_database()",
                    )
                )
                await fetch(outbox, "SELECT FROM audit.outbox FOR UPDATE NOWAIT")
                return await super().write(records)

        box, sink = PostgresOutbox(outbox), Looking(audit_store)
        await relay_all(box, sink, Counters())
        await box.close()
        await sink.close()
        assert await stored(audit_store) == sorted(ids)
        assert [tuple(row) for rows in seen for row in rows] == [("idle", None, None)]

    async def test_with_a_limit_on_idle_transactions(self, postgres, outbox, audit_store):
        """A store that takes longer than the application's database lets a transaction idle."""
        name = outbox.partition("?")[0].rpartition("/")[2]
        await postgres.execute(
            f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '100ms'"
        )
        await fill(outbox, 5)

        class Slow(PostgresSink):
            async def write(self, records):
                await asyncio.sleep(0.5)
                return await super().write(records)

        box, sink = PostgresOutbox(outbox), Slow(audit_store)
        assert await relay_all(box, sink, Counters()) == 5
        await box.close()
        await sink.close()
        assert await left(outbox) == 0

    async def test_claims_end_with_their_relay(self, outbox, audit_store):
        """What a relay had in hand when it died is taken by the next one, at once."""
        await fill(outbox, 10)
        dead = PostgresOutbox(outbox)
        assert len(await dead.take(10, 10**6)) == 10
        other = PostgresOutbox(outbox)
        assert await other.take(10, 10**6) == []
        dead._connection.terminate()
        async with asyncio.timeout(30):
            while not await other.take(10, 10**6):  # noqa: ASYNC110 - another's
                await asyncio.sleep(0.02)
        await other.close()
        await dead.close()

    async def test_an_outbox_of_before_claims(self, outbox, audit_store, caplog):
        """It is relayed as it is, and the remedy is said; init adds what is missing."""
        await fetch(outbox, "ALTER TABLE audit.outbox DROP claimed_by, DROP claimed_until")
        assert "cannot claim records" in (await inspect_outbox(outbox))[0].detail
        ids = await fill(outbox, 7)
        await relayed(outbox, audit_store)
        assert await stored(audit_store) == sorted(ids)
        assert await left(outbox) == 0
        assert "init --outbox" in caplog.text
        await init_outbox(outbox)
        await fill(outbox, 2)
        box = PostgresOutbox(outbox)
        assert len(await box.take(10, 10**6)) == 2
        assert await box.take(10, 10**6) == []
        await box.close()

    async def test_what_the_store_refuses_holds_up_nothing(self, outbox, audit_store):
        """Sound records that a fault of the store keeps out stay in the outbox, others leave."""
        ids = await fill(outbox, 6)
        await fetch(
            audit_store,
            f"ALTER TABLE audit.audit_logs ADD CONSTRAINT mine CHECK (id <> '{ids[0]}')",
        )
        with pytest.raises(StoreError, match="mine"):
            await relayed(outbox, audit_store, 2)
        assert await stored(audit_store) == sorted(ids[1:])
        assert await left(outbox) == 1
        await fetch(audit_store, "ALTER TABLE audit.audit_logs DROP CONSTRAINT mine")
        await fetch(outbox, "UPDATE audit.outbox SET claimed_until = NULL")
        await relayed(outbox, audit_store)
        assert await left(outbox) == 0


class TestPoison:
    async def test_what_is_no_record(self, outbox, audit_store):
        """It is put aside with the reason, and holds up nothing."""
        ids = await fill(outbox, 3)
        connection = await asyncpg.connect(outbox)
        foreign = a_record(record_id=uuid7())
        for record_id, text in (
            (uuid.uuid4(), "not JSON"),
            (uuid.uuid4(), '{"record_id": "x"}'),
            (uuid.uuid4(), msgspec.json.encode(foreign).decode()),
            (uuid.uuid4(), "[" * 100_000),
        ):
            await connection.execute(_INSERT, record_id, text)
        await connection.close()
        counters = await relayed(outbox, audit_store)
        assert await stored(audit_store) == sorted(ids)
        assert await left(outbox) == 0
        assert counters.quarantined == 4
        reasons = await fetch(audit_store, "SELECT reason FROM audit.quarantine")
        assert len(reasons) == 4

    @pytest.mark.allow_errors
    async def test_a_record_that_the_sink_cannot_bear(self, outbox):
        """The others of its batch arrive, and it is put aside."""
        ids = await fill(outbox, 5)
        sink = Fussy(poison=ids[2])
        box = PostgresOutbox(outbox)
        counters = Counters()
        await relay_all(box, sink, counters)
        await box.close()
        assert sorted(sink.taken) == sorted(set(ids) - {ids[2]})
        assert sink.put_aside == [ids[2]]
        assert await left(outbox) == 0
        assert (counters.relayed, counters.quarantined) == (4, 1)


class Fussy:
    """A sink that raises for one record, and, if so told, is away for a while."""

    def __init__(self, poison: str = "", away: int = 0) -> None:
        self.poison, self.away = poison, away
        self.taken: list[str] = []
        self.put_aside: list[str] = []

    async def check(self):
        return None

    async def write(self, records):
        if self.away:
            self.away -= 1
            raise StoreUnavailableError("away")
        ids = [one.record_id for one in records]
        if self.poison in ids:
            raise RuntimeError("cannot bear it")
        self.taken += ids
        return Written(stored=len(ids))

    async def quarantine(self, refused):
        self.put_aside += [one.record_id for one in refused]

    async def close(self):
        return None


async def until(met) -> None:
    deadline = time.monotonic() + 60
    while not met() and time.monotonic() < deadline:  # noqa: ASYNC110 - a thread is watched
        await asyncio.sleep(0.02)
    assert met()


class TestThread:
    async def test_store_that_is_away(self, outbox, caplog):
        """It is tried again until it is back; meanwhile the backlog shows."""
        ids = await fill(outbox, 4)
        sink = Fussy(away=3)
        counters = Counters()
        options = RelayOptions(interval=0.05, first_pause=0.01)
        relay = Relay(lambda: PostgresOutbox(outbox), lambda: sink, counters, options)
        relay.start()
        assert await asyncio.to_thread(relay.flush, 60)
        assert sorted(sink.taken) == sorted(ids)
        assert counters.retries == 3
        assert "wait in the outbox" in caplog.text
        assert (relay.depth, relay.failing_for) == (0, 0)
        await asyncio.to_thread(relay.close, 5)

    async def test_the_end_of_failing_is_known_before_nothing_waits(
        self, outbox, monkeypatch, caplog
    ):
        """Who waits until the outbox is empty finds a store that takes records."""
        await fill(outbox, 4)
        options = RelayOptions(interval=0.05, first_pause=0.01)
        sink = Fussy(away=1)
        relay = Relay(lambda: PostgresOutbox(outbox), lambda: sink, Counters(), options)
        through = []

        def note_through(line: logging.LogRecord) -> bool:
            if "relayed again" in line.getMessage():
                through.append(relay._through)
            return True

        monkeypatch.setattr(caplog.handler, "filters", [note_through])
        assert await asyncio.to_thread(relay.flush, 60)
        assert through == [""]
        await asyncio.to_thread(relay.close, 5)

    async def test_what_others_leave(self, outbox):
        """It looks again and again, as other processes write too."""
        sink = Fussy()
        options = RelayOptions(interval=0.05)
        relay = Relay(lambda: PostgresOutbox(outbox), lambda: sink, Counters(), options)
        relay.start()
        await asyncio.sleep(0.3)
        ids = await fill(outbox, 2)
        await until(lambda: len(sink.taken) == 2)
        assert sorted(sink.taken) == sorted(ids)
        await asyncio.to_thread(relay.close, 5)

    async def test_backlog_is_seen(self, outbox):
        """Depth and age are there for metrics and health while the store is away."""
        await fill(outbox, 7)
        sink = Fussy(away=10_000)
        options = RelayOptions(interval=0.05, first_pause=0.01, longest_pause=0.02)
        relay = Relay(lambda: PostgresOutbox(outbox), lambda: sink, Counters(), options)
        relay.start()
        await until(lambda: relay.depth == 7 and relay.failing_for > 0)
        assert relay.oldest_age > 0
        assert not await asyncio.to_thread(relay.flush, 0.1)
        await asyncio.to_thread(relay.close, 0.1)
        assert await left(outbox) == 7


class TestCommand:
    def environment(self, outbox: str, store: str, **more: str) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
        return {**clean, "OTEL_AUDIT_DSN": store, "OTEL_AUDIT_OUTBOX_DSN": outbox, **more}

    async def run(self, outbox: str, store: str, *arguments: str):
        return await asyncio.to_thread(
            preloaded.run, *arguments, env=self.environment(outbox, store)
        )

    async def test_once(self, outbox, audit_store):
        """It brings over what waits, says how much, and ends."""
        ids = await fill(outbox, 12)
        done = await self.run(outbox, audit_store, "relay")
        assert (done.returncode, done.stdout) == (0, "relayed 12 records\n"), done.stderr
        assert await stored(audit_store) == sorted(ids)

    async def test_follow(self, outbox, audit_store):
        """It goes on until it is told to end."""
        process = subprocess.Popen(
            [BIN / "otel-audit", "relay", "--follow"],
            env=self.environment(outbox, audit_store, OTEL_AUDIT_OUTBOX_INTERVAL="0.1"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            ids = await fill(outbox, 3)
            # a record is stored before its entry leaves, and is counted with it
            async with asyncio.timeout(60):
                while await left(outbox):  # noqa: ASYNC110 - another process's doing
                    await asyncio.sleep(0.1)
            assert await stored(audit_store) == sorted(ids)
            process.send_signal(signal.SIGTERM)
            output, _ = await asyncio.to_thread(process.communicate, timeout=60)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0
        assert output.endswith("relayed 3 records\n")

    async def test_no_outbox(self, database, audit_store):
        """An error that says what to do."""
        done = await self.run(database, audit_store, "relay")
        assert done.returncode == 1
        assert "otel-audit init --outbox" in done.stderr

    async def test_making_it(self, database, audit_store):
        """`init --outbox` makes the table, and says so; `--sql` prints what it would run."""
        done = await self.run(database, audit_store, "init", "--outbox")
        assert (done.returncode, done.stdout) == (0, "table audit.outbox: created\n"), done.stderr
        assert await left(database) == 0
        printed = await self.run(
            database, audit_store, "init", "--outbox", "--sql", "--application", 'a"b'
        )
        assert 'GRANT INSERT (record_id, record) ON audit.outbox TO "a""b";' in printed.stdout
        wrong = await self.run(database, audit_store, "init", "--outbox", "--roles")
        assert wrong.returncode == 2


async def test_who_keeps_the_lock_of_its_making_is_named(database, monkeypatch):
    """Anybody can take an advisory lock: `init --outbox` says who has it, and how to end it."""
    monkeypatch.setattr(
        "otel_audit_postgres.schema.lock.PATIENCE", "SET LOCAL lock_timeout = '200ms'"
    )
    other = await asyncpg.connect(database)
    await other.execute("SELECT pg_advisory_lock(7301962839480014)")
    with pytest.raises(
        StoreUnavailableError, match=r"make the outbox.*pg_terminate_backend\(\d+\)"
    ):
        await init_outbox(database)
    await other.close()
    assert "created" in (await init_outbox(database))[0]
