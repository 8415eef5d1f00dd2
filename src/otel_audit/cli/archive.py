"""`otel-audit archive`: what was archived, and whether it is what was sealed."""

from __future__ import annotations

import sys

import click

from otel_audit._util.loop_thread import run_lasting
from otel_audit.cli.options import chosen_dsn, dsn_option
from otel_audit.cli.retention import archive_option, bar, json_option, needed_archive
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
    """Verify archives: files, signatures, chain and locks; with --deep rows and trees, too.

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
