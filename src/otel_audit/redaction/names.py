"""Name rules: names whose values must not be stored.

A name is normalised once (`spelled`), split into words, and judged by rules over words. The words
are in ``data/names.toml``, the only list of its kind; the constants here have the file's names.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import re2

from otel_audit._util.lazy_pattern import LazyPattern
from otel_audit.errors import ConfigurationError
from otel_audit.redaction.load_data import name_table
from otel_audit.setting_values import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_TABLE: Final = name_table()

ANYWHERE: Final = _TABLE.anywhere
"""Sensitive anywhere in a name, in any style: ``newPassword``, ``DB_PASSWD_OLD``."""

ALIGNED: Final = _TABLE.aligned
"""Sensitive as whole words of a name: ``user_otp``, ``csrfToken``, but not ``hotpot``."""

WHOLE: Final = _TABLE.whole
"""Sensitive only as the whole name, or as the last part of a path of names (`user[auth]`)."""

HEADERS: Final = _TABLE.headers
"""Headers that carry credentials by their nature, in lower case."""

# compiled with the first name: these large ones are a good part of what a start costs
_SECRET_TYPE: Final = LazyPattern("|".join(_TABLE.types), re.IGNORECASE, re.compile)
_SECRET_FUNCTION: Final = LazyPattern("|".join(_TABLE.functions), re.IGNORECASE, re.compile)

_EXTENSION: Final = "x_"
"""Beginning of a name with its separator: ``x_ray`` has it, ``xray`` has not."""
_EXTENSIONS: Final = re.compile(r"[\W_]*(?:x[\W_]+)+", re.IGNORECASE)
"""All such beginnings of a name, in any style: of ``X-ray`` and of ``x-x_ray``."""
_BRACKETS: Final = re.compile(r"[\[\]]+")
_MOST_PARTS: Final = 16
"""Different parts of a nested name that are judged; a form that a person made nests a few."""
_CACHED_NAME: Final = 128
"""Characters of a name whose verdict is remembered: clients choose names, and memory is bounded."""
REMEMBERED: Final = 4_096
"""Names whose verdict is remembered: fields, columns and headers, and those that clients invent."""
_LONGEST_NAME: Final = 1_000
"""Characters of a name that is judged; the value of a longer one is removed."""
_MOST_WORDS_OF_ONE: Final = 5
"""Words that are read as one, as in ``pass_word``."""
_SHORTEST_OPAQUE: Final = 5
"""Characters of an identifier; what is shorter is a word or a short number."""
_LONG_OPAQUE: Final = 16
"""Characters from which letters alone, in both cases, are no word any more."""
_MOST_COUNTED: Final = 64
"""Values below a name that are looked at to see that all are numbers."""
_FEW_DIGITS: Final = 15
"""Digits of a text that can be a count; a longer one may be a code."""

# the tables of names need it at once
_MARKS: Final = re.compile(
    # what is written over, under or between letters, and what is not seen at all
    "[\u00ad\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a"
    "\u061c\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0900-\u0903"
    "\u093a-\u093c\u093e-\u094f\u0951-\u0957\u0962\u0963\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u180e"
    "\u1ab0-\u1aff\u1dc0-\u1dff\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20d0-\u20ff\u3099\u309a"
    "\ufe00-\ufe0f\ufe20-\ufe2f\ufeff]+"
)
_OTHER_DIGIT: Final = re.compile(r"(?![0-9])\d")
_LETTERS: Final = str.maketrans({
    "ß": "ss", "ẞ": "SS", "ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D", "ı": "i",  # noqa: RUF001 - this letter is meant
    "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ð": "d", "Ð": "D", "þ": "th", "Þ": "TH",
})  # fmt: skip
_SPECIAL: Final = re.compile("[ßẞłŁøØđĐıæÆœŒðÐþÞ]")

_WORD_PATTERN: Final = (
    r"(?:[A-Z]{2,}s(?![a-z])"  # SSNs
    r"|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W_A-Za-z0-9]+)"
)
_WORD: Final = re.compile(_WORD_PATTERN)
_MARKED_WORD: Final = re.compile(f"_?{_WORD_PATTERN}")
_SEPARATORS: Final = re.compile(r"[\W_]+")


def spelled(text: str) -> str:
    """Spell a text in the letters that names are judged by; upper case stays.

    Compatibility forms become the plain ones, marks and what is invisible go, digits are ASCII.
    """
    if text.isascii():
        return text
    text = _MARKS.sub("", unicodedata.normalize("NFKD", text))
    if _SPECIAL.search(text) is not None:
        text = text.translate(_LETTERS)
    return _OTHER_DIGIT.sub(lambda digit: str(unicodedata.digit(digit.group())), text)


def squash(name: str) -> str:
    """Reduce a name to what all of its styles share: letters and digits, without regard to case."""
    if name.isascii():
        return _SEPARATORS.sub("", name.lower())
    return _SEPARATORS.sub("", spelled(name).casefold())


def name_words(name: str) -> list[str]:
    """Split a name of any style into its words, in lower case: ``userOTPCode`` has three."""
    return [word.casefold() for word in _WORD.findall(spelled(name))]


@dataclass(frozen=True, slots=True)
class NameVerdict:
    """Verdict of the name rules on one name.

    Attributes:
        rule: The rule that makes it sensitive, for example ``name:password``; None if none does.
        numbers_pass: Whether a number under it is not sensitive (``max_tokens``).
        asserts: Whether it asks yes or no, so that such an answer is not sensitive.
        opaque: Whether it is sensitive only where the value looks like an identifier that lets in.
        configured: Whether the application says so, which is all there is to it.
        allowed: Whether the application calls it not sensitive. Then a value that merely looks
            like a card or account number stays readable.
    """

    rule: str | None = None
    numbers_pass: bool = False
    asserts: bool = False
    opaque: bool = False
    configured: bool = False
    allowed: bool = False

    def takes(self, value: Any) -> bool:
        """Return whether the value under the name must be removed."""
        if self.rule is None or value is None:
            return False
        if self.configured:
            return True
        kind = type(value)
        if kind is bool or (kind is dict and _is_schema(value)):
            return False
        if self.opaque:
            return kind is str and looks_opaque(value)
        if self.numbers_pass and _counts(value):
            return False
        return not (self.asserts and kind is str and value.strip().casefold() in _TABLE.answers)


CLEAR: Final = NameVerdict()
_ALLOWED: Final = NameVerdict(allowed=True)
_CONFIGURED: Final = NameVerdict(rule="name:configured", configured=True)
_TOO_LONG: Final = NameVerdict(rule="name:too_long", configured=True)


def looks_opaque(text: str) -> bool:
    """Return whether a text looks like an identifier of a program: no blanks, no plain word."""
    if len(text) < _SHORTEST_OPAQUE or any(map(str.isspace, text)):
        return False
    digits = any(map(str.isdigit, text))
    letters = any(map(str.isalpha, text))
    if digits and letters:
        return True
    return len(text) >= _LONG_OPAQUE and letters and text != text.lower() and text != text.upper()


def _is_schema(value: dict[Any, Any]) -> bool:
    """Return whether an object only describes a field, as JSON Schema and OpenAPI do."""
    return value.get("type") in _TYPES and value.keys() <= _OF_SCHEMAS


_TYPES: Final = ("string", "integer", "number", "boolean", "array", "object")
_OF_SCHEMAS: Final = frozenset({
    "type", "format", "title", "description", "minLength", "maxLength", "nullable", "writeOnly",
    "readOnly", "deprecated", "minimum", "maximum",
})  # fmt: skip
"""Keywords that hold no value of the field, as `default` and `example` do."""


def _counts(value: Any) -> bool:
    """Return whether a value is a number, or holds nothing else: usage of a language model."""
    left = [value]
    for _ in range(_MOST_COUNTED):
        if not left:
            return True
        one = left.pop()
        if isinstance(one, dict):
            left += one.values()
        elif isinstance(one, str):
            if len(one) > _FEW_DIGITS or not one.isdecimal():
                return False
        elif isinstance(one, list | tuple) or not isinstance(one, int | float | None):
            return False
    return False


class NameRules:
    """The built-in name rules, and the names an application adds or allows.

    A name with ``*`` is a pattern over the name in snake case. What is named both to redact and
    to allow is redacted. A name to redact counts also behind ``x-`` and as a part of
    ``patient[name]``, unless a name to allow is all of it: that says more of it than its part.
    One to allow is always the whole name, because ``X-Api-Key`` is not ``api_key``.
    """

    def __init__(self, redact: Iterable[str] = (), allow: Iterable[str] = ()) -> None:
        """Compile the rules.

        Args:
            redact: Names or patterns that are sensitive in addition to the built-in ones.
            allow: Names or patterns that are not sensitive.

        Raises:
            ConfigurationError: One of them has neither a letter nor a digit.
        """
        self.added = _checked("REDACT_FIELDS", redact)
        self._redact = _Matcher(self.added)
        self._allow = _Matcher(_checked("REDACT_ALLOW", allow))
        self._judge = lru_cache(maxsize=REMEMBERED)(self._decide)

    def judge(self, name: str) -> NameVerdict:
        """Return what a name says about its value; cheap for a cached name."""
        if len(name) <= _CACHED_NAME:
            return self._judge(name)
        return self._decide(name) if len(name) <= _LONGEST_NAME else _TOO_LONG

    def _decide(self, name: str) -> NameVerdict:
        squashed = squash(name)
        if self._redact.matches(name, squashed):
            return _CONFIGURED
        if self._allow.is_named(squashed):
            return _ALLOWED
        if self.added and (verdict := self._judge_parts(name)) is not None:
            return verdict
        return _ALLOWED if self._allow.matches(name, squashed) else built_in(name)

    def _judge_parts(self, name: str) -> NameVerdict | None:
        written = spelled(name)
        parts = {*_BRACKETS.split(written), written}
        if len(parts) > _MOST_PARTS:
            return _TOO_LONG
        for part in parts:
            forms = [] if part is written else [part]
            if (extension := _EXTENSIONS.match(part)) is not None:
                bare = part[extension.end() :]
                forms += [bare, f"x_{bare}"]  # a name to redact may have one of its own
            if any(self._redact.matches(form, squash(form)) for form in forms):
                return _CONFIGURED
        return None


def _checked(setting: str, names: Iterable[str]) -> tuple[str, ...]:
    chosen = tuple(name for name in names if name.strip())
    for name in chosen:
        if name.strip() != "*" and not squash(name):
            raise ConfigurationError(
                f"{PREFIX}{setting}: {name!r} has neither a letter nor a digit, so it matches no "
                "name; write the name as it stands in the data"
            )
    return chosen


def built_in(name: str) -> NameVerdict:
    """Return what a name says about its value, by the built-in rules alone."""
    squashed = squash(name)
    # an underscore replaces a separator in a name
    candidates = tuple(_candidates(name))
    for candidate in candidates:
        if candidate in _WHOLE_FORMS:
            rule = f"name:{candidate.replace('_', '')}"
            return NameVerdict(rule=rule, asserts=candidate in _TABLE.asserting)
    found = _anywhere_in(squashed) or _aligned_in(name)
    if found is None:
        return _opaque(candidates)
    words = name_words(name)
    if squashed in _TABLE.wholly_about or is_about(words, squashed, found):
        return CLEAR
    first, last = words[0], words[-1]
    before = squashed.partition(found)[0]
    counted = found in _TABLE.counted or f"{found}s" in words
    return NameVerdict(
        rule=f"name:{found}",
        numbers_pass=not _TABLE.countable.isdisjoint(words)
        or (counted and not _TABLE.counts.isdisjoint((first, last, before))),
        asserts=not _TABLE.asserts.isdisjoint((first, last, before)),
    )


def is_secret_type(name: str) -> bool:
    """Return whether a column's type, by its name, holds secrets: encrypted or a password."""
    return _SECRET_TYPE.search(name) is not None


