"""`otel-audit subject`: export and erase the records about a person."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from otel_audit._util.durable_file import create_durably
from otel_audit._util.loop_thread import run_coroutine
from otel_audit._util.postgres_dsn import plain_dsn
from otel_audit.cli.options import chosen_dsn, dsn_option, json_option
from otel_audit.cli.retention import archive_option, asked, bar, chosen_archive
from otel_audit.cli.terminal import echo, echo_json
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from otel_audit_postgres.personal.key_store import KeyStore
    from otel_audit_postgres.retention.subject import ErasurePlan

_names_argument = click.argument("names", metavar="ID...", nargs=-1, required=True)
_tenant_option = click.option("--tenant", default="", help="The tenant; none by default.")


@click.group()
def subject() -> None:
    """Personal values: export them, or erase them by their keys."""


@subject.command()
@click.option(
    "--kek-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The key-encryption key; made if it is not there. By default OTEL_AUDIT_KEYS_KEK_FILE.",
)
@json_option
def init(kek_file: Path | None, as_json: bool) -> None:
    """Set up the database of keys that OTEL_AUDIT_KEYS_DSN names."""
    from otel_audit_postgres.personal.key_store import KeyStore, read_wrapper
    from otel_audit_postgres.personal.protect import key_store_from

    config = AuditConfig()
    place = kek_file or config.keys_kek_file
    if config.keys_dsn is None or (place is None and config.keys_kek is None):
        raise ConfigurationError(
            "subject init: set OTEL_AUDIT_KEYS_DSN, and OTEL_AUDIT_KEYS_KEK_FILE, --kek-file, or "
            "OTEL_AUDIT_KEYS_KEK"
        )
    made = False
    if place is None:
        keys = key_store_from(config)
        assert keys is not None  # noqa: S101 - asked before
    else:
        if not place.exists():
            create_durably(place, f"{secrets.token_hex(32)}\n".encode(), 0o600)
            made = True
        keys = KeyStore(plain_dsn(config.keys_dsn.get_secret_value()), read_wrapper(place))
    _run(keys, lambda keys: keys.init())
    if as_json:
        echo_json({"kek_file": None if place is None else str(place), "made": made})
        return
    if made:
        echo(f"{place}: made; keep a copy where no backup of the keys' database is")
    echo("the database of keys is ready")


@subject.command()
@_names_argument
@_tenant_option
@dsn_option
@archive_option
def export(names: tuple[str, ...], tenant: str, dsn: str | None, archive: str | None) -> None:
    """Print all records by ID or about it, decrypted, as JSON lines.

    ID is an actor's id, or customer:17; give all IDs of the person.

    Erased values show as [ERASED]. With an archive, archived records are included.
    """
    from otel_audit_postgres.personal.key_store import Subject
    from otel_audit_postgres.retention.subject import export_subject

    place = chosen_archive(archive)

    async def work(keys: KeyStore) -> int:
        count = 0
        # beside a file; on a screen the records themselves tell how far it is
        with bar(visible=not sys.stdout.isatty(), unit="records") as progress:
            task = progress.add_task("export", total=None)
            whom = Subject(tenant, names[0])
            async for one in export_subject(chosen_dsn(dsn), keys, whom, place, names[1:]):
                echo_json(one)
                count += 1
                progress.update(task, completed=count)
        return count

    count = _run(_keys(), work)
    echo(f"{count} records", err=True)


@subject.command()
@click.argument("name", metavar="ID")
@click.argument("field")
@click.argument("file", type=click.File("rb"), default="-")
@_tenant_option
@json_option
def pseudonym(name: str, field: str, file: BinaryIO, tenant: str, as_json: bool) -> None:
    """Print the pseudonyms of one value of ID, to search by.

    FIELD is its place in the record: source.address, actor.email. FILE holds the value; - is
    standard input. There is one pseudonym for each key of ID that is not destroyed.
    """
    from otel_audit_postgres.personal.key_store import Subject

    value = file.read().decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
    found = _run(_keys(), lambda keys: keys.known(Subject(tenant, name)))
    texts = [key.column_text(value, field) for key in found]
    if as_json:
        echo_json(texts)
        return
    for text in texts:
        echo(text)
    if not texts:
        echo(f"{name}: no key, so nothing of it is encrypted", err=True)


@subject.command()
@_names_argument
@_tenant_option
@dsn_option
@archive_option
@click.option("--basis", required=True, help="The law or the request; no names.")
@click.option("--reason", required=True, help="Why; no names.")
@click.option("--dry-run", is_flag=True, help="Print what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def erase(  # noqa: PLR0913, PLR0917 - one for each option
    names: tuple[str, ...],
    tenant: str,
    dsn: str | None,
    archive: str | None,
    basis: str,
    reason: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Erase a person: destroy the keys of each ID.

    Give all IDs that one person has, such as two logins and customer:17: either all are erased,
    or none.

    The personal values are then unreadable everywhere; proofs still hold. The command first prints
    what it will erase, and what it cannot reach, and asks. A legal hold forbids the erasure;
    archives are looked into where it may apply to archived records.
    """
    from otel_audit_postgres.personal.key_store import Subject
    from otel_audit_postgres.retention.subject import erase_all, plan_erasure

    store_dsn, whom = chosen_dsn(dsn), [Subject(tenant, name) for name in dict.fromkeys(names)]
    place = chosen_archive(archive)

    async def planned(keys: KeyStore) -> list[ErasurePlan]:
        return [await plan_erasure(store_dsn, keys, one, place) for one in whom]

    plans = _run(_keys(), planned)
    left = _not_reached(plans, tenant, [one.name for one in whom])
    if not as_json:
        for one, found in zip(whom, plans, strict=True):
            _show(one.name, found)
        for line in left:
            echo(f"not reached: {line}", colour="yellow")
    shown = {
        "subjects": [
            {"id": one.name, "keys": found.keys, "rows": found.rows, "held": found.held,
             "quarantined": found.quarantined}
            for one, found in zip(whom, plans, strict=True)
        ],
        "not_reached": left,
    }  # fmt: skip
    if dry_run:
        if as_json:
            echo_json(shown)
        return
    if any(found.keys for found in plans):
        asked("These values cannot be brought back. Go on?", yes=yes, as_json=as_json)
    done = _run(_keys(), lambda keys: erase_all(store_dsn, keys, whom, basis, reason, place))
    if as_json:
        echo_json({"erased": [one.name for one in done], **shown})
        return
    for one, found in zip(whom, plans, strict=True):
        before = max((key.destroyed_at for key in found.erased), default=None)
        was = "erased" if one in done or before is None else f"was erased on {before:%Y-%m-%d}"
        echo(f"{one.name}: {was}")


