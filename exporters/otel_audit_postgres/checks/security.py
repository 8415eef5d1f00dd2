"""Ways around the store's guards that roles and rights leave open, each in words.

Catalogs may be read by everybody, so these queries work whatever the role may do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from otel_audit_postgres.connection import Connection
from otel_audit_postgres.schema.migrations import grants_sql

_HAS_ROLES: Final = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace
               WHERE nspname = 'audit' AND pg_get_userbyid(nspowner) = 'otel_audit_owner')
"""
_EVENT_TRIGGERS: Final = """
SELECT count(*) FROM pg_catalog.pg_event_trigger
WHERE evtname IN ('otel_audit_refuse_ddl', 'otel_audit_refuse_drop') AND evtenabled = 'A'
"""
# a SECURITY DEFINER function that trusts its caller's search_path runs the caller's code
_SEARCH_PATH: Final = """
SELECT 'function ' || f.proname || ' does not pin its search_path'
FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
WHERE n.nspname = 'audit' AND (f.prosecdef OR f.prorettype = 'trigger'::regtype)
  AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY(f.proconfig), false)
UNION ALL
SELECT 'role ' || coalesce(nullif(a.grantee, 0)::regrole::text, 'PUBLIC')
    || ' may create things in schema audit'
FROM pg_catalog.pg_namespace n CROSS JOIN aclexplode(n.nspacl) AS a
WHERE n.nspname = 'audit' AND a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner
ORDER BY 1
"""
_OWNERS: Final = """
WITH RECURSIVE members AS (
    SELECT m.member FROM pg_catalog.pg_auth_members m
    WHERE m.roleid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = 'otel_audit_owner')
    UNION
    SELECT m.member FROM pg_catalog.pg_auth_members m JOIN members ON m.roleid = members.member
)
SELECT 'role ' || r.rolname || ' is a member of otel_audit_owner'
FROM members JOIN pg_catalog.pg_roles r ON r.oid = members.member
WHERE r.rolname <> 'otel_audit_maintainer' AND NOT r.rolsuper
UNION ALL
SELECT 'role ' || r.rolname || ' is a member of otel_audit_maintainer, whom no guard stops'
FROM pg_catalog.pg_auth_members m
JOIN pg_catalog.pg_roles g ON g.oid = m.roleid JOIN pg_catalog.pg_roles r ON r.oid = m.member
WHERE g.rolname = 'otel_audit_maintainer' AND NOT r.rolsuper
UNION ALL
SELECT 'role ' || rolname || ' may log in as the owner of the store'
FROM pg_catalog.pg_roles
WHERE rolname IN ('otel_audit_owner', 'otel_audit_maintainer') AND rolcanlogin
ORDER BY 1
"""
_ROLE_MAKERS: Final = """
SELECT 'role ' || rolname || ' has CREATEROLE, with which it can make itself a member of the owner '
    || 'before PostgreSQL 16'
FROM pg_catalog.pg_roles
WHERE rolcreaterole AND NOT rolsuper AND current_setting('server_version_num')::int < 160000
ORDER BY 1
"""
_ROW_SECURITY: Final = """
SELECT 'row level security is off on audit.' || c.relname
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'audit'
  AND c.relname IN ('audit_logs', 'ledger_queue', 'reader_tenants', 'restored_logs', 'rollup',
                    'streams', 'stream_parked')
  AND NOT c.relrowsecurity
UNION ALL
SELECT 'policy ' || p.polname || ' on audit.' || c.relname || ' is not of otel-audit'
FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'audit' AND (c.relname::text, p.polname::text) NOT IN (
    ('reader_tenants', 'own'), ('audit_logs', 'appending'), ('audit_logs', 'receipts'),
    ('audit_logs', 'reading'), ('ledger_queue', 'reading'), ('ledger_queue', 'sealing'),
    ('rollup', 'reading'), ('rollup', 'sealing'),
    ('streams', 'reading'), ('streams', 'sending'),
    ('stream_parked', 'reading'), ('stream_parked', 'sending'),
    ('restored_logs', 'reading'), ('restored_logs', 'restoring'))
UNION ALL
SELECT 'role ' || r.rolname || ' has BYPASSRLS and sees every tenant''s records'
FROM pg_catalog.pg_roles r
WHERE r.rolbypassrls AND NOT r.rolsuper AND r.rolname <> 'otel_audit_owner'
  AND EXISTS (SELECT FROM pg_catalog.pg_roles g WHERE g.rolname = 'otel_audit_reader'
              AND pg_has_role(r.oid, g.oid, 'MEMBER'))
ORDER BY 1
"""
# every right on relation c and on its columns, as a
_EACH_RIGHT: Final = """CROSS JOIN LATERAL (
    SELECT * FROM aclexplode(c.relacl)
    UNION ALL
    SELECT e.* FROM pg_catalog.pg_attribute att CROSS JOIN aclexplode(att.attacl) AS e
    WHERE att.attrelid = c.oid
) AS a"""
_READABLE_PARTITIONS: Final = f"""
SELECT DISTINCT 'role ' || coalesce(nullif(a.grantee, 0)::regrole::text, 'PUBLIC') || ' has '
    || a.privilege_type || ' on ' || c.oid::regclass || ', past row level security'
FROM pg_catalog.pg_inherits i
JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
JOIN pg_catalog.pg_namespace n ON n.oid = p.relnamespace
JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
{_EACH_RIGHT}
WHERE n.nspname = 'audit' AND p.relname = 'audit_logs' AND a.grantee <> c.relowner
ORDER BY 1
"""  # noqa: S608 - a constant
# what each group needs, and all that may write besides them
_NEEDED: Final = (
    ("otel_audit_writer", "quarantine", "INSERT", "content_hash"),
    ("otel_audit_writer", "audit_logs", "INSERT", "payload"),
    ("otel_audit_reader", "audit_logs", "SELECT", "payload"),
    ("otel_audit_reader", "rollup", "SELECT", "records"),
    ("otel_audit_reader", "reader_tenants", "SELECT", "tenant_id"),
    ("otel_audit_reader", "ledger_blocks", "SELECT", "hashes"),
    ("otel_audit_reader", "ledger_checkpoints", "SELECT", "note"),
    ("otel_audit_reader", "ledger_pruned", "SELECT", "hash"),
    ("otel_audit_sealer", "audit_logs", "SELECT", "payload"),
    ("otel_audit_sealer", "ledger_queue", "SELECT", "position"),
    ("otel_audit_sealer", "ledger_blocks", "INSERT", "hashes"),
    ("otel_audit_sealer", "ledger_checkpoints", "INSERT", "note"),
    ("otel_audit_sealer", "ledger_pruned", "SELECT", "hash"),
    ("otel_audit_retention", "ledger_prunings", "SELECT", "partition"),
    ("otel_audit_streamer", "streams", "SELECT", "next_leaf"),
)
_LACKING: Final = """
SELECT 'role ' || wanted.grantee || ' lacks ' || wanted.privilege || ' on audit.' || wanted.relation
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
    AS wanted (grantee, relation, privilege, attribute)
JOIN pg_catalog.pg_roles r ON r.rolname = wanted.grantee
JOIN pg_catalog.pg_class c ON c.relname = wanted.relation
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'audit'
WHERE NOT has_column_privilege(r.oid, c.oid, wanted.attribute, wanted.privilege)
ORDER BY 1
"""
_LACKING_FUNCTIONS: Final = """
SELECT 'role ' || wanted.grantee || ' lacks EXECUTE on ' || wanted.name
FROM unnest($1::text[], $2::text[]) AS wanted (grantee, name)
JOIN pg_catalog.pg_roles r ON r.rolname = wanted.grantee
JOIN pg_catalog.pg_proc f ON f.oid = to_regprocedure(wanted.name)
WHERE NOT has_function_privilege(r.oid, f.oid, 'EXECUTE')
ORDER BY 1
"""
# a function with its owner's rights does for everybody what few may do; and who reads the key of
# scopes can say on whose behalf a transaction looks
_EXCESSIVE_FUNCTIONS: Final = """
SELECT 'PUBLIC has EXECUTE on ' || f.oid::regprocedure
FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
CROSS JOIN aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) AS a
WHERE n.nspname = 'audit' AND f.prosecdef AND a.grantee = 0 AND a.privilege_type = 'EXECUTE'
UNION ALL
SELECT 'role ' || a.grantee::regrole || ' has EXECUTE on audit.scope_mac'
FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
CROSS JOIN aclexplode(f.proacl) AS a
WHERE n.nspname = 'audit' AND f.proname = 'scope_mac' AND a.grantee NOT IN (0, f.proowner)
ORDER BY 1
"""
_FUNCTION_GRANT: Final = re.compile(
    r"GRANT EXECUTE ON FUNCTION (?P<functions>[^;]*?)\s+TO (?P<roles>[^;]*);"
)
_EXCESSIVE: Final = f"""
SELECT DISTINCT 'role ' || coalesce(nullif(a.grantee, 0)::regrole::text, 'PUBLIC') || ' has '
    || a.privilege_type || ' on audit.' || c.relname
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
{_EACH_RIGHT}
WHERE n.nspname = 'audit' AND a.grantee <> c.relowner
  AND (a.privilege_type IN ('UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER', 'REFERENCES')
       AND NOT (c.relkind = 'S')
       OR a.privilege_type = 'INSERT' AND c.relname NOT IN
           ('audit_logs', 'quarantine', 'ledger_log', 'ledger_blocks', 'ledger_checkpoints',
            'ledger_flaws', 'restored_logs')
       OR a.privilege_type = 'SELECT' AND c.relname = 'scope_key')
  AND NOT (a.grantee = to_regrole('otel_audit_sealer')
           AND c.relname = 'ledger_queue' AND a.privilege_type = 'DELETE')
ORDER BY 1
"""  # noqa: S608 - a constant


