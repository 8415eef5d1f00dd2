"""One value under one subject's key: AES-256-GCM, bound to its record and its place there."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final

from otel_audit.errors import MissingExtraError, OtelAuditError
from otel_audit_postgres.pseudonyms import (
    MARK,
    PSEUDONYM_BYTES,
    EncryptedValue,
    encoded,
)

KEY_BYTES: Final = 32
"""AES-256."""
_NONCE_BYTES: Final = 12
"""96 bits, which GCM takes as they are (NIST SP 800-38D, section 7.1)."""


class WrongKeyError(OtelAuditError):
    """A value that does not open with this key, in this place."""


class SubjectKey:
    """The key of one subject; it shows itself nowhere."""

    __slots__ = ("_aead", "_hash", "_invalid", "erased_before", "key_id")

    def __init__(self, key_id: bytes, key: bytes, *, erased_before: int = 0) -> None:
        """Derive what is needed from 32 random bytes.

        Args:
            key_id: Its id.
            key: The bytes.
            erased_before: When an earlier key of the subject was destroyed, in nanoseconds since
                1970: what happened before that is not to be stored again; 0: never.

        Raises:
            MissingExtraError: `cryptography` is not installed.
        """
        self.key_id, self.erased_before = key_id, erased_before
        self._aead, self._invalid = aead(_derived(key, b"box"))
        self._hash = hmac.new(_derived(key, b"hash"), digestmod=hashlib.sha256)

    def encrypt(self, value: str, record_id: str, path: str) -> str:
        """Encrypt a value; the same one, in the same place, comes out the same each time.

        A record may be delivered twice, and must then be stored once: so the nonce follows from
        what is encrypted and where, and no two different ones can have the same.
        """
        raw, context = value.encode("utf-8", "surrogatepass"), context_of(record_id, path)
        nonce = self._keyed(b"nonce", context, raw)[:_NONCE_BYTES]
        box = nonce + self._aead.encrypt(nonce, raw, context)
        return EncryptedValue(self._pseudonym(path, raw), self.key_id, box).text()

    def decrypt(self, found: EncryptedValue, record_id: str, path: str) -> str:
        """Give a value back.

        Raises:
            WrongKeyError: It was encrypted under another key or for another place, or changed.
        """
        nonce, box = found.box[:_NONCE_BYTES], found.box[_NONCE_BYTES:]
        try:
            raw: bytes = self._aead.decrypt(nonce, box, context_of(record_id, path))
        except (self._invalid, ValueError):
            raise WrongKeyError(
                f"{path} of record {record_id} does not open with its key"
            ) from None
        return raw.decode("utf-8", "surrogatepass")

    def has_made(self, found: EncryptedValue, record_id: str, path: str) -> bool:
        """Whether an encrypted value, its pseudonym included, is by this key and for this place."""
        try:
            value = self.decrypt(found, record_id, path)
        except WrongKeyError:
            return False
        return self.encrypt(value, record_id, path) == found.text()

    def column_text(self, value: str, path: str) -> str:
        """The column's text for this value of the subject, to search by it."""
        return MARK + encoded(self._pseudonym(path, value.encode("utf-8", "surrogatepass")))

    def _pseudonym(self, path: str, raw: bytes) -> bytes:
        return self._keyed(b"pseudonym", path.encode(), raw)[:PSEUDONYM_BYTES]

    def _keyed(self, purpose: bytes, context: bytes, raw: bytes) -> bytes:
        mac = self._hash.copy()
        mac.update(b"%b %d\n" % (purpose, len(context)) + context + raw)
        return mac.digest()


def context_of(record_id: str, path: str) -> bytes:
    """The additional data that binds an encrypted value to its place."""
    return f"otel-audit value 1\n{record_id}\n{path}".encode()


def aead(key: bytes) -> tuple[Any, type[Exception]]:
    """AES-256-GCM, and what it raises for what was changed.

    Raises:
        MissingExtraError: `cryptography` is not installed.
    """
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as missing:
        raise MissingExtraError("encrypting personal values", "encryption") from missing
    return AESGCM(key), InvalidTag


def _derived(key: bytes, purpose: bytes) -> bytes:
    return hmac.new(key, b"otel-audit subject " + purpose, hashlib.sha256).digest()
