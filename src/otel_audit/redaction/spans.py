"""Redaction of a span's attributes: who flagged it may not have done it, or not as we would.

What the sender has redacted already costs one search; only what may hold a secret is looked at
closely.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from otel_audit import attributes as names
from otel_audit.record import Change, to_json
from otel_audit.redaction.redactor import Redactor
from otel_audit.redaction.tokens import REDACTED
from otel_audit.shapes import Shapes

_decode_changes = msgspec.json.Decoder(tuple[Change, ...]).decode

Treatment = Callable[[Redactor, Any], Any]

_MOST_CLEAN: Final = 8192
_SHORT: Final = 256
_LISTS: Final = (list, tuple)


class Redacting:
    """Redaction of attributes by one configuration; remembers short texts that are clean."""

    def __init__(self, redactor: Redactor) -> None:
        """Name the rules."""
        self.redactor: Final = redactor
        # user agents, paths, headers: the same few come all the time
        self._clean: set[tuple[str, str]] = set()

    def redact(self, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take secrets out of attributes.

        Args:
            attributes: As they came; spelled as in `otel_audit.attributes`.

        Returns:
            The same object where there is nothing to change, else a copy. Hashes of bodies are
            those of the redacted text.
        """
        changed: dict[str, Any] = {}
        clean = self._clean
        for name, treatment in _SHAPES.plan(attributes):
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
        told = {**attributes, **changed} if changed else attributes
        return _with_digests(told)

    def name(self, name: str) -> str:
        """Take secrets out of a span's name."""
        if ("", name) in self._clean:
            return name
        treated = self.redactor.text(name)
        if treated == name and len(name) <= _SHORT:
            self._remember("", name)
        return treated

    def _remember(self, name: str, text: str) -> None:
        if len(self._clean) >= _MOST_CLEAN:
            self._clean.clear()
        self._clean.add((name, text))


def _treated(shape: tuple[str, ...]) -> tuple[tuple[str, Treatment], ...]:
    """Choose the attributes that are looked at, and how each is."""
    chosen = ((name, _TREATMENTS.get(name) or _choose(name)) for name in shape)
    return tuple((name, treatment) for name, treatment in chosen if treatment is not None)


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
    if isinstance(value, str):
        return str(redactor.field(header, value))
    if not isinstance(value, list | tuple):
        return value
    redacted = [str(redactor.field(header, one)) for one in value]
    return value if redacted == list(value) else redacted


def _json(redactor: Redactor, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    raw = value.encode("utf-8", "replace")
    if redactor.passes_unseen(raw):
        return value
    redacted = redactor.json_bytes(raw)
    return value if redacted == raw else redacted.decode()


def _changes(redactor: Redactor, value: Any) -> Any:
    """Redact changes by column: a whole document's rules would take `[before, after]` for one."""
    if not isinstance(value, str):
        return value
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
    return redactor.text(value) if isinstance(value, str) else value


def _query(redactor: Redactor, value: Any) -> Any:
    return redactor.query(value) if isinstance(value, str) else value


def _path(redactor: Redactor, value: Any) -> Any:
    return redactor.path(value) if isinstance(value, str) else value


_TREATMENTS: Final[dict[str, Treatment]] = {
    names.REQUEST_BODY: _json,
    names.RESPONSE_BODY: _json,
    names.METADATA: _json,
    names.CHANGES: _changes,
    names.ERROR_MESSAGE: _text,
    names.USER_AGENT: _text,
    names.EVENT_NAME: _text,
    names.URL_QUERY: _query,
    names.URL_PATH: _path,
}
_SHAPES: Final = Shapes(_treated)
