"""Checkpoints as signed notes, in the format of C2SP.

Sources: C2SP ``signed-note`` (the envelope) and ``tlog-checkpoint`` (the text within). A note is
its text, an empty line, and a line for each signature: ``— name base64(key id || signature)``.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from otel_audit.errors import OtelAuditError
from otel_audit_postgres.ledger.keys import KEY_ID_SIZE, PublicKey, Signer
from otel_audit_postgres.ledger.merkle import HASH_SIZE

MOST_SIGNATURES: Final = 100
"""Lines of signatures that are read: each costs a verification."""
LONGEST_NOTE: Final = 1_000_000
"""Characters of a note that are read; one of ours has some hundred."""

_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_SIGNATURE: Final = re.compile(r"— ([^\s+]+) (\S+)")
_CONTROLS: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


class NoteError(OtelAuditError, ValueError):
    """A text that is not a signed note, no checkpoint, or whose signature does not hold."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The log's name, size and root at one moment.

    Attributes:
        origin: The log's name, one line.
        size: Leaves in its tree.
        root: The tree's root hash, 32 bytes.
    """

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The three lines of ``tlog-checkpoint``."""
        return f"{self.origin}\n{self.size}\n{_encoded(self.root)}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A note taken apart.

    Attributes:
        text: What is signed, with its last newline.
        signatures: Key name, key id (4 bytes) and signature of each signature line.
    """

    text: str
    signatures: tuple[tuple[str, bytes, bytes], ...]

    def signed_by(self, keys: Iterable[PublicKey]) -> list[PublicKey]:
        """Return which of these keys signed the note.

        Args:
            keys: Whose signatures to look at; signatures by others are passed over.

        Returns:
            The keys that did.

        Raises:
            NoteError: A signature claims to be by one of these keys, and is not.
        """
        found = []
        for key in keys:
            for name, key_id, signature in self.signatures:
                if (name, key_id) != (key.name, key.key_id):
                    continue
                if not key.verifies(signature, self.text.encode()):
                    raise NoteError(f"a signature in the name of {name} does not hold")
                found.append(key)
        return found


def signed(checkpoint: Checkpoint, signers: Sequence[Signer] = ()) -> str:
    """Write a checkpoint as a note.

    Args:
        checkpoint: What to say.
        signers: The signers, in this order; a note needs at least one signature line.

    Returns:
        The note, to be encoded as UTF-8.
    """
    return signed_text(checkpoint.text(), signers)


def signed_text(text: str, signers: Sequence[Signer] = ()) -> str:
    """Write any text as a note; as `signed`.

    Args:
        text: What to say, with its last newline.
        signers: Who signs, in this order.
    """
    lines = [
        f"— {signer.name} {_encoded(signer.key_id + signer.sign(text.encode()))}\n"
        for signer in signers
    ]
    return f"{text}\n{''.join(lines)}"


def read_note(note: str) -> Note:
    """Take a note apart, without judging its signatures.

    Args:
        note: The note.

    Returns:
        Its parts.

    Raises:
        NoteError: It is not a note.
    """
    text, separator, rest = note.rpartition("\n\n")
    if not separator or len(note) > LONGEST_NOTE or _CONTROLS.search(note):
        raise NoteError("not a signed note: there is no empty line before its signatures")
    lines = rest.split("\n")
    if lines.pop() or len(lines) > MOST_SIGNATURES:
        raise NoteError("not a signed note: its last line does not end, or it has too many")
    return Note(f"{text}\n", tuple(_signature(line) for line in lines))


def read_checkpoint(note: str) -> Checkpoint:
    """Read what the checkpoint in a note says, without judging its signatures.

    Args:
        note: The note.

    Returns:
        The checkpoint; extension lines are passed over.

    Raises:
        NoteError: It is not a note, or no checkpoint.
    """
    origin, *rest = read_note(note).text.split("\n")
    if not origin or len(rest) < 3 or not _SIZE.fullmatch(rest[0]):  # noqa: PLR2004 - lines
        raise NoteError("not a checkpoint: origin, size and root hash are needed, a line each")
    root = _decoded(rest[1])
    if root is None or len(root) != HASH_SIZE:
        raise NoteError("not a checkpoint: its root hash is not 32 bytes in base64")
    return Checkpoint(origin, int(rest[0]), root)


def _signature(line: str) -> tuple[str, bytes, bytes]:
    found = _SIGNATURE.fullmatch(line)
    blob = _decoded(found[2]) if found else None
    if found is None or blob is None or len(blob) <= KEY_ID_SIZE:
        raise NoteError("not a signed note: a signature line is malformed")
    return found[1], blob[:KEY_ID_SIZE], blob[KEY_ID_SIZE:]


def _encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _decoded(text: str) -> bytes | None:
    """Decode base64 of the one canonical spelling."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if _encoded(raw) == text else None
