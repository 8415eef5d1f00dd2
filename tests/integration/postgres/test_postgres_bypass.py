"""Every way around the guards that we know, by everybody who might try it, on PostgreSQL 15 and 18.

Each attempt must be refused with an error that says why, or be found by `verify`, or do nothing.
"""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import asyncpg
import pytest
from ledger_store import Log
from otel_audit_postgres import PostgresSink, init
from otel_audit_postgres.ledger.anchors import FileAnchor
from postgres_servers import Postgres, system_postgres
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.record import Tenant

VERSIONS = (15, 18)
ROLES = ("stranger", "writer", "reader", "sealer", "retention", "creator", "owner", "superuser")
MONTH = "(SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'audit.audit_logs'::regclass AND inhrelid::regclass::text LIKE '%20%' ORDER BY 1 OFFSET 1 LIMIT 1)"
LETS_PASS = (
    "CREATE OR REPLACE FUNCTION audit.refuse_change() RETURNS trigger LANGUAGE plpgsql "
    "AS $$ BEGIN RETURN OLD; END $$"
)
SWALLOW = (
    "CREATE OR REPLACE FUNCTION pg_temp.swallow() RETURNS trigger LANGUAGE plpgsql "
    "AS $$ BEGIN RETURN NULL; END $$"
)
# {p} is this month's partition
ATTACKS = {
    "update": ["UPDATE audit.audit_logs SET actor_id = 'eve'"],
    "update nothing": ["UPDATE audit.audit_logs SET actor_id = actor_id WHERE false"],
    "update a partition": ["UPDATE {p} SET actor_id = 'eve'"],
    "delete": ["DELETE FROM audit.audit_logs"],
    "delete from a partition": ["DELETE FROM ONLY {p}"],
    "delete with a join": ["DELETE FROM audit.audit_logs a USING audit.audit_logs b WHERE a.id = b.id"],
    "merge delete": ["MERGE INTO audit.audit_logs t USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE"],
    "merge update": [
        "MERGE INTO {p} t USING (SELECT 1) s ON true WHEN MATCHED THEN UPDATE SET actor_id = 'eve'"
    ],
    "upsert": [
        ("INSERT INTO audit.audit_logs SELECT * FROM audit.audit_logs "
        "ON CONFLICT (id, tenant_id) DO UPDATE SET actor_id = 'eve'")
    ],
    "truncate": ["TRUNCATE audit.audit_logs"],
    "truncate a partition": ["TRUNCATE {p}"],
    "truncate the default partition": ["TRUNCATE ONLY audit.audit_logs_default"],
    "truncate with others": ["CREATE TEMP TABLE t (x int)", "TRUNCATE t, audit.audit_logs CASCADE"],
    "set the time of recording": [
        ("INSERT INTO audit.audit_logs SELECT (jsonb_populate_record(a, jsonb_build_object('id', "
        "overlay(gen_random_uuid()::text placing '0192' from 1 for 4), "
        "'recorded_at', '2001-01-01Z'))).* FROM audit.audit_logs a LIMIT 1")
    ],
    "rule": ["CREATE RULE r AS ON INSERT TO audit.audit_logs DO INSTEAD NOTHING"],
    "rule on a partition": ["CREATE RULE r AS ON INSERT TO {p} DO INSTEAD NOTHING"],
    "rule against deleting": ["CREATE RULE r AS ON DELETE TO audit.ledger_queue DO ALSO NOTHING"],
    "swallowing trigger": [
        "CREATE FUNCTION pg_temp.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER t BEFORE INSERT ON {p} FOR EACH ROW EXECUTE FUNCTION pg_temp.f()",
    ],
    "disable triggers": ["ALTER TABLE audit.audit_logs DISABLE TRIGGER USER"],
    "disable triggers of a partition": ["ALTER TABLE {p} DISABLE TRIGGER USER"],
    "disable a trigger and delete": [
        "ALTER TABLE {p} DISABLE TRIGGER USER", "DELETE FROM ONLY {p}", "ALTER TABLE {p} ENABLE TRIGGER USER",
    ],
    "make a trigger ordinary": ["ALTER TABLE audit.audit_logs ENABLE TRIGGER refuse_change"],
    "drop a trigger": ["DROP TRIGGER refuse_change ON audit.audit_logs"],
    "rename a trigger": ["ALTER TRIGGER refuse_row_change ON audit.audit_logs RENAME TO x"],
    "stop queueing": ["ALTER TABLE audit.audit_logs DISABLE TRIGGER queue_for_sealing"],
    "drop the table": ["DROP TABLE audit.audit_logs CASCADE"],
    "drop a partition": ["DROP TABLE {p}"],
    "drop the quarantine": ["DROP TABLE audit.quarantine"],
    "drop the schema": ["DROP SCHEMA audit CASCADE"],
    "drop what one owns": ["DROP OWNED BY otel_audit_owner CASCADE"],
    "rename the schema": ["ALTER SCHEMA audit RENAME TO elsewhere"],
    "rename the table": ["ALTER TABLE audit.audit_logs RENAME TO elsewhere"],
    "move the table": ["ALTER TABLE audit.audit_logs SET SCHEMA public"],
    "move a partition": ["ALTER TABLE {p} SET SCHEMA public"],
    "give all away": ["REASSIGN OWNED BY otel_audit_owner TO CURRENT_USER"],
    "give all away and move a table": [
        "REASSIGN OWNED BY otel_audit_owner TO CURRENT_USER", "ALTER TABLE audit.holds SET SCHEMA public",
    ],
    "give all away and rename the schema": [
        "REASSIGN OWNED BY otel_audit_owner TO CURRENT_USER", "ALTER SCHEMA audit RENAME TO elsewhere",
    ],
    "detach a partition": ["ALTER TABLE audit.audit_logs DETACH PARTITION {p}"],
    "attach a partition": [
        ("CREATE TABLE public.fake PARTITION OF audit.audit_logs FOR VALUES "
        "FROM (audit.uuid_at('2035-01-01Z')) TO (audit.uuid_at('2035-02-01Z'))")
    ],
    "drop a column": ["ALTER TABLE audit.audit_logs DROP COLUMN user_agent"],
    "forbid new rows": ["ALTER TABLE audit.audit_logs ADD CONSTRAINT c CHECK (false) NOT VALID"],
    "change a default": ["ALTER TABLE audit.audit_logs ALTER recorded_at SET DEFAULT '2001-01-01Z'"],
    "give the table away": ["ALTER TABLE audit.audit_logs OWNER TO CURRENT_USER"],
    "make it unlogged": ["ALTER TABLE audit.quarantine SET UNLOGGED"],
    "index with code": ["CREATE INDEX i ON {p} ((actor_id || 'x'))"],
    "replica mode": [
        "SET session_replication_role = replica", "UPDATE audit.audit_logs SET actor_id = 'eve'",
    ],
    "replica mode and DDL": [
        "SET session_replication_role = replica", "ALTER TABLE audit.audit_logs DISABLE TRIGGER USER",
    ],
    "replace the guarding function": [LETS_PASS],
    "replace the function that drops": [
        ("CREATE OR REPLACE FUNCTION audit.drop_partition(partition text, manifest uuid) RETURNS bigint "
        "LANGUAGE sql AS 'SELECT 1::bigint'")
    ],
    "drop the guarding function": ["DROP FUNCTION audit.refuse_change() CASCADE"],
    "unpin a search path": ["ALTER FUNCTION audit.queue_for_sealing() RESET search_path"],
    "overload a function": [
        "CREATE FUNCTION audit.guard(text) RETURNS void LANGUAGE sql AS ''"
    ],
    "shadow by temporary tables": [
        "CREATE TEMP TABLE audit_logs (id uuid)", "CREATE TEMP TABLE ledger_queue (id uuid)",
        "CREATE TEMP TABLE pg_class (x int)", "SET search_path = pg_temp, public",
    ],
    "shadow by functions": [
        "CREATE FUNCTION pg_temp.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT now()'",
        "SET search_path = pg_temp, pg_catalog",
    ],
    "row security off": ["ALTER TABLE audit.audit_logs DISABLE ROW LEVEL SECURITY"],
    "another policy": ["CREATE POLICY hole ON audit.audit_logs FOR SELECT USING (true)"],
    "become the owner": ["SET ROLE otel_audit_owner", "UPDATE audit.audit_logs SET actor_id = 'eve'"],
    "become the maintainer": [
        "SET ROLE otel_audit_maintainer", "ALTER TABLE {p} DISABLE TRIGGER USER", "DELETE FROM {p}",
    ],
    "grant oneself the owner": [
        "GRANT otel_audit_owner TO CURRENT_USER", "SET ROLE otel_audit_owner",
        "ALTER TABLE {p} DISABLE TRIGGER USER",
    ],
    "grant oneself the maintainer": [
        "GRANT otel_audit_maintainer TO CURRENT_USER", "SET ROLE otel_audit_maintainer",
        "ALTER TABLE {p} DISABLE TRIGGER USER", "DELETE FROM {p}",
    ],
    "grant a right": ["GRANT UPDATE ON audit.audit_logs TO PUBLIC"],
    "grant a partition": ["GRANT SELECT ON {p} TO PUBLIC"],
    "grant the schema": ["GRANT CREATE ON SCHEMA audit TO PUBLIC"],
    "permit DDL to oneself": [
        "SET otel_audit.permit_ddl = 'on'", "ALTER TABLE {p} DISABLE TRIGGER USER", "DELETE FROM {p}",
    ],
    "disable the event trigger": ["ALTER EVENT TRIGGER otel_audit_refuse_ddl DISABLE"],
    "drop the event trigger": ["DROP EVENT TRIGGER otel_audit_refuse_drop"],
    "write to the catalog": ["UPDATE pg_catalog.pg_trigger SET tgenabled = 'D' WHERE tgname = 'refuse_change'"],
    "cover the tracks": [
        "SET otel_audit.permit_ddl = 'on'",
        "ALTER TABLE audit.audit_logs DISABLE TRIGGER refuse_change",
        "ALTER TABLE audit.audit_logs DISABLE TRIGGER refuse_row_change",
        "UPDATE audit.audit_logs SET recorded_at = recorded_at - interval '1 day'",
        "ALTER TABLE audit.audit_logs ENABLE ALWAYS TRIGGER refuse_change",
        "ALTER TABLE audit.audit_logs ENABLE ALWAYS TRIGGER refuse_row_change",
    ],
    "empty the queue": ["DELETE FROM audit.ledger_queue"],
    "change the queue": ["UPDATE audit.ledger_queue SET content_hash = sha256('')"],
    "truncate the queue": ["TRUNCATE audit.ledger_queue"],
    "delete blocks": ["DELETE FROM audit.ledger_blocks"],
    "append a false block": [
        ("INSERT INTO audit.ledger_blocks (first, ids, hashes, lowest, highest) "
        "SELECT 1000, ids, hashes, lowest, highest FROM audit.ledger_blocks LIMIT 1")
    ],
    "change a checkpoint": ["UPDATE audit.ledger_checkpoints SET note = ''"],
    "append a false checkpoint": [
        "INSERT INTO audit.ledger_checkpoints (size, note) SELECT 1000, note FROM audit.ledger_checkpoints"
    ],
    "another name for the log": ["UPDATE audit.ledger_log SET origin = 'eve'"],
    "claim a pruning": [
        ("INSERT INTO audit.ledger_prunings (partition, manifest_id, lowest, above, rows) "
        "SELECT 'x', id, audit.uuid_at('2000-01-01Z'), audit.uuid_at('2100-01-01Z'), 5 "
        "FROM audit.audit_logs LIMIT 1")
    ],
    "claim pruned leaves": ["INSERT INTO audit.ledger_pruned (first, leaves, hash) VALUES (0, 1, sha256(''))"],
    "drop a month without manifest": [
        "SELECT audit.drop_partition(split_part('{p}', '.', 2), gen_random_uuid())"
    ],
    "collapse live leaves": ["SELECT audit.collapse_leaves(0, 6)"],
    "make any partition": ["SELECT audit.make_partition('2040-01-01')"],
    "make a record of one's own": [
        "SELECT audit.record_event('x', 'READ', NULL, NULL, '{{}}'::jsonb, NULL)"
    ],
    "inside a function": ["DO $$ BEGIN EXECUTE 'DELETE FROM audit.audit_logs'; END $$"],
    "by a view": [
        "CREATE TEMP VIEW v AS SELECT * FROM audit.audit_logs", "UPDATE v SET actor_id = 'eve'",
    ],
    "by a cursor": [
        ("DO $$ DECLARE r record; c CURSOR FOR SELECT * FROM audit.audit_logs FOR UPDATE; BEGIN OPEN c; "
        "FETCH c INTO r; DELETE FROM audit.audit_logs WHERE CURRENT OF c; END $$")
    ],
    "forget versions": ["DELETE FROM audit.schema_version"],
    "see other tenants": ["UPDATE audit.reader_tenants SET tenant_id = NULL"],
    "see all tenants": ["INSERT INTO audit.reader_tenants (role_name) VALUES (session_user)"],
    "read the key": ["CREATE TEMP TABLE k AS SELECT * FROM audit.receiving_key"],
}  # fmt: skip
READS = {
    "another tenant's rows": "SELECT payload FROM audit.audit_logs WHERE tenant_id = 'other'",
    "a partition": "SELECT payload FROM {p}",
    "the default partition": "SELECT payload FROM audit.audit_logs_default",
    "the quarantine": "SELECT * FROM audit.quarantine",
    "by COPY": "COPY {p} (payload) TO STDOUT",
    "row security switched off": "SET row_security = off; SELECT payload FROM audit.audit_logs",
    "by a leaky function": (
        "CREATE FUNCTION pg_temp.leak(text) RETURNS boolean COST 0.0001 LANGUAGE plpgsql AS "
        "'BEGIN RAISE NOTICE ''%'', $1; RETURN true; END'; "
        "SELECT count(*) FROM audit.audit_logs WHERE pg_temp.leak(payload::text) AND tenant_id = 'other'"
    ),
}


