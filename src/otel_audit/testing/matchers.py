"""A test's expectations of a record, and how far a record is from them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from otel_audit.record import Actor, AuditRecord, Change, Target, Tenant, snake_case


class _Anything:
    """Equal to everything."""

    def __eq__(self, _other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "ANY"


ANY: Final = _Anything()
"""Fits every value, also none."""

_OPERATIONS: Final = ("insert", "update", "delete")
_SPECIAL: Final = ("event", "changes", "committed", "status")
_SHOWN: Final = 160
"""Characters of a value in a failed assertion's message."""


def fits(wanted: Any, found: Any) -> bool:
    """Return whether a value is as a test wants it.

    Args:
        wanted: The value itself, `ANY`, a compiled regular expression that is searched for, or a
            function that says yes or no.
        found: What the record holds. Records hold plain values: a decimal, a date, a UUID stand
            there as text, and are compared so.
    """
    if isinstance(wanted, re.Pattern):
        return found is not None and wanted.search(str(found)) is not None
    if callable(wanted) and not isinstance(wanted, type):
        return bool(wanted(found))
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        return all(name in found and fits(one, found[name]) for name, one in wanted.items())
    if wanted == found:
        return True
    return isinstance(found, str) and not isinstance(wanted, str) and _text(wanted) == found


def _text(value: Any) -> str:
    iso = getattr(value, "isoformat", None)
    return str(iso()) if callable(iso) else str(value)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The expectations of a record: names and what their values must match."""

    asked: dict[str, Any]

    @classmethod
    def of(cls, event: Any, fields: Mapping[str, Any]) -> Wanted:
        """Check the names.

        Raises:
            TypeError: Records have no such field; the message names those that are near.
        """
        asked = {} if event is None else {"event": event}
        for name, value in fields.items():
            _refuse_unknown(name)
            asked[name] = value
        changes = asked.get("changes")
        if isinstance(changes, Mapping):
            for reference, columns in changes.items():
                _refuse_change(reference, columns)
        return cls(asked)

    def differences(self, record: AuditRecord) -> list[str]:
        """Say in which fields a record differs, one line each; none if it fits."""
        return [
            line for name, value in self.asked.items() for line in _differs(name, value, record)
        ]

    def __str__(self) -> str:
        if not self.asked:
            return "  any record"
        width = max(map(len, self.asked))
        return "\n".join(f"  {n:<{width}}  {shown(v)}" for n, v in self.asked.items())


def shown(value: Any) -> str:
    """Write a value for a message, in one short line."""
    if isinstance(value, re.Pattern):
        text = f"/{value.pattern}/"
    elif callable(value) and not isinstance(value, type) and value is not ANY:
        text = f"{getattr(value, '__name__', 'a predicate')}(…)"
    else:
        text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _refuse_unknown(name: str) -> None:
    first, *further = name.split("__")
    known = AuditRecord.__struct_fields__
    if first in known or (first in _SPECIAL and not further):
        return
    near = difflib.get_close_matches(name, dict.fromkeys([*_SPECIAL, *known]), n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(known)}"
    raise TypeError(f"audit records have no field {name!r}{hint}")


def _refuse_change(reference: Any, columns: Any) -> None:
    place = f"changes[{reference!r}]"
    if columns is ANY or columns in _OPERATIONS:
        return
    if not isinstance(columns, Mapping):
        raise TypeError(
            f"{place}: expected {{column: (before, after)}}, ANY, or one of "
            f"{', '.join(_OPERATIONS)}; got {shown(columns)}"
        )
    for column, pair in columns.items():
        if pair is not ANY and not (isinstance(pair, tuple | list) and len(pair) == 2):  # noqa: PLR2004 - before, after
            raise TypeError(f"{place}[{column!r}]: expected (before, after), got {shown(pair)}")


def _differs(name: str, wanted: Any, record: AuditRecord) -> Iterator[str]:
    if name == "changes" and isinstance(wanted, Mapping):
        yield from _change_differences(wanted, record)
        return
    found = _read(name, record, wanted)
    if not fits(wanted, found):
        verb = "does not fit" if callable(wanted) or isinstance(wanted, re.Pattern) else "not"
        yield f"{name}: {shown(found)}, {verb} {shown(wanted)}"


def _read(name: str, record: AuditRecord, wanted: Any) -> Any:
    if name == "event":
        return record.event_name
    if name == "committed":
        return record.transaction == "committed"
    if name == "status":
        return None if record.response is None else record.response.status_code
    found: Any = record
    for part in name.split("__"):
        if isinstance(found, Mapping):
            found = found.get(part)
        elif found is not None:
            found = getattr(found, part)
    return _short(found, wanted)


def _short(found: Any, wanted: Any) -> Any:
    """Write actor, tenant and target as a test names them: by their ids."""
    if isinstance(wanted, Mapping):
        return msgspec.to_builtins(found) if isinstance(found, msgspec.Struct) else found
    if isinstance(wanted, msgspec.Struct):
        return found
    if isinstance(found, Actor):
        return found.id
    if isinstance(found, Tenant):
        return found.slug if found.slug is not None and wanted == found.slug else found.id
    if isinstance(found, Target):
        whole = found.type if found.id is None else f"{found.type}:{found.id}"
        return found.type if wanted == found.type else whole
    return found


def _change_differences(wanted: Mapping[str, Any], record: AuditRecord) -> Iterator[str]:
    for reference, columns in wanted.items():
        mine = [change for change in record.changes if _concerns(change, reference)]
        if not mine:
            there = ", ".join(dict.fromkeys(c.reference for c in record.changes)) or "none"
            yield f"changes: none of {reference}; changed: {there}"
            continue
        tries = [list(_column_differences(reference, columns, change)) for change in mine]
        yield from min(tries, key=len)


def _concerns(change: Change, reference: str) -> bool:
    names = (change.reference, *(change.related if change.kind == "entity" else ()))
    # in full, by the noun alone, or by the class's name in snake case
    nouns = {name.partition(":")[0] for name in names}
    return reference in names or reference in nouns or reference == snake_case(change.entity)


def _column_differences(reference: str, columns: Any, change: Change) -> Iterator[str]:
    if columns is ANY:
        return
    if isinstance(columns, str):
        if change.operation != columns:
            yield f"changes: {reference}: {change.operation}, not {columns}"
        return
    for column, pair in columns.items():
        place = f"changes: {reference}.{column}"
        if column not in change.values:
            changed = ", ".join(sorted(change.values)) or "none"
            yield f"{place}: not changed; changed columns: {changed}"
            continue
        before, after = change.values[column]
        if pair is not ANY and not (fits(pair[0], before) and fits(pair[1], after)):
            yield (
                f"{place}: {shown(before)} → {shown(after)}, "
                f"not {shown(pair[0])} → {shown(pair[1])}"
            )
