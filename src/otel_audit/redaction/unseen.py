"""Whether a JSON text may pass as it is: told by one search over it, without building its values.

It may be wrong in one direction only: what passes holds nothing that a rule would take out. What
stands for a value that was taken out before is nothing of the kind.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from otel_audit.redaction.walk import Rules

# other escapes could spell anything; so could a name with an escape in it
_HARD: Final = re.compile(rb'\\(?:[^"nrt/]|"[^"]*"\s*:)')
_SOFT: Final = ((b'\\"', b'"'), (b"\\n", b"\n"), (b"\\r", b"\r"), (b"\\t", b"\t"), (b"\\/", b"/"))
# under a plain name nothing but what stands for a value that was taken out before, or null
_TAKEN_OUT: Final = (
    rb'(?:"(?:\[REDACTED\]|\[WITHHELD\]|hmac:[A-Za-z0-9_-]{1,32}:[0-9a-f]{64})"|null)'
)
_REDACTED: Final = re.compile(
    rb'"[A-Za-z_.-]{1,30}":(?:' + _TAKEN_OUT + rb"|\[" + _TAKEN_OUT + rb"," + _TAKEN_OUT + rb"\])"
)
_ALL_BUT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))

_check_json = msgspec.json.Decoder(msgspec.Raw).decode


def passes_unseen(raw: bytes, rules: Rules) -> bool:
    """Tell whether a text is JSON, within the bounds, and holds nothing for a rule to take out.

    Args:
        raw: The text, valid UTF-8.
        rules: The configuration's rules.
    """
    if rules.paths or not _is_shallow(raw, rules.limits.depth):
        return False
    seen = raw
    if b"\\" in raw:
        if _HARD.search(raw) is not None:
            return False
        for escape, spelled in _SOFT:
            seen = seen.replace(escape, spelled)
    if b'"[' in seen or b'"hmac:' in seen:
        seen = _REDACTED.sub(b'""', seen)
    if rules.scan.suspects(seen):
        return False
    try:
        _check_json(raw)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def _is_shallow(raw: bytes, limit: int) -> bool:
    """Tell whether containers are nested no deeper; brackets in strings count, in doubt it is deep.

    Of the brackets alone, each replacement of empty pairs takes one level off.
    """
    if raw.count(b"[") + raw.count(b"{") <= limit:
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
