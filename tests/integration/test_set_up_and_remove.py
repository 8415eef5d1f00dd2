"""A store is made from nothing, looked at without rights to change it, and removed."""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import suppress

import asyncpg
import pytest
from click.testing import CliRunner, Result
from otel_audit_postgres.schema.create import dsn_for

import otel_audit
from otel_audit.cli.main import cli
from otel_audit.testing import recorded
from otel_audit.testing.store import AuditStore


async def run(*arguments: str, given: str | None = None) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, cli, list(arguments), input=given)


async def fetch(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def one_record() -> list[otel_audit.AuditRecord]:
    with recorded(config=otel_audit.AuditConfig(exporter="none")) as found:
        otel_audit.emit("a.done", actor="ada")
    return list(found)


@pytest.fixture
async def names(database):
    """Names of a database and of login roles that are not there yet; all go afterwards."""
    mark = uuid.uuid4().hex[:10]
    found = {"database": f"made_{mark}", "writer": f"w_{mark}", "reader": f"r_{mark}"}
    yield found
    await fetch(database, f"DROP DATABASE IF EXISTS {found['database']} WITH (FORCE)")
    for role in (found["writer"], found["reader"]):
        with suppress(asyncpg.UndefinedObjectError):
            await fetch(database, f"DROP OWNED BY {role}")
            await fetch(database, f"DROP ROLE {role}")


def another(dsn: str, name: str) -> str:
    base, _, query = dsn.partition("?")
    return f"{base.rpartition('/')[0]}/{name}?{query}"


async def test_from_nothing_to_a_store_that_takes_records(database, names):
    """One command makes database, roles and schema, and prints what to set and to run."""
    dsn = another(database, names["database"])
    roles = ("--writer", names["writer"], "--reader", names["reader"])
    done = await run("init", "--create", "--dsn", dsn, *roles, "--json")
    assert done.exit_code == 0, done.output
    created = json.loads(done.stdout)["created"]
    assert created["database"] == names["database"]
    writer = created["dsns"][names["writer"]]
    assert len(writer.partition("@")[0].rpartition(":")[2]) >= 32
    assert await asyncio.to_thread(AuditStore(writer).write, one_record()) == 1
    found = await run("search", "--dsn", created["dsns"][names["reader"]], "--json")
    assert '"a.done"' in found.stdout
    # as any role that may read the version: nothing is changed
    for role in ("writer", "reader"):
        looked = await run("migrate", "--check", "--dsn", dsn_for(dsn, names[role]))
        assert (looked.exit_code, "up to date at version" in looked.stdout) == (0, True), (
            looked.output
        )
    # what was asked for says whose right is missing
    for arguments, group in (
        (("seal", "--once"), "sealer"), (("maintain",), "writer"), (("hold", "list"), "retention"),
    ):  # fmt: skip
        refused = await run(*arguments, "--dsn", dsn_for(dsn, names["reader"]))
        assert f"otel-audit init --roles --{group} ROLE" in refused.output, refused.output
    done = await run("migrate", "--dsn", dsn_for(dsn, names["reader"]))
    assert (done.exit_code, "up to date at version" in done.output) == (0, True), done.output
    kept = await run("quarantine", "--dsn", dsn_for(dsn, names["reader"]))
    assert "audit.quarantine" in kept.output
    assert "No such file" not in kept.output
    again = await run("init", "--create", "--dsn", dsn, *roles)
    assert again.exit_code == 0, again.output
    assert "up to date at version" in again.stdout
    assert "otel-audit run uvicorn app:app" in again.stdout
    assert writer not in again.stdout
    # the server is known; the password only to whoever kept it
    assert dsn_for(dsn, names["reader"]).replace("@", ":…@") in again.stdout
    assert "(… is the role's own password" in again.stdout


async def test_a_role_for_a_store_that_is_there_comes_alone(database, names):
    """Adding a sealer makes no further role that may write."""
    sealer, sealing = names["reader"], ("--sealer", names["reader"])
    refused = await run("init", "--roles", *sealing, "--dsn", database)
    assert (refused.exit_code, "init --create makes it" in refused.output) == (1, True)
    done = await run("init", "--create", *sealing, "--dsn", database, "--json")
    assert done.exit_code == 0, done.output
    assert list(json.loads(done.stdout)["created"]["dsns"]) == [sealer]


async def test_a_store_that_is_behind_says_by_what(audit_store):
    """Exit status 1, and the migrations that wait, as JSON, too."""
    now = json.loads((await run("migrate", "--check", "--dsn", audit_store, "--json")).stdout)
    assert (now["waiting"], now["version"]) == ([], now["latest"])
    other = await run("migrate", "--check", "--dsn", audit_store, "--sql")
    assert other.exit_code == 2


async def test_without_a_store_there_is_nothing_to_check(database):
    """The remedy is another command."""
    done = await run("migrate", "--check", "--dsn", database)
    assert (done.exit_code, "otel-audit init" in done.output) == (1, True)


async def test_it_is_removed_only_by_its_databases_name(audit_store):
    """Asked for, refused for a wrong answer, and gone after the right one."""
    await asyncio.to_thread(AuditStore(audit_store).write, await asyncio.to_thread(one_record))
    name = await fetch(audit_store, "SELECT current_database()")
    refused = await run("uninstall", "--dsn", audit_store, given="yes\n")
    assert refused.exit_code == 1
    assert f"database {name}: schema audit with 1 records" in refused.stdout
    assert await fetch(audit_store, "SELECT count(*) FROM audit.audit_logs") == 1
    done = await run("uninstall", "--dsn", audit_store, given=f"{name}\n")
    assert done.exit_code == 0, done.output
    assert await fetch(audit_store, "SELECT to_regnamespace('audit') IS NULL")
    gone = await run("uninstall", "--dsn", audit_store, "--yes")
    assert (gone.exit_code, "nothing to remove" in gone.output) == (1, True)


async def test_guards_do_not_keep_an_administrator_from_it(database):
    """With group roles and the event trigger: removed as a superuser."""
    assert (await run("init", "--roles", "--dsn", database)).exit_code == 0
    done = await run("uninstall", "--dsn", database, "--yes", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["done"] == ["schema audit: removed, with 0 records"]
    assert await fetch(database, "SELECT to_regnamespace('audit_guard') IS NULL")
