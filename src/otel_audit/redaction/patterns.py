"""Value rules: patterns of secrets under any name. A rule finds spans; it does not replace them.

All patterns are RE2 (linear time). `prefilter.py` holds a cheaper pattern that matches wherever one
of these could: change both together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import re2

from otel_audit._util.ids import UUID_PATTERN
from otel_audit._util.lazy_pattern import MEMORY, LazyPattern
from otel_audit.redaction import checksums
from otel_audit.redaction.key_value import PROSE
from otel_audit.redaction.load_data import key_shapes, quoted_values
from otel_audit.redaction.normalize import INVISIBLE
from otel_audit.redaction.placeholders import is_token

TextSpan = tuple[int, int]
Decide = Callable[[Any], Iterable[TextSpan]]

SHAPES: Final = frozenset({"card", "ssn", "iban", "email"})
"""Rules that go by a number's looks, so that an application may know better."""


@dataclass(frozen=True, slots=True)
class ValueRule:
    """One rule.

    Attributes:
        name: As findings name it.
        pattern: Compiled by ``re2``.
        decide: The spans of the whole text that a match of the pattern gives up; none if it is
            not sensitive after all.
        hints: Texts in lower case; where none of them occurs, the pattern cannot match. Empty:
            nobody knows.
        shortest: Characters below which the pattern cannot match.
        weight: Units of work that each character of a match costs which may be given up.
        within: Finds the pieces of a text outside of which the pattern matches nothing that it
            gives up; None if that is the whole text.
    """

    name: str
    pattern: Any
    decide: Decide
    hints: tuple[str, ...] = ()
    shortest: int = 0
    weight: float = 0.0
    within: Any = None


def _whole(match: Any) -> Iterable[TextSpan]:
    return (match.span(),)


def _first_group(match: Any) -> Iterable[TextSpan]:
    span = match.span(1)
    # nothing stands for what is not there
    return () if span[0] == span[1] or is_token(match.group(1)) else (span,)


_START: Final = r"(?:^|[^A-Za-z0-9])"
_UUID: Final = UUID_PATTERN

PRIVATE_KEY: Final = ValueRule(
    "private_key",
    LazyPattern(
        r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----.*?"
        r"(?:-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----|\z)"
        r"|PuTTY-User-Key-File-[0-9].*|AGE-SECRET-KEY-1[A-Z0-9]+"
    ),
    _whole,
    hints=("private key", "putty-user-key-file-", "age-secret-key-1"),
)

JWT: Final = ValueRule(
    "jwt",
    LazyPattern(_START + r"(e(?:yJ|yA|wo|wK|yI)[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*){1,4})"),
    _first_group,
    hints=("eyj", "eya", "ewo", "ewk", "eyi"),
)


def _many_states() -> Any:
    options = re2.Options()
    options.max_mem = MEMORY
    options.log_errors = False
    return options


VENDOR_KEY: Final = ValueRule(
    "vendor_key",
    LazyPattern(f"{_START}({'|'.join(shape.pattern for shape in key_shapes())})", _many_states()),
    _first_group,
    shortest=13,
)

# URLs to which whoever knows them may post
_HOOK = ValueRule(
    "vendor_key",
    LazyPattern(
        r"(?:hooks\.slack\.com/(?:services|workflows|triggers)|discord(?:app)?\.com/api/webhooks/[0-9]+"
        r"|hooks\.zapier\.com/hooks/catch|webhook\.office\.com/webhookb2)/([A-Za-z0-9/_@-]+)"
    ),
    _first_group,
    hints=("hooks.", "webhook"),
)


def _userinfo(match: Any) -> Iterable[TextSpan]:
    """Give up what stands before the host's ``@``, unless it is a port, or a plain user name."""
    userinfo = match.group(1)
    user, colon, rest = userinfo.partition(":")
    if is_token(userinfo) or _PORT_AND_PATH.match(rest) or "/" in user:
        return ()
    return (match.span(1),) if colon or len(user) > _LONGEST_USER_NAME else ()


