"""Makes a report. Rows are read once, and kept in a temporary file."""

from __future__ import annotations

import hashlib
import shlex
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import IO, Any, Final

import msgspec

from otel_audit.errors import ConfigurationError
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.query.grammar import parse
from otel_audit_postgres.query.trail import ReaderScope, Trail, look_as
from otel_audit_postgres.reports.evidence import Witnesses, gather
from otel_audit_postgres.reports.found_evidence import Evidence
from otel_audit_postgres.reports.model import AT_ONCE, Definition, ReportRow
from otel_audit_postgres.reports.options import LARGEST_SAMPLE, Options
from otel_audit_postgres.reports.retention_policy import months
from otel_audit_postgres.reports.snapshot import TAMPERED, Snapshot, taken, utc_text

NOBODY: Final = Witnesses()
_IN_MEMORY: Final = 4_000_000
"""Bytes of rows that are kept in memory; more are in a temporary file."""
# sorting and joining millions of rows otherwise goes by way of the disk; bounded all the same
_FOR_MANY_ROWS: Final = "SET LOCAL work_mem = '64MB'"
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""Some reports have a row for each month of their period."""
_encode: Final = msgspec.json.Encoder().encode_lines
_decode: Final = msgspec.json.Decoder().decode


@dataclass(slots=True)
class Report:
    """A finished report: head, rows and notes.

    Attributes:
        definition: Its kind.
        head: Names and values of what stands above.
        rows: How many rows.
        notes: What a reader must know: gaps, what is not covered, what is hidden.
        nothing: Why there is no row; None where there is one.
        checks: How it can be checked, a step each.
        checkpoint: Leaves under the checkpoint.
        note: The checkpoint, signed; empty where it would tell of others.
    """

    definition: Definition
    head: dict[str, str]
    rows: int
    notes: tuple[str, ...]
    nothing: str | None
    checks: tuple[tuple[str, str], ...]
    checkpoint: int
    note: str
    _kept: IO[bytes] = field(repr=False)

    @property
    def is_tampered(self) -> bool:
        """Whether records of it are not as they were sealed."""
        return any(note.startswith(TAMPERED) for note in self.notes)

    def each(self, most: int | None = None) -> Iterator[ReportRow]:
        """The rows, in their order."""
        for lines in self.lines():
            for line in lines if most is None else lines[:most]:
                yield tuple(_decode(line))
            if most is not None:
                most -= len(lines)
                if most <= 0:
                    return

    def lines(self) -> Iterator[list[bytes]]:
        """The rows as lines of JSON in UTF-8, some at a time; their hash is that in the head."""
        self._kept.seek(0)
        while lines := list(islice(self._kept, AT_ONCE)):
            yield lines

    def close(self) -> None:
        """Forget the rows."""
        self._kept.close()


def checked(definition: Definition, options: Options, now: datetime | None = None) -> None:
    """See whether a report can be asked for, before the store is.

    Raises:
        ConfigurationError: The period is empty or not over yet, the query cannot be understood, or
            something is missing.
    """
    current = datetime.now(UTC) if now is None else now
    if options.begin >= options.end:
        raise ConfigurationError(
            f"the period is empty: it begins {utc_text(options.begin)} and ends "
            f"{utc_text(options.end)}"
        )
    if options.begin < _EARLIEST:
        raise ConfigurationError(
            f"the period begins {utc_text(options.begin)}: let it begin in 1970 or later"
        )
    if options.checkpoint is not None and not 0 < options.checkpoint < 2**63:
        raise ConfigurationError(f"--checkpoint: none has size {str(options.checkpoint)[:30]}")
    if options.end > current:
        raise ConfigurationError(
            f"the period ends in the future, {utc_text(options.end)}: it must end now or "
            "earlier, such as --to now"
        )
    if not 1 <= options.sample <= LARGEST_SAMPLE:
        raise ConfigurationError(f"--sample: from 1 to {LARGEST_SAMPLE:,}, not {options.sample}")
    parse(options.query)
    if options.subject is not None and "subject" not in definition.needs:
        raise ConfigurationError("--subject goes with the report subject; for others, --query")
    for need in definition.needs:
        if not getattr(options, need):
            raise ConfigurationError(f"the report {definition.name} needs --{need}")


async def make_report(
    connection: Connection[Any],
    definition: Definition,
    options: Options,
    scope: ReaderScope | None = None,
    witnesses: Witnesses = NOBODY,
) -> Report:
    """Make a report as of a checkpoint: same options and checkpoint, same bytes.

    The look is the caller's to record.

    Args:
        connection: To the store, as a reader, outside of any transaction.
        definition: Which report.
        options: What of.
        scope: On whose behalf; None: the role's own rights are all that counts.
        witnesses: Keys that may sign, and anchors; the latter are asked by a report of the
            evidence itself.

    Raises:
        ConfigurationError: It cannot be asked for.
        StoreError: Nothing was ever sealed, or the role lacks a right.
    """
    checked(definition, options)
    # closed by whoever takes the report
    kept = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await look_as(connection, scope)
            await ledger_queries.unlimited(connection)
            await connection.execute(_FOR_MANY_ROWS)
            snapshot = await taken(connection, options, scope)
            snapshot.evidence = await _evidence(snapshot, definition, witnesses)
            rows, digest = await _keep(definition.rows(snapshot), kept)
            notes = await snapshot.notes()
            if definition.of_the_store and snapshot.is_part:
                notes.append(
                    "PART: what the store records of itself is not a tenant's, and may not fit a "
                    "query: make this report of the whole store"
                )
            if snapshot.unreadable:
                notes.append(
                    f"UNREADABLE: the text of {snapshot.unreadable} records is not JSON that can "
                    "be read; they are left out"
                )
            nothing = await _nothing(snapshot, definition) if not rows else None
    except BaseException:
        kept.close()
        raise
    head = _head(snapshot, definition, rows, digest)
    return Report(
        definition, head, rows, tuple(notes), nothing, _checks(snapshot, definition),
        snapshot.size, "" if snapshot.is_narrow else snapshot.note, kept,
    )  # fmt: skip


async def _evidence(snapshot: Snapshot, definition: Definition, witnesses: Witnesses) -> Evidence:
    options = snapshot.options
    if definition.is_deep:
        periods = months(options.begin, options.end)
        return await gather(snapshot, periods, witnesses, is_deep=True)
    whole = [(options.begin, options.end)]
    return await gather(snapshot, whole, Witnesses(witnesses.keys), is_deep=False)


async def _keep(batches: AsyncIterator[Sequence[ReportRow]], kept: IO[bytes]) -> tuple[int, str]:
    """Write rows as JSON lines. Returns their number and the SHA-256 of the lines."""
    count, digest = 0, hashlib.sha256()
    async for batch in batches:
        # jq, by which the hash is checked, has no other form of this character
        lines = _encode(batch).replace(b"\x7f", b"\\u007f")
        try:
            kept.write(lines)
        except OSError as error:
            raise ConfigurationError(
                f"the report's rows cannot be kept in {tempfile.gettempdir()}: {error.strerror}; "
                "TMPDIR names another place"
            ) from None
        digest.update(lines)
        count += len(batch)
    return count, digest.hexdigest()


async def _nothing(snapshot: Snapshot, definition: Definition) -> str:
    count, latest = await snapshot.recorded()
    if count:
        return f"No row: {definition.nothing}. The period has {count} records of other kinds."
    there = f"the latest that may be seen is of {latest}" if latest else "none may be seen at all"
    return (
        f"No row, and nothing was recorded in this period at all ({there}): that is not the same "
        "as that nothing happened."
    )


def _head(snapshot: Snapshot, definition: Definition, rows: int, digest: str) -> dict[str, str]:
    options = snapshot.options
    found = {
        "report": definition.name,
        "period": f"{utc_text(options.begin)} to {utc_text(options.end)} (the end excluded)",
        "tenant": options.tenant if options.tenant is not None else "all that may be seen",
        "query": options.query or "(everything)",
    }
    if options.subject is not None:
        found["subject"] = options.subject
    if definition.name == "review":
        found["sample"] = f"{options.sample}, drawn by seed {options.seed}"
    return found | {
        "rows": str(rows),
        "SHA-256 of the rows": digest,
        "log": snapshot.origin,
        "checkpoint": f"{snapshot.leaves}, made {utc_text(snapshot.sealed_at)}",
        "root": snapshot.root,
        "evidence": _evidence_sentence(snapshot, definition),
        "generator": f"otel-audit {_own_version()}",
    }


def _evidence_sentence(snapshot: Snapshot, definition: Definition) -> str:
    """A sentence on the report's evidence."""
    evidence = snapshot.evidence
    if evidence is None or evidence.problems:
        return "TAMPERED: see the notes"
    if evidence.is_collapsed:
        return (
            "not available: the checkpoint is within leaves whose records were dropped since, so "
            "its root cannot be rebuilt; choose a later one"
        )
    what = "each record of the report" if snapshot.is_part else "each record of the period"
    by = "by text, columns, id and time" if definition.is_deep else "by text, id and time"
    return f"{by}, {what} has its leaf in the ledger, and the leaves make up the root"


