"""Redaction of a span's attributes: who flagged it may not have done it, or not as we would.

What the sender has redacted already costs one search; only what may hold a secret is looked at
closely.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec

from otel_audit import attributes as names
from otel_audit.record import Change, to_json
from otel_audit.redaction.plain import is_plain
from otel_audit.redaction.redactor import Redactor
from otel_audit.redaction.tokens import REDACTED, WITHHELD
from otel_audit.shapes import Shapes

_decode_changes = msgspec.json.Decoder(tuple[Change, ...]).decode

Treatment = Callable[[Redactor, Any], Any]

_MOST_CLEAN: Final = 8192
_MOST_ALIKE: Final = 1024
_SHORT: Final = 256
_LISTS: Final = (list, tuple)
_ONLY_TEXTS: Final = {str}
_LEFT_OUT: Final = object()
_is_token: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
"""RFC 9110, section 5.6.2."""
_is_uuid: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch


class Redacting:
    """Redaction of attributes by one configuration; remembers short texts that are clean."""

    def __init__(self, redactor: Redactor) -> None:
        """Name the rules."""
        self.redactor: Final = redactor
        # user agents, paths, headers: the same few come all the time
        self._clean: set[tuple[str, str]] = set()
        self._alike: set[Hashable] = set()

    def redact(self, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take secrets out of attributes.

        Args:
            attributes: As they came; spelled as in `otel_audit.attributes`.

        Returns:
            The same object where there is nothing to change, else a copy. Hashes of bodies are
            those of the redacted text.
        """
        changed: dict[str, Any] = {}
        plan = _SHAPES.plan(attributes)
        told_alike = self._told_alike(plan, attributes)
        if told_alike is None or told_alike not in self._alike:
            self._treat(plan.alike, attributes, changed)
            if told_alike is not None and not changed:
                self._remember_alike(told_alike)
        for one in plan.ids:
            value = attributes[one.name]
            if type(value) is str:
                if is_plain(value) or _is_uuid(value) is not None:
                    continue
            elif type(value) is int:
                continue
            treated = one.treatment(self.redactor, value)
            if treated != value:
                changed[one.name] = treated
        self._treat(plan.others, attributes, changed)
        if not changed:
            return _with_digests(attributes)
        told = {**attributes, **changed}
        return _with_digests({name: told[name] for name in told if told[name] is not _LEFT_OUT})

    def _told_alike(self, plan: _Plan, attributes: Mapping[str, Any]) -> Hashable | None:
        """What tells a span by that which many say alike; None where it cannot be remembered."""
        if plan.values is None:
            return None
        values = plan.values(attributes)
        # lists cannot be hashed, and long texts are not kept
        return (plan.number, values) if set(map(type, values)) == _ONLY_TEXTS else None

    def _treat(
        self,
        planned: tuple[_Planned, ...],
        attributes: Mapping[str, Any],
        changed: dict[str, Any],
    ) -> None:
        clean = self._clean
        for name, treatment in planned:
            value = attributes[name]
            # a header is a list, mostly of one
            text = value[0] if type(value) in _LISTS and len(value) == 1 else value
            is_short = type(text) is str and len(text) <= _SHORT
            if is_short and (name, text) in clean:
                continue
            treated = treatment(self.redactor, value)
            if treated is not value and treated != value:
                changed[name] = treated
            elif is_short:
                self._remember(name, text)

    def name(self, name: str) -> str:
        """Take secrets out of a span's name."""
        if ("", name) in self._clean:
            return name
        treated = self.redactor.text(name)
        if treated == name and len(name) <= _SHORT:
            self._remember("", name)
        return treated

    def _remember_alike(self, told: Any) -> None:
        if max(map(len, told[1])) > _SHORT:
            return
        if len(self._alike) >= _MOST_ALIKE:
            self._alike.clear()
        self._alike.add(told)

    def _remember(self, name: str, text: str) -> None:
        if len(self._clean) >= _MOST_CLEAN:
            self._clean.clear()
        self._clean.add((name, text))


