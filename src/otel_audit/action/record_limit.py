"""A bound on one record: what is too large for it goes into further records, or is left out.

What is left out is named in the record's metadata, under `TRUNCATED`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

import msgspec

from otel_audit._util.ids import uuid7
from otel_audit.action.compose import (
    as_continued,
    with_changes,
    with_exchange,
    with_metadata,
    with_truncated,
    without_exchange,
)
from otel_audit.record import (
    NO_CONTENT,
    AuditRecord,
    Change,
    Request,
    Response,
    to_json,
)
from otel_audit.redaction.placeholders import WITHHELD_FOR_SIZE

_Half = TypeVar("_Half", Request, Response)

RECORD_LIMIT: Final = 262_144
"""Bytes of a record's JSON text, where no setting says otherwise."""

OTLP_LIMIT: Final = 400_000
"""Bytes that a record may have which goes over OTLP: the sink there takes 1 MiB, and as attributes
a record is longer than as JSON, but less than twice as long."""

PIECE: Final = "audit.piece"
"""Which of several records this is into which one was split for its size; the first is 1."""

MARGIN: Final = 256
"""Bytes that are added later: the numbers, and the names of what was cut."""

_SHORT: Final = 256
"""Characters of a text that is kept in a record that was too large."""
_FIRST_SHARE: Final = 3 / 4
"""The share of the limit that all but the changes may have in the first record: the last quarter is
room for a change."""
_CHANGE_SHARE: Final = 1 / 4
"""The share of the limit that one change may have, so that it fits beside the rest."""
_FEW: Final = 50
"""Members of a list or an object that are kept in such a record."""


def _any_id(_: int) -> str:
    return uuid7()


def fit(
    record: AuditRecord, limit: int, id_of: Callable[[int], str] = _any_id
) -> list[AuditRecord]:
    """Bring a record below a bound.

    Args:
        record: Complete but for its place in the stream.
        limit: Bytes of JSON text.
        id_of: Makes the record id of a further piece, by its number; the first of them is 2.

    Returns:
        The record as it is, or a smaller one and, for changes that have no room in it, further
        ones of phase ``continued``, each below the bound.
    """
    if len(to_json(record)) + MARGIN <= limit:
        return [record]
    changes, total = record.changes, record.changes_total
    first = _shrunk(with_changes(record, (), total), int(limit * _FIRST_SHARE))
    if not changes:
        return [first]
    total = len(changes) if total is None else total
    first = with_changes(first, (), total)
    lean = without_exchange(first)
    pieces: list[AuditRecord] = []
    for number, part in enumerate(_packed(changes, first, lean, limit), 1):
        if number == 1:
            pieces.append(with_changes(first, part, total))
        else:
            pieces.append(as_continued(lean, id_of(number), part, {PIECE: number}))
    return pieces


def first_of(pieces: list[AuditRecord]) -> AuditRecord:
    """Choose the first of what `fit` gave; it then says that changes are missing."""
    return pieces[0] if len(pieces) == 1 else with_truncated(pieces[0], "changes")


def _packed(
    changes: tuple[Change, ...], first: AuditRecord, lean: AuditRecord, limit: int
) -> Iterator[tuple[Change, ...]]:
    part: list[Change] = []
    room = limit - MARGIN - len(to_json(first))
    whole = limit - MARGIN - len(to_json(lean))
    for given in changes:
        change = given
        size = len(to_json(change)) + 1
        if size > limit * _CHANGE_SHARE:
            change = _shortened(change, int(limit * _CHANGE_SHARE))
            size = len(to_json(change)) + 1
        if size > room:
            yield tuple(part)
            part, room = [], whole
        part.append(change)
        room -= size
    yield tuple(part)


def _shortened(change: Change, limit: int) -> Change:
    """Leave out the largest values of a change, and say so in its note."""
    note = "values were left out: one record must not be so large"
    note = note if change.note is None else f"{clipped(change.note)}; {note}"
    # two values a column: all of them take half, the other half is for names and the key
    most = limit // (4 * max(len(change.values), 1))
    bare = msgspec.structs.replace(
        change,
        values={
            column: [one if len(to_json(one)) <= most else WITHHELD_FOR_SIZE for one in pair]
            for column, pair in change.values.items()
        },
        patches={},
        parameters=None if change.parameters is None else WITHHELD_FOR_SIZE,
        note=note,
    )
    if len(to_json(bare)) <= limit:
        return bare
    # so many columns, or such long names, that even they are too many
    few: Change = clipped(msgspec.structs.replace(bare, values={}))
    return few


def _shrunk(record: AuditRecord, limit: int) -> AuditRecord:
    """Leave out one part after the other, the largest ones that say least first."""
    for name, leave_out in _STEPS:
        if len(to_json(record)) + MARGIN <= limit:
            return record
        smaller = leave_out(record)
        if smaller is not record:
            record = with_truncated(smaller, name)
    return record


def _without_response_body(record: AuditRecord) -> AuditRecord:
    bare = _without_body(record.response)
    return record if bare is None else with_exchange(record, record.request, bare)


def _without_request_body(record: AuditRecord) -> AuditRecord:
    bare = _without_body(record.request)
    return record if bare is None else with_exchange(record, bare, record.response)


def _without_body(half: _Half | None) -> _Half | None:
    """Leave out the content of a body; None if there is none."""
    if half is None or half.body is None or half.body.content is NO_CONTENT:
        return None
    body = msgspec.structs.replace(half.body, content=NO_CONTENT, sha256=None, absent="truncated")
    return msgspec.structs.replace(half, body=body)


def _without_metadata(record: AuditRecord) -> AuditRecord:
    """Keep of the metadata what is short, and ours."""
    kept = {
        name: value
        for name, value in record.metadata.items()
        if name.startswith("audit.") and len(to_json(value)) <= _FEW * _SHORT
    }
    return record if len(kept) == len(record.metadata) else with_metadata(record, kept)


def _clip_all(record: AuditRecord) -> AuditRecord:
    found: AuditRecord = clipped(record)
    return found


_STEPS: Final[tuple[tuple[str, Callable[[AuditRecord], AuditRecord]], ...]] = (
    ("response.body", _without_response_body),
    ("request.body", _without_request_body),
    ("metadata", _without_metadata),
    ("record", _clip_all),
)


def clipped(value: Any) -> Any:
    """Clip every text and every list in a value that is redacted already."""
    if isinstance(value, str):
        return value if len(value) <= _SHORT else f"{value[: _SHORT - 12]} [TRUNCATED]"
    if isinstance(value, msgspec.Struct):
        parts = {name: clipped(getattr(value, name)) for name in value.__struct_fields__}
        return msgspec.structs.replace(value, **parts)
    if isinstance(value, Mapping):
        few = list(value.items())[:_FEW]
        return {clipped(name): clipped(part) for name, part in few}
    if isinstance(value, list | tuple):
        return type(value)(clipped(part) for part in value[:_FEW])
    return value
