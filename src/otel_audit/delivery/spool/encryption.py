"""Encryption at rest: encrypts a payload before it is appended, and decrypts it."""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Final, Protocol

from otel_audit._util.spill import Cipher
from otel_audit.delivery.spool.errors import EncryptionError
from otel_audit.errors import ConfigurationError, MissingExtraError

KEY_BYTES: Final = 32
"""AES-256."""
_NONCE_BYTES: Final = 12
"""96 bits, which GCM takes as they are (NIST SP 800-38D, section 7.1)."""
_TAG_BYTES: Final = 16
"""The whole tag of GCM."""


class Encryption(Protocol):
    """Makes the cipher of each spool."""

    @property
    def key_id(self) -> str:
        """Identifies the key, and reveals nothing about it; written into the spool's manifest."""

    def for_spool(self, producer_id: str) -> Cipher:
        """Make the cipher of one spool."""


class AesGcmEncryption:
    """AES-256-GCM (NIST SP 800-38D) with a key of its own for every spool.

    One key may encrypt 2**32 payloads under random nonces; a spool is one process's, and gets its
    key by HMAC-SHA256 from the master key and the producer's id.
    """

    def __init__(self, key: bytes) -> None:
        """Remember the master key.

        Args:
            key: 32 random bytes.

        Raises:
            ConfigurationError: It has another length.
            MissingExtraError: The package `cryptography` is not installed.
        """
        if len(key) != KEY_BYTES:
            raise ConfigurationError(
                f"OTEL_AUDIT_SPOOL_KEY: {KEY_BYTES} random bytes are needed; "
                f"make them with: openssl rand -hex {KEY_BYTES}"
            )
        try:
            import cryptography  # noqa: F401 - fails here rather than at the first spool
        except ImportError as error:
            raise MissingExtraError("OTEL_AUDIT_SPOOL_KEY", "encryption") from error
        self._key = key

    @property
    def key_id(self) -> str:
        """The first 8 bytes of an HMAC under the key, in hex."""
        return self._derive("key id").hex()[:16]

    def for_spool(self, producer_id: str) -> Cipher:
        """Make the cipher of one spool."""
        return _AesGcm(self._derive(f"spool {producer_id}"))

    def _derive(self, purpose: str) -> bytes:
        return hmac.new(self._key, f"otel-audit {purpose}".encode(), hashlib.sha256).digest()


class _AesGcm:
    def __init__(self, key: bytes) -> None:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._aead = AESGCM(key)
        self._invalid = InvalidTag

    def encrypt(self, payload: bytes, context: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, payload, context)

    def decrypt(self, encrypted: bytes, context: bytes) -> bytes:
        if len(encrypted) < _NONCE_BYTES + _TAG_BYTES:
            raise EncryptionError("an encrypted payload is too short to be one")
        try:
            return self._aead.decrypt(encrypted[:_NONCE_BYTES], encrypted[_NONCE_BYTES:], context)
        except self._invalid:
            raise EncryptionError("an encrypted payload does not open with this key") from None


def context_of(kind: int, record_id: bytes) -> bytes:
    """The additional data that binds an encrypted payload to its place."""
    return bytes((kind,)) + record_id
