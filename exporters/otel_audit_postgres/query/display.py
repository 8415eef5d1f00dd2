"""Records for display: changes, actors, sources, and unknown values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import msgspec

from otel_audit.action.compose import with_exchange
from otel_audit.record import AuditRecord, Body, Change
from otel_audit.redaction.placeholders import REDACTED, is_token
from otel_audit_postgres.pseudonyms import read_encrypted
from otel_audit_postgres.rows import record_from_payload

CellKind = Literal["value", "none", "redacted", "unknown", "erased", "encrypted"]

_LONGEST_BODY: Final = 200_000
"""Characters of a body that a page shows."""
_UNKNOWN_BEFORE: Final = "not loaded"
_UNKNOWN_AFTER: Final = "set by the database"


@dataclass(frozen=True, slots=True)
class Cell:
    """One value: as text, and what kind of value it is."""

    kind: CellKind
    text: str


@dataclass(frozen=True, slots=True)
class ColumnChange:
    """One column that changed."""

    column: str
    before: Cell
    after: Cell
    patch: str = ""


@dataclass(frozen=True, slots=True)
class EntityChange:
    """One change of an entity."""

    operation: str
    kind: str
    name: str
    reference: str | None
    columns: tuple[ColumnChange, ...]
    note: str
    statement: str = ""
    parameters: str = ""
    rows: int | None = None
    transaction: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """A body, or why there is none."""

    text: str
    about: str


def read_record(payload: str, *, bodies: bool) -> AuditRecord | None:
    """Read a record's text; None if it is not a valid record.

    Args:
        payload: The text, as stored.
        bodies: Keep the bodies of request and response.
    """
    try:
        record = record_from_payload(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return record if bodies else _without_bodies(record)


def entity_changes(record: AuditRecord, entity: str | None = None) -> tuple[EntityChange, ...]:
    """Return what changed.

    Args:
        record: The record.
        entity: Only what is about this one, such as ``order:1``.
    """
    return tuple(
        _change(change, record.transaction)
        for change in record.changes
        if entity is None or entity == _reference(change) or entity in change.related
    )


def state_after(records: Iterable[AuditRecord], entity: str) -> Mapping[str, Cell] | None:
    """Put together an entity's columns from its records, the oldest first.

    Returns:
        Column by column what is known; None if it is deleted, or nothing is known.
    """
    state: dict[str, Cell] | None = None
    for record in records:
        if record.transaction == "rolled_back":
            continue
        for change in record.changes:
            if change.kind != "entity" or _reference(change) != entity:
                continue
            if (change.transaction or record.transaction) == "rolled_back":
                continue
            if change.operation == "delete":
                state = None
                continue
            state = {} if state is None else state
            state |= {column: as_cell(value) for column, value in change.key.items()}
            state |= {one.column: one.after for one in _columns(change)}
    return state


def as_cell(value: Any) -> Cell:
    """Tell a value."""
    if value is None:
        return Cell("none", "none")
    if isinstance(value, str):
        if value.startswith("[ERASED"):
            return Cell("erased", value)
        if read_encrypted(value) is not None:
            return Cell("encrypted", "encrypted: its key is not known here")
        if is_token(value) or value.startswith((REDACTED, "[WITHHELD")):
            return Cell("redacted", value)
        return Cell("value", value)
    return Cell("value", _compact(value))


def content_of(body: Body | None) -> Content | None:
    """Tell a body, laid out over lines where it is JSON."""
    if body is None:
        return None
    facts = [body.content_type, None if body.size is None else f"{body.size:,} bytes", body.absent]
    about = ", ".join(fact.replace("_", " ") for fact in facts if fact)
    text = body.text
    whole = None if text is None else as_cell(_decoded(text))
    if whole is not None and whole.kind in ("erased", "encrypted"):
        return Content("", ", ".join(filter(None, (about, whole.text))))
    return Content("" if text is None else laid_out(text[:_LONGEST_BODY]), about)


def _decoded(text: str) -> str | None:
    """A text that is a JSON string, as what it says; None for any other text."""
    try:
        return msgspec.json.decode(text, type=str)
    except (msgspec.MsgspecError, ValueError):
        return None


def laid_out(text: str) -> str:
    """Indent a JSON text; other texts stay unchanged."""
    try:
        return msgspec.json.format(text, indent=2)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return text


def _without_bodies(record: AuditRecord) -> AuditRecord:
    request, response = record.request, record.response
    return with_exchange(
        record,
        None if request is None else msgspec.structs.replace(request, body=None),
        None if response is None else msgspec.structs.replace(response, body=None),
    )


def _reference(change: Change) -> str | None:
    return change.reference if change.key else None


def _change(change: Change, transaction: str) -> EntityChange:
    return EntityChange(
        change.operation,
        change.kind,
        change.name or change.entity,
        _reference(change),
        _columns(change),
        change.note or "",
        change.statement or "",
        "" if change.parameters is None else _compact(change.parameters),
        change.rows,
        change.transaction or (transaction if transaction == "rolled_back" else ""),
    )


def _columns(change: Change) -> tuple[ColumnChange, ...]:
    found = []
    for column, pair in change.values.items():
        before, after = (pair[0], pair[1]) if len(pair) > 1 else (None, pair[0] if pair else None)
        shown = ColumnChange(column, as_cell(before), as_cell(after), _patch(change, column))
        if change.operation == "insert":
            shown = replace(shown, before=Cell("none", ""))
        elif column in change.unknown_before:
            shown = replace(shown, before=Cell("unknown", _UNKNOWN_BEFORE))
        if change.operation == "delete":
            shown = replace(shown, after=Cell("none", ""))
        elif column in change.unknown_after:
            shown = replace(shown, after=Cell("unknown", _UNKNOWN_AFTER))
        found.append(shown)
    for column in change.unknown_after:
        if column not in change.values:
            unknown = Cell("unknown", _UNKNOWN_AFTER)
            found.append(ColumnChange(column, Cell("none", ""), unknown))
    return tuple(found)


def _patch(change: Change, column: str) -> str:
    steps = change.patches.get(column, ())
    return "\n".join(_compact(step) for step in steps)


def _compact(value: Any) -> str:
    try:
        return msgspec.json.encode(value, enc_hook=str).decode()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return str(type(value).__name__)
