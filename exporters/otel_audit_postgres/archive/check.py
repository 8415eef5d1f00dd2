"""Verification of an archive: objects, rows, tree, manifests, and their chain."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from otel_audit_postgres.archive.arrow_tables import leaf_hashes
from otel_audit_postgres.archive.catalog import (
    RecordedArchive,
    latest,
    recorded_archives,
    recorded_removals,
)
from otel_audit_postgres.archive.manifest import (
    ArchivedObject,
    ArchiveManifest,
    is_signed,
    leaves_key,
    manifest_digest,
    manifest_key,
    read_manifest,
)
from otel_audit_postgres.archive.objects import (
    ArchiveError,
    ArchiveStore,
    MissingObjectError,
    digest_of,
)
from otel_audit_postgres.archive.parquet_files import NAMES, read_batches
from otel_audit_postgres.archive.sparse_tree import SparseTree, read_tree
from otel_audit_postgres.archive.write_month import bounds
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.checkpoints import NoteError, read_note
from otel_audit_postgres.ledger.keys import PublicKey
from otel_audit_postgres.ledger.malformed import read_flaws
from otel_audit_postgres.ledger.row_check import altered_columns, is_no_record
from otel_audit_postgres.ledger.verify.findings import (
    Findings,
    ProblemKind,
    VerificationReport,
    in_order,
)
from otel_audit_postgres.rows import COLUMNS

ReadProgress = Callable[[int], None]
"""Called with how many rows were read."""

_HASHED: Final = ("id", "recorded_at", "payload", "leaf", "leaf_hash")
_PROJECTED: Final = tuple(name for name, _ in COLUMNS)
_CHANGED: Final = ProblemKind.CHANGED
_DELETED: Final = ProblemKind.DELETED
_FORGED: Final = ProblemKind.FORGED_SIGNATURE


@dataclass(slots=True)
class ArchiveReport:
    """The result of checking archives.

    Attributes:
        months: Months that were looked at.
        archived: Rows that the manifests name, without those that were due for removal.
        removed: Rows whose objects were due for removal, and that a record names.
        rows_read: Rows that were read and hashed again.
        findings: What is not as it was.
    """

    months: int = 0
    archived: int = 0
    removed: int = 0
    rows_read: int = 0
    findings: Findings = field(default_factory=Findings)

    @property
    def ok(self) -> bool:
        """Whether nothing was tampered with."""
        return not self.findings.problems

    def as_json(self) -> dict[str, Any]:
        """The values for JSON."""
        return {
            "ok": self.ok,
            "months": self.months,
            "archived": self.archived,
            "removed": self.removed,
            "rows_read": self.rows_read,
            "problems": [
                {"kind": one.kind.value, "detail": one.detail, "record_id": one.record_id,
                 "leaf": one.leaf}
                for one in self.findings.problems
            ],
            "warnings": self.findings.warnings,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ArchiveCheckOptions:
    """What a check of archives looks at, and by which keys.

    Attributes:
        archive: Where the objects are.
        keys: Public keys that may sign.
        deep: Whether rows are read and hashed again, and the tree built.
        columns: Whether it is looked, too, if each column follows from its row's payload.
        malformed: Ids of rows that were inserted malformed, of which no column is judged.
        progress: Called with how many rows were read.
    """

    archive: ArchiveStore
    keys: Sequence[PublicKey] = ()
    deep: bool = False
    columns: bool = False
    malformed: frozenset[bytes] = frozenset()
    progress: ReadProgress | None = None


def together(report: VerificationReport, archived: ArchiveReport) -> VerificationReport:
    """One report on both, so that there is one verdict."""
    found = archived.findings
    counts = dict(report.counts)
    for kind, count in found.counts.items():
        counts[kind] = counts.get(kind, 0) + count
    return replace(
        report,
        problems=in_order([*report.problems, *found.problems]),
        counts=counts,
        warnings=(*report.warnings, *found.warnings),
    )


async def verify_archives(dsn: str, options: ArchiveCheckOptions) -> ArchiveReport:
    """Verify all archives that the trail names.

    Args:
        dsn: The audit store, as a role that sees all of it.
        options: What to look at, and how deeply.

    Returns:
        What was found.

    Raises:
        StoreError: The store cannot be read.
        ArchiveError: The archive cannot be reached.
    """
    async with (
        ledger_queries.opened(dsn, "verify archives", asks=True) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await ledger_queries.unlimited(connection)
        await ledger_queries.refuse_partial_view(connection)
        origin = await ledger_queries.origin(connection)
        archives = await recorded_archives(connection)
        removals = await recorded_removals(connection)
        named_removals = await _named_removals(connection)
        prunings = await ledger_queries.prunings(connection)
        named_digests = await _named_digests(connection)
        if options.deep:
            malformed = await _malformed(connection, origin, options.keys)
            options = replace(options, columns=True, malformed=malformed)
    report = ArchiveReport()
    findings = report.findings
    _check_chain(archives, named_digests, findings)
    counting = latest(archives)
    _check_removals(removals, named_removals, prunings, findings)
    removed = set(removals)
    for recorded in counting.values():
        check_month(options, recorded.note, origin, removed, report)
    for pruning in prunings:
        month = date(int(pruning.partition[-7:-3]), int(pruning.partition[-2:]), 1)
        mine = counting.get(month)
        # a month that was dropped before there were archives has none
        if mine is not None and mine.rows != pruning.rows:
            findings.add(
                _DELETED,
                f"{pruning.partition} was dropped with {pruning.rows} rows, and its manifest "
                f"tells of {mine.rows}",
            )
        elif mine is None and any(earlier < month for earlier in counting):
            findings.add(
                _DELETED,
                f"{pruning.partition} was dropped, and there is no manifest of it",
            )
        elif mine is None:
            findings.warnings.append(
                f"{pruning.partition} was dropped before there were archives: {pruning.rows} rows"
            )
    _check_unlisted_objects(options.archive, archives, removed, findings)
    return report


def check_month(
    options: ArchiveCheckOptions,
    note: str,
    origin: str | None,
    removed: set[str],
    report: ArchiveReport,
) -> None:
    """Check one month by its manifest: its signature, its objects, its rows and its tree."""
    findings = report.findings
    try:
        manifest = read_manifest(note)
    except ArchiveError as error:
        findings.add(_CHANGED, f"a manifest: {error}")
        return
    where = f"{manifest.month:%Y-%m}"
    report.months += 1
    _check_note(options, note, manifest, origin, findings)
    if manifest.archived + sum(rows for _, rows in manifest.left_out) != manifest.rows:
        findings.add(_CHANGED, f"manifest of {where}: its files do not make up its rows")
    with contextlib.ExitStack() as stack:
        files: list[tuple[ArchivedObject, Path]] = []
        kept: list[tuple[int, int, bytes]] = []
        is_whole = True
        for one in manifest.objects:
            if one.key in removed and one.is_due(_today()):
                report.removed += one.rows
                nodes = _kept_leaves(options, one, findings)
                kept += nodes
                is_whole = is_whole and len(nodes) == one.rows
                continue
            report.archived += one.rows
            file = _check_object(options, one, findings, stack)
            if file is None:
                is_whole = False
            else:
                files.append((one, file))
        tree = _check_tree(options, manifest, findings, stack)
        if options.deep and tree is not None:
            tree = replace(tree, nodes=tuple(sorted([*tree.nodes, *kept])))
            _check_rows(options, manifest, files, tree if is_whole else None, report)


def _check_note(
    options: ArchiveCheckOptions,
    note: str,
    manifest: ArchiveManifest,
    origin: str | None,
    findings: Findings,
) -> None:
    where = f"manifest of {manifest.month:%Y-%m}"
    if manifest.log != (origin or "-"):
        findings.add(_CHANGED, f"{where}: it is of another log, {manifest.log}")
    try:
        if options.keys and not is_signed(note, options.keys):
            findings.add(_FORGED, f"{where}: it is not signed by a given key")
    except ArchiveError as error:
        findings.add(_FORGED, f"{where}: {error}")
    try:
        with options.archive.fetch(manifest_key(manifest.month, note)) as file:
            if file.read_bytes() != note.encode():
                findings.add(_CHANGED, f"{where}: the archive has another one")
    except MissingObjectError:
        findings.add(_DELETED, f"{where}: it is gone from the archive")


def _check_object(
    options: ArchiveCheckOptions,
    one: ArchivedObject,
    findings: Findings,
    stack: contextlib.ExitStack,
) -> Path | None:
    try:
        file = stack.enter_context(options.archive.fetch(one.key))
    except MissingObjectError:
        findings.add(_DELETED, f"object {one.key} with {one.rows} rows is gone", leaf=one.first)
        return None
    if file.stat().st_size != one.size or digest_of(file) != one.sha256:
        findings.add(_CHANGED, f"object {one.key} is not what was archived", leaf=one.first)
        return None
    locked = options.archive.locked_until(one.key)
    if locked is not None and one.locked_until is not None and locked < one.locked_until:
        findings.add(
            ProblemKind.GUARD_REMOVED,
            f"object {one.key} is locked until {locked if locked > date.min else 'no day'}, and is "
            f"to be until {one.locked_until}",
        )
    return file


def _check_tree(
    options: ArchiveCheckOptions,
    manifest: ArchiveManifest,
    findings: Findings,
    stack: contextlib.ExitStack,
) -> SparseTree | None:
    if manifest.tree is None:
        if manifest.objects:
            findings.add(_DELETED, f"manifest of {manifest.month:%Y-%m} names no tree")
        return None
    key, size, sha256 = manifest.tree
    try:
        file = stack.enter_context(options.archive.fetch(key))
    except MissingObjectError:
        findings.add(_DELETED, f"object {key} is gone")
        return None
    if file.stat().st_size != size or digest_of(file) != sha256:
        findings.add(_CHANGED, f"object {key} is not what was archived")
        return None
    try:
        tree = read_tree(file.read_text("utf-8"))
        checkpoint = tree.checkpoint
        is_by_a_key = bool(read_note(tree.note).signed_by(options.keys))
    except (ArchiveError, NoteError, UnicodeDecodeError) as error:
        findings.add(_FORGED, f"object {key}: {error}")
        return None
    if checkpoint.origin != manifest.log:
        findings.add(_CHANGED, f"object {key}: it is of another log, {checkpoint.origin}")
        return None
    if options.keys and not is_by_a_key:
        findings.add(_FORGED, f"object {key}: its checkpoint is not signed by a given key")
    return tree


def _check_rows(
    options: ArchiveCheckOptions,
    manifest: ArchiveManifest,
    files: Sequence[tuple[ArchivedObject, Path]],
    tree: SparseTree | None,
    report: ArchiveReport,
) -> None:
    findings = report.findings
    lowest, above = bounds(manifest.month)
    leaves = heapq.merge(
        *(_read(options, one, file, (lowest, above), report) for one, file in files)
    )
    try:
        # to the end in any case: each row is looked at on the way
        is_rooted = all(True for _ in leaves) if tree is None else tree.is_rooted(leaves)
        for _ in leaves:
            pass
    except ArchiveError as error:
        findings.add(_CHANGED, f"{manifest.month:%Y-%m}: {error}")
        return
    if not is_rooted:
        findings.add(
            _CHANGED,
            f"the rows of {manifest.month:%Y-%m} do not make up the root that was signed",
            leaf=manifest.objects[0].first if manifest.objects else None,
        )


def _kept_leaves(
    options: ArchiveCheckOptions, one: ArchivedObject, findings: Findings
) -> tuple[tuple[int, int, bytes], ...]:
    """The leaf hashes of an object that was due for removal; the root checks them."""
    try:
        with options.archive.fetch(leaves_key(one.key)) as file:
            return read_tree(file.read_text("utf-8")).nodes
    except (ArchiveError, UnicodeDecodeError) as error:
        findings.warnings.append(
            f"{one.key}: it was due to go, and its leaf hashes are not there ({error}): what else "
            "is archived of that month is checked by its manifest alone"
        )
        return ()


def _read(
    options: ArchiveCheckOptions,
    one: ArchivedObject,
    file: Path,
    within: tuple[uuid.UUID, uuid.UUID],
    report: ArchiveReport,
) -> Iterator[tuple[int, bytes]]:
    """The leaves of a file as its rows are now."""
    rows, lowest, above = 0, within[0].bytes, within[1].bytes
    for batch in read_batches(file, NAMES if options.columns else _HASHED):
        ids, stored_hashes, leaves = (
            batch.column(name).to_pylist() for name in ("id", "leaf_hash", "leaf")
        )
        altered = _altered(batch, options) if options.columns else itertools.repeat(())
        for row_id, stored, leaf, computed, names in zip(
            ids, stored_hashes, leaves, leaf_hashes(batch), altered, strict=options.columns
        ):
            flaw = None
            if computed != stored:
                flaw = "a row is not what was sealed"
            elif not lowest <= row_id < above:
                flaw = "a row is of another month"
            elif names:
                flaw = f"{', '.join(names)}: not what the payload says"
            if flaw is not None:
                report.findings.add(
                    _CHANGED, f"{one.key}: {flaw}", str(uuid.UUID(bytes=row_id)), leaf
                )
            yield leaf, stored
        rows += batch.num_rows
        report.rows_read += batch.num_rows
        if options.progress is not None:
            options.progress(report.rows_read)
    if rows != one.rows:
        report.findings.add(_CHANGED, f"{one.key}: it has {rows} rows, not {one.rows}")


def _altered(batch: Any, options: ArchiveCheckOptions) -> Iterator[Sequence[str]]:
    """The columns of each row that differ from its payload, as far as this can be checked."""
    columns = [batch.column(name).to_pylist() for name in _PROJECTED]
    for values in zip(*columns, strict=True):
        row = dict(zip(_PROJECTED, values, strict=True))
        if row["id"] in options.malformed:
            yield ()
            continue
        row["id"] = uuid.UUID(bytes=row["id"])
        names = altered_columns(row)
        if names and is_no_record(row):
            yield ()
        elif row["occurred_at"] is None:
            # one that no datetime can hold was archived as unknown
            yield [name for name in names if name != "occurred_at"]
        else:
            yield names


async def _malformed(
    connection: Connection[Any], origin: str | None, keys: Sequence[PublicKey]
) -> frozenset[bytes]:
    """Rows that the sealer says were inserted malformed."""
    return frozenset(
        row_id
        for first, note in await ledger_queries.all_flaws(connection)
        for row_id, _ in read_flaws(note, origin, first, keys)
    )


# a sender may give a record any name; the store's own came from nobody
_OF_THE_STORE: Final = r"received_by IS NULL AND payload::text !~ '\\u'"


async def _named_removals(connection: Connection[Any]) -> dict[uuid.UUID, str | None]:
    """The names of removed objects, from the records of the removals."""
    found = await connection.fetch(
        "SELECT id, payload -> 'metadata' ->> 'key' FROM audit.audit_logs "  # noqa: S608 - constants
        f"WHERE event_name = 'audit.archive.removed' AND {_OF_THE_STORE}"
    )
    return {row[0]: row[1] for row in found}


def _check_removals(
    removals: Mapping[str, uuid.UUID],
    named: Mapping[uuid.UUID, str | None],
    prunings: Sequence[ledger_queries.Pruning],
    findings: Findings,
) -> None:
    """Each removal has its record, as long as the month of that is here."""
    for key, record_id in removals.items():
        if named.get(record_id, key) != key:
            findings.add(_CHANGED, f"the record of the removal of {key} names another object")
        elif record_id not in named and not any(one.held(record_id) for one in prunings):
            findings.add(_DELETED, f"no record tells that {key} was removed", str(record_id))


def _today() -> date:
    """The latest day that it can be: by the store's clock it may be tomorrow already."""
    return datetime.now(UTC).date() + timedelta(days=1)


