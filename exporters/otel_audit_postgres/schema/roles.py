"""Roles and rights of the store: the group roles, and their members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from otel_audit.errors import ConfigurationError
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.schema.migrations import event_trigger_sql, grants_sql, ownership_sql

OWNER: Final = "otel_audit_owner"
WRITER: Final = "otel_audit_writer"
READER: Final = "otel_audit_reader"
SEALER: Final = "otel_audit_sealer"
RETENTION: Final = "otel_audit_retention"
STREAMER: Final = "otel_audit_streamer"

# before PostgreSQL 16 a role is a member once; since then once for each who granted it
_IS_MEMBER: Final = """
SELECT EXISTS (
    SELECT FROM pg_auth_members
    WHERE member = $1::text::regrole AND roleid = $2::text::regrole
      AND (grantor = member OR current_setting('server_version_num')::int < 160000))
"""
_MAY_READ: Final = (
    "INSERT INTO audit.reader_tenants (role_name, tenant_id) VALUES ($1, $2) ON CONFLICT DO NOTHING"
)
_ENTERED: Final = (
    "INSERT INTO audit.reader_tenants (role_name) SELECT {role} "
    "WHERE NOT EXISTS (SELECT FROM audit.reader_tenants WHERE role_name = {role});"
)
_SCOPED: Final = (
    "INSERT INTO audit.reader_tenants (role_name, is_scoped) SELECT $1::name, true "
    "WHERE NOT EXISTS (SELECT FROM audit.reader_tenants WHERE role_name = $1::name)"
)
_IS_ENTERED: Final = "SELECT EXISTS (SELECT FROM audit.reader_tenants WHERE role_name = $1)"
_IS_SUPERUSER: Final = "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user"
NO_EVENT_TRIGGER: Final = (
    "event trigger against DDL: not installed, as only a superuser can; "
    "members of otel_audit_owner can still alter and drop the tables"
)


@dataclass(frozen=True, slots=True)
class Members:
    """Existing login roles to add to the group roles.

    Attributes:
        writer: Who is to append.
        reader: Who is to read.
        sealer: Who is to seal.
        retention: Who is to drop months by the retention functions.
        tenants: The only tenants that ``reader`` is to see; none: as before, or all.
        viewer: Who is to read on behalf of others: as the viewer, which names for each look the
            tenants that it is for.
        streamer: Who is to read everything and send it on.
    """

    writer: str | None = None
    reader: str | None = None
    sealer: str | None = None
    retention: str | None = None
    tenants: Sequence[str] = ()
    viewer: str | None = None
    streamer: str | None = None

    def groups(self) -> list[tuple[str, str]]:
        """Pairs of group role and login role."""
        wanted = (
            (WRITER, self.writer),
            (READER, self.reader),
            (SEALER, self.sealer),
            (RETENTION, self.retention),
            (READER, self.viewer),
            (READER, self.streamer),
            (STREAMER, self.streamer),
        )
        return [(group, login) for group, login in wanted if login]

    def refuse_without_roles(self, caller: str) -> None:
        """Raise `ConfigurationError` if a role is named although there are no group roles."""
        if self.groups():
            raise ConfigurationError(
                f"{caller}: a role for writer=, reader= and the like needs roles=True (--roles)"
            )

    def statements(self) -> list[str]:
        """The statements of `hand_over`."""
        lines = [f"GRANT {group} TO {quoted(login)};" for group, login in self.groups()]
        if self.reader:
            lines.append(_ENTERED.format(role=_literal(self.reader)))
        if self.streamer:
            lines.append(_ENTERED.format(role=_literal(self.streamer)))
        if self.viewer:
            lines.append(_SCOPED.replace("$1", _literal(self.viewer)) + ";")
        return lines


async def borrow(connection: Connection[Any], me: str, role: str) -> bool:
    """Become a member of a role for as long as this takes; return whether a grant was needed."""
    if await connection.fetchval("SELECT pg_has_role($1::name, $2::name, 'USAGE')", me, role):
        return False
    is_member = await connection.fetchval(_IS_MEMBER, quoted(me), quoted(role))
    await connection.execute(f"GRANT {quoted(role)} TO {quoted(me)}")
    return not is_member


async def hand_over(connection: Connection[Any], members: Members) -> list[str]:
    """Give everything to the owner, grant to the groups what they need, and make members.

    Args:
        connection: In the transaction of the migration, as a member of the owner.
        members: Who is to be a member.

    Returns:
        What was done, a line each.

    Raises:
        ConfigurationError: A role that is named does not exist.
    """
    await connection.execute(ownership_sql())
    await connection.execute(grants_sql())
    done = (
        f"roles {OWNER} (owns), {WRITER} (appends), {READER} (reads), {SEALER} (seals), "
        f"{RETENTION} (drops sealed months), {STREAMER} (sends on): in place"
    )
    lines = [done]
    for group, login in members.groups():
        if not await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", login
        ):
            raise ConfigurationError(
                f"init: there is no role {login}; create it first: "
                f"CREATE ROLE {quoted(login)} LOGIN PASSWORD … (or init --create makes it)"
            )
        await connection.execute(f"GRANT {group} TO {quoted(login)}")
        if group == READER and login == members.viewer:
            await connection.execute(_SCOPED, login)
        elif group == READER:
            await _enter(connection, login, members.tenants if login == members.reader else ())
        lines.append(f"role {login}: member of {group}")
    if await connection.fetchval(_IS_SUPERUSER):
        await connection.execute(event_trigger_sql())
        lines.append("event trigger against DDL in schema audit: installed")
    else:
        lines.append(NO_EVENT_TRIGGER)
    return lines


async def _enter(connection: Connection[Any], reader: str, tenants: Sequence[str]) -> None:
    """Set the tenants that a reader sees. An existing scope is never widened implicitly."""
    if tenants:
        await connection.execute("DELETE FROM audit.reader_tenants WHERE role_name = $1", reader)
        await connection.executemany(_MAY_READ, [(reader, tenant) for tenant in tenants])
    elif not await connection.fetchval(_IS_ENTERED, reader):
        await connection.execute(_MAY_READ, reader, None)


def _literal(text: str) -> str:
    doubled = text.replace("'", "''")
    return f"'{doubled}'"


def quoted(name: str) -> str:
    """Quote an identifier (PostgreSQL documentation, 4.1.1)."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
