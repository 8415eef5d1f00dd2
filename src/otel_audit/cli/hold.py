"""`otel-audit hold`: legal holds, which override the retention policy."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import uuid

import click

from otel_audit._util.loop_thread import run_coroutine
from otel_audit.cli.options import chosen_dsn, dsn_option, json_option, read_time
from otel_audit.cli.retention import archive_option, asked, bar, chosen_archive
from otel_audit.cli.terminal import echo, echo_columns, echo_json

_reason_option = click.option("--reason", required=True, help="The reason; it is recorded.")
_yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group()
def hold() -> None:
    """Legal holds: records of a matter stay until it is released."""


@hold.command()
@dsn_option
@archive_option
@click.option("--matter", required=True, help="The matter, such as a case number.")
@_reason_option
@click.option("--tenant", help="Records of this tenant.")
@click.option("--actor", help="Records of this actor.")
@click.option("--entity", help="Records about it, such as order:123.")
@click.option("--event", help="Records of this event: order.paid, or order.*.")
@click.option("--from", "since", metavar="TIME", help="At or after.")
@click.option("--until", metavar="TIME", help="Before.")
@click.option("--dry-run", is_flag=True, help="Print what it would apply to.")
@json_option
def place(  # noqa: PLR0913, PLR0917 - one for each option
    dsn: str | None,
    archive: str | None,
    matter: str,
    reason: str,
    tenant: str | None,
    actor: str | None,
    entity: str | None,
    event: str | None,
    since: str | None,
    until: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Hold all records, old and new, that match all conditions."""
    from otel_audit_postgres.retention.holds import HoldConditions, place_hold, preview_hold

    conditions = HoldConditions(tenant, actor, entity, event, read_time(since), read_time(until))
    if dry_run:
        rows, objects = run_coroutine(
            preview_hold(chosen_dsn(dsn), conditions, chosen_archive(archive))
        )
        if as_json:
            echo_json({"rows": rows, "objects": objects})
        else:
            echo(f"it would apply to {rows} rows in the database, and to rows of", *objects)
        return
    with bar(visible=not as_json, unit="objects held") as progress:
        task = progress.add_task("read the archive", total=None)
        hold_id, held = run_coroutine(
            place_hold(
                chosen_dsn(dsn), matter, reason, conditions, chosen_archive(archive),
                progress=lambda count: progress.update(task, completed=count),
            )
        )  # fmt: skip
    if as_json:
        echo_json({"hold": str(hold_id), "objects": held})
    else:
        echo(f"hold {hold_id} placed; {len(held)} objects of the archive are held")


@hold.command()
@click.argument("hold_id", metavar="ID", type=click.UUID)
@dsn_option
@archive_option
@_reason_option
@_yes_option
@json_option
def release(  # noqa: PLR0913, PLR0917 - one for each option
    hold_id: uuid.UUID,
    dsn: str | None,
    archive: str | None,
    reason: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Release the hold ID: the policy applies to its records again."""
    from otel_audit_postgres.retention.holds import release_hold

    asked(f"Release hold {hold_id}?", yes=yes, as_json=as_json)
    freed = run_coroutine(release_hold(chosen_dsn(dsn), hold_id, reason, chosen_archive(archive)))
    if as_json:
        echo_json({"hold": str(hold_id), "objects": freed})
    else:
        echo(f"hold {hold_id} released; {len(freed)} objects of the archive are held no more")


@hold.command()
@click.argument("hold_id", metavar="ID", type=click.UUID)
@click.argument("target")
@dsn_option
@_reason_option
@_yes_option
@json_option
def override(  # noqa: PLR0913, PLR0917 - one for each option
    hold_id: uuid.UUID, target: str, dsn: str | None, reason: str, yes: bool, as_json: bool
) -> None:
    """Allow the deletion of TARGET despite the hold ID.

    TARGET is a partition, an object's name, or subject:NAME.

    Run it as another role than the one that placed the hold.
    """
    from otel_audit_postgres.retention.holds import override_hold

    asked(f"Let {target} go in spite of hold {hold_id}?", yes=yes, as_json=as_json)
    run_coroutine(override_hold(chosen_dsn(dsn), hold_id, target, reason))
    if as_json:
        echo_json({"hold": str(hold_id), "target": target})
        return
    echo(f"{target} may go in spite of hold {hold_id}")


@hold.command(name="list")
@dsn_option
@json_option
def list_(dsn: str | None, as_json: bool) -> None:
    """Show the holds that are not released."""
    from otel_audit_postgres.retention.holds import list_holds

    found = run_coroutine(list_holds(chosen_dsn(dsn)))
    if as_json:
        echo_json([one.as_json() for one in found])
        return
    names = ("tenant", "actor", "entity", "event", "since", "until")
    echo_columns(
        ("hold", "matter", "applies to", "placed by", "placed at"),
        [
            (
                one.id, one.matter,
                " ".join(
                    f"{name}={value}"
                    for name in names
                    if (value := getattr(one, name)) is not None
                ),
                one.placed_by, f"{one.placed_at:%Y-%m-%d %H:%M}",
            )
            for one in found
        ],
    )  # fmt: skip