async def _named_digests(connection: Connection[Any]) -> dict[uuid.UUID, str | None]:
    """The manifests, as the records of archived months name them."""
    found = await connection.fetch(
        "SELECT id, payload -> 'metadata' ->> 'manifest_sha256' FROM audit.audit_logs "  # noqa: S608
        f"WHERE event_name = 'audit.month.archived' AND {_OF_THE_STORE}"
    )
    return {row[0]: row[1] for row in found}


def _check_chain(
    archives: Sequence[RecordedArchive],
    named: Mapping[uuid.UUID, str | None],
    findings: Findings,
) -> None:
    before: str | None = None
    months: list[date] = []
    first_kept = min(named, default=None)
    for number, one in enumerate(archives, 1):
        where = f"manifest of {one.month:%Y-%m} (step {one.sequence_number})"
        digest = manifest_digest(one.note)
        try:
            manifest = read_manifest(one.note)
        except ArchiveError as error:
            findings.add(_CHANGED, f"{where}: {error}")
            before = digest
            continue
        if one.sequence_number != number or manifest.previous != before:
            findings.add(_DELETED, f"{where}: the one before it is not the one that it names")
        if (manifest.month, manifest.rows) != (one.month, one.rows):
            findings.add(_CHANGED, f"{where}: it is of {manifest.month:%Y-%m}")
        # its record may have gone with its own month, and then that month's archive has it
        if named.get(one.record_id, digest) != digest:
            findings.add(_CHANGED, f"{where}: its record names another one")
        elif one.record_id not in named and first_kept is not None and one.record_id > first_kept:
            findings.add(_DELETED, f"{where}: no record names it", str(one.record_id))
        months.append(one.month)
        before = digest
    known = {one.record_id for one in archives}
    forged = sum(record_id not in known for record_id in named)
    if forged:
        # every writer can insert such records, so they prove nothing
        findings.warnings.append(
            f"{forged} records tell of manifests that are not in audit.archives: they were taken "
            "from there, or an application made the records up"
        )
    ordered = sorted(set(months))
    for earlier, later in itertools.pairwise(ordered):
        missing = (later.year - earlier.year) * 12 + later.month - earlier.month - 1
        if missing:
            findings.add(
                _DELETED,
                f"{missing} months are missing between {earlier:%Y-%m} and {later:%Y-%m}: a month "
                "without records has a manifest, too",
            )


def _check_unlisted_objects(
    archive: ArchiveStore,
    archives: Sequence[RecordedArchive],
    removed: set[str],
    findings: Findings,
) -> None:
    named: set[str] = set()
    for one in archives:
        with contextlib.suppress(ArchiveError):
            manifest = read_manifest(one.note)
            named |= {entry.key for entry in manifest.objects}
            named |= {leaves_key(entry.key) for entry in manifest.objects}
            named.add(manifest_key(manifest.month, one.note))
            if manifest.tree is not None:
                named.add(manifest.tree[0])
    unlisted = [key for key in archive.list_keys() if key not in named]
    if unlisted:
        findings.warnings.append(
            f"{len(unlisted)} objects of {archive.name} are in no manifest, the first: "
            f"{unlisted[0]} (what a run that was cut off left, or what somebody put there)"
        )
    left = [key for key in archive.list_keys() if key in removed]
    if left:
        findings.warnings.append(f"{len(left)} objects that were due to go are still there")
