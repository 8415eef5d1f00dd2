"""Whether one record is what was sealed, and how that can be shown to others."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.checkpoints import Checkpoint, NoteError, read_checkpoint, read_note
from otel_audit_postgres.ledger.keys import PublicKey
from otel_audit_postgres.ledger.leaves import Block
from otel_audit_postgres.ledger.malformed import read_flaws
from otel_audit_postgres.ledger.merkle import HASH_SIZE, verify_inclusion
from otel_audit_postgres.ledger.prove import EVIDENCE, Bundle
from otel_audit_postgres.ledger.row_check import altered_columns, is_no_record, leaf_of
from otel_audit_postgres.ledger.tree_cache import DamagedLedgerError, TreeCache

State = Literal["verified", "sealed", "waiting", "unsealed", "tampered"]

_WAITS: Final = """
SELECT extract(epoch FROM clock_timestamp() - recorded_at)::float8
FROM audit.ledger_queue WHERE id = $1 AND tenant_id = $2
"""
_IS_AS_INSERTED: Final = """
SELECT EXISTS (
    SELECT FROM audit.ledger_queue q JOIN audit.audit_logs a USING (id, tenant_id)
    WHERE id = $1 AND tenant_id = $2 AND q.columns_hash = audit.columns_hash(a))
"""
# a role that is limited to some tenants sees no queue, so it cannot know
_SEES_ALL: Final = """
SELECT s.everything AND (
    NOT row_security_active('audit.audit_logs')
    OR EXISTS (SELECT FROM audit.reader_tenants WHERE tenant_id IS NULL))
FROM audit.scope() s
"""
_DAMAGED: Final = (
    "the record is what was recorded, but leaves of the log are missing or malformed, so that its "
    "place cannot be shown: run `otel-audit verify`"
)
_OTHER_ROOT: Final = (
    "the record is what was recorded, but the log's leaves do not lead to the root that its last "
    "checkpoint states: other leaves or the checkpoint were changed; run `otel-audit verify`"
)


@dataclass(frozen=True, slots=True)
class RecordProof:
    """A record's place in the log, and its proof.

    Attributes:
        state: ``verified``: text, columns, place in the tree and signature were checked just now.
            ``sealed``: all that, but no key is known that signed the checkpoint. ``waiting``: it
            waits for its seal. ``unsealed``: it is not sealed, and nothing seals here.
            ``tampered``: it is not what was sealed.
        detail: In words.
        waits: Seconds that it waits, if it is known.
        leaf: Its place in the log, from 0.
        checkpoint: The log's last checkpoint.
        signers: Names of the known keys that signed the checkpoint.
        bundle: Evidence for those without the store.
        malformed: Columns that do not follow from the text, where it was inserted so and nobody
            changed it since.
    """

    state: State
    detail: str
    waits: float | None = None
    leaf: int | None = None
    checkpoint: Checkpoint | None = None
    signers: tuple[str, ...] = ()
    bundle: Bundle | None = None
    malformed: tuple[str, ...] = ()


async def check_record(
    connection: Connection[Any],
    record_id: uuid.UUID,
    tenant_id: str,
    cache: TreeCache,
    keys: Sequence[PublicKey],
) -> RecordProof | None:
    """Verify one record now: its text, its columns, its place in the tree, the signature.

    Args:
        connection: To the store, within a transaction.
        record_id: The record's id.
        tenant_id: Its tenant, empty for none.
        cache: The log's tree.
        keys: Whose signatures count.

    Returns:
        What was found; None if there is no such record for this reader.
    """
    try:
        return await _checked(connection, record_id, tenant_id, cache, keys)
    except DamagedLedgerError:
        # retention may have collapsed leaves between two statements: then the next look is whole
        pass
    try:
        return await _checked(connection, record_id, tenant_id, cache, keys)
    except DamagedLedgerError:
        return RecordProof("tampered", _DAMAGED)


async def _checked(
    connection: Connection[Any],
    record_id: uuid.UUID,
    tenant_id: str,
    cache: TreeCache,
    keys: Sequence[PublicKey],
) -> RecordProof | None:
    rows = [row async for row in ledger_queries.rows(connection, [record_id])]
    row = next((row for row in rows if row["tenant_id"] == tenant_id), None)
    if row is None:
        return None
    leaf, block, seen = await _place(connection, row)
    altered = tuple(altered_columns(row))
    if seen and leaf is None:
        return RecordProof("tampered", "the record's text or time is not what was sealed")
    if altered and not await _was_inserted_so(connection, row, block, keys):
        what = ", ".join(altered)
        return RecordProof("tampered", f"not what the record's own text says: {what}", leaf=leaf)
    if leaf is None:
        found = await _not_sealed(connection, row)
    else:
        found = await _proved(connection, row, leaf, cache, keys)
    return replace(found, malformed=altered)


async def _was_inserted_so(
    connection: Connection[Any],
    row: Mapping[str, Any],
    block: Block | None,
    keys: Sequence[PublicKey],
) -> bool:
    """Whether columns that do not follow from the text were inserted so, as the verification asks.

    Whoever may insert can insert such a row: that is not tampering.
    """
    if block is None:
        found = await connection.fetchval(_IS_AS_INSERTED, row["id"], row["tenant_id"])
        return bool(found)
    note = await ledger_queries.flaws(connection, block.first)
    origin = await ledger_queries.origin(connection)
    flaws = frozenset() if note is None else read_flaws(note, origin, block.first, keys)
    # the leaf covers the text: a text that is not a record now was none when it was inserted
    if is_no_record(row):
        return not any(record_id == row["id"].bytes for record_id, _ in flaws)
    hashes = await ledger_queries.column_hashes(connection, [row["id"]])
    return (row["id"].bytes, hashes.get((row["id"].bytes, row["tenant_id"]), b"")) in flaws


async def _place(
    connection: Connection[Any], row: Mapping[str, Any]
) -> tuple[int | None, Block | None, bool]:
    """Find the leaf of a row, and its block; and whether a leaf of its id is there at all."""
    leaf_hash, seen = leaf_of(row).hash(), False
    for block in await ledger_queries.blocks_about(connection, row["id"]):
        for number in block.places(row["id"].bytes):
            seen = True
            at = number * HASH_SIZE
            if block.hashes[at : at + HASH_SIZE] == leaf_hash:
                return block.first + number, block, True
    return None, None, seen


async def _not_sealed(connection: Connection[Any], row: Mapping[str, Any]) -> RecordProof:
    waits = await connection.fetchval(_WAITS, row["id"], row["tenant_id"])
    if waits is not None:
        return RecordProof("waiting", "it waits for its seal", waits=waits)
    if await connection.fetchval(_SEES_ALL):
        return RecordProof(
            "tampered", "it is neither sealed nor waits to be: it came past the store's own guard"
        )
    return RecordProof("unsealed", "it is not sealed yet")


def _read(note: str | None, leaf: int) -> tuple[Checkpoint | None, str]:
    """The last checkpoint's content; or why it does not cover a leaf."""
    if note is None:
        return None, "the log has leaves, and no checkpoint"
    try:
        checkpoint = read_checkpoint(note)
    except NoteError as error:
        return None, f"the log's last checkpoint cannot be read: {error}"
    if leaf >= checkpoint.size:
        size = checkpoint.size
        return None, f"the log's last checkpoint knows {size} leaves, and this one is behind"
    return checkpoint, ""


