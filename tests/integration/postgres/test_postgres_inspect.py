"""What `otel-audit doctor` sees of a store."""

from __future__ import annotations

import uuid
from pathlib import Path

import asyncpg
import pytest
from otel_audit_postgres import PostgresSink, init, migrate
from otel_audit_postgres.checks.inspect import inspect
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.errors import StoreError


@pytest.fixture
async def owner(audit_store):
    connection = await asyncpg.connect(audit_store)
    await connection.execute("SET otel_audit.permit_ddl = 'on'")  # a superuser who means it
    yield connection
    await connection.close()


@pytest.fixture
async def writer_dsn(postgres, audit_store):
    """The store with its roles, as a writer reaches it."""
    role = f"writer_{uuid.uuid4().hex[:8]}"
    await postgres.execute(f"CREATE ROLE {role} LOGIN")
    await init(audit_store, roles=True, writer=role)
    yield postgres.dsn(audit_store.partition("?")[0].rpartition("/")[2], role)
    # roles are the whole server's: what one test gave, another would find
    await postgres.execute(
        f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}",
        database=audit_store.partition("?")[0].rpartition("/")[2],
    )


async def look(dsn, **kwargs):
    return {finding.name: finding for finding in await inspect(dsn, **kwargs)}


def wrong(findings):
    return {name for name, finding in findings.items() if finding.ok is not True}


EARLIER_EVENT_TRIGGER = Path(__file__).with_name("earlier_event_trigger.sql")
LETS_PASS = """
CREATE OR REPLACE FUNCTION audit.refuse_change() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN RETURN OLD; END $$
"""
BY_HAND = """
CREATE TABLE audit.by_hand PARTITION OF audit.audit_logs
FOR VALUES FROM (audit.uuid_at('2035-01-01Z')) TO (audit.uuid_at('2035-02-01Z'))
"""
NEVER = """
DROP TRIGGER refuse_change ON audit.quarantine;
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit.quarantine
FOR EACH STATEMENT WHEN (false) EXECUTE FUNCTION audit.refuse_change();
ALTER TABLE audit.quarantine ENABLE ALWAYS TRIGGER refuse_change
"""
SWALLOWS = """
CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER swallow BEFORE INSERT ON audit.audit_logs
FOR EACH ROW EXECUTE FUNCTION swallow()
"""


