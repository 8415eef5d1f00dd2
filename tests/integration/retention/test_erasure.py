"""A person is forgotten: the keys are destroyed, and every proof stands."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import msgspec
import pytest
from click.testing import CliRunner
from otel_audit_postgres import maintain
from otel_audit_postgres.archive.objects import ArchiveError, FolderArchive, digest_of
from otel_audit_postgres.archive.parquet_files import read_rows
from otel_audit_postgres.personal.key_store import FileWrapper, KeyStore, Subject, read_wrapper
from otel_audit_postgres.personal.protect import Protector, key_store_from, read_fields
from otel_audit_postgres.personal.reveal import ERASED, revealed
from otel_audit_postgres.retention.holds import (
    HoldConditions,
    override_hold,
    place_hold,
    release_hold,
)
from otel_audit_postgres.retention.subject import (
    erase,
    erase_all,
    export_subject,
    plan_erasure,
    replay_erasures,
)
from otel_audit_postgres.sink import PostgresSink
from postgres_servers import BIN
from retention_trail import JANUARY, ids_of
from slow_link import behind, slow_link, socket_of
from strategies import a_record

from otel_audit._util.cache import BoundedCache
from otel_audit._util.ids import uuid7
from otel_audit.cli.main import cli
from otel_audit.config import AuditConfig
from otel_audit.errors import (
    ConfigurationError,
    OtelAuditError,
    StoreError,
    StoreUnavailableError,
)
from otel_audit.record import Actor, Change, Request, Source, Tenant

CANARY = "canary-5f1e9b"
ADDRESS = "203.0.113.77"
FIELDS = read_fields(
    ["actor.email", "source.address", "source.user_agent", "source.session_id", "request.query",
     "metadata.name", "request.headers.referer", "changes.Customer.email"]
)  # fmt: skip
ANN = Subject("acme", "ann")


@pytest.fixture
def kek():
    return FileWrapper(secrets.token_bytes(32))


@pytest.fixture
async def keys(keys_dsn, kek, tmp_path):
    store = KeyStore(keys_dsn, kek, pending=tmp_path / "pending")
    await store.init()
    yield store
    await store.close()


def personal(record_id, actor="ann", tenant="acme"):
    return a_record(
        record_id=record_id,
        actor=Actor(id=actor, type="user", email=f"{CANARY}@example.com"),
        tenant=Tenant(id=tenant),
        source=Source(address=ADDRESS, user_agent=f"{CANARY}/1.0", session_id=f"s-{CANARY}"),
        request=Request(query=f"q={CANARY}", headers={"referer": f"https://x/{CANARY}"}),
        metadata={"name": CANARY, "kept": "yes"},
        changes=(
            Change(
                operation="update", kind="entity", entity="Customer", table="customers",
                key={"id": 17}, values={"email": [None, CANARY], "city": ["a", "b"]},
            ),
        ),
    )  # fmt: skip


async def stored(dsn, keys, records):
    sink = PostgresSink(dsn, protector=Protector(keys, FIELDS))
    written = await sink.write(records)
    await sink.close()
    return written


@pytest.fixture
async def written(trail, keys):
    """Ten records of January by ann, three of now by ben."""
    await stored(trail.dsn, keys, [personal(one) for one in ids_of(JANUARY, 10)])
    await maintain(trail.dsn, months=[JANUARY])
    await stored(trail.dsn, keys, [personal(uuid7(), actor="ben") for _ in range(3)])
    await trail.seal()
    return trail


async def export(trail, keys, subject=ANN, archive=None):
    return [one async for one in export_subject(trail.dsn, keys, subject, archive)]


class TestEncryption:
    async def test_leaves_nothing_in_clear(self, written, connection):
        """Neither in the payload nor in a column; what is not personal stays readable."""
        rows = await connection.fetch("SELECT a.*, a.payload::text AS text FROM audit.audit_logs a")
        for row in rows:
            assert CANARY not in str(dict(row))
            assert ADDRESS not in str(dict(row))
            assert row["source_address"].startswith("~p1.")
        assert '"kept":"yes"' in rows[0]["text"]
        assert (await written.verify()).problems == ()

    async def test_gives_everything_back(self, written, keys):
        """With the keys each value is what it was."""
        found = await export(written, keys)
        assert len(found) == 10
        record = found[0]["record"]
        assert record["actor"]["email"] == f"{CANARY}@example.com"
        assert record["source"]["address"] == ADDRESS
        assert record["request"]["headers"]["referer"] == f"https://x/{CANARY}"
        assert record["request"]["query"] == f"q={CANARY}"
        assert record["metadata"] == {"name": CANARY, "kept": "yes"}
        assert record["changes"][0]["values"] == {"email": [None, CANARY], "city": ["a", "b"]}

    async def test_no_text_holds_up_its_batch(self, trail, keys):
        """Half a surrogate pair in what is personal, in a name of a parameter, too."""
        odd = msgspec.structs.replace(
            personal(uuid7()),
            metadata={"name": {"first": "\ud800", "last": CANARY}},
            changes=(
                Change(
                    operation="update", kind="bulk", entity="Customer", table="customers",
                    parameters=({"e\ud800": CANARY},),
                ),
            ),
        )  # fmt: skip
        written = await stored(trail.dsn, keys, [odd, personal(uuid7())])
        assert (written.stored, written.quarantined) == (2, 0)
        (record,) = [
            one["record"] for one in await export(trail, keys) if "first" in str(one["record"])
        ]
        assert json.loads(record["metadata"]["name"]) == {"first": "\ufffd", "last": CANARY}
        assert record["changes"][0]["parameters"] == [{"e\ufffd": CANARY}]

    async def test_stores_once_what_is_delivered_twice(self, written, keys, connection):
        """The same record is encrypted the same, also by another process."""
        before = await connection.fetchval("SELECT count(*) FROM audit.audit_logs")
        ids = ids_of(JANUARY, 1)
        record = personal(uuid7())
        assert (await stored(written.dsn, keys, [record])).stored == 1
        again = await stored(written.dsn, keys, [record])
        assert (again.stored, again.conflicts) == (1, 0)
        assert await connection.fetchval("SELECT count(*) FROM audit.audit_logs") == before + 1
        assert ids

    async def test_is_searched_by_its_pseudonym(self, written, keys, connection):
        """Who has the key finds an address of this subject, and of no other."""
        (key,) = await keys.known(ANN)
        column = key.column_text(ADDRESS, "source.address")
        found = await connection.fetch(
            "SELECT DISTINCT actor_id FROM audit.audit_logs WHERE source_address = $1", column
        )
        assert [row["actor_id"] for row in found] == ["ann"]

    async def test_binds_a_value_to_its_record_and_place(self, written, keys, connection):
        """What is moved to another record or field does not open there."""
        text = await connection.fetchval(
            "SELECT payload::text FROM audit.audit_logs WHERE actor_id = 'ann' LIMIT 1"
        )
        record = json.loads(text)
        moved = {**record, "record_id": uuid7()}
        assert CANARY not in str((await revealed(json.dumps(moved), keys))["actor"])
        record["actor"]["email"], record["source"]["user_agent"] = (
            record["source"]["user_agent"], record["actor"]["email"],
        )  # fmt: skip
        opened = await revealed(json.dumps(record), keys)
        assert opened["actor"]["email"] == "[ENCRYPTED: does not open]"


class TestErasing:
    async def test_forgets_and_keeps_every_proof(self, written, keys, connection):
        """Archive, store, proofs: unchanged and green; values show as erased; others stay."""
        await written.retain()
        await written.seal()
        before = {
            key: digest_of(written.archive._folder / key) for key in written.archive.list_keys()
        }
        note = await written.anchor.last()
        assert len(await export(written, keys, archive=written.archive)) == 10
        assert await erase(written.dsn, keys, ANN, "GDPR 17", "on demand of 3 May")
        await written.seal()
        report, archived = await written.check_all()
        assert (report.problems, archived.findings.problems) == ((), [])
        assert before == {
            key: digest_of(written.archive._folder / key) for key in written.archive.list_keys()
        }
        assert (await written.anchor.last()) != note
        found = await export(written, keys, archive=written.archive)
        assert len(found) == 10
        for one in found:
            # what is about customer:17 is not ann's
            del one["record"]["changes"]
        assert CANARY not in str(found)
        assert ADDRESS not in str(found)
        assert found[0]["record"]["actor"]["email"] == ERASED
        others = await export(written, keys, Subject("acme", "ben"))
        assert others[0]["record"]["source"]["address"] == ADDRESS
        told = await connection.fetchval(
            "SELECT payload::text FROM audit.audit_logs WHERE event_name = 'audit.subject.erased'"
        )
        assert "ann" not in told

    async def test_of_an_entity_takes_the_marked_columns(self, written, keys):
        """customer:17 is erased: its columns are gone, its actors' own values stay."""
        assert await erase(written.dsn, keys, Subject("acme", "customer:17"), "law", "demand")
        record = (await export(written, keys))[0]["record"]
        assert record["changes"][0]["values"]["email"] == [None, ERASED]
        assert record["source"]["address"] == ADDRESS

    async def test_twice_is_once(self, written, keys, connection):
        """The second time nothing is done, and nothing is recorded."""
        assert await erase(written.dsn, keys, ANN, "law", "demand")
        assert not await erase(written.dsn, keys, ANN, "law", "demand")
        count = "SELECT count(*) FROM audit.audit_logs WHERE event_name = 'audit.subject.erased'"
        assert await connection.fetchval(count) == 1

    async def test_of_somebody_unknown_is_an_error(self, written, keys):
        """So that a name that was mistyped is not taken for done."""
        with pytest.raises(ConfigurationError, match="no key of this subject"):
            await erase(written.dsn, keys, Subject("acme", "anne"), "law", "demand")

    async def test_does_not_write_the_name_down(self, written, keys):
        """Basis and reason stay for ever."""
        with pytest.raises(ConfigurationError, match="must not contain the name"):
            await erase(written.dsn, keys, ANN, "law", "demand by Ann herself")

    async def test_is_refused_by_a_hold_that_names_itself(self, written, keys, postgres):
        """Until it is released, or somebody else overrides it."""
        hold, _ = await place_hold(written.dsn, "m", "r", HoldConditions(actor="ann"))
        with pytest.raises(StoreError, match=f"hold {hold}"):
            await erase(written.dsn, keys, ANN, "law", "demand")
        assert str(hold) in (await plan_erasure(written.dsn, keys, ANN)).held
        assert (await export(written, keys))[0]["record"]["source"]["address"] == ADDRESS
        await release_hold(written.dsn, hold, "over")
        other, _ = await place_hold(written.dsn, "m", "r", HoldConditions(entity="customer:17"))
        with pytest.raises(StoreError, match=f"hold {other}"):
            await erase(written.dsn, keys, ANN, "law", "demand")
        await postgres.execute("CREATE ROLE third_person SUPERUSER LOGIN")
        name = written.dsn.partition("?")[0].rpartition("/")[2]
        try:
            await override_hold(postgres.dsn(name, "third_person"), other, "subject:ann", "court")
            assert await erase(written.dsn, keys, ANN, "law", "demand")
        finally:
            await postgres.execute("DROP ROLE third_person")

    async def test_is_refused_by_a_hold_on_archived_records(
        self, written, keys, connection, tmp_path
    ):
        """A hold that names something else, in a month that has left the database, or may have."""
        await written.retain()
        await written.seal()
        assert await connection.fetchval("SELECT count(*) FROM audit.ledger_prunings") == 1
        hold, _ = await place_hold(written.dsn, "m", "r", HoldConditions(entity="customer:17"))
        for archive, said in (
            (written.archive, f"hold {hold} .* applies to archived records .*2025-01/"),
            (None, f"hold {hold} .* may apply to archived records .*OTEL_AUDIT_ARCHIVE"),
        ):
            with pytest.raises(StoreError, match=said):
                await erase_all(written.dsn, keys, [ANN], "law", "demand", archive)
            plan = await plan_erasure(written.dsn, keys, ANN, archive)
            assert str(hold) in plan.held
        assert (await export(written, keys, archive=written.archive))[0]["record"]["source"][
            "address"
        ] == ADDRESS
        # what an earlier version asks, and who says what he did not do
        for statement in (
            "SELECT audit.record_erasure('acme', 'ann', '{k}', 'law', 'demand')",
            "SELECT audit.record_checked_erasure('acme', 'ann', '{k}', 'law', 'demand', 0, 1000)",
            "SELECT audit.record_checked_erasure('acme', 'ann', '{k}', 'law', 'demand', 1000, 0)",
        ):
            with pytest.raises(asyncpg.PostgresError, match=f"hold {hold} .* may apply") as raised:
                await connection.fetchval(statement)
            assert raised.value.sqlstate == "OA001"
        elsewhere = FolderArchive(tmp_path / "elsewhere")
        with pytest.raises(ArchiveError):
            await erase_all(written.dsn, keys, [ANN], "law", "demand", elsewhere)

    async def test_is_not_refused_by_a_hold_on_others(self, written, keys):
        """Archives are looked into, and have nothing to which it applies."""
        await written.retain()
        await written.seal()
        await place_hold(written.dsn, "m", "r", HoldConditions(entity="customer:18"))
        await place_hold(written.dsn, "m", "r", HoldConditions(entity="customer:17", tenant="b"))
        await place_hold(
            written.dsn, "m", "r",
            HoldConditions(entity="customer:17", until=datetime(2000, 1, 1, tzinfo=UTC)),
        )  # fmt: skip
        assert await erase_all(written.dsn, keys, [ANN], "law", "demand", written.archive) == [ANN]

    async def test_needs_no_archive_for_a_hold_on_somebody_else(self, written, keys):
        """An actor's id that is no entity's name is in nobody else's records."""
        await written.retain()
        await written.seal()
        await place_hold(written.dsn, "m", "r", HoldConditions(actor="bob"))
        assert await erase_all(written.dsn, keys, [ANN], "law", "demand") == [ANN]

    async def test_goes_on_where_it_was_cut_off(self, written, keys, keys_dsn):
        """Keys destroyed, and the record of it lost with its transaction: the next try tells it."""
        await keys.destroy(ANN)
        plan = await plan_erasure(written.dsn, keys, ANN)
        assert (plan.keys, [one.is_recorded for one in plan.erased]) == (0, [False])
        assert await erase(written.dsn, keys, ANN, "law", "demand")
        assert not await erase(written.dsn, keys, ANN, "law", "demand")

    async def test_while_a_run_archives_changes_neither(self, written, keys):
        """Between writing a month and reading it back, and again before it is dropped."""
        steps = asyncio.Queue()
        erased = []

        async def erase_meanwhile():
            for subject, wanted in ((ANN, "read back"), (Subject("acme", "ben"), "drop")):
                while await steps.get() != wanted:
                    pass
                erased.append(await erase(written.dsn, keys, subject, "law", "demand"))

        erasing = asyncio.create_task(erase_meanwhile())
        done = await written.retain(on_step=lambda month, step: steps.put_nowait(step))
        await erasing
        assert (erased, done.dropped) == ([True, True], {"2025-01": 10})
        await written.seal()
        report, archived = await written.check_all()
        assert (report.problems, archived.archived) == ((), 10)
        told = await export(written, keys, ANN, written.archive)
        assert len(told) == 10
        assert {one["record"]["source"]["address"] for one in told} == {ERASED}

    async def test_takes_no_longer_for_more_rows(self, written, keys, monkeypatch):
        """Two hundred times the rows: the same few statements."""
        sent: list[str] = []
        connect = asyncpg.connect

        async def observed(*args, **settings):
            connection = await connect(*args, **settings)
            connection.add_query_logger(lambda one: sent.append(one.query))
            return connection

        monkeypatch.setattr(asyncpg, "connect", observed)
        begun = time.perf_counter()
        await erase(written.dsn, keys, Subject("acme", "ben"), "law", "demand")
        took, few = time.perf_counter() - begun, [*sent]
        await stored(written.dsn, keys, [personal(uuid7(), actor="cy") for _ in range(600)])
        begun = time.perf_counter()
        sent.clear()
        await erase(written.dsn, keys, Subject("acme", "cy"), "law", "demand")
        assert sent == few
        assert len(few) > 5
        assert time.perf_counter() - begun < max(took * 10, 60)


