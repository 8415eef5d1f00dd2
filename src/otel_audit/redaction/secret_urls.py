"""Credentials in URLs: parameters and path segments that grant access to everybody with the link.

One set of rules for the request's own query and path, for ``Referer`` and ``Location``, for a URL
in a parameter, in a body or in a message.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final

from otel_audit._util.ids import is_uuid
from otel_audit._util.lazy_pattern import LazyPattern
from otel_audit.redaction.load_data import name_table
from otel_audit.redaction.names import built_in, looks_opaque, name_words, squash
from otel_audit.redaction.placeholders import REDACTED, is_token

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_TABLE: Final = name_table()
_SECRET: Final = frozenset(map(squash, _TABLE.link_secrets))
_OPAQUE: Final = frozenset(map(squash, _TABLE.link_opaque))
_WORDS: Final = _TABLE.link_words
# An id after one of these is only an id: access to it is checked.
_OF_THINGS: Final = frozenset({
    "invite", "invites", "invitation", "invitations", "onboard", "onboarding", "login", "signin",
})  # fmt: skip

_SHORTEST_TOKEN: Final = 16
"""Characters of a text that may be a credential: 16 hex digits are 64 bits."""
_SHORTEST_RANDOM: Final = 20
"""Characters of a segment in three kinds of letters, in a URL of which nothing else is known."""
_SHORTEST_GIVEN: Final = 4
"""Characters of a value behind a word such as `verify`: codes have four and more."""
_SHORTEST_CODE: Final = 5
"""Characters of a callback's code; shorter ones are of countries, languages, vouchers."""
_BEHIND: Final = 3
"""Segments behind a word that may be what the link carries: `/activate/{uid}/{key}`."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9_=~-]+")
_CODE: Final = "code"
_OF_CALLBACKS: Final = frozenset(
    {"state", "sessionstate", "redirecturi", "granttype", "codeverifier"}
)
_LONGEST_NAME: Final = 40
"""Characters of a parameter's name; a longer one is not known as a secret's."""

_NAMES: Final = (*_TABLE.link_secrets, *_TABLE.link_opaque)
IN_QUERIES: Final = "|".join(sorted({"[\\W_]?".join(name.split("_")) for name in _NAMES}))
"""Matches the names of parameters that may be credentials, regardless of case."""

QUERY_PATTERN: Final = rf"[?&#;](?:{IN_QUERIES})="
SEGMENT_PATTERN: Final = rf"(?:{'|'.join(sorted(_WORDS))})[a-z0-9_.~%-]*/[^\s\"]{{8}}"
"""Match what these rules go by, in any text, regardless of case."""

QUERY: Final = LazyPattern(r"[?#]([^\s\"'<>\\?]+)")
SEGMENTS: Final = LazyPattern(
    rf"(?i)/([a-z0-9_.~-]*(?:{'|'.join(sorted(_WORDS))})[a-z0-9_.~%-]*)/([^\s\"'<>\\?#]+)"
)
_PARAMETER: Final = re.compile(rf"(?:^|&amp;|[&;])([^=&;]{{1,{_LONGEST_NAME}}})=([^&;]*)")


def looks_like_token(text: str) -> bool:
    """Return whether a text may be a credential: long, of letters and digits, not a UUID."""
    if len(text) < _SHORTEST_TOKEN or _TOKEN.fullmatch(text) is None or is_uuid(text):
        return False
    return looks_opaque(text)


def is_secret_parameter(name: str) -> bool:
    """Return whether the name of a URL's parameter alone says that it is a credential."""
    verdict = built_in(name)
    return (verdict.rule is not None and not verdict.opaque) or squash(name) in _SECRET


