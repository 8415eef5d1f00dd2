"""Search for anything that a rule could take out of a text.

It may be wrong in one direction only: what it calls clean, no rule touches. Names are matched here
in a broader way than `names.py` judges them, values in a broader way than `values.py` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import re2

from otel_audit._util.lazy_pattern import LazyPattern
from otel_audit.redaction import names
from otel_audit.redaction.checksums import IBAN_LENGTHS
from otel_audit.redaction.labelled_values import FLAG_PATTERN, SPECIAL_PATTERN
from otel_audit.redaction.load_data import key_shapes, name_table
from otel_audit.redaction.secret_urls import QUERY_PATTERN, SEGMENT_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_GAP = r'[^a-z0-9"\\]*'
_EDGE = "(?-i:[^A-Za-z0-9])"
"""Before a word. Regardless of case the letters would include U+017F and U+212A, which edge one."""

_VALUES: Final = (
    r"\\u00", r"%[0-9a-f]{2}", r"private key|putty-user|age-secret",
    r"e(?:yj|ya|wo|wk|yi)[a-z0-9_-]{4,}\.", r"://[^\s\"]*@", r"bearer|basic[^a-z]",
    r"(?:slack|discord|discordapp|zapier|office)\.com",
    r"input_value|--[a-z]|[\s\"'](?:-u|-p|-a|-w)|['\"]input['\"]",
    # what the messages say that quote values
    r"invalid input|out of range|malformed|value \\?[\"']|duplicate|row contains|parameters: ",
    r"\$[0-9]+ = |incorrect|converting the|truncated value|column values|dup key|isoformat",
    r"invalid literal|could not convert|invalid [a-z]+ sequence|jdbc:|identified\s|crypt\s*\(",
    r"sqlplus|sqlldr|expdp|impdp|rman|set\s+password|key \(",
    r"hmac\s*\(|conn(?:ect)?\s{1,8}[^\s/@:]+/[^\s/@]+@",
    # messages to a person: `your code is 123456`
    r"(?:code|pin|otp|password|passcode|tan)\s+is|[ai]s\s+your\s",
    # a table in a text, whose first line has the names
    r"[,;\t](?:pin|pass|pw)[,;\t\r\n]",
    FLAG_PATTERN, SPECIAL_PATTERN, QUERY_PATTERN, SEGMENT_PATTERN,
    # the beginnings of the vendors' shapes
    *(shape.hint.replace("EDGE", _EDGE) for shape in key_shapes()),
)  # fmt: skip
_NUMBERS: Final = (
    # such a number may be beyond what a double holds, or a reader reads: the store would refuse
    # the row (so may one of 64 digits, which the next pattern finds)
    r"[0-9.]e[+-]?[0-9]{3}",
    r"[0-9](?:[^a-z0-9\"\\,:;]{0,3}[0-9]){12}|[0-9]{4}(?:[,:;][0-9]{4}){3}",
    r"[0-9]{3}(?:[-. ]|[^\x00-\x7f])[0-9]{2}(?:[-. ]|[^\x00-\x7f])[0-9]{4}",
    rf"{_EDGE}(?:{'|'.join(IBAN_LENGTHS)})[0-9]{{2}}[^a-z0-9]?[a-z0-9]{{2}}",
)


class Scan:
    """The search, compiled for one configuration."""

    def __init__(self, added_names: Iterable[str] = (), *, emails: bool = False) -> None:
        """Compile.

        Args:
            added_names: The application's names and patterns, in addition to the built-in ones.
            emails: Whether e-mail addresses are redacted.
        """
        added = [[names.squash(piece) for piece in name.split("*")] for name in added_names]
        pieces = [max(parts, key=len) for parts in added]
        latin = [name for name in map(names.squash, names.PHRASES) if name.isascii()]
        roots = _roots([*latin, *(piece for piece in pieces if piece.isascii())])
        alike = [
            *_VALUES,
            *_NUMBERS,
            *(["@"] if emails else []),
            "|".join(_letters(root) for root in roots),
            r'"[^"\\]*[^\x00-\x7f][^"\\]*"\s*:',
            *_short_names(),
        ]
        others = [piece for piece in pieces if not piece.isascii()]
        self._pattern = _compiled(alike)
        # an accent that is taken off, or a letter that is, no longer shows where a word begins
        self._spelled_pattern = _compiled([*alike, *_other_scripts(others)])
        self._anything = not all(pieces)

    def suspects(self, text: bytes) -> bool:
        """Search JSON text, valid UTF-8 and free of backslashes."""
        if self._anything or self._pattern.search(text) is not None:
            return True
        return not text.isascii() and self._spelled_pattern.search(_spelled(text)) is not None

    def suspects_string(self, text: str) -> bool:
        """Search a string as in JSON text, in quotes."""
        return self.suspects(b'"%b"' % text.encode())


def _short_names() -> Iterator[str]:
    """Patterns of names that are too short to be looked for in the midst of a word."""
    table = name_table()
    exact = _any_of((*names.EXACT, *table.opaque))
    words = sorted(name for name in names.WORDS if name.isascii())
    apart = "|".join(_GAP.join(name.split("_")) for name in words)
    yield rf"{_EDGE}(?:{exact})[\W_]*[=:>\"']"
    yield rf'<(?:[^\s<>"\\]*[\W_])?(?:{exact})[\W_]*\s'
    yield f"(?-i:[^A-Za-z])(?:{apart})"
    camel = (_GAP.join(map(_either_case, name.split("_"))) for name in words)
    yield f"[A-Za-z0-9](?-i:{'|'.join(name[2] + name[4:] for name in camel)})"
    glued = "|".join(table.owners)
    yield rf"(?-i:[^A-Za-z])(?:{glued})(?:{'|'.join(sorted(names.GLUED))})"


def _other_scripts(added: Iterable[str]) -> Iterator[str]:
    """Patterns of names in other scripts than Latin, over a text as `names.spelled` spells it."""
    table = name_table()
    every = (*names.PHRASES, *names.WORDS, *names.EXACT, *table.opaque)
    parts = [
        [names.squash(part) for part in name.split("_")] for name in every if not name.isascii()
    ]
    yield "|".join(sorted({_BETWEEN.join(map(re2.escape, words)) for words in parts}))
    if added:
        yield "|".join(_BETWEEN.join(map(re2.escape, name)) for name in sorted(added))


_BETWEEN: Final = r'[^\pL\pN"\\]*'
"""Characters that may be between the words of a name, in any script."""


def _any_of(every: Iterable[str]) -> str:
    return "|".join(sorted({_GAP.join(name.split("_")) for name in every if name.isascii()}))


def _compiled(patterns: Iterable[str]) -> LazyPattern:
    options = re2.Options()
    options.never_capture = True
    options.case_sensitive = False
    options.max_mem = 64 << 20
    options.log_errors = False
    whole = "|".join(f"(?:{pattern})" for pattern in patterns)
    return LazyPattern(whole.encode(), options)


def _roots(phrases: Iterable[str]) -> list[str]:
    """Drop names that contain another: a search for `token` finds `access_token`."""
    every = {phrase for phrase in phrases if phrase}
    return sorted(p for p in every if not any(q != p and q in p for q in every))


def _letters(word: str) -> str:
    return _GAP.join(word)


def _spelled(text: bytes) -> bytes:
    """Spell a text in the letters that names are judged by: `contraseña` is `contrasena`."""
    return names.spelled(text.decode("utf-8", "replace")).encode("utf-8", "replace")


def _either_case(word: str) -> str:
    return "".join(f"[{letter}{letter.upper()}]" for letter in word)
