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
from otel_audit._util.cache import BoundedCache
from otel_audit.redaction.placeholders import WITHHELD_FOR_SIZE
from otel_audit.server import decode_protobuf_lazily

DEEPEST: Final = 60
"""Levels of lists and maps in a value; protobuf itself gives up at 100 messages."""

_FLAG: Final = names.FLAG.encode()
_FLAGGED: Final[bytes] = KeyValue(
    key=names.FLAG, value=AnyValue(bool_value=True)
).SerializeToString()

_LARGEST: Final = 65_536
"""Bytes of a list or map: each two of them can become an object."""

_MOST_NODES: Final = 1_000_000
"""Values of one request: each is an object in memory, many times larger than its bytes."""
_LARGEST_FLAG: Final = 1_024
"""Bytes of an attribute that may be the mark: longer ones are not looked at."""
_MOST: Final = 2048
"""Attributes that are remembered as they were decoded, about."""
_SHORT: Final = 128
"""Bytes of an attribute that is remembered, as the same few come with each span."""
_NEVER_TWICE: Final = frozenset({
    names.RECORD_ID, names.ACTION_ID, names.PARENT_ACTION_ID, names.REQUEST_ID, names.TARGET_ID,
    names.SEQUENCE_NUMBER, f"{names.REQUEST_BODY}.sha256", f"{names.RESPONSE_BODY}.sha256",
})  # fmt: skip

_known: Final[BoundedCache[bytes, tuple[str, Any]]] = BoundedCache(_MOST)


class Nodes:
    """The remaining number of list and map elements of a request.

    Attributes:
        left: Elements; what is beyond is withheld.
    """

    __slots__ = ("left",)

    def __init__(self, left: int = _MOST_NODES) -> None:
        """Start a count for one request.

        Args:
            left: How many elements it may have.
        """
        self.left = left


def as_attributes(pairs: Iterable[bytes], nodes: Nodes | None = None) -> dict[str, Any]:
    """Decode pairs.

    Args:
        pairs: Serialized ``KeyValue``s.
        nodes: What of lists and maps the request may still have; by default as much as any.

    Returns:
        Names to values; of several with one name the last one. Lists among the values may be
        shared with other spans, and are not to be changed.

    Raises:
        DecodeError: One is not a ``KeyValue``.
    """
    nodes = Nodes() if nodes is None else nodes
    found: dict[str, Any] = {}
    known = _known.recent
    for raw in pairs:
        name, value = known(raw) or _pair(raw, nodes)
        found[name] = value
    return found


def is_flagged(pairs: Collection[bytes]) -> bool:
    """Return whether a span with these attributes is an audit span."""
    return _FLAGGED in pairs or any(_FLAG in raw and _is_flag(raw) for raw in pairs)


def value_of(value: AnyValue, nodes: Nodes, depth: int = 0) -> Any:
    """Turn a value into what JSON knows; None for what is deeper than `DEEPEST`."""
    kind = value.WhichOneof("value")
    if kind is None or depth > DEEPEST:
        return None
    if kind in ("array_value", "kvlist_value"):
        return _several(value, kind, nodes, depth + 1)
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    return getattr(value, kind)


def _several(value: AnyValue, kind: str, nodes: Nodes, depth: int) -> Any:
    is_list = kind == "array_value"
    values = (value.array_value if is_list else value.kvlist_value).values
    nodes.left -= len(values)
    if nodes.left < 0:
        return [WITHHELD_FOR_SIZE] if is_list else WITHHELD_FOR_SIZE
    if is_list:
        return [value_of(one, nodes, depth) for one in values]
    return {pair.key: value_of(pair.value, nodes, depth) for pair in values}


def body_of(parts: Iterable[bytes], nodes: Nodes | None = None) -> Any:
    """Decode the body of a log record; its parts on the wire are merged."""
    raw = b"".join(parts)
    if not raw:
        return None
    if len(raw) > _LARGEST:
        return _large_value(raw)
    return value_of(AnyValue.FromString(raw), Nodes() if nodes is None else nodes)


def _pair(raw: bytes, nodes: Nodes) -> tuple[str, Any]:
    if len(raw) > _LARGEST:
        large = decode_protobuf_lazily.Pair.FromString(raw)
        return large.key, _large_value(large.value)
    pair = KeyValue.FromString(raw)
    name, value = pair.key, pair.value
    # nearly all are strings
    found = name, value.string_value or value_of(value, nodes)
    if len(raw) <= _SHORT and name not in _NEVER_TWICE:
        _known.put(raw, found)
    return found


def _large_value(raw: bytes) -> Any:
    """Decode a text; a list or map of that size is withheld."""
    found = decode_protobuf_lazily.Value.FromString(raw)
    text: str = found.string_value
    # a character has four bytes at most: with fewer of them, something else makes it so large
    if 4 * len(text) > len(raw) - _SHORT:
        return text
    return [WITHHELD_FOR_SIZE] if found.array_value else WITHHELD_FOR_SIZE


def _is_flag(raw: bytes) -> bool:
    if len(raw) > _LARGEST_FLAG:
        return False
    pair = KeyValue.FromString(raw)
    return pair.key == names.FLAG and pair.value.bool_value is True
