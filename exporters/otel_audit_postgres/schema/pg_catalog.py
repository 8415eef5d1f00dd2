"""The audit store in PostgreSQL's catalogs.

Catalogs may be read by everybody, so these queries work whatever the role may do; names that need
rights on the schema to be looked up (``'audit.x'::regclass``) are avoided where these may lack.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from otel_audit_postgres.connection import Connection
from otel_audit_postgres.rows import COLUMNS
from otel_audit_postgres.schema.migrations import event_trigger_sql, migrations

TABLES: Final = ("audit_logs", "audit_logs_default", "quarantine", "schema_version")

_TABLES: Final = """
SELECT relname FROM pg_catalog.pg_class
WHERE relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'audit')
  AND relname = ANY($1::text[]) AND relkind IN ('r', 'p')
"""
_LACKING: Final = """
SELECT 'INSERT on audit.audit_logs (' || wanted || ')' FROM unnest($1::text[]) AS wanted
WHERE NOT has_column_privilege('audit.audit_logs', wanted, 'INSERT')
UNION ALL
SELECT 'SELECT on audit.audit_logs (' || wanted || ')'
FROM unnest(ARRAY['id', 'content_hash', 'received_hash']) AS wanted
WHERE NOT has_column_privilege('audit.audit_logs', wanted, 'SELECT')
UNION ALL
SELECT 'INSERT on audit.quarantine (' || wanted || ')'
FROM unnest(ARRAY['content_hash', 'record_id', 'received', 'reason']) AS wanted
WHERE NOT has_column_privilege('audit.quarantine', wanted, 'INSERT')
"""
# the tables that must be guarded: the trail, every partition of it, the quarantine, the ledger
_GUARDED: Final = """
guarded AS (
    SELECT c.oid, 'audit.' || c.relname AS name, c.relname = 'audit_logs' AS is_trail
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'audit' AND c.relname IN
        ('audit_logs', 'quarantine', 'ledger_log', 'ledger_blocks', 'ledger_checkpoints',
         'ledger_prunings', 'ledger_pruned', 'ledger_flaws', 'ledger_places', 'receiving_key',
         'schema_version', 'quarantine_releases', 'quarantine_records', 'retention_policies',
         'holds', 'hold_releases', 'hold_overrides', 'archives', 'archive_removals',
         'retirements', 'restorations', 'erasures', 'scope_key')
    UNION
    SELECT i.inhrelid, pn.nspname || '.' || part.relname, true
    FROM pg_catalog.pg_inherits i
    JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
    JOIN pg_catalog.pg_namespace n ON n.oid = p.relnamespace
    JOIN pg_catalog.pg_class part ON part.oid = i.inhrelid
    JOIN pg_catalog.pg_namespace pn ON pn.oid = part.relnamespace
    WHERE n.nspname = 'audit' AND p.relname = 'audit_logs'
)"""
# tgtype is a sum (pg_trigger.h): 1 each row, 2 before, 4 insert, 8 delete, 16 update, 32 truncate
_GUARDS: Final = """
guards AS (
    SELECT t.tgrelid, t.tgtype, t.tgenabled, t.oid
    FROM pg_catalog.pg_trigger t
    JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid
    JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
    WHERE n.nspname = 'audit' AND f.proname = 'refuse_change' AND f.prosrc = $1
      AND t.tgqual IS NULL AND t.tgattr::text = ''
),
queueing AS (
    SELECT t.oid
    FROM pg_catalog.pg_trigger t
    JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
    JOIN pg_catalog.pg_namespace tn ON tn.oid = c.relnamespace
    JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid
    JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
    WHERE tn.nspname = 'audit' AND c.relname = 'audit_logs'
      AND n.nspname = 'audit' AND f.proname = 'queue_for_sealing' AND f.prosrc = $2
      AND t.tgtype = 4 AND t.tgenabled = 'A' AND t.tgqual IS NULL
)"""
_UNGUARDED: Final = f"""
WITH {_GUARDED}, {_GUARDS}
SELECT name || ' has no trigger, ENABLE ALWAYS, against UPDATE, DELETE and TRUNCATE'
FROM guarded
WHERE NOT EXISTS (SELECT FROM guards
                  WHERE tgrelid = guarded.oid AND tgtype & 59 = 58 AND tgenabled = 'A')
