"""Bringing a store up to date: by command, by SQL, by Alembic; never backwards, never by halves."""

from __future__ import annotations

import asyncio
import textwrap
import uuid

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from click.testing import CliRunner
from ledger_store import Log
from otel_audit_postgres import PostgresSink, init, maintain, migrate, schema_sql
from otel_audit_postgres.schema.migrations import latest_version, migrations
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.cli.main import cli
from otel_audit.errors import StoreError

ALL = tuple(step.name for step in migrations())


@pytest.fixture
async def connection(database):
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


async def old_store(connection, version):
    await connection.execute("CREATE SCHEMA audit")
    for step in migrations()[:version]:
        await connection.execute(step.sql)
        await connection.execute(
            "INSERT INTO audit.schema_version (version, name) VALUES ($1, $2)",
            step.version,
            step.name,
        )


async def columns(connection):
    return await connection.fetch(
        "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) "
        "FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
        "WHERE c.relnamespace = 'audit'::regnamespace AND a.attnum > 0 ORDER BY 1, 2"
    )


class TestMigrate:
    @pytest.mark.parametrize("version", range(1, latest_version()))
    async def test_brings_up_every_earlier_version(self, database, connection, version):
        """What was recorded before is there after, and is sealed and verified."""
        await old_store(connection, version)
        record_id = uuid7()
        await connection.execute(
            "INSERT INTO audit.audit_logs (id, action_id, phase, occurred_at, duration_ms, event_name, "
            "action, outcome, actor_id, actor_type, transaction_outcome, schema_version, payload, "
            "content_hash) VALUES ($1, 'a', 'completed', now(), 0, 'e', 'READ', 'success', 'x', 'user', "
            "'none', '1', '{}', sha256('{}'))",
            record_id,
        )
        report = await migrate(database)
        assert report.applied == ALL[version:]
        assert await connection.fetchval("SELECT id::text FROM audit.audit_logs") == record_id
        assert await connection.fetchval("SELECT count(*) FROM audit.ledger_queue") == 1

    async def test_does_nothing_twice(self, database):
        """Once up to date it says so."""
        await init(database)
        assert (await migrate(database)).lines == (
            f"schema audit: up to date at version {latest_version()}",
        )

    async def test_is_done_by_one_at_a_time(self, database, connection):
        """Of many that start together one does each step."""
        await old_store(connection, 1)
        reports = await asyncio.gather(*(migrate(database) for _ in range(4)))
        assert sorted(len(report.applied) for report in reports) == [0, 0, 0, len(ALL) - 1]

    async def test_makes_no_store(self, database):
        """Where there is none, it says which command makes one."""
        with pytest.raises(StoreError, match="no audit store to migrate.*otel-audit init"):
            await migrate(database)

    async def test_renews_the_grants_of_a_store_with_roles(self, database, connection):
        """A right that a new version needs comes with it."""
        await init(database, roles=True)
        await connection.execute("REVOKE SELECT ON audit.ledger_pruned FROM otel_audit_sealer")
        await migrate(database)
        assert await connection.fetchval(
            "SELECT has_table_privilege('otel_audit_sealer', 'audit.ledger_pruned', 'SELECT')"
        )


class TestRefusal:
    @pytest.mark.parametrize("call", [init, migrate])
    async def test_of_a_newer_store(self, database, connection, call):
        """Backwards is never; nothing is touched."""
        await init(database)
        await connection.execute("INSERT INTO audit.schema_version VALUES (999, 'future')")
        with pytest.raises(
            StoreError, match="version 999.*never goes backwards.*upgrade otel-audit"
        ):
            await call(database)

    @pytest.mark.parametrize("call", [init, migrate])
    @pytest.mark.parametrize(
        ("done_by_hand", "message"),
        [
            (
                "DROP TABLE audit.ledger_blocks CASCADE",
                "0002 ledger is recorded as applied, but table audit.ledger_blocks is missing",
            ),
            (
                "DELETE FROM audit.schema_version WHERE version = 2",
                "0002 ledger is missing in audit.schema_version, where a later one is",
            ),
            (
                "DELETE FROM audit.schema_version WHERE version >= 3",
                "0003 received is half applied: table audit.receiving_key is there",
            ),
            (
                "UPDATE audit.schema_version SET name = 'mine' WHERE version = 2",
                "0002 of this store is 'mine', otel-audit knows it as 'ledger'",
            ),
        ],
    )
    async def test_of_a_half_migrated_store(
        self, database, connection, call, done_by_hand, message
    ):
        """What was done by hand is named, with what to do, and nothing is changed."""
        await init(database)
        await connection.execute(
            "ALTER TABLE audit.schema_version DISABLE TRIGGER USER; "
            f"{done_by_hand}; ALTER TABLE audit.schema_version ENABLE ALWAYS TRIGGER refuse_change"
        )
        before = await columns(connection)
        with pytest.raises(StoreError, match=message):
            await call(database)
        assert await columns(connection) == before

    async def test_of_a_step_that_fails(self, database, connection):
        """A step that cannot be done leaves the version before it."""
        await old_store(connection, 1)
        await connection.execute("CREATE TYPE audit.ledger_log AS ENUM ('x')")
        before = await columns(connection)
        with pytest.raises(StoreError):
            await migrate(database)
        assert await columns(connection) == before
        assert await connection.fetchval("SELECT max(version) FROM audit.schema_version") == 1


