"""`otel-audit export`: what a query finds, as a file with a manifest and a proof."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

from otel_audit._util.loop_thread import run_coroutine
from otel_audit.cli.options import chosen_dsn, dsn_option, json_option
from otel_audit.cli.query_commands import QUERY_SETTINGS, query_argument, query_of
from otel_audit.cli.terminal import echo, echo_json
from otel_audit.config import AuditConfig

if TYPE_CHECKING:
    from otel_audit_postgres.exports.write import DataFormat


@click.command(context_settings=QUERY_SETTINGS)
@query_argument
@dsn_option
@click.option(
    "--format", "data_format", type=click.Choice(["csv", "ndjson", "json", "parquet"]),
    required=True, help="How the records are written.",
)  # fmt: skip
@click.option(
    "--out", required=True, metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
    help="The file; FILE.manifest.json and FILE.proof.gz come beside it.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that are there already.")
@json_option
def export(  # noqa: PLR0913, PLR0917 - one for each option
    text: tuple[str, ...],
    dsn: str | None,
    data_format: DataFormat,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Write the records of QUERY to a file, with a proof.

    All sealed records, in the order of the ledger.

    QUERY is as for `search`; without one, everything is written. The manifest says what the file
    is; `otel-audit verify FILE` checks it, and each record, without the store. The export is
    recorded in the trail before its first byte, as audit.exported. All files are written, or
    none. Exit status 0: written; 1: not written, or with records that are not
    as they were sealed; 2: wrong use.
    """
    from otel_audit_postgres.exports.write import write_export

    query = query_of(text, {})
    with _bar(visible=not as_json) as bar:
        task = bar.add_task("leaves", total=None)
        done = run_coroutine(
            write_export(
                chosen_dsn(dsn),
                query,
                data_format,
                out,
                views=AuditConfig().record_views,
                replace=force,
                progress=lambda part, total: bar.update(task, completed=part, total=total),
            )
        )
    if as_json:
        echo_json(asdict(done))
        sys.exit(done.changed > 0)
    echo(f"{done.rows} records in {out}, {done.size} bytes, sealed under {done.log}")
    if done.changed:
        echo(f"{done.changed} of them are NOT as they were sealed: run verify", colour="red")
    if done.waiting:
        echo(f"not in it: {done.waiting} waiting for their seal, with the record of this export")
    if done.tenants is not None:
        echo("only records of the tenants that this role may see are in it")
    sys.exit(done.changed > 0)


def _bar(*, visible: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True), console=console, transient=True,
        disable=not visible or not console.is_terminal,
    )  # fmt: skip