UNION ALL
SELECT name || ' has no row trigger, ENABLE ALWAYS, against UPDATE and DELETE'
FROM guarded
WHERE is_trail AND NOT EXISTS (SELECT FROM guards
                               WHERE tgrelid = guarded.oid AND tgtype & 27 = 27 AND tgenabled = 'A')
UNION ALL
SELECT 'audit.audit_logs has no trigger, ENABLE ALWAYS, that queues records for sealing'
WHERE NOT EXISTS (SELECT FROM queueing)
UNION ALL
SELECT 'audit.ledger_queue has no trigger, ENABLE ALWAYS, against UPDATE and TRUNCATE'
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'audit' AND c.relname = 'ledger_queue' AND NOT EXISTS (
    SELECT FROM guards WHERE tgrelid = c.oid AND tgtype & 51 = 50 AND tgenabled = 'A')
UNION ALL
SELECT 'event trigger ' || evtname || ' is not ENABLE ALWAYS, or calls another function'
FROM pg_catalog.pg_event_trigger e JOIN pg_catalog.pg_proc f ON f.oid = e.evtfoid
WHERE evtname IN ('otel_audit_refuse_ddl', 'otel_audit_refuse_drop')
  AND (evtenabled <> 'A'
       OR f.prosrc <> $3 AND encode(sha256(convert_to(f.prosrc, 'UTF8')), 'hex') <> ALL ($6))
UNION ALL
-- the event trigger knows what it guards by this owner
SELECT 'schema audit belongs to ' || pg_get_userbyid(a.nspowner) || ', not to otel_audit_owner'
FROM pg_catalog.pg_namespace a
WHERE a.nspname = 'audit' AND pg_get_userbyid(a.nspowner) <> 'otel_audit_owner'
  AND EXISTS (SELECT FROM pg_catalog.pg_proc f
              JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
              WHERE n.nspname = 'audit_guard' AND f.proname = 'refuse_ddl')
UNION ALL
-- its function is there, so it was installed
SELECT 'event trigger ' || wanted || ' is gone'
FROM unnest(ARRAY['otel_audit_refuse_ddl', 'otel_audit_refuse_drop']) AS wanted
WHERE EXISTS (SELECT FROM pg_catalog.pg_proc f
              JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
              WHERE n.nspname = 'audit_guard' AND f.proname = 'refuse_ddl')
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtname = wanted)
UNION ALL
SELECT 'function ' || f.oid::regprocedure || ' is not as otel-audit made it'
FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
JOIN unnest($4::text[], $5::text[]) AS ours (name, source) ON f.proname = ours.name
WHERE n.nspname = 'audit' AND f.prosrc <> ours.source
ORDER BY 1
"""  # noqa: S608 - constants
_MISSING_PARTS: Final = """
SELECT 'function audit.' || wanted || '()' FROM unnest($1::text[]) AS wanted
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_proc f
                  JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
                  WHERE n.nspname = 'audit' AND f.proname = wanted)
UNION ALL
SELECT 'column audit.audit_logs.' || wanted FROM unnest($2::text[]) AS wanted
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                  JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
                  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                  WHERE n.nspname = 'audit' AND c.relname = 'audit_logs' AND a.attname = wanted
                    AND NOT a.attisdropped)
ORDER BY 1
"""
# a BEFORE INSERT trigger or a rule could make records vanish
_FOREIGN_TRIGGERS: Final = f"""
WITH {_GUARDED}, {_GUARDS}
SELECT 'trigger ' || t.tgname || ' on ' || name
FROM guarded JOIN pg_catalog.pg_trigger t ON t.tgrelid = guarded.oid
WHERE NOT t.tgisinternal
  AND t.oid NOT IN (SELECT oid FROM guards UNION SELECT oid FROM queueing)
  AND NOT (name = 'audit.quarantine' AND EXISTS (
      SELECT FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
      WHERE f.oid = t.tgfoid AND n.nspname = 'audit' AND f.proname = 'queue_for_recording'
        AND f.prosrc = $3))
