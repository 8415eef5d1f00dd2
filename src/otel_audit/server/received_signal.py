"""Records of the draft audit signal: stored exactly, and checked against the previous one."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from otel_audit import audit_signal as names
from otel_audit._util.cache import KINDS, BoundedCache, Memo, are_few_names
from otel_audit._util.ids import derived_uuid7
from otel_audit.server.canonical_forms import (
    UndecodableRecordError,
    canonical_forms,
    integrity_hash,
    parse_log,
)
from otel_audit.server.items import ReceivedItem

Link = Literal["linked", "broken"]

_LARGEST: Final = 16_384
"""Bytes of what one record keeps exactly: a certificate chain has a few thousand."""
_STREAMS: Final = 1_024
"""Streams whose last number is remembered, about; of others a break is not noticed."""
_LONGEST_KEPT: Final = 65_536
"""Bytes of a record that is remembered for the next of its stream."""

# what has the form of a hash, a signature or a certificate tells no other secret; a private key,
# a password, a sentence has not
_TOKEN: Final = re.compile(r"[A-Za-z0-9._:/+-]{1,256}")
_CODED: Final = re.compile(r"(?:sha\d{3}:)?[A-Za-z0-9+/_-]{16,16000}={0,2}")
_PEM: Final = re.compile(
    r"(?:-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----\s*)+"
)
_FORMS: Final[dict[str, tuple[re.Pattern[str], ...]]] = {
    names.STREAM_ID: (_TOKEN,),
    names.PREVIOUS_HASH: (_CODED,),
    "audit.sequence.prev_hash": (_CODED,),
    names.PREVIOUS_RECORD_ID: (re.compile(r"[0-9A-Za-z-]{1,64}"),),
    names.VALUE: (_CODED,),
    names.NEW_VALUE: (_CODED,),
    names.SIGNER: (re.compile(r"[a-z_]{1,32}"),),
    names.CANONICALIZATION: (re.compile(r"[A-Za-z0-9._-]{1,32}"),),
    names.ALGORITHM: (re.compile(r"[A-Za-z0-9._-]{1,32}"),),
    names.CERTIFICATE: (_CODED, _PEM),
}
_OWN: Final = frozenset({names.STREAM_ID, names.NUMBER})
"""What the record says itself, where it says nothing more of the signal."""


def _of_the_signal(shape: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(filter(names.is_of_the_signal, shape))


_OF_THE_SIGNAL: Final = Memo(_of_the_signal, KINDS, are_few_names)


def exact_values(attributes: Mapping[str, Any], resource: Mapping[str, Any]) -> dict[str, Any]:
    """Pick what is stored as it came, so that it is hashed and sealed with the record.

    Redaction would take signatures for secrets. So what is kept must have the form that it should
    have; what has another is left out, by its name and the word ``unfit``.

    Args:
        attributes: The record's attributes.
        resource: Its resource's.

    Returns:
        ``record`` and ``resource``, each names to values, and ``unfit``; each only if it holds
        anything.
    """
    found: dict[str, Any] = {}
    unfit: list[str] = []
    size = 0
    for part, values in (("record", attributes), ("resource", resource)):
        kept: dict[str, Any] = {}
        for name in _OF_THE_SIGNAL[tuple(values)]:
            value = values[name]
            size += len(name) + len(str(value))
            if size <= _LARGEST and _is_fit(name, value):
                kept[name] = value
            else:
                unfit.append(name[:100])
        if kept and not (part == "record" and _OWN.issuperset(kept)):
            found[part] = kept
    if unfit:
        found["unfit"] = sorted(unfit)
    return found


def with_stream_id(item_attributes: Mapping[str, Any], producer_id: str) -> dict[str, Any] | None:
    """Take the draft's name of a stream for the producer's id; None: nothing has to change."""
    stream = item_attributes.get(names.STREAM_ID)
    if not isinstance(stream, str) or not stream or producer_id in item_attributes:
        return None
    return {**item_attributes, producer_id: stream}


def _is_fit(name: str, value: Any) -> bool:
    if name == names.NUMBER:
        return type(value) is int
    if name == names.END:
        return type(value) is bool
    forms = _FORMS.get(name)
    return (
        forms is not None
        and isinstance(value, str)
        and any(form.fullmatch(value) for form in forms)
    )


class _Last(NamedTuple):
    """The latest record of a stream."""

    number: int
    record_id: str
    raw: bytes
    value: str | None


Positions = dict[tuple[str, str], _Last]
"""The latest record of each stream, by its sender and its name."""


class Chains:
    """Compares each record with the previous one, if this process has received both.

    A stream moves on when its record is stored. If it moved when the record is read, a break would
    be lost with the request in which it was found: sent again, it would be a record that this
    process has seen.
    """

    def __init__(self) -> None:
        """Start with no stream known."""
        self._streams: BoundedCache[tuple[str, str], _Last] = BoundedCache(_STREAMS)
        # what was read, stored or not: the next request may come before this one is stored
        self._read: BoundedCache[tuple[str, str], _Last] = BoundedCache(_STREAMS)
        self._stored: BoundedCache[str, str] = BoundedCache(_STREAMS)

    def follow(
        self, item: ReceivedItem, sender: str, record_id: str, unstored: Positions
    ) -> Link | None:
        """Say whether a record follows the one before it.

        Args:
            item: The record as it came.
            sender: By which credential.
            record_id: Its id.
            unstored: How far the streams have come in its own request, to be given to
                `note_positions` once that is stored; this record is added.

        Returns:
            None: it names no record before it, or this process has not seen that one.
        """
        attributes = item.attributes
        stream, number = attributes.get(names.STREAM_ID), attributes.get(names.NUMBER)
        if not isinstance(stream, str) or type(number) is not int:
            return None
        place = (sender, stream[:256])
        own, stored, read = unstored.get(place), self._streams.get(place), self._read.get(place)
        known = own or stored
        if known is not None and number <= known.number:
            return None  # sent again, and judged before
        kept = item.raw if len(item.raw) <= _LONGEST_KEPT else b""
        value = attributes.get(names.VALUE)
        new = _Last(number, record_id, kept, value if isinstance(value, str) else None)
        unstored[place] = new
        if read is None or number > read.number:
            self._read.put(place, new)
        before = (one for one in (own, stored, read) if one is not None)
        last = next((one for one in before if one.number == number - 1), None)
        return None if last is None else self._link(attributes, last)

    def note_positions(self, stored: Positions) -> None:
        """Remember how far streams have come with what is stored now."""
        for place, new in stored.items():
            last = self._streams.get(place)
            if last is None or new.number > last.number:
                self._streams.put(place, new)

    def _link(self, attributes: Mapping[str, Any], last: _Last) -> Link | None:
        hashed = names.attribute_by_any_name(attributes, names.PREVIOUS_HASH)
        previous = attributes.get(names.PREVIOUS_RECORD_ID)
        if hashed is None and previous is None:
            return None
        if previous is not None and previous != last.record_id:
            return "broken"
        if hashed is None:
            return "linked"
        previous_hash = _digest(hashed)
        return (
            "linked"
            if previous_hash is not None and previous_hash in self._hashes(last)
            else "broken"
        )

    def note_stored(self, record_id: str, hashed: str) -> None:
        """Remember the hash that a receipt gave: the next record may name it."""
        self._stored.put(record_id, hashed)

    def _hashes(self, last: _Last) -> set[str]:
        """Every hash by which the next may name a record: the draft does not say which."""
        found = {self._stored.get(last.record_id) or ""}
        if last.value is not None:
            found.add(_digest(last.value) or "")
        try:
            record = parse_log(last.raw)
            found |= {hashlib.sha256(text).hexdigest() for _, text in canonical_forms(record)}
        except UndecodableRecordError:
            pass  # what is too long to be remembered has the hash of its receipt only
        return found - {""}


def break_id(occurred_at: int, record_id: str) -> str:
    """The id of the record of a break: the same, however often the break is delivered."""
    return derived_uuid7(occurred_at, record_id, "chain")


def stored_hash(payload: bytes) -> str | None:
    """The hash for a receipt; None where the text has none in RFC 8785."""
    try:
        return integrity_hash(payload)
    except (ValueError, RecursionError):
        return None


def _digest(value: Any) -> str | None:
    """A hash or signature as it can be compared: in hex, from hex or base64."""
    if not isinstance(value, str):
        return None
    text = value.partition(":")[2] or value
    if re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        return text.lower()
    try:
        padded = text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4)
        return base64.b64decode(padded, validate=True).hex()
    except binascii.Error:
        return None
