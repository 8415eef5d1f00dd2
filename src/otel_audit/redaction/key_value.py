"""`name=value` in free text, in the many ways that messages, dumps and queries spell it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from otel_audit._util.lazy_pattern import LazyPattern
from otel_audit.redaction.budget import PER_SEARCHED
from otel_audit.redaction.placeholders import is_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.redaction.budget import WorkBudget
    from otel_audit.redaction.names import NameRules, NameVerdict

_NAME: Final = rb"[A-Za-z0-9_.$\[\]/%-]|[^\x00-\x7f]"
_NAMED: Final = LazyPattern(
    rb"((?:(?:" + _NAME + rb")+[ +])?(?:" + _NAME + rb")+)"
    rb"(\\*[\"'`]?[)\]]?\s{0,8}(?:=>|:=|==|=|:)\s{0,8})"
)
_VALUE: Final = LazyPattern(
    rb'(?s)""".*?(?:"""|\z)|\'\'\'.*?(?:\'\'\'|\z)'
    rb'|\\+".*?(?:\\+"|\z)|\\+\'.*?(?:\\+\'|\z)'
    rb'|[A-Za-z_.(]*(?:"(?:[^"\\]|\\.)*(?:"|\z)|\'(?:[^\'\\]|\\.)*(?:\'|\z))'
    rb"|\([^)]*(?:\)|\z)|[\[{][^\]}]*(?:[\]}]|\z)[^\s,;&<>]*"
    rb"|[^\s;&<>,]+(?:,[^\s;&<>\"'\[{]+)*"
)
# YAML's values of several lines: a block behind | or >, with its indented lines; a list's items
_BLOCK: Final = LazyPattern(
    rb"[|>][+-]?[0-9]?[+-]?[ \t]*\r?\n((?:[ \t]+[^\n]*(?:\n|\z)|[ \t]*\r?\n)+)"
)
_ITEMS: Final = LazyPattern(rb"-[ \t]+([^\n]+(?:\n[ \t]*-[ \t]+[^\n]*)*)")
# a value that another rule has removed already is skipped
_REDACTED: Final = LazyPattern(rb"\[REDACTED\](?:[\s,;&<>]|\z)")
_CLOSERS: Final = b"\"')]}.,\\"
_BLOCKS: Final = (b'"""', b"'''")
_SHORTEST_BLOCK: Final = 6
"""Both ends of a block, three characters each."""
_QUOTES: Final = (b'"', b"'")

# What follows a name in prose about it rather than in an assignment: `password: must be …`.
PROSE: Final = frozenset({
    "a", "an", "and", "are", "bad", "cannot", "does", "empty", "expected", "expired", "failed",
    "field", "has", "incorrect", "input", "invalid", "is", "it", "malformed", "may", "mismatch",
    "missing", "must", "none", "not", "null", "ok", "or", "please", "required", "revoked",
    "should", "str", "string", "the", "this", "too", "unknown", "value", "was", "were", "wrong",
    "your",
})  # fmt: skip
_BOOLEANS: Final = frozenset({"true", "false"})
_FEW_DIGITS: Final = 15
"""Digits that a float holds exactly."""

# units of work, each measured
_MATCH: Final = 4
_FIRST_MET: Final = 8
_VALUE_READ: Final = 12


def redact_assignments(
    text: str,
    names: NameRules,
    replace: Callable[[str], str],
    note: Callable[[str], None],
    work: WorkBudget,
) -> str:
    """Take out what is assigned to a sensitive name.

    Names are found first, values are read only behind the sensitive ones: time is linear also for
    a text that is nothing but assignments.

    Args:
        text: Well-formed Unicode.
        names: Judges the names.
        replace: Makes the replacement of a removed value.
        note: Called with ``assignment`` if something was removed.
        work: What this may cost.

    Returns:
        The text without the values.

    Raises:
        WorkBudgetError: It would cost more.
    """
    raw = text.encode()
    kept: list[bytes] = []
    innocent: set[bytes] = set()
    end = 0
    place = 0
    while (match := _NAMED.search(raw, place)) is not None:
        work.spend(_MATCH)
        first, behind = match.span(1)
        place = match.end()
        spelled = raw[first:behind]
        if spelled in innocent:
            continue
        if _REDACTED.match(raw, match.end()) is not None:
            continue
        name = spelled.decode()
        if work.is_new_name(name):
            work.spend(_FIRST_MET + len(name) / 4)
        if not may_name_a_secret(names, name):
            innocent.add(spelled)
            continue
        lines = _lines(raw, match)
        if lines:
            # also where they turn out to be no secret: the next name may look through them again
            work.spend((lines.end() - lines.start()) * PER_SEARCHED)
        value = lines or _VALUE.match(raw, match.end())
        if value is None or not names_a_secret(names, name, _head(value)):
            continue
        start, stop = _indented(lines) if lines else _inside(raw, *value.span())
        work.spend(_VALUE_READ + (stop - start) * PER_SEARCHED)
        if stop <= start or _is_no_secret(match.group(2), raw[start:stop]):
            continue
        kept += (raw[end:start], replace(raw[start:stop].decode()).encode())
        # the value may be read as the first word of the next name
        end = place = stop
    if not kept:
        return text
    note("assignment")
    return b"".join((*kept, raw[end:])).decode()


def names_a_secret(names: NameRules, name: str, value: str) -> bool:
    """Return whether a name in a text, perhaps the last of two words, is sensitive."""
    verdict = _verdict(names, name)
    if verdict is None:
        return False
    bare = value.strip(" ,;.)]}'\"")
    if not verdict.configured and bare.lower() in _BOOLEANS:
        return False
    number = bare.replace(".", "", 1).isdigit()
    return verdict.takes(float(bare) if number and len(bare) <= _FEW_DIGITS else bare)


def may_name_a_secret(names: NameRules, name: str) -> bool:
    """Return whether a name is sensitive for some value."""
    return _verdict(names, name) is not None


def _verdict(names: NameRules, name: str) -> NameVerdict | None:
    decoded = unquote(name) if "%" in name else name
    whole = decoded.strip("/.$-").replace("+", " ")
    for candidate in dict.fromkeys((whole, whole.rpartition(" ")[2])):
        verdict = names.judge(candidate)
        if verdict.rule is not None:
            return verdict
    return None


def _lines(raw: bytes, named: Any) -> Any:
    """Match a value of several lines, as YAML has it."""
    begin = raw[named.end() : named.end() + 1]
    if begin in (b"|", b">"):
        return _BLOCK.match(raw, named.end())
    # behind a name in the same line it is a word like any other
    return _ITEMS.match(raw, named.end()) if begin == b"-" and b"\n" in named.group(2) else None


def _indented(value: Any) -> tuple[int, int]:
    """Leave the sign of the block or list, its indentation, and what is indented less."""
    start, text = value.start(1), value.group(1)
    first = len(text) - len(text.lstrip())
    depth = first - text.rfind(b"\n", 0, first) - 1
    stop = 0
    for line in text.splitlines(keepends=True):
        if stop > first and line.strip() and len(line) - len(line.lstrip()) < depth:
            break
        stop += len(line)
    return start + first, max(start + first, start + len(text[:stop].rstrip()))


def _head(value: Any) -> str:
    return str(value.group()[:64].decode(errors="replace"))


def _inside(raw: bytes, start: int, stop: int) -> tuple[int, int]:
    """Leave the quotes, and what closes around a bare word, where they are."""
    value = raw[start:stop]
    if value[:3] in _BLOCKS:
        closed = len(value) >= _SHORTEST_BLOCK and value.endswith(value[:3])
        return start + 3, stop - 3 if closed else stop
    opening = min((place for q in _QUOTES if (place := value.find(q)) >= 0), default=-1)
    before = value[:opening].strip(b"\\")
    if opening < 0 or not (before == b"" or before.replace(b"(", b"").replace(b".", b"").isalpha()):
        if value[:1] in (b"(", b"[", b"{"):
            return start, stop
        return start, start + len(value.rstrip(_CLOSERS))
    quote = value[opening : opening + 1]
    closed = stop - start - opening > 1 and value.endswith(quote)
    inner = value[opening + 1 : -1 if closed else None]
    if value[:1] == b"\\" and closed:
        inner = inner.rstrip(b"\\")
    return start + opening + 1, start + opening + 1 + len(inner)


def _is_no_secret(between: bytes, value: bytes) -> bool:
    text = value.decode()
    if is_token(text) or is_token(text.rstrip("'\")}")):
        return True
    spaced_colon = b":" in between and between[-1:].isspace()
    # a list may also describe the requirements of a password
    first = text.partition(" ")[0] if b"\n" in between else text
    return spaced_colon and first.lower().rstrip(".,;!") in PROSE
