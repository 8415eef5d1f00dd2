"""Writes exports: a query's records in the ledger's order, with a manifest and a proof."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from otel_audit._util.aio import begin_in_thread, has_ended
from otel_audit._util.durable_file import sync_directory
from otel_audit.errors import ConfigurationError, StoreError
from otel_audit_postgres.archive.parquet_files import NAMES, RowFile, parquet, row_schema
from otel_audit_postgres.archive.sparse_tree import Complement, SparseTree
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.exports.columns import PROVED_CSV_COLUMNS
from otel_audit_postgres.exports.formats import JSON, NDJSON, TextFormat, csv_format
from otel_audit_postgres.exports.proof import ExportManifest, ProofFile
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.leaves import Block, Leaf, content_hash
from otel_audit_postgres.ledger.sealed_rows import Horizon, horizon
from otel_audit_postgres.ledger.verify.row_pass import RowProgress
from otel_audit_postgres.query import all_matching
from otel_audit_postgres.query.conditions import Conditions, conditions_of
from otel_audit_postgres.query.grammar import Query
from otel_audit_postgres.query.pagination import walk, within
from otel_audit_postgres.query.queries import opened, resolved
from otel_audit_postgres.query.trail import Views

DataFormat = Literal["csv", "ndjson", "json", "parquet"]

_AT_ONCE: Final = 4_000
"""Leaves whose rows are asked for in one go."""
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
"""Errors of the disk, and not of the connection."""
_FEW: Final = 200_000
"""Records up to which their ids are looked for first, and the rows of all other leaves not read."""
# a few thousand ids of millions: each is looked up, whatever the planner thinks of a whole reading
_BY_ID: Final = (
    "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; "
    "SET LOCAL enable_seqscan = off"
)
_US: Final = (
    "CASE WHEN isfinite(l.recorded_at) AND l.recorded_at < '290000-01-01 00:00:00+00' "
    "THEN (extract(epoch FROM l.recorded_at) * 1000000)::bigint ELSE -1 END"
)
_TIMES: Final = frozenset({"occurred_at", "recorded_at"})
_WAITING: Final = "SELECT waiting FROM audit.ledger_state()"
_FLAWED: Final = "SELECT array_agg(first ORDER BY first) FROM audit.ledger_flaws"
_SEES: Final = """
SELECT CASE WHEN EXISTS (SELECT FROM audit.reader_tenants t WHERE t.tenant_id IS NULL)
            OR NOT row_security_active('audit.audit_logs') THEN NULL
       ELSE ARRAY(SELECT t.tenant_id FROM audit.reader_tenants t ORDER BY 1) END
