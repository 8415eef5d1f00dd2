"""Labels that stand for a client's secret: its keyed hash, as redaction spells it too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_audit.config import PREFIX
from otel_audit.errors import ConfigurationError
from otel_audit.redaction.hashing import KeyedHash

if TYPE_CHECKING:
    from otel_audit.config import AuditConfig


def keyed_hash(config: AuditConfig) -> KeyedHash:
    """Make the hash that the settings describe; false where they give no key.

    The same key and spelling as in redacted values, so that one search finds both.

    Raises:
        ConfigurationError: The key's file cannot be read.
    """
    key = b"" if config.hmac_key is None else config.hmac_key.get_secret_value().encode()
    if config.hmac_key_file is not None:
        try:
            key = config.hmac_key_file.read_bytes().strip()
        except OSError as error:
            raise ConfigurationError(f"{PREFIX}HMAC_KEY_FILE: {error.strerror}") from None
    return KeyedHash(key_id=config.hmac_key_id, key=key)