class TestMarks:
    async def test_of_a_model_are_encrypted_as_those_of_the_settings(self, trail, keys):
        """Which columns they are comes with the change, whatever this process knows of models."""
        changes = (
            Change(operation="update", entity="Guest", table="guests", key={"id": 4},
                   values={"phone": ["1", CANARY], "city": ["a", "b"]}, personal=("phone",)),
            Change(operation="update", kind="bulk", entity="Guest", table="guests",
                   statement="UPDATE guests SET phone = ?", parameters={"phone": CANARY, "n": 7},
                   personal=("phone",)),
        )  # fmt: skip
        record = msgspec.structs.replace(personal(uuid7()), changes=changes)
        await stored(trail.dsn, keys, [record])
        told = await export(trail, keys, Subject("acme", "guest:4"))
        values = told[0]["record"]["changes"][0]["values"]
        assert values == {"phone": ["1", CANARY], "city": ["a", "b"]}
        assert told[0]["personal"]["changes.0.phone.1"] == "readable"
        await erase(trail.dsn, keys, Subject("acme", "guest:4"), "law", "demand")
        told = await export(trail, keys, Subject("acme", "guest:4"))
        assert told[0]["record"]["changes"][0]["values"]["phone"] == [ERASED, ERASED]
        assert told[0]["personal"]["changes.0.phone.1"] == "erased"


