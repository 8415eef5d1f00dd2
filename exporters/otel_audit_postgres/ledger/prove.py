"""Evidence: that a record was in the log, and that a log only grew, for those without the store."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from otel_audit.errors import ConfigurationError, StoreError
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.checkpoints import Checkpoint, NoteError, read_checkpoint
from otel_audit_postgres.ledger.keys import PublicKey
from otel_audit_postgres.ledger.leaves import Pruned
from otel_audit_postgres.ledger.merkle import HASH_SIZE, Tree
from otel_audit_postgres.ledger.row_check import leaf_of
from otel_audit_postgres.ledger.sealed_rows import find_leaf

EVIDENCE: Final = "otel-audit evidence 1"
CONSISTENCY: Final = "otel-audit consistency 1"

_DAMAGED: Final = "the ledger is damaged: run `otel-audit verify`"

Bundle = Mapping[str, Any]
"""An evidence bundle as plain values; see `write`."""


class ProofError(StoreError):
    """The store cannot make the requested proof."""


async def prove_record(dsn: str, record_id: str, keys: Sequence[PublicKey]) -> Bundle:
    """Prove that a record is in the log, unchanged.

    Args:
        dsn: The audit store, as a role that may read it.
        record_id: Its id.
        keys: Public keys that go into the bundle.

    Returns:
        The bundle.

    Raises:
        ProofError: There is no such record, it is not sealed yet, or the ledger is damaged.
        StoreError: The store cannot be read.
    """
    try:
        wanted = uuid.UUID(record_id)
    except ValueError:
        raise ProofError(f"{record_id} is not a record's id, which is a UUID") from None
    async with ledger_queries.opened(dsn, "prove a record", asks=True) as connection:
        return await _prove(connection, [wanted], keys)


async def prove_entity(dsn: str, entity: str, keys: Sequence[PublicKey]) -> Bundle:
    """Prove every sealed record about an entity; that there are no more is for `verify` to say.

    Args:
        dsn: The audit store, as a role that may read it.
        entity: Such as ``order:123``.
        keys: Public keys that go into the bundle.

    Returns:
        The bundle.

    Raises:
        ProofError: There is no record about it, or as for `prove_record`.
        StoreError: The store cannot be read.
    """
    async with ledger_queries.opened(dsn, "prove a history", asks=True) as connection:
        ids = await ledger_queries.ids_about(connection, entity)
        if not ids:
            raise ProofError(f"there is no record about {entity}")
        return await _prove(connection, ids, keys)


async def prove_growth(dsn: str, note: str, keys: Sequence[PublicKey]) -> Bundle:
    """Prove that the log of now begins with the log of an earlier checkpoint.

    Args:
        dsn: The audit store, as a role that may read it.
        note: The earlier checkpoint.
        keys: Public keys that go into the bundle.

    Returns:
        The bundle.

    Raises:
        ProofError: The checkpoint is not of this log's past.
        StoreError: The store cannot be read.
    """
    try:
        old = read_checkpoint(note)
    except NoteError as error:
        raise ProofError(f"the earlier checkpoint: {error}") from None
    async with ledger_queries.opened(dsn, "prove a log's growth", asks=True) as connection:
        new_note, new, tree = await _tree(connection)
    if old.origin != new.origin:
        raise ProofError(f"the earlier checkpoint is of another log, {old.origin}")
    try:
        is_beginning = 1 <= old.size <= new.size and tree.root(old.size) == old.root
    except ValueError as error:
        raise ProofError(f"the log's growth from {old.size} rows: {error}") from None
    if not is_beginning:
        raise ProofError(
            f"the log did not grow from that checkpoint of {old.size} rows: run `otel-audit verify`"
        )
    return {
        "format": CONSISTENCY,
        "keys": [key.text() for key in keys],
        "old": note,
        "new": new_note,
        "proof": _encoded(tree.consistency(old.size, new.size)),
    }


def write(bundle: Bundle, directory: Path) -> None:
    """Write a bundle and the program that verifies it.

    Args:
        bundle: What to write.
        directory: A new directory; ``evidence.json`` and ``verify.py`` come into it.

    Raises:
        ConfigurationError: It is there already, or cannot be made.
    """
    program = resources.files("otel_audit_postgres.ledger") / "verify_evidence.py"
    # no blanks, so that every byte of the file means something
    text = json.dumps(bundle, ensure_ascii=False, separators=(",", ":"))
    try:
        directory.mkdir(parents=True)
        (directory / "evidence.json").write_text(text, "utf-8")
        (directory / "verify.py").write_text(program.read_text("utf-8"), "utf-8")
    except FileExistsError:
        raise ConfigurationError(f"prove: {directory} is there already") from None
    except OSError as error:
        raise ConfigurationError(
            f"prove: {directory} cannot be written ({type(error).__name__})"
        ) from None


async def _prove(
    connection: Connection[Any], ids: Sequence[uuid.UUID], keys: Sequence[PublicKey]
) -> Bundle:
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        rows = [row async for row in ledger_queries.rows(connection, ids)]
        if not rows:
            raise ProofError(f"there is no record {ids[0]} in the store")
        note, checkpoint, tree = await _tree(connection)
        places = [await _place(connection, row) for row in rows]
    records = [
        {
            "payload": row["payload"],
            "recorded_at": row["recorded_us"],
            "leaf": place,
            "proof": _encoded(tree.inclusion(place, checkpoint.size)),
        }
        for place, row in sorted(zip(places, rows, strict=True), key=lambda pair: pair[0])
    ]
    return {
        "format": EVIDENCE,
        "keys": [key.text() for key in keys],
        "checkpoint": note,
        "records": records,
    }


async def _tree(connection: Connection[Any]) -> tuple[str, Checkpoint, Tree]:
    note = await ledger_queries.last_note(connection)
    if note is None:
        raise ProofError("nothing is sealed yet: run `otel-audit seal`")
    try:
        checkpoint = read_checkpoint(note)
    except NoteError as error:
        raise ProofError(f"the last checkpoint: {error}: run `otel-audit verify`") from None
    leaves: list[bytes | None] = []
    pruned: dict[tuple[int, int], bytes] = {}
    async for piece in ledger_queries.pieces(connection):
        if piece.first != len(leaves) or not piece.is_whole():
            raise ProofError(_DAMAGED)
        if isinstance(piece, Pruned):
            pruned[piece.first, piece.count] = piece.hash
            leaves += [None] * piece.count
        else:
            leaves += piece.leaf_hashes()
    tree = Tree(leaves, pruned)
    if tree.size < checkpoint.size or tree.root(checkpoint.size) != checkpoint.root:
        raise ProofError(_DAMAGED)
    return note, checkpoint, tree


async def _place(connection: Connection[Any], row: Mapping[str, Any]) -> int:
    """Find the leaf of a row."""
    found = await find_leaf(connection, leaf_of(row))
    if found is None:
        raise ProofError(f"{row['id']} is not sealed yet: run `otel-audit seal`")
    number, is_as_sealed = found
    if not is_as_sealed:
        raise ProofError(f"{row['id']} is not what was sealed: run `otel-audit verify`")
    return number


def _encoded(proof: Sequence[bytes]) -> list[str]:
    assert all(len(step) == HASH_SIZE for step in proof)  # noqa: S101 - of our own making
    return [base64.b64encode(step).decode() for step in proof]
