"""The manifest and the proof of an export, for checking it without the store.

The proof has the leaf and the time of each row. Of the rest of the tree it has as few hashes as
make up the checkpoint's root. So the rows alone, hashed again, lead to what the key has signed. A
file in CSV does not have the records' texts, so its proof has them: columns follow from a text.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from otel_audit.errors import OtelAuditError
from otel_audit_postgres.archive.objects import ArchiveError
from otel_audit_postgres.archive.sparse_tree import SparseTree, read_tree

FORMAT: Final = "otel-audit export 4"
EARLIER: Final = "otel-audit export 3"
"""Of a version whose proofs of CSV have no texts; else the same."""

_FIRST: Final = "first"
_NOTE: Final = "malformed"


class ExportError(OtelAuditError, ValueError):
    """A file is not an export, or its manifest names another file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportManifest:
    """The manifest of an export, ``FILE.manifest.json``.

    Attributes:
        file: The file's name.
        data_format: ``csv``, ``ndjson``, ``json`` or ``parquet``.
        query: What was asked for; empty for everything.
        tenants: The only tenants that whoever exported could see; None: all of them.
        log: The ledger's name.
        checkpoint: The signed note under which all rows are sealed.
        rows: How many.
        first_leaf, last_leaf: The lowest and the highest; None where there is no row.
        changed: Rows that are not as they were sealed.
        waiting: Rows of the store that were not sealed yet, and so are left out; None: this role
            cannot tell.
        size: Bytes of the file.
        sha256: Of the file, in hex.
        proof_sha256: Of ``FILE.proof.gz``, in hex.
        exported_at: When, UTC.
        exported_by: By whom: the database role, and on whose behalf.
        record_id: Of the record that says so in the trail; None where looks are not recorded.
        format: `FORMAT`.
    """

    file: str
    data_format: str
    query: str
    tenants: list[str] | None
    log: str
    checkpoint: str
    rows: int
    first_leaf: int | None
    last_leaf: int | None
    changed: int
    waiting: int | None
    size: int
    sha256: str
    proof_sha256: str
    exported_at: str
    exported_by: str
    record_id: str | None
    format: str = FORMAT

    def text(self) -> bytes:
        """The text of the file."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class ProvedRow:
    """One row of the proof, in the order of the file.

    Attributes:
        leaf: Its number.
        recorded_at: Microseconds since 1970 UTC.
        id: 32 hex digits.
        text: The exact text, where the file has none, or has it with spaces for its line ends;
            else None.
    """

    leaf: int
    recorded_at: int
    id: str
    text: str | None = None


@dataclass(slots=True)
class ProofFile:
    """Writes a proof.

    Attributes:
        path: Where.
    """

    path: Path
    _target: Any = field(init=False)

    def __post_init__(self) -> None:
        """Open it."""
        # without a time in its head: the same proof has the same bytes
        self._target = gzip.GzipFile(self.path, "wb", compresslevel=1, mtime=0)

    def add(self, rows: Iterable[tuple[int, int, str, str | None]]) -> None:
        """Write rows: leaf, time, id, and the exact text where the file has another."""
        encode = msgspec.json.encode
        self._target.write(b"".join(encode(row) + b"\n" for row in rows))

    def add_note(self, first: int, note: str) -> None:
        """Write what the sealer says of malformed rows of a block, by its first leaf."""
        self._target.write(msgspec.json.encode({_FIRST: first, _NOTE: note}) + b"\n")

    def close(self, tree: SparseTree) -> None:
        """Write the tree, and end."""
        self._target.write(tree.text().encode() + b"\n")
        self._target.close()

    def abandon(self) -> None:
        """Close the file without an end."""
        self._target.close()


def read_manifest(path: Path) -> ExportManifest:
    """Read the manifest of an export.

    Raises:
        ExportError: There is none, or it is not one of this version.
    """
    beside = path.with_name(f"{path.name}.manifest.json")
    try:
        found = msgspec.convert(json.loads(beside.read_bytes()), ExportManifest)
    except FileNotFoundError:
        raise ExportError(f"{beside} is not there: without it nothing can be checked") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(
            f"{beside} is not a manifest of an export: {type(error).__name__}"
        ) from None
    if found.format not in {FORMAT, EARLIER}:
        raise ExportError(f"{beside} is of another version of otel-audit")
    return found


def read_proof(path: Path) -> tuple[Iterator[ProvedRow], SparseTree]:
    """Read a proof: its rows, one at a time, and the tree.

    Raises:
        ExportError: It is none.
    """
    try:
        with gzip.open(path) as source:
            last = b""
            for line in source:
                last = line
        return _rows(path), read_tree(last.decode())
    except (OSError, EOFError, ValueError, ArchiveError) as error:
        raise ExportError(f"{path} is not a proof of an export: {type(error).__name__}") from None


def read_notes(path: Path) -> Iterator[tuple[int, str]]:
    """Read what the sealer says of malformed rows: first leaves of blocks, and signed notes.

    Raises:
        ExportError: It is not a proof.
    """
    try:
        with gzip.open(path) as source:
            for line in source:
                if line.startswith(b"{"):
                    found = msgspec.json.decode(line)
                    if _NOTE in found:
                        yield int(found[_FIRST]), str(found[_NOTE])
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is not a proof of an export: {type(error).__name__}") from None


def _rows(path: Path) -> Iterator[ProvedRow]:
    decode = msgspec.json.Decoder(tuple[int, int, str, str | None]).decode
    try:
        with gzip.open(path) as source:
            for line in source:
                if line.startswith(b"{"):
                    return
                yield ProvedRow(*decode(line))
    except (OSError, EOFError, ValueError) as error:
        raise ExportError(f"{path} is not a proof of an export: {type(error).__name__}") from None
