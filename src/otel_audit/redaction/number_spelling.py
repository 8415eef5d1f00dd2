"""JSON numbers in the spelling that was sent: `1.10` stays `1.10`, 17 digits stay 17 digits.

What is decoded is a float for whoever reckons with it, and is encoded again as it was spelled.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

import msgspec

from otel_audit.redaction.json_values import NotUnderstoodError

_LONGEST: Final = 255
"""Characters of a number; what has more is worth no more than a double."""


class SpelledFloat(float):
    """A float that knows how it was spelled."""

    __slots__ = ("spelled",)

    spelled: str

    @classmethod
    def read(cls, spelled: str) -> float | str:
        """Read a number; one that no double holds becomes a text, which any JSON reader takes."""
        if len(spelled) > _LONGEST:
            value = float(spelled)
            return "Infinity" if math.isinf(value) else value
        found = cls(spelled)
        found.spelled = spelled
        return (
            spelled
            if math.isinf(found) or (float(found) == 0 and _IS_SOMETHING(spelled))
            else found
        )


_IS_SOMETHING: Final = re.compile("[-0.]*[1-9]").match
"""Whether a number is not 0, however many times smaller than 1 it is."""


def _spell(value: Any) -> Any:
    if isinstance(value, SpelledFloat):
        return msgspec.Raw(value.spelled.encode())
    raise NotImplementedError(f"Encoding objects of type {type(value).__name__} is unsupported")


_decode: Final = msgspec.json.Decoder(float_hook=SpelledFloat.read).decode
encode: Final = msgspec.json.Encoder(enc_hook=_spell).encode
"""Encode JSON's types, numbers as they were spelled."""


def parse_exact(text: str | bytes) -> Any:
    """Parse JSON as `walk.parse_json` does, but so that `encode` gives each number back as it was.

    Raises:
        NotUnderstoodError: It is not JSON, or too deep, or holds a number too long to read.
    """
    try:
        return _decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass
    try:
        return json.loads(text, parse_float=SpelledFloat.read)
    except (ValueError, RecursionError):
        raise NotUnderstoodError("JSON") from None
