"""What a SQL text writes, as far as its text shows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from otel_audit.record import ChangeKind, Operation

_LONGEST = 100_000

_HIDDEN = re.compile(
    r"""
      (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z))
    | (?P<literal>'(?:[^']|'')*(?:'|\Z))
    | (?P<dollar>\$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z))
    | (?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))
    """,
    re.VERBOSE | re.DOTALL,
)
_PART = r"""(?:"[^"]+"|`[^`]+`|\[[^\]]+\]|[\w$]+)"""
_NAME = rf"(?P<name>{_PART}(?:\s*\.\s*{_PART})*)"
_WRITE_VERBS: tuple[tuple[str, Operation], ...] = (
    (r"\bINSERT\s+(?:OR\s+\w+\s+)?(?:IGNORE\s+)?INTO\s+", "insert"),
    (r"\bREPLACE\s+INTO\s+", "insert"),
    (r"\bCOPY\s+(?=[^(]\S*(?:\s*\([^)]*\))?\s+FROM\b)", "insert"),
    (r"\bMERGE\s+INTO\s+", "update"),
    # not DO UPDATE, FOR [NO KEY] UPDATE, ON UPDATE
    (
        (
            r"(?<!\bDO\s)(?<!\bFOR\s)(?<!\bKEY\s)(?<!\bON\s)"
            r"\bUPDATE\s+(?:OR\s+\w+\s+)?(?:ONLY\s+)?(?!SET\b)"
        ),
        "update",
    ),
    (r"\bDELETE\s+FROM\s+(?:ONLY\s+)?", "delete"),
    (r"\bTRUNCATE\s+(?:TABLE\s+)?(?:ONLY\s+)?", "delete"),
)
_WRITES = tuple(
    (re.compile(verb + _NAME, re.IGNORECASE), operation) for verb, operation in _WRITE_VERBS
)
_MAY_WRITE = re.compile(
    r"\b(?:INSERT|UPDATE|DELETE|MERGE|REPLACE|TRUNCATE|COPY|CALL|DO|EXEC|EXECUTE)\b", re.IGNORECASE
)
_OPAQUE = re.compile(r"\s*(?:CALL|DO|EXECUTE|EXEC)\b", re.IGNORECASE)
_DEFINITION = re.compile(
    r"\s*(?:CREATE|ALTER|DROP|GRANT|REVOKE|COMMENT|SET|SHOW|PRAGMA|LISTEN|NOTIFY|LOCK|ANALYZE|VACUUM)\b",
    re.IGNORECASE,
)
_CONTROL = re.compile(
    r"\s*(?:(?P<begin>BEGIN(?:\s+(?:DEFERRED|IMMEDIATE|EXCLUSIVE|TRANSACTION))*\s*;?\s*\Z)"
    r"|(?P<commit>(?:COMMIT|END)\b)"
    r"|(?P<undo>(?:ROLLBACK|ABORT)\b)(?:\s+(?:WORK|TRANSACTION))?(?:\s+TO(?:\s+SAVEPOINT)?\s+(?P<to>\S+))?"
    r"|(?P<set>SAVEPOINT)\s+(?P<savepoint>\S+)"
    r"|(?P<release>RELEASE)(?:\s+SAVEPOINT)?\s+(?P<released>\S+))"
    r"(?:\s+(?P<prepared>PREPARED)\b)?",
    re.IGNORECASE,
)


class Write(NamedTuple):
    """One write that a text announces.

    Attributes:
        operation: What it does.
        table: Where, as the text names it, without quotes.
        kind: ``bulk``; ``untracked`` where the text does not show what is written.
    """

    operation: Operation
    table: str
    kind: ChangeKind = "bulk"


class Control(NamedTuple):
    """A statement that controls the transaction.

    Attributes:
        verb: ``begin``, ``commit``, ``rollback``, ``savepoint``, ``rollback_to`` or ``release``.
        name: The savepoint's.
    """

    verb: str
    name: str = ""


def mask_literals(statement: str) -> str:
    """Take quoted literals and comments out of a SQL text: they may hold what must not be shown."""
    return _HIDDEN.sub(lambda found: " " if found["comment"] else "'…'", statement[:_LONGEST])


def find_writes(statement: str) -> list[Write]:
    """Find what a SQL text writes.

    Args:
        statement: The text, one statement or several.

    Returns:
        One entry for each table and operation; none for a text that only reads, defines, or
        controls.
    """
    if not _MAY_WRITE.search(statement):
        return []
    found: dict[Write, None] = {}
    for part in re.sub(r"\s+", " ", mask_literals(statement)).split(";"):
        if _DEFINITION.match(part):
            continue
        if _OPAQUE.match(part):
            found[Write("update", _called(part), "untracked")] = None
            continue
        for pattern, operation in _WRITES:
            for match in pattern.finditer(part):
                found[Write(operation, _unquote(match["name"]))] = None
    return list(found)


def find_control(statement: str) -> Control | None:
    """Tell whether a SQL text begins or ends a transaction or moves among savepoints."""
    match = _CONTROL.match(statement)
    if match is None or match["prepared"]:
        return None
    for verb in ("begin", "commit"):
        if match[verb]:
            return Control(verb)
    if match["set"]:
        return Control("savepoint", _identifier(match["savepoint"]))
    if match["release"]:
        return Control("release", _identifier(match["released"]))
    if match["to"]:
        return Control("rollback_to", _identifier(match["to"]))
    return Control("rollback")


def _called(part: str) -> str:
    words = part.split(None, 2)
    return (
        _unquote(words[1].partition("(")[0]) if len(words) > 1 and words[0].upper() != "DO" else "?"
    )


def _unquote(name: str) -> str:
    return ".".join(piece.strip().strip('"`[]') for piece in name.split("."))


def _identifier(name: str) -> str:
    name = name.rstrip(";")
    return name.strip('"') if name.startswith('"') else name.lower()
