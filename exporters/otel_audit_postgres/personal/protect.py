"""Encryption of the personal values of a record."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from otel_audit._util.postgres_dsn import plain_dsn
from otel_audit._util.text import storable
from otel_audit.config import AuditConfig
from otel_audit.delivery.sanitize import written_down
from otel_audit.errors import ConfigurationError
from otel_audit.record import AuditRecord, Body, Change
from otel_audit_postgres.personal.encryption import SubjectKey
from otel_audit_postgres.personal.key_store import KeyStore, KeyWrapper, Subject, read_wrapper
from otel_audit_postgres.personal.reveal import ERASED
from otel_audit_postgres.plugins import called
from otel_audit_postgres.pseudonyms import read_encrypted

_FIELDS: Final = {
    "actor.email": ("actor", "email"),
    "source.address": ("source", "address"),
    "source.user_agent": ("source", "user_agent"),
    "source.session_id": ("source", "session_id"),
    "request.path": ("request", "path"),
    "request.query": ("request", "query"),
    "error.message": ("error", "message"),
}
_BODIES: Final = ("request.body", "response.body")
_NAMED: Final = re.compile(
    r"(metadata|request\.headers|response\.headers|changes\.[\w.]+)\.([\w-]+)"
)

Encrypt = Callable[[str, str], str]
"""Encrypts a value by its path."""


@dataclass(frozen=True, slots=True)
class PersonalFields:
    """The names of personal values.

    Attributes:
        fields: Of `_FIELDS`.
        bodies: Bodies, as a whole.
        named: By where they stand: names of metadata, headers, and columns of an entity.
    """

    fields: frozenset[str]
    bodies: frozenset[str]
    named: dict[str, frozenset[str]]

    def columns(self, change: Change) -> frozenset[str]:
        """The personal columns of a change's entity."""
        by_class = self.named.get(f"changes.{change.entity}", frozenset())
        by_table = self.named.get(f"changes.{change.table}", frozenset())
        by_noun = self.named.get(f"changes.{change.name}", frozenset())
        return by_class | by_table | by_noun | frozenset(change.personal)


def read_fields(names: Sequence[str], setting: str = "OTEL_AUDIT_PERSONAL") -> PersonalFields:
    """Read which values are personal.

    Args:
        names: Such as ``actor.email``, ``request.body``, ``metadata.name``,
            ``request.headers.referer``, ``response.headers.location``,
            ``changes.Customer.email``.
        setting: Where that was said, for messages.

    Raises:
        ConfigurationError: One names nothing that can be encrypted.
    """
    fields, bodies, named = set[str](), set[str](), dict[str, set[str]]()
    for name in names:
        found = _NAMED.fullmatch(name)
        if name in _FIELDS:
            fields.add(name)
        elif name in _BODIES:
            bodies.add(name)
        elif found:
            # records have the names of headers in lower case
            is_header = found[1].endswith(".headers")
            named.setdefault(found[1], set()).add(found[2].lower() if is_header else found[2])
        else:
            known = ", ".join([*_FIELDS, *_BODIES])
            raise ConfigurationError(
                f"{setting}: {name[:60]!r} names nothing: {known}, metadata.NAME, "
                "request.headers.NAME, response.headers.NAME, changes.ENTITY.COLUMN"
            )
    return PersonalFields(
        frozenset(fields), frozenset(bodies), {key: frozenset(of) for key, of in named.items()}
    )


class Protector:
    """Encrypts personal values of records, before they are hashed and stored."""

    def __init__(self, keys: KeyStore, fields: PersonalFields) -> None:
        """Remember the keys and the fields.

        Args:
            keys: The store of the subjects' keys.
            fields: Which fields of a record are encrypted.
        """
        self._keys, self._fields = keys, fields

    async def protect(self, records: Sequence[AuditRecord]) -> list[AuditRecord]:
        """The records with their personal values encrypted, each under its subject's key.

        What was on its way when its subject was erased comes without them: `ERASED`.

        Raises:
            StoreUnavailableError: No key can be had now; nothing may be stored in clear.
        """
        latest: dict[Subject, int] = {}
        for record in records:
            for subject in self._subjects(record):
                latest[subject] = max(latest.get(subject, 0), record.occurred_at)
        keys = await self._keys.keys_for(latest)
        return [self._protected(record, keys) for record in records]

    async def close(self) -> None:
        """Close the connection to the database of keys."""
        await self._keys.close()

    def _subjects(self, record: AuditRecord) -> Iterator[Subject]:
        yield actor_of(record)
        for change in record.changes:
            if self._fields.columns(change):
                yield Subject(_tenant(record), change.reference)

    def _protected(self, record: AuditRecord, keys: dict[Subject, SubjectKey]) -> AuditRecord:
        key, record_id = _key_of(actor_of(record), record, keys), record.record_id

        def encrypt(value: str, path: str) -> str:
            return _encrypted(key, value, record_id, path)

        changed: dict[str, Any] = {}
        for name in self._fields.fields:
            part_name, attribute = _FIELDS[name]
            part = changed.get(part_name, getattr(record, part_name))
            value = None if part is None else getattr(part, attribute)
            if isinstance(value, str) and value:
                changed[part_name] = msgspec.structs.replace(
                    part, **{attribute: encrypt(value, name)}
                )
        for part_name in ("request", "response"):
            part = changed.get(part_name, getattr(record, part_name))
            if part is not None:
                changed[part_name] = self._exchange(part, part_name, encrypt)
        if "metadata" in self._fields.named:
            changed["metadata"] = _texts(
                record.metadata, self._fields.named["metadata"], "metadata", encrypt
            )
        if record.changes:
            changed["changes"] = tuple(
                self._change(change, number, record, keys)
                for number, change in enumerate(record.changes)
            )
        return msgspec.structs.replace(record, **changed) if changed else record

    def _exchange(self, part: Any, name: str, encrypt: Encrypt) -> Any:
        replaced: dict[str, Any] = {}
        if f"{name}.body" in self._fields.bodies and part.body is not None:
            replaced["body"] = _body(part.body, f"{name}.body", encrypt)
        headers = self._fields.named.get(f"{name}.headers")
        if headers and part.headers:
            replaced["headers"] = _texts(part.headers, headers, f"{name}.headers", encrypt)
        return msgspec.structs.replace(part, **replaced) if replaced else part

    def _change(
        self, change: Change, number: int, record: AuditRecord, keys: dict[Subject, SubjectKey]
    ) -> Change:
        columns = self._fields.columns(change)
        if not columns:
            return change
        key = _key_of(Subject(_tenant(record), change.reference), record, keys)
        values = {
            name: [
                _encrypted(key, _text(one), record.record_id, f"changes.{number}.{name}.{place}")
                if name in columns and one is not None
                else one
                for place, one in enumerate(pair)
            ]
            for name, pair in change.values.items()
        }
        place = f"changes.{number}.parameters"
        return msgspec.structs.replace(
            change,
            values=values,
            # a patch repeats the value
            patches={name: one for name, one in change.patches.items() if name not in columns},
            parameters=_leaves(change.parameters, place, key, record.record_id),
        )


