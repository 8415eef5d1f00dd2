"""`otel-audit begin-anchor` and `moved`: decisions that the sealer must not guess."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import click

from otel_audit._util.loop_thread import run_coroutine
from otel_audit.cli.options import chosen_dsn, dsn_option, json_option
from otel_audit.cli.terminal import echo, echo_json


@click.command(name="begin-anchor")
@dsn_option
@click.argument("anchor")
@json_option
def begin_anchor(dsn: str | None, anchor: str, as_json: bool) -> None:
    """Begin to publish to ANCHOR, a new one.

    It holds no checkpoint of this log yet. Without this command an empty anchor is an
    error, because somebody may have emptied it. The command publishes the last checkpoint there.
    Make sure first that the anchor is new: verify with the other anchors, or with a checkpoint
    that you kept.
    """
    from otel_audit_postgres.ledger.anchors import anchors_from
    from otel_audit_postgres.ledger.operator_actions import begin

    (place,) = anchors_from([anchor])
    size = run_coroutine(begin(chosen_dsn(dsn), place))
    if as_json:
        echo_json({"anchor": place.name, "size": size})
        return
    echo(
        f"{place.name}: has the checkpoint of {size} rows" if size else
        f"{place.name}: nothing is sealed yet; the sealer will begin to publish there"
    )  # fmt: skip


@click.command()
@dsn_option
@json_option
def moved(dsn: str | None, as_json: bool) -> None:
    """Confirm that the log was moved or restored to this database.

    Until then the sealer refuses a log that belongs to another server or database. Run it only if
    the original is sealed no more. A copy beside it (staging) needs its own key and anchors first;
    otherwise both sign different histories under one name.
    """
    from otel_audit_postgres.ledger.operator_actions import move_here

    place = run_coroutine(move_here(chosen_dsn(dsn)))
    if as_json:
        echo_json({"place": place})
        return
    echo(f"the log belongs to this database ({place}) from now on")
