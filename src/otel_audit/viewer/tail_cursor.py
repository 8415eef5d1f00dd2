"""Event ids, by which a live tail continues after a lost connection."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Final

from cryptography.fernet import Fernet, InvalidToken

_LONGEST: Final = 300
"""Characters of a cursor: ours have fewer."""


@dataclass(frozen=True, slots=True)
class TailPosition:
    """A position in the log, the last record shown, or both."""

    position: int | None = None
    record: uuid.UUID | None = None


class TailCursors:
    """Makes and reads the ids of events.

    A position tells how large the log is, and with it how active others are. So a tenant's ids have
    it encrypted, by a key of this process; another process goes on behind the last record shown.
    """

    def __init__(self) -> None:
        """Make a new key: ids of another process are not readable here."""
        self._cipher = Fernet(Fernet.generate_key())

    def make(self, place: TailPosition, *, plain: bool) -> str:
        """The id of an event; a tail continues after it."""
        if plain:
            return str(place.position)
        token = self._cipher.encrypt(str(place.position).encode()).decode()
        return f"{token}.{'' if place.record is None else place.record}"

    def read(self, text: str | None, *, plain: bool) -> TailPosition:
        """The place of an id; an empty place if the id is not valid."""
        if not text or len(text) > _LONGEST:
            return TailPosition()
        if plain:
            is_number = text.isdecimal() and len(text) < 19  # noqa: PLR2004 - a bigint
            return TailPosition(int(text) if is_number else None)
        token, _, last = text.partition(".")
        try:
            record = uuid.UUID(last) if last else None
        except ValueError:
            record = None
        return TailPosition(self._decrypted(token), record)

    def _decrypted(self, token: str) -> int | None:
        try:
            return int(self._cipher.decrypt(token))
        except (InvalidToken, ValueError):
            return None
