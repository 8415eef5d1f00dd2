"""The text form of encrypted values, and their searchable beginning.

``~p1.PSEUDONYM.KEY.BOX``: a keyed hash, by which equal values of one subject are found; the
id of the subject's key; nonce, ciphertext and tag. Each part in URL-safe base64 without padding.
"""

from __future__ import annotations

import base64
import re
from typing import Final, NamedTuple

MARK: Final = "~p1."
KEY_ID_BYTES: Final = 8
"""Bytes of a key's id: 64 random bits."""
PSEUDONYM_BYTES: Final = 12
"""96 bits: two values of a store practically never have the same pseudonym by chance."""
_PARTS: Final = 3
"""Pseudonym, key's id, and the encrypted value."""
_ENCRYPTED: Final = re.compile(r"(~p1\.[\w-]{16})\.[\w-]+\.[\w-]+", re.ASCII)
SEARCHABLE_LENGTH: Final = len(MARK) + PSEUDONYM_BYTES * 4 // 3
"""Characters up to the end of the pseudonym: base64 has four for three bytes."""


class EncryptedValue(NamedTuple):
    """A value that is stored encrypted."""

    pseudonym: bytes
    key_id: bytes
    box: bytes

    def text(self) -> str:
        """The stored text."""
        return MARK + ".".join(map(encoded, self))


def read_encrypted(text: str) -> EncryptedValue | None:
    """Read an encrypted value; None for any other text."""
    if not text.startswith(MARK):
        return None
    parts = text[len(MARK) :].split(".")
    if len(parts) != _PARTS:
        return None
    try:
        found = EncryptedValue(*map(_decoded, parts))
    except ValueError:
        return None
    sound = (len(found.pseudonym), len(found.key_id)) == (PSEUDONYM_BYTES, KEY_ID_BYTES)
    return found if sound else None


def searchable(text: str | None) -> str | None:
    """The column's text for a value: an encrypted one's pseudonym, otherwise the value."""
    if text is None or not text.startswith(MARK):
        return text
    return text if read_encrypted(text) is None else text[:SEARCHABLE_LENGTH]


def without_ciphertexts(payload: str) -> str:
    """A payload that shows of encrypted values their pseudonyms alone."""
    return _ENCRYPTED.sub(r"\1", payload) if MARK in payload else payload


def encoded(raw: bytes) -> str:
    """URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if encoded(raw) != text:
        raise ValueError
    return raw
