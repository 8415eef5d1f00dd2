"""Decryption of personal values, for keys that still exist."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from otel_audit_postgres.personal.encryption import SubjectKey, WrongKeyError
from otel_audit_postgres.personal.key_store import KeyStore
from otel_audit_postgres.pseudonyms import EncryptedValue, read_encrypted

ERASED: Final = "[ERASED]"
UNREADABLE: Final = "[ENCRYPTED: does not open]"


async def revealed(payload: str, keys: KeyStore) -> dict[str, Any]:
    """Decrypt a record's personal values.

    Args:
        payload: The record's text.
        keys: Where keys are.

    Returns:
        The record; a value whose key was destroyed is `ERASED`.

    Raises:
        StoreError: The keys cannot be read.
    """
    record: dict[str, Any] = json.loads(payload)
    ids = {found.key_id for _, found in _encrypted(record, "")}
    known = await keys.by_ids(ids) if ids else {}
    record_id = record.get("conflict_of") or record.get("record_id", "")
    opened: dict[str, Any] = _opened(record, "", record_id, known)
    return opened


async def erased_paths(payload: str, keys: KeyStore) -> dict[str, bool]:
    """The places of a record's personal values, and whether each was erased.

    Args:
        payload: The record's text.
        keys: Where keys are; none is unwrapped.

    Returns:
        Such as ``{"source.address": True}``; empty for a record without personal values.

    Raises:
        StoreError: The keys cannot be asked for.
    """
    found = dict(_encrypted(json.loads(payload), ""))
    there = await keys.present({one.key_id for one in found.values()}) if found else set()
    return {path: one.key_id not in there for path, one in found.items()}


def key_ids(payload: str) -> set[bytes]:
    """The ids of the keys that a record's values are encrypted with."""
    return {found.key_id for _, found in _encrypted(json.loads(payload), "")}


def _encrypted(value: Any, path: str) -> Iterator[tuple[str, EncryptedValue]]:
    if isinstance(value, str):
        found = read_encrypted(value)
        if found is not None:
            yield path, found
        return
    for place, inner in _parts(value, path):
        yield from _encrypted(inner, place)


def _opened(value: Any, path: str, record_id: str, keys: dict[bytes, SubjectKey]) -> Any:
    if isinstance(value, str):
        return _text(value, path, record_id, keys)
    if isinstance(value, dict):
        return {
            name: _opened(inner, _within(path, name), record_id, keys)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [
            _opened(inner, _within(path, str(number)), record_id, keys)
            for number, inner in enumerate(value)
        ]
    return value


def _text(text: str, path: str, record_id: str, keys: dict[bytes, SubjectKey]) -> str:
    found = read_encrypted(text)
    if found is None:
        return text
    key = keys.get(found.key_id)
    if key is None:
        return ERASED
    try:
        return key.decrypt(found, record_id, path)
    except WrongKeyError:
        return UNREADABLE


def _parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield _within(path, name), inner
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield _within(path, str(number)), inner


def _within(path: str, name: str) -> str:
    """The path of a part, without what stands between for the payload's shape alone."""
    if name == "content" and path in {"request.body", "response.body"}:
        return path
    if name == "values" and path.startswith("changes.") and path.count(".") == 1:
        return path
    return f"{path}.{name}" if path else name