@dataclass
class Store:
    """A store with roles, sealed rows and waiting ones, as a template to copy."""

    server: Postgres
    template: str
    log: Log
    logins: dict[str, str]

    async def copy(self):
        name = f"bypass_{uuid.uuid4().hex[:12]}"
        await self.server.execute(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        log = Log.__new__(Log)
        log.dsn, log.key, log.anchor = self.server.dsn(name), self.log.key, self.log.anchor
        return name, log

    async def drop(self, name):
        groups = ("owner", "writer", "reader", "sealer", "retention", "maintainer")
        await self.server.execute(
            f"DROP DATABASE {name} WITH (FORCE)",
            *(
                f"REVOKE otel_audit_{group} FROM {self.logins['creator']} CASCADE"
                for group in groups
            ),
        )


async def make_store(server, directory):
    logins = {role: f"{role}_{uuid.uuid4().hex[:6]}" for role in ROLES[:-1]}
    for role, login in logins.items():
        extra = "CREATEROLE" if role == "creator" else ""
        await server.execute(f"CREATE ROLE {login} LOGIN {extra}")
    template = f"bypass_template_{uuid.uuid4().hex[:6]}"
    await server.execute(f"CREATE DATABASE {template}")
    dsn = server.dsn(template)
    await init(
        dsn, roles=True, writer=logins["writer"], reader=logins["reader"], tenants=["mine"],
        sealer=logins["sealer"], retention=logins["retention"],
    )  # fmt: skip
    await server.execute(f"GRANT otel_audit_owner TO {logins['owner']}")
    await server.execute("GRANT ALL ON SCHEMA public TO PUBLIC", database=template)
    log = Log(dsn, directory)
    log.anchor = FileAnchor(directory / "anchor", directory=False)
    await log.write(3, tenant=Tenant(id="mine"))
    await log.write(3, tenant=Tenant(id="other"))
    await log.seal()
    await log.write(2, tenant=Tenant(id="other"))
    return Store(server, template, log, logins)


@pytest.fixture(scope="module", params=VERSIONS)
def store(request, tmp_path_factory):
    """The store on one version; made on a thread of its own, as the tests have a loop."""
    directory = tmp_path_factory.mktemp("bypass")
    with ExitStack() as stack:
        if request.param == 18:
            server = request.getfixturevalue("postgres")
        else:
            server = Postgres(stack.enter_context(system_postgres(request.param)))
        pool = stack.enter_context(ThreadPoolExecutor(1))

        def do(*statements):
            pool.submit(asyncio.run, server.execute(*statements)).result()

        made = pool.submit(asyncio.run, make_store(server, directory)).result()
        yield made
        # roles are the whole server's: what was given here, others would find
        do(
            f"REVOKE otel_audit_owner FROM {made.logins['owner']}",
            *(f"ALTER ROLE {login} NOCREATEROLE" for login in made.logins.values()),
        )


async def state(dsn):
    """All that an attack could change unseen: rows, guards, functions, rights."""
    connection = await asyncpg.connect(dsn)
    try:
        found = []
        for query in (
            "SELECT tableoid::regclass::text, id, recorded_at, payload::text, actor_id FROM audit.audit_logs ORDER BY id",
            "SELECT * FROM audit.ledger_queue ORDER BY 1",
            "SELECT * FROM audit.ledger_blocks ORDER BY 1",
            "SELECT * FROM audit.ledger_checkpoints ORDER BY 1",
            "SELECT * FROM audit.reader_tenants ORDER BY 1, 2",
            "SELECT version FROM audit.schema_version ORDER BY 1",
            "SELECT t.tgrelid, tgname, tgenabled::text, tgfoid FROM pg_trigger t ORDER BY 1, 2",
            "SELECT evtname, evtenabled::text FROM pg_event_trigger ORDER BY 1",
            "SELECT p.oid, prosrc, proconfig, proowner, proacl::text FROM pg_proc p WHERE pronamespace = 'audit'::regnamespace ORDER BY 1",
            "SELECT c.oid, relname, relnamespace, relowner, relrowsecurity, relpersistence::text, relacl::text FROM pg_class c WHERE relnamespace = 'audit'::regnamespace ORDER BY 1",
            "SELECT attrelid, attname, attacl::text, pg_get_expr(adbin, adrelid) FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = attrelid AND d.adnum = attnum WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'audit'::regnamespace) ORDER BY 1, 2",
            "SELECT inhrelid, inhparent FROM pg_inherits ORDER BY 1",
            "SELECT oid, polname FROM pg_policy ORDER BY 1",
            "SELECT oid, rulename FROM pg_rewrite WHERE oid > 16384 ORDER BY 1",
            "SELECT oid, conname FROM pg_constraint ORDER BY 1",
        ):
            rows = await connection.fetch(query)
            found.append([tuple(row.values()) for row in rows])
        return found
    finally:
        await connection.close()


async def attempt(dsn, statements, partition):
    """Run an attack in one session; tell the refusal, None if nothing was refused."""
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement.format(p=partition))
    except asyncpg.PostgresError as error:
        return error
    finally:
        await connection.close()
    return None


