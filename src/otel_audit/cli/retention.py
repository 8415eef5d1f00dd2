"""`otel-audit retention`: what is kept how long, what is due, and doing it."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import uuid
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from otel_audit._util.loop_thread import run_coroutine
from otel_audit.cli.options import chosen_dsn, dsn_option, json_option
from otel_audit.cli.terminal import echo, echo_columns, echo_json
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError

if TYPE_CHECKING:
    from otel_audit_postgres.archive.objects import ArchiveStore
    from otel_audit_postgres.retention.plan import RetentionPlan
    from otel_audit_postgres.retention.policy import RetentionPolicy
    from otel_audit_postgres.retention.run import RunReport

_COLUMNS = (
    "month",
    "rows",
    "MB",
    "archived",
    "leaves on",
    "class",
    "of it",
    "expires on",
    "blocked",
)

file_option = click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The policy. Default: OTEL_AUDIT_RETENTION_FILE.",
)
archive_option = click.option(
    "--archive", metavar="URL", help="The archive, file:… or s3://…. Default: OTEL_AUDIT_ARCHIVE."
)


def chosen_policy(file: Path | None) -> RetentionPolicy:
    """Read the policy that the option or the settings name.

    Raises:
        ConfigurationError: There is none, or it is unfit.
    """
    from otel_audit_postgres.retention.policy import read_policy_file

    place = file or AuditConfig().retention_file
    if place is None:
        raise ConfigurationError(
            "no retention policy: set OTEL_AUDIT_RETENTION_FILE, or give --file"
        )
    return read_policy_file(place)


def chosen_archive(url: str | None) -> ArchiveStore | None:
    """Open the archive that the option or the settings name; None where there is none."""
    from otel_audit_postgres.archive.objects import open_archive

    if url is not None:
        return open_archive(url, "--archive")
    found = AuditConfig().archive
    return None if found is None else open_archive(found)


def needed_archive(url: str | None) -> ArchiveStore:
    """As `chosen_archive`, but it must be set.

    Raises:
        ConfigurationError: There is none.
    """
    found = chosen_archive(url)
    if found is None:
        raise ConfigurationError("no archive: set OTEL_AUDIT_ARCHIVE, or give --archive")
    return found


@click.group()
def retention() -> None:
    """Apply the retention policy."""


@retention.command()
@click.argument("subject", metavar="EVENT|ID")
@dsn_option
@file_option
@click.option("--tenant", default="", help="For an event of this tenant.")
@click.option("--action", default="", help="For an event with this action.")
@click.option("--level", help="For an event that is recorded at this level.")
@json_option
def explain(  # noqa: PLR0913, PLR0917 - one for each option
    subject: str,
    dsn: str | None,
    file: Path | None,
    tenant: str,
    action: str,
    level: str | None,
    as_json: bool,
) -> None:
    """Print how long a record is kept, by event name or record id."""
    from otel_audit_postgres.retention import plan as planning
    from otel_audit_postgres.retention.policy import RecordKind

    policy = chosen_policy(file)
    leaves_on: date | None = None
    try:
        record_id = uuid.UUID(subject)
    except ValueError:
        kind = RecordKind(tenant, subject, action, level)
        says = policy.explain(kind)
    else:
        kind, says, leaves_on = run_coroutine(planning.explain(chosen_dsn(dsn), policy, record_id))
    explained = {
        "event": kind.event, "tenant": kind.tenant, "class": says.name, "min": says.min,
        "max": says.max, "hot": says.hot, "archive": says.archive, "rules": dict(says.rules),
        "leaves_on": None if leaves_on is None else leaves_on.isoformat(),
    }  # fmt: skip
    if as_json:
        echo_json(explained)
        return
    echo(f"{kind.event}: class {says.name}")
    for name, meaning in (
        ("min", "kept at least"), ("hot", "in the database"), ("archive", "then in the archive"),
        ("max", "gone at the latest after"),
    ):  # fmt: skip
        days = getattr(says, name)
        rule = f" (rule {says.rules[name]})" if name in says.rules else ""
        never = "no limit" if name == "max" else "for ever"
        echo(f"  {meaning}: {never if days is None else f'{days} days'}{rule}")
    if leaves_on is not None:
        echo(f"  leaves the database on {leaves_on}, or later")


@retention.command()
@dsn_option
@file_option
@click.option("--today", metavar="DATE", help="Plan for this day, such as 2027-01-31.")
@json_option
def plan(dsn: str | None, file: Path | None, today: str | None, as_json: bool) -> None:
    """Print what `retention run` would do."""
    from otel_audit_postgres.retention import plan as planning

    found = run_coroutine(planning.plan(chosen_dsn(dsn), chosen_policy(file), _day(today)))
    if as_json:
        echo_json(
            {"today": found.today.isoformat(), "months": [one.as_json() for one in found.months],
             "due": [f"{one.month:%Y-%m}" for one in found.due]}
        )  # fmt: skip
        return
    _print_plan(found)


@retention.command()
@dsn_option
@file_option
@archive_option
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Key for manifests. Default: OTEL_AUDIT_SIGNING_KEY_FILE.",
)
@click.option("--wait", default=60.0, show_default=True, help="Seconds to wait for the sealer.")
@click.option("--dry-run", is_flag=True, help="Same as `retention plan`.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_context
def run(  # noqa: PLR0913, PLR0917 - one for each option
    context: click.Context,
    dsn: str | None,
    file: Path | None,
    archive: str | None,
    key_file: Path | None,
    wait: float,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Archive what is due, and drop it from the database.

    A month at a time: archived, read back, retired, dropped. It can be killed at any point and run
    again. It names months that wait for the sealer or are held; the exit status is then still 0.
    Run it daily.
    """
    if dry_run:
        context.invoke(plan, dsn=dsn, file=file, today=None, as_json=as_json)
        return
    from otel_audit_postgres.ledger.settings import chosen_public_keys, chosen_signer
    from otel_audit_postgres.retention import plan as planning
    from otel_audit_postgres.retention import run as running

    policy, place, config = chosen_policy(file), chosen_dsn(dsn), AuditConfig()
    if not yes:
        found = run_coroutine(planning.plan(place, policy))
        names = ", ".join(f"{one.month:%Y-%m}" for one in found.due)
        rows = sum(one.rows for one in found.due)
        if found.due or as_json:
            asked(f"{names} with {rows} rows leave the database. Go on?", yes=yes, as_json=as_json)
    signer = chosen_signer(config, key_file)
    keys = chosen_public_keys(config)
    if key_file is not None and signer is not None:
        keys = [*keys, signer.public] if hasattr(signer, "public") else keys
    with bar(visible=not as_json) as progress:
        task = progress.add_task("", total=None)
        done = run_coroutine(
            running.run(
                policy,
                running.RetentionRunOptions(
                    place, chosen_archive(archive), signer, keys, wait=wait,
                    on_step=lambda month, step: progress.update(
                        task, description=f"{month} {step}"
                    ),
                    progress=lambda rows: progress.update(task, completed=rows),
                ),
            )
        )  # fmt: skip
    if as_json:
        echo_json(done.as_json())
    else:
        _print_done(done)


