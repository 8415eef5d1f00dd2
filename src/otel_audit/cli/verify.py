"""`otel-audit verify`: is the store what was recorded."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from otel_audit._util.loop_thread import run_coroutine
from otel_audit.cli.archive import note_verification
from otel_audit.cli.options import chosen_dsn, dsn_option, read_time
from otel_audit.cli.retention import bar as rows_bar
from otel_audit.cli.terminal import Colour, echo, echo_json
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.setting_values import user_state_directory

if TYPE_CHECKING:
    from otel_audit_postgres.archive.check import ArchiveReport
    from otel_audit_postgres.ledger.keys import PublicKey
    from otel_audit_postgres.ledger.verify.findings import VerificationReport

_LISTED = 200
"""Problems on a screen; what is left out is counted."""
_MALFORMED_LISTED = 5
"""Malformed rows on a screen; the others are counted."""
_WORTH_IT = 50_000  # leaves; below, starting processes costs more than it saves
_MOST_JOBS: Final = 4
"""Processes by default: each has a connection, and the store also serves applications."""


@click.command()
@click.argument(
    "export", metavar="[FILE]", required=False, type=click.Path(path_type=Path, dir_okay=False)
)
@dsn_option
@click.option("--full", is_flag=True, help="Read every row. This is the default.")
@click.option("--since", metavar="TIME", help="Read rows sealed since then: 12h, 7d, ISO 8601.")
@click.option("--sample", type=click.IntRange(0), help="Read this many random rows.")
@click.option("--key", "keys", multiple=True, help="Public key, or its file. Repeatable.")
@click.option(
    "--anchor", "anchors", multiple=True, help="Anchor of published checkpoints. Repeatable."
)
@click.option(
    "--incremental",
    is_flag=True,
    help="Read rows sealed since the last verification, and some earlier ones.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File that keeps the place between runs. Implies --incremental.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Processes that read rows. Default: by the size of the log.",
)
@click.option(
    "--archive", metavar="URL", help="Verify archives, too; by default OTEL_AUDIT_ARCHIVE."
)
@click.option("--deep", is_flag=True, help="Read and hash every row of archives, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--report", "report_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the full report as JSON into this file, too.",
)  # fmt: skip
@click.option(
    "--metrics", "metrics_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write metrics for the textfile collector of node exporter.",
)  # fmt: skip
def verify(  # noqa: C901, PLR0913, PLR0917 - one for each option
    export: Path | None,
    dsn: str | None,
    full: bool,
    since: str | None,
    sample: int | None,
    keys: tuple[str, ...],
    anchors: tuple[str, ...],
    incremental: bool,
    state: Path | None,
    jobs: int | None,
    archive: str | None,
    deep: bool,
    as_json: bool,
    report_file: Path | None,
    metrics_file: Path | None,
) -> None:
    """Verify the store, and report tampering.

    With FILE, check an export of `otel-audit export`, without the store.

    Checks guards, rows, tree, signatures and anchors. Reads only. The tree is always built
    again as a whole; --since, --sample and --incremental choose which rows are read and hashed
    again. Exit status 0: nothing found; 1: tampering, rows that wait for their seal for more
    than five minutes, or the store cannot be verified; 2: wrong use. Rows that were malformed
    when they were inserted are a warning.
    """
    if export is not None:
        _verify_export(export, keys, as_json=as_json)
        return
    if full and (since is not None or sample is not None or incremental):
        raise click.UsageError("--full excludes --since, --sample and --incremental")
    if since is not None and (incremental or state is not None):
        raise click.UsageError("--since and --incremental exclude each other")
    from otel_audit_postgres.ledger.anchors import anchors_from
    from otel_audit_postgres.ledger.settings import chosen_public_keys
    from otel_audit_postgres.ledger.verify import bookmark
    from otel_audit_postgres.ledger.verify import verify as ledger

    config, store_dsn = AuditConfig(), chosen_dsn(dsn)
    public = chosen_public_keys(config, keys)
    file = state or (_state_file(store_dsn) if incremental else None)
    remembered = None if file is None or full else bookmark.recall(file, public)
    with _bar(visible=not as_json) as bar:
        task = bar.add_task("leaves", total=None)
        report = run_coroutine(
            ledger.verify(
                store_dsn,
                keys=public,
                anchors=anchors_from(anchors or config.anchor),
                since=read_time(since),
                sample=sample,
                remembered=remembered,
                jobs=jobs or _jobs(store_dsn),
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        )
    report, archived = _with_archives(
        report, store_dsn, archive or config.archive, public, deep=deep, is_shown=not as_json
    )
    if file is not None and report.ok and report.last_note is not None:
        bookmark.remember(file, report.last_note)
    if report_file is not None:
        _write(report_file, report)
    is_fine = report.ok and report.overdue is None
    if metrics_file is not None:
        _write_metrics(metrics_file, store_dsn, verified=is_fine)
    if as_json:
        shown = report.as_json()
        if archived is not None:
            shown["archives"] = archived.as_json()
        echo_json(shown, indent=2)
    else:
        if archived is not None:
            here = report.size - report.dropped
            echo(
                f"{here + archived.archived} rows: {archived.archived} archived, {here} here"
                + (f"; {archived.removed} removed as the policy says" if archived.removed else "")
            )
        for line, colour in _lines(report):
            echo(line, colour=colour)
    sys.exit(0 if is_fine else 1)


def _write_metrics(file: Path, store_dsn: str, *, verified: bool) -> None:
    from otel_audit_postgres.ledger.textfile import store_metrics, write_textfile

    text = run_coroutine(store_metrics(store_dsn, verified=verified))
    try:
        write_textfile(file, text)
    except OSError as error:
        raise ConfigurationError(f"--metrics: {file} cannot be written: {error.strerror}") from None


def _verify_export(file: Path, keys: tuple[str, ...], *, as_json: bool) -> None:
    """Check a file of `otel-audit export`; the store is not asked."""
    from otel_audit_postgres.exports.check import check_export
    from otel_audit_postgres.ledger.settings import chosen_public_keys

    found = check_export(file, chosen_public_keys(AuditConfig(), keys))
    if as_json:
        echo_json(asdict(found), indent=2)
    else:
        manifest = found.manifest
        echo(f"{manifest.rows} records of log {manifest.log}")
        echo(f"by its manifest: exported {manifest.exported_at} by {manifest.exported_by}")
        for problem in found.problems:
            echo(problem, colour="red")
        for warning in found.warnings:
            echo(f"warning: {warning}", colour="yellow")
        if not found.signed_by:
            echo("the signature was not checked: give the ledger's public key with --key", err=True)
        if not found.problems:
            by = f", signed by {', '.join(found.signed_by)}" if found.signed_by else ""
            echo(f"OK: {found.rows} records are as they were sealed{by}", colour="green")
    sys.exit(1 if found.problems else 0)


def _with_archives(  # noqa: PLR0913 - each a choice of its own
    report: VerificationReport,
    store_dsn: str,
    archive: str | None,
    keys: Sequence[PublicKey],
    *,
    deep: bool,
    is_shown: bool,
) -> tuple[VerificationReport, ArchiveReport | None]:
    """One report on the store and its archives, where there are any."""
    if archive is None:
        return report, None
    from otel_audit_postgres.archive.check import ArchiveCheckOptions, together, verify_archives
    from otel_audit_postgres.archive.objects import open_archive

    with rows_bar(visible=is_shown) as bar:
        task = bar.add_task("archives", total=None)
        options = ArchiveCheckOptions(
            open_archive(archive, "--archive"), keys, deep,
            progress=lambda rows: bar.update(task, completed=rows),
        )  # fmt: skip
        archived = run_coroutine(verify_archives(store_dsn, options))
    unrecorded = note_verification(store_dsn, archived, deep=deep)
    if unrecorded is not None:
        echo(f"warning: {unrecorded}", err=True)
    return together(report, archived), archived


def _write(file: Path, report: VerificationReport) -> None:
    try:
        file.write_text(json.dumps(report.as_json(), indent=2) + "\n", "utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"--report: {file} cannot be written ({type(error).__name__})"
        ) from None


def _state_file(dsn: str) -> Path:
    """One file a store: named by where it is, without what is secret."""
    parts = urlsplit(dsn)
    place = f"{parts.hostname or ''}:{parts.port or ''}{parts.path}?{parts.query}"
    name = hashlib.sha256(place.encode()).hexdigest()[:16]
    return user_state_directory("--state") / "verified" / f"{name}.json"


def _jobs(dsn: str) -> int:
    """One process for a small log; for a large one, as many as there are processors, up to four."""
    from otel_audit_postgres.ledger.verify.verify import size_of

    return 1 if run_coroutine(size_of(dsn)) < _WORTH_IT else min(os.cpu_count() or 1, _MOST_JOBS)


def _bar(*, visible: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not visible or not console.is_terminal,
    )


def _lines(report: VerificationReport) -> Iterator[tuple[str, Colour | None]]:
    rate = report.rows_checked / report.seconds if report.seconds else 0
    dropped = f", {report.dropped} dropped with their months" if report.dropped else ""
    log = f"log {report.origin or '(nothing sealed yet)'}: {report.size} rows sealed"
    yield f"{log}, {report.waiting} waiting{dropped}", None
    checked = f"checked {report.rows_checked} rows and {report.checkpoints} checkpoints"
    pace = f"in {report.seconds:.1f} s ({rate:.0f} rows/s)"
    yield f"{checked} {pace}; signed up to row {report.signed_size}", None
    for warning in report.warnings:
        yield f"warning: {warning}", None
    for row in report.malformed[:_MALFORMED_LISTED]:
        place = " waiting" if row.leaf is None else f" leaf {row.leaf}"
        yield f"malformed:{place} record {row.record_id}: {row.detail}", None
    if report.malformed_count > _MALFORMED_LISTED:
        more = report.malformed_count - _MALFORMED_LISTED
        yield f"malformed: and {more} more; --json and --report list them", None
    if report.overdue is not None:
        yield f"NOT SEALED: {report.overdue}", "red"
    if report.ok:
        yield _passed(report)
        return
    for problem in report.problems[:_LISTED]:
        place = "" if problem.leaf is None else f" leaf {problem.leaf}"
        record = f" record {problem.record_id}" if problem.record_id else ""
        where = f":{place}{record}" if place or record else ""
        yield f"{problem.kind}{where}: {problem.detail}", None
    if len(report.problems) > _LISTED:
        more = len(report.problems) - _LISTED
        yield f"and {more} more; --json and --report list them", None
    counts = ", ".join(f"{count} {kind}" for kind, count in report.counts.items())
    first = report.first_bad
    assert first is not None  # noqa: S101 - there are problems
    named = first.record_id or first.detail
    yield f"TAMPERED: {counts}; first bad: {named} ({first.kind})", "red"


def _passed(report: VerificationReport) -> tuple[str, Colour]:
    """The verdict, with its limits: unsealed rows prove nothing."""
    if not report.waiting:
        verdict = "OK: nothing was tampered with" if report.size else "OK: there are no rows yet"
        return verdict, "green"
    if not report.size:
        return f"OK for 0 of {report.waiting} rows: nothing is sealed yet", "yellow"
    wait = "waits for its seal" if report.waiting == 1 else "wait for their seal"
    return f"OK for {report.size} rows; {report.waiting} {wait}", "green"
