"""Ed25519 keys of signed notes, in the text forms that Go's sumdb tools use.

A public key is ``name+id+base64(0x01 || key)`` (C2SP ``signed-note``, "verifier keys"), a private
one ``PRIVATE+KEY+name+id+base64(0x01 || seed)``; the id is the first 4 bytes of
``SHA-256(name || 0x0A || 0x01 || public key)``, in hex.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from otel_audit._util.durable_file import create_durably
from otel_audit._util.private_file import is_private
from otel_audit.errors import ConfigurationError, MissingExtraError

KEY_ID_SIZE: Final = 4
"""Bytes of a key's id in a signed note (C2SP signed-note)."""
_ED25519: Final = b"\x01"
_SEED_SIZE: Final = 32
"""Bytes of an Ed25519 key, private or public (RFC 8032)."""
_PRIVATE: Final = "PRIVATE+KEY+"


class Signer(Protocol):
    """Signs checkpoints: with a local key, or with one in a key management service."""

    @property
    def name(self) -> str:
        """The key's name, without spaces and plus signs."""

    @property
    def key_id(self) -> bytes:
        """The key's id, 4 bytes."""

    def sign(self, message: bytes) -> bytes:
        """Sign with Ed25519 (RFC 8032), 64 bytes."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that verifies signatures.

    Attributes:
        name: Its name, without spaces and plus signs.
        raw: The Ed25519 public key, 32 bytes.
    """

    name: str
    raw: bytes

    @property
    def key_id(self) -> bytes:
        """Its id, 4 bytes."""
        named = self.name.encode() + b"\n" + _ED25519 + self.raw
        return hashlib.sha256(named).digest()[:KEY_ID_SIZE]

    def text(self) -> str:
        """The key in its text form (``vkey``)."""
        return f"{self.name}+{self.key_id.hex()}+{_encoded(_ED25519 + self.raw)}"

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether a signature of this message is by this key."""
        ed25519 = _ed25519()
        from cryptography.exceptions import InvalidSignature

        try:
            ed25519.Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs; it shows itself nowhere.

    Attributes:
        name: Its name, without spaces and plus signs.
        public: Its public half.
        seed: The Ed25519 seed, 32 bytes.
    """

    name: str
    public: PublicKey
    seed: bytes = field(repr=False)

    @property
    def key_id(self) -> bytes:
        """Its id, 4 bytes."""
        return self.public.key_id

    def sign(self, message: bytes) -> bytes:
        """Sign a message, 64 bytes."""
        signature: bytes = _ed25519().Ed25519PrivateKey.from_private_bytes(self.seed).sign(message)
        return signature

    def text(self) -> str:
        """The key in its text form. It is a secret: for its file only."""
        return f"{_PRIVATE}{self.name}+{self.key_id.hex()}+{_encoded(_ED25519 + self.seed)}"


def generate(name: str) -> SigningKey:
    """Make a key.

    Args:
        name: What to call it; by C2SP's advice the origin of the log that it signs.

    Raises:
        ConfigurationError: The name has spaces or plus signs, or is none.
        MissingExtraError: `cryptography` is not installed.
    """
    return _signing_key(_checked(name, "the key's name"), secrets.token_bytes(_SEED_SIZE))


def read_signing_key(text: str, setting: str) -> SigningKey:
    """Read a private key from its text form.

    Args:
        text: The text.
        setting: Where it came from, for the message; the message never shows the text.

    Raises:
        ConfigurationError: It is none.
        MissingExtraError: `cryptography` is not installed.
    """
    text = text.strip()
    if not text.startswith(_PRIVATE):
        raise ConfigurationError(f"{setting}: not a private key; make one: `otel-audit keygen`")
    name, key_id, seed = _parts(text.removeprefix(_PRIVATE), setting)
    key = _signing_key(name, seed)
    _refuse_other_id(key.key_id, key_id, setting)
    return key


def read_public_key(text: str, setting: str) -> PublicKey:
    """Read a public key from its text form.

    Args:
        text: The text.
        setting: Where it came from, for the message.

    Raises:
        ConfigurationError: It is none.
    """
    text = text.strip()
    if text.startswith(_PRIVATE):
        raise ConfigurationError(f"{setting}: this is a private key; give the public one")
    name, key_id, raw = _parts(text, setting)
    key = PublicKey(name, raw)
    _refuse_other_id(key.key_id, key_id, setting)
    return key


def _refuse_other_id(made: bytes, stated: str, setting: str) -> None:
    if made.hex() != stated:
        raise ConfigurationError(f"{setting}: the key's name, id and bytes do not belong together")


def read_key_file(path: Path, setting: str) -> SigningKey:
    """Read a private key from its file.

    Raises:
        ConfigurationError: The file cannot be read, others may read it, or it holds no key.
        MissingExtraError: `cryptography` is not installed.
    """
    try:
        facts, text = path.stat(), path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{setting}: the file cannot be read ({type(error).__name__})"
        ) from None
    if not is_private(facts):
        raise ConfigurationError(f"{setting}: others may read the file; chmod 600 it")
    return read_signing_key(text, setting)


def write_key_files(key: SigningKey, path: Path) -> Path:
    """Write a private key, readable for its owner alone, and the public key in a file next to it.

    Args:
        key: The key.
        path: The private key's file; the public one's has ``.pub`` after it.

    Returns:
        The public key's file.

    Raises:
        ConfigurationError: A file is there already, or cannot be written.
    """
    public = path.with_name(f"{path.name}.pub")
    try:
        for file, text, mode in ((path, key.text(), 0o600), (public, key.public.text(), 0o644)):
            create_durably(file, f"{text}\n".encode(), mode)
    except FileExistsError as error:
        raise ConfigurationError(f"keygen: {error.filename} is there already") from None
    except OSError as error:
        raise ConfigurationError(
            f"keygen: {error.filename} cannot be written ({type(error).__name__})"
        ) from None
    return public


def _signing_key(name: str, seed: bytes) -> SigningKey:
    private = _ed25519().Ed25519PrivateKey.from_private_bytes(seed)
    return SigningKey(name, PublicKey(name, private.public_key().public_bytes_raw()), seed)


def _parts(text: str, setting: str) -> tuple[str, str, bytes]:
    pieces = text.split("+", 2)
    try:
        name, key_id, encoded = pieces
        raw = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        raise ConfigurationError(f"{setting}: a key looks like name+id+base64") from None
    if len(raw) != 1 + _SEED_SIZE or raw[:1] != _ED25519:
        raise ConfigurationError(f"{setting}: not an Ed25519 key")
    return _checked(name, setting), key_id, raw[1:]


def _checked(name: str, setting: str) -> str:
    if not name or "+" in name or any(letter.isspace() for letter in name):
        raise ConfigurationError(f"{setting}: a name without spaces and plus signs is needed")
    return name


def _encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as missing:
        raise MissingExtraError("signing and verifying the ledger", "encryption") from missing
    return ed25519