_LONGEST_USER_NAME: Final = 15
"""Characters of a name before a host's `@` that is no token."""
_PORT_AND_PATH: Final = LazyPattern(r"[0-9]{1,5}[/?#]")

URL_CREDENTIALS: Final = ValueRule(
    # up to the last @ of the word, since people forget to escape one in a password
    "url_credentials",
    LazyPattern(r"[A-Za-z][A-Za-z0-9+.-]*://([^\s\"'<>]+)@"),
    _userinfo,
    hints=("://",),
)

_BEARER_PROSE: Final = frozenset({
    "token", "tokens", "auth", "authentication", "authorization", "scheme", "schemes", "format",
    "certificate", "certificates", "credential", "credentials", "security", "header", "shares",
    "realm", "error", "scope", "prefix", "method", "type", "must", "should", "required",
})  # fmt: skip
_SHORTEST_CREDENTIAL: Final = 6
"""Characters behind `Bearer` or ``Basic``; what is shorter is prose."""


def _scheme_credential(match: Any) -> Iterable[TextSpan]:
    scheme, token = match.group(1).lower(), match.group(2)
    word = token.partition("=")[0].strip(".,-").lower()
    if is_token(token) or word in _BEARER_PROSE or len(token) < _SHORTEST_CREDENTIAL:
        return ()
    if scheme == "bearer" or checksums.is_basic_credential(token):
        return (match.span(2),)
    return ()


AUTHORIZATION: Final = ValueRule(
    "authorization",
    LazyPattern(r"(?i)\b(bearer|basic)(?:\s|\\[nrt]|\+|%20)+([A-Za-z0-9._~+/-]+=*)"),
    _scheme_credential,
    hints=("bearer", "basic"),
)


def _quoted(match: Any) -> Iterable[TextSpan]:
    return () if (match.group(1) or "").strip().lower() in PROSE else _first_group(match)


# Messages of databases, of parsers, and command lines quote values without their names.
QUOTED_VALUES: Final = tuple(
    ValueRule(one.rule, LazyPattern(one.pattern), _quoted, hints=tuple(one.hint.split("|")))
    for one in quoted_values()
)


def _echoed_input(match: Any) -> Iterable[TextSpan]:
    """Find what a validation error says it was given, in its text: `'loc': …, 'input': …`."""
    return _first_group(match) if _LOC.search(match.string) is not None else ()


_LOC: Final = LazyPattern("[\"']loc[\"']\\s*:")
ECHOED_INPUT: Final = ValueRule(
    "input_value",
    LazyPattern(
        r"(?s)[\"']input[\"']\s*:\s?(.*?)"
        r"(?:,\s?[\"'](?:ctx|url|loc|msg)[\"']\s*:|\}\s*(?:\]|\)|\z|\n|,\s*\{)|\z)"
    ),
    _echoed_input,
    hints=("'input'", '"input"'),
)