def says_why(error):
    """Whether whoever reads the error knows that it is not allowed, and not merely broken."""
    return getattr(error, "sqlstate", None) == "OA001" or isinstance(
        error,
        asyncpg.InsufficientPrivilegeError | asyncpg.DependentObjectsStillExistError
        | asyncpg.FeatureNotSupportedError,
    )  # fmt: skip


async def write_and_see_it_queued(server, name, log):
    """After an attack that did nothing, a new record is still stored and queued."""
    sink, record_id = PostgresSink(log.dsn), uuid7()
    assert (await sink.write([a_record(record_id=record_id)])).stored == 1
    await sink.close()
    connection = await asyncpg.connect(log.dsn)
    try:
        return bool(
            await connection.fetchval(
                "SELECT count(*) FROM audit.ledger_queue WHERE id = $1", record_id
            )
        )
    finally:
        await connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
async def test_every_attack_is_refused_or_found(store, role):
    """UPDATE, DELETE, MERGE, TRUNCATE, rules, DDL, roles, shadows …: none goes unseen."""
    holes, outcomes = [], {}
    name, log = await store.copy()
    try:
        before = await state(log.dsn)
        partition = await _this_month(log.dsn)
        for attack, statements in ATTACKS.items():
            dsn = store.server.dsn(name, store.logins.get(role, "postgres"))
            error = await attempt(dsn, statements, partition)
            if error is not None and not says_why(error):
                holes.append((attack, f"broken, not refused: {error!r}"))
            first_was_refused = error is not None and len(statements) == 1
            if first_was_refused or await _unchanged(log.dsn, before):
                outcomes[attack] = "refused" if error else "does nothing"
                continue
            outcomes[attack] = "found"
            if attack not in RIGHTLY and not await _is_found(log):
                holes.append((attack, "neither refused nor found"))
            await store.drop(name)
            name, log = await store.copy()
            before, partition = await state(log.dsn), await _this_month(log.dsn)
        assert not holes, holes
        assert await write_and_see_it_queued(store.server, name, log)
    finally:
        await store.drop(name)
    if role not in {"superuser", "creator"}:
        changed = {attack for attack, outcome in outcomes.items() if outcome == "found"}
        assert changed <= NOT_REFUSED.get(role, set())


