"""The independent sources of a verification: keys, and anchors outside the database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from otel_audit_postgres.ledger.anchors import Anchor, AnchorError, ask, forgotten
from otel_audit_postgres.ledger.checkpoints import Checkpoint, NoteError, read_checkpoint, read_note
from otel_audit_postgres.ledger.keys import PublicKey
from otel_audit_postgres.ledger.verify.findings import Findings, ProblemKind


@dataclass(frozen=True, slots=True)
class AnchorReading:
    """An anchor's last checkpoint.

    Attributes:
        anchor: The anchor's name.
        checkpoint: What was published there.
    """

    anchor: str
    checkpoint: Checkpoint


@dataclass(slots=True)
class AnchorReadings:
    """The last checkpoints of all anchors.

    Attributes:
        readings: Of those that have something to say.
        silent: Those that know of no checkpoint.
    """

    readings: list[AnchorReading] = field(default_factory=list)
    silent: list[Anchor] = field(default_factory=list)

    def judge_silence(self, size: int, findings: Findings) -> None:
        """Say what it means that some know nothing, once it is known how long the log is."""
        for anchor in self.silent:
            why = forgotten(anchor, size)
            if why is None:
                findings.warnings.append(f"anchor {anchor.name} has no checkpoint")
            else:
                findings.add(ProblemKind.EMPTIED_ANCHOR, why)
        if size:
            findings.warnings.extend(
                f"anchor {one.anchor} knows the log's beginning alone"
                for one in self.readings
                if not one.checkpoint.size
            )


async def read_anchors(
    anchors: Sequence[Anchor], keys: Sequence[PublicKey], findings: Findings
) -> AnchorReadings:
    """Read the last checkpoints of the anchors.

    Args:
        anchors: The anchors; one that cannot be read becomes a warning.
        keys: Who may sign; none takes every note.
        findings: Where forgeries are noted.

    Returns:
        What they say.
    """
    anchored = AnchorReadings()
    answers = await asyncio.gather(*map(_asked, anchors))
    for anchor, note in zip(anchors, answers, strict=True):
        if isinstance(note, AnchorError):
            findings.warnings.append(f"anchor not checked: {note}")
            continue
        if note is None:
            anchored.silent.append(anchor)
            continue
        checkpoint, is_signed = judged(note, keys, findings, f"anchor {anchor.name}")
        if checkpoint is None:
            continue
        if keys and not is_signed:
            findings.add(
                ProblemKind.FORGED_SIGNATURE, f"anchor {anchor.name}: not signed by a given key"
            )
            continue
        anchored.readings.append(AnchorReading(anchor.name, checkpoint))
    return anchored


async def _asked(anchor: Anchor) -> str | AnchorError | None:
    try:
        return await ask(anchor)
    except AnchorError as error:
        return error


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
        The checkpoint, None if it cannot be trusted; whether one of the keys signed it.
    """
    try:
        checkpoint = read_checkpoint(note)
        return checkpoint, bool(read_note(note).signed_by(keys))
    except NoteError as error:
        findings.add(ProblemKind.FORGED_SIGNATURE, f"{where}: {error}")
        return None, False
