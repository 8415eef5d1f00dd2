"""Creating the store: once, by several at a time, with roles, from newer versions."""

from __future__ import annotations

import asyncio
import socket
import uuid

import asyncpg
import pytest
from otel_audit_postgres import PostgresSink, init, maintain, migrate, schema_sql
from otel_audit_postgres.rows import COLUMNS
from otel_audit_postgres.schema.migrations import latest_version, migrations
from otel_audit_postgres.schema.uninstall import uninstall
from sqlalchemy.ext.asyncio import create_async_engine
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.errors import ConfigurationError, StoreError, StoreUnavailableError

ALL = tuple(step.name for step in migrations())


@pytest.fixture
async def login(postgres):
    """Make a login role without any rights; its name."""
    made = []

    async def make(*options):
        name = f"login_{uuid.uuid4().hex[:8]}"
        await postgres.execute(f"CREATE ROLE {name} LOGIN {' '.join(options)}")
        made.append(name)
        return name

    yield make
    # roles are the whole server's: what one test gave, another would find
    for name in made:
        await postgres.execute(
            f"ALTER ROLE {name} NOCREATEROLE",
            f"DO $$ BEGIN REVOKE otel_audit_owner FROM {name} CASCADE; "
            "EXCEPTION WHEN undefined_object THEN NULL; END $$",
        )


@pytest.fixture
async def connection(database):
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


def name_of(dsn):
    return dsn.partition("?")[0].rpartition("/")[2]


async def fingerprint(connection):
    """Everything that a migration could make, as text."""
    return await connection.fetch(
        "SELECT c.relname, c.relkind::text, pg_get_userbyid(c.relowner), "
        "array(SELECT attname || ' ' || format_type(atttypid, atttypmod) || ' ' || attnotnull "
        "      FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 ORDER BY 1) "
        "FROM pg_class c WHERE relnamespace = 'audit'::regnamespace ORDER BY 1"
    )