def is_link_secret(name: str, value: str, *, is_callback: bool = False) -> bool:
    """Return whether a parameter of a URL is a credential although its name alone does not say so.

    Args:
        name: The parameter's name.
        value: What it has, decoded.
        is_callback: Whether the URL is that of an OAuth 2.0 callback (RFC 6749, section 4.1.2).
    """
    if not value or len(name) > _LONGEST_NAME:
        return False
    squashed = squash(name)
    if squashed in _SECRET:
        return True
    if is_callback and squashed == _CODE:
        # shorter ones are of countries, languages, vouchers
        return len(value) >= _SHORTEST_CODE
    return squashed in _OPAQUE and looks_like_token(value)


def is_callback(names: Iterable[str]) -> bool:
    """Return whether a URL is an OAuth callback, by the names of its parameters."""
    squashed = {squash(name) for name in names if len(name) <= _LONGEST_NAME}
    return _CODE in squashed and not _OF_CALLBACKS.isdisjoint(squashed)


def link_parameters(path: str, parameters: Mapping[str, Any]) -> Iterator[str]:
    """Give the values of a route's parameters that let in: `/verify/{code}`.

    Args:
        path: As requested.
        parameters: Those of the path, as the router has read them.
    """
    kinds = {name: _kind_of(name) for name in parameters if type(name) is str}
    values = {name: str(value) for name, value in parameters.items()}
    if any(len(value) >= _SHORTEST_TOKEN for value in values.values()):
        # what is removed of the path is not shown as an id either
        yield from _in_path(path).intersection(values.values())
    if not any(kinds.values()):
        return
    fixed = set(path.split("/")).difference(values.values())
    leads_in = any(not _WORDS.isdisjoint(name_words(segment)) for segment in fixed)
    for name, kind in kinds.items():
        value = values[name]
        given = looks_like_token(value) or (leads_in and len(value) >= _SHORTEST_GIVEN)
        if kind == _ALWAYS or (kind == _BY_LOOKS and given):
            yield value


def _in_path(path: str) -> set[str]:
    found = (span for match in SEGMENTS.finditer(path) for span in in_segments(match))
    return {path[start:end] for start, end in found}


_CARRIED: Final = frozenset({"key", "code", "hash", "link", "string"})
_ALWAYS: Final = 2
_BY_LOOKS: Final = 1


# an application has few names of parameters
@functools.lru_cache(maxsize=512)
def _kind_of(name: str) -> int:
    squashed, words = squash(name), name_words(name)
    if squashed in _SECRET:
        return _ALWAYS
    carries = len(words) > 1 and words[-1] in _CARRIED and not _WORDS.isdisjoint(words)
    return _BY_LOOKS if carries or squashed in _OPAQUE else 0


def in_query(match: Any) -> Iterable[tuple[int, int]]:
    """Find the credentials in a match of `QUERY`."""
    query, offset = match.group(1), match.start(1)
    found = list(_PARAMETER.finditer(query))
    callback = is_callback(one.group(1) for one in found)
    for one in found:
        value = one.group(2)
        if not is_token(value) and is_link_secret(one.group(1), value, is_callback=callback):
            yield offset + one.start(2), offset + one.end(2)


def in_segments(match: Any) -> Iterable[tuple[int, int]]:
    """Find the credentials in a match of `SEGMENTS`."""
    words = _WORDS.intersection(name_words(match.group(1)))
    if not words:
        return
    start = match.start(2)
    for segment in match.group(2).split("/", _BEHIND)[:_BEHIND]:
        end = start + len(segment)
        lets_in = is_uuid(segment) is not None and words.isdisjoint(_OF_THINGS)
        if lets_in or looks_like_token(segment):
            yield start, end
        start = end + 1


def without_random_segments(url: str) -> str:
    """Take out of the path of a URL what no person would have chosen, in a header of URLs."""
    head, sign, rest = url.partition("?")
    segments = [REDACTED if _looks_random(one) else one for one in head.split("/")]
    return "/".join(segments) + sign + rest


def _looks_random(segment: str) -> bool:
    if len(segment) < _SHORTEST_RANDOM or _TOKEN.fullmatch(segment) is None:
        return False
    kinds = (str.isupper, str.islower, str.isdigit)
    return all(any(map(kind, segment)) for kind in kinds)