UNION ALL
SELECT 'rule ' || r.rulename || ' on ' || name
FROM guarded JOIN pg_catalog.pg_rewrite r ON r.ev_class = guarded.oid
ORDER BY 1
"""  # noqa: S608 - constants
# what else looks at a row while it is stored: it may refuse what is sound
_ADDITIONS: Final = """
WITH looked_at AS (
    SELECT c.oid, c.relname AS name,
           c.relname IN ('audit_logs', 'quarantine', 'ledger_queue') AS top
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'audit' AND (c.relname IN ('audit_logs', 'quarantine', 'ledger_queue')
        OR c.oid IN (SELECT i.inhrelid FROM pg_catalog.pg_inherits i
                     JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
                     WHERE p.relname = 'audit_logs' AND p.relnamespace = n.oid))
)
SELECT 'constraint ' || k.conname || ' on audit.' || name
FROM looked_at JOIN pg_catalog.pg_constraint k ON k.conrelid = looked_at.oid
WHERE k.contype IN ('c', 'f', 'u', 'x') AND k.conparentid = 0 AND k.conname <> ALL ($1::text[])
UNION ALL
SELECT 'index ' || x.relname || ' on audit.' || name
FROM looked_at JOIN pg_catalog.pg_index i ON i.indrelid = looked_at.oid
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
WHERE x.relname <> ALL ($2::text[])
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhrelid = x.oid)
UNION ALL
SELECT 'NOT NULL of column ' || a.attname || ' on audit.' || name
FROM looked_at JOIN pg_catalog.pg_attribute a ON a.attrelid = looked_at.oid
WHERE top AND a.attnotnull AND a.attnum > 0 AND NOT a.attisdropped
  AND a.attname <> ALL ($3::text[])
UNION ALL
SELECT 'trigger ' || t.tgname || ' on audit.ledger_queue'
FROM looked_at JOIN pg_catalog.pg_trigger t ON t.tgrelid = looked_at.oid
WHERE name = 'ledger_queue' AND NOT t.tgisinternal AND t.tgname <> 'refuse_change'
ORDER BY 1
"""
_OUR_CONSTRAINTS: Final = (
    "audit_logs_content_hash_check", "audit_logs_received_hash_check",
    "quarantine_content_hash_check", "quarantine_hash", "quarantine_texts",
)  # fmt: skip
_NEVER_NULL: Final = (
    "id", "action_id", "phase", "tenant_id", "recorded_at", "occurred_at", "duration_ms",
    "event_name", "action", "outcome", "actor_id", "actor_type", "transaction_outcome", "entities",
    "schema_version", "payload", "content_hash", "position", "received", "reason",
)  # fmt: skip
_INDEX: Final = re.compile(r"CREATE (?:UNIQUE )?INDEX (\w+)")
_CHANGING_RIGHTS: Final = f"""
WITH {_GUARDED}
SELECT wanted || ' on ' || name
FROM guarded CROSS JOIN unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE']) AS wanted
WHERE has_table_privilege($1::name, guarded.oid, wanted)
   OR wanted = 'UPDATE' AND has_any_column_privilege($1::name, guarded.oid, wanted)
ORDER BY 1
"""  # noqa: S608 - constants
_OWNERSHIP: Final = """
WITH me AS (SELECT * FROM pg_catalog.pg_roles WHERE rolname = $1::name),
owners AS (
    SELECT nspowner AS owner FROM pg_catalog.pg_namespace WHERE nspname = 'audit'
    UNION
    SELECT relowner FROM pg_catalog.pg_class
    WHERE relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'audit')
    UNION
    SELECT proowner FROM pg_catalog.pg_proc
    WHERE pronamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'audit')
)
SELECT 'is a superuser' FROM me WHERE rolsuper
UNION ALL
SELECT CASE WHEN me.oid = owner THEN 'owns things in schema audit'
            ELSE 'is a member of ' || pg_get_userbyid(owner) || ', the owner of things there'
       END
FROM me, owners WHERE NOT rolsuper AND pg_has_role(me.oid, owner, 'MEMBER')
UNION ALL
SELECT 'has CREATEROLE, with which it can make itself a member of the owner before PostgreSQL 16'
FROM me
WHERE rolcreaterole AND NOT rolsuper
  AND current_setting('server_version_num')::int < 160000
"""
# one statement at a time, so that a function in plain SQL does not lend its name to the next body
_FUNCTION: Final = re.compile(
    r"CREATE (?:OR REPLACE )?FUNCTION audit(?:_guard)?\.(?P<name>\w+)\([^;$]*?"
    r"AS \$\$(?P<body>.*?)\$\$",
    re.DOTALL,
)
_EVENT_SOURCE: Final = next(_FUNCTION.finditer(event_trigger_sql()))["body"]
# SHA-256 of earlier texts of the event trigger's function: older, but not tampered with
_EARLIER_EVENT_SOURCES: Final = (
    "9437807dd3f81710124d2494d1f1bdcdee6fe6aad526ceee0111b631d412864c",  # lets objects be moved
)
_HAS_EARLIER_EVENT_SOURCE: Final = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_event_trigger e JOIN pg_catalog.pg_proc f ON f.oid = e.evtfoid
    WHERE evtname IN ('otel_audit_refuse_ddl', 'otel_audit_refuse_drop')
      AND encode(sha256(convert_to(f.prosrc, 'UTF8')), 'hex') = ANY ($1))
"""
_PARTITIONS: Final = """
SELECT part.relname
FROM pg_catalog.pg_inherits i
JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
JOIN pg_catalog.pg_namespace n ON n.oid = p.relnamespace
JOIN pg_catalog.pg_class part ON part.oid = i.inhrelid
WHERE n.nspname = 'audit' AND p.relname = 'audit_logs'
"""