class _Planned(NamedTuple):
    """How an attribute is looked at."""

    name: str
    treatment: Treatment


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the attributes of spans are looked at that all have the same ones.

    Attributes:
        number: Never that of another plan.
        alike: Those whose values many spans share, and
        values: what takes these values out of a span; None where there are not two.
        ids: Those that are mostly new, and mostly plain.
        others: All others that are looked at.
    """

    number: int
    alike: tuple[_Planned, ...]
    values: Callable[[Mapping[str, Any]], tuple[Any, ...]] | None
    ids: tuple[_Planned, ...]
    others: tuple[_Planned, ...]


_numbers: Final = itertools.count()


def _treated(shape: tuple[str, ...]) -> _Plan:
    """Choose the attributes that are looked at, and how each is."""
    alike: list[_Planned] = []
    ids: list[_Planned] = []
    others: list[_Planned] = []
    for name in shape:
        treatment = _TREATMENTS.get(name) or _choose(name)
        if treatment is not None:
            kind = alike if name in _ALIKE else ids if name in _IDS else others
            kind.append(_Planned(name, treatment))
    several = len(alike) > 1  # of one name, itemgetter makes no tuple
    return _Plan(
        next(_numbers),
        tuple(alike),
        itemgetter(*(one.name for one in alike)) if several else None,
        tuple(ids),
        tuple(others),
    )


def _with_digests(told: Mapping[str, Any]) -> Mapping[str, Any]:
    """See that each body's hash is that of its text, whatever the sender says."""
    found = told
    for body in (names.REQUEST_BODY, names.RESPONSE_BODY):
        text, name = told.get(body), f"{body}.sha256"
        digest = hashlib.sha256(text.encode()).hexdigest() if isinstance(text, str) else None
        if told.get(name) != digest:
            found = {key: value for key, value in found.items() if key != name}
            if digest is not None:
                found[name] = digest
    return found


def _choose(name: str) -> Treatment | None:
    for prefix in (names.REQUEST_HEADER, names.RESPONSE_HEADER):
        if name.startswith(prefix):
            header = name.removeprefix(prefix)
            return lambda redactor, value: _header(redactor, header, value)
    return None


def _header(redactor: Redactor, header: str, value: Any) -> Any:
    if _is_token(header) is None or redactor.text(header) != header:
        return _LEFT_OUT  # its name is no name, and may be what is secret
    if not isinstance(value, list | tuple):
        return _header_line(redactor, header, value)
    redacted = [_header_line(redactor, header, one) for one in value]
    return value if redacted == list(value) else redacted


def _header_line(redactor: Redactor, header: str, value: Any) -> str:
    """Redact one value; a map is none, and its keys may be what is secret."""
    plain = value if isinstance(value, str) or not isinstance(value, _SCALARS) else str(value)
    redacted = redactor.field(header, plain)
    return redacted if isinstance(redacted, str) else WITHHELD


def _json(redactor: Redactor, value: Any) -> Any:
    if not isinstance(value, str):
        return _text(redactor, value)
    raw = value.encode("utf-8", "replace")
    if redactor.passes_unseen(raw):
        return value
    redacted = redactor.json_bytes(raw)
    return value if redacted == raw else redacted.decode()


def _changes(redactor: Redactor, value: Any) -> Any:
    """Redact changes by column: a whole document's rules would take `[before, after]` for one."""
    if not isinstance(value, str):
        return _text(redactor, value)
    raw = value.encode("utf-8", "replace")
    if redactor.passes_unseen(raw):
        return value
    try:
        changes = _decode_changes(raw)
    except (msgspec.MsgspecError, RecursionError):
        return value  # it becomes no record, and the quarantine redacts it as a document
    return to_json([_change(redactor, change) for change in changes]).decode()


