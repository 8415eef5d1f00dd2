"""Whose word a verification holds against the database: keys, and anchors outside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from otel_audit_postgres.ledger.anchors import Anchor, AnchorError
from otel_audit_postgres.ledger.findings import Findings, Kind
from otel_audit_postgres.ledger.keys import PublicKey
from otel_audit_postgres.ledger.notes import Checkpoint, NoteError, read_checkpoint, read_note


@dataclass(frozen=True, slots=True)
class Testimony:
    """What an anchor saw last.

    Attributes:
        anchor: The anchor's name.
        checkpoint: What was published there.
    """

    anchor: str
    checkpoint: Checkpoint


async def testimonies(
    anchors: Sequence[Anchor], keys: Sequence[PublicKey], findings: Findings
) -> list[Testimony]:
    """Ask the anchors what they saw last.

    Args:
        anchors: The anchors; one that cannot be asked becomes a warning.
        keys: Who may sign; none takes every note.
        findings: Where forgeries are noted.

    Returns:
        What those say that have something to say.
    """
    found = []
    for anchor in anchors:
        try:
            note = await anchor.last()
        except AnchorError as error:
            findings.warnings.append(f"anchor not checked: {error}")
            continue
        if note is None:
            findings.warnings.append(f"anchor {anchor.name} has no checkpoint")
            continue
        checkpoint, is_signed = judged(note, keys, findings, f"anchor {anchor.name}")
        if checkpoint is None:
            continue
        if keys and not is_signed:
            findings.add(Kind.FORGED_SIGNATURE, f"anchor {anchor.name}: not signed by a given key")
            continue
        found.append(Testimony(anchor.name, checkpoint))
    return found


def judged(
    note: str, keys: Sequence[PublicKey], findings: Findings, where: str
) -> tuple[Checkpoint | None, bool]:
    """Read a note and judge its signatures.

    Args:
        note: The note.
        keys: Who may sign.
        findings: Where a forgery is noted.
        where: What the note is, for the message.

    Returns:
        The checkpoint, None if it cannot be believed; whether one of the keys signed it.
    """
    try:
        checkpoint = read_checkpoint(note)
        return checkpoint, bool(read_note(note).signed_by(keys))
    except NoteError as error:
        findings.add(Kind.FORGED_SIGNATURE, f"{where}: {error}")
        return None, False