class TestInspect:
    @pytest.mark.usefixtures("durable_server")
    async def test_finds_nothing_wrong_with_a_proper_store(self, writer_dsn):
        """A store with roles, seen by its writer, is as it must be; every check has a word."""
        found = await look(writer_dsn)
        assert wrong(found) == set()
        assert set(found) >= {
            "reachable", "server_version", "schema", "schema_version", "guards", "may_insert",
            "may_not_change", "not_owner", "search_path", "owner_alone", "grants", "tenant_isolation",
            "role_makers", "event_trigger", "partitions", "default_partition", "quarantine",
        }  # fmt: skip
        assert all(finding.detail and not finding.remedy for finding in found.values())

    @pytest.mark.usefixtures("durable_server")
    async def test_finds_an_owner_at_work(self, audit_store):
        """A store without roles works, and its weakness is named."""
        found = await look(audit_store)
        assert wrong(found) == {"may_not_change", "not_owner", "roles"}
        assert "superuser" in found["not_owner"].detail
        assert "--roles" in found["not_owner"].remedy

    async def test_finds_a_member_of_the_owner(self, writer_dsn, owner):
        """Being able to become the owner is as good as being the owner."""
        role = writer_dsn.partition("://")[2].partition("@")[0]
        await owner.execute(f"GRANT otel_audit_owner TO {role}")
        found = await look(writer_dsn)
        assert "member of otel_audit_owner" in found["not_owner"].detail
        assert found["may_not_change"].ok is False
        assert f"role {role} is a member of otel_audit_owner" in found["owner_alone"].detail

    @pytest.mark.parametrize(
        ("attack", "name", "detail"),
        [
            (
                "ALTER FUNCTION audit.ensure_partitions(integer) RESET search_path",
                "search_path", "function ensure_partitions does not pin its search_path",
            ),
            (
                "GRANT CREATE ON SCHEMA audit TO otel_audit_writer",
                "search_path", "role otel_audit_writer may create things in schema audit",
            ),
            (
                "ALTER TABLE audit.audit_logs DISABLE ROW LEVEL SECURITY",
                "tenant_isolation", "row level security is off on audit.audit_logs",
            ),
            (
                "CREATE POLICY hole ON audit.audit_logs FOR SELECT TO otel_audit_reader USING (true)",
                "tenant_isolation", "policy hole on audit.audit_logs is not of otel-audit",
            ),
            (
                "GRANT SELECT ON audit.audit_logs_default TO otel_audit_reader",
                "tenant_isolation", "otel_audit_reader has SELECT on audit.audit_logs_default, past row",
            ),
            (
                "GRANT SELECT (payload) ON audit.audit_logs_default TO PUBLIC",
                "tenant_isolation", "PUBLIC has SELECT on audit.audit_logs_default",
            ),
            (
                "REVOKE SELECT ON audit.ledger_blocks FROM otel_audit_reader",
                "grants", "otel_audit_reader lacks SELECT on audit.ledger_blocks",
            ),
            (
                "GRANT UPDATE (note) ON audit.ledger_checkpoints TO otel_audit_sealer",
                "grants", "otel_audit_sealer has UPDATE on audit.ledger_checkpoints",
            ),
            (
                "GRANT INSERT ON audit.reader_tenants TO otel_audit_reader",
                "grants", "otel_audit_reader has INSERT on audit.reader_tenants",
            ),
            (
                "REVOKE EXECUTE ON FUNCTION audit.look_as(text[]) FROM otel_audit_reader",
                "grants", "otel_audit_reader lacks EXECUTE on audit.look_as(text[])",
            ),
            (
                "GRANT EXECUTE ON FUNCTION audit.record_export(jsonb, text) TO PUBLIC",
                "grants", "PUBLIC has EXECUTE on audit.record_export(jsonb,text)",
            ),
            (
                "GRANT EXECUTE ON FUNCTION audit.scope_mac(text) TO otel_audit_reader",
                "grants", "otel_audit_reader has EXECUTE on audit.scope_mac",
            ),
            (
                "GRANT SELECT ON audit.scope_key TO otel_audit_reader",
                "grants", "otel_audit_reader has SELECT on audit.scope_key",
            ),
            (
                "REVOKE SELECT ON audit.rollup FROM otel_audit_reader",
                "grants", "otel_audit_reader lacks SELECT on audit.rollup",
            ),
            ("DROP EVENT TRIGGER otel_audit_refuse_drop", "event_trigger", "switch the guards off"),
            (
                "REASSIGN OWNED BY otel_audit_owner TO CURRENT_USER",
                "guards", "schema audit belongs to postgres, not to otel_audit_owner",
            ),
            (
                "ALTER EVENT TRIGGER otel_audit_refuse_ddl DISABLE",
                "guards", "event trigger otel_audit_refuse_ddl is not ENABLE ALWAYS",
            ),
            (
                "ALTER TABLE audit.ledger_queue DISABLE TRIGGER refuse_change",
                "guards", "audit.ledger_queue has no trigger",
            ),
            (
                ("CREATE OR REPLACE FUNCTION audit.drop_partition(partition text, manifest uuid) "
                "RETURNS bigint LANGUAGE sql AS 'SELECT 1'"),
                "guards", "drop_partition(text,uuid) is not as otel-audit made it",
            ),
        ],
    )  # fmt: skip
    async def test_names_the_hole(self, writer_dsn, owner, attack, name, detail):
        """Each way around the guards that somebody opened is named, with a remedy."""
        await owner.execute(attack)
        found = (await look(writer_dsn))[name]
        assert found.ok is not True
        assert detail in found.detail
        assert found.remedy

    async def test_tells_an_earlier_event_trigger_from_a_changed_one(
        self, audit_store, writer_dsn, owner
    ):
        """It is no removed guard, but refuses less; migrating renews it."""
        await owner.execute(EARLIER_EVENT_TRIGGER.read_text("utf-8"))
        found = await look(writer_dsn)
        assert found["guards"].ok is True
        assert found["event_trigger"].ok is None
        assert "earlier otel-audit" in found["event_trigger"].detail
        assert "otel-audit migrate" in found["event_trigger"].remedy
        await migrate(audit_store)
        found = await look(writer_dsn)
        assert found["guards"].ok is True
        assert found["event_trigger"].ok is True

    @pytest.mark.parametrize("attribute", ["CREATEROLE", "BYPASSRLS"])
    async def test_names_a_role_with_a_dangerous_attribute(self, postgres, writer_dsn, attribute):
        """CREATEROLE opens the owner before PostgreSQL 16, BYPASSRLS every tenant's records."""
        role = f"strong_{uuid.uuid4().hex[:8]}"
        await postgres.execute(
            f"CREATE ROLE {role} {attribute}", f"GRANT otel_audit_reader TO {role}"
        )
        try:
            found = await look(writer_dsn)
        finally:
            await postgres.execute(f"DROP ROLE {role}")
        if attribute == "BYPASSRLS":
            assert f"role {role} has BYPASSRLS" in found["tenant_isolation"].detail
        elif "PostgreSQL 15" in found["server_version"].detail:
            assert f"role {role} has CREATEROLE" in found["role_makers"].detail
        else:
            assert found["role_makers"].ok is True

    async def test_finds_that_nobody_answers(self):
        """One finding, which names the setting and not the password."""
        (found,) = await inspect("postgresql://u:hunter2@127.0.0.1:1/x")
        assert (found.name, found.ok) == ("reachable", False)
        assert "OTEL_AUDIT_DSN" in found.detail + found.remedy
        assert "hunter2" not in repr(found)

    @pytest.mark.usefixtures("durable_server")
    async def test_finds_that_nothing_is_set_up(self, database):
        """An empty database needs init."""
        found = await look(database)
        assert wrong(found) == {"schema"}
        assert "otel-audit init" in found["schema"].remedy

    async def test_finds_another_version(self, audit_store, owner):
        """A schema of a newer version needs a newer package."""
        await owner.execute("INSERT INTO audit.schema_version VALUES (999, 'x')")
        found = await look(audit_store)
        assert found["schema_version"].ok is False
        assert found["schema_version"].remedy == "upgrade otel-audit"

    @pytest.mark.parametrize(
        "attack",
        [
            "DROP TRIGGER refuse_change ON audit.audit_logs_default",
            "DROP TRIGGER refuse_row_change ON audit.audit_logs",
            "ALTER TABLE audit.quarantine DISABLE TRIGGER refuse_change",
            "ALTER TABLE audit.audit_logs ENABLE TRIGGER refuse_change",
            "ALTER TABLE audit.audit_logs_default ENABLE REPLICA TRIGGER refuse_row_change",
            LETS_PASS,
            BY_HAND,
            NEVER,
        ],
    )
    async def test_finds_a_removed_guard(self, writer_dsn, owner, attack):
        """A trigger that is gone, off, conditional, or not ALWAYS, and a function that lets pass."""
        await owner.execute(attack)
        found = await look(writer_dsn)
        assert found["guards"].ok is False
        assert "audit." in found["guards"].detail

    @pytest.mark.parametrize(
        "attack",
        [
            SWALLOWS,
            "CREATE RULE swallow AS ON INSERT TO audit.quarantine DO INSTEAD NOTHING",
        ],
    )
    async def test_finds_what_could_swallow_records(self, writer_dsn, owner, attack):
        """A trigger or rule that is not ours is named."""
        await owner.execute(attack)
        found = await look(writer_dsn)
        assert found["foreign_triggers"].ok is False
        assert "swallow" in found["foreign_triggers"].detail

    @pytest.mark.usefixtures("durable_server")
    async def test_finds_missing_rights(self, writer_dsn, owner):
        """A writer that may not write is told what it lacks."""
        await owner.execute("REVOKE INSERT (actor_id) ON audit.audit_logs FROM otel_audit_writer")
        found = await look(writer_dsn)
        assert wrong(found) == {"may_insert"}
        assert "INSERT on audit.audit_logs (actor_id)" in found["may_insert"].detail

    @pytest.mark.usefixtures("durable_server", "writer_dsn")
    async def test_a_readers_dsn_is_told_what_it_is(self, postgres, audit_store, owner):
        """Not made a writer as well: another DSN is needed, and nothing more is said of rights."""
        role = f"auditor_{uuid.uuid4().hex[:8]}"
        await owner.execute(f"CREATE ROLE {role} LOGIN; GRANT otel_audit_reader TO {role}")
        dsn = postgres.dsn(audit_store.partition("?")[0].rpartition("/")[2], role)
        found = await look(dsn)
        assert wrong(found) == {"may_insert"}
        assert found["may_insert"].detail.startswith(f"role {role} (OTEL_AUDIT_DSN) reads")
        assert "--reader-dsn" in found["may_insert"].remedy
        assert f"--writer {role}" not in found["may_insert"].remedy
        with pytest.raises(StoreError, match="reads the trail and may not append") as raised:
            await PostgresSink(dsn).check()
        assert f"--writer {role}" not in str(raised.value)

    @pytest.mark.usefixtures("durable_server")
    async def test_finds_a_role_without_any_rights(self, postgres, audit_store, owner):
        """Even who may not enter the schema gets findings, not an error."""
        role = f"nobody_{uuid.uuid4().hex[:8]}"
        await owner.execute(f"CREATE ROLE {role} LOGIN")
        dsn = postgres.dsn(audit_store.partition("?")[0].rpartition("/")[2], role)
        found = await look(dsn)
        assert wrong(found) == {"may_insert", "roles"}
        assert "USAGE" in found["may_insert"].detail

    async def test_finds_the_right_to_change(self, writer_dsn, owner):
        """A right on a single column or partition is enough to be named."""
        role = writer_dsn.partition("://")[2].partition("@")[0]
        await owner.execute(
            f"GRANT UPDATE (actor_id) ON audit.audit_logs TO {role}; "
            f"GRANT DELETE ON audit.audit_logs_default TO {role}"
        )
        found = await look(writer_dsn)
        assert found["may_not_change"].ok is False
        assert "UPDATE on audit.audit_logs" in found["may_not_change"].detail
        assert "DELETE on audit.audit_logs_default" in found["may_not_change"].detail

    async def test_finds_missing_partitions(self, one_day, writer_dsn, owner):
        """This month's and the next one's must be there."""
        month = await owner.fetchval("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')")
        await owner.execute(f"DROP TABLE audit.audit_logs_{month}")
        found = await look(writer_dsn)
        assert f"audit_logs_{month}" in found["partitions"].detail
        assert found["partitions"].ok is False

    @pytest.mark.parametrize(
        ("renamed", "named"),
        [
            ("TABLE audit.audit_logs RENAME COLUMN actor_id TO who", "audit.audit_logs.actor_id"),
            (
                "FUNCTION audit.ensure_partitions(integer) RENAME TO gone",
                "audit.ensure_partitions()",
            ),
            (
                "FUNCTION audit.columns_hash(audit.audit_logs) RENAME TO gone",
                "audit.columns_hash()",
            ),
        ],
    )
    async def test_names_what_was_renamed(self, writer_dsn, owner, renamed, named):
        """A part of the schema that is gone is called by its name; it is not said to run init."""
        await owner.execute(f"ALTER {renamed}")
        schema = next(one for one in await inspect(writer_dsn) if one.name == "schema")
        assert schema.ok is False
        assert named in schema.detail

    async def test_without_the_function_for_partitions_records_are_stored(
        self, writer_dsn, owner, caplog
    ):
        """The month's partition is there, or the default one; the log says what is missing."""
        await owner.execute("ALTER FUNCTION audit.ensure_partitions(integer) RENAME TO gone")
        sink = PostgresSink(writer_dsn)
        assert (await sink.write([a_record(record_id=uuid7())])).stored == 1
        await sink.close()
        assert "audit.ensure_partitions(integer) is missing" in caplog.text

    async def test_finds_that_the_default_partition_was_detached(self, writer_dsn, owner):
        """A record of another month would be refused; `init` alone does not attach it again."""
        await owner.execute(
            "ALTER TABLE audit.audit_logs DETACH PARTITION audit.audit_logs_default"
        )
        found = (await look(writer_dsn))["partitions"]
        assert found.detail == "audit.audit_logs_default is missing"
        assert found.ok is False
        assert "ATTACH PARTITION" in found.remedy

    async def test_counts_what_asks_for_attention(self, writer_dsn):
        """Rows in the default partition and in quarantine are for a person to judge."""
        sink = PostgresSink(writer_dsn)
        await sink.write([a_record(record_id=uuid7(1)), a_record(record_id="bad")])
        await sink.close()
        found = await look(writer_dsn)
        assert found["default_partition"].ok is None
        assert found["default_partition"].detail.startswith("1 row")
        assert found["quarantine"].ok is None
        assert found["quarantine"].remedy


class TestApplication:
    async def test_may_live_in_another_database_of_the_server(self, postgres, writer_dsn, database):
        """A role without power over the store is fine."""
        role = f"app_{uuid.uuid4().hex[:8]}"
        await postgres.execute(f"CREATE ROLE {role} LOGIN")
        app = postgres.dsn(database.partition("?")[0].rpartition("/")[2], role)
        assert (await look(writer_dsn, app_dsn=app))["app_role"].ok is True

    async def test_must_not_be_superuser(self, writer_dsn, database):
        """An application whose role stands above the guards is named."""
        found = (await look(writer_dsn, app_dsn=database))["app_role"]
        assert found.ok is False
        assert "role postgres is a superuser" in found.detail

    async def test_may_be_away(self, writer_dsn):
        """A database that cannot be reached is not judged."""
        found = await look(writer_dsn, app_dsn="postgresql://127.0.0.1:1/x")
        assert found["app_role"].ok is None
