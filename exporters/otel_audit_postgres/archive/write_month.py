"""Writes a month into files: each row as it was sealed, or nothing at all."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from otel_audit._util.aio import begin_in_thread, has_ended
from otel_audit._util.ids import lowest_id
from otel_audit._util.months import next_month
from otel_audit_postgres.archive.arrow_tables import (
    CopiedRows,
    arrow_table,
    copied_rows,
    leaf_hashes,
    texts_of,
    with_leaves,
)
from otel_audit_postgres.archive.objects import ArchiveError, digest_of
from otel_audit_postgres.archive.parquet_files import RowFile
from otel_audit_postgres.archive.sparse_tree import Complement, SparseTree
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.leaves import Block, Pruned

ROWS_AT_ONCE: Final = 2000
"""Rows that are copied at once; fewer where they are large."""
_PIECES_AT_ONCE: Final = 1000
"""Pieces of the tree that wait at most, also where they hold few rows."""
BYTES_AT_ONCE: Final = 8_000_000
"""Bytes of payload that are read in one go, or one row."""
# as they will come; how much they take up on disk says little of that
_SIZES: Final = (
    "SELECT uuid_send(id), sum(octet_length(payload::text))::bigint FROM audit.audit_logs "
    "WHERE id = ANY($1::text[]::uuid[]) GROUP BY id"
)
# a month without statistics would be read as a whole for every few rows of it
_BY_INDEX: Final = "SET LOCAL enable_seqscan = {0}; SET LOCAL enable_bitmapscan = {0}"
_COUNT: Final = "SELECT count(*) FROM audit.audit_logs WHERE id >= $1 AND id < $2"

_DAMAGED: Final = "the ledger is damaged: run `otel-audit verify`"

ClassOf = Callable[[str, str, str, memoryview], str | None]
"""Returns the class of a row by tenant, event, action and payload; None: it is not archived."""


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file of one class."""

    kind: str
    path: Path
    rows: int
    size: int
    sha256: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class WrittenMonth:
    """The written files of a month.

    Attributes:
        rows: Rows of the month, also those that are not archived.
        files: By class.
        left_out: Rows that are not archived, by the name that they were given.
        tree: What of the ledger's tree belongs to it; None if no row is archived.
    """

    rows: int
    files: tuple[WrittenFile, ...]
    left_out: int
    tree: SparseTree | None


async def write_month(
    connection: Connection[Any],
    month: date,
    folder: Path,
    class_of: ClassOf,
    progress: Callable[[int], None] | None = None,
) -> WrittenMonth:
    """Write a month's sealed rows into files, in the order of their leaves.

    Args:
        connection: In a transaction that sees one moment, as a role that sees all rows.
        month: Its first day.
        folder: An empty folder for the files.
        class_of: Returns the class of a row.
        progress: Called with the rows that were written so far.

    Raises:
        ArchiveError: A row is not what was sealed, is gone, or is not sealed yet.
    """
    lowest, above = bounds(month)
    await connection.execute(_BY_INDEX.format("off"))
    writer, size = _Writer(folder, class_of), 0
    pipeline = _Pipeline(connection, writer, progress)
    try:
        async for piece in ledger_queries.pieces(connection):
            if piece.first != size or not piece.is_whole():
                raise ArchiveError(_DAMAGED)
            size += piece.count
            await pipeline.add(_stretch(piece, lowest.bytes, above.bytes))
        await pipeline.end()
    finally:
        try:
            await pipeline.stop()
        finally:
            writer.close()
    await connection.execute(_BY_INDEX.format("on"))
    there = await connection.fetchval(_COUNT, lowest, above)
    if there != writer.seen:
        raise ArchiveError(
            f"{month:%Y-%m} has {there} rows, and {writer.seen} of it are sealed: let the sealer "
            "seal, and run `otel-audit verify` if that does not help"
        )
    files = writer.written()
    tree = None
    if files:
        note = await ledger_queries.last_note(connection)
        tree = SparseTree(note or "", tuple(writer.complement.finished()))
        if tree.checkpoint.size != size:
            raise ArchiveError(_DAMAGED)
    return WrittenMonth(writer.seen, files, writer.left_out, tree)


def bounds(month: date) -> tuple[uuid.UUID, uuid.UUID]:
    """The lowest id of a month, and the one above its highest."""
    return _lowest_id(month), _lowest_id(next_month(month))


