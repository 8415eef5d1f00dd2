"""Where else a person's values can be: spools, refused texts, parked events, exports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import subprocess
import time
import uuid
from typing import Any, cast

import msgspec
import pytest
from click.testing import CliRunner
from otel_audit_postgres.exports.write import write_export
from otel_audit_postgres.outbox import init_outbox
from otel_audit_postgres.personal.key_store import Subject
from otel_audit_postgres.personal.protect import key_store_from
from otel_audit_postgres.personal.reveal import ERASED
from otel_audit_postgres.query.grammar import Query
from otel_audit_postgres.retention.subject import erase, erase_all, plan_erasure
from otel_audit_postgres.sink import PostgresSink
from postgres_servers import BIN
from strategies import a_record

from otel_audit._util import ratelimited_log
from otel_audit._util.ids import uuid7
from otel_audit.cli.main import cli
from otel_audit.config import AuditConfig
from otel_audit.delivery.factory import make_delivery
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.sink import Refused
from otel_audit.delivery.spool import log
from otel_audit.errors import StoreUnavailableError
from otel_audit.record import Actor, Change, Source, Tenant, to_json
from otel_audit.runtime import sink_maker

CANARY = "canary-77ab31"
ANN = Subject("acme", "ann-17")
KEY = "5e" * 32


class Away:
    """A store that cannot be reached."""

    async def write(self, records):
        raise StoreUnavailableError("away")

    async def close(self):
        pass


@pytest.fixture
async def settings(audit_store, postgres, tmp_path, monkeypatch):
    """Settings by the environment: a store, a database of keys, a spool."""
    name = f"keys_{uuid.uuid4().hex[:12]}"
    await postgres.execute(f"CREATE DATABASE {name}")
    kek = tmp_path / "kek"
    kek.write_text(secrets.token_hex(32))
    kek.chmod(0o600)
    monkeypatch.setenv("OTEL_AUDIT_DSN", audit_store)
    monkeypatch.setenv("OTEL_AUDIT_KEYS_DSN", postgres.dsn(name))
    monkeypatch.setenv("OTEL_AUDIT_KEYS_KEK_FILE", str(kek))
    monkeypatch.setenv("OTEL_AUDIT_SPOOL_DIR", str(tmp_path / "spool"))
    return monkeypatch


@pytest.fixture
async def keys(settings):
    store = key_store_from(AuditConfig())
    await store.init()
    yield store
    await store.close()


def personal(**values):
    return a_record(
        **{
            "record_id": uuid7(), "occurred_at": time.time_ns(), "tenant": Tenant(id="acme"),
            "actor": Actor(id=ANN.name, type="user", email=f"{CANARY}@example.com"),
            "source": Source(address="203.0.113.9", user_agent=CANARY, session_id=CANARY),
            "changes": (
                Change(operation="update", entity="Guest", table="guests", key={"id": 4},
                       values={"phone": ["1", CANARY], "city": ["a", "b"]}, personal=("phone",)),
            ),
            **values,
        }
    )  # fmt: skip


def delivering(sink=None):
    config = AuditConfig()
    return make_delivery(config, sink or sink_maker(config), Counters())


async def payloads(connection, count):
    """The records of ann, as soon as there are so many."""
    asked = "SELECT payload::text FROM audit.audit_logs WHERE actor_id = $1 ORDER BY recorded_at"
    until = time.monotonic() + 60
    while len(rows := await connection.fetch(asked, ANN.name)) < count:
        assert time.monotonic() < until
        await asyncio.sleep(0.02)
    return [row[0] for row in rows]


def holding(folder):
    """The files that hold the canary."""
    found = []
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a thread may delete one meanwhile
            if file.is_file() and CANARY.encode() in file.read_bytes():
                found.append(file)
    return found


def dumped(dsn):
    run = [str(BIN / "pg_dump"), "--format=custom", "--compress=0", dsn]
    return subprocess.run(run, check=True, capture_output=True).stdout


class TestSpools:
    @pytest.mark.parametrize("key", [None, KEY])
    async def test_hold_nothing_once_they_are_delivered(
        self, settings, keys, connection, tmp_path, key
    ):
        """Neither while the process lives nor after it; on disk an encrypted one never does."""
        settings.setattr(log, "DELIVERED_STAYS", 0)
        if key is not None:
            settings.setenv("OTEL_AUDIT_SPOOL_KEY", key)
        waiting = delivering(cast("Any", Away))
        waiting.submit(personal())
        assert not await asyncio.to_thread(waiting.close, 0)
        assert bool(holding(tmp_path)) == (key is None)
        delivery = delivering()
        delivery.start()
        delivery.submit(personal())
        await payloads(connection, 2)
        assert await asyncio.to_thread(delivery.flush, 30)
        until = time.monotonic() + 30
        while holding(tmp_path):
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        assert await asyncio.to_thread(delivery.close, 10)
        assert holding(tmp_path) == []

    async def test_that_wait_during_an_erasure_deliver_no_values(
        self, settings, keys, connection, audit_store, tmp_path
    ):
        """What happened before it comes without them, twice as once; what happens later is kept."""
        before = personal()
        sink = sink_maker(AuditConfig())()
        await sink.write([personal()])
        waiting = delivering(cast("Any", Away))
        waiting.submit(before)
        await asyncio.to_thread(waiting.close, 0)
        guest = Subject("acme", "guest:4")
        assert await erase_all(audit_store, keys, [ANN, guest], "law", "demand") == [ANN, guest]
        delivery = delivering()
        delivery.start()
        _, late = map(json.loads, await payloads(connection, 2))
        assert await asyncio.to_thread(delivery.close, 10)
        assert late["actor"]["email"] == ERASED
        assert late["source"] == {**late["source"], "address": ERASED, "user_agent": ERASED}
        assert late["changes"][0]["values"] == {"phone": [ERASED, ERASED], "city": ["a", "b"]}
        # no key was made for it: there is nothing to erase, and a second erasure is none
        plan = await plan_erasure(audit_store, keys, ANN)
        assert (plan.keys, plan.rows) == (0, 2)
        assert not await erase(audit_store, keys, ANN, "law", "demand")
        fresh = sink_maker(AuditConfig())()
        again = await fresh.write([before, personal(occurred_at=time.time_ns())])
        assert (again.stored, again.conflicts) == (2, 0)
        *_, last = map(json.loads, await payloads(connection, 3))
        assert last["actor"]["email"].startswith("~p1.")
        # a record from before comes without them, too, beside one that happened after
        await fresh.write([msgspec.structs.replace(before, record_id=uuid7())])
        assert CANARY.encode() not in dumped(audit_store)
        assert [json.loads(one)["actor"]["email"] for one in await payloads(connection, 4)].count(
            ERASED
        ) == 2
        assert holding(tmp_path) == []
        await sink.close()
        await fresh.close()


class TestTheStore:
    async def test_keeps_no_value_in_quarantine_or_exports(  # noqa: PLR0917 - fixtures
        self, settings, keys, connection, trail, audit_store, tmp_path
    ):
        """A record that PostgreSQL refuses is encrypted before; and so is all that is exported."""
        sink = sink_maker(AuditConfig())()
        written = await sink.write([personal(), personal(record_id="no-uuid")])
        assert written.quarantined == 1
        assert CANARY not in await connection.fetchval("SELECT received FROM audit.quarantine")
        await sink.close()
        await trail.seal()
        assert CANARY.encode() not in dumped(audit_store)
        for data_format in ("ndjson", "csv"):
            out = tmp_path / f"all.{data_format}"
            await write_export(audit_store, Query(), data_format, out)
        assert holding(tmp_path) == []

    async def test_names_what_an_erasure_does_not_reach(
        self, settings, keys, audit_store, tmp_path
    ):
        """A text that never was a record stays in quarantine; a spool waits; both are said."""
        sink = PostgresSink(audit_store)
        text = json.dumps({"who": ANN.name, "mail": CANARY})
        await sink.accept([], [Refused("", text.encode(), "no record")])
        await sink.close()
        mine = sink_maker(AuditConfig())()
        await mine.write([personal()])
        await mine.close()
        waiting = delivering(cast("Any", Away))
        waiting.submit(personal())
        await asyncio.to_thread(waiting.close, 0)
        assert (await plan_erasure(audit_store, keys, ANN)).quarantined == 1
        options = ["--tenant", "acme", "--basis", "law", "--reason", "demand"]

        def run(*arguments):
            return CliRunner().invoke(cli, ["subject", "erase", *arguments, *options])

        shown = await asyncio.to_thread(run, ANN.name, "guest:4", "--dry-run")
        assert f"{ANN.name}: 1 keys to destroy; 1 records" in shown.output
        assert "guest:4: 1 keys to destroy; 1 records" in shown.output
        assert "audit.quarantine: 1 refused texts contain an ID" in shown.output
        assert f"{tmp_path / 'spool'}: " in shown.output
        done = await asyncio.to_thread(run, ANN.name, "guest:4", "--yes", "--json")
        told = json.loads(done.stdout)
        assert told["erased"] == [ANN.name, "guest:4"]
        assert [one["quarantined"] for one in told["subjects"]] == [1, 0]
        assert len(told["not_reached"]) == 3
        again = await asyncio.to_thread(run, ANN.name, "guest:4", "--yes")
        assert again.output.count("was erased on") == 2

    async def test_counts_what_waits_in_the_outbox(
        self, settings, keys, connection, audit_store, monkeypatch
    ):
        """By actor or entity, of this tenant, and what is no record; an unreadable outbox is said."""
        mine = sink_maker(AuditConfig())()
        await mine.write([personal()])
        await mine.close()
        options = ["--tenant", "acme", "--basis", "law", "--reason", "demand", "--dry-run"]

        def shown():
            done = CliRunner().invoke(cli, ["subject", "erase", ANN.name, *options])
            assert done.exit_code == 0, done.output
            return " ".join(done.output.split())

        assert "the outbox" not in await asyncio.to_thread(shown)
        monkeypatch.setenv("OTEL_AUDIT_OUTBOX_DSN", audit_store)
        assert "the outbox" not in await asyncio.to_thread(shown)
        await init_outbox(audit_store)
        assert "the outbox" not in await asyncio.to_thread(shown)
        other = personal(tenant=Tenant(id="globex"))
        for record in (personal(), personal(), other):
            await connection.execute(
                "INSERT INTO audit.outbox (record_id, record) VALUES ($1, $2)",
                uuid.UUID(uuid7()), to_json(record).decode(),
            )  # fmt: skip
        deep = '{"metadata":{"who":"%s","deep":%s' % (ANN.name, "[" * 100_000)  # noqa: UP031
        await connection.execute(
            "INSERT INTO audit.outbox (record_id, record) VALUES ($1, $2)",
            uuid.UUID(uuid7()), deep,
        )  # fmt: skip
        told = await asyncio.to_thread(shown)
        assert "the outbox: 3 records by or about an ID wait for the relay" in told
        assert "run `otel-audit relay`" in told
        monkeypatch.setenv("OTEL_AUDIT_OUTBOX_DSN", "postgresql://nobody@127.0.0.1:1/x")
        assert "the outbox: not looked at: " in await asyncio.to_thread(shown)

    async def test_takes_no_text_for_an_encrypted_value_that_is_none(
        self, settings, keys, connection, audit_store
    ):
        """Else anybody could be found under another one's pseudonym, or keep his value readable."""
        sink = sink_maker(AuditConfig())()
        await sink.write([personal()])
        theirs = json.loads((await payloads(connection, 1))[0])["source"]["user_agent"]
        forged = personal(
            actor=Actor(id="eve", type="user"), source=Source(user_agent=theirs), changes=()
        )
        await sink.write([forged])
        await sink.close()
        row = await connection.fetchrow(
            "SELECT user_agent, payload::text FROM audit.audit_logs WHERE actor_id = 'eve'"
        )
        assert not theirs.startswith(row["user_agent"])
        assert theirs not in row["payload"]

    async def test_says_that_marked_columns_come_in_clear(self, audit_store, caplog):
        """Where there are no keys, whoever sent them; once, and only for what is marked."""
        ratelimited_log.forget()
        sink = PostgresSink(audit_store)
        await sink.write([personal(changes=())])
        assert not [one for one in caplog.messages if "KEYS_DSN" in one]
        for _ in range(2):
            await sink.accept([personal()])
        await sink.close()
        (line,) = [one for one in caplog.messages if "KEYS_DSN" in one]
        assert "in clear" in line

    async def test_erases_all_names_or_none(self, settings, keys, audit_store):
        """One that is mistyped is named, and the others keep their keys."""
        sink = sink_maker(AuditConfig())()
        await sink.write([personal()])
        await sink.close()
        done = await asyncio.to_thread(
            CliRunner().invoke, cli,
            ["subject", "erase", ANN.name, "gest:4", "--tenant", "acme", "--basis", "law",
             "--reason", "demand", "--yes"],
        )  # fmt: skip
        assert done.exit_code == 1
        assert "gest:4" in str(done.exception) + done.output
        assert await keys.known(ANN)
        exported = await asyncio.to_thread(
            CliRunner().invoke, cli,
            ["subject", "export", ANN.name, "guest:4", "--tenant", "acme"],
        )  # fmt: skip
        (record,) = map(json.loads, exported.stdout.splitlines())
        assert record["record"]["changes"][0]["values"]["phone"] == ["1", CANARY]