@retention.command()
@dsn_option
@file_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def approve(dsn: str | None, file: Path | None, yes: bool, as_json: bool) -> None:
    """Approve a policy that keeps less than the one in force.

    It is needed if the policy in force has two_persons. Run it as another role than the one that
    runs `retention run`. The approval is recorded.
    """
    from otel_audit_postgres.retention import run as running

    policy = chosen_policy(file)
    asked("Approve this policy, in place of the one in force?", yes=yes, as_json=as_json)
    run_coroutine(running.approve(chosen_dsn(dsn), policy))
    if as_json:
        echo_json({"approved": policy.as_plain()})
    else:
        echo("approved: another role's `otel-audit retention run` puts it in force")


@retention.command()
@dsn_option
@json_option
def status(dsn: str | None, as_json: bool) -> None:
    """Print what is overdue or held, and when archives were verified."""
    from otel_audit_postgres.retention.metrics import as_json as plain
    from otel_audit_postgres.retention.metrics import retention_state

    found = run_coroutine(retention_state(chosen_dsn(dsn)))
    if as_json:
        echo_json(plain(found))
        return
    days, until = found.lag / 86_400, found.archived_until
    echo(
        f"last run: {_moment(found.last_run)}; months that stayed: {found.blocked}, that wait: "
        f"{found.waiting}",
        f"overdue: {'nothing' if days <= 0 else f'for {days:.0f} days'}",
        f"holds: {found.holds}",
        f"archived: {found.archived_rows} rows, up to {'-' if until is None else f'{until:%Y-%m}'}",
        f"archives verified: {_moment(found.last_verification)}"
        + ("" if found.problems is None else f", {found.problems} problems"),
    )


def _moment(when: datetime | None) -> str:
    return "never" if when is None else f"{when:%Y-%m-%d %H:%M}"


def bar(*, visible: bool, unit: str = "rows") -> Progress:
    """A progress line on a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        TextColumn(f"{{task.completed}} {unit}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not visible or not console.is_terminal,
    )


def asked(question: str, *, yes: bool, as_json: bool = False) -> None:
    """Ask for confirmation; a program passes ``--yes``.

    Raises:
        UsageError: JSON is wanted, so that nothing can be asked, and ``--yes`` was not given.
    """
    if yes:
        return
    if as_json:
        raise click.UsageError("with --json nothing is asked: give --yes, if it is to be done")
    click.confirm(question, abort=True)


def _day(text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a day: 2027-01-31") from None


def _print_plan(found: RetentionPlan) -> None:
    lines = []
    for one in found.months:
        head = (
            f"{one.month:%Y-%m}", one.rows, f"{one.size / 1e6:.1f}",
            "yes" if one.is_archived else "no", one.first_day or "never",
        )  # fmt: skip
        blocked = "; ".join(one.blocked_by)
        for number, kind in enumerate(one.classes or (None,)):
            first = head if number == 0 else ("",) * len(head)
            decision = ("", "", "") if kind is None else (
                kind.says.name, kind.rows, kind.expires_on or "never"
            )  # fmt: skip
            lines.append((*first, *decision, blocked if number == 0 else ""))
    echo_columns(_COLUMNS, lines)
    names = ", ".join(f"{one.month:%Y-%m}" for one in found.due)
    echo(f"due on {found.today}: {names or 'nothing'}")


def _print_done(done: RunReport) -> None:
    for name, rows in done.archived.items():
        echo(f"{name}: {rows} rows archived")
    for key in done.held:
        echo(f"{key}: held in the archive")
    for name, rows in done.dropped.items():
        echo(f"{name}: {rows} rows dropped from the database")
    for key in done.removed:
        echo(f"{key}: removed from the archive")
    for name, why in done.waiting.items():
        echo(f"{name}: {why}; it goes with the next run", colour="yellow")
    for name, why in done.blocked.items():
        echo(f"{name}: stays: {why}", colour="yellow")
    if not (done.archived or done.dropped or done.removed or done.waiting or done.blocked):
        echo("nothing is due")