def _card(match: Any) -> Iterable[TextSpan]:
    """Find card numbers in a run of digits: the run, each group alone, and groups as on a card."""
    run, offset = match.group(1), match.start(1)
    text, end = match.string, match.end(1)
    if offset < 0 or _is_in_digest(text, *match.span(1)):
        return ()
    groups = _groups_of(run)
    digits = "".join(run[start:stop] for start, stop in groups)
    as_on_a_card = _lengths(groups) in _CARD_GROUPS
    if not as_on_a_card and not _stands_alone(text, offset, end):
        return ()
    if checksums.is_card(digits, any_network=as_on_a_card):
        return (match.span(1),)
    return tuple((offset + start, offset + end) for start, end in _cards_within(run, groups))


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Return whether digits are a number of their own: no part of a word, no phone number."""
    before, behind = text[start - 1 : start], text[end : end + 1]
    return not (before == "+" or _is_letter(before) or _is_letter(behind))


def _is_letter(one: str) -> bool:
    return one.isascii() and one.isalpha()


def _is_in_digest(text: str, start: int, end: int) -> bool:
    """Return whether digits are part of a hash, a trace id, or a UUID without hyphens."""
    first, last = start, end
    while first > 0 and start - first <= _LONGEST_DIGEST and text[first - 1] in _HEX:
        first -= 1
    while last < len(text) and last - end <= _LONGEST_DIGEST and text[last] in _HEX:
        last += 1
    whole = text[first:last]
    alone = not (text[first - 1 : first].isalnum() or text[last : last + 1].isalnum())
    return alone and len(whole) in _DIGESTS and sum(map(str.isalpha, whole)) >= _DIGEST_LETTERS


def _cards_within(run: str, groups: list[TextSpan]) -> Iterable[TextSpan]:
    lengths = _lengths(groups)
    place = 0
    while place < len(groups):
        count = _card_groups_at(lengths, place)
        if count:
            chosen = groups[place : place + count]
            digits = "".join(run[start:end] for start, end in chosen)
            if checksums.is_card(digits, any_network=count > 1):
                yield chosen[0][0], chosen[-1][1]
                place += count - 1
        place += 1


def _card_groups_at(lengths: tuple[int, ...], place: int) -> int:
    """Return how many groups from here could be one card's number, 0 if none could."""
    if lengths[place] in checksums.CARD_DIGITS:
        return 1
    if lengths[place] != _FIRST_GROUP:
        return 0
    return next((n for n in (5, 4, 3) if lengths[place : place + n] in _CARD_GROUPS), 0)


def _groups_of(run: str) -> list[TextSpan]:
    return [group.span() for group in _DIGITS.finditer(run)]


_DIGITS: Final = re.compile("[0-9]+")


def _lengths(groups: list[TextSpan]) -> tuple[int, ...]:
    return tuple(end - start for start, end in groups)


_FIRST_GROUP: Final = 4
"""Digits of the first group in which cards are written, whoever issued them."""
_HEX: Final = frozenset("0123456789abcdef")
_DIGESTS: Final = frozenset({32, 40, 56, 64, 96, 128})
"""Hexadecimal digits of UUIDs, trace ids, MD5, and the SHA family."""
_LONGEST_DIGEST: Final = 128
"""The longest of `_DIGESTS`: no hexadecimal number is followed for longer."""
_DIGEST_LETTERS: Final = 4
"""Of 10,000 random ids of 32 digits four have fewer."""
_CARD_GROUPS: Final = frozenset({(4, 4, 4, 4), (4, 4, 4, 4, 3), (4, 4, 4, 1), (4, 6, 5), (4, 6, 4)})

_GROUPED: Final = (
    r"[0-9]{4}(?:[./+_|,:;\x{b7}\x{2022}][0-9]{4}){3}(?:[./+_|\x{b7}\x{2022}][0-9]{3})?"
    r"|[0-9]{4}[./+_][0-9]{6}[./+_][0-9]{5}"
)
_SPACED: Final = r"[0-9](?:[ \t\-\x{200b}]{0,3}[0-9]){12,}"
_OF_NUMBERS: Final = r"[0-9A-Fa-f./+_|,:;\x{b7}\x{2022} \t\-\x{200b}]*"
"""Characters of a number, and those that decide whether it is one."""

CARD: Final = ValueRule(
    "card",
    # first what is not a card though it has as many digits: a UUID, more digits, a fraction
    LazyPattern(rf"{_UUID}|({_GROUPED})|[0-9]{{20,}}(?:\.[0-9]+)?|[0-9]+\.[0-9]+|({_SPACED})"),
    lambda match: _card(_group_as_first(match)) if _is_number(match) else (),
    shortest=checksums.CARD_DIGITS[0],
    weight=0.5,
    # one by one, addresses and fractions would cost more than all else
    within=LazyPattern(f"{_OF_NUMBERS}(?:{_GROUPED}|{_SPACED}){_OF_NUMBERS}"),
)