# an owner may say who reads what, and add a record: that is a right of his, and changes no record
RIGHTLY = {"make a record of one's own", "see other tenants", "see all tenants"}
# what no trigger refuses to these: rights are not DDL on an object that PostgreSQL names, appending
# is the sealer's work, and the queue is not append-only
NOT_REFUSED = {
    "sealer": {"empty the queue", "append a false block", "append a false checkpoint"},
    "owner": {
        "grant a right", "grant a partition", "grant the schema", "empty the queue",
        "append a false block", "append a false checkpoint", "claim a pruning",
        "claim pruned leaves", "see other tenants", "see all tenants",
        "set the time of recording", "make any partition", "make a record of one's own",
        "give all away", "give all away and move a table", "give all away and rename the schema",
    },
}  # fmt: skip


EACH_OBJECT = """
SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
       ELSE 'TABLE' END || ' audit.' || quote_ident(relname), relowner::regrole::text
FROM pg_class WHERE relnamespace = 'audit'::regnamespace AND relkind IN ('r', 'p', 'S', 'v', 'm', 'f')
UNION ALL
SELECT 'ROUTINE ' || oid::regprocedure, proowner::regrole::text
FROM pg_proc WHERE pronamespace = 'audit'::regnamespace
UNION ALL
SELECT 'TYPE audit.' || quote_ident(typname), typowner::regrole::text
FROM pg_type WHERE typnamespace = 'audit'::regnamespace AND typrelid = 0 AND typcategory <> 'A'
"""


