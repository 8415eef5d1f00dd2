"""Recovery of an invalid OTLP/JSON item: its readable parts, and the list of the others.

A sender in JavaScript cuts texts in the middle of a character, spells numbers beyond 64 bits, or
writes ids in base64. One such value must not cost the record, and must not pass in silence.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from otel_audit.server.decode_attributes import DEEPEST

_HALVES: Final = re.compile("[\ud800-\udfff]")
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{32}|[0-9a-fA-F]{16})?").fullmatch
_DIGITS: Final = re.compile(r"-?[0-9]{1,20}").fullmatch
_LONGEST_INTEGER: Final = 20
"""Digits of the largest number of 64 bits."""
_INT64: Final = 1 << 63
"""One above the largest `int64`."""
_UINT64: Final = 1 << 64
"""One above the largest ``fixed64``."""
_MOST_NOTES: Final = 20
"""Notes of one item: a row shows them."""
_BOOLEANS: Final = {"true": True, "false": False, 1: True, 0: False}


class UndecodableError(ValueError):
    """Nothing can be read of it; the message says why."""


class Lenient:
    """Reads one item.

    Attributes:
        item: The item's fields.
        notes: What could not be read as it came: places within the item and why, no values.
    """

    def __init__(self, raw: bytes) -> None:
        """Parse the item.

        Args:
            raw: Its text in JSON.

        Raises:
            UndecodableError: It is not JSON.
        """
        self.notes: list[str] = []
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = raw.decode("utf-8", "replace")
            self._note("the item", "is not UTF-8; what is not a character was replaced")
        try:
            self.item: dict[str, Any] = json.loads(text, parse_int=_integer, strict=False)
        except RecursionError:
            raise UndecodableError("it is nested too deep") from None
        except ValueError:
            raise UndecodableError("it is malformed JSON") from None

    def text(self, name: str) -> str:
        """Read a text, empty where there is none."""
        return self._text(self.item.get(name, ""), name)

    def id(self, name: str) -> str:
        """Read an id, empty where there is none."""
        found = self.item.get(name, "")
        if isinstance(found, str) and _HEX(found) is not None:
            return found.lower()
        self._note(name, "is not in hex, 32 digits for a trace and 16 for a span; left out")
        return ""

    def time(self, name: str) -> int:
        """Read a time, 0 where there is none."""
        found = self.item.get(name, 0)
        if isinstance(found, str) and _DIGITS(found) is not None:
            found = int(found)
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if type(found) is int and 0 <= found < _UINT64:
            return found
        self._note(name, "is not a time in nanoseconds; left out")
        return 0

    def attributes(self, name: str = "attributes") -> dict[str, Any]:
        """Read the attributes."""
        return self._pairs(self.item.get(name, []), name, 0)

    def value(self, name: str) -> Any:
        """Read one value, None if there is none."""
        return self._value(self.item.get(name), name, 0)

    def _pairs(self, pairs: Any, place: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if not isinstance(pairs, list):
            self._note(place, "is not a list; left out")
            return found
        for number, pair in enumerate(pairs):
            here = f"{place}[{number}]"
            if not isinstance(pair, dict) or not isinstance(pair.get("key", ""), str):
                self._note(here, "is not an attribute; left out")
                continue
            key = self._text(pair.get("key", ""), f"{here}.key")
            found[key] = self._value(pair.get("value"), f"{here}.value", depth)
        return found

    def _value(self, value: Any, place: str, depth: int) -> Any:
        if value is None or depth > DEEPEST:
            return None
        if not isinstance(value, dict):
            self._note(place, 'is not a value such as {"stringValue": …}; taken for what it is')
            return self._plain(value, place)
        kinds = {
            "stringValue": self._string, "boolValue": self._boolean, "intValue": self._integer,
            "doubleValue": self._double, "arrayValue": self._list, "kvlistValue": self._map,
            "bytesValue": self._string,
        }  # fmt: skip
        for kind, read in kinds.items():
            found = value.get(kind)
            if found is not None:
                return read(found, f"{place}.{kind}", depth)
        return None

    def _string(self, value: Any, place: str, _: int) -> str:
        return self._text(value, place)

    def _boolean(self, value: Any, place: str, _: int) -> Any:
        if isinstance(value, bool):
            return value
        self._note(place, "is not a boolean")
        word = value.lower() if isinstance(value, str) else value
        return _BOOLEANS.get(word, None) if isinstance(word, str | int) else None

    def _integer(self, value: Any, place: str, _: int) -> Any:
        if isinstance(value, str) and _DIGITS(value) is not None:
            value = int(value)
        if type(value) is int and -_INT64 <= value < _INT64:
            return value
        self._note(place, "is not an integer of 64 bits; kept as a text")
        return self._spelled(value)

    def _double(self, value: Any, place: str, _: int) -> Any:
        try:
            return float(value)
        except (ValueError, TypeError, OverflowError):
            self._note(place, "is not a number; kept as a text")
            return self._spelled(value)

    def _list(self, value: Any, place: str, depth: int) -> Any:
        values = value.get("values", []) if isinstance(value, dict) else None
        if not isinstance(values, list):
            self._note(place, "has no list of values; left out")
            return None
        return [
            self._value(one, f"{place}.values[{number}]", depth + 1)
            for number, one in enumerate(values)
        ]

    def _map(self, value: Any, place: str, depth: int) -> Any:
        values = value.get("values", []) if isinstance(value, dict) else None
        return self._pairs(values, f"{place}.values", depth + 1)

    def _plain(self, value: Any, place: str) -> Any:
        if isinstance(value, bool | float) or value is None:
            return value
        if isinstance(value, int):
            return value if -_INT64 <= value < _INT64 else str(value)
        return self._text(value, place) if isinstance(value, str) else self._spelled(value)

    def _text(self, value: Any, place: str) -> str:
        if not isinstance(value, str):
            self._note(place, "is not a text; kept as one")
            return self._spelled(value)
        if value.isascii() or _HALVES.search(value) is None:
            return value
        self._note(place, "holds half of a character, which was replaced")
        return _HALVES.sub("�", value)

    @staticmethod
    def _spelled(value: Any) -> str:
        if isinstance(value, str):
            return _HALVES.sub("�", value)
        return "" if value is None else json.dumps(value)

    def _note(self, place: str, why: str) -> None:
        if len(self.notes) < _MOST_NOTES:
            self.notes.append(f"{place} {why}")


def _integer(digits: str) -> int | str:
    """A longer one would take long to read, and has no place in OTLP."""
    return int(digits) if len(digits) <= _LONGEST_INTEGER else digits
