"""Verification: every row, leaf, root, signature, guard and anchor, without changing anything."""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from otel_audit_postgres.checks import security
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.anchors import Anchor
from otel_audit_postgres.ledger.keys import PublicKey
from otel_audit_postgres.ledger.verify.anchored import AnchorReading, read_anchors
from otel_audit_postgres.ledger.verify.bookmark import SPOT_CHECKS, Bookmark
from otel_audit_postgres.ledger.verify.findings import (
    Findings,
    ProblemKind,
    VerificationReport,
    in_order,
)
from otel_audit_postgres.ledger.verify.retired import recorded_prunings, unaccounted
from otel_audit_postgres.ledger.verify.row_pass import (
    RowProgress,
    Rows,
    RowSelection,
    blame,
    check_rows,
    check_rows_together,
)
from otel_audit_postgres.ledger.verify.tree_pass import Task, TreePassState, walk_tree
from otel_audit_postgres.ledger.verify.unsealed import check_unsealed
from otel_audit_postgres.schema import pg_catalog

WAITS_TOO_LONG: Final = 300.0
"""Seconds after which a row that is not sealed makes the verification fail."""
_PRODUCERS_NAMED: Final = 5
"""Producers that the finding names; the others are counted."""


async def verify(  # noqa: PLR0913 - each a choice of its own
    dsn: str,
    *,
    keys: Sequence[PublicKey] = (),
    anchors: Sequence[Anchor] = (),
    since: datetime | None = None,
    sample: int | None = None,
    remembered: Bookmark | None = None,
    jobs: int = 1,
    progress: RowProgress | None = None,
) -> VerificationReport:
    """Verify an audit store, read-only, in one snapshot.

    The whole tree is always built again from its leaves; ``since``, ``sample`` and ``remembered``
    only choose which rows are read and hashed again.

    Args:
        dsn: The audit store, as a role that may read it.
        keys: Public keys that may sign; without any, signatures are not checked.
        anchors: Where checkpoints were published; without any, an old copy that was restored as a
            whole cannot be distinguished from the original.
        since: Read only rows that were sealed at this time or later, aware.
        sample: Read only so many rows, chosen at random.
        remembered: Read only what was sealed since then, and some of the rows before.
        jobs: Processes that read and hash rows side by side.
        progress: Called now and then.

    Returns:
        What was found.

    Raises:
        StoreUnavailableError: The store cannot be reached now.
        StoreError: The store has no ledger, or the role lacks a right or sees some tenants only.
    """
    begun = time.monotonic()
    findings = Findings()
    # read before the database, so that none of them can be ahead of it
    anchored = await read_anchors(anchors, keys, findings)
    seen = anchored.readings
    witnesses = [*seen]
    if remembered is not None:
        witnesses.append(AnchorReading("(the last verification)", remembered.checkpoint))
    async with (
        ledger_queries.opened(dsn, "verify the audit store", asks=True) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await ledger_queries.unlimited(connection)
        await ledger_queries.refuse_partial_view(connection)
        for problem in [
            *await pg_catalog.unguarded(connection),
            *await pg_catalog.foreign_triggers(connection),
            *await security.opened_ways(connection),
        ]:
            findings.add(ProblemKind.GUARD_REMOVED, problem)
        origin = await ledger_queries.origin(connection)
        place = await ledger_queries.place(connection)
        if place.is_elsewhere:
            findings.warnings.append(str(place))
        sizes = sorted({reading.checkpoint.size for reading in witnesses})
        walk = await walk_tree(Task(connection, findings, origin, keys, sizes))
        choice = replace(
            _choice(walk.tree.size, since, sample, remembered), origin=origin, keys=tuple(keys)
        )
        rows = await _rows(dsn, connection, walk, choice, jobs, progress)
        await _judge_rows(connection, walk, rows, findings)
        prunings = await recorded_prunings(connection, findings)
        missing = unaccounted(rows.missing, walk.pruned, prunings, findings, complete=choice.is_all)
        _judge_missing(missing, rows.last_present, findings, complete=choice.is_all)
        dropped = sum(pruning.rows for pruning in prunings)
        waiting = await check_unsealed(
            connection, sealed=walk.tree.size - dropped,
            matched=rows.checked if choice.is_all else None, findings=findings,
        )  # fmt: skip
        overdue = await _overdue(connection)
        await _note_gaps(connection, findings)
        await _judge_quarantine(connection, findings)
        conflicts, conflict_count = await ledger_queries.conflicts(connection)
    if conflicts:
        findings.warnings.append(_conflicts_text(conflicts, conflict_count))
    _judge_end(walk, keys, findings)
    anchored.judge_silence(walk.tree.size, findings)
    if findings.malformed_by:
        findings.warnings.append(_malformed_text(findings))
    if not seen and not anchored.silent:
        findings.warnings.append(
            "no anchor was asked: an old copy of the whole store would pass for the original"
        )
    judge_readings(walk, origin, witnesses, findings)
    return VerificationReport(
        origin, walk.tree.size, walk.checkpoints, walk.signed_size, rows.checked, waiting,
        in_order(findings.problems), dict(findings.counts), tuple(findings.warnings),
        time.monotonic() - begun, dropped, walk.last_note,
        malformed=tuple(findings.malformed), malformed_by=dict(findings.malformed_by),
        overdue=overdue, conflicts=tuple(conflicts), conflict_count=conflict_count,
    )  # fmt: skip


async def size_of(dsn: str) -> int:
    """Leaves in a store's log, as its last checkpoint says.

    Raises:
        StoreError: As for `verify`.
    """
    async with ledger_queries.opened(dsn, "verify the audit store", asks=True) as connection:
        return await ledger_queries.size(connection)


def _choice(
    size: int, since: datetime | None, sample: int | None, remembered: Bookmark | None
) -> RowSelection:
    if remembered is None:
        return RowSelection(since, leaves=None if sample is None else _sampled(size, sample))
    before = min(remembered.checkpoint.size, size)
    spots = SPOT_CHECKS if sample is None else sample
    return RowSelection(since, before, _sampled(before, spots))


async def _rows(  # noqa: PLR0913, PLR0917 - what verify was given
    dsn: str,
    connection: Connection[Any],
    walk: TreePassState,
    choice: RowSelection,
    jobs: int,
    progress: RowProgress | None,
) -> Rows:
    if jobs > 1 and walk.stretches:
        return await check_rows_together(dsn, connection, walk.stretches, choice, jobs, progress)
    return await check_rows(connection, walk.stretches, choice, progress)


async def _judge_rows(
    connection: Connection[Any], walk: TreePassState, rows: Rows, findings: Findings
) -> None:
    findings.take(rows.findings)
    block = walk.suspect
    if block is None:
        return
    leaves = range(block.first, block.first + block.count)
    if not any(problem.leaf in leaves for problem in rows.findings.problems):
        await blame(connection, block, findings)


def _judge_missing(
    missing: Sequence[tuple[int, uuid.UUID]],
    last_present: int,
    findings: Findings,
    *,
    complete: bool,
) -> None:
    for leaf, record_id in missing:
        is_tail = complete and leaf > last_present
        findings.add(
            ProblemKind.TRUNCATED_TAIL if is_tail else ProblemKind.DELETED,
            "the row was sealed and is gone" + (", with all after it" if is_tail else ""),
            str(record_id),
            leaf,
        )


async def _overdue(connection: Connection[Any]) -> str | None:
    """Say since when rows wait, and for whom, if they wait for too long."""
    seconds = await ledger_queries.waiting_for(connection)
    if seconds <= WAITS_TOO_LONG:
        return None
    holders = await ledger_queries.holders(connection)
    who = "; ".join(map(str, holders))
    return f"rows wait to be sealed for {seconds:.0f} s: see that `otel-audit seal` runs" + (
        f"; the lock of sealing is held by {who}" if who else ""
    )


def _malformed_text(findings: Findings) -> str:
    producers = ", ".join(
        f"{count} of {'no producer' if producer is None else f'producer {producer}'}"
        for producer, count in findings.malformed_by.most_common(_PRODUCERS_NAMED)
    )
    others = len(findings.malformed_by) - _PRODUCERS_NAMED
    return (
        f"{findings.malformed_by.total()} rows were inserted malformed and not changed since "
        f"({producers}{f', and of {others} others' if others > 0 else ''}): "
        "their content is wrong, but they were not tampered with"
    )


async def _judge_quarantine(connection: Connection[Any], findings: Findings) -> None:
    """Every quarantine row that the trail names must be there unchanged."""
    async for record_id, gone, is_ours in ledger_queries.missing_in_quarantine(connection):
        detail = f"{len(gone)} rows of audit.quarantine are gone or changed, the first: {gone[0]}"
        if is_ours:
            findings.add(ProblemKind.DELETED, detail, str(record_id))
        else:
            findings.warnings.append(f"record {record_id} names rows that never existed: {detail}")


async def _note_gaps(connection: Connection[Any], findings: Findings) -> None:
    for stream in await ledger_queries.gaps(connection):
        by = "" if stream.received_by is None else f" by {stream.received_by}"
        if stream.is_first:
            findings.warnings.append(
                f"producer {stream.producer}{by}: {stream.missing} sequence numbers up to "
                f"{stream.highest} are not in the store"
            )
        else:
            findings.warnings.append(
                f"producer {stream.producer}{by or ' by the application itself'}: that id came by "
                "another credential before; its numbers are not counted (see otel-audit gaps)"
            )


def _conflicts_text(conflicts: Sequence[ledger_queries.ConflictingRecord], count: int) -> str:
    """Say who wrote under ids that were not theirs, and the first of them with its counterpart."""
    writers = Counter(_writer(one.received_by, one.producer) for one in conflicts)
    who = ", ".join(f"{n} by {by}" for by, n in writers.most_common(_PRODUCERS_NAMED))
    first = next((one for one in conflicts if one.is_taken), conflicts[0])
    beside = (
        f"beside {first.conflict_of} by {_writer(first.other_received_by, first.other_producer)}"
        if first.is_taken
        else f"in place of {first.conflict_of}, whose time is of the future"
    )
    return (
        f"{count} records came under ids that other records have, or that are of the future, and "
        f"are stored under others ({who}); the first: {first.record_id} {beside}: see who wrote "
        "both; --json and --report list them"
    )


def _writer(received_by: str | None, producer: str | None) -> str:
    by = received_by or "the application itself"
    return by if producer is None else f"{by} (producer {producer})"


def _judge_end(walk: TreePassState, keys: Sequence[PublicKey], findings: Findings) -> None:
    if not keys:
        findings.warnings.append(
            "signatures were not checked, as no public key was given: the database's "
            "owner could have rewritten rows and ledger together"
        )
    elif walk.signed_size < walk.noted:
        findings.add(
            ProblemKind.FORGED_SIGNATURE,
            f"the checkpoints after leaf {walk.signed_size} are not signed by a given key",
            leaf=walk.signed_size,
        )


def judge_readings(
    walk: TreePassState, origin: str | None, seen: Sequence[AnchorReading], findings: Findings
) -> None:
    """Compare the roots of a walk with what was published.

    Args:
        walk: Where it ended, with its roots at the sizes that were published.
        origin: The log's name.
        seen: What was published.
        findings: Where contradictions are noted.
    """
    cut = bool(findings.counts[ProblemKind.TRUNCATED_TAIL] or findings.counts[ProblemKind.INSERTED])
    for reading in seen:
        there, size = reading.checkpoint, walk.tree.size
        if there.size > size:
            findings.add(
                ProblemKind.TRUNCATED_TAIL if cut else ProblemKind.RESTORED_OLD_COPY,
                f"anchor {reading.anchor} has seen {there.size} leaves, the ledger has {size}",
                leaf=size,
            )
        elif origin is None and not there.size:
            # a first sealer tells the anchors the log's name before the store has it
            findings.warnings.append(
                f"anchor {reading.anchor} knows the log {there.origin}, and nothing is sealed "
                "here yet: the first rows are being sealed just now, or this is another store"
            )
        elif there.origin != origin:
            findings.add(
                ProblemKind.RESTORED_OLD_COPY,
                f"anchor {reading.anchor} knows another log, {there.origin}",
            )
        elif walk.intact and there.size and there.size not in walk.roots:
            findings.warnings.append(
                f"anchor {reading.anchor} saw {there.size} leaves, within those that were pruned "
                "since: only what came after them could be compared"
            )
        elif walk.intact and walk.roots.get(there.size, there.root) != there.root:
            findings.add(
                ProblemKind.RESTORED_OLD_COPY,
                f"the first {there.size} leaves are not those that anchor {reading.anchor} saw",
            )


def _sampled(total: int, count: int) -> frozenset[int]:
    return frozenset(random.SystemRandom().sample(range(total), min(count, total)))