class TestBackups:
    async def test_of_the_audit_database_bring_nobody_back(self, written, keys, connection):
        """All that it holds, as text, has neither the values nor a key."""
        await erase(written.dsn, keys, ANN, "law", "demand")
        await erase(written.dsn, keys, Subject("acme", "ben"), "law", "demand")
        await erase(written.dsn, keys, Subject("acme", "customer:17"), "law", "demand")
        tables = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'audit'::regnamespace "
            "AND relkind IN ('r', 'p')"
        )
        for table in tables:
            for row in await connection.fetch(f"SELECT t::text FROM audit.{table[0]} t"):
                assert CANARY not in row[0]
                assert ADDRESS not in row[0]

    async def test_that_pg_restore_puts_back_bring_nobody_back(
        self, written, keys, postgres, tmp_path
    ):
        """The dump holds neither values nor keys, as its bytes, and as another database."""
        dump = tmp_path / "audit.dump"
        run = [str(BIN / "pg_dump"), "--format=custom", "--compress=0"]
        subprocess.run([*run, f"--file={dump}", written.dsn], check=True, capture_output=True)
        assert CANARY.encode() not in dump.read_bytes()
        assert ADDRESS.encode() not in dump.read_bytes()
        for name in ("ann", "ben", "customer:17"):
            await erase(written.dsn, keys, Subject("acme", name), "law", "demand")
        name = f"restored_{uuid.uuid4().hex[:8]}"
        await postgres.execute(f"CREATE DATABASE {name}")
        # whatever the event trigger or a missing role makes of it, the rows are what counts
        subprocess.run(
            [str(BIN / "pg_restore"), f"--dbname={postgres.dsn(name)}", str(dump)],
            check=False, capture_output=True,
        )  # fmt: skip
        restored = await asyncpg.connect(postgres.dsn(name))
        rows = await restored.fetch("SELECT payload::text AS payload FROM audit.audit_logs")
        await restored.close()
        assert len(rows) == 13
        for row in rows:
            told = await revealed(row["payload"], keys)
            assert CANARY not in json.dumps(told)
            assert ADDRESS not in json.dumps(told)
            assert told["source"]["address"] == ERASED

    async def test_and_everything_else_that_is_kept_hold_no_canary(
        self, written, keys, connection, tmp_path, caplog
    ):
        """Spool, pending keys, archive, roll-up, quarantine, log, and the server's own files."""
        caplog.set_level("DEBUG")
        await written.retain()
        await erase(written.dsn, keys, ANN, "law", "demand")
        await erase(written.dsn, keys, Subject("acme", "ben"), "law", "demand")
        await erase(written.dsn, keys, Subject("acme", "customer:17"), "law", "demand")
        assert CANARY not in caplog.text
        assert ADDRESS not in caplog.text
        files = [one for one in tmp_path.rglob("*") if one.is_file()]
        assert any(one.suffix == ".parquet" for one in files)
        for file in files:
            raw = file.read_bytes()
            assert CANARY.encode() not in raw, file
            if file.suffix == ".parquet":
                text = " ".join(str(dict(row)) for row in read_rows(file))
                assert CANARY not in text
                assert ADDRESS not in text
                assert "~p1." in text
        exported = [*await export(written, keys, ANN, written.archive)]
        assert len(exported) == 10
        assert CANARY not in json.dumps(exported)

    async def test_of_the_keys_are_made_harmless(self, written, keys, keys_dsn):
        """A backup of the keys' database is restored: what the trail tells of is destroyed again."""
        connection = await asyncpg.connect(keys_dsn)
        backup = await connection.fetch("SELECT * FROM audit_keys.subject_keys")
        await erase(written.dsn, keys, ANN, "law", "demand")
        await connection.execute("TRUNCATE audit_keys.subject_keys, audit_keys.destroyed_keys")
        for row in backup:
            await connection.execute(
                "INSERT INTO audit_keys.subject_keys VALUES ($1, $2, $3, $4, $5)", *row.values()
            )
        await connection.close()
        assert await keys.known(ANN)
        assert await replay_erasures(written.dsn, keys) == 1
        assert not await keys.known(ANN)
        assert CANARY not in str([one["record"]["actor"] for one in await export(written, keys)])