class TestCommands:
    @pytest.fixture
    def run(self, database, monkeypatch):
        monkeypatch.setenv("OTEL_AUDIT_DSN", database)

        def call(*arguments, status=0):
            result = CliRunner().invoke(cli, list(arguments))
            assert result.exit_code == status, result.output
            return result.output

        return call

    async def test_print_what_a_store_lacks(self, run, database, connection):
        """The script brings the store to where the command would, and is empty afterwards."""
        await old_store(connection, 2)
        script = await asyncio.to_thread(run, "migrate", "--sql")
        assert "CREATE TABLE audit.audit_logs (" not in script
        await connection.execute(script)
        assert (await migrate(database)).applied == ()
        assert script == run("migrate", "--sql", "--from", "2")

    def test_need_sql_for_a_version(self, run):
        """--from alone would do nothing."""
        assert "for --sql" in run("migrate", "--from", "1", status=2)

    async def test_say_what_was_done(self, run, connection):
        """A line for each step; then that it is up to date."""
        await old_store(connection, 1)
        assert "migration 0002 ledger: applied" in await asyncio.to_thread(run, "migrate")
        assert "up to date" in await asyncio.to_thread(run, "migrate")

    async def test_maintain_partitions(self, run, database, connection):
        """Months ahead are made, and what is in the default partition is told by month."""
        await init(database)
        output = await asyncio.to_thread(run, "maintain", "--ahead", "5")
        assert output.count(": made") == 3
        assert "default partition: empty" in output
        late = await connection.fetchval("SELECT audit.uuid_at('2021-05-02Z')::text")
        sink = PostgresSink(database)
        await sink.write([a_record(record_id=late)])
        await sink.close()
        assert "default partition: 1 rows of 2021-05" in await asyncio.to_thread(run, "maintain")


class TestMissingPartition:
    async def test_loses_no_record(self, one_day, database, connection, tmp_path):
        """Without any partition of this month a record is stored, reported, sealed and verified."""
        await init(database)
        await connection.execute("DO $$ DECLARE p text; BEGIN FOR p IN SELECT inhrelid::regclass "
            "FROM pg_inherits WHERE inhparent = 'audit.audit_logs'::regclass "
            "AND inhrelid <> 'audit.audit_logs_default'::regclass LOOP EXECUTE 'DROP TABLE ' || p; "
            "END LOOP; END $$")  # fmt: skip
        # tables of other makers stand where partitions would be made
        for away in (0, -1, 1):
            name = await connection.fetchval(
                "SELECT to_char(now() AT TIME ZONE 'UTC' + make_interval(months => $1), 'YYYY_MM')",
                away,
            )
            await connection.execute(f"CREATE TABLE audit.audit_logs_{name} (x int)")
        log = Log(database, tmp_path)
        await log.write(3)
        assert await connection.fetchval("SELECT count(*) FROM audit.audit_logs_default") == 3
        await log.seal()
        report = await log.verify()
        assert (report.ok, report.rows_checked) == (True, 3)
        done = await maintain(database)
        assert sum(done.in_default.values()) == 3
        assert not done.ok
        assert "it is no partition" in done.partitions[0].detail


REVISION = '''
"""The audit store."""
from alembic import op
from otel_audit_postgres import alembic as audit

revision = "{revision}"
down_revision = {down!r}


def upgrade():
    audit.upgrade(op, {arguments})


def downgrade():
    audit.downgrade(op)
'''
ENV = """
import asyncio
from alembic import context
from sqlalchemy import create_engine, pool
from sqlalchemy.ext.asyncio import create_async_engine

url = context.config.get_main_option("sqlalchemy.url")


def run(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


async def run_async():
    engine = create_async_engine(url, poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)
        await connection.commit()


if context.is_offline_mode():
    context.configure(url=url, literal_binds=True, dialect_opts={"paramstyle": "named"})
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(run_async())
"""


