"""Rows that were inserted malformed, and the sealer's note by which they do not count as changed.

A leaf covers a row's text, id and time, not its columns. Whether a column that does not follow from
the text was inserted so or changed since shows by a hash of the columns that the database takes
when the row is inserted, and that the sealer compares and signs: one note a block, for those rows
alone. Its text: the log's name, ``otel-audit flaws 1``, the index of the block's first leaf, and a
line for each row with its id and the hash of its columns, in hex.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from otel_audit_postgres.ledger.checkpoints import NoteError, read_note, signed_text
from otel_audit_postgres.ledger.keys import PublicKey, Signer

FORMAT: Final = "otel-audit flaws 1"
MOST: Final = 8000
"""Rows that one note names; what is beyond is taken for changed."""

_LINE: Final = re.compile(r"([0-9a-f]{32}) ([0-9a-f]{64})")

Flaw = tuple[bytes, bytes]
"""A row's id, and the hash of its columns."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """A row that never was well-formed: it is as it was inserted, and was not changed since.

    Attributes:
        detail: What is wrong with it, without values of the record.
        record_id: The record.
        leaf: Its place in the log, from 0; None while it waits for its seal.
        producer: The producer in its column, which the writer chose.
    """

    detail: str
    record_id: str
    leaf: int | None = None
    producer: str | None = None


def write_flaws(origin: str, first: int, flaws: Iterable[Flaw], signers: Sequence[Signer]) -> str:
    """Write the note.

    Args:
        origin: The log's name.
        first: Index of the block's first leaf.
        flaws: The rows, no more than `MOST`.
        signers: Who signs.
    """
    lines = "".join(f"{record_id.hex()} {digest.hex()}\n" for record_id, digest in flaws)
    return signed_text(f"{origin}\n{FORMAT}\n{first}\n{lines}", signers)


def read_flaws(
    note: str, origin: str | None, first: int, keys: Sequence[PublicKey]
) -> frozenset[Flaw]:
    """Read the note, if it can be trusted.

    Args:
        note: The note.
        origin: The log's name.
        first: Index of the block's first leaf.
        keys: Public keys that may sign; without any, it is trusted as it is.

    Returns:
        The rows; none if no given key signed it, or it is of another block.
    """
    try:
        found = read_note(note)
        if keys and not found.signed_by(keys):
            return frozenset()
    except NoteError:
        return frozenset()
    head = f"{origin}\n{FORMAT}\n{first}\n"
    if not found.text.startswith(head):
        return frozenset()
    lines = (_LINE.fullmatch(line) for line in found.text[len(head) :].splitlines())
    return frozenset((bytes.fromhex(line[1]), bytes.fromhex(line[2])) for line in lines if line)
