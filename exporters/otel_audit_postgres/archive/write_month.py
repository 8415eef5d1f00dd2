"""Writes a month into files: each row as it was sealed, or nothing at all."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

from otel_audit_postgres.archive.objects import ArchiveError, digest_of
from otel_audit_postgres.archive.row_files import RowFile
from otel_audit_postgres.archive.sparse_tree import Complement, SparseTree
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import store
from otel_audit_postgres.ledger.leaves import Block, Leaf, Pruned, content_hash
from otel_audit_postgres.rows import COLUMNS

ROWS_AT_ONCE: Final = 1000
_READABLE: Final = (
    "CASE WHEN occurred_at > '0001-01-01 00:00:00+00' "
    "AND occurred_at < '9999-12-31 23:59:59.999999+00' THEN occurred_at END"
)
_NAMES: Final = ", ".join(
    _READABLE if name == "occurred_at" else f"{name}::text" if kind == "json" else name
    for name, kind in COLUMNS
)
_ROWS: Final = f"""
SELECT {_NAMES},
       CASE WHEN isfinite(recorded_at) AND recorded_at < '290000-01-01 00:00:00+00'
            THEN (extract(epoch FROM recorded_at) * 1000000)::bigint ELSE -1 END
FROM audit.audit_logs WHERE id = ANY($1::uuid[])
"""  # noqa: S608 - constants
_COUNT: Final = "SELECT count(*) FROM audit.audit_logs WHERE id >= $1 AND id < $2"

_PLACES: Final = {name: place for place, (name, _) in enumerate(COLUMNS)}
_ID, _PAYLOAD = _PLACES["id"], _PLACES["payload"]

_DAMAGED: Final = "the ledger is damaged: run `otel-audit verify`"

ClassOf = Callable[[Sequence[Any]], str | None]
"""Returns the class of a row, its values in the order of the columns; None: it is not archived."""


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
    """What of a month was written.

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
    writer, complement, size = _Writer(connection, folder, class_of), Complement(), 0
    try:
        async for piece in store.pieces(connection):
            if piece.first != size or not piece.is_whole():
                raise ArchiveError(_DAMAGED)
            size += piece.count
            if isinstance(piece, Pruned):
                complement.add(piece.first, piece.count, piece.hash)
                continue
            mine = [number for number, one in enumerate(piece.row_ids()) if lowest <= one < above]
            archived = await writer.write(piece, mine)
            for number, digest in enumerate(piece.leaf_hashes()):
                complement.add(piece.first + number, 1, None if number in archived else digest)
            if mine and progress is not None:
                progress(writer.seen)
    finally:
        writer.close()
    there = await connection.fetchval(_COUNT, lowest, above)
    if there != writer.seen:
        raise ArchiveError(
            f"{month:%Y-%m} has {there} rows, and {writer.seen} of it are sealed: let the sealer "
            "seal, and run `otel-audit verify` if that does not help"
        )
    files = writer.written()
    tree = None
    if files:
        note = await store.last_note(connection)
        tree = SparseTree(note or "", tuple(complement.finished()))
        if tree.checkpoint.size != size:
            raise ArchiveError(_DAMAGED)
    return WrittenMonth(writer.seen, files, writer.left_out, tree)


def bounds(month: date) -> tuple[uuid.UUID, uuid.UUID]:
    """The lowest id of a month, and the one above its highest."""
    following = date(month.year + month.month // 12, month.month % 12 + 1, 1)
    return _lowest_id(month), _lowest_id(following)


def _lowest_id(day: date) -> uuid.UUID:
    milliseconds = (day - date(1970, 1, 1)).days * 86_400_000
    return uuid.UUID(int=milliseconds << 80)


class _Writer:
    """The files of a month while they are written."""

    def __init__(self, connection: Connection[Any], folder: Path, class_of: ClassOf) -> None:
        self._connection, self._folder, self._class_of = connection, folder, class_of
        self._files: dict[str, RowFile] = {}
        self.seen = self.left_out = 0

    async def write(self, block: Block, numbers: Sequence[int]) -> set[int]:
        """Write the rows of some leaves of a block; which of them went into a file."""
        ids, hashes = block.row_ids(), block.leaf_hashes()
        archived: set[int] = set()
        for start in range(0, len(numbers), ROWS_AT_ONCE):
            part = numbers[start : start + ROWS_AT_ONCE]
            found = await self._rows({ids[number] for number in part})
            for number in part:
                digest, leaf = hashes[number], block.first + number
                values = found.get(digest)
                if values is None:
                    raise ArchiveError(
                        f"record {ids[number]} (leaf {leaf}) is gone, or not what was sealed: "
                        "nothing is archived or dropped; run `otel-audit verify`"
                    )
                self.seen += 1
                kind = self._class_of(values)
                if kind is None:
                    self.left_out += 1
                    continue
                self._file(kind).add((*values, leaf, digest), len(values[_PAYLOAD]))
                archived.add(number)
        return archived

    async def _rows(self, ids: set[uuid.UUID]) -> dict[bytes, tuple[Any, ...]]:
        """Rows by the leaf that they are now; content is hashed afresh."""
        found: dict[bytes, tuple[Any, ...]] = {}
        for row in await self._connection.fetch(_ROWS, list(ids)):
            row_id = row[_ID].bytes
            leaf = Leaf(row[-1], row_id, content_hash(row[_PAYLOAD]))
            found[leaf.hash()] = (row_id, *row[1:])
        return found

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
        """What was written, by class."""
        return tuple(
            WrittenFile(
                kind, file.path, file.rows, file.path.stat().st_size, digest_of(file.path),
                file.first, file.last,
            )
            for kind, file in sorted(self._files.items())
        )  # fmt: skip