class TestKeyStore:
    async def test_is_never_the_audit_database(self, trail, kek):
        """A backup of that would bring keys back."""
        store = KeyStore(trail.dsn, kek)
        with pytest.raises(ConfigurationError, match="names the audit database"):
            await store.init()
        await store.close()

    async def test_a_batch_may_have_more_subjects_than_are_remembered(self, keys, monkeypatch):
        """A key that is not there means erased, so none that was asked for may be forgotten."""
        monkeypatch.setattr(keys, "_known", BoundedCache(2))
        latest = {ANN._replace(name=f"customer:{number}"): 1 for number in range(9)}
        made = await keys.keys_for(latest)
        assert made.keys() == latest.keys()
        again = await keys.keys_for(latest)
        assert {one: key.key_id for one, key in again.items()} == {
            one: key.key_id for one, key in made.items()
        }

    async def test_knows_a_wrong_key_encryption_key(self, keys, keys_dsn):
        """At its set-up, and when a key is asked for; nothing is stored under another one."""
        await keys.keys_for({ANN: 1})
        other = KeyStore(keys_dsn, FileWrapper(secrets.token_bytes(32)))
        with pytest.raises(ConfigurationError, match="KEK_FILE: this is not the key"):
            await other.init()
        await other.close()

    async def test_being_away_keeps_nothing_in_clear_and_loses_nothing(
        self, trail, kek, keys_dsn, tmp_path, connection
    ):
        """Keys are made here, and handed in when it is back: they open, and can be erased."""
        away = KeyStore(
            "postgresql://nobody@127.0.0.1:1/nowhere", kek, pending=tmp_path / "pending", timeout=1
        )
        assert (await stored(trail.dsn, away, [personal(uuid7())])).stored == 1
        assert CANARY not in await connection.fetchval("SELECT payload::text FROM audit.audit_logs")
        assert list((tmp_path / "pending").glob("*.key"))
        back = KeyStore(keys_dsn, kek, pending=tmp_path / "pending")
        await back.init()
        assert (await export(trail, back))[0]["record"]["source"]["address"] == ADDRESS
        assert not list((tmp_path / "pending").glob("*.key"))
        assert await erase(trail.dsn, back, ANN, "law", "demand")
        assert CANARY not in str((await export(trail, back))[0]["record"]["actor"])
        await back.close()

    @pytest.mark.allow_errors
    async def test_a_file_that_holds_no_key_stops_nothing(self, keys, kek, tmp_path, caplog):
        """A kill left it empty: the log names it, and the keys that are whole are handed in."""
        away = KeyStore(
            "postgresql://nobody@127.0.0.1:1/nowhere", kek, pending=tmp_path / "pending", timeout=1
        )
        made = (await away.keys_for({ANN: 1}))[ANN]
        empty = tmp_path / "pending" / f"{'00' * 8}.key"
        empty.touch()
        os.utime(empty, (0, 0))  # what was changed just now may be whole in a moment
        assert await keys.present([made.key_id]) == {made.key_id}
        assert str(empty) in caplog.text
        assert [file.name for file in empty.parent.iterdir()] == [f"{empty.name}.damaged"]

    async def test_standing_still_is_being_away(self, keys, keys_dsn, kek, tmp_path, monkeypatch):
        """Keys are made here in time, and the next batch does not wait at all."""
        silent = asyncio.Event()
        async with slow_link(socket_of(keys_dsn), silent=silent) as port:
            still = KeyStore(behind(keys_dsn, port), kek, pending=tmp_path / "pending", timeout=30)
            known = (await still.keys_for({ANN: 1}))[ANN]
            silent.set()
            still._timeout, still._patience = 1, 0.5
            ben, cid = ANN._replace(name="ben"), ANN._replace(name="cid")
            async with asyncio.timeout(60):
                made = (await still.keys_for({ben: 1}))[ben]
                with monkeypatch.context() as patched:
                    patched.setattr(still, "_ask", _not_asked)
                    assert list(await still.keys_for({cid: 1})) == [cid]
                with pytest.raises(StoreUnavailableError, match="OTEL_AUDIT_KEYS_DSN"):
                    await still.check()
                await still.close()
        assert (await keys.keys_for({ANN: 1}))[ANN].key_id == known.key_id
        assert made.key_id in [one.key_id for one in await keys.known(ben)]

    async def test_a_slow_wrapper_is_not_a_database_that_stands_still(self, keys, keys_dsn):
        """A key management service has as long as it needs for all the keys of a batch."""
        whole = 1.0

        class Slow(FileWrapper):
            def wrap(self, key, context):
                time.sleep(whole)
                return super().wrap(key, context)

        store = KeyStore(keys_dsn, Slow(bytes(32)), statement_timeout=whole)
        assert await store.keys_for({ANN: 1, ANN._replace(name="ben"): 1})
        await store.close()

    async def test_being_cancelled_hands_out_no_key_that_is_not_committed(self, keys, keys_dsn):
        """Also behind a pooler, where each statement has a transaction of its own."""
        await keys.keys_for({ANN: 1})
        for query in ("", "&pgbouncer=true"):
            for turns in range(14):
                store = KeyStore(f"{keys_dsn}{query}", keys._wrapper)
                await store.check()
                subjects = [ANN._replace(name=f"{one}{turns}{query}") for one in "xy"]
                task = asyncio.create_task(store.keys_for({subjects[0]: 1}))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                made = (await store.keys_for({subjects[1]: 1}))[subjects[1]]
                assert await keys.present([made.key_id]) == {made.key_id}
                await store.close()

    async def test_names_its_own_setting_where_a_right_is_missing(self, keys, keys_dsn, postgres):
        """Who reads OTEL_AUDIT_DSN would grant a right in the other database."""
        role = f"keys_{uuid.uuid4().hex[:8]}"
        await postgres.execute(f"CREATE ROLE {role} LOGIN")
        store = KeyStore(postgres.dsn(urlsplit(keys_dsn).path.lstrip("/"), role), keys._wrapper)
        for ask in (store.check, store.init):
            with pytest.raises(StoreError, match="role of OTEL_AUDIT_KEYS_DSN lacks a right") as no:
                await ask()
            assert "OTEL_AUDIT_DSN" not in str(no.value)
        await store.close()

    async def test_being_away_without_a_place_for_keys_waits(self, trail, kek):
        """Then nothing is stored, and nothing lost: it is tried again."""
        away = KeyStore("postgresql://nobody@127.0.0.1:1/nowhere", kek, timeout=1)
        with pytest.raises(StoreUnavailableError, match="database of keys"):
            await stored(trail.dsn, away, [personal(uuid7())])

    def test_reads_its_file_with_care(self, tmp_path):
        """Others may not read it, and it is 32 bytes in hex."""
        path = tmp_path / "kek"
        path.write_text("00" * 32)
        path.chmod(0o644)
        with pytest.raises(ConfigurationError, match="chmod 600"):
            read_wrapper(path)
        path.chmod(0o600)
        read_wrapper(path)
        for text in ("00", "zz", ""):
            path.write_text(text)
            with pytest.raises(ConfigurationError, match="KEK_FILE"):
                read_wrapper(path)