"""


@dataclass(frozen=True, slots=True)
class _Found:
    """A row, at its leaf."""

    leaf: int
    recorded_us: int
    id: bytes
    content_hash: bytes
    is_as_sealed: bool
    row: Any


async def write_export(  # noqa: PLR0913 - each a choice of its own
    dsn: str,
    query: Query,
    data_format: DataFormat,
    out: Path,
    *,
    views: Views = "required",
    replace: bool = False,
    progress: RowProgress = lambda _done, _all: None,
) -> ExportManifest:
    """Write a query's records to a file, with its manifest and proof beside it.

    That it is taken out is recorded before the first byte. The files are there as a whole, or not
    at all.

    Args:
        dsn: The audit store, as a role that may read it.
        query: What is looked for; relative times are counted from now.
        data_format: How it is written.
        out: The file; ``FILE.manifest.json`` and ``FILE.proof.gz`` come beside it.
        views: Whether the export is recorded.
        replace: Whether files that are there may be replaced.
        progress: Told how far it is.

    Returns:
        The manifest.

    Raises:
        ConfigurationError: A file cannot be written there, or is there already.
        StoreError: Nothing was ever sealed, or the export cannot be recorded.
    """
    files = _Files(out, replace=replace)
    async with opened(dsn) as connection:
        sealed = await horizon(connection)
        if not sealed.checkpoint:
            raise StoreError(
                "nothing was ever sealed in this store, so nothing can be proved: run "
                "`otel-audit seal`, or let the application seal"
            )
        files.open()
        try:
            record_id = await _record(connection, query, data_format, views)
            # one state for all pages; the record of the export itself is not in it
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                await ledger_queries.unlimited(connection)
                sealed = await horizon(connection)
                tenants = await connection.fetchval(_SEES)
                # notes name rows of all tenants
                flawed = await connection.fetchval(_FLAWED) if tenants is None else None
                done = await _write(
                    connection, query, data_format, files, sealed, _Flawed(flawed or ()), progress
                )
                waiting = await connection.fetchval(_WAITING)
            role = await connection.fetchval("SELECT session_user::text")
            manifest = ExportManifest(
                file=out.name, data_format=data_format, query=str(query), tenants=tenants,
                log=sealed.origin, checkpoint=sealed.checkpoint, rows=done.rows,
                first_leaf=done.first, last_leaf=done.last, changed=done.changed,
                waiting=waiting if tenants is None else None, size=files.size(),
                sha256=files.digest(files.draft), proof_sha256=files.digest(files.proof_draft),
                exported_at=datetime.now(UTC).isoformat(timespec="seconds"), exported_by=role,
                record_id=record_id,
            )  # fmt: skip
            files.keep(manifest)
        except OSError as error:
            files.discard()
            if error.errno not in _NO_ROOM:
                raise
            raise ConfigurationError(
                f"--out: {out} cannot be written: {error.strerror}; nothing is left there"
            ) from None
        except BaseException:
            files.discard()
            raise
    return manifest


async def _record(
    connection: Connection[Any], query: Query, data_format: str, views: Views
) -> str | None:
    if views == "off":
        return None
    asked = {"query": str(query), "format": data_format, "how": "otel-audit export"}
    return str(await all_matching.record_export(connection, asked, None))


@dataclass(slots=True)
class _Files:
    """The files of an export: drafts until all are complete."""

    out: Path
    replace: bool = False
    draft: Path = field(init=False)
    proof_draft: Path = field(init=False)

    def __post_init__(self) -> None:
        """Name them; refuse what is there already."""
        self.draft = self.out.with_name(f".{self.out.name}.{os.getpid()}.part")
        self.proof_draft = self.out.with_name(f".{self.out.name}.{os.getpid()}.proof.part")
        there = [one for one in self._places() if one.exists()]
        if there and not self.replace:
            raise ConfigurationError(
                f"--out: {there[0]} is there already; give another name, or --force"
            )

    def open(self) -> None:
        """Open the drafts, so that an unwritable directory fails before the query."""
        try:
            for path in (self.draft, self.proof_draft):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as error:
            self.discard()
            raise ConfigurationError(
                f"--out: {self.out} cannot be written: {error.strerror}"
            ) from None

    def size(self) -> int:
        """Bytes of the file."""
        return self.draft.stat().st_size

    def digest(self, path: Path) -> str:
        """SHA-256 of a file, in hex."""
        with path.open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()

    def keep(self, manifest: ExportManifest) -> None:
        """Rename the drafts, the manifest last: if it exists, the others are complete."""
        data, proof, beside = self._places()
        beside.unlink(missing_ok=True)
        self.draft.replace(data)
        self.proof_draft.replace(proof)
        # new, so that no link that somebody lays there meanwhile is followed
        opened = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(opened, "wb") as target:
            target.write(manifest.text())
        sync_directory(data.parent)

    def discard(self) -> None:
        """Delete the drafts."""
        for path in (self.draft, self.proof_draft):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _places(self) -> tuple[Path, Path, Path]:
        named = self.out.name
        return (
            self.out,
            self.out.with_name(f"{named}.proof.gz"),
            self.out.with_name(f"{named}.manifest.json"),
        )


@dataclass(slots=True)
class _Done:
    """The result of an export."""

    rows: int = 0
    changed: int = 0
    first: int | None = None
    last: int | None = None


class _Target(Protocol):
    """The file that rows are written to."""

    def write(self, rows: Sequence[_Found]) -> None:
        """Write some rows."""

    def close(self) -> None:
        """End the file."""

    def abandon(self) -> None:
        """Close the file without an end."""


class _TextTarget:
    """CSV, NDJSON, JSON."""

    def __init__(self, path: Path, form: TextFormat) -> None:
        self._form = form
        self._file = path.open("wb")
        self._file.write(form.begin)
        self._is_first = True

    def write(self, rows: Sequence[_Found]) -> None:
        """Write some rows."""
        if self._form.has_payloads:
            values: Sequence[Any] = [one.row["text"] for one in rows]
        else:
            values = [(one.leaf, *tuple(one.row.values())[_HEAD:]) for one in rows]
        self._file.write(self._form.rows(values, self._is_first))
        self._is_first = False

    def close(self) -> None:
        """End the file."""
        self._file.write(self._form.end)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close the file without an end."""
        self._file.close()