@pytest.mark.parametrize("change", ["SET SCHEMA public", "RENAME TO elsewhere"])
async def test_the_owner_moves_and_renames_nothing(store, change):
    """Each table, partition, sequence, view, function and type of the schema stays where it is."""
    connection = await asyncpg.connect(store.server.dsn(store.template, store.logins["owner"]))
    try:
        objects = await connection.fetch(EACH_OBJECT)
        passed = []
        for name, owner in objects:
            change_of_one = connection.transaction()
            await change_of_one.start()
            try:
                await connection.execute(f"ALTER {name} {change}")
                passed.append(name)
            except asyncpg.InsufficientPrivilegeError:
                assert owner == "otel_audit_maintainer", name
            except asyncpg.PostgresError as error:
                assert error.sqlstate == "OA001", (name, error)  # noqa: PT017
            finally:
                await change_of_one.rollback()
    finally:
        await connection.close()
    assert not passed
    assert {"TABLE audit.holds", "SEQUENCE audit.ledger_position"} <= {name for name, _ in objects}
    assert sum(name.startswith("ROUTINE") for name, _ in objects) > 50


async def test_other_ddl_in_the_database_passes(store):
    """The event trigger sees each DDL statement of the database, and refuses only what concerns the store."""
    connection = await asyncpg.connect(store.server.dsn(store.template, store.logins["stranger"]))
    other = f"holds_{uuid.uuid4().hex[:6]}"
    try:
        await connection.execute(
            f"CREATE TABLE public.{other} (x int); ALTER TABLE public.{other} ADD y int; "
            f"CREATE TEMP TABLE mine (x int); ALTER TABLE mine RENAME x TO y; "
            f"ALTER TABLE public.{other} RENAME TO {other}_2; DROP TABLE public.{other}_2"
        )
    finally:
        await connection.close()