class TestWrapper:
    async def test_may_be_a_callable_for_a_key_management_service(
        self, keys_dsn, tmp_path, monkeypatch
    ):
        """OTEL_AUDIT_KEYS_KEK names it; what it wraps it alone opens, and a wrong one is refused."""
        monkeypatch.setenv("OTEL_AUDIT_KEYS_DSN", keys_dsn)
        monkeypatch.setenv("OTEL_AUDIT_KEYS_KEK", "retention_wrappers:first")
        monkeypatch.setenv("OTEL_AUDIT_SPOOL_DIR", str(tmp_path / "spool"))
        monkeypatch.syspath_prepend(str(Path(__file__).parent))
        assert await asyncio.to_thread(_invoked, ["subject", "init"]) == (0, "is ready")
        keys = key_store_from(AuditConfig())
        made = (await keys.keys_for({ANN: 1}))[ANN]
        box = made.encrypt("x", "r", "p")
        await keys.close()
        again = key_store_from(AuditConfig())
        (known,) = await again.known(ANN)
        assert known.encrypt("x", "r", "p") == box
        await again.close()
        monkeypatch.setenv("OTEL_AUDIT_KEYS_KEK", "retention_wrappers:second")
        other = key_store_from(AuditConfig())
        with pytest.raises(OtelAuditError, match="another key"):
            await other.check()
        await other.close()
        for named, problem in (("retention_wrappers:none", "KEYS_KEK"), ("nowhere:x", "KEYS_KEK")):
            monkeypatch.setenv("OTEL_AUDIT_KEYS_KEK", named)
            with pytest.raises(ConfigurationError, match=problem):
                key_store_from(AuditConfig())


