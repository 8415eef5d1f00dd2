"""`otel-audit archive`: what was archived, and whether it is what was sealed."""

from __future__ import annotations

import sys
import uuid
from datetime import date
from pathlib import Path
from typing import Any

import click

from otel_audit._util.loop_thread import run_lasting
from otel_audit.cli.options import chosen_dsn, dsn_option
from otel_audit.cli.retention import archive_option, asked, bar, json_option, needed_archive
from otel_audit.cli.terminal import echo, echo_columns, echo_json
from otel_audit.config import AuditConfig

_LISTED = 200


@click.group()
def archive() -> None:
    """Months that left the database."""


@archive.command(name="list")
@dsn_option
@json_option
def list_(dsn: str | None, as_json: bool) -> None:
    """Show the months that were archived, and their files."""
    from otel_audit_postgres.archive.catalog import archived_objects

    found = run_lasting(archived_objects(chosen_dsn(dsn)))
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

    Exit status 0: nothing found; 1: something is not as it was, or the archive cannot be read.
    """
    from otel_audit_postgres.archive.check import Question, verify_archives
    from otel_audit_postgres.ledger.settings import chosen_public_keys

    public = chosen_public_keys(AuditConfig(), keys)
    with bar(visible=not as_json) as progress:
        task = progress.add_task("verify", total=None)
        question = Question(
            needed_archive(archive), public, deep,
            progress=lambda rows: progress.update(task, completed=rows),
        )  # fmt: skip
        report = run_lasting(verify_archives(chosen_dsn(dsn), question))
    if as_json:
        echo_json(report.as_json(), indent=2)
        sys.exit(0 if report.ok else 1)
    echo(
        f"{report.months} months, {report.archived} rows archived, {report.removed} removed as the "
        f"policy says; read {report.rows_read} rows"
    )
    if not public:
        echo("warning: signatures were not checked, as no public key was given")
    for warning in report.findings.warnings:
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
@click.option("--limit", default=50, show_default=True, help="Records at the most.")
@json_option
def query(
    text: tuple[str, ...], dsn: str | None, archive: str | None, limit: int, as_json: bool
) -> None:
    """Look for archived records, the newest first.

    QUERY is as for `otel-audit search`.

    That somebody looked is recorded, as with a search.
    """
    from otel_audit_postgres.archive.catalog import archived_objects
    from otel_audit_postgres.archive.query import SHOWN, query_archives
    from otel_audit_postgres.query.grammar import parse

    wanted, store = parse(" ".join(text)), chosen_dsn(dsn)
    found = query_archives(
        needed_archive(archive), run_lasting(archived_objects(store)), wanted, limit=limit,
        with_payload=as_json,
    )  # fmt: skip
    run_lasting(_record(store, str(wanted), len(found)))
    if as_json:
        for one in found:
            echo_json(_plain(one))
        return
    echo_columns(SHOWN, [[_plain(one)[name] for name in SHOWN] for one in found])
    if not found:
        echo("no archived record fits", err=True)


@archive.command()
@click.argument("month", metavar="MONTH")
@dsn_option
@archive_option
@click.option("--days", default=7, show_default=True, type=click.IntRange(1, 90))
@click.option("--end", is_flag=True, help="Take it away again.")
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

    It is put into audit.restored_logs.     Its readers are those of the trail, under the same
    row level security.
    """
    from otel_audit_postgres.archive.restore import end_restoration, restore_month

    try:
        first = date.fromisoformat(f"{month}-01")
    except ValueError:
        raise click.BadParameter(f"{month!r} is no month: 2026-01") from None
    if end:
        rows = run_lasting(end_restoration(chosen_dsn(dsn), first))
        if as_json:
            echo_json({"month": month, "taken_away": rows})
        else:
            echo(f"{rows} rows taken away")
        return
    asked(f"Restore {month} for {days} days?", yes=yes or as_json)
    rows = run_lasting(restore_month(chosen_dsn(dsn), needed_archive(archive), first, days))
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


async def _record(store: str, asked_for: str, records: int) -> None:
    """A question to archives is a look into the trail."""
    from otel_audit_postgres.query.trail import open_trail

    async with open_trail(store, views=AuditConfig().record_views) as trail:
        await trail.looked("archive query", {"query": asked_for}, records)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: str(uuid.UUID(bytes=bytes(value))) if name == "id" else value
        for name, value in row.items()
    }
