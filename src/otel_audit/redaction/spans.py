"""Redaction of a span's attributes: its sender may have redacted nothing, or by other rules.

Attributes that the sender has redacted cost one search. Only suspect ones are looked at closely.
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
from otel_audit._util.cache import KINDS, BoundedCache, Memo, are_few_names
from otel_audit._util.ids import is_uuid
from otel_audit.record import TRUNCATED, Change, to_json
from otel_audit.redaction.budget import SpanBudget, WorkBudget
from otel_audit.redaction.placeholders import REDACTED, WITHHELD, WITHHELD_FOR_WORK
from otel_audit.redaction.prefilter import is_plain
from otel_audit.redaction.redactor import Redactor

_decode_mapping = msgspec.json.Decoder(dict[str, Any]).decode

Treatment = Callable[[Redactor, Any, WorkBudget], Any]

_MOST_CLEAN: Final = 4096
"""Pairs of name and text that are remembered as holding no secret, about."""
_MOST_ALIKE: Final = 512
"""Sets of attributes that are remembered as holding no secret, about."""
_SHORT: Final = 256
"""Characters of a text that is remembered: senders choose them, and memory is bounded."""
_MOST_HEADERS: Final = 256
"""Headers of one span that are kept, of its request and its response together."""

_LONGEST_HEADER_NAME: Final = 128
"""Characters of a header's name; one with a longer name is left out."""
_ELEMENT: Final = 2
"""Work units of a list's element, in addition to those of its text."""

_LISTS: Final = (list, tuple)
_ONLY_TEXTS: Final = {str}
_LEFT_OUT: Final = object()
_is_token: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
"""RFC 9110, section 5.6.2."""


class SpanRedactor:
    """Redaction of attributes by one configuration; remembers short texts that are clean."""

    def __init__(self, redactor: Redactor) -> None:
        """Start with no text known to be clean.

        Args:
            redactor: The rules.
        """
        self.redactor: Final = redactor
        # user agents, paths, headers: the same few come all the time
        self._clean: BoundedCache[tuple[str, str], bool] = BoundedCache(_MOST_CLEAN)
        self._alike: BoundedCache[Hashable, bool] = BoundedCache(_MOST_ALIKE)

    def redact(
        self, attributes: Mapping[str, Any], budget: SpanBudget | None = None
    ) -> Mapping[str, Any]:
        """Take secrets out of attributes.

        Args:
            attributes: As they came; spelled as in `otel_audit.attributes`.
            budget: What this may cost; by default what one span may that is alone.

        Returns:
            The same object where there is nothing to change, else a copy. Hashes of bodies are
            those of the redacted text. Parts of which something was withheld for its work are
            named in the metadata, under `TRUNCATED`.
        """
        budget = SpanBudget() if budget is None else budget
        changed: dict[str, Any] = {}
        plan = _SHAPES[tuple(attributes)]
        cache_key = self._cache_key(plan, attributes)
        if cache_key is None or cache_key not in self._alike:
            self._treat(plan.alike, attributes, changed, budget)
            if cache_key is not None and not changed:
                self._remember_alike(cache_key)
        for one in plan.ids:
            value = attributes[one.name]
            if type(value) is str:
                if is_plain(value) or is_uuid(value):
                    continue
            elif type(value) is int:
                continue
            treated = self._treated(one, value, budget)
            if treated != value:
                changed[one.name] = treated
        self._treat(plan.others, attributes, changed, budget)
        changed.update(dict.fromkeys(plan.too_many, _LEFT_OUT))
        if not changed:
            return _with_digests(attributes)
        merged = {**attributes, **changed}
        cut = [*budget.cut, *(("headers",) if plan.too_many else ())]
        kept = {name: merged[name] for name in merged if merged[name] is not _LEFT_OUT}
        return _with_digests(_naming(kept, cut) if cut else kept)

    def _cache_key(self, plan: _Plan, attributes: Mapping[str, Any]) -> Hashable | None:
        """The cache key of a span by its common attributes; None if it cannot be cached."""
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
        budget: SpanBudget,
    ) -> None:
        clean = self._clean
        for one in planned:
            name = one.name
            value = attributes[name]
            # a header is a list, mostly of one
            text = value[0] if type(value) in _LISTS and len(value) == 1 else value
            is_short = type(text) is str and len(text) <= _SHORT
            if is_short and (name, text) in clean:
                continue
            treated = self._treated(one, value, budget)
            if treated is not value and treated != value:
                changed[name] = treated
            elif is_short:
                clean.put((name, text), True)  # noqa: FBT003 - used as a set

    def _treated(self, one: _Planned, value: Any, budget: SpanBudget) -> Any:
        share = budget.of(one.part, len(value) if one.is_sized and type(value) is str else 0)
        kept = budget.limit(share)
        before = share.left
        treated = one.treatment(self.redactor, value, share)
        budget.charge(share, before, kept)
        return treated

    def name(self, name: str, budget: SpanBudget | None = None) -> str:
        """Take secrets out of a span's name."""
        if ("", name) in self._clean:
            return name
        budget = SpanBudget() if budget is None else budget
        treated: str = self._treated(_NAME, name, budget)
        if treated == name and len(name) <= _SHORT:
            self._clean.put(("", name), True)  # noqa: FBT003 - used as a set
        return treated

    def _remember_alike(self, key: Any) -> None:
        if max(map(len, key[1])) <= _SHORT:
            self._alike.put(key, True)  # noqa: FBT003 - used as a set