def _change(redactor: Redactor, change: Change) -> Change:
    return msgspec.structs.replace(
        change,
        entity=redactor.text(change.entity),
        name=None if change.name is None else redactor.text(change.name),
        table=redactor.text(change.table),
        key=_columns(redactor, change.key),
        values={
            column: [redactor.field(column, value) for value in values]
            for column, values in change.values.items()
        },
        patches={
            column: _patch(redactor, column, patch) for column, patch in change.patches.items()
        },
        related=tuple(redactor.text(reference) for reference in change.related),
        statement=None if change.statement is None else redactor.text(change.statement),
        parameters=redactor.document(change.parameters),
        note=None if change.note is None else redactor.text(change.note),
    )


def _columns(redactor: Redactor, values: Mapping[str, Any]) -> dict[str, Any]:
    return {column: redactor.field(column, value) for column, value in values.items()}


def _patch(redactor: Redactor, column: str, patch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if redactor.is_sensitive(column):
        return [{"op": "replace", "path": "", "value": REDACTED}]
    found: list[dict[str, Any]] = redactor.document(patch)
    return found


def _text(redactor: Redactor, value: Any) -> Any:
    if isinstance(value, str):
        return redactor.text(value)
    return value if isinstance(value, _SCALARS) else redactor.document(value)


def _name(redactor: Redactor, value: Any) -> Any:
    return redactor.name(value) if isinstance(value, str) else _text(redactor, value)


def _shown(redactor: Redactor, value: Any) -> Any:
    """Show who it was, or that of it which can be compared; as capture does."""
    if isinstance(value, str):
        return value if redactor.name(value) == value else redactor.hashed(value)
    if isinstance(value, list | tuple):
        shown = [_shown(redactor, one) for one in value]
        return value if shown == list(value) else shown
    return _text(redactor, value)


def _query(redactor: Redactor, value: Any) -> Any:
    return redactor.query(value) if isinstance(value, str) else _text(redactor, value)


def _path(redactor: Redactor, value: Any) -> Any:
    return redactor.path(value) if isinstance(value, str) else _text(redactor, value)


_SCALARS: Final = (bool, int, float)
_BODY_TYPES: Final = tuple(
    f"{body}.{part}"
    for body in (names.REQUEST_BODY, names.RESPONSE_BODY)
    for part in ("content_type", "absent")
)
_ALIKE: Final = frozenset({
    *_BODY_TYPES, names.EVENT_NAME, names.ACTION, names.LEVEL, names.ACTOR_ROLE,
    names.ACTOR_SOURCE, names.TARGET_TYPE, names.SOURCE_TYPE, names.HTTP_METHOD, names.HTTP_ROUTE,
    names.HTTP_VERSION, names.HTTP_HOST, names.ERROR_TYPE,
})  # fmt: skip
_IDS: Final = frozenset({
    names.RECORD_ID, names.ACTION_ID, names.PARENT_ACTION_ID, names.REQUEST_ID, names.TARGET_ID,
    names.PRODUCER_ID, names.REQUEST_SIZE, names.RESPONSE_SIZE,
})  # fmt: skip
_NAMES: Final = {*_ALIKE, names.TARGET_ID} - {names.ACTOR_ROLE, names.EVENT_NAME, *_BODY_TYPES}
_TEXTS: Final = (
    *_BODY_TYPES, *_IDS, names.EVENT_NAME, names.ACTOR_REASON, names.CLIENT_ADDRESS,
    names.USER_AGENT, names.ERROR_MESSAGE,
)  # fmt: skip
_TREATMENTS: Final[dict[str, Treatment]] = {
    **dict.fromkeys(_TEXTS, _text),
    **dict.fromkeys(_NAMES, _name),
    **dict.fromkeys(
        (
            names.ACTOR_ID, names.ACTOR_ROLE, names.ACTOR_ROLES, names.ACTOR_EMAIL,
            names.ACTOR_ON_BEHALF_OF, names.TENANT_ID, names.TENANT_SLUG, names.SESSION_ID,
        ),
        _shown,
    ),
    names.REQUEST_BODY: _json,
    names.RESPONSE_BODY: _json,
    names.METADATA: _json,
    names.CHANGES: _changes,
    names.URL_QUERY: _query,
    names.URL_PATH: _path,
}  # fmt: skip
_SHAPES: Final = Shapes(_treated)