async def _not_asked(missing, now):
    raise AssertionError("the database was asked once more")


def _invoked(arguments):
    done = CliRunner().invoke(cli, arguments)
    return done.exit_code, done.output.strip().removeprefix("the database of keys ")


class TestFields:
    def test_of_headers_are_written_in_any_case(self):
        """Records have the names of headers in lower case, and those of metadata as they are."""
        found = read_fields(["request.headers.Referer", "response.headers.X-Id", "metadata.Name"])
        assert found.named == {
            "request.headers": {"referer"}, "response.headers": {"x-id"}, "metadata": {"Name"},
        }  # fmt: skip

    @pytest.mark.parametrize("name", ["actor.id", "x", "changes.email", "request.headers", ""])
    def test_that_name_nothing_are_refused(self, name):
        """With what there is."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_PERSONAL"):
            read_fields([name])


class TestCommands:
    def test_go_from_setting_up_to_erasing(self, audit_store, keys_dsn, tmp_path, monkeypatch):
        """init, export, erase with its dry run, erase again."""
        monkeypatch.setenv("OTEL_AUDIT_DSN", audit_store)
        monkeypatch.setenv("OTEL_AUDIT_KEYS_DSN", keys_dsn)
        monkeypatch.setenv("OTEL_AUDIT_KEYS_KEK_FILE", str(tmp_path / "kek"))
        run = CliRunner().invoke
        assert "made" in run(cli, ["subject", "init"]).output
        program = (
            "import asyncio\n"
            "from otel_audit.config import AuditConfig\n"
            "from otel_audit.runtime import sink_maker\n"
            "from tests.integration.retention.test_erasure import personal, uuid7\n"
            "async def work():\n"
            "    sink = sink_maker(AuditConfig())()\n"
            "    await sink.write([personal(uuid7())])\n"
            "    await sink.close()\n"
            "asyncio.run(work())\n"
        )
        import os
        import sys

        done = subprocess.run(
            [sys.executable, "-c", program], check=False, capture_output=True,
            env={**os.environ, "PYTHONPATH": "tests:."},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        asked = ["subject", "pseudonym", "ann", "source.address", "--tenant", "acme", "--json"]
        (pseudonym,) = json.loads(run(cli, asked, input=ADDRESS + "\n").stdout)
        found = run(cli, ["search", f"ip:{pseudonym}", "--json"])
        assert "ann" in found.output
        exported = run(cli, ["subject", "export", "ann", "--tenant", "acme"])
        assert ADDRESS in exported.output
        options = ["--tenant", "acme", "--basis", "law", "--reason", "demand"]
        assert "1 keys" in run(cli, ["subject", "erase", "ann", *options, "--dry-run"]).output
        assert run(cli, ["subject", "erase", "ann", *options], input="n\n").exit_code == 1
        assert "erased" in run(cli, ["subject", "erase", "ann", *options, "--yes"]).output
        assert "was erased on" in run(cli, ["subject", "erase", "ann", *options, "--yes"]).output
        assert ADDRESS not in run(cli, ["subject", "export", "ann", "--tenant", "acme"]).output
        assert "1 keys" in run(cli, ["subject", "replay"]).output