class _Planned(NamedTuple):
    """How an attribute is redacted, and which part's budget it uses; by its size if that counts."""

    name: str
    treatment: Treatment
    part: str
    is_sized: bool = False


@dataclass(frozen=True, slots=True)
class _Plan:
    """The plan for spans with the same attribute names.

    Attributes:
        number: Never that of another plan.
        alike: Those whose values many spans share, and
        values: what takes these values out of a span; None if there are not two.
        ids: Those that are mostly new, and mostly plain.
        others: All others that are looked at.
        too_many: Headers beyond those that are kept.
    """

    number: int
    alike: tuple[_Planned, ...]
    values: Callable[[Mapping[str, Any]], tuple[Any, ...]] | None
    ids: tuple[_Planned, ...]
    others: tuple[_Planned, ...]
    too_many: tuple[str, ...]


_numbers: Final = itertools.count()


def _treated(shape: tuple[str, ...]) -> _Plan:
    """Choose the attributes that are looked at, and how each is."""
    alike: list[_Planned] = []
    ids: list[_Planned] = []
    others: list[_Planned] = []
    headers: list[_Planned] = []
    for name in shape:
        treatment = _TREATMENTS.get(name)
        if treatment is not None:
            kind = alike if name in _ALIKE else ids if name in _IDS else others
            part = _PARTS.get(name, "request.head")
            kind.append(_Planned(name, treatment, part, part in _SIZED))
        elif (treatment := _choose(name)) is not None:
            headers.append(_Planned(name, treatment, "request.head"))
    # the largest of them last: what was withheld then are bodies, never the actor
    others.sort(key=lambda one: one.is_sized)
    others[:0] = headers[:_MOST_HEADERS]
    several = len(alike) > 1  # of one name, itemgetter makes no tuple
    return _Plan(
        next(_numbers),
        tuple(alike),
        itemgetter(*(one.name for one in alike)) if several else None,
        tuple(ids),
        tuple(others),
        tuple(one.name for one in headers[_MOST_HEADERS:]),
    )