class TestAlembic:
    @pytest.fixture
    def config(self, tmp_path, database):
        def make(*arguments):
            folder = tmp_path / f"migrations_{uuid.uuid4().hex[:6]}"
            (folder / "versions").mkdir(parents=True)
            (folder / "env.py").write_text(textwrap.dedent(ENV))
            before = None
            for number, argument in enumerate(arguments, 1):
                (folder / "versions" / f"{number}.py").write_text(
                    REVISION.format(revision=f"r{number}", down=before, arguments=argument)
                )
                before = f"r{number}"
            config = Config()
            config.set_main_option("script_location", str(folder))
            url = database.replace("postgresql://", "postgresql+asyncpg://").replace("%", "%%")
            config.set_main_option("sqlalchemy.url", url)
            return config

        return make

    async def test_makes_what_init_makes(self, one_day, postgres, config, database, connection):
        """Two revisions, one after the other, with roles in the second."""
        await asyncio.to_thread(
            command.upgrade, config("since=0, to=2", f"to={latest_version()}, roles=True"), "head"
        )
        other = f"by_init_{uuid.uuid4().hex[:8]}"
        await postgres.execute(f"CREATE DATABASE {other}")
        await init(postgres.dsn(other), roles=True)
        by_init = await asyncpg.connect(postgres.dsn(other))
        try:
            assert await columns(connection) == await columns(by_init)
        finally:
            await by_init.close()
        assert (await migrate(database)).applied == ()

    async def test_lets_the_viewers_role_look_on_behalf_of_others(
        self, postgres, config, database, connection
    ):
        """It is entered as one that sees nothing before it has said for whom."""
        role = f"viewer_{uuid.uuid4().hex[:8]}"
        await postgres.execute(f"CREATE ROLE {role} LOGIN")
        arguments = f"since=0, roles=True, viewer={role!r}"
        await asyncio.to_thread(command.upgrade, config(arguments), "head")
        assert await connection.fetchval(
            "SELECT is_scoped FROM audit.reader_tenants WHERE role_name = $1", role
        )
        assert await connection.fetchval(
            "SELECT pg_has_role($1, 'otel_audit_reader', 'MEMBER')", role
        )

    async def test_writes_a_script_offline(self, config, database, connection, capsys):
        """`alembic upgrade --sql` prints what makes the same store."""
        await asyncio.to_thread(command.upgrade, config("since=0"), "head", sql=True)
        await connection.execute(capsys.readouterr().out)
        assert (await migrate(database)).applied == ()
        made = await columns(connection)
        await connection.execute("DROP SCHEMA audit CASCADE")
        await connection.execute(schema_sql())
        assert await columns(connection) == made

    async def test_goes_on_from_what_is_there(self, config, database, connection):
        """A store that init made is brought up, or found up to date."""
        await old_store(connection, 2)
        await asyncio.to_thread(command.upgrade, config(""), "head")
        assert (await migrate(database)).applied == ()
        await asyncio.to_thread(command.upgrade, config("", ""), "r2")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("to=999", "to=999"),
            ("to=1, roles=True", "newest version"),
            ("writer='x'", "roles=True"),
        ],
    )
    async def test_says_what_does_not_fit(self, config, arguments, message):
        """A wrong argument is named before anything is done."""
        with pytest.raises(Exception, match=message):
            await asyncio.to_thread(command.upgrade, config(arguments), "head")

    async def test_never_goes_backwards(self, config, database):
        """Neither by downgrade, nor by a revision that wants an earlier version."""
        prepared = config(f"to={latest_version()}")
        await asyncio.to_thread(command.upgrade, prepared, "head")
        with pytest.raises(StoreError, match="not downgraded"):
            await asyncio.to_thread(command.downgrade, prepared, "base")
        with pytest.raises(StoreError, match="never goes backwards"):
            await asyncio.to_thread(command.upgrade, config("", "to=1"), "head")

    async def test_asks_for_the_version_offline(self, config):
        """Without a database, since= has to be given."""
        from otel_audit.errors import ConfigurationError

        with pytest.raises(ConfigurationError, match="since="):
            await asyncio.to_thread(command.upgrade, config(""), "head", sql=True)