def _checks(snapshot: Snapshot, definition: Definition) -> tuple[tuple[str, str], ...]:
    """Commands by which anybody can check the report."""
    options = snapshot.options
    size = "SIZE" if snapshot.is_narrow else snapshot.size
    again = [
        "otel-audit", "report", definition.name, "--from", utc_text(options.begin),
        "--to", utc_text(options.end), "--checkpoint", str(size),
    ]  # fmt: skip
    for name in ("tenant", "query", "subject"):
        value = getattr(options, name)
        # records without a tenant are those of the tenant without a name
        if value or (name == "tenant" and value is not None):
            again += [f"--{name}", value]
    if definition.name == "review":
        again += ["--sample", str(options.sample), "--seed", options.seed]
    return (
        ("its rows are those that were hashed", "jq -c '.rows[]' REPORT.json | sha256sum"),
        ("the store gives it again, to the byte", shlex.join(again)),
        (
            "columns of the period's records are as they were sealed, like their texts",
            shlex.join([*again[:2], "integrity", *again[3:9]]),
        ),
        (
            "the trail is the one that was published, with this root",
            "otel-audit verify --key LEDGER.pub --anchor ANCHOR",
        ),
        ("one record of it, without the store", "otel-audit prove RECORD"),
    )


def _own_version() -> str:
    try:
        return version("otel-audit")
    except PackageNotFoundError:
        return "(not installed)"


async def looked_at(trail: Trail, report: Report, options: Options) -> None:
    """Record that a report was looked at; before it is shown.

    Raises:
        StoreError: It cannot be recorded.
    """
    asked = {
        "report": report.definition.name,
        "begin": utc_text(options.begin),
        "end": utc_text(options.end),
        "tenant": options.tenant,
        "query": options.query or None,
        "subject": options.subject,
        "checkpoint": report.checkpoint,
    }
    await trail.looked("report", asked, report.rows)


async def signed_off(trail: Trail, options: Options, finding: str, record: str | None) -> None:
    """Sign off a review, or one of its records. The trail records it.

    Raises:
        StoreError: It cannot be recorded.
    """
    asked = {
        "begin": utc_text(options.begin),
        "end": utc_text(options.end),
        "seed": options.seed,
        "sample": options.sample,
        "tenant": options.tenant,
        "query": options.query or None,
        "finding": finding[:2000],
        "record": record,
    }
    await trail.ask("sign-off", asked, _answered, lambda _: 0, ("audit_review", options.seed[:100]))


async def _answered(_: Connection[Any]) -> None:
    """No rows."""
