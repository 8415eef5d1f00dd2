"""Keyed hashes of removed values: equal values can be found without being known."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import msgspec

from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.redaction.placeholders import REDACTED
from otel_audit.setting_values import PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic import SecretStr

_encode = msgspec.json.Encoder(order="deterministic").encode


@dataclass(frozen=True, slots=True)
class KeyedHash:
    """HMAC-SHA-256 (RFC 2104) under one current key, with older keys for searching.

    Attributes:
        key_id: Names the current key in every hash that it made.
        key: The current key; empty where none is configured.
        previous: Older keys by their ids.
    """

    key_id: str = "k1"
    key: bytes = field(default=b"", repr=False)
    previous: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def from_config(cls, config: AuditConfig) -> Self:
        """Make the hash that the settings describe; false where they give no key.

        Raises:
            ConfigurationError: The key's file cannot be read, or is empty.
        """
        file = config.hmac_key_file
        return cls(
            key_id=config.hmac_key_id,
            key=_read_key(file) if file is not None else _secret(config.hmac_key),
            previous={name: _secret(key) for name, key in config.hmac_previous_keys.items()},
        )

    def __bool__(self) -> bool:
        return bool(self.key)

    def of(self, value: Any) -> str:
        """Hash a value under the current key.

        Args:
            value: A scalar; ``1`` and ``"1"`` have the same hash.

        Returns:
            ``hmac:<key id>:<64 hex digits>``, or ``[REDACTED]`` where there is no key, or the
            value has no text of its own.
        """
        text = _bytes_of(value)
        if not self.key or text is None:
            return REDACTED
        return _spell(self.key_id, self.key, text)

    def candidates(self, value: Any) -> list[str]:
        """Hash a value under every key, the current one first, to search through a rotation."""
        text = _bytes_of(value)
        if not self.key or text is None:
            return []
        keys = {self.key_id: self.key, **self.previous}
        return [_spell(key_id, key, text) for key_id, key in keys.items()]


def _spell(key_id: str, key: bytes, text: bytes) -> str:
    return f"hmac:{key_id}:{hmac.new(key, text, hashlib.sha256).hexdigest()}"


def _bytes_of(value: Any) -> bytes | None:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    try:
        text = _encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    # a UUID or a date is spelled as a JSON string; its hash is that of its text
    return text[1:-1] if text[:1] == b'"' else text


def _secret(key: SecretStr | None) -> bytes:
    return b"" if key is None else key.get_secret_value().encode()


def _read_key(file: Path) -> bytes:
    try:
        key = file.read_bytes().strip()
    except OSError as error:
        raise ConfigurationError(f"{PREFIX}HMAC_KEY_FILE: {error.strerror}") from None
    if not key:
        raise ConfigurationError(f"{PREFIX}HMAC_KEY_FILE: the file is empty")
    return key
