"""Checks an export without the store: file, rows, and the path to the signed checkpoint."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from otel_audit_postgres.archive.objects import ArchiveError
from otel_audit_postgres.archive.parquet_files import NAMES, column_names, read_rows
from otel_audit_postgres.exports.columns import (
    OWN,
    PROVED_CSV_COLUMNS,
    WRITTEN,
    SealedRow,
    sealed_row,
)
from otel_audit_postgres.exports.formats import csv_format, one_line
from otel_audit_postgres.exports.proof import (
    EARLIER,
    ExportError,
    ExportManifest,
    ProvedRow,
    read_manifest,
    read_notes,
    read_proof,
)
from otel_audit_postgres.ledger.checkpoints import NoteError, read_checkpoint, read_note
from otel_audit_postgres.ledger.keys import PublicKey
from otel_audit_postgres.ledger.malformed import read_flaws
from otel_audit_postgres.rows import ADDED_IN

_NAMED: Final = 3
"""Rows that problems and warnings name."""
_MOST_SUSPECTS: Final = 10_000
"""Rows that are judged one by one; beyond these the check says that there are more."""

_UNREADABLE: Final = (OSError, ArithmeticError, ValueError, LookupError, TypeError, csv.Error)
"""What a file that somebody changed may raise."""


@dataclass(slots=True)
class ExportCheck:
    """The result of checking an export.

    Attributes:
        manifest: What it should be.
        rows: Rows that were hashed again.
        problems: What does not hold, in words; none: it is what was exported, and was sealed so.
        warnings: What is not proved, in words: columns of records that were inserted malformed.
        signed_by: Names of the given keys that signed the checkpoint.
    """

    manifest: ExportManifest
    rows: int = 0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    signed_by: tuple[str, ...] = ()


def check_export(path: Path, keys: Sequence[PublicKey] = ()) -> ExportCheck:
    """Check a file against its manifest and its proof.

    Args:
        path: The file.
        keys: Public keys of the ledger; without any, the signature is not checked.

    Raises:
        ExportError: There is nothing to check it by.
    """
    manifest = read_manifest(path)
    found = ExportCheck(manifest)
    proof = path.with_name(f"{path.name}.proof.gz")
    for file, digest in ((path, manifest.sha256), (proof, manifest.proof_sha256)):
        if _digest(file) != digest:
            found.problems.append(f"{file.name} is not the file of the manifest")
    rows, tree = read_proof(proof)
    if tree.note != manifest.checkpoint:
        found.problems.append("the proof is under another checkpoint than the manifest's")
    found.signed_by = _signers(manifest, keys, found.problems)
    if manifest.data_format == "csv" and manifest.format == EARLIER:
        found.problems.append(
            "an earlier version made this CSV, whose columns cannot be proved: export it again"
        )
        return found
    leaves, suspects = _leaves(zip_longest(rows, _rows(path, manifest.data_format)), found)
    suspects.judge(read_notes(proof), manifest, keys, found)
    _check_manifest(path, leaves, found)
    try:
        if not tree.is_rooted(leaves):
            found.problems.append(
                "the rows do not lead to the checkpoint: one of them is not as it was sealed, "
                "or one is missing"
            )
    except ArchiveError as error:
        found.problems.append(str(error))
    return found


@dataclass(slots=True)
class _Suspects:
    """Rows of which columns are others than their text says.

    Attributes:
        certain: Those that nothing explains, in words.
        rows: Those that may have been inserted so: number, and columns, by the record's id.
        illegible: Ids of those whose text is not a record.
        count: How many of all.
    """

    certain: list[str] = field(default_factory=list)
    rows: dict[bytes, tuple[int, list[str]]] = field(default_factory=dict)
    illegible: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, number: int, sealed: SealedRow, names: list[str]) -> None:
        """Add a row, if a column of it is not what its text says, or its text is not a record."""
        if sealed.columns is None and not names:
            if len(self.illegible) < _MOST_SUSPECTS:
                self.illegible.append(str(uuid.UUID(bytes=sealed.leaf.id)))
            return
        if not names:
            return
        self.count += 1
        if self.count > _MOST_SUSPECTS:
            return
        if sealed.columns is None or not OWN.isdisjoint(names) or WRITTEN in names:
            self.certain.append(_otherwise(number, names))
        else:
            self.rows[sealed.leaf.id] = number, names

    def judge(
        self,
        notes: Iterable[tuple[int, str]],
        manifest: ExportManifest,
        keys: Sequence[PublicKey],
        found: ExportCheck,
    ) -> None:
        """Tell changed rows from those of which the sealer says that they were inserted so."""
        malformed: list[str] = []
        if self.rows:
            for first, note in notes:
                for record_id, _ in read_flaws(note, manifest.log, first, keys):
                    if self.rows.pop(record_id, None) is not None:
                        malformed.append(str(uuid.UUID(bytes=record_id)))
        changed = [*self.certain, *(_otherwise(*one) for one in self.rows.values())]
        found.problems += changed[:_NAMED]
        if self.count > _MOST_SUSPECTS:
            found.problems.append(f"so in more than {_MOST_SUSPECTS} rows")
        elif len(changed) > _NAMED:
            found.problems.append(f"so in {len(changed) - _NAMED} more rows")
        for ids, what in (
            (malformed, "were inserted so that columns do not follow from their text"),
            (self.illegible, "have a text that is not a record"),
        ):
            if ids:
                named = ", ".join(ids[:_NAMED]) + (", …" if len(ids) > _NAMED else "")
                found.warnings.append(
                    f"{len(ids)} rows {what}; their columns are not proved: {named}"
                )


def _leaves(
    pairs: Iterable[tuple[ProvedRow | None, _InFile | None]], found: ExportCheck
) -> tuple[list[tuple[int, bytes]], _Suspects]:
    """The leaves that the rows of a file make, and the rows with other columns than their text."""
    leaves: list[tuple[int, bytes]] = []
    suspects = _Suspects()
    for row, there in pairs:
        if row is None or there is None:
            found.problems.append("the file and its proof have different numbers of rows")
            break
        text = there.text_of(row)
        if text is None:
            found.problems.append(f"row {found.rows + 1} is not the one in the proof")
            break
        found.rows += 1
        sealed = sealed_row(row, text, _hash(text), reads=there.has_columns)
        leaves.append((row.leaf, sealed.leaf.hash()))
        if there.has_columns:
            suspects.add(found.rows, sealed, there.altered(sealed))
    return leaves, suspects


def _otherwise(number: int, names: Sequence[str]) -> str:
    return f"row {number}: not what was sealed: {', '.join(names)}"


def _check_manifest(path: Path, leaves: Sequence[tuple[int, bytes]], found: ExportCheck) -> None:
    """Compare what the manifest says of the file, which is not signed, with the file."""
    manifest = found.manifest
    stated: dict[str, tuple[object, object]] = {
        "rows": (manifest.rows, found.rows),
        "size": (manifest.size, path.stat().st_size),
        "first_leaf": (manifest.first_leaf, leaves[0][0] if leaves else None),
        "last_leaf": (manifest.last_leaf, leaves[-1][0] if leaves else None),
    }
    with contextlib.suppress(NoteError):  # which was said
        stated["log"] = (manifest.log, read_checkpoint(manifest.checkpoint).origin)
    for name, (says, has) in stated.items():
        if says != has:
            found.problems.append(f"the manifest says {says} of {name}, and it is {has}")
    if manifest.changed:
        found.problems.append(
            f"the manifest says that {manifest.changed} rows were not as they were sealed"
        )


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from None


def _signers(
    manifest: ExportManifest, keys: Sequence[PublicKey], problems: list[str]
) -> tuple[str, ...]:
    try:
        read_checkpoint(manifest.checkpoint)
        signed = read_note(manifest.checkpoint).signed_by(keys)
    except NoteError as error:
        problems.append(f"the checkpoint: {error}")
        return ()
    if keys and not signed:
        problems.append("none of the given keys has signed the checkpoint")
    return tuple(key.name for key in signed)


@dataclass(frozen=True, slots=True)
class _InFile:
    """One row of a file: its text, its columns in Parquet, or its cells in CSV."""

    text: bytes = b""
    columns: Mapping[str, Any] | None = None
    cells: tuple[Sequence[str], Sequence[str], bytes] | None = None

    @property
    def has_columns(self) -> bool:
        """Whether it has more than its text."""
        return self.columns is not None or self.cells is not None

    def text_of(self, proved: ProvedRow) -> bytes | None:
        """The text that the row was sealed with; None if it is another row.

        The proof is not signed. So what it says may never stand for what the file says: a text
        from the proof would prove a row of which the file shows another one.
        """
        if self.cells is not None:
            # each cell is compared with it
            return None if proved.text is None else proved.text.encode("utf-8", "surrogatepass")
        if proved.text is None:
            return self.text
        if one_line(proved.text).encode("utf-8", "surrogatepass") != self.text:
            return None
        return proved.text.encode("utf-8", "surrogatepass")

    def altered(self, sealed: SealedRow) -> list[str]:
        """Name the columns that are not those of the sealed row."""
        if self.cells is not None:
            return sealed.altered_cells(*self.cells)
        return [] if self.columns is None else sealed.altered(self.columns)


def _rows(path: Path, data_format: str) -> Iterator[_InFile]:
    """The rows of a file."""
    try:
        if data_format == "parquet":
            yield from _parquet_rows(path)
        elif data_format == "csv":
            yield from _csv_rows(path)
        else:
            yield from map(_InFile, _lines(path, is_list=data_format == "json"))
    except ExportError:
        raise
    except (*_UNREADABLE, ArchiveError) as error:
        raise ExportError(
            f"{path} cannot be read as {data_format}: {type(error).__name__}"
        ) from None


def _parquet_rows(path: Path) -> Iterator[_InFile]:
    _check_names(column_names(path), NAMES)
    for row in read_rows(path):
        yield _InFile(row["payload"].encode("utf-8", "surrogatepass"), columns=row)


def _csv_rows(path: Path) -> Iterator[_InFile]:
    taken: list[bytes] = []

    def lines(source: Iterable[bytes]) -> Iterator[str]:
        for line in source:
            taken.append(line)
            yield line.decode()

    with path.open("rb") as source:
        reader = csv.reader(lines(source), strict=True)
        names = next(reader, [])
        _check_names(names, PROVED_CSV_COLUMNS)
        if b"".join(taken) != csv_format(names).begin:
            raise ValueError
        taken.clear()
        for cells in reader:
            yield _InFile(cells=(names, cells, b"".join(taken)))
            taken.clear()
        if taken:
            raise ValueError


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    """See that a file has the columns that it should: of an earlier version, without later ones."""
    if list(names) != [name for name in known if name in names or name not in ADDED_IN]:
        raise ExportError("the file's columns are not those of an export")


def _lines(path: Path, *, is_list: bool) -> Iterator[bytes]:
    """The records' texts: a line each, in a list with commas between."""
    with path.open("rb") as source:
        if not is_list:
            for line in source:
                yield line.removesuffix(b"\n")
            return
        if source.readline() != b"[\n":
            raise ValueError
        held: bytes | None = None
        for line in source:
            if line == b"]\n":
                break
            if held is not None:
                if not held.endswith(b","):
                    raise ValueError
                yield held[:-1]
            held = line.removesuffix(b"\n")
        else:
            raise ValueError
        if held is not None:
            yield held
        if source.read(1):
            raise ValueError


def _hash(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