async def missing_tables(connection: Connection[Any]) -> list[str]:
    """Name the tables of the store that are not there."""
    found = {row["relname"] for row in await connection.fetch(_TABLES, TABLES)}
    return [name for name in TABLES if name not in found]


async def missing_parts(connection: Connection[Any], columns: Sequence[str]) -> list[str]:
    """Name functions of the schema, and columns of the trail, that should be there and are not.

    Args:
        connection: To a store of this package's version.
        columns: Of audit.audit_logs.
    """
    return await _texts(connection, _MISSING_PARTS, sorted(function_sources()), list(columns))


async def schema_version(connection: Connection[Any]) -> int:
    """The number of the last migration that was applied, 0 where there is none."""
    version: int = await connection.fetchval(
        "SELECT coalesce(max(version), 0) FROM audit.schema_version"
    )
    return version


async def lacking_rights(connection: Connection[Any]) -> list[str]:
    """Name the rights that a writer needs and the connection's role lacks."""
    return await _texts(connection, _LACKING, [name for name, _ in COLUMNS])


async def unguarded(connection: Connection[Any]) -> list[str]:
    """Name what is not protected against change as the migrations left it."""
    sources = function_sources()
    return await _texts(
        connection, _UNGUARDED, *_sources(), _EVENT_SOURCE, list(sources), list(sources.values()),
        list(_EARLIER_EVENT_SOURCES),
    )  # fmt: skip


async def has_earlier_event_trigger(connection: Connection[Any]) -> bool:
    """Whether the event trigger is the one of an earlier otel-audit, which refuses less."""
    return bool(await connection.fetchval(_HAS_EARLIER_EVENT_SOURCE, list(_EARLIER_EVENT_SOURCES)))


async def foreign_triggers(connection: Connection[Any]) -> list[str]:
    """Name triggers and rules on the store's tables that are not ours."""
    trigger_source = function_sources()["queue_for_recording"]
    return await _texts(connection, _FOREIGN_TRIGGERS, *_sources(), trigger_source)


async def additions(connection: Connection[Any]) -> list[str]:
    """Name what looks at rows while they are stored, and is not ours: it may refuse sound ones."""
    indexes = [name for step in migrations() for name in _INDEX.findall(step.sql)]
    keys = ["audit_logs_pkey", "quarantine_pkey", "ledger_queue_pkey"]
    found = await _texts(
        connection, _ADDITIONS, list(_OUR_CONSTRAINTS), [*indexes, *keys], list(_NEVER_NULL)
    )
    return [*await foreign_triggers(connection), *found]


async def changing_rights(connection: Connection[Any], role: str) -> list[str]:
    """Name the rights with which a role could try to change or delete records."""
    return await _texts(connection, _CHANGING_RIGHTS, role)


async def role_powers(connection: Connection[Any], role: str) -> list[str]:
    """Say how a role stands above the guards, if it does."""
    return await _texts(connection, _OWNERSHIP, role)


async def partitions(connection: Connection[Any]) -> set[str]:
    """Names of the partitions of ``audit.audit_logs``."""
    return {row["relname"] for row in await connection.fetch(_PARTITIONS)}


async def _texts(connection: Connection[Any], query: str, *parameters: Any) -> list[str]:
    return [row[0] for row in await connection.fetch(query, *parameters)]


def function_sources() -> dict[str, str]:
    """Names of the functions in PL/pgSQL, each with the text that the last migration gave it."""
    return {
        found["name"]: found["body"]
        for step in migrations()
        for found in _FUNCTION.finditer(step.sql)
    }


def _sources() -> tuple[str, str]:
    """The texts that the guarding and the queueing function must have."""
    sources = function_sources()
    return sources["refuse_change"], sources["queue_for_sealing"]
