"""Applies the policy month by month: archive, read back, retire, seal, drop.

Each step can be cut off and is done again, or found done, by the next run. Nothing is dropped
before what was archived has been read back and is in the trail, sealed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from otel_audit._util.months import next_month
from otel_audit.errors import OtelAuditError, StoreUnavailableError
from otel_audit_postgres.archive.catalog import (
    RecordedArchive,
    latest,
    record_archive,
    record_removal,
    recorded_archives,
    removed_keys,
)
from otel_audit_postgres.archive.check import ArchiveCheckOptions, ArchiveReport, check_month
from otel_audit_postgres.archive.manifest import (
    ArchivedObject,
    ArchiveManifest,
    leaves_key,
    manifest_digest,
    manifest_key,
    read_manifest,
)
from otel_audit_postgres.archive.objects import ArchiveError, ArchiveStore
from otel_audit_postgres.archive.parquet_files import read_leaves
from otel_audit_postgres.archive.sparse_tree import SparseTree
from otel_audit_postgres.archive.write_month import WrittenMonth, write_month
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.errors import sqlstate
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.keys import PublicKey, Signer
from otel_audit_postgres.retention.holds import apply_holds, hold_on_object
from otel_audit_postgres.retention.months import collapse
from otel_audit_postgres.retention.plan import PlannedMonth, RetentionPlan, planned
from otel_audit_postgres.retention.policy import (
    PolicyError,
    RecordKind,
    RetentionClass,
    RetentionPolicy,
)

_SET_POLICY: Final = "SELECT audit.set_retention_policy($1::text::jsonb)"
_APPROVE: Final = "SELECT audit.approve_retention_policy($1::text::jsonb)"
_LEAD: Final = "SELECT audit.try_to_retain()"
_RETIRE: Final = "SELECT audit.retire_partition($1)"
_RETIRED: Final = (
    "SELECT record_id, rows FROM audit.retirements WHERE partition = $1 "
    "AND NOT audit.grew_since(lowest, above, size) ORDER BY recorded_at DESC LIMIT 1"
)
_HELD: Final = "SELECT audit.hold_on($1, 0)"
_IS_SEALED: Final = "SELECT audit.is_sealed($1)"
_DROP: Final = "SELECT audit.drop_partition($1, $2)"
_APPLIED_UP_TO: Final = (
    "SELECT coalesce((done ->> 'step')::integer, 0) FROM audit.retention_runs "
    "ORDER BY recorded_at DESC LIMIT 1"
)
_RECORD_RUN: Final = "SELECT audit.record_retention_run($1::text::jsonb, $2::text::jsonb)"
_END_RESTORED: Final = "SELECT audit.end_restorations(NULL)"
_LOCKED: Final = "55P03"
_REFUSED: Final = "OA001"
_GREW: Final = "OA003"
"""Rows came since the month was archived."""
_POLL: Final = 0.2
"""Seconds between two looks whether the sealer has sealed a record."""
_TRIES: Final = 30
"""Times that a drop waits for its lock; inserts pass between two of them."""
_LISTED: Final = 500
"""Objects that the record of a run names, of each kind; their number is recorded besides."""
_NOT_SEALED: Final = "waits for the sealer"

OnStep = Callable[[str, str], None]
"""Called with the month and the step that come next; tests interrupt a run here."""


class _Level(msgspec.Struct):
    level: str | None = None


@dataclass(frozen=True, slots=True)
class RetentionRunOptions:
    """What a run works with: the store, the archive and the keys.

    Attributes:
        dsn: The audit store, as a member of the retention role that also sees all rows.
        archive: Where months are archived; None if the policy archives nothing.
        signer: Who signs manifests.
        keys: Public keys that may have signed.
        seal: Called when a record waits to be sealed; None: another process seals.
        wait: Seconds to wait for that.
        on_step: Called with each step before it is taken.
        progress: Called with how many rows of a month were written.
    """

    dsn: str
    archive: ArchiveStore | None
    signer: Signer | None = None
    keys: Sequence[PublicKey] = ()
    seal: Callable[[], Awaitable[object]] | None = None
    # a sealer has a round each second: after a minute there is none, or it is stuck
    wait: float = 60.0
    on_step: OnStep | None = None
    progress: Callable[[int], None] | None = None


@dataclass(slots=True)
class RunReport:
    """The result of a run.

    Attributes:
        archived: Months that were archived, with their rows.
        dropped: Months that were dropped, with their rows.
        removed: Objects of the archive that were due to go, and went.
        waiting: Months that go with the next run, and why not with this one.
        blocked: Months and objects of the archive that were due and stayed, and what keeps them.
        held_months: Those months of them that a legal hold keeps: they are not overdue.
        held: Objects of the archive on which a legal hold was put.
        collapsed: Leaves that were collapsed.
    """

    archived: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    held_months: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    collapsed: int = 0

    def as_json(self) -> dict[str, Any]:
        """The values for JSON."""
        return {
            "archived": self.archived, "dropped": self.dropped, "removed": self.removed,
            "waiting": self.waiting, "blocked": self.blocked,
            "held_months": self.held_months, "held": self.held, "collapsed": self.collapsed,
        }  # fmt: skip


async def run(
    policy: RetentionPolicy, options: RetentionRunOptions, today: date | None = None
) -> RunReport:
    """Do what is due.

    Args:
        policy: The policy; it is put in force; a change is recorded.
        options: With what.
        today: For which day; by default for the database's. The database itself knows only its
            own, and refuses what by that must stay.

    Raises:
        PolicyError: The policy contradicts itself; nothing was done.
        ArchiveError: What was sealed and what is there differ, or the archive refuses; nothing of
            that month was dropped.
        StoreUnavailableError: Another run is under way, or the store cannot be reached.
        StoreError: The role lacks a right.
    """
    async with (
        ledger_queries.opened(options.dsn, "run retention") as guard,
        guard.transaction(),
    ):
        await ledger_queries.unlimited(guard)
        if not await guard.fetchval(_LEAD):
            raise StoreUnavailableError("another `otel-audit retention run` is under way")
        async with ledger_queries.opened(options.dsn, "run retention") as connection:
            work = _Run(connection, guard, policy, options)
            return await work.all(today)


async def put_in_force(connection: Connection[Any], policy: RetentionPolicy) -> None:
    """Put a policy in force. A changed policy is recorded.

    Raises:
        PolicyError: It may keep less, and two persons must want that.
    """
    try:
        await connection.fetchval(_SET_POLICY, json.dumps(policy.as_plain()))
    except Exception as error:
        if sqlstate(error) != _REFUSED:
            raise
        raise PolicyError(f"{error}: otel-audit retention approve, as another role") from None


async def approve(dsn: str, policy: RetentionPolicy) -> None:
    """Approve, as a second role, a policy that keeps less than the one in force.

    Args:
        dsn: The audit store, as a member of its retention role, and not who runs retention.
        policy: The new policy.

    Raises:
        StoreError: It is in force already, or the role lacks a right.
    """
    async with ledger_queries.opened(dsn, "approve a policy") as connection:
        await connection.fetchval(_APPROVE, json.dumps(policy.as_plain()))


class _Run:
    def __init__(
        self,
        connection: Connection[Any],
        guard: Connection[Any],
        policy: RetentionPolicy,
        options: RetentionRunOptions,
    ) -> None:
        self._connection, self._guard = connection, guard
        self._policy, self._options = policy, options
        self._report = RunReport()
        self._classes: dict[RecordKind, RetentionClass] = {}
        self._months: dict[date, PlannedMonth] = {}

    async def all(self, today: date | None) -> RunReport:
        plan = await planned(self._connection, self._policy, today)
        self._months = {month.month: month for month in plan.months}
        self._step("", "policy")
        await put_in_force(self._connection, self._policy)
        for month in plan.months:
            name = f"{month.month:%Y-%m}"
            if month.first_day is not None and month.first_day <= plan.today and month.blocked_by:
                self._report.blocked[name] = "; ".join(month.blocked_by)
                if month.is_held:
                    self._report.held_months.append(name)
        for month in plan.due:
            await self._month(month)
        if self._report.dropped:
            self._step("", "collapse")
            self._report.collapsed = await collapse(self._options.dsn)
        last_manifest = await self._apply_holds()
        await self._expire(plan)
        await self._connection.fetchval(_END_RESTORED)
        await self._record(plan, last_manifest)
        return self._report

    async def _apply_holds(self) -> int:
        """Put holds on objects archived since the last run. Returns the last manifest with them."""
        archives = await recorded_archives(self._connection)
        archive = self._options.archive
        if archive is None:
            return 0
        self._step("", "holds")
        since = await self._connection.fetchval(_APPLIED_UP_TO) or 0
        self._report.held, _ = await apply_holds(self._connection, archive, since)
        return archives[-1].sequence_number if archives else 0

    async def _record(self, plan: RetentionPlan, last_manifest: int) -> None:
        """Record the run in the trail, also if nothing was due."""
        self._step("", "record run")
        months = {one.partition: one.first_day.isoformat() for one in plan.months if one.first_day}
        removed = self._report.removed
        done = {
            **self._report.as_json(), "step": last_manifest, "day": plan.today.isoformat(),
            # each has a record of its own
            "removed": removed[:_LISTED], "removed_count": len(removed),
            "held": self._report.held[:_LISTED], "held_count": len(self._report.held),
        }  # fmt: skip
        await self._connection.fetchval(_RECORD_RUN, json.dumps(done), json.dumps(months))

    async def _month(self, month: PlannedMonth) -> None:
        name = f"{month.month:%Y-%m}"
        # rows that come late make it begin anew; a month that still grows after that is not over
        for _ in range(3):
            await self._keep_leading()
            archive = await self._archived(month)
            retired, rows = await self._retired(month.partition, name)
            if rows != archive.rows:
                await self._archive(month)
                continue
            if not await self._is_sealed(retired):
                self._report.waiting[name] = _NOT_SEALED
                return
            try:
                self._report.dropped[name] = await self._drop(month, retired, name)
            except Exception as error:
                if sqlstate(error) == _GREW:
                    # rows came late: they are archived, too
                    await self._archive(month)
                    continue
                if sqlstate(error) != _REFUSED:
                    raise
                self._report.blocked[name] = str(error)
                if await self._connection.fetchval(_HELD, month.partition) is not None:
                    self._report.held_months.append(name)
            return
        self._report.waiting[name] = "rows of it still come in"

    async def _archived(self, month: PlannedMonth) -> RecordedArchive:
        """The month's archive, read back; made if it does not exist."""
        await self._fill_up_to(month.month)
        found = latest(await recorded_archives(self._connection)).get(month.month)
        if found is None:
            await self._archive(month)
            found = latest(await recorded_archives(self._connection))[month.month]
        self._step(f"{month.month:%Y-%m}", "read back")
        self._read_back(found.note)
        return found

    def _read_back(self, note: str) -> None:
        manifest = read_manifest(note)
        if self._options.archive is None:
            if manifest.objects:
                raise ArchiveError("months were archived, and no archive is named now")
            return
        report = ArchiveReport()
        options = ArchiveCheckOptions(self._options.archive, self._options.keys, deep=True)
        check_month(options, note, manifest.log, set(), report)
        if not report.ok:
            first = report.findings.problems[0]
            raise ArchiveError(
                f"what was archived of {manifest.month:%Y-%m} is not what was sealed: "
                f"{first.detail}; nothing of it is dropped"
            )

    async def _fill_up_to(self, month: date) -> None:
        """Write manifests for the months between the last archived one and this one."""
        archives = await recorded_archives(self._connection)
        following = (
            next_month(max(one.month for one in archives)) if archives else min(self._months)
        )
        while following < month:
            if following in self._months:
                await self._archive(self._months[following])
            else:
                await self._publish(ArchiveManifest("", following, None, 0, ""), [])
            following = next_month(following)

    async def _archive(self, month: PlannedMonth) -> None:
        name = f"{month.month:%Y-%m}"
        self._step(name, "write")
        with tempfile.TemporaryDirectory(prefix="otel-audit-archive-") as folder:
            try:
                written = await self._write(month, Path(folder))
                await self._upload(month, written, Path(folder))
            except OSError as error:
                raise ArchiveError(
                    f"{name} cannot be written in {folder} ({type(error).__name__}): nothing was "
                    "dropped; make room, or name another directory by TMPDIR"
                ) from None

    async def _write(self, month: PlannedMonth, folder: Path) -> WrittenMonth:
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            return await write_month(
                self._connection, month.month, folder, self._class_of, self._options.progress
            )

    async def _upload(self, month: PlannedMonth, written: WrittenMonth, folder: Path) -> None:
        archive, name = self._options.archive, f"{month.month:%Y-%m}"
        if written.files and archive is None:
            raise ArchiveError(
                "the policy archives records, and no archive is named: set OTEL_AUDIT_ARCHIVE, or "
                "archive = 0 in the policy"
            )
        end = next_month(month.month)
        says = {one.says.name: one.says for one in month.classes}
        says |= {one.name: one for one in self._classes.values()}
        objects: list[ArchivedObject] = []
        uploads: list[tuple[str, Path, str, date | None]] = []
        for file in written.files:
            mine = says[file.kind]
            expires = mine.expires_after
            entry = ArchivedObject(
                f"{name}/{file.kind}-{file.sha256[:16]}.parquet", file.kind, file.rows, file.size,
                file.sha256, file.first, file.last,
                end + timedelta(days=mine.locked_for) if mine.locked_for else None,
                None if expires is None else end + timedelta(days=expires),
            )  # fmt: skip
            objects.append(entry)
            uploads.append((entry.key, file.path, entry.sha256, entry.locked_until))
        tree = None
        if written.tree is not None:
            text = written.tree.text().encode()
            digest = hashlib.sha256(text).hexdigest()
            tree = (f"{name}/tree-{digest[:16]}.json", len(text), digest)
            (folder / "tree.json").write_bytes(text)
            uploads.append((tree[0], folder / "tree.json", digest, _longest(objects)))
        left_out = (("none", written.left_out),) if written.left_out else ()
        await self._publish(
            ArchiveManifest(
                "", month.month, None, written.rows, "", tuple(objects), tree, left_out
            ),
            uploads,
        )
        self._report.archived[name] = sum(one.rows for one in objects)

    async def _publish(
        self, draft: ArchiveManifest, uploads: Sequence[tuple[str, Path, str, date | None]]
    ) -> None:
        """Put the files and the manifest into the archive, and record it in the trail."""
        archive, name = self._options.archive, f"{draft.month:%Y-%m}"
        for key, path, sha256, until in uploads:
            assert archive is not None  # noqa: S101 - refused before
            self._step(name, f"put {key}")
            archive.put(key, path, sha256, until)
        before = await recorded_archives(self._connection)
        policy = json.dumps(self._policy.as_plain(), sort_keys=True)
        manifest = ArchiveManifest(
            await ledger_queries.origin(self._connection) or "-", draft.month,
            manifest_digest(before[-1].note) if before else None, draft.rows,
            hashlib.sha256(policy.encode()).hexdigest(), draft.objects, draft.tree, draft.left_out,
        )  # fmt: skip
        signer = self._options.signer
        note = manifest.note(() if signer is None else (signer,))
        if archive is not None:
            self._step(name, "put manifest")
            until = _longest(draft.objects)
            with tempfile.NamedTemporaryFile(suffix=".txt") as file:
                file.write(note.encode())
                file.flush()
                archive.put(
                    manifest_key(draft.month, note), Path(file.name), manifest_digest(note), until
                )
        self._step(name, "record")
        await record_archive(self._connection, note, manifest)

    def _class_of(self, tenant: str, event: str, action: str, payload: memoryview) -> str | None:
        level = None
        if self._policy.reads_level:
            try:
                level = msgspec.json.decode(payload, type=_Level).level
            except (msgspec.MsgspecError, ValueError, RecursionError):
                level = None
        kind = RecordKind(tenant, event, action, level)
        says = self._classes.get(kind)
        if says is None:
            says = self._classes[kind] = self._policy.explain(kind)
        return says.name if says.is_archived else None

    async def _retired(self, partition: str, name: str) -> tuple[uuid.UUID, int]:
        """The record on the partition's content, and the number of rows."""
        found = await self._connection.fetchrow(_RETIRED, partition)
        if found is None:
            self._step(name, "retire")
            await self._connection.fetchval(_RETIRE, partition)
            found = await self._connection.fetchrow(_RETIRED, partition)
        if found is None:
            raise StoreUnavailableError(f"rows of {partition} came in meanwhile: run it again")
        return found["record_id"], found["rows"]

    async def _is_sealed(self, record_id: uuid.UUID) -> bool:
        self._step("", "seal")
        end = time.monotonic() + self._options.wait
        while not await self._connection.fetchval(_IS_SEALED, record_id):
            if time.monotonic() > end:
                return False
            if self._options.seal is None:
                await asyncio.sleep(_POLL)
            else:
                await self._options.seal()
        return True

    async def _drop(self, month: PlannedMonth, retired: uuid.UUID, name: str) -> int:
        """Drop the partition, alone in a transaction that waits 2 s for its lock at most."""
        for number in range(_TRIES):
            await self._keep_leading()
            self._step(name, "drop")
            try:
                rows: int = await self._connection.fetchval(_DROP, month.partition, retired)
            except Exception as error:
                if sqlstate(error) != _LOCKED or number == _TRIES - 1:
                    raise
                # those who waited behind us go first
                await asyncio.sleep(random.uniform(0.5, 2.0))  # noqa: S311 - jitter
                continue
            return rows
        raise AssertionError  # pragma: no cover - the last try returns or raises

    async def _expire(self, plan: RetentionPlan) -> None:
        """Delete archive objects that are due; each is recorded first, and held ones stay."""
        archive = self._options.archive
        if archive is None:
            return
        removed = await removed_keys(self._connection)
        here = {month for month in self._months if f"{month:%Y-%m}" not in self._report.dropped}
        for one in latest(await recorded_archives(self._connection)).values():
            for entry in read_manifest(one.note).objects:
                if entry.expires is None or entry.expires > plan.today or one.month in here:
                    continue
                if entry.key not in removed:
                    held, seen = await hold_on_object(self._connection, archive, entry, one.month)
                    if held is not None:
                        self._report.blocked[entry.key] = f"{held} applies to it"
                        continue
                    self._step(f"{one.month:%Y-%m}", f"remove {entry.key}")
                    self._keep_leaves(archive, entry)
                    try:
                        await record_removal(self._connection, one.sequence_number, entry.key, seen)
                    except Exception as error:
                        if sqlstate(error) != _REFUSED:
                            raise
                        self._report.blocked[entry.key] = str(error)
                        continue
                    self._report.removed.append(entry.key)
                self._step(f"{one.month:%Y-%m}", f"delete {entry.key}")
                archive.remove(entry.key)

    @staticmethod
    def _keep_leaves(archive: ArchiveStore, entry: ArchivedObject) -> None:
        """Keep the hashes of deleted leaves; other proofs of the month need them."""
        with archive.fetch(entry.key) as file:
            leaves = tuple((leaf, 1, digest) for leaf, digest in read_leaves(file).items())
        text = SparseTree("", leaves).text().encode()
        with tempfile.NamedTemporaryFile(suffix=".json") as kept:
            kept.write(text)
            kept.flush()
            digest = hashlib.sha256(text).hexdigest()
            archive.put(leaves_key(entry.key), Path(kept.name), digest, None)

    async def _keep_leading(self) -> None:
        """Run a statement over the connection with the lock, so that it is not ended as idle."""
        try:
            await ledger_queries.keep_open(self._guard)
        except OtelAuditError:
            raise
        except Exception:  # noqa: BLE001 - whatever ended it, another run may be under way now
            raise StoreUnavailableError(
                "the connection that holds the lock of retention was cut off: run it again"
            ) from None

    def _step(self, month: str, step: str) -> None:
        if self._options.on_step is not None:
            self._options.on_step(month, step)


def _longest(objects: Sequence[ArchivedObject]) -> date | None:
    """The last day on which the records of these objects must not be deleted."""
    return max((one.locked_until for one in objects if one.locked_until), default=None)
