"""Alembic operations for the audit schema.

A revision of yours calls `upgrade`; see docs/migrations.md::

    from alembic import op
    from otel_audit_postgres import alembic as audit

    def upgrade():
        audit.upgrade(op, to=18)

    def downgrade():
        audit.downgrade(op)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from otel_audit.errors import ConfigurationError, StoreError
from otel_audit_postgres.schema.install import PERMIT, lock_sql, noted
from otel_audit_postgres.schema.migrations import (
    event_trigger_sql,
    grants_sql,
    latest_version,
    migrations,
    ownership_sql,
    roles_sql,
)
from otel_audit_postgres.schema.partitions import ENSURE_PARTITIONS
from otel_audit_postgres.schema.roles import Members

# what a semicolon may stand in without ending a statement (PostgreSQL documentation, 4.1)
_TOKEN: Final = re.compile(
    r"--[^\n]*|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$"
    r"|\bBEGIN ATOMIC\b.*?\bEND;|;",
    re.DOTALL,
)
# text() of SQLAlchemy takes :name for a parameter
_PARAMETER: Final = re.compile(r"(?<![:\w\\]):(?=\w)")
_VERSION: Final = "SELECT CASE WHEN to_regclass('audit.schema_version') IS NULL THEN 0 ELSE 1 END"
_APPLIED: Final = "SELECT coalesce(max(version), 0) FROM audit.schema_version"


def upgrade(  # noqa: PLR0913 - one for each role
    op: Any,
    *,
    since: int | None = None,
    to: int | None = None,
    roles: bool = False,
    writer: str | None = None,
    reader: str | None = None,
    sealer: str | None = None,
    retention: str | None = None,
    viewer: str | None = None,
) -> None:
    """Bring the audit schema to a version, in the transaction of an Alembic revision.

    Args:
        op: ``alembic.op``.
        since: The version that is there, 0 for none. By default the database is asked; with
            ``alembic upgrade --sql`` there is none to ask, and it must be given.
        to: The version to reach; the newest that this package knows by default. Name it, so that
            the revision means the same after an upgrade of otel-audit.
        roles: As for `otel_audit_postgres.init`; only with the newest version.
        writer: As for `otel_audit_postgres.init`, with ``roles``; so are the next four.
        reader: See ``writer``.
        sealer: See ``writer``.
        retention: See ``writer``.
        viewer: See ``writer``.

    Raises:
        ConfigurationError: ``since``, ``to`` or the roles do not fit.
        StoreError: The store is newer than ``to``: a schema never goes backwards.
    """
    target = latest_version() if to is None else to
    members = Members(writer, reader, sealer, retention, viewer=viewer)
    if not roles:
        members.refuse_without_roles("alembic.upgrade")
    if not 1 <= target <= latest_version():
        raise ConfigurationError(
            f"alembic.upgrade: to={target}, this otel-audit knows 1 to {latest_version()}"
        )
    if roles and target != latest_version():
        raise ConfigurationError("alembic.upgrade: roles=True needs the newest version as to=")
    there = _version(op) if since is None else since
    for statement in (lock_sql(there), PERMIT, *(statements(roles_sql()) if roles else ())):
        _run(op, statement)
    # again, under the lock
    version = _version(op) if since is None else since
    if version > target:
        raise StoreError(
            f"schema audit is at version {version}, the revision wants {target}: a schema never "
            "goes backwards"
        )
    _run(op, "CREATE SCHEMA IF NOT EXISTS audit")
    for step in migrations()[version:target]:
        for statement in (*statements(step.sql), noted(step)):
            _run(op, statement)
    _run(op, ENSURE_PARTITIONS)
    if roles:
        parts = [ownership_sql(), grants_sql(), *members.statements(), event_trigger_sql()]
        for statement in statements("\n".join(parts)):
            _run(op, statement)


def downgrade(op: Any) -> None:  # noqa: ARG001 - the shape of a revision
    """Refuse: an audit trail is not taken back by a migration.

    Raises:
        StoreError: Always; it says what to do instead.
    """
    raise StoreError(
        "the audit schema is not downgraded: records and seals would be lost. An older otel-audit "
        "needs a backup of its time; to be rid of the trail, drop schema audit by hand"
    )


def statements(script: str) -> Iterator[str]:
    """Split a script of this package into its statements, for drivers that take one at a time."""
    start = 0
    for token in _TOKEN.finditer(script):
        if token[0] == ";" or token[0].startswith("BEGIN ATOMIC"):
            yield from _whole(script[start : token.end()])
            start = token.end()
    yield from _whole(script[start:])


def _whole(text: str) -> Iterator[str]:
    statement = text.strip().removesuffix(";").rstrip()
    if re.sub(r"--[^\n]*", "", statement).strip():
        yield statement


def _version(op: Any) -> int:
    if op.get_context().as_sql:
        raise ConfigurationError(
            "alembic.upgrade: with --sql the database is not asked; give since=, 0 for a new store"
        )
    bind = op.get_bind()
    if not bind.exec_driver_sql(_VERSION).scalar():
        return 0
    return int(bind.exec_driver_sql(_APPLIED).scalar())


def _run(op: Any, statement: str) -> None:
    if op.get_context().as_sql:
        op.execute(_PARAMETER.sub(r"\\:", statement))
        return
    bind = op.get_bind()
    bind.execution_options(no_parameters=True).exec_driver_sql(statement)