async def _proved(
    connection: Connection[Any],
    row: Mapping[str, Any],
    leaf: int,
    cache: TreeCache,
    keys: Sequence[PublicKey],
) -> RecordProof:
    """Prove that a leaf is in the log that the last checkpoint is about."""
    note = await ledger_queries.last_note(connection)
    checkpoint, fault = _read(note, leaf)
    if note is None or checkpoint is None:
        return RecordProof("tampered", fault, leaf=leaf)
    path = await _path(connection, leaf, leaf_of(row).hash(), checkpoint, cache)
    if path is None:
        return RecordProof("tampered", _OTHER_ROOT, leaf=leaf, checkpoint=checkpoint)
    try:
        signers = tuple(key.name for key in read_note(note).signed_by(keys))
    except NoteError as error:
        detail = f"the log's last checkpoint is not what was signed: {error}"
        return RecordProof("tampered", detail, leaf=leaf, checkpoint=checkpoint)
    evidence = {
        "payload": row["payload"],
        "recorded_at": row["recorded_us"],
        "leaf": leaf,
        "proof": [base64.b64encode(step).decode() for step in path],
    }
    bundle = {
        "format": EVIDENCE,
        "keys": [key.text() for key in keys],
        "checkpoint": note,
        "records": [evidence],
    }
    if signers:
        detail = f"signed by {', '.join(signers)}"
        return RecordProof("verified", detail, None, leaf, checkpoint, signers, bundle)
    detail = "in the log and unchanged; whose log it is was not checked, as no public key is set"
    return RecordProof("sealed", detail, None, leaf, checkpoint, (), bundle)


async def _path(
    connection: Connection[Any], leaf: int, hashed: bytes, checkpoint: Checkpoint, cache: TreeCache
) -> list[bytes] | None:
    """The proof of a leaf; None if none leads to the checkpoint's root, from a tree read anew."""
    size, root = checkpoint.size, checkpoint.root
    for is_second in (False, True):
        await cache.follow(connection, size)
        # nothing is awaited between here and what the proof takes of the tree, so both are of one
        # reading, although a doubt may be waiting for its turn
        reading = cache.reading
        path = await cache.proof(connection, leaf, size)
        if verify_inclusion(hashed, leaf, size, path, root):
            return path
        # the second one is from a tree that was begun after the first had failed
        if is_second or not await cache.doubt(reading, root):
            break
    return None