class _ParquetTarget:
    """The file of an archive: all columns, the text, leaf and leaf hash."""

    def __init__(self, path: Path) -> None:
        self._file = RowFile(path)

    def write(self, rows: Sequence[_Found]) -> None:
        """Write some rows."""
        arrow, _ = parquet()
        schema = row_schema()
        values = [self._values(one) for one in rows]
        columns = [
            arrow.array([row[name] for row in values], kind)
            for name, kind in zip(schema.names, schema.types, strict=True)
        ]
        self._file.add(arrow.Table.from_arrays(columns, schema=schema))

    @staticmethod
    def _values(one: _Found) -> dict[str, Any]:
        leaf = Leaf(one.recorded_us, one.id, one.content_hash).hash()
        own = {"leaf": one.leaf, "leaf_hash": leaf, "id": one.id, "payload": one.row["text"]}
        return {**one.row, **own}

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def abandon(self) -> None:
        """Close the file without an end."""
        self._file.close()


_PROOF: Final = ("ord", "recorded_us", "row_id", "hash", "text")
"""What each row has first, for its proof."""
_HEAD: Final = len(_PROOF)


@dataclass(slots=True)
class _Flawed:
    """Blocks that have malformed rows, and in which of them rows of the export may be.

    Attributes:
        blocks: Their first leaves, in order.
        met: Those that a row may be in.
    """

    blocks: Sequence[int]
    met: set[int] = field(default_factory=set)

    def meet(self, rows: Sequence[_Found]) -> None:
        """Note the blocks of rows; the one before where a row's own has none."""
        if not self.blocks:
            return
        for one in rows:
            place = bisect_right(self.blocks, one.leaf)
            if place:
                self.met.add(self.blocks[place - 1])

    async def write_notes(self, connection: Connection[Any], proof: ProofFile) -> None:
        """Write what the sealer says of them."""
        for first in sorted(self.met):
            note = await ledger_queries.flaws(connection, first)
            if note is not None:
                proof.add_note(first, note)


def _target(path: Path, data_format: DataFormat) -> _Target:
    if data_format == "parquet":
        return _ParquetTarget(path)
    text = {"csv": csv_format(PROVED_CSV_COLUMNS), "ndjson": NDJSON, "json": JSON}[data_format]
    return _TextTarget(path, text)


async def _write(  # noqa: PLR0913, PLR0917 - one export
    connection: Connection[Any],
    query: Query,
    data_format: DataFormat,
    files: _Files,
    sealed: Horizon,
    flawed: _Flawed,
    progress: RowProgress,
) -> _Done:
    complement, done = Complement(), _Done()
    target, proof = _target(files.draft, data_format), ProofFile(files.proof_draft)
    has_lines = data_format in {"ndjson", "json"}
    has_texts = data_format != "csv"

    def put(rows: Sequence[_Found]) -> None:
        target.write(rows)
        proof.add(_proved(one, has_texts=has_texts, has_lines=has_lines) for one in rows)
        flawed.meet(rows)

    writing: asyncio.Future[None] | None = None
    try:
        reading = _Reading(connection, query, data_format, complement)
        async for rows, upto in reading.batches(sealed.size):
            if writing is not None:
                await asyncio.shield(writing)
            writing = begin_in_thread(put, rows) if rows else None
            if rows:
                done.first = rows[0].leaf if done.first is None else done.first
                done.last = rows[-1].leaf
            done.rows += len(rows)
            done.changed += sum(not one.is_as_sealed for one in rows)
            progress(upto, sealed.size)
        if writing is not None:
            await asyncio.shield(writing)
        target.close()
        await flawed.write_notes(connection, proof)
        proof.close(SparseTree(sealed.checkpoint, tuple(complement.finished())))
    except BaseException:
        if writing is not None:
            # the thread writes on: its files are not closed under it, whoever is cancelled
            with contextlib.suppress(asyncio.CancelledError):
                await has_ended(writing)
        # what ends this says what went wrong; a full disk may not even take the rest
        for one in (target.abandon, proof.abandon):
            with contextlib.suppress(Exception):
                one()
        raise
    return done


def _proved(found: _Found, *, has_texts: bool, has_lines: bool) -> tuple[int, int, str, str | None]:
    text = found.row["text"]
    is_there = has_texts and not (has_lines and ("\n" in text or "\r" in text))
    return found.leaf, found.recorded_us, found.id.hex(), None if is_there else text


