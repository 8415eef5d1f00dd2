"""What `otel-audit doctor` says of policy, archive and keys."""

from __future__ import annotations

import asyncpg
import pytest
from otel_audit_postgres.personal.key_store import KeyStore, Subject, read_wrapper
from otel_audit_postgres.personal.protect import Protector, read_fields
from otel_audit_postgres.retention.health import inspect_retention
from otel_audit_postgres.retention.subject import erase, replay_erasures
from otel_audit_postgres.sink import PostgresSink
from retention_trail import MARCH, POLICY
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.config import AuditConfig
from otel_audit.record import Actor


async def _copy(dsn, rows=None):
    """The keys as they are now; or, if given, as they were."""
    connection = await asyncpg.connect(dsn)
    if rows is None:
        rows = await connection.fetch("SELECT * FROM audit_keys.subject_keys")
    else:
        await connection.execute("TRUNCATE audit_keys.subject_keys, audit_keys.destroyed_keys")
        for row in rows:
            await connection.execute(
                "INSERT INTO audit_keys.subject_keys VALUES ($1, $2, $3, $4, $5)", *row.values()
            )
    await connection.close()
    return rows


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "retention.toml"
    path.write_text(POLICY)
    return path


async def found(trail, **settings):
    findings = await inspect_retention(AuditConfig(dsn=trail.dsn, **settings), trail.dsn)
    return {one.name: one for one in findings}


class TestPolicy:
    async def test_is_looked_at_only_where_there_is_one(self, months):
        assert await found(months) == {}

    async def test_covers_every_event_that_was_seen(self, months, file):
        """A rule for some of them alone leaves the others for ever, and is said so."""
        assert (await found(months, retention_file=file))["retention policy"].ok
        file.write_text("""[[rule]]
name = "sign-ins"
match = { event = "auth.*" }
hot = 60
archive = 10
""")
        told = (await found(months, retention_file=file))["retention policy"]
        assert (told.ok, "for ever" in told.detail) == (None, True)
        assert "order.paid" in told.detail

    async def test_that_cannot_be_read_fails(self, months, file):
        file.write_text("flor = 3")
        told = (await found(months, retention_file=file))["retention policy"]
        assert (told.ok, "unknown key" in told.detail) == (False, True)

    async def test_says_what_is_overdue_and_why(self, months, file):
        """Before a run, and nothing after it."""
        told = (await found(months, retention_file=file))["retention"]
        assert (told.ok, "3 months are overdue, 2025-01 first" in told.detail) == (None, True)
        await months.retain()
        assert (await found(months, retention_file=file))["retention"].ok


class TestArchive:
    async def test_without_object_lock_is_a_warning(self, months, tmp_path):
        told = (await found(months, archive=f"file:{tmp_path}/archive"))["archive"]
        assert (told.ok, "no object lock" in told.detail) == (None, True)

    async def test_that_was_never_verified_is_a_warning(self, retained, tmp_path):
        """As long as there is something to verify."""
        told = (await found(retained, archive=f"file:{tmp_path}/archive"))["archive verification"]
        assert (told.ok, "never" in told.detail) == (None, True)

    async def test_that_is_no_place_fails(self, months):
        told = (await found(months, archive="s3://"))["archive"]
        assert told.ok is False


class TestKeys:
    async def test_are_reachable_and_elsewhere(self, months, keys_dsn, tmp_path):
        """The same server is a warning; the audit database, a wrong key, none at all, and a copy
        from before an erasure fail."""
        kek = tmp_path / "kek"
        kek.write_text("07" * 32)
        kek.chmod(0o600)
        told = await found(months, keys_dsn=keys_dsn, keys_kek_file=kek)
        assert (told["keys"].ok, "subject init" in told["keys"].detail) == (False, True)
        store = KeyStore(keys_dsn, read_wrapper(kek))
        await store.init()
        await store.close()
        told = await found(months, keys_dsn=keys_dsn, keys_kek_file=kek)
        assert (told["keys"].ok, "same server" in told["keys"].detail) == (None, True)
        store = KeyStore(keys_dsn, read_wrapper(kek))
        sink = PostgresSink(
            months.dsn, protector=Protector(store, read_fields(["source.user_agent"]))
        )
        await sink.write([a_record(record_id=uuid7(), actor=Actor(id="ann", type="user"))])
        backup = await _copy(keys_dsn)
        await erase(months.dsn, store, Subject("", "ann"), "law", "demand")
        await _copy(keys_dsn, backup)
        told = await found(months, keys_dsn=keys_dsn, keys_kek_file=kek)
        assert (told["keys"].ok, "1 keys are there" in told["keys"].detail) == (False, True)
        await replay_erasures(months.dsn, store)
        await sink.close()
        told = await found(months, keys_dsn=keys_dsn, keys_kek_file=kek)
        assert (told["keys"].ok, "same server" in told["keys"].detail) == (None, True)
        kek.write_text("08" * 32)
        told = await found(months, keys_dsn=keys_dsn, keys_kek_file=kek)
        assert (told["keys"].ok, "this is not the key" in told["keys"].detail) == (False, True)
        told = await found(months, keys_dsn=months.dsn, keys_kek_file=kek)
        assert (told["keys"].ok, "audit database" in told["keys"].detail) == (False, True)
        assert MARCH