def is_secret_function(name: str) -> bool:
    """Return whether the arguments of an SQL function are secrets, whatever takes its outcome."""
    return _SECRET_FUNCTION.search(name) is not None


def _candidates(name: str) -> Iterator[str]:
    """Give the forms of a name that are looked up as a whole: all of it, and its last parts.

    One that begins with ``x-`` counts also as without: ``X-User-Pin`` is a ``user_pin``. Only one
    ``x-`` goes: these names are ordinary words, which an application has not chosen.
    """
    for written in dict.fromkeys((name, *_last_parts(name))):
        form = _marked(written).casefold()
        yield form
        if form.startswith(_EXTENSION):
            yield form.removeprefix(_EXTENSION)


def _opaque(candidates: Iterable[str]) -> NameVerdict:
    for candidate in candidates:
        if candidate in _OPAQUE_FORMS:
            return NameVerdict(rule=f"name:{candidate.replace('_', '')}", opaque=True)
    return CLEAR


def _marked(name: str) -> str:
    return _SEPARATORS.sub("_", spelled(name)).strip("_")


def is_about(words: list[str], squashed: str, found: str) -> bool:
    """Return whether a name only tells something about a secret: ``password_length``."""
    tail = squashed.rpartition(found)[2]
    if words[-1] in _TABLE.about and tail.endswith(words[-1]):
        return True
    if "_".join(words[-2:]) in _TABLE.about_last:
        return True
    return tail in _ABOUT_TOGETHER or tail.removeprefix("s") in _ABOUT_TOGETHER


