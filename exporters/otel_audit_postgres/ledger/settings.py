"""Keys and anchors of the ledger, from the settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit_postgres.ledger.anchors import anchors_from
from otel_audit_postgres.ledger.keys import (
    PublicKey,
    Signer,
    SigningKey,
    read_key_file,
    read_public_key,
    read_signing_key,
)
from otel_audit_postgres.ledger.sealer import Sealer
from otel_audit_postgres.plugins import called

_PLUS_SIGNS = 2  # of a key in its text form, at least


def chosen_signer(config: AuditConfig, key_file: Path | None = None) -> Signer | None:
    """Take the signer of the argument, else of the settings; None if there is none.

    Raises:
        ConfigurationError: It cannot be read or made, or is not a key.
    """
    if key_file is not None:
        return read_key_file(key_file, "--key-file")
    if config.signer is not None:
        signer: Signer = called(
            config.signer,
            "OTEL_AUDIT_SIGNER",
            kind="a signer",
            members=("name", "key_id", "sign()"),
        )
        return signer
    return _signing_key(config)


def _signing_key(config: AuditConfig) -> SigningKey | None:
    if config.signing_key_file is not None:
        return read_key_file(config.signing_key_file, "OTEL_AUDIT_SIGNING_KEY_FILE")
    if config.signing_key is not None:
        return read_signing_key(config.signing_key.get_secret_value(), "OTEL_AUDIT_SIGNING_KEY")
    return None


def chosen_public_keys(config: AuditConfig, keys: Sequence[str] = ()) -> list[PublicKey]:
    """Take the public keys of the argument, else of the settings, else that of the signing key.

    Args:
        config: The settings.
        keys: Keys in their text form, or files that hold one.

    Raises:
        ConfigurationError: One is not a key.
    """
    if keys:
        return [_public_key(key, "--key") for key in keys]
    if config.verify_keys:
        return [_public_key(key, "OTEL_AUDIT_VERIFY_KEYS") for key in config.verify_keys]
    key = _signing_key(config)
    return [] if key is None else [key.public]


def sealer_from(config: AuditConfig) -> Sealer:
    """Make the sealer of the settings; nothing is opened yet.

    Args:
        config: The settings; with a DSN.

    Raises:
        ConfigurationError: There is no DSN, or key or anchor are unfit.
    """
    dsn = config.asyncpg_dsn
    if dsn is None:
        raise ConfigurationError("sealing needs the audit store: set OTEL_AUDIT_DSN")
    return Sealer(
        dsn,
        signer=chosen_signer(config),
        anchors=anchors_from(config.anchor),
        batch=config.seal_batch,
        connect_timeout=config.connect_timeout,
    )


def _public_key(text: str, setting: str) -> PublicKey:
    if text.count("+") < _PLUS_SIGNS:
        path = Path(text)
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{setting}: neither a key, name+id+base64, nor a file that can be read "
                f"({type(error).__name__})"
            ) from None
    return read_public_key(text, setting)