def protector_from(config: AuditConfig) -> Protector | None:
    """The protector that the settings describe; None if there are no keys for it.

    Raises:
        ConfigurationError: A setting is missing or unfit.
    """
    keys = key_store_from(config)
    return None if keys is None else Protector(keys, read_fields(config.personal))


def key_store_from(config: AuditConfig) -> KeyStore | None:
    """The store of keys that the settings name; None if there is none.

    Raises:
        ConfigurationError: A setting is missing or unfit.
    """
    if config.keys_dsn is None:
        return None
    pending = config.spool_path / "keys"
    return KeyStore(
        plain_dsn(config.keys_dsn.get_secret_value()),
        _wrapper(config),
        pending=pending,
        timeout=config.connect_timeout,
    )


def _wrapper(config: AuditConfig) -> KeyWrapper:
    if config.keys_kek is not None:
        made: KeyWrapper = called(
            config.keys_kek,
            "OTEL_AUDIT_KEYS_KEK",
            kind="who wraps keys",
            members=("wrap()", "unwrap()", "subject_hash()"),
        )
        return made
    if config.keys_kek_file is None:
        raise ConfigurationError(
            "OTEL_AUDIT_KEYS_KEK_FILE: needed with OTEL_AUDIT_KEYS_DSN; make one: "
            "otel-audit subject init --kek-file PATH"
        )
    return read_wrapper(config.keys_kek_file)


def actor_of(record: AuditRecord) -> Subject:
    """The subject of the record's own values: its actor."""
    return Subject(_tenant(record), record.actor.id)


def _key_of(
    subject: Subject, record: AuditRecord, keys: dict[Subject, SubjectKey]
) -> SubjectKey | None:
    """The key for a record's values; None if their subject was erased after it happened."""
    key = keys.get(subject)
    return None if key is None or record.occurred_at < key.erased_before else key


def _tenant(record: AuditRecord) -> str:
    return "" if record.tenant is None else record.tenant.id


def _texts(
    found: dict[str, Any], names: frozenset[str], place: str, encrypt: Encrypt
) -> dict[str, Any]:
    return {
        name: encrypt(_text(value), f"{place}.{name}")
        if name in names and value is not None
        else value
        for name, value in found.items()
    }


def _leaves(value: Any, path: str, key: SubjectKey | None, record_id: str) -> Any:
    """Encrypt every text within parameters: which of them is which column, they do not say."""
    if isinstance(value, str):
        return _encrypted(key, value, record_id, path)
    if isinstance(value, dict):
        # bound to the name as it is stored
        return {
            name: _leaves(one, f"{path}.{storable(name)}", key, record_id)
            for name, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            _leaves(one, f"{path}.{number}", key, record_id) for number, one in enumerate(value)
        ]
    return value


def _encrypted(key: SubjectKey | None, value: str, record_id: str, path: str) -> str:
    """Encrypt a value; what is encrypted already, as it comes from the quarantine, stays.

    A text that only looks so is a value: with somebody's pseudonym in it, it would be found as his.
    """
    found = read_encrypted(value)
    if found is not None and (key is None or key.has_made(found, record_id, path)):
        return value
    return ERASED if key is None else key.encrypt(value, record_id, path)


def _text(value: Any) -> str:
    """A value as text: what is not a text itself as JSON."""
    return value if isinstance(value, str) else written_down(value).decode()


def _body(body: Body, path: str, encrypt: Encrypt) -> Body:
    """A body whose whole content is encrypted; its hash is that of the encrypted content.

    A hash of the content itself would let somebody who guesses the content confirm it.
    """
    text = body.text
    if text is None:
        return body
    content = msgspec.json.encode(encrypt(text, path))
    return msgspec.structs.replace(
        body, content=msgspec.Raw(content), sha256=hashlib.sha256(content).hexdigest()
    )