class TestInit:
    async def test_makes_the_store_and_says_so(self, database, connection):
        """A fresh database gets the schema, and a person reads what was made."""
        report = await init(database)
        assert report.version == latest_version()
        assert report.applied == tuple(step.name for step in migrations())
        assert len(report.partitions) == 4
        assert report.lines[0] == "schema audit: created"
        columns = await connection.fetch(
            "SELECT column_name FROM information_schema.columns "
            "WHERE table_schema = 'audit' AND table_name = 'audit_logs'"
        )
        assert {row[0] for row in columns} == {name for name, _ in COLUMNS} | {"recorded_at"}

    async def test_does_nothing_twice(self, database, connection):
        """The second time everything is there already, and stays as it is."""
        await init(database)
        before = await fingerprint(connection)
        report = await init(database)
        assert report.applied == ()
        assert report.partitions == ()
        assert report.lines == (f"schema audit: up to date at version {latest_version()}",)
        assert await fingerprint(connection) == before

    async def test_lets_several_at_once_agree(self, database):
        """Of many that start together one makes the store, the others find it made."""
        reports = await asyncio.gather(*(init(database) for _ in range(5)))
        assert sorted(len(report.applied) for report in reports) == [0, 0, 0, 0, latest_version()]

    async def test_refuses_a_newer_schema(self, database, connection):
        """What a newer version made is not touched."""
        await init(database)
        await connection.execute("INSERT INTO audit.schema_version VALUES (999, 'future')")
        with pytest.raises(StoreError, match=r"version 999.*upgrade otel-audit"):
            await init(database)

    async def test_leaves_nothing_half_done(self, database, connection):
        """When a step fails the database is as it was before."""
        await connection.execute("CREATE SCHEMA audit; CREATE TABLE audit.quarantine (x int)")
        with pytest.raises(StoreError, match="did not make"):
            await init(database)
        tables = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'audit'::regnamespace"
        )
        assert [row[0] for row in tables] == ["quarantine"]

    async def test_takes_an_engine(self, database):
        """An engine of SQLAlchemy over asyncpg does as well as a DSN, and stays usable."""
        engine = create_async_engine(database.replace("postgresql://", "postgresql+asyncpg://"))
        try:
            assert (await init(engine)).applied == ALL
            assert (await init(engine)).applied == ()
        finally:
            await engine.dispose()

    async def test_takes_the_dsn_of_sqlalchemy(self, database):
        """The spelling with a driver's name means the same database."""
        await init(database.replace("postgresql://", "postgresql+asyncpg://"))
        assert (await init(database)).applied == ()

    @pytest.mark.parametrize("target", [None, 5, object()])
    async def test_refuses_what_is_no_database(self, target):
        """Neither a DSN nor an engine: the error says what is wanted."""
        with pytest.raises(ConfigurationError, match="AsyncEngine"):
            await init(target)

    async def test_says_that_nobody_answers(self):
        """No server there: unavailable, and the setting is named."""
        with pytest.raises(StoreUnavailableError, match="OTEL_AUDIT_DSN"):
            await init("postgresql://postgres@127.0.0.1:1/nowhere")

    async def test_waits_as_long_as_the_setting_says(self, monkeypatch):
        """Whether a resolver or a server keeps it waiting: bounded, and the setting is named."""
        monkeypatch.setenv("OTEL_AUDIT_CONNECT_TIMEOUT", "0.3")
        silent = socket.create_server(("127.0.0.1", 0))  # the kernel accepts, and nobody answers
        port = silent.getsockname()[1]
        for work in (init, migrate, maintain, uninstall):
            with pytest.raises(
                StoreUnavailableError, match=r"in time, 0\.3 s \(OTEL_AUDIT_CONNECT_TIMEOUT\)"
            ):
                await work(f"postgresql://postgres@127.0.0.1:{port}/nowhere")
        silent.close()

    async def test_never_shows_the_password(self):
        """A DSN that cannot be read is not quoted, neither in message nor in traceback."""
        with pytest.raises(StoreError, match="cannot be read") as raised:
            await init("postgresql://user:pa/ss:kelp@host:port/database")
        assert "kelp" not in str(raised.value)
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__

    async def test_refuses_another_encoding(self, postgres):
        """Only UTF-8 can hold every record."""
        name = f"latin_{uuid.uuid4().hex[:8]}"
        await postgres.execute(
            f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
        )
        with pytest.raises(StoreError, match="UTF8"):
            await init(postgres.dsn(name))

    async def test_says_which_right_is_missing(self, postgres, database, login):
        """A role that may not create a schema is told so."""
        with pytest.raises(StoreError, match="lacks a right"):
            await init(postgres.dsn(name_of(database), await login()))

    async def test_works_for_an_ordinary_owner_of_the_database(self, postgres, database, login):
        """No superuser is needed where no roles are wanted."""
        role = await login()
        await postgres.execute(f"GRANT CREATE ON DATABASE {name_of(database)} TO {role}")
        dsn = postgres.dsn(name_of(database), role)
        assert (await init(dsn)).applied == ALL
        sink = PostgresSink(dsn)
        await sink.check()
        assert (await sink.write([a_record()])).stored == 1
        await sink.close()


