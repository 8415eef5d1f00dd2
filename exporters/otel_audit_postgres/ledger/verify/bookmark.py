"""The last verification's result, so that the next one need not read all rows again.

It is kept outside the database, and trusted no more than an anchor: the current log must begin with
its checkpoint. A false bookmark could only make `verify` skip rows. So its file must belong to the
user who verifies, a known key must have signed its checkpoint, and some of the earlier rows are
read all the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_audit._util.durable_file import replace_durably
from otel_audit._util.private_file import others_may_write
from otel_audit.errors import ConfigurationError
from otel_audit_postgres.ledger.checkpoints import Checkpoint, NoteError, read_checkpoint, read_note
from otel_audit_postgres.ledger.keys import PublicKey

FORMAT: Final = "otel-audit verified 1"
SPOT_CHECKS: Final = 1000
"""Rows before the remembered ones that are read again, chosen at random."""

_AFRESH: Final = "remove it, and verify everything once"


@dataclass(frozen=True, slots=True)
class Bookmark:
    """The checkpoint that the last verification reached.

    Attributes:
        note: The last checkpoint that it saw.
        checkpoint: What that says.
    """

    note: str
    checkpoint: Checkpoint


def recall(path: Path, keys: Sequence[PublicKey]) -> Bookmark | None:
    """Read what was remembered; None if nothing was.

    Args:
        path: The file.
        keys: Who may have signed; none takes what is unsigned.

    Raises:
        ConfigurationError: It cannot be trusted; the message says why, and what to do.
    """
    try:
        facts, text = path.stat(), path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read ({type(error).__name__})") from None
    if others_may_write(facts):
        raise ConfigurationError(f"{path}: others could have written what was verified: {_AFRESH}")
    try:
        stored = json.loads(text)
        if stored["format"] != FORMAT:
            raise ConfigurationError(f"{path} is not what a verification remembers: {_AFRESH}")
        note = str(stored["checkpoint"])
        checkpoint, signers = read_checkpoint(note), read_note(note).signed_by(keys)
    except (ValueError, KeyError, TypeError, NoteError) as error:
        raise ConfigurationError(
            f"{path} is not what a verification remembers ({type(error).__name__}): {_AFRESH}"
        ) from None
    if keys and not signers:
        raise ConfigurationError(
            f"{path}: the checkpoint in it is not signed by a given key: {_AFRESH}"
        )
    return Bookmark(note, checkpoint)


def remember(path: Path, note: str) -> None:
    """Write down how far a verification came.

    Args:
        path: The file.
        note: The last checkpoint.

    Raises:
        ConfigurationError: It cannot be written.
    """
    text = json.dumps({"format": FORMAT, "checkpoint": note}, ensure_ascii=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_durably(path, text.encode())
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written ({type(error).__name__}): the next verification reads all"
        ) from None
