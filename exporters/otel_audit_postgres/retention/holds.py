"""Legal holds: matching records stay, in the store and in archives, until release."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from otel_audit._util.months import next_month
from otel_audit.errors import ConfigurationError
from otel_audit_postgres.archive.catalog import latest, recorded_archives, removed_keys
from otel_audit_postgres.archive.manifest import ArchivedObject, read_manifest
from otel_audit_postgres.archive.objects import ArchiveStore
from otel_audit_postgres.archive.parquet_files import read_rows
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries

_PLACE: Final = "SELECT audit.place_hold($1, $2, $3, $4, $5, $6, $7, $8)"
_RELEASE: Final = "SELECT audit.release_hold($1, $2)"
_OVERRIDE: Final = "SELECT audit.override_hold($1, $2, $3)"
_IS_OVERRIDDEN: Final = "SELECT audit.hold_overridden($1, $2)"
_COLUMNS: Final = (
    "number, id, matter, reason, tenant, actor, entity, event, since, until, placed_by, recorded_at"
)
_ACTIVE: Final = f"SELECT {_COLUMNS} FROM audit.active_holds()"  # noqa: S608 - constants
_TO_APPLY: Final = f"SELECT {_COLUMNS} FROM audit.holds_to_apply()"  # noqa: S608 - constants
_TO_LIFT: Final = f"SELECT {_COLUMNS} FROM audit.holds_to_lift()"  # noqa: S608 - constants
# as audit.hold_on, for one that is not placed yet
_WOULD_HOLD: Final = r"""
SELECT count(*) FROM audit.audit_logs l
WHERE ($1::text IS NULL OR l.tenant_id = $1) AND ($2::text IS NULL OR l.actor_id = $2)
  AND ($3::text IS NULL OR l.entities @> ARRAY[$3])
  AND ($4::text IS NULL OR l.event_name = $4 OR right($4, 1) = '*'
       AND starts_with(l.event_name, left($4, -1)))
  AND ($5::timestamptz IS NULL OR l.occurred_at >= $5)
  AND ($6::timestamptz IS NULL OR l.occurred_at < $6)
