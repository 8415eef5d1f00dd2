r"""Make storable what a store would refuse, and lose little of it: the slow path.

A single NUL character in a header must not decide whether an action is recorded. PostgreSQL's
``json`` takes ``\u0000`` and lone surrogates as they are, but then every query that looks into
such a payload fails; its ``text`` refuses them at once. Both become U+FFFD.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from otel_audit._util.text import storable
from otel_audit.record import AuditRecord, Body

DEEPEST: Final = 200
"""Levels of nesting that are kept; the JSON readers involved give up far beyond."""

# an escape as a whole, so that an escaped backslash before u0000 is not mistaken for one
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<bad>u0000|u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)

# one letter alone is looked for faster than two: the second is behind a lookahead
_SUSPECT: Final = re.compile(rb"\\(?=u)u(?:0000|[dD])").search

_encode = msgspec.json.Encoder().encode


def needs_mending(payload: bytes) -> bool:
    """Return whether JSON text may hold a NUL or a surrogate; a few false alarms cost only time."""
    # one byte is found in a tenth of the time of a pattern
    first = payload.find(b"\\")
    return first >= 0 and _SUSPECT(payload, first) is not None


def mend_record(record: AuditRecord) -> AuditRecord:
    """Make a record whose JSON text PostgreSQL takes and can search.

    Args:
        record: Any record, also one whose fields hold what their types do not allow.

    Returns:
        An equal record if there was nothing to change. A body's digest is that of the sanitized
        text, if it had one and the text had to be changed.
    """
    mended = _mend(record, 0)
    assert isinstance(mended, AuditRecord)  # noqa: S101 - a struct keeps its own type
    return mended


def written_down(value: Any) -> bytes:
    """Encode anything as JSON text that PostgreSQL takes and can search; never fails."""
    return _encode(_mend(value, 0))


def mend_json(text: bytes) -> bytes:
    """Replace the escapes of NUL and of lone surrogates in JSON text by that of U+FFFD."""
    return _ESCAPE.sub(lambda found: b"\\ufffd" if found["bad"] else found[0], text)


def _mend(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, msgspec.Raw):
        return _mend_raw(value)
    if depth > DEEPEST:
        return "<nested too deeply>"
    return _mend_whole(value, depth)


def _mend_raw(raw: msgspec.Raw) -> msgspec.Raw:
    mended = mend_json(bytes(raw))
    return raw if mended == bytes(raw) else msgspec.Raw(mended)  # NO_CONTENT stays that object


def _mend_whole(value: Any, depth: int) -> Any:
    if isinstance(value, msgspec.Struct):
        return _mend_struct(value, depth)
    if isinstance(value, Mapping):
        return {_key(key): _mend(item, depth + 1) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_mend(item, depth + 1) for item in value)
    if isinstance(value, list | set | frozenset):
        return [_mend(item, depth + 1) for item in value]
    return _mend_other(value)


def _mend_struct(struct: msgspec.Struct, depth: int) -> msgspec.Struct:
    fields = {name: _mend(getattr(struct, name), depth + 1) for name in struct.__struct_fields__}
    if isinstance(struct, Body) and struct.sha256 and fields["content"] != struct.content:
        fields["sha256"] = hashlib.sha256(bytes(fields["content"])).hexdigest()
    return type(struct)(**fields)


def _mend_other(value: Any) -> Any:
    try:
        return msgspec.json.decode(mend_json(_encode(value)))
    except (UnicodeEncodeError, TypeError, RecursionError, msgspec.DecodeError):
        return f"<{type(value).__qualname__}>"


def _key(key: Any) -> str:
    return storable(key if isinstance(key, str) else str(_mend_other(key)))
