"""`otel-audit report`: reports for auditors."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from otel_audit._util.loop_thread import run_coroutine
from otel_audit.cli.options import chosen_dsn, dsn_option, json_option, read_time
from otel_audit.cli.terminal import echo, echo_columns, echo_json
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError

if TYPE_CHECKING:
    from otel_audit_postgres.reports.make_report import Report
    from otel_audit_postgres.reports.model import Definition
    from otel_audit_postgres.reports.options import Options

_FORMATS: Final = ("html", "csv", "json")


@click.command()
@click.argument("name", required=False)
@dsn_option
@click.option("--from", "begin", metavar="TIME", help="The first moment of the period: 2026-11-01.")
@click.option("--to", "end", metavar="TIME", help="Where it ends: 2026-12-01. Default: now.")
@click.option("--tenant", help="Only records of this tenant.")
@click.option("--query", default="", metavar="QUERY", help="Only records of this query.")
@click.option("--subject", metavar="ID", help="The subject of the report `subject`.")
@click.option("--checkpoint", type=click.IntRange(1), metavar="SIZE", help="As of this checkpoint.")
# the default is SAMPLE of otel_audit_postgres.reports.options
@click.option("--sample", type=int, default=25, show_default=True, help="Records of `review`.")
@click.option("--seed", default="1", show_default=True, help="The seed of the sample.")
@click.option("--sign-off", metavar="FINDING", help="Sign off `review`; this is recorded.")
@click.option("--record", metavar="ID", help="Sign off only this record.")
@click.option(
    "--format", "formats", default="html", show_default=True, metavar="LIST",
    help="html, csv, json, or several with commas between.",
)  # fmt: skip
@click.option(
    "--out", default=Path(), type=click.Path(path_type=Path, file_okay=False),
    metavar="DIRECTORY", help="Directory of the files. Default: this one.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that are there already.")
@json_option
def report(  # noqa: PLR0913, PLR0917 - one for each option
    name: str | None,
    dsn: str | None,
    begin: str | None,
    end: str | None,
    tenant: str | None,
    query: str,
    subject: str | None,
    checkpoint: int | None,
    sample: int,
    seed: str,
    sign_off: str | None,
    record: str | None,
    formats: str,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Make the report NAME of a period, or list the reports.

    The same options and the same checkpoint give the same bytes. It has sealed records
    only, and names what is missing and what this role may not see. The report is recorded in the
    trail. Exit status 0: made; 1: not made, or made from records that were changed after their
    seal; 2: wrong use.
    """
    from otel_audit_postgres.reports.registry import REPORTS, find_report

    if name is None:
        if as_json:
            echo_json({one.name: one.about for one in REPORTS.values()})
        else:
            rows = [(one.name, one.about) for one in REPORTS.values()]
            echo_columns(("report", "what it shows"), rows)
        return
    definition = find_report(name)
    options = _options(
        read_time(begin), read_time(end), tenant=tenant, query=query, subject=subject,
        checkpoint=checkpoint, sample=sample, seed=seed,
    )  # fmt: skip
    if sign_off is not None:
        _sign(dsn, definition, options, sign_off, record)
        return
    chosen = _chosen(formats)
    files = {form: out / f"{_file_name(definition, options)}.{form}" for form in chosen}
    with _drafts([*files.values()], replace=force) as drafts:
        made = _made(dsn, definition, options)
        try:
            _write(made, dict(zip(files, drafts, strict=True)))
        finally:
            made.close()
    if as_json:
        summary = {"head": made.head, "notes": made.notes, "nothing": made.nothing}
        echo_json({"files": files, "checkpoint": made.checkpoint, **summary})
        sys.exit(made.is_tampered)
    for note in (*made.notes, *(() if made.nothing is None else (made.nothing,))):
        echo(note, colour="yellow", err=True)
    for file in files.values():
        echo(f"{made.rows} rows in {file}")
    echo(f"as of checkpoint {made.checkpoint}", err=True)
    sys.exit(made.is_tampered)


def _options(begin: datetime | None, end: datetime | None, **more: object) -> Options:
    from otel_audit_postgres.reports.options import Options

    if begin is None:
        raise click.UsageError("--from is needed: when the period begins; --to is now by default")
    end = datetime.now(UTC) if end is None else end
    return Options(begin=begin, end=end, **more)  # type: ignore[arg-type]


def _chosen(formats: str) -> list[str]:
    chosen = list(dict.fromkeys(one.strip() for one in formats.split(",")))
    unknown = [one for one in chosen if one not in _FORMATS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(_FORMATS)}")
    return chosen


def _file_name(definition: Definition, options: Options) -> str:
    period = f"{options.begin:%Y%m%dT%H%M}-{options.end:%Y%m%dT%H%M}".replace("T0000", "")
    return f"{definition.name}-{period}"


def _made(dsn: str | None, definition: Definition, options: Options) -> Report:
    from otel_audit_postgres.query import queries
    from otel_audit_postgres.query.trail import Trail
    from otel_audit_postgres.reports.evidence import witnesses_of
    from otel_audit_postgres.reports.make_report import checked, looked_at, make_report

    checked(definition, options)
    config = AuditConfig()
    witnesses = witnesses_of(config)

    async def answer() -> Report:
        async with queries.opened(chosen_dsn(dsn)) as connection:
            made = await make_report(connection, definition, options, witnesses=witnesses)
            try:
                await looked_at(Trail(connection, views=config.record_views), made, options)
            except BaseException:
                made.close()
                raise
            return made

    return run_coroutine(answer())


def _sign(
    dsn: str | None, definition: Definition, options: Options, finding: str, record: str | None
) -> None:
    if definition.name != "review":
        raise click.UsageError("--sign-off goes with the report review")
    from otel_audit_postgres.query.trail import open_trail
    from otel_audit_postgres.reports.make_report import checked, signed_off

    checked(definition, options)

    async def answer() -> None:
        # who signs wants it to be recorded, whatever is recorded of looks
        async with open_trail(chosen_dsn(dsn), views="required") as trail:
            await signed_off(trail, options, finding, record)

    run_coroutine(answer())
    echo("signed off; it is in the report once it is sealed")


@contextlib.contextmanager
def _drafts(files: list[Path], *, replace: bool) -> Iterator[list[Path]]:
    """Draft files; all are renamed together at the end, or deleted."""
    there = [file for file in files if file.exists()]
    if there and not replace:
        raise ConfigurationError(f"{there[0]} is there already; give another --out, or --force")
    drafts = [file.with_name(f".{file.name}.{os.getpid()}.part") for file in files]
    try:
        for file, draft in zip(files, drafts, strict=True):
            try:
                os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            except OSError as error:
                raise ConfigurationError(
                    f"--out: {file} cannot be written: {error.strerror}"
                ) from None
        yield drafts
        for file, draft in zip(files, drafts, strict=True):
            draft.replace(file)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


def _write(made: Report, drafts: dict[str, Path]) -> None:
    from otel_audit_postgres.reports.render import pieces

    for form, draft in drafts.items():
        try:
            with draft.open("wb") as target:
                target.writelines(pieces(made, form))  # type: ignore[arg-type]
        except OSError as error:
            raise ConfigurationError(
                f"--out: the report cannot be written to {draft.parent}: {error.strerror}; nothing "
                "is left there"
            ) from None