def _anywhere_in(squashed: str) -> str | None:
    if _UNRELATED.search(squashed) is not None:
        squashed = _UNRELATED.sub("0", squashed)
    found = _ANYWHERE_PATTERN.search(squashed)
    return None if found is None else found.group()


def _aligned_in(name: str) -> str | None:
    """Find a word, or several together, that are sensitive; plurals and digits do not count."""
    words = _MARKED_WORD.findall(_marked(name))
    for start in range(len(words)):
        together = ""
        for word in words[start : start + _MOST_WORDS_OF_ONE]:
            together += word
            form = together.lstrip("_").casefold()
            if form not in _ALIGNED_FORMS:
                form = form.removesuffix("s")
            if form in _ALIGNED_FORMS:
                return str(form.replace("_", ""))
        glued = _GLUED_WORD.fullmatch(words[start].lstrip("_").casefold())
        if glued is not None:
            return str(glued.group(1))
    return None


def _forms(name: str) -> Iterator[str]:
    """Spell a name of several words with and without a separator at each joint."""
    first, *others = name.split("_")
    for signs in itertools.product(("", "_"), repeat=len(others)):
        yield first + "".join(map(str.__add__, signs, others))


def _last_parts(name: str) -> Iterator[str]:
    """Give what may be the last part of a path of names.

    In brackets these are two: ``pin`` in ``user[pin][0]``, where a number only counts, and in
    ``user[pin]x``, where some readers of forms ignore the rest.
    """
    cut = name.rstrip("[]")
    yield _behind_separators(cut.rpartition("[")[2])
    parts = [one for one in _BRACKETS.split(cut) if one and not one.isdecimal()]
    if name.endswith("]") or "]" not in name:
        parts = parts[-1:]
    for part in parts[-2:]:
        yield _behind_separators(part)


