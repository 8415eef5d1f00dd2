"""Prefilters: data that clearly holds no secret passes without a walk through it.

They may be wrong in one direction only: what passes, no rule touches. Names are matched here in a
broader way than `names.py` judges them, values in a broader way than `patterns.py` does. There is
one for single values and one for parsed documents, which searches the whole text at once; the one
for JSON text is in `json_prefilter.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import re2

from otel_audit._util.cache import Memo
from otel_audit._util.lazy_pattern import MEMORY, LazyPattern
from otel_audit.redaction import names
from otel_audit.redaction.checksums import IBAN_LENGTHS
from otel_audit.redaction.labelled_values import FLAG_PATTERN, SPECIAL_PATTERN
from otel_audit.redaction.load_data import key_shapes, name_table
from otel_audit.redaction.number_spelling import SpelledFloat
from otel_audit.redaction.secret_urls import QUERY_PATTERN, SEGMENT_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from otel_audit.redaction.budget import Limits


_SHORTEST_FIND = 9
"""Characters; no value rule matches a text of letters and digits below this."""

_FEW_DIGITS = 10**9
"""Below this a number is not a card, account or social security number."""

# below the shortest key that letters alone can spell, which is AWS's: twenty
# a segment that fits is never read again in the other way: that would be two ways for each
_ORDINARY_PATH = re.compile(r"(?:/(?:[A-Za-z]{0,19}|[A-Za-z0-9]{0,8})(?=/|\Z))*+")
_SHORT_PATH = 256
"""Characters of a path about which it is remembered whether it is plain."""
_MANY_DIGITS = re.compile(r"(?:[^0-9]*+[0-9]){9}")

_AMOUNT = re.compile(r"-?[0-9]{1,7}(?:\.[0-9]{1,2})?")
_MOMENT = re.compile(
    r"[12][0-9]{3}-[01][0-9]-[0-3][0-9]"
    r"(?:T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](?:\.[0-9]{3}(?:[0-9]{3})?)?(?:Z|[+-][0-9]{2}:[0-9]{2})?)?"
)


def is_plain_path(path: str) -> bool:
    """Return whether a URL path clearly holds no secret: words, short numbers.

    Args:
        path: As requested.

    Returns:
        As for `is_plain`.
    """
    return _plain_paths[path]


def _is_plain_path(path: str) -> bool:
    return _ORDINARY_PATH.fullmatch(path) is not None and _MANY_DIGITS.match(path) is None


_plain_paths: Final[Memo[str, bool]] = Memo(
    _is_plain_path, 2048, lambda path: len(path) <= _SHORT_PATH
)
"""What was found of short paths: an application has few."""


def is_plain(value: Any) -> bool:
    """Return whether a value clearly holds no secret by its content.

    Args:
        value: Of any type; only JSON's own small ones are ever plain.

    Returns:
        True for booleans, small integers, short words, amounts, dates and times. False says
        nothing: such a value has to be looked at.
    """
    kind = type(value)
    if kind is str:
        if value.isascii() and value.isalnum() and len(value) < _SHORTEST_FIND:
            return True
        return _AMOUNT.fullmatch(value) is not None or _MOMENT.fullmatch(value) is not None
    if kind is int:
        return bool(-_FEW_DIGITS < value < _FEW_DIGITS)
    return kind is bool


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


class Prefilter:
    """The search, compiled for one configuration."""

    def __init__(self, added_names: Iterable[str] = (), *, emails: bool = False) -> None:
        """Compile.

        Args:
            added_names: The application's names and patterns, in addition to the built-in ones.
            emails: Whether e-mail addresses are redacted.
        """
        added = [[names.squash(piece) for piece in name.split("*")] for name in added_names]
        pieces = [max(parts, key=len) for parts in added]
        latin = [name for name in map(names.squash, names.ANYWHERE) if name.isascii()]
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
        # removing accents or letters can hide word boundaries, so this search ignores them
        self._spelled_pattern = _compiled([*alike, *_other_scripts(others)])
        self._anything = not all(pieces)

    def suspects(self, text: bytes) -> bool:
        """Search JSON text, valid UTF-8 and free of backslashes."""
        if self._anything or self._pattern.occurs_in(text):
            return True
        return not text.isascii() and self._spelled_pattern.occurs_in(_spelled(text))

    def suspects_string(self, text: str) -> bool:
        """Search a string as in JSON text, in quotes."""
        return self.suspects(b'"%b"' % text.encode())


def _short_names() -> Iterator[str]:
    """Patterns of names that are too short to be looked for inside of words."""
    table = name_table()
    exact = _any_of((*names.WHOLE, *table.opaque))
    words = sorted(name for name in names.ALIGNED if name.isascii())
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
    every = (*names.ANYWHERE, *names.ALIGNED, *names.WHOLE, *table.opaque)
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
    options.max_mem = MEMORY
    options.log_errors = False
    whole = "|".join(f"(?:{pattern})" for pattern in patterns)
    return LazyPattern(whole.encode(), options)


def _roots(phrases: Iterable[str]) -> list[str]:
    """Drop names that contain another: a search for `token` finds ``access_token``."""
    every = {phrase for phrase in phrases if phrase}
    return sorted(p for p in every if not any(q != p and q in p for q in every))


def _letters(word: str) -> str:
    return _GAP.join(word)


def _spelled(text: bytes) -> bytes:
    """Spell a text in the letters that names are judged by: ``contraseña`` is ``contrasena``."""
    return names.spelled(text.decode("utf-8", "replace")).encode("utf-8", "replace")


def _either_case(word: str) -> str:
    return "".join(f"[{letter}{letter.upper()}]" for letter in word)


@dataclass(frozen=True, slots=True)
class PrefilterResult:
    """Result of the prefilter.

    Attributes:
        names_clean: No key is one that a rule could touch.
        values_clean: No string and no number is one that a rule could touch.
    """

    names_clean: bool
    values_clean: bool


NOT_JUDGED = PrefilterResult(names_clean=False, values_clean=False)


def prefilter(document: Any, scan: Prefilter, limits: Limits) -> PrefilterResult:
    """Look at all keys and all strings of a document at once.

    Args:
        document: Any value; one that holds more than JSON's plain types is not judged.
        scan: The search.
        limits: A document beyond them is not judged.

    Returns:
        What is clean; where in doubt, nothing.
    """
    gathered = _gather(document, limits)
    if gathered is None:
        return NOT_JUDGED
    names, strings = gathered
    every_name, every_string = '":\n"'.join(names), '"\n"'.join(strings)
    if len(every_name) + len(every_string) > limits.length or "\0" in every_string + every_name:
        return NOT_JUDGED
    try:
        raw_names, raw_strings = every_name.encode(), every_string.encode()
    except UnicodeEncodeError:
        return NOT_JUDGED
    return PrefilterResult(
        # of an authorization code the names say it, and each by itself is an ordinary one
        names_clean="code" not in names
        and every_name.count('"') == 2 * max(len(names) - 1, 0)
        and "\\" not in every_name
        and not scan.suspects(b'"%b":' % raw_names),
        values_clean=not ("\\" in every_string and any(map(_may_hide_json, strings)))
        and not scan.suspects(b'"%b"' % raw_strings),
    )


def _may_hide_json(text: str) -> bool:
    return "\\" in text and text.lstrip()[:1] in ("{", "[", '"')


def _gather(document: Any, limits: Limits) -> tuple[list[str], list[str]] | None:
    """Collect keys and strings, level by level; None if there is more than can be judged so."""
    names: list[Any] = []
    strings: list[str] = []
    level = [document]
    nodes = 0
    for _ in range(limits.depth + 1):
        nodes += len(level)
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:
                strings.append(item)
            elif kind is dict:
                names += item
                below += item.values()
            elif kind is list:
                below += item
            elif not _is_plain(item):
                return None
        if nodes > limits.nodes:
            return None
        if not below:
            return (names, strings) if all(type(name) is str for name in names) else None
        level = below
    return None


def _is_plain(item: Any) -> bool:
    """Return whether a value is a short number, a bool, or None."""
    kind = type(item)
    if kind is int:
        return bool(-LONG_NUMBER < item < LONG_NUMBER)
    if kind is float or kind is SpelledFloat:
        return bool(-LONG_NUMBER < item < LONG_NUMBER)
    return item is None or kind is bool


LONG_NUMBER = 10**12
"""Numbers below it are shorter than any card's."""