class _Reading:
    """Reads the rows of all leaves, a batch at a time, and gathers the rest of the tree."""

    def __init__(
        self,
        connection: Connection[Any],
        query: Query,
        data_format: DataFormat,
        complement: Complement,
    ) -> None:
        self._connection = connection
        self._query = query
        self._format = data_format
        self._complement = complement
        self._now = datetime.now(UTC)
        self._wanted: frozenset[bytes] | None = None

    async def batches(self, size: int) -> AsyncIterator[tuple[list[_Found], int]]:
        """Rows in the order of their leaves; with how many leaves are done."""
        self._query = (await resolved(self._connection, self._query))[0]
        self._wanted = await self._ids()
        await self._connection.execute(_BY_ID)
        numbers: list[int] = []
        ids: list[bytes] = []
        hashes: list[bytes] = []
        reached = 0
        async for piece in ledger_queries.pieces(self._connection, 0, size):
            if not isinstance(piece, Block):
                rows = await self._rows(numbers, ids, hashes)
                numbers, ids, hashes = [], [], []
                yield rows, reached
                self._complement.add(piece.first, piece.count, piece.hash)
                reached = piece.first + piece.count
                continue
            for place, leaf in enumerate(piece.leaf_hashes()):
                number = piece.first + place
                if number >= size:
                    break
                record_id = piece.ids[16 * place : 16 * place + 16]
                numbers.append(number)
                ids.append(record_id)
                hashes.append(leaf)
                reached = number + 1
                if len(numbers) >= _AT_ONCE:
                    yield await self._rows(numbers, ids, hashes), reached
                    numbers, ids, hashes = [], [], []
        yield await self._rows(numbers, ids, hashes), reached

    async def _ids(self) -> frozenset[bytes] | None:
        """The ids of all that may fit, where they are few; None: each leaf is looked at."""
        if not self._query.terms:
            return None
        asked = conditions_of(self._query, self._now)
        if not asked.columns:
            return None
        sql = walk(asked, ("id", "tenant_id", "occurred_at"), f"LIMIT {_FEW + 1}")
        rows = await self._connection.fetch(f"SELECT id FROM ({sql}) AS found", *asked.values)  # noqa: S608
        return None if len(rows) > _FEW else frozenset(row["id"].bytes for row in rows)

    async def _rows(
        self, numbers: Sequence[int], ids: Sequence[bytes], hashes: Sequence[bytes]
    ) -> list[_Found]:
        places = range(len(ids))
        if self._wanted is not None:
            places = [place for place in places if ids[place] in self._wanted]  # type: ignore[assignment]
        found = await self._fetched(places, ids) if places else {}
        taken: list[_Found] = []
        for place in range(len(ids)):
            one = _of_leaf(found.get(place, ()), numbers[place], hashes[place])
            if one is None:
                self._complement.add(numbers[place], 1, hashes[place])
            else:
                self._complement.add(numbers[place], 1, None)
                taken.append(one)
        return taken

    async def _fetched(self, places: Sequence[int], ids: Sequence[bytes]) -> dict[int, list[Any]]:
        asked = conditions_of(self._query, self._now)
        named = asked.bind([ids[place] for place in places])
        at = asked.bind(list(places))
        rows = await self._connection.fetch(_sql(asked, self._format, named, at), *asked.values)
        found: dict[int, list[Any]] = {}
        for row in rows:
            found.setdefault(row["ord"], []).append(row)
        return found


def _of_leaf(rows: Sequence[Any], number: int, sealed: bytes) -> _Found | None:
    """The row that was sealed at a leaf; a changed row if there is no other."""
    for row in rows:
        hashed = content_hash(row["text"])
        found = _Found(number, row["recorded_us"], row["row_id"].bytes, hashed, True, row)  # noqa: FBT003
        if Leaf(found.recorded_us, found.id, hashed).hash() == sealed:
            return found
    if len(rows) != 1:
        return None
    (row,) = rows
    return _Found(number, row["recorded_us"], row["row_id"].bytes, row["hash"], False, row)  # noqa: FBT003


def _sql(asked: Conditions, data_format: DataFormat, ids: str, places: str) -> str:
    head = (
        f"u.ord, {_US} AS recorded_us, l.id AS row_id, l.content_hash AS hash, "
        "l.payload::text AS text"
    )
    if data_format == "csv":
        columns = f"{head}, {_csv_selection()}"
    elif data_format == "parquet":
        rest = (name for name in NAMES if name not in {"payload", "leaf", "leaf_hash"})
        columns = f"{head}, {', '.join(f'l.{name}' for name in rest)}"
    else:
        columns = head
    conditions = [*asked.columns, *asked.payload]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return (
        f"SELECT {columns} FROM unnest({ids}::bytea[], {places}::int[]) AS u(raw, ord) "  # noqa: S608
        f"JOIN audit.audit_logs AS l ON l.id = encode(u.raw, 'hex')::uuid{where}"
    )


def _csv_selection() -> str:
    """The columns of a file in CSV, as a list of SELECT."""
    return ", ".join(
        f"{within(f'l.{name}') if name in _TIMES else f'l.{name}'} AS {name}"
        for name in all_matching.CSV_COLUMNS
    )
