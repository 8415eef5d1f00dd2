"""`otel-audit archive`: what was archived, and whether it is what was sealed."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import sys
import uuid
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from otel_audit._util.loop_thread import run_coroutine
from otel_audit.cli.options import chosen_dsn, dsn_option, json_option
from otel_audit.cli.retention import archive_option, asked, bar, needed_archive
from otel_audit.cli.terminal import echo, echo_columns, echo_json
from otel_audit.config import AuditConfig
from otel_audit.errors import StoreError

if TYPE_CHECKING:
    from otel_audit_postgres.archive.check import ArchiveReport
    from otel_audit_postgres.archive.objects import ArchiveStore
    from otel_audit_postgres.archive.query import ArchivedHit
    from otel_audit_postgres.query.grammar import Query

_LISTED = 200
"""Problems on a screen; what is left out is counted."""


@click.group()
def archive() -> None:
    """Months that left the database."""


@archive.command(name="list")
@dsn_option
@json_option
def list_(dsn: str | None, as_json: bool) -> None:
    """Show the archived months and their files."""
    from otel_audit_postgres.archive.catalog import archived_objects

    found = run_coroutine(archived_objects(chosen_dsn(dsn)))
    if as_json:
        echo_json([one.as_json() for one in found])
        return
    echo_columns(
        ("month", "class", "rows", "MB", "locked until", "expires", "object"),
        [
            (
                f"{one.month:%Y-%m}", one.entry.kind, one.entry.rows,
                f"{one.entry.size / 1e6:.1f}", one.entry.locked_until or "-",
                "removed" if one.is_removed else one.entry.expires or "never", one.entry.key,
            )
            for one in found
        ],
    )  # fmt: skip


@archive.command()
@dsn_option
@archive_option
@click.option("--key", "keys", multiple=True, help="Public key, or its file; may be repeated.")
@click.option("--deep", is_flag=True, help="Read and hash every row, and build the trees.")
@json_option
def verify(
    dsn: str | None, archive: str | None, keys: tuple[str, ...], deep: bool, as_json: bool
) -> None:
    """Verify archives: files, signatures, chain and locks.

    With --deep rows and trees, too.

    Exit status 0: nothing found; 1: something was changed, or the archive cannot be read.
    """
    from otel_audit_postgres.archive.check import ArchiveCheckOptions, verify_archives
    from otel_audit_postgres.ledger.settings import chosen_public_keys

    public = chosen_public_keys(AuditConfig(), keys)
    with bar(visible=not as_json) as progress:
        task = progress.add_task("verify", total=None)
        options = ArchiveCheckOptions(
            needed_archive(archive), public, deep,
            progress=lambda rows: progress.update(task, completed=rows),
        )  # fmt: skip
        store_dsn = chosen_dsn(dsn)
        report = run_coroutine(verify_archives(store_dsn, options))
    recorded = note_verification(store_dsn, report, deep=deep)
    if as_json:
        echo_json({**report.as_json(), "recorded": recorded is None}, indent=2)
        sys.exit(0 if report.ok else 1)
    echo(
        f"{report.months} months, {report.archived} rows archived, {report.removed} removed as the "
        f"policy says; read {report.rows_read} rows"
    )
    if not public:
        echo("warning: signatures were not checked, as no public key was given")
    for warning in [*report.findings.warnings, *([recorded] if recorded else [])]:
        echo(f"warning: {warning}")
    for problem in report.findings.problems[:_LISTED]:
        echo(f"{problem.kind}: {problem.detail}")
    if report.ok:
        echo("OK: the archives are what was sealed", colour="green")
    else:
        echo(f"TAMPERED: {len(report.findings.problems)} problems", colour="red")
    sys.exit(0 if report.ok else 1)


@archive.command(context_settings={"ignore_unknown_options": True})
@click.argument("text", metavar="[QUERY]...", nargs=-1, type=click.UNPROCESSED)
@dsn_option
@archive_option
@click.option("--limit", default=50, show_default=True, help="At most this many records.")
@json_option
def query(
    text: tuple[str, ...], dsn: str | None, archive: str | None, limit: int, as_json: bool
) -> None:
    """Search archived records, newest first.

    QUERY is as for `otel-audit search`.

    The search is recorded, as any search.
    """
    from otel_audit_postgres.archive.query import SHOWN
    from otel_audit_postgres.query.grammar import parse

    wanted, place = parse(" ".join(text)), needed_archive(archive)
    with bar(visible=not as_json) as progress:
        progress.add_task("look into the archive", total=None)
        found = run_coroutine(_searched(chosen_dsn(dsn), place, wanted, limit))
    if as_json:
        for one in found:
            echo_json(one.as_json())
        return
    echo_columns(SHOWN, [[getattr(one.found, name) for name in SHOWN] for one in found])
    if not found:
        echo("no archived record fits", err=True)


@archive.command()
@click.argument("month", metavar="MONTH")
@dsn_option
@archive_option
# what was archived is not to come back for good: retention takes it away after so many days
@click.option("--days", default=7, show_default=True, type=click.IntRange(1, 90))
@click.option("--end", is_flag=True, help="Remove the month again.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def restore(  # noqa: PLR0913, PLR0917 - one for each option
    month: str,
    dsn: str | None,
    archive: str | None,
    days: int,
    end: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Make MONTH, such as 2026-01, readable for some days.

    It is copied into audit.restored_logs. Its readers are those of the trail, under the same
    row level security.
    """
    from otel_audit_postgres.archive.restore import end_restoration, restore_month

    try:
        first = date.fromisoformat(f"{month}-01")
    except ValueError:
        raise click.BadParameter(f"{month!r} is not a month, such as 2026-01") from None
    if end:
        asked(f"Take the restored rows of {month} away?", yes=yes, as_json=as_json)
        rows = run_coroutine(end_restoration(chosen_dsn(dsn), first))
        if as_json:
            echo_json({"month": month, "taken_away": rows})
        else:
            echo(f"{rows} rows taken away")
        return
    asked(f"Restore {month} for {days} days?", yes=yes, as_json=as_json)
    with bar(visible=not as_json) as progress:
        task = progress.add_task(f"restore {month}", total=None)
        rows = run_coroutine(
            restore_month(
                chosen_dsn(dsn), needed_archive(archive), first, days,
                progress=lambda done: progress.update(task, completed=done),
            )
        )  # fmt: skip
    if as_json:
        echo_json({"month": month, "restored": rows, "days": days})
        return
    echo(f"{rows} rows of {month} are in audit.restored_logs for {days} days")


