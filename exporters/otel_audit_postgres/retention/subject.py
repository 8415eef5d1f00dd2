"""Data subject requests: export a person's records, and erase them by destroying keys."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from otel_audit.errors import ConfigurationError, StoreError
from otel_audit_postgres.archive.catalog import archived_objects
from otel_audit_postgres.archive.objects import ArchiveStore
from otel_audit_postgres.archive.parquet_files import read_rows
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.personal.key_store import Destroyed, KeyStore, Subject
from otel_audit_postgres.personal.reveal import erased_paths, revealed
from otel_audit_postgres.retention.holds import ArchiveLook, is_about, look_into_archives

_COUNT: Final = "SELECT rows, first, last FROM audit.subject_rows($1, $2::text[])"
_HELD: Final = "SELECT audit.hold_on_subject($1, $2)"
_RECORD: Final = "SELECT audit.record_checked_erasure($1, $2, $3::text[], $4, $5, $6, $7)"
_ERASED: Final = "SELECT keys FROM audit.erasures"
_RECORDED: Final = (
    "SELECT coalesce(array_agg(key), '{}') FROM audit.erasures, unnest(keys) AS key "
    "WHERE key = ANY($1::text[])"
)
_PATIENCE: Final = "SET LOCAL lock_timeout = '30s'"
_LOCK: Final = "SELECT audit.lock_erasures()"
_MAY_READ_QUARANTINE: Final = "SELECT has_table_privilege('audit.quarantine', 'SELECT')"
# as JSON has it; a text that is not JSON at all may have it, too
_QUARANTINED: Final = "SELECT count(*) FROM audit.quarantine WHERE strpos(received, $1) > 0"
_VIEW: Final = "SELECT audit.record_view('subject export', $1::text::jsonb, $2)"
_ROWS: Final = (
    "SELECT payload::text AS payload, received_by, recorded_at FROM audit.audit_logs "
    "WHERE tenant_id = $1 AND (actor_id = ANY($2::text[]) OR entities && $2::text[]) ORDER BY id"
)
_SEARCHED: Final = ("tenant_id", "actor_id", "entities", "payload", "received_by")


@dataclass(frozen=True, slots=True)
class ErasurePlan:
    """The plan of an erasure.

    Attributes:
        keys: How many keys there are to destroy.
        rows: Records in the store by this person or about this person.
        first, last: When the first and the last of them happened.
        erased: Keys of this person that were destroyed before.
        held: The hold that forbids it; None if none does.
        quarantined: Texts in quarantine with the name; they stay as they are. None if this role
            may not read them.
    """

    keys: int
    rows: int
    first: datetime | None
    last: datetime | None
    erased: tuple[Destroyed, ...]
    held: str | None
    quarantined: int | None = 0


async def plan_erasure(
    dsn: str, keys: KeyStore, subject: Subject, archive: ArchiveStore | None = None
) -> ErasurePlan:
    """Return what an erasure would do, without a change.

    Args:
        dsn: The audit store, as its retention role.
        keys: The key store.
        subject: Whose.
        archive: As for `erase_all`.

    Raises:
        ArchiveError: An object of the archive cannot be read.
        StoreError: One of the databases cannot be asked.
    """
    known = await keys.known(subject)
    erased = await keys.destroyed(subject)
    async with ledger_queries.opened(dsn, "plan an erasure", asks=True) as connection:
        row = await connection.fetchrow(_COUNT, subject.tenant, [subject.name])
        held = await connection.fetchval(_HELD, subject.tenant, subject.name)
        if held is None:
            look = await look_into_archives(connection, archive, subject.tenant, subject.name)
            held = look.held
        quarantined = None
        if await connection.fetchval(_MAY_READ_QUARANTINE):
            quarantined = await connection.fetchval(_QUARANTINED, json.dumps(subject.name))
    assert row is not None  # noqa: S101 - an aggregate has a row
    return ErasurePlan(
        len(known), row["rows"], row["first"], row["last"], tuple(erased), held, quarantined
    )


async def erase(dsn: str, keys: KeyStore, subject: Subject, basis: str, reason: str) -> bool:
    """Erase one name of a person; see `erase_all`.

    Returns:
        False if he was erased before, and nothing was left to do.
    """
    return bool(await erase_all(dsn, keys, [subject], basis, reason))


async def erase_all(  # noqa: PLR0913, PLR0917 - where, whom, and why
    dsn: str,
    keys: KeyStore,
    subjects: Sequence[Subject],
    basis: str,
    reason: str,
    archive: ArchiveStore | None = None,
) -> list[Subject]:
    """Erase a person under all names, or under none if one of them cannot be erased.

    The trail, its proofs and its archives stay as they are, whatever the number of rows.

    Args:
        dsn: The audit store, as its retention role.
        keys: The keys.
        subjects: Whom: each an actor's id or an entity, such as two logins of one person.
        basis: By which law or demand.
        reason: Why; it stays, so it must not contain the name.
        archive: Where archives are. They are looked into where a hold may apply to archived records
            of the person; without an archive it then forbids the erasure.

    Returns:
        Those that were erased now; the others were erased before.

    Raises:
        ConfigurationError: One of the names has no keys, or the reason contains it.
        ArchiveError: An object of the archive cannot be read; nothing was erased.
        StoreError: A hold forbids it, or one of the databases cannot be reached. A second try
            finishes what the first one began.
    """
    _refuse_unfit(subjects, basis, reason)
    done: list[Subject] = []
    # reading archives takes long: outside the lock, and the database refuses what came since
    looks = await _looks(dsn, archive, subjects)
    async with (
        ledger_queries.opened(dsn, "erase a subject") as connection,
        connection.transaction(),
    ):

        async def record(subject: Subject, ids: Sequence[str]) -> None:
            look = looks[subject]
            if look.held is not None:
                raise StoreError(f"erasing is refused: {look.held}")
            await connection.fetchval(
                _RECORD, subject.tenant, subject.name, ids, basis, reason,
                look.holds_seen, look.archives_seen,
            )  # fmt: skip

        # two erasures at once would both record it
        await connection.execute(_PATIENCE)
        await connection.execute(_LOCK)
        open_keys = {one: await _open_keys(connection, keys, one) for one in subjects}
        for subject, ids in open_keys.items():
            if ids:
                await record(subject, ids)
                done.append(subject)
        # between the check for holds and the commit, so that none comes between
        for subject in done:
            await keys.destroy(subject)
            more = await _unrecorded(connection, keys, subject, open_keys[subject])
            if more:  # made while the keys could not be reached, and handed in since
                await record(subject, more)
    for subject in open_keys:
        await keys.mark_recorded(subject)
    return done


def _refuse_unfit(subjects: Sequence[Subject], basis: str, reason: str) -> None:
    if not basis.strip() or not reason.strip():
        raise ConfigurationError("an erasure needs a basis and a reason")
    for subject in subjects:
        if len(subject.name) > 1 and any(
            subject.name.lower() in text.lower() for text in (basis, reason)
        ):
            raise ConfigurationError("basis and reason stay: they must not contain the name")


async def _looks(
    dsn: str, archive: ArchiveStore | None, subjects: Sequence[Subject]
) -> dict[Subject, ArchiveLook]:
    """What the archives say of each of them; what the database says by itself comes later."""
    async with ledger_queries.opened(dsn, "erase a subject") as connection:
        return {
            one: await look_into_archives(connection, archive, one.tenant, one.name)
            for one in subjects
        }


async def _open_keys(connection: Connection[Any], keys: KeyStore, subject: Subject) -> list[str]:
    """Ids of existing keys, and of destroyed ones that are not recorded yet.

    Raises:
        ConfigurationError: There never was one.
    """
    known = [key.key_id.hex() for key in await keys.known(subject)]
    if not known and not await keys.destroyed(subject):
        raise ConfigurationError(
            f"there is no key of this subject, {subject.name!r}: nothing of it was encrypted, or "
            "its tenant or name is another one (an actor's id, or an entity such as customer:17)"
        )
    return [*known, *await _unrecorded(connection, keys, subject, ())]


async def _unrecorded(
    connection: Connection[Any], keys: KeyStore, subject: Subject, besides: Sequence[str]
) -> list[str]:
    """Ids of destroyed keys that are not recorded, after an interrupted erasure."""
    found = [one.key_id.hex() for one in await keys.destroyed(subject) if not one.is_recorded]
    recorded = await connection.fetchval(_RECORDED, found) if found else []
    return [one for one in found if one not in recorded and one not in besides]


async def plan_replay(dsn: str, keys: KeyStore) -> tuple[int, int]:
    """The number of erased keys in the trail, and how many of them exist again.

    Args:
        dsn: The audit store, as a reader or its retention role.
        keys: The keys.
    """
    recorded = await _recorded_keys(dsn)
    return len(recorded), len(await keys.present(recorded))


async def replay_erasures(dsn: str, keys: KeyStore) -> int:
    """Destroy keys again that a restored key database has brought back; return their number.

    Args:
        dsn: The audit store, as a reader or its retention role.
        keys: The keys.
    """
    recorded = await _recorded_keys(dsn)
    await keys.replay(recorded)
    return len(recorded)


async def _recorded_keys(dsn: str) -> list[bytes]:
    async with ledger_queries.opened(dsn, "replay erasures", asks=True) as connection:
        return [
            bytes.fromhex(key) for row in await connection.fetch(_ERASED) for key in row["keys"]
        ]


async def export_subject(
    dsn: str,
    keys: KeyStore,
    subject: Subject,
    archive: ArchiveStore | None = None,
    also: Sequence[str] = (),
) -> AsyncIterator[dict[str, Any]]:
    """Export all records by a person or about this person, decrypted.

    Args:
        dsn: The audit store, as a reader.
        keys: The key store.
        subject: Whose.
        archive: Where archives are, for what left the database.
        also: Other names of the same person, in the same tenant.

    Yields:
        ``record``, decrypted as far as keys are there; ``personal``: its personal values by their
        places, each ``readable`` or ``erased``; ``place`` (``store``, or the object); and
        ``received_by``, the credential of who delivered it.
    """
    names = [subject.name, *also]
    found: list[tuple[str, str, str | None]] = []
    async with ledger_queries.opened(dsn, "export a subject", asks=True) as connection:
        async with connection.transaction(isolation="repeatable_read"):
            found = [
                (row["payload"], "store", row["received_by"])
                for row in await connection.fetch(_ROWS, subject.tenant, names)
            ]
            await _record_look(connection, len(found))
        for payload, place, received_by in found:
            yield await _as_document(payload, place, received_by, keys)
    if archive is None:
        return
    for one in await archived_objects(dsn):
        if one.is_removed:
            continue
        with archive.fetch(one.entry.key) as file:
            for row in read_rows(file, _SEARCHED):
                if row["tenant_id"] == subject.tenant and is_about(row, names):
                    yield await _as_document(
                        row["payload"], one.entry.key, row["received_by"], keys
                    )


async def _record_look(connection: Connection[Any], records: int) -> None:
    """Record the export without the person's name."""
    await connection.fetchval(_VIEW, "{}", records)


async def _as_document(
    payload: str, place: str, received_by: str | None, keys: KeyStore
) -> dict[str, Any]:
    erased = await erased_paths(payload, keys)
    return {
        "record": await revealed(payload, keys),
        "personal": {path: "erased" if gone else "readable" for path, gone in erased.items()},
        "place": place, "received_by": received_by,
    }  # fmt: skip