def _show(name: str, found: ErasurePlan) -> None:
    span = f", from {found.first:%Y-%m-%d} to {found.last:%Y-%m-%d}" if found.first else ""
    echo(f"{name}: {found.keys} keys to destroy; {found.rows} records in the database{span}")
    if any(not one.is_recorded for one in found.erased):
        echo(f"{name}: an erasure was cut off after its keys were destroyed; this one records it")
    if found.held is not None:
        echo(f"{name}: held: {found.held}", colour="yellow")


def _not_reached(plans: Sequence[ErasurePlan], tenant: str, names: Sequence[str]) -> list[str]:
    """A note on the data that an erasure does not reach."""
    from otel_audit.delivery.spool import inspect

    left = []
    counts = [found.quarantined for found in plans]
    if None in counts:
        left.append("audit.quarantine: not looked at, this role may not read it")
    elif texts := sum(count or 0 for count in counts):
        left.append(f"audit.quarantine: {texts} refused texts contain an ID; they are kept")
    directory = AuditConfig().spool_path
    held = inspect(directory).bytes_used
    if held:
        left.append(
            f"{directory}: {held} bytes wait for delivery; what happened before now is stored "
            "without its personal values then"
        )
    left += _in_outbox(tenant, names)
    left.append(
        "spools and refused records on other hosts, and outboxes of other databases: not looked "
        "at; `otel-audit doctor` there names a spool, and `otel-audit relay` empties an outbox"
    )
    return left


def _in_outbox(tenant: str, names: Sequence[str]) -> list[str]:
    """A note on the outbox that the settings name."""
    from otel_audit_postgres.outbox import count_about

    config = AuditConfig()
    dsn = config.outbox_asyncpg_dsn
    if dsn is None or (config.outbox_dsn is None and config.orm != "transactional"):
        return []
    try:
        waiting = run_coroutine(count_about(dsn, tenant, names))
    except StoreError as error:
        return [f"the outbox: not looked at: {error}; OTEL_AUDIT_OUTBOX_DSN names it"]
    if not waiting:
        return []
    note = (
        f"the outbox: {waiting} records by or about an ID wait for the relay; what happened before "
        "now is stored without its personal values then: run `otel-audit relay`"
    )
    return [note]


@subject.command()
@dsn_option
@click.option("--dry-run", is_flag=True, help="Print how many keys are back.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def replay(dsn: str | None, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Destroy again the keys that a restored backup brought back."""
    from otel_audit_postgres.retention.subject import plan_replay, replay_erasures

    store_dsn = chosen_dsn(dsn)
    destroyed, back = _run(_keys(), lambda keys: plan_replay(store_dsn, keys))
    if dry_run:
        if as_json:
            echo_json({"recorded": destroyed, "back": back})
        else:
            echo(f"{back} keys are back, of {destroyed} that the trail names")
        return
    if back:
        asked(f"{back} keys are destroyed again. Go on?", yes=yes, as_json=as_json)
    count = _run(_keys(), lambda keys: replay_erasures(store_dsn, keys))
    if as_json:
        echo_json({"recorded": count, "destroyed": back})
        return
    echo(f"{count} keys that the trail names are destroyed")


def _keys() -> KeyStore:
    from otel_audit_postgres.personal.protect import key_store_from

    found = key_store_from(AuditConfig())
    if found is None:
        raise ConfigurationError("no database of keys: set OTEL_AUDIT_KEYS_DSN")
    return found


def _run(keys: KeyStore, work: Callable[[KeyStore], Coroutine[Any, Any, Any]]) -> Any:
    async def done() -> Any:
        try:
            return await work(keys)
        finally:
            await keys.close()

    return run_coroutine(done())
