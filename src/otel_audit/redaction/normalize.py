"""Lookalike characters as the ASCII ones that they stand for, place for place.

A card's number in full-width or Arabic digits, with a hair space or something invisible between its
groups, is the same number. Here no character is added or lost, so what a pattern finds in this view
stands at the same place in the text itself.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Final

from otel_audit._util.lazy_pattern import LazyPattern

INVISIBLE: Final = "\u200b"
"""Stands for each character that is not seen."""

_RANGES: Final = (
    range(0xA0, 0x3100), range(0xA620, 0xAC00), range(0xFE00, 0x10000), range(0x1D400, 0x1D800),
)  # fmt: skip
_FORMS: Final = 0xFE00
"""From here on Unicode has variation selectors, and forms of letters such as those of full
width."""
_FULL_STOPS: Final = {"\u3002": ".", "\uff0e": ".", "\uff61": ".", "\u2212": "-", "\ufe63": "-"}


def _looks_like(letter: str) -> str | None:
    plain: str | None = None
    if letter in _FULL_STOPS:
        plain = _FULL_STOPS[letter]
    elif (kind := unicodedata.category(letter)) == "Nd":
        plain = str(unicodedata.digit(letter))
    elif kind == "Zs":
        plain = " "
    elif kind == "Pd":
        plain = "-"
    elif kind == "Cf" or 0xFE00 <= ord(letter) <= 0xFE0F:  # noqa: PLR2004 - variation selectors
        plain = INVISIBLE
    else:
        form = unicodedata.normalize("NFKC", letter)
        is_one = len(form) == 1 and form.isascii()
        # a letter of another kind edges a word: only the forms that fonts have stand for letters
        plain = form if is_one and (ord(letter) >= _FORMS or not form.isalpha()) else None
    return plain


@cache
def _table() -> dict[int, str]:
    """Look at each letter once; many a process never reads a text that is not ASCII."""
    return {
        code: plain
        for codes in _RANGES
        for code in codes
        if (plain := _looks_like(chr(code))) is not None
    }


def _class_of(codes: list[int]) -> str:
    """Spell a character class of ranges."""
    spelled: list[str] = []
    first = last = codes[0]
    for code in [*codes[1:], 0]:
        if code == last + 1:
            last = code
            continue
        spelled.append(f"{re.escape(chr(first))}-{re.escape(chr(last))}")
        first = last = code
    return f"[{''.join(spelled)}]+"


_ODD: Final = LazyPattern(lambda: _class_of(sorted(_table())), None, re.compile)


def plain_view(text: str) -> str:
    """Give a text of the same length in which lookalikes are what they look like."""
    if text.isascii():
        return text
    table = _table()
    return str(_ODD.sub(lambda found: found.group().translate(table), text))