def _with_digests(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """See that each body's hash is that of its text, whatever the sender says."""
    found = attributes
    for body in (names.REQUEST_BODY, names.RESPONSE_BODY):
        text, name = attributes.get(body), f"{body}.sha256"
        digest = hashlib.sha256(text.encode()).hexdigest() if isinstance(text, str) else None
        if attributes.get(name) != digest:
            found = {key: value for key, value in found.items() if key != name}
            if digest is not None:
                found[name] = digest
    return found


def _naming(attributes: Mapping[str, Any], cut: list[str]) -> Mapping[str, Any]:
    """Name in the metadata what is not there in full."""
    metadata: dict[str, Any] = {}
    if names.METADATA in attributes:
        try:
            metadata = _decode_mapping(attributes[names.METADATA])
        except (msgspec.MsgspecError, TypeError, RecursionError):
            return attributes  # it becomes no record
    earlier = metadata.get(TRUNCATED)
    named = dict.fromkeys((*(earlier if isinstance(earlier, list) else ()), *cut))
    return {**attributes, names.METADATA: to_json({**metadata, TRUNCATED: list(named)}).decode()}


def _choose(name: str) -> Treatment | None:
    for prefix in (names.REQUEST_HEADER, names.RESPONSE_HEADER):
        if name.startswith(prefix):
            header = name.removeprefix(prefix)
            return lambda redactor, value, work: _header(redactor, header, value, work)
    return None


def _header(redactor: Redactor, header: str, value: Any, work: WorkBudget) -> Any:
    if len(header) > _LONGEST_HEADER_NAME or _is_token(header) is None:
        return _LEFT_OUT  # its name is not a name, and may be what is secret
    if redactor.text(header, work) != header:
        return _LEFT_OUT
    if not isinstance(value, list | tuple):
        return _header_line(redactor, header, value, work)
    return _each(value, lambda one: _header_line(redactor, header, one, work), work)


def _header_line(redactor: Redactor, header: str, value: Any, work: WorkBudget) -> str:
    """Redact one value; a map is none, and its keys may be what is secret."""
    plain = value if isinstance(value, str) or not isinstance(value, _SCALARS) else str(value)
    redacted = redactor.field(header, plain, work=work)
    return redacted if isinstance(redacted, str) else WITHHELD


def _each(
    values: list[Any] | tuple[Any, ...], treat: Callable[[Any], Any], work: WorkBudget
) -> Any:
    """Treat the elements of a list; those beyond the work are withheld in one."""
    found: list[Any] = []
    for one in values:
        work.left -= _ELEMENT
        if work.left < 0:
            work.withheld = True
            return [*found, WITHHELD_FOR_WORK]
        found.append(treat(one))
    return values if found == list(values) else found


def _json(redactor: Redactor, value: Any, work: WorkBudget) -> Any:
    if not isinstance(value, str):
        return _text(redactor, value, work)
    raw = value.encode("utf-8", "replace")
    redacted = redactor.json_or_none(raw, work)
    if redacted is None:
        return f'"{WITHHELD}"'
    return value if redacted == raw else redacted.decode()


def _metadata(redactor: Redactor, value: Any, work: WorkBudget) -> Any:
    redacted = _json(redactor, value, work)
    # metadata is a map, or there is no record
    return _LEFT_OUT if work.withheld and redacted == f'"{WITHHELD_FOR_WORK}"' else redacted


def _changes(redactor: Redactor, value: Any, work: WorkBudget) -> Any:
    """Redact changes by column: a whole document's rules would take `[before, after]` for one."""
    if not isinstance(value, str):
        return _text(redactor, value, work)
    raw = value.encode("utf-8", "replace")
    work.left -= len(raw) * _PER_BYTE_SEEN
    if work.left >= 0 and redactor.is_clean_json(raw):
        return value
    try:
        changes = names.decode_changes(raw)
    except (msgspec.MsgspecError, RecursionError):
        return value  # it becomes no record, and the quarantine redacts it as a document
    return to_json([_change(redactor, change, work) for change in changes]).decode()


def _change(redactor: Redactor, change: Change, work: WorkBudget) -> Change:
    if work.left < 0:
        work.withheld = True
        # its rows cannot be distinguished from others, but how many there were
        return Change(
            operation=change.operation, kind=change.kind, entity=WITHHELD_FOR_WORK,
            table=WITHHELD_FOR_WORK, rows=change.rows, transaction=change.transaction,
        )  # fmt: skip
    return msgspec.structs.replace(
        change,
        entity=redactor.text(change.entity, work),
        name=None if change.name is None else redactor.text(change.name, work),
        table=redactor.text(change.table, work),
        key=_columns(redactor, change.key, work),
        values={
            column: [redactor.field(column, value, work=work) for value in values]
            for column, values in change.values.items()
        },
        patches={
            column: _patch(redactor, column, patch, work)
            for column, patch in change.patches.items()
        },
        related=tuple(redactor.text(reference, work) for reference in change.related),
        statement=None if change.statement is None else redactor.text(change.statement, work),
        parameters=redactor.document(change.parameters, work),
        personal=tuple(redactor.text(column, work) for column in change.personal),
        note=None if change.note is None else redactor.text(change.note, work),
    )


def _columns(redactor: Redactor, values: Mapping[str, Any], work: WorkBudget) -> dict[str, Any]:
    return {column: redactor.field(column, value, work=work) for column, value in values.items()}


def _patch(
    redactor: Redactor, column: str, patch: list[dict[str, Any]], work: WorkBudget
) -> list[dict[str, Any]]:
    if redactor.is_sensitive(column):
        return [{"op": "replace", "path": "", "value": REDACTED}]
    found: Any = redactor.document(patch, work)
    is_patch = isinstance(found, list) and all(isinstance(step, dict) for step in found)
    return found if is_patch else [{"op": "replace", "path": "", "value": WITHHELD_FOR_WORK}]


def _text(redactor: Redactor, value: Any, work: WorkBudget) -> Any:
    if isinstance(value, str):
        return redactor.text(value, work)
    return value if isinstance(value, _SCALARS) else redactor.document(value, work)


def _name(redactor: Redactor, value: Any, work: WorkBudget) -> Any:
    return redactor.name(value, work) if isinstance(value, str) else _text(redactor, value, work)


def _identifier(redactor: Redactor, value: Any, work: WorkBudget) -> Any:
    if not isinstance(value, str):
        return _text(redactor, value, work)
    if redactor.name(value, work) == value:
        return value
    return redactor.identifier(value, work)


def _shown_id(redactor: Redactor, value: Any, work: WorkBudget) -> Any:
    """As `_shown`, where a number is an id, whatever it looks like."""
    if isinstance(value, str) and redactor.identifier(value, work) == value:
        return value
    return _shown(redactor, value, work)


def _shown(redactor: Redactor, value: Any, work: WorkBudget) -> Any:
    """Show an identity, or the part of it that can be compared; as capture does."""
    if isinstance(value, str):
        return value if redactor.name(value, work) == value else redactor.hashed(value)
    if isinstance(value, list | tuple):
        return _each(value, lambda one: _shown(redactor, one, work), work)
    return _text(redactor, value, work)


def _query(redactor: Redactor, value: Any, work: WorkBudget) -> Any:
    return redactor.query(value, work) if isinstance(value, str) else _text(redactor, value, work)


def _path(redactor: Redactor, value: Any, work: WorkBudget) -> Any:
    return redactor.path(value, work) if isinstance(value, str) else _text(redactor, value, work)


_SCALARS: Final = (bool, int, float)
_PER_BYTE_SEEN: Final = 1 / 64
"""Units of work that one search over a text costs for each byte."""

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
_NAMES: Final = _ALIKE - {names.ACTOR_ROLE, names.EVENT_NAME, *_BODY_TYPES}
_TEXTS: Final = (
    *_BODY_TYPES, *_IDS, names.EVENT_NAME, names.ACTOR_REASON, names.CLIENT_ADDRESS,
    names.USER_AGENT, names.ERROR_MESSAGE,
)  # fmt: skip
_TREATMENTS: Final[dict[str, Treatment]] = {
    **dict.fromkeys(_TEXTS, _text),
    **dict.fromkeys(_NAMES, _name),
    names.TARGET_ID: _identifier,
    **dict.fromkeys(
        (
            names.ACTOR_ROLE, names.ACTOR_ROLES, names.ACTOR_EMAIL,
            names.TENANT_SLUG, names.SESSION_ID,
        ),
        _shown,
    ),
    **dict.fromkeys(
        (names.ACTOR_ID, names.ACTOR_ON_BEHALF_OF, names.TENANT_ID), _shown_id
    ),
    names.REQUEST_BODY: _json,
    names.RESPONSE_BODY: _json,
    names.METADATA: _metadata,
    names.CHANGES: _changes,
    names.URL_QUERY: _query,
    names.URL_PATH: _path,
}  # fmt: skip
_IDENTITY: Final = (
    names.ACTOR_ID, names.ACTOR_ROLE, names.ACTOR_ROLES, names.ACTOR_EMAIL, names.ACTOR_REASON,
    names.ACTOR_ON_BEHALF_OF, names.TENANT_ID, names.TENANT_SLUG, names.SESSION_ID,
)  # fmt: skip
_PARTS: Final = {
    **dict.fromkeys(_IDENTITY, "identity"),
    **dict.fromkeys((*_ALIKE, *_IDS), "names"),
    names.URL_PATH: "request.path",
    names.REQUEST_BODY: "request.body",
    names.RESPONSE_BODY: "response.body",
    names.CHANGES: "changes",
    names.METADATA: "metadata",
    names.ERROR_MESSAGE: "error.message",
}
_SIZED: Final = frozenset({"request.body", "response.body", "changes"})
_NAME: Final = _Planned("", lambda redactor, value, work: redactor.text(value, work), "names")
_SHAPES: Final = Memo(_treated, KINDS, are_few_names)