async def _this_month(dsn):
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(f"SELECT {MONTH}")
    finally:
        await connection.close()


async def _unchanged(dsn, before):
    try:
        return await state(dsn) == before
    except asyncpg.PostgresError:
        return False  # tables are gone


async def _is_found(log):
    from otel_audit.errors import StoreError

    try:
        report = await log.verify()
        return not report.ok or report.malformed_count > 0
    except StoreError:
        return True  # there is no store any more: `verify` says so with exit status 1


def _may_not(read):
    """Who must not read so: the owner and the superuser may, the sealer reads every tenant's rows."""
    without = {"owner", "superuser"} if read == "a partition" else {"owner", "superuser", "sealer"}
    return [role for role in ROLES if role not in without]


@pytest.mark.parametrize(
    ("read", "role"), [(read, role) for read in READS for role in _may_not(read)]
)
async def test_nobody_reads_past_row_security(store, role, read):
    """Other tenants' records are seen by no statement, and partitions are not readable directly."""
    statement = READS[read].format(p=await _this_month(store.log.dsn))
    connection = await asyncpg.connect(store.server.dsn(store.template, store.logins[role]))
    told = []
    connection.add_log_listener(lambda _, message: told.append(str(message)))
    try:
        seen = await _each(connection, statement)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.ProtocolError) as error:
        assert "COPY" in statement or isinstance(error, asyncpg.InsufficientPrivilegeError)  # noqa: PT017
        seen = []
    finally:
        await connection.close()
    assert "other" not in str([tuple(row.values()) for row in seen])
    assert not any("other" in line for line in told)


async def _each(connection, script):
    first, _, last = script.rpartition("; ")
    if first:
        await connection.execute(first)
    return await connection.fetch(last)
