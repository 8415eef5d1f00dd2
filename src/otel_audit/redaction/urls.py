"""URL queries and paths: decoded for the match, valid again afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

import re2

from otel_audit._util.text import storable
from otel_audit.redaction import secret_urls
from otel_audit.redaction.budget import PER_SEARCHED, WorkBudget, WorkBudgetError
from otel_audit.redaction.placeholders import WITHHELD_FOR_WORK
from otel_audit.redaction.text import DEEPEST_ENCODING
from otel_audit.redaction.walker import OMITTED, RedactionRules, Walk

if TYPE_CHECKING:
    from collections.abc import Callable

_NEEDS_DECODING = frozenset('%+"\\\0')
_LINK = re2.compile(rf"(?i)(?:^|&)(?:{secret_urls.IN_QUERIES})=").search
_PIECE = 6
"""Units of work that decoding one parameter or segment costs."""

_SCHEME = "https://"

_LOGIN = re2.compile(
    # a user, a password and a host with perhaps a port: no tag with a digest (name:tag@sha256:…),
    # no time, and no address whose scheme comes before the colon
    r"(?:[^:@/\s]{0,64}):(?:[^@\s]*[^@\s0-9][^@\s]*|[0-9]{3,})@(?:[^@\s]*@)?"
    r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*(?::[0-9]{1,5})?"
)
_ADDRESS_SCHEMES = ("mailto:", "sip:", "sips:", "acct:", "xmpp:", "im:", "pres:", "tel:", "urn:")

_SAFE_IN_PATH = "/:@!$&'()*+,;=[]~-._%"


def redact_query(rules: RedactionRules, query: str, work: WorkBudget | None = None) -> str:
    """Redact a URL query or a form body (``application/x-www-form-urlencoded``).

    What no rule touches keeps the spelling it has; what is replaced is percent-encoded.

    Args:
        rules: The configuration's rules.
        query: Without the question mark.
        work: What this may cost; by the size if None.

    Returns:
        A valid query; parameters are missing only in mode ``omit``. Those that would cost more
        work than the query may are withheld, in one.
    """
    work = WorkBudget(len(query)) if work is None else work
    work.left -= len(query) * PER_SEARCHED
    if work.left >= 0 and _is_clean_query(rules, query):
        return query
    walk = Walk(rules, work=work)
    parts = query.split("&")
    kept: list[str | None] = []
    try:
        is_callback = _is_callback(parts, work)
        for part in parts:
            work.spend(_PIECE)
            kept.append(_parameter(walk, part, is_callback=is_callback))
    except WorkBudgetError:
        kept.append(quote_plus(WITHHELD_FOR_WORK))
    return "&".join(part for part in kept if part is not None)


def _is_callback(parts: list[str], work: WorkBudget) -> bool:
    names = {part.partition("=")[0] for part in parts}
    work.spend(len(names) * _PIECE)
    return secret_urls.is_callback(names)


def _is_clean_query(rules: RedactionRules, query: str) -> bool:
    """Return whether no rule touches a query, by one search over it as if it were JSON."""
    if rules.paths or len(query) > rules.limits.length or not query.isascii():
        return False
    # a URL's password may hold the sign at which the query is cut here
    if not _NEEDS_DECODING.isdisjoint(query) or "://" in query or _LINK(query) is not None:
        return False
    spelled = query.replace("&", '"\n"').replace("=", '":"')
    return not rules.scan.suspects(b'"%b":' % spelled.encode())


def _parameter(walk: Walk, part: str, *, is_callback: bool) -> str | None:
    name, equals, value = part.partition("=")
    decoded_name = storable(unquote_plus(name, errors="replace"))
    spelled = _respelled(name, decoded_name, walk.key(decoded_name), quote_plus)
    if not equals:
        return spelled
    decoded = storable(unquote_plus(value, errors="replace"))
    here = (None, decoded_name)
    if secret_urls.is_link_secret(decoded_name, decoded, is_callback=is_callback):
        redacted = walk.linked(decoded_name, decoded, here)
    else:
        redacted = walk.named(decoded_name, decoded, here)
    if redacted is OMITTED:
        return None
    return f"{spelled}={_respelled(value, decoded, redacted, quote_plus)}"


def redact_path(rules: RedactionRules, path: str, work: WorkBudget | None = None) -> str:
    """Redact a URL path, segment by segment.

    Args:
        rules: The configuration's rules.
        path: As requested, percent-encoded or decoded.
        work: What this may cost; by the size if None.

    Returns:
        The path with the segments that a value rule names replaced.
    """
    try:
        return _redacted_path(
            rules, storable(path), WorkBudget(len(path)) if work is None else work
        )
    except WorkBudgetError:
        return WITHHELD_FOR_WORK


def _redacted_path(rules: RedactionRules, path: str, work: WorkBudget) -> str:
    walk = Walk(rules, work=work)
    whole = walk.value(path, None)
    if whole == path and "%" not in path and ("@" not in path or ":" not in path):
        return path
    segments = "/".join(_segment(walk, segment, work) for segment in path.split("/"))
    # a URL as part of a path goes over several segments
    return _quote_segment(str(walk.value(segments, None))) if whole != path else segments


def _segment(walk: Walk, segment: str, work: WorkBudget) -> str:
    work.spend(_PIECE)
    decoded = storable(unquote(segment, errors="replace"))
    found = walk.value(decoded, None)
    if found == decoded and "@" in (plain := _unquoted(decoded, work)) and _is_login(plain):
        # as part of a URL the rules know it
        found = str(walk.value(_SCHEME + plain, None)).removeprefix(_SCHEME)
    return _respelled(segment, decoded, found, _quote_segment)


def redact_login(walk: Walk, url: str) -> str:
    """Redact user and password of a URL that begins with them: ``//u:pw@host/x``, ``u:pw@host``."""
    plain = url.removeprefix("//")
    if "@" not in plain or not _is_login(plain.partition("/")[0]):
        return url
    # as part of a URL the rules know it
    found = str(walk.value(_SCHEME + plain, None)).removeprefix(_SCHEME)
    return url[: len(url) - len(plain)] + found


def _is_login(text: str) -> bool:
    return bool(_LOGIN.fullmatch(text)) and not text.lower().startswith(_ADDRESS_SCHEMES)


def _unquoted(text: str, work: WorkBudget) -> str:
    """Undo percent-encoding that was applied several times, a bounded number of times."""
    for _ in range(DEEPEST_ENCODING):
        if "%" not in text:
            break
        work.spend(_PIECE + len(text) * PER_SEARCHED)
        text = storable(unquote(text, errors="replace"))
    return text


def _quote_segment(text: str) -> str:
    """Spell a redacted segment; its percent signs are those of escapes that were there."""
    return quote(text, safe=_SAFE_IN_PATH)


def _respelled(raw: str, decoded: str, redacted: Any, spell: Callable[[str], str]) -> str:
    return storable(raw) if redacted == decoded else spell(str(redacted))
