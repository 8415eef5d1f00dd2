"""Attributes in protobuf: from the bytes of each ``KeyValue`` to names and values.

The greater part of what a sender says of a span it says of the next one, too. Such pairs are
recognized as the bytes they are, and decoded once.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from otel_audit import attributes as names
from otel_audit.serve import shallow

DEEPEST: Final = 60
"""Levels of lists and maps in a value; protobuf itself gives up at 100 messages."""

_FLAG: Final = names.FLAG.encode()
_FLAGGED: Final[bytes] = KeyValue(
    key=names.FLAG, value=AnyValue(bool_value=True)
).SerializeToString()

WITHHELD: Final = "[WITHHELD: size]"
"""Stands for a list or map that is larger than any that is read."""

_LARGEST: Final = 65_536
"""Bytes of a list or map: each two of them can become an object."""

_LARGEST_FLAG: Final = 1_024
_MOST: Final = 4096
_SHORT: Final = 128
_NEVER_TWICE: Final = frozenset({
    names.RECORD_ID, names.ACTION_ID, names.PARENT_ACTION_ID, names.REQUEST_ID, names.TARGET_ID,
    names.SEQUENCE_NUMBER, f"{names.REQUEST_BODY}.sha256", f"{names.RESPONSE_BODY}.sha256",
})  # fmt: skip

_known: Final[dict[bytes, tuple[str, Any]]] = {}


def as_attributes(pairs: Iterable[bytes]) -> dict[str, Any]:
    """Decode pairs.

    Args:
        pairs: Serialized ``KeyValue``s, each known to be valid.

    Returns:
        Names to values; of several with one name the last one. Lists among the values may be
        shared with other spans, and are not to be changed.
    """
    found: dict[str, Any] = {}
    known = _known.get
    for raw in pairs:
        name, value = known(raw) or _pair(raw)
        found[name] = value
    return found


def is_flagged(pairs: Collection[bytes]) -> bool:
    """Tell whether a span with these attributes is an audit span."""
    return _FLAGGED in pairs or any(_FLAG in raw and _is_flag(raw) for raw in pairs)


def value_of(value: AnyValue, depth: int = 0) -> Any:
    """Turn a value into what JSON knows; None for what is deeper than `DEEPEST`."""
    kind = value.WhichOneof("value")
    if kind is None or depth > DEEPEST:
        return None
    if kind == "array_value":
        return [value_of(one, depth + 1) for one in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: value_of(pair.value, depth + 1) for pair in value.kvlist_value.values}
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    return getattr(value, kind)


def body_of(parts: Iterable[bytes]) -> Any:
    """Decode the body of a log record, which is one value in whatever parts it came."""
    raw = b"".join(parts)
    if not raw:
        return None
    return _large_value(raw) if len(raw) > _LARGEST else value_of(AnyValue.FromString(raw))


def _pair(raw: bytes) -> tuple[str, Any]:
    if len(raw) > _LARGEST:
        large = shallow.Pair.FromString(raw)
        return large.key, _large_value(large.value)
    pair = KeyValue.FromString(raw)
    name, value = pair.key, pair.value
    # nearly all are strings
    found = name, value.string_value or value_of(value)
    if len(raw) <= _SHORT and name not in _NEVER_TWICE:
        if len(_known) >= _MOST:
            _known.clear()
        _known[raw] = found
    return found


def _large_value(raw: bytes) -> Any:
    """Decode a text; a list or map of that size is withheld."""
    text: str = shallow.Value.FromString(raw).string_value
    return text if 4 * len(text) > len(raw) - _SHORT else WITHHELD


def _is_flag(raw: bytes) -> bool:
    if len(raw) > _LARGEST_FLAG:
        return False
    pair = KeyValue.FromString(raw)
    return pair.key == names.FLAG and pair.value.bool_value is True
