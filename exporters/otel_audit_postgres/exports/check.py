"""Checks an export without the store: file, rows, and the path to the signed checkpoint."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Final

from otel_audit_postgres.archive.objects import ArchiveError
from otel_audit_postgres.archive.parquet_files import read_rows
from otel_audit_postgres.exports.formats import one_line
from otel_audit_postgres.exports.proof import (
    ExportError,
    ExportManifest,
    ProvedRow,
    read_manifest,
    read_proof,
)
from otel_audit_postgres.ledger.checkpoints import NoteError, read_checkpoint, read_note
from otel_audit_postgres.ledger.keys import PublicKey
from otel_audit_postgres.ledger.leaves import Leaf

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = (datetime(9999, 12, 31, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


@dataclass(slots=True)
class ExportCheck:
    """The result of checking an export.

    Attributes:
        manifest: What it should be.
        rows: Rows that were hashed again.
        problems: What does not hold, in words; none: it is what was exported, and was sealed so.
        signed_by: Names of the given keys that signed the checkpoint.
    """

    manifest: ExportManifest
    rows: int = 0
    problems: list[str] = field(default_factory=list)
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
    leaves: list[tuple[int, bytes]] = []
    for row, there in zip_longest(rows, _rows(path, manifest.data_format)):
        if row is None or there is None:
            found.problems.append("the file and its proof have different numbers of rows")
            break
        content = there.content_of(row)
        if content is None:
            found.problems.append(f"row {found.rows + 1} is not the one in the proof")
            break
        leaves.append((row.leaf, Leaf(row.recorded_at, bytes.fromhex(row.id), content).hash()))
        found.rows += 1
    if found.rows != manifest.rows:
        found.problems.append(f"the manifest says {manifest.rows} rows, not {found.rows}")
    try:
        if not tree.is_rooted(leaves):
            found.problems.append(
                "the rows do not lead to the checkpoint: one of them is not as it was sealed, "
                "or one is missing"
            )
    except ArchiveError as error:
        found.problems.append(str(error))
    return found


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
    """One row of a file: its text, or its columns in CSV."""

    text: bytes = b""
    cells: tuple[str, str, datetime, bytes] | None = None

    def content_of(self, proved: ProvedRow) -> bytes | None:
        """The content hash that the row was sealed with; None if it is another row.

        The proof is not signed. So what it says may never stand for what the file says: a hash
        from the proof would prove a row of which the file shows another text.
        """
        if self.cells is not None:
            leaf, record_id, recorded_at, content = self.cells
            is_same = (
                leaf == str(proved.leaf)
                and record_id.replace("-", "") == proved.id
                # times that no calendar has are written as the nearest that it has
                and (
                    not 0 <= proved.recorded_at < _LAST
                    or (recorded_at - _EPOCH) // timedelta(microseconds=1) == proved.recorded_at
                )
            )
            return content if is_same else None
        if proved.text is None:
            return _hash(self.text)
        if one_line(proved.text).encode("utf-8", "surrogatepass") != self.text:
            return None
        return _hash(proved.text.encode("utf-8", "surrogatepass"))


def _rows(path: Path, data_format: str) -> Iterator[_InFile]:
    """The rows of a file."""
    try:
        if data_format == "parquet":
            for row in read_rows(path, ("payload",)):
                yield _InFile(row["payload"].encode("utf-8", "surrogatepass"))
        elif data_format == "csv":
            with path.open(encoding="utf-8", newline="") as source:
                for cells in csv.DictReader(source):
                    recorded_at = datetime.fromisoformat(cells["recorded_at"])
                    content = bytes.fromhex(cells["content_hash"])
                    yield _InFile(cells=(cells["leaf"], cells["id"], recorded_at, content))
        else:
            yield from map(_InFile, _lines(path, is_list=data_format == "json"))
    except (OSError, ValueError, KeyError, TypeError, csv.Error, ArchiveError) as error:
        raise ExportError(
            f"{path} cannot be read as {data_format}: {type(error).__name__}"
        ) from None


def _lines(path: Path, *, is_list: bool) -> Iterator[bytes]:
    """The records' texts: a line each, in a list with commas between."""
    with path.open("rb") as source:
        for line in source:
            text = line.rstrip(b"\n")
            if is_list:
                if text in {b"[", b"]"}:
                    continue
                text = text.removesuffix(b",")
            yield text


def _hash(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