def _lowest_id(day: date) -> uuid.UUID:
    return lowest_id((day - date(1970, 1, 1)) // timedelta(milliseconds=1))


_Place: TypeAlias = tuple[int, bytes, bytes]
"""A leaf of the month: its number, whose row it is of, and its hash; plain, as there are many."""


class _Stretch(NamedTuple):
    """A piece of the ledger, and which of its leaves are of the month."""

    piece: Block | Pruned
    places: Sequence[_Place]


def _stretch(piece: Block | Pruned, lowest: bytes, above: bytes) -> _Stretch:
    if isinstance(piece, Pruned):
        return _Stretch(piece, ())
    numbers = range(piece.first, piece.first + piece.count)
    places = [
        place
        for place in zip(numbers, piece.id_bytes(), piece.leaf_hashes(), strict=True)
        if lowest <= place[1] < above
    ]
    return _Stretch(piece, places)


class _Pipeline:
    """Reads rows while a thread hashes and writes the previous ones."""

    def __init__(
        self, connection: Connection[Any], writer: _Writer, progress: Callable[[int], None] | None
    ) -> None:
        self._connection, self._writer, self._progress = connection, writer, progress
        self._waiting: list[_Stretch] = []
        self._rows = 0
        self._rows_at_once = ROWS_AT_ONCE
        self._under_way: asyncio.Future[None] | None = None

    async def add(self, stretch: _Stretch) -> None:
        """Take the next piece of the ledger."""
        self._waiting.append(stretch)
        self._rows += len(stretch.places)
        if self._rows >= ROWS_AT_ONCE or len(self._waiting) >= _PIECES_AT_ONCE:
            await self._pass_on()

    async def end(self) -> None:
        """Write what is left."""
        await self._pass_on()
        await self._wait_for_writer()

    async def stop(self) -> None:
        """Wait for the thread to end, whoever is cancelled; its files are closed next."""
        if self._under_way is not None:
            await has_ended(self._under_way)

    async def _pass_on(self) -> None:
        stretches, self._waiting, self._rows = self._waiting, [], 0
        async for places, copied in self._parts([one for of in stretches for one in of.places]):
            await self._wait_for_writer()
            self._begin(self._writer.write, copied, places)
        await self._wait_for_writer()
        self._begin(self._writer.complete, stretches)

    async def _parts(
        self, places: Sequence[_Place]
    ) -> AsyncIterator[tuple[Sequence[_Place], CopiedRows]]:
        """The rows, as many as fit into memory at a time, in their order."""
        begin = 0
        while begin < len(places):
            few = places[begin : begin + self._rows_at_once]
            copied = await self._copied(few, BYTES_AT_ONCE)
            if copied is None:
                few = few[: await self._fitting(few)]
                copied = await self._copied(few)
                assert copied is not None  # noqa: S101 - there was no limit
                # the following ones will be like them
                self._rows_at_once = len(few)
            else:
                self._rows_at_once = min(self._rows_at_once * 2, ROWS_AT_ONCE)
            yield few, copied
            begin += len(few)

    async def _copied(self, places: Sequence[_Place], most: int | None = None) -> CopiedRows | None:
        return await copied_rows(self._connection, [row_id for _, row_id, _ in places], most)

    async def _fitting(self, places: Sequence[_Place]) -> int:
        """The number of rows that fit into memory, at least one."""
        ids = [row_id.hex() for _, row_id, _ in places]
        sizes = dict(await self._connection.fetch(_SIZES, ids))
        held = 0
        for number, (_, row_id, _) in enumerate(places):
            held += sizes.get(row_id, 0)
            if held > BYTES_AT_ONCE:
                return max(number, 1)
        return len(places)

    def _begin(self, work: Callable[..., None], *values: Any) -> None:
        self._under_way = begin_in_thread(work, *values)

    async def _wait_for_writer(self) -> None:
        """Wait for what is under way; what it raises is raised here."""
        if self._under_way is not None:
            await asyncio.shield(self._under_way)
            # not before: where this is cancelled, the thread still writes
            self._under_way = None
            if self._progress is not None:
                self._progress(self._writer.seen)


class _Writer:
    """The files of a month while they are written, and what of the ledger's tree goes with them."""

    def __init__(self, folder: Path, class_of: ClassOf) -> None:
        self._folder, self._class_of = folder, class_of
        self._files: dict[str, RowFile] = {}
        self._not_archived: set[int] = set()
        self.complement = Complement()
        self.seen = self.left_out = 0

    def write(self, copied: CopiedRows, places: Sequence[_Place]) -> None:
        """Write rows into their files, in the order of their leaves.

        Raises:
            ArchiveError: One is gone, or is not what was sealed.
        """
        table = arrow_table(copied)
        rows = {digest: number for number, digest in enumerate(leaf_hashes(table))}
        kinds = self._kinds(table)
        chosen: dict[str, tuple[list[int], list[int], list[bytes]]] = {}
        for leaf, row_id, digest in places:
            row = rows.get(digest)
            if row is None:
                raise ArchiveError(
                    f"record {uuid.UUID(bytes=row_id)} (leaf {leaf}) is gone, or not what was "
                    "sealed: nothing is archived or dropped; run `otel-audit verify`"
                )
            kind = kinds[row]
            if kind is None:
                self._not_archived.add(leaf)
                continue
            numbers, leaves, digests = chosen.setdefault(kind, ([], [], []))
            numbers.append(row)
            leaves.append(leaf)
            digests.append(digest)
        self.seen += len(places)
        for kind, (numbers, leaves, digests) in sorted(chosen.items()):
            self._file(kind).add(with_leaves(table, numbers, leaves, digests))

    def complete(self, stretches: Sequence[_Stretch]) -> None:
        """Take pieces of the ledger of which all rows were written."""
        for piece, places in stretches:
            if isinstance(piece, Pruned):
                self.complement.add(piece.first, piece.count, piece.hash)
                continue
            archived = {leaf for leaf, _, _ in places} - self._not_archived
            for leaf, digest in enumerate(piece.leaf_hashes(), piece.first):
                self.complement.add(leaf, 1, None if leaf in archived else digest)
        self.left_out += len(self._not_archived)
        self._not_archived.clear()

    def _kinds(self, table: Any) -> list[str | None]:
        tenants, events, actions = (
            table.column(name).to_pylist() for name in ("tenant_id", "event_name", "action")
        )
        if not table.num_rows:
            return []
        payloads = texts_of(table.column("payload").chunk(0))
        return [*map(self._class_of, tenants, events, actions, payloads)]

    def _file(self, kind: str) -> RowFile:
        file = self._files.get(kind)
        if file is None:
            file = self._files[kind] = RowFile(self._folder / f"{kind}.parquet")
        return file

    def close(self) -> None:
        """Write the ends of all files."""
        for file in self._files.values():
            file.close()

    def written(self) -> tuple[WrittenFile, ...]:
        """The written files, by class."""
        return tuple(
            WrittenFile(
                kind, file.path, file.rows, file.path.stat().st_size, digest_of(file.path),
                file.first, file.last,
            )
            for kind, file in sorted(self._files.items())
        )  # fmt: skip