def _is_number(match: Any) -> bool:
    return match.lastindex is not None


class _group_as_first:  # noqa: N801 - reads as the function it stands for
    """A match whose first group is whichever of two groups matched."""

    def __init__(self, match: Any) -> None:
        self._match = match
        self._group = 1 if match.start(1) >= 0 else 2

    @property
    def string(self) -> str:
        return str(self._match.string)

    def group(self, _: int) -> str:
        return str(self._match.group(self._group))

    def start(self, _: int) -> int:
        return int(self._match.start(self._group))

    def end(self, _: int) -> int:
        return int(self._match.end(self._group))

    def span(self, _: int) -> TextSpan:
        start, end = self._match.span(self._group)
        return start, end


def _ssn(match: Any) -> Iterable[TextSpan]:
    area, group, serial = match.group(2), match.group(4), match.group(6)
    alike = match.group(3) == match.group(5)
    return (match.span(1),) if alike and checksums.is_ssn(area, group, serial) else ()


SSN: Final = ValueRule(
    "ssn",
    LazyPattern(
        r"(?:^|[^0-9A-Za-z.-])(([0-9]{3})([-. ])([0-9]{2})([-. ])([0-9]{4}))(?:$|[^0-9A-Za-z-])"
    ),
    _ssn,
    hints=("-", " ", "."),
    shortest=11,
)


def _iban(match: Any) -> Iterable[TextSpan]:
    """Read on from a country code and check digits for as long as that country's numbers are."""
    text, start = match.string, match.start(1)
    wanted = checksums.IBAN_LENGTHS.get(match.group(1)[:2].upper())
    if wanted is None:
        return ()
    ahead = text[start : start + wanted + _MOST_SEPARATORS]
    compact = ahead.translate(_WITHOUT_SEPARATORS)[:wanted].upper()
    if not checksums.is_iban(compact) or _is_in_uuid(text, start):
        return ()
    end = start
    for _ in compact:
        while text[end] in _SEPARATORS:
            end += 1
        end += 1
    follower = text[end : end + 1]
    return () if follower.isascii() and follower.isalnum() else ((start, end),)


def _is_in_uuid(text: str, place: int) -> bool:
    starts = (place - group for group in _GROUPS_OF_UUID if place >= group)
    return any(_UUID_AT.match(text, start) is not None for start in starts)


_UUID_AT: Final = re.compile(_UUID)
_GROUPS_OF_UUID: Final = (0, 9, 14, 19, 24)
"""Where the groups of a UUID begin, in its usual spelling."""
_SEPARATORS: Final = f" -./{INVISIBLE}"
_WITHOUT_SEPARATORS: Final = str.maketrans("", "", _SEPARATORS)
_MOST_SEPARATORS: Final = 12
"""Separators in an IBAN: one behind each group of four, and a few more."""

IBAN: Final = ValueRule(
    "iban",
    LazyPattern(f"{_START}((?i:{'|'.join(sorted(checksums.IBAN_LENGTHS))})[0-9]{{2}})"),
    _iban,
    shortest=min(checksums.IBAN_LENGTHS.values()),
)

EMAIL: Final = ValueRule(
    "email",
    # RFC 5322 and 6531: also a quoted local part, any script, and the names that stand for here
    LazyPattern(
        r"(?:\"[^\"\r\n@]{1,64}\"|[\pL\pN\pM._%+'\x{200b}-]+)@"
        r"(?:[\pL\pN\pM\x{200b}-]+(?:\.[\pL\pN\pM\x{200b}-]+)+|localhost|\[[0-9A-Fa-fIPv.:]+\])"
    ),
    _whole,
    hints=("@",),
)

CREDENTIALS: Final = (
    PRIVATE_KEY, URL_CREDENTIALS, JWT, VENDOR_KEY, _HOOK, AUTHORIZATION, *QUOTED_VALUES,
    ECHOED_INPUT,
)  # fmt: skip
NUMBERS: Final = (CARD, SSN, IBAN)