def _behind_separators(name: str) -> str:
    for separator in "./:":
        name = name.rpartition(separator)[2]
    return name


class _Matcher:
    """Names compared in every style, patterns compared in snake case."""

    def __init__(self, names: Iterable[str]) -> None:
        chosen = list(names)
        self._plain = frozenset(squash(name) for name in chosen if "*" not in name) - {""}
        globs = "|".join(_glob(name) for name in chosen if "*" in name)
        self._globs = re2.compile(globs) if globs else None

    def is_named(self, squashed: str) -> bool:
        """Return whether it is one of the names that are no patterns."""
        return squashed in self._plain

    def matches(self, name: str, squashed: str) -> bool:
        globs = self._globs
        if globs is None or squashed in self._plain:
            return squashed in self._plain
        return any(globs.fullmatch(form) for form in (squashed, "_".join(name_words(name))))


def _glob(pattern: str) -> str:
    parts = ("_".join(name_words(part)) for part in pattern.split("*"))
    edged = []
    for part, written in zip(parts, pattern.split("*"), strict=True):
        before = "_" if written[:1] in ("_", "-", ".", " ") else ""
        after = "_" if len(written) > 1 and written[-1:] in ("_", "-", ".", " ") else ""
        edged.append(re2.escape(f"{before}{part}{after}"))
    return ".*".join(edged)


_ANYWHERE_PATTERN: Final = LazyPattern(
    "|".join(dict.fromkeys(squash(phrase) for phrase in ANYWHERE)), None, re.compile
)


def _all_forms(names: Iterable[str]) -> frozenset[str]:
    return frozenset(form for name in names for form in _forms(spelled(name).casefold()))


_WHOLE_FORMS: Final = _all_forms(WHOLE)
_ALIGNED_FORMS: Final = _all_forms(ALIGNED)
_OPAQUE_FORMS: Final = _all_forms(_TABLE.opaque)
GLUED: Final = frozenset(
    word
    for word in _ALIGNED_FORMS
    if word.isascii() and len(word) <= 4  # noqa: PLR2004 - a short form
)
"""Short words that also count glued behind a word that says whose: ``userssn``."""

_GLUED_WORD: Final = LazyPattern(
    rf"(?:{'|'.join(_TABLE.owners)})({'|'.join(sorted(GLUED))})s?", None, re.compile
)
_UNRELATED: Final = LazyPattern(
    "|".join(squash(name) for name in _TABLE.unrelated), None, re.compile
)
_ABOUT_TOGETHER: Final = (
    _TABLE.about
    | {f"{verb}{end}" for verb in _TABLE.about_done for end in _TABLE.about_moments}
    | _TABLE.about_together
)