"""
_APPLIED: Final = "SELECT audit.note_hold_applied($1, $2)"
_LOOKED_AT: Final = ("tenant_id", "actor_id", "entities", "event_name", "occurred_at")


@dataclass(frozen=True, slots=True)
class Hold:
    """A legal hold. A record stays if all conditions match.

    Attributes:
        number: Its place among all.
        id: Its id.
        matter, reason: What it is for, and why.
        tenant, actor, entity: Whose records, exactly.
        event: The event's name, with ``*`` at its end for any that begin so.
        since, until: When it happened.
        placed_by, placed_at: By which role of the database, and when.
    """

    number: int
    id: uuid.UUID
    matter: str
    reason: str
    tenant: str | None
    actor: str | None
    entity: str | None
    event: str | None
    since: datetime | None
    until: datetime | None
    placed_by: str
    placed_at: datetime

    def applies_to(self, row: Mapping[str, Any]) -> bool:
        """Whether it applies to a row of an archive."""
        event = row["event_name"]
        return (
            self.tenant in {None, row["tenant_id"]}
            and self.actor in {None, row["actor_id"]}
            and (self.entity is None or self.entity in (row["entities"] or ()))
            and (
                self.event is None
                or event == self.event
                or (self.event.endswith("*") and event.startswith(self.event[:-1]))
            )
            # a time that cannot be read could be any
            and (row["occurred_at"] is None or self._covers(row["occurred_at"]))
        )

    def may_apply_to_others(self, tenant: str, subject: str) -> bool:
        """Whether records of a person may be among those of somebody or something else."""
        if self.tenant not in {None, tenant} or subject in {self.actor, self.entity}:
            return False
        # somebody else's record is about the person only if that is the name of an entity
        return self.entity is not None or (self.actor is not None and ":" in subject)

    def _covers(self, moment: datetime) -> bool:
        return (self.since is None or moment >= self.since) and (
            self.until is None or moment < self.until
        )

    def __str__(self) -> str:
        """A text for messages."""
        return f"hold {self.id} (matter {self.matter})"

    def as_json(self) -> dict[str, Any]:
        """The values for JSON."""
        return {
            name: value.isoformat() if isinstance(value, datetime) else
            str(value) if isinstance(value, uuid.UUID) else value
            for name, value in asdict(self).items()
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class HoldConditions:
    """The conditions of a hold: all given ones must match."""

    tenant: str | None = None
    actor: str | None = None
    entity: str | None = None
    event: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def refuse_unfit(self) -> None:
        """Refuse a hold without conditions, or with impossible ones.

        Raises:
            ConfigurationError: It is one; the message says why.
        """
        given = [value for value in asdict(self).values() if value is not None]
        if not given or "" in given:
            raise ConfigurationError(
                "a hold on nothing: give one of tenant, actor, entity, event, from, until"
            )
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ConfigurationError("a hold on nothing: from is not before until")
        if self.event is not None and "*" in self.event[:-1]:
            raise ConfigurationError("event: * is allowed only at the end: order.*")
        if self.entity is not None and ":" not in self.entity:
            raise ConfigurationError("entity: name:key is expected, such as order:123")


async def place_hold(  # noqa: PLR0913, PLR0917 - each a choice of its own
    dsn: str,
    matter: str,
    reason: str,
    conditions: HoldConditions,
    archive: ArchiveStore | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[uuid.UUID, list[str]]:
    """Place a hold on present and future records.

    Args:
        dsn: The audit store, as its retention role.
        matter: What it is for.
        reason: Why.
        conditions: What it applies to.
        archive: Where archives are; objects with rows to which it applies are held there, too.
        progress: Called with how many objects are held so far.

    Returns:
        Its id, and the names of the objects that are held.

    Raises:
        ConfigurationError: It applies to nothing, or matter or reason are missing.
        StoreError: The store refuses it.
    """
    conditions.refuse_unfit()
    if not matter.strip() or not reason.strip():
        raise ConfigurationError("a hold needs a matter and a reason")
    async with ledger_queries.opened(dsn, "place a hold") as connection:
        hold_id: uuid.UUID = await connection.fetchval(
            _PLACE, matter, reason, conditions.tenant, conditions.actor, conditions.entity,
            conditions.event, conditions.since, conditions.until,
        )  # fmt: skip
        if archive is None:
            return hold_id, []
        (placed,) = [one for one in await active_holds(connection) if one.id == hold_id]
        return hold_id, await _apply(connection, archive, placed, progress)


async def preview_hold(
    dsn: str, conditions: HoldConditions, archive: ArchiveStore | None = None
) -> tuple[int, list[str]]:
    """Count what a hold would apply to, without a change.

    Args:
        dsn: The audit store, as a role that sees all rows.
        conditions: What it would apply to.
        archive: Where archives are.

    Returns:
        How many rows in the database, and the names of objects with rows to which it applies.

    Raises:
        ConfigurationError: It applies to nothing.
        StoreError: The store cannot be asked.
    """
    conditions.refuse_unfit()
    async with ledger_queries.opened(dsn, "preview a hold", asks=True) as connection:
        rows: int = await connection.fetchval(
            _WOULD_HOLD, conditions.tenant, conditions.actor, conditions.entity, conditions.event,
            conditions.since, conditions.until,
        )  # fmt: skip
        if archive is None:
            return rows, []
        hold = Hold(
            0, uuid.UUID(int=0), "", "", conditions.tenant, conditions.actor, conditions.entity,
            conditions.event, conditions.since, conditions.until, "", datetime.now(UTC),
        )  # fmt: skip
        objects = await _objects(connection)
    return rows, [entry.key for _, month, entry in objects if _applies(archive, entry, month, hold)]


async def release_hold(
    dsn: str, hold_id: uuid.UUID, reason: str, archive: ArchiveStore | None = None
) -> list[str]:
    """Release a hold, and the archive objects without another hold.

    Returns:
        The names of the objects that are held no more.

    Raises:
        StoreError: There is no such active hold.
    """
    if not reason.strip():
        raise ConfigurationError("releasing a hold needs a reason")
    async with ledger_queries.opened(dsn, "release a hold") as connection:
        await connection.execute(_RELEASE, hold_id, reason)
        if archive is None:
            return []
        released = [one for one in await _holds(connection, _TO_LIFT) if one.id == hold_id]
        return [key for one in released for key in await _lift(connection, archive, one)]


async def apply_holds(
    connection: Connection[Any], archive: ArchiveStore, since: int
) -> tuple[list[str], list[str]]:
    """Set the locks of archive objects by the holds, after an interruption or for a new month.

    Args:
        connection: To the store, as its retention role.
        archive: Where the objects are.
        since: Objects of manifests after this number are looked at for every hold.

    Returns:
        The names of the objects that are held now, and of those that are held no more.
    """
    held: list[str] = []
    freed: list[str] = []
    for one in await _holds(connection, _TO_APPLY):
        held += await _apply(connection, archive, one)
    for one in await _holds(connection, _TO_LIFT):
        freed += await _lift(connection, archive, one)
    active = await active_holds(connection)
    for number, month, entry in await _objects(connection):
        if number > since and any(_applies(archive, entry, month, one) for one in active):
            archive.hold(entry.key, on=True)
            held.append(entry.key)
    return sorted({*held}), freed


async def override_hold(dsn: str, hold_id: uuid.UUID, target: str, reason: str) -> None:
    """Allow a deletion despite a hold. Whoever placed the hold may not.

    Args:
        dsn: The audit store, as its retention role.
        hold_id: The hold.
        target: A partition, the name of an object, or ``subject:ID``.
        reason: Why.

    Raises:
        StoreError: There is no such active hold, or this role placed it.
    """
    if not reason.strip() or not target.strip():
        raise ConfigurationError("overriding a hold needs a target and a reason")
    async with ledger_queries.opened(dsn, "override a hold") as connection:
        await connection.execute(_OVERRIDE, hold_id, target, reason)


async def list_holds(dsn: str) -> list[Hold]:
    """The holds that are not released, the first one first."""
    async with ledger_queries.opened(dsn, "list holds") as connection:
        return await active_holds(connection)


async def active_holds(connection: Connection[Any]) -> list[Hold]:
    """As `list_holds`, on an open connection."""
    return await _holds(connection, _ACTIVE)


async def is_overridden(connection: Connection[Any], hold: Hold, target: str) -> bool:
    """Whether a deletion is allowed despite a hold."""
    found: bool = await connection.fetchval(_IS_OVERRIDDEN, hold.id, target)
    return found


async def hold_on_object(
    connection: Connection[Any],
    archive: ArchiveStore,
    entry: ArchivedObject,
    month: Any,
) -> tuple[Hold | None, int]:
    """The first hold that applies to a row of an object, and the last hold checked."""
    holds = await active_holds(connection)
    seen = max((one.number for one in holds), default=0)
    for one in holds:
        if _applies(archive, entry, month, one) and not await is_overridden(
            connection, one, entry.key
        ):
            return one, seen
    return None, seen


@dataclass(frozen=True, slots=True)
class ArchiveLook:
    """The result of a look for archived records of a person that a hold applies to.

    Attributes:
        held: What forbids to erase the person, in words; None: nothing in the archives.
        holds_seen: The number of the last hold that was looked for; 0 if nobody looked.
        archives_seen: The number of the last manifest; 0 if nobody looked.
    """

    held: str | None
    holds_seen: int = 0
    archives_seen: int = 0


async def look_into_archives(
    connection: Connection[Any], archive: ArchiveStore | None, tenant: str, subject: str
) -> ArchiveLook:
    """Look for archived records of a person that somebody else's hold applies to.

    A hold that names the person, or nobody and nothing, forbids an erasure by its name alone; for
    such a hold the database needs no archive.

    Args:
        connection: To the store, as its retention role.
        archive: Where archives are; None: nobody can look.
        tenant: The person's tenant.
        subject: An actor's id, or an entity.

    Raises:
        ArchiveError: An object cannot be read.
    """
    # before the objects: a hold or a manifest that comes meanwhile was not looked for
    holds = await active_holds(connection)
    manifests = await recorded_archives(connection)
    objects = await _objects(connection)
    wanted = [
        one
        for one in holds
        if one.may_apply_to_others(tenant, subject)
        and not await is_overridden(connection, one, f"subject:{subject}")
    ]
    if wanted and objects and archive is None:
        return ArchiveLook(
            f"{wanted[0]} may apply to archived records of this subject, and no archive is named: "
            "--archive, or OTEL_AUDIT_ARCHIVE"
        )
    if wanted and archive is not None:
        # all months: a record may tell another time than that of its id
        for _, _, entry in objects:
            with archive.fetch(entry.key) as file:
                for row in read_rows(file, _LOOKED_AT):
                    if row["tenant_id"] == tenant and is_about(row, (subject,)):
                        for one in wanted:
                            if one.applies_to(row):
                                return ArchiveLook(
                                    f"{one} applies to archived records of this subject "
                                    f"({entry.key})"
                                )
    return ArchiveLook(
        None,
        max((one.number for one in holds), default=0),
        max((one.sequence_number for one in manifests), default=0),
    )


def is_about(row: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether an archived row is by one of these actors, or about one of these entities."""
    return row["actor_id"] in names or any(name in (row["entities"] or ()) for name in names)