@archive.command()
@click.argument("record_id", metavar="ID", type=click.UUID)
@archive_option
@click.option("--key", "keys", multiple=True, help="Public key, or its file; may be repeated.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory to make.")
@json_option
def prove(
    record_id: uuid.UUID,
    archive: str | None,
    keys: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Write evidence of the record ID from the archive alone."""
    from otel_audit_postgres.archive.prove import prove_archived
    from otel_audit_postgres.ledger.prove import write
    from otel_audit_postgres.ledger.settings import chosen_public_keys

    public = chosen_public_keys(AuditConfig(), keys)
    directory = out or Path(f"evidence-{record_id}")
    write(prove_archived(needed_archive(archive), record_id, public), directory)
    if as_json:
        echo_json({"directory": str(directory), "records": 1, "keys": len(public)})
        return
    echo(f"{directory}: to check it there, run: python verify.py")


@archive.command()
@click.argument("table", metavar="NAMESPACE.TABLE")
@dsn_option
@archive_option
@click.option("--catalog", default="default", show_default=True, help="Its name in pyiceberg.")
@click.option(
    "--property", "properties", multiple=True, metavar="NAME=VALUE", help="Catalog property."
)
@click.option("--dry-run", is_flag=True, help="Print what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def register(  # noqa: PLR0913, PLR0917 - one for each option
    table: str,
    dsn: str | None,
    archive: str | None,
    catalog: str,
    properties: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Register archived files as a table of an Iceberg catalog.

    The files stay where they are.

    Spark, Trino and others then read them as one table. Expired files are removed from it. The
    registration is recorded. Readers of the table see all tenants.
    """
    from otel_audit_postgres.archive.catalog import archived_objects
    from otel_audit_postgres.archive.iceberg import register_objects

    if "." not in table.strip("."):
        raise click.BadParameter(f"{table!r}: namespace.name is expected, such as audit.records")
    pairs = [one.partition("=") for one in properties]
    if not all(name and equals for name, equals, _ in pairs):
        raise click.BadParameter("--property: NAME=VALUE is expected")
    place, store_dsn = needed_archive(archive), chosen_dsn(dsn)
    objects = run_coroutine(archived_objects(store_dsn))
    settings = {name: value for name, _, value in pairs}
    found = register_objects(
        place, objects, table, catalog=catalog, properties=settings, dry_run=True
    )
    if not dry_run:
        asked(
            f"{len(found.added)} files come into {table}, {len(found.removed)} leave it. Go on?",
            yes=yes, as_json=as_json,
        )  # fmt: skip
        found = register_objects(place, objects, table, catalog=catalog, properties=settings)
        run_coroutine(_looked(store_dsn, "archive register", {"table": table}, found.rows))
    if as_json:
        echo_json(found.as_json())
        return
    echo(f"{len(found.added)} files added, {len(found.removed)} taken out of {table}")


def note_verification(store_dsn: str, report: ArchiveReport, *, deep: bool) -> str | None:
    """Record that archives were verified; return why it could not be recorded, else None."""
    from otel_audit_postgres.archive.catalog import record_verification

    try:
        run_coroutine(
            record_verification(
                store_dsn, months=report.months, rows=report.archived,
                problems=len(report.findings.problems), deep=deep,
            )
        )  # fmt: skip
    except StoreError as error:
        return f"that archives were verified is not recorded: {error}"
    return None


async def _looked(store_dsn: str, question: str, asked_for: dict[str, Any], records: int) -> None:
    from otel_audit_postgres.query.trail import open_trail

    async with open_trail(store_dsn, views=AuditConfig().record_views) as trail:
        await trail.looked(question, asked_for, records)


async def _searched(
    store_dsn: str, archive: ArchiveStore, wanted: Query, limit: int
) -> list[ArchivedHit]:
    """A question to archives is a look into the trail."""
    from otel_audit_postgres.archive.search import search_archives
    from otel_audit_postgres.query.trail import open_trail

    async with open_trail(store_dsn, views=AuditConfig().record_views) as trail:
        return await search_archives(trail, archive, wanted, limit=limit)
