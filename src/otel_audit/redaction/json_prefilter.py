"""The prefilter for JSON text: what clearly holds nothing to take out is never parsed.

It searches the whole text at once, and may be wrong in one direction only: what passes, no rule
touches.
"""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from otel_audit.redaction.walker import RedactionRules


# other escapes could spell anything; so could a name with an escape in it
_HARD: Final = re.compile(rb'\\(?:[^"nrt/]|"[^"]*"\s*:)')
_SOFT: Final = ((b'\\"', b'"'), (b"\\n", b"\n"), (b"\\r", b"\r"), (b"\\t", b"\t"), (b"\\/", b"/"))
# values that are redacted already (a placeholder, an HMAC) and null need no look
_TAKEN_OUT: Final = (
    rb'(?:"(?:\[REDACTED\]|\[WITHHELD\]|hmac:[A-Za-z0-9_-]{1,32}:[0-9a-f]{64})"|null)'
)
_LONGEST_NAME: Final = 30
"""Letters of a plain name before `[REDACTED]`; a text with a longer one is parsed."""
_REDACTED: Final = re.compile(
    rb'"[A-Za-z_.-]{1,%d}":(?:%b|\[%b,%b\])' % (_LONGEST_NAME, *(_TAKEN_OUT,) * 3)
)
_USUAL: Final = (b'":"[REDACTED]"', b'":[null,"[REDACTED]"]')
_IN_NAMES: Final = string.ascii_letters.encode() + b"_.-"
_ALL_BUT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
"""For `translate`: what is left is the nesting."""

_check_json = msgspec.json.Decoder(msgspec.Raw).decode


def is_clean_json(raw: bytes, rules: RedactionRules) -> bool:
    """Return whether a text is JSON, within the bounds, and holds nothing for a rule to take out.

    Args:
        raw: The text, valid UTF-8.
        rules: The configuration's rules.
    """
    if not is_clean(raw, rules):
        return False
    try:
        _check_json(raw)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def is_clean(raw: bytes, rules: RedactionRules) -> bool:
    """As `is_clean_json`, for a text that is JSON for sure: an encoder's."""
    if rules.paths is not None or not _is_shallow(raw, rules.limits.depth):
        return False
    is_escaped = b"\\" in raw
    if is_escaped and _HARD.search(raw) is not None:
        return False
    is_marked = is_escaped or b'[REDACTED]"' in raw
    # before the escapes are undone: behind `[REDACTED]\\"` a value continues
    if rules.scan.suspects(_unescaped(_without_the_usual(raw)) if is_marked else raw):
        if not (b'"[' in raw or b'"hmac:' in raw):
            return False
        if rules.scan.suspects(_unescaped(_REDACTED.sub(b'""', raw))):
            return False
    return True


def _without_the_usual(text: bytes) -> bytes:
    """Take out what `_REDACTED` would, in the spellings that are found without looking for them."""
    for rest in _USUAL:
        if rest in text:
            parts = text.split(rest)
            text = b"".join([*(_without_name(part, rest) for part in parts[:-1]), parts[-1]])
    return text


def _without_name(part: bytes, rest: bytes) -> bytes:
    """Take a plain name from the end of what stands before the rest of its pair."""
    at = part.rfind(b'"', -_LONGEST_NAME - 1)
    name = part[at + 1 :]
    if at < 0 or not name or name.translate(None, _IN_NAMES):
        return part + rest
    return part[:at] + b'""'


def _unescaped(text: bytes) -> bytes:
    """Undo the escapes that there can be."""
    for escape, spelled in _SOFT:
        if b"\\" not in text:
            break
        text = text.replace(escape, spelled)
    return text


def _is_shallow(raw: bytes, limit: int) -> bool:
    """Return whether containers are nested no deeper; brackets in strings count.

    Of the brackets alone, each replacement of empty pairs takes one level off.
    """
    # `replace` finds the few there are faster than `count` and `translate` pass over all bytes
    if len(raw) <= limit or len(raw) - len(raw.replace(b"[", b"").replace(b"{", b"")) <= limit:
        return True
    brackets = raw.translate(None, _ALL_BUT_BRACKETS)
    for _ in range(limit):
        inner = brackets
        brackets = inner.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return True
        if brackets == inner:
            return False
    return False