class TestRoles:
    async def test_give_everything_to_the_owner(self, database, connection):
        """With roles, nothing in the schema belongs to whoever ran it."""
        report = await init(database, roles=True)
        assert any("otel_audit_owner" in line for line in report.lines)
        owners = await connection.fetch(
            "SELECT pg_get_userbyid(relowner) FROM pg_class "
            "WHERE relnamespace = 'audit'::regnamespace AND relkind IN ('r', 'p') "
            "UNION SELECT pg_get_userbyid(proowner) FROM pg_proc "
            "WHERE pronamespace = 'audit'::regnamespace "
            "UNION SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'audit'"
        )
        assert {row[0] for row in owners} == {"otel_audit_owner", "otel_audit_maintainer"}

    async def test_can_follow_later(self, database, connection):
        """A store that was made without roles gets them by a second run."""
        await init(database)
        await init(database, roles=True)
        assert (
            await connection.fetchval(
                "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'audit'"
            )
            == "otel_audit_owner"
        )

    async def test_let_the_writer_append_and_no_more(self, postgres, database, login):
        """The writer inserts and sees receipts; it neither reads, changes, nor sets times."""
        role = await login()
        await init(database, roles=True, writer=role)
        dsn = postgres.dsn(name_of(database), role)
        sink = PostgresSink(dsn)
        await sink.check()
        record = a_record(record_id=uuid7())
        assert (await sink.write([record, a_record(record_id="x")])).quarantined == 1
        assert (await sink.write([record])).stored == 1
        await sink.close()
        writer = await asyncpg.connect(dsn)
        try:
            receipt = await writer.fetchrow(
                "SELECT id, content_hash, recorded_at FROM audit.audit_logs"
            )
            assert str(receipt["id"]) == record.record_id
            await writer.fetch("SELECT * FROM audit.ensure_partitions()")
            for refused in (
                "SELECT payload FROM audit.audit_logs",
                "SELECT * FROM audit.quarantine",
                "SELECT id FROM audit.audit_logs_default",
                "UPDATE audit.audit_logs SET actor_id = 'x'",
                "DELETE FROM audit.audit_logs",
                "TRUNCATE audit.audit_logs",
                "INSERT INTO audit.audit_logs (recorded_at) VALUES ('2001-01-01')",
                "INSERT INTO audit.schema_version VALUES (2, 'x')",
                "ALTER TABLE audit.audit_logs DISABLE TRIGGER ALL",
                "CREATE TABLE audit.x (y int)",
                "SELECT audit.make_partition('2040-01-01')",
                "SELECT audit.guard('audit.quarantine')",
                "SET ROLE otel_audit_owner",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await writer.execute(refused)
        finally:
            await writer.close()

    async def test_let_the_reader_read(self, postgres, database, login):
        """The reader sees the trail, through its one table, and writes nothing."""
        role = await login()
        await init(database, roles=True, reader=role)
        reader = await asyncpg.connect(postgres.dsn(name_of(database), role))
        try:
            assert await reader.fetch("SELECT payload FROM audit.audit_logs") == []
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await reader.execute("SELECT * FROM audit.audit_logs_default")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await reader.execute("INSERT INTO audit.quarantine (reason) VALUES ('x')")
        finally:
            await reader.close()

    async def test_can_be_made_without_a_superuser(self, postgres, database, login):
        """CREATEROLE and CREATE on the database are enough, and no membership stays behind."""
        groups = [
            f"otel_audit_{name}" for name in ("owner", "writer", "reader", "sealer", "retention")
        ]
        for group in groups:
            await postgres.execute(
                f"DO $$ BEGIN CREATE ROLE {group} NOLOGIN; "
                "EXCEPTION WHEN duplicate_object THEN NULL; END $$"
            )
        admin, writer = await login("CREATEROLE"), await login()
        await postgres.execute(
            f"GRANT CREATE ON DATABASE {name_of(database)} TO {admin}",
            *(f"GRANT {group} TO {admin} WITH ADMIN OPTION" for group in groups),
        )
        dsn = postgres.dsn(name_of(database), admin)
        await init(dsn, roles=True, writer=writer)
        report = await init(dsn, roles=True, writer=writer)
        assert report.applied == ()
        sink = PostgresSink(postgres.dsn(name_of(database), writer))
        await sink.check()
        await sink.close()

    async def test_refuse_a_role_that_does_not_exist(self, database):
        """A writer that is not there is named, and nothing is made."""
        with pytest.raises(ConfigurationError, match="no role nobody_here"):
            await init(database, roles=True, writer="nobody_here")
        assert (await init(database)).applied == ALL

    async def test_need_to_be_wanted(self, database):
        """A writer without roles is a mistake, and said to be one."""
        with pytest.raises(ConfigurationError, match="roles=True"):
            await init(database, writer="x")


class TestScript:
    async def test_makes_what_init_makes(self, one_day, postgres, database, connection):
        """Whoever applies the SQL by hand has the same store."""
        other = f"by_hand_{uuid.uuid4().hex[:8]}"
        await postgres.execute(f"CREATE DATABASE {other}")
        await postgres.execute(schema_sql(roles=True), database=other)
        await init(database, roles=True)
        by_hand = await asyncpg.connect(postgres.dsn(other))
        try:
            assert await fingerprint(by_hand) == await fingerprint(connection)
        finally:
            await by_hand.close()
        assert (await init(postgres.dsn(other))).applied == ()