async def _apply(
    connection: Connection[Any],
    archive: ArchiveStore,
    hold: Hold,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    held: list[str] = []
    for _, month, entry in await _objects(connection):
        if _applies(archive, entry, month, hold):
            archive.hold(entry.key, on=True)
            held.append(entry.key)
        if progress is not None:
            progress(len(held))
    await connection.execute(_APPLIED, hold.id, False)  # noqa: FBT003 - a statement's parameter
    return held


async def _lift(connection: Connection[Any], archive: ArchiveStore, hold: Hold) -> list[str]:
    """Unlock objects without another hold."""
    others = await active_holds(connection)
    freed = []
    for _, month, entry in await _objects(connection):
        if _applies(archive, entry, month, hold) and not any(
            _applies(archive, entry, month, one) for one in others
        ):
            archive.hold(entry.key, on=False)
            freed.append(entry.key)
    # one that was placed meanwhile may just have been taken off again
    known = {one.id for one in others}
    for one in await active_holds(connection):
        if one.id not in known:
            again = await _apply(connection, archive, one)
            freed = [key for key in freed if key not in again]
    await connection.execute(_APPLIED, hold.id, True)  # noqa: FBT003 - a statement's parameter
    return freed


async def _holds(connection: Connection[Any], query: str) -> list[Hold]:
    return [Hold(*row.values()) for row in await connection.fetch(query)]


async def _objects(connection: Connection[Any]) -> list[tuple[int, Any, ArchivedObject]]:
    removed = await removed_keys(connection)
    return [
        (one.sequence_number, one.month, entry)
        for one in latest(await recorded_archives(connection)).values()
        for entry in read_manifest(one.note).objects
        if entry.key not in removed
    ]


def _overlaps(hold: Hold, month: Any) -> bool:
    begin = datetime(month.year, month.month, 1, tzinfo=UTC)
    following = next_month(month)
    end = datetime(following.year, following.month, 1, tzinfo=UTC)
    return (hold.since is None or hold.since < end) and (hold.until is None or hold.until > begin)


def _applies(archive: ArchiveStore, entry: ArchivedObject, month: Any, hold: Hold) -> bool:
    if not _overlaps(hold, month):
        return False
    with archive.fetch(entry.key) as file:
        return any(hold.applies_to(row) for row in read_rows(file, _LOOKED_AT))