async def has_roles(connection: Connection[Any]) -> bool:
    """Whether the store was set up with the group roles."""
    return bool(await connection.fetchval(_HAS_ROLES))


async def has_event_triggers(connection: Connection[Any]) -> bool:
    """Whether DDL in the schema is refused, also in replica mode."""
    return bool(await connection.fetchval(_EVENT_TRIGGERS) == 2)  # noqa: PLR2004 - DDL and drops


async def search_path_tricks(connection: Connection[Any]) -> list[str]:
    """Functions for which a caller's objects could replace ours."""
    return await _texts(connection, _SEARCH_PATH)


async def owners(connection: Connection[Any]) -> list[str]:
    """Roles that could act as the owner of the store."""
    return await _texts(connection, _OWNERS)


async def role_makers(connection: Connection[Any]) -> list[str]:
    """Roles that could join the owner's role; only superusers from PostgreSQL 16 on."""
    return await _texts(connection, _ROLE_MAKERS)


async def tenant_leaks(connection: Connection[Any]) -> list[str]:
    """Ways by which a reader could see tenants that it has no entry for."""
    return [
        *await _texts(connection, _ROW_SECURITY),
        *await _texts(connection, _READABLE_PARTITIONS),
    ]


async def opened_ways(connection: Connection[Any]) -> list[str]:
    """Rights that were granted after the set-up of the roles; none if there are no roles."""
    if not await has_roles(connection):
        return []
    return [
        *await search_path_tricks(connection),
        *await tenant_leaks(connection),
        *await _texts(connection, _EXCESSIVE),
        *await _texts(connection, _EXCESSIVE_FUNCTIONS),
    ]


async def wrong_grants(connection: Connection[Any]) -> list[str]:
    """Missing rights of the group roles, and excess rights of others."""
    return [
        *await _texts(connection, _LACKING, *map(list, zip(*_NEEDED, strict=True))),
        *await _texts(connection, _LACKING_FUNCTIONS, *map(list, zip(*_granted(), strict=True))),
        *await _texts(connection, _EXCESSIVE),
        *await _texts(connection, _EXCESSIVE_FUNCTIONS),
    ]


def _granted() -> Iterator[tuple[str, str]]:
    """Each group with a function that the grants let it execute."""
    for grant in _FUNCTION_GRANT.finditer(grants_sql()):
        for role in grant["roles"].split(","):
            for name in re.findall(r"audit\.\w+\([^)]*\)", grant["functions"]):
                yield role.strip(), name


async def _texts(connection: Connection[Any], query: str, *parameters: Any) -> list[str]:
    return [row[0] for row in await connection.fetch(query, *parameters)]
