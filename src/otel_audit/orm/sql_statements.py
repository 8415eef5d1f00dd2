"""The writes and transaction control of a SQL text, as far as its text shows.

Only what stands where a statement can stand is taken for one: a column may be called ``update``.
What is not understood is a write that cannot be seen, never none at all.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_audit._util.cache import BoundedCache
from otel_audit.orm.sql_lexer import (
    ANY_STYLE,
    COMMENT,
    LITERAL,
    NAME,
    NUMBER,
    WORD,
    Style,
    Token,
    keywords,
    tokens_of,
)

if TYPE_CHECKING:
    from otel_audit.record import ChangeKind, Operation

_LONGEST: Final = 50_000
"""Characters that are read."""
_BEFORE_VALUES: Final = keywords("= < > | LIKE GLOB REGEXP MATCH THEN ELSE BETWEEN")
"""Words before a value, not before a name."""
_REMEMBERED: Final = 256
"""Texts that are remembered as they were read, about."""
_LONGEST_REMEMBERED: Final = 20_000
"""Characters of such a text: long ones are mostly written once."""

_FURTHER = re.compile(
    r";\s*[^\s;]|\b(?:INSERT|UPDATE|DELETE|MERGE|REPLACE|TRUNCATE|CALL|DO|EXEC|EXECUTE)\b",
    re.IGNORECASE,
)
_ONLY_READS = re.compile(r"\s*(?:SELECT|SHOW|PRAGMA)\b", re.IGNORECASE)
_MAY_WRITE = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE|REPLACE)\b|;\s*[^\s;]", re.IGNORECASE)
"""Words without which a text that begins by reading does not write."""
_READS = keywords(
    "SELECT VALUES TABLE SHOW DESCRIBE DESC PRAGMA FETCH MOVE CLOSE DECLARE HELP FROM"
)
_DEFINES = keywords(
    "CREATE ALTER DROP GRANT REVOKE COMMENT SECURITY REASSIGN IMPORT RENAME SET RESET USE "
    "LISTEN UNLISTEN NOTIFY LOCK UNLOCK ANALYZE VACUUM REINDEX CLUSTER REFRESH CHECKPOINT "
    "DISCARD PREPARE DEALLOCATE ATTACH DETACH OPTIMIZE FLUSH KILL"
)
_OPAQUE = keywords("CALL DO EXECUTE EXEC")
_WRITE_VERBS = keywords("INSERT REPLACE UPDATE DELETE MERGE TRUNCATE COPY LOAD BULK")
_MAIN_VERBS = _WRITE_VERBS | {"SELECT", "VALUES", "TABLE"}
_BESIDE_BEGIN = keywords(
    "WORK TRANSACTION TRAN DEFERRED IMMEDIATE EXCLUSIVE CONCURRENT ISOLATION LEVEL READ WRITE "
    "ONLY COMMITTED UNCOMMITTED REPEATABLE SERIALIZABLE NOT DEFERRABLE , ;"
)
_BEFORE_NAMES = keywords(", AS SET USING BY TO DEFAULT")
_NO_TABLE = keywords("SET SELECT VALUES WHERE FROM ( ) USING")

UNSEEN = "what it writes is not to be seen from here"
EMBEDDED = "inside a WITH clause: the number of rows is not known"
UPSERT = "upsert: ON CONFLICT"
_CASCADING = "CASCADE: the database may have emptied further tables"


class Write(NamedTuple):
    """One write that a text announces.

    Attributes:
        operation: Its steps.
        table: Where, as the database reads the name, without quotes.
        kind: ``bulk``; ``untracked`` where the text does not show what is written.
        note: What is to be said of it.
        counted: Whether the statement's row count is that of this write.
        empties: Whether it is a TRUNCATE, which no foreign key follows but where the text says so.
    """

    operation: Operation
    table: str
    kind: ChangeKind = "bulk"
    note: str | None = None
    counted: bool = False
    empties: bool = False


class TransactionControl(NamedTuple):
    """A statement that controls the transaction.

    Attributes:
        verb: ``begin``, ``commit``, ``rollback``, ``savepoint``, ``rollback_to`` or ``release``.
        name: The savepoint's.
    """

    verb: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class SqlText:
    """The statements of a text.

    Attributes:
        steps: Its writes and what it does to the transaction, in their order.
        statements: The tokens of each of its statements, without comments.
    """

    steps: tuple[Write | TransactionControl, ...]
    statements: tuple[tuple[Token, ...], ...]

    @property
    def writes(self) -> list[Write]:
        """Its writes alone, each once."""
        return list(dict.fromkeys(one for one in self.steps if isinstance(one, Write)))

    @property
    def controls(self) -> list[TransactionControl]:
        """Its transaction control."""
        return [one for one in self.steps if isinstance(one, TransactionControl)]


_NOTHING: Final = SqlText((), ())
_known: BoundedCache[tuple[str, Style], SqlText] = BoundedCache(_REMEMBERED)


def read_sql(text: str, style: Style = ANY_STYLE) -> SqlText:
    """Read a SQL text, one statement or several.

    Args:
        text: The SQL.
        style: How it is to be read.
    """
    if _ONLY_READS.match(text) and not _MAY_WRITE.search(text):
        return _NOTHING  # at little cost, as each may be another one: comments hold trace ids
    found = _known.get((text, style))
    if found is None:
        found = _read(text, style)
        if len(text) <= _LONGEST_REMEMBERED:
            _known.put((text, style), found)
    return found


def mask_literals(
    text: str,
    style: Style = ANY_STYLE,
    numbers: Collection[int] | None = (),
    columns: Collection[str] = (),
) -> str:
    """Take quoted literals and comments out of a SQL text: they may hold what must not be shown.

    Args:
        text: The SQL.
        style: How it is to be read.
        numbers: Where numbers begin that are to be removed, too; None: all of them are.
        columns: In lower case, the columns of the tables that it speaks of, as far as they are
            known: SQLite reads what stands in double quotes as one of these, or else as a text.
    """
    pieces: list[str] = []
    place = 0
    text = text[:_LONGEST]
    tokens = tokens_of(text, style)
    texts = (
        _texts_in_name_quotes(text, tokens, columns) if style.dialect == "sqlite" else frozenset()
    )
    for token in tokens:
        shown = " " if token.kind == COMMENT else "'…'" if token.kind == LITERAL else None
        if token.start in texts:
            shown = '"…"'
        if token.kind == NUMBER and (numbers is None or token.start in numbers):
            shown = "…"
        if shown is not None:
            pieces += (text[place : token.start], shown)
            place = token.end
    pieces.append(text[place:])
    return "".join(pieces)


def _texts_in_name_quotes(
    text: str, tokens: Sequence[Token], columns: Collection[str]
) -> frozenset[int]:
    """Return where texts in double quotes begin that are values.

    SQLite takes them for texts if there is no column of that name.
    """
    if '"' not in text:
        return frozenset()
    found: set[int] = set()
    groups: list[bool] = []
    after_values, selects = False, False
    sources = max((place for place, one in enumerate(tokens) if one.upper == "FROM"), default=-1)
    previous = ""
    for place, token in enumerate(tokens):
        if token.kind == COMMENT:
            continue
        if token.upper == "(":
            lists = previous in ("VALUES", "IN") or (after_values and previous == ",")
            groups.append(lists or any(groups[-1:]))
        elif token.upper == ")" and groups:
            groups.pop()
        elif token.kind == NAME and text[token.start] == '"' and token.text.lower() not in columns:
            following = tokens[place + 1].text if place + 1 < len(tokens) else ""
            if following != "." and (
                previous in _BEFORE_VALUES
                or (any(groups[-1:]) and previous != ".")
                or (selects and previous in ("SELECT", ","))
            ):
                found.add(token.start)
        elif token.kind == WORD and not any(groups[-1:]):
            after_values = token.upper == "VALUES"
            # without a FROM there are no columns
            selects = token.upper in ("SELECT", "AS") and place > sources
        previous = token.upper or "?"
    return frozenset(found)


def _read(text: str, style: Style) -> SqlText:
    tokens = [one for one in tokens_of(text[:_LONGEST], style) if one.kind != COMMENT]
    statements = tuple(_split(tokens))
    steps: list[Write | TransactionControl] = []
    for statement in statements:
        found = _Reader(statement, style).steps()
        steps += found
        if statement[0].upper == "BEGIN" and not isinstance(found[0], TransactionControl):
            break  # a block of a procedural language: it reaches to its END
    if len(statements) > 1:
        steps = [one._replace(counted=False) if isinstance(one, Write) else one for one in steps]
    if len(text) > _LONGEST and _FURTHER.search(text, _LONGEST):
        steps.append(Write("update", "?", "untracked", "the text is too long to be read"))
    return SqlText(tuple(steps), statements)


def _split(tokens: Sequence[Token]) -> Iterator[tuple[Token, ...]]:
    """The statements of a text; the body of a trigger or a routine is part of its definition."""
    found: list[Token] = []
    depth = 0
    for position, token in enumerate(tokens):
        word = token.upper
        if word == ";" and depth <= 0:
            if found:
                yield tuple(found)
            found, depth = [], 0
            continue
        if found and found[0].upper in ("CREATE", "ALTER"):
            after = tokens[position + 1].upper if position + 1 < len(tokens) else ""
            if (word == "BEGIN" and _defines_routine(found)) or (depth and word == "CASE"):
                depth += 1
            elif depth and word == "END" and after not in ("IF", "LOOP", "WHILE", "REPEAT"):
                depth -= 1
        found.append(token)
    if found:
        yield tuple(found)


def _defines_routine(tokens: Sequence[Token]) -> bool:
    words = {one.upper for one in tokens[:12]}
    return not words.isdisjoint({"TRIGGER", "FUNCTION", "PROCEDURE", "EVENT"})


class _Reader:
    """One statement."""

    def __init__(self, tokens: Sequence[Token], style: Style) -> None:
        self._tokens = tokens
        self._style = style
        self._end = len(tokens)

    def steps(self) -> list[Write | TransactionControl]:
        """Its steps."""
        first = 0
        while self._word(first) == "(":
            first += 1
        control = self._control(first)
        return self._other_steps(first) if control is None else [control]

    def _other_steps(self, first: int) -> list[Write | TransactionControl]:
        verb = self._word(first)
        main = self._main_of_with(first) if verb == "WITH" else first
        if verb == "EXPLAIN":
            return self._explained(first + 1)
        if verb in _OPAQUE:
            return [Write("update", self._called(first), "untracked", UNSEEN)]
        if verb in _READS:
            return list(self._embedded(first + 1))
        if main is not None and self._word(main) in _MAIN_VERBS:
            return self._writing(main)
        if verb in _DEFINES or verb in ("COMMIT", "ROLLBACK"):  # of a prepared transaction
            return []
        return [Write("update", "?", "untracked", UNSEEN)]

    def _writing(self, main: int) -> list[Write | TransactionControl]:
        verb = self._word(main)
        if verb not in _WRITE_VERBS:
            return list(self._embedded(0))
        writes = self._write_at(main)
        if writes is None:
            writes = [Write("update", "?", "untracked", UNSEEN)]
        counted = [one._replace(counted=len(writes) == 1) for one in writes]
        return [*counted, *(one for one in self._embedded(0, main) if one not in writes)]

    def _explained(self, place: int) -> list[Write | TransactionControl]:
        """EXPLAIN carries a statement out only if it is to ANALYZE."""
        analyzes = False
        if self._word(place) == "(":
            depth = 1
            while depth and place < self._end:
                place += 1
                word = self._word(place)
                depth += (word == "(") - (word == ")")
                if word == "ANALYZE":
                    following = self._tokens[place + 1].text.strip("'").upper()
                    analyzes = following not in ("FALSE", "OFF", "0")
            place += 1
        while self._word(place) in ("ANALYZE", "ANALYSE", "VERBOSE", "QUERY", "PLAN", "EXTENDED"):
            analyzes = analyzes or self._word(place).startswith("ANALY")
            place += 1
        if not analyzes:
            return []
        inner = _Reader(self._tokens[place:], self._style).steps()
        return [one._replace(counted=False) if isinstance(one, Write) else one for one in inner]

    def _embedded(self, first: int, main: int = -1) -> Iterator[Write]:
        """Writes within a statement: they follow a parenthesis."""
        for place in range(first, self._end):
            if place == main or self._tokens[place].kind != WORD:
                continue
            follows = place == 0 or self._word(place - 1) in ("(", ")")
            if follows and self._word(place) in _WRITE_VERBS:
                for one in self._write_at(place, strict=True) or ():
                    yield one._replace(note=one.note or EMBEDDED)

    def _main_of_with(self, first: int) -> int | None:
        depth, bodies = 0, 0
        for place in range(first + 1, self._end):
            word = self._word(place)
            depth += (word == "(") - (word == ")")
            bodies += word == ")" and not depth
            named = self._word(place - 1) in _BEFORE_NAMES
            if bodies and not depth and word in _MAIN_VERBS and not named:
                return place
        return None

    def _write_at(self, place: int, *, strict: bool = False) -> list[Write] | None:  # noqa: PLR0911
        """The writes of the statement that begins here; None if it is none, after all.

        Args:
            place: Where its verb is.
            strict: Whether the verb may be a name.
        """
        verb = self._word(place)
        place += 1
        if verb in ("INSERT", "REPLACE"):
            return self._insert(place, strict=strict)
        if verb == "UPDATE":
            return self._update(place)
        if verb == "DELETE":
            return self._delete(place, strict=strict)
        if verb == "MERGE":
            place += self._word(place) == "INTO"
            place += self._word(place) == "ONLY"
            table, after = self._name(place)
            # before USING there may be an alias, with or without AS, and one more word
            is_merge = table and "USING" in (self._word(one) for one in range(after, after + 4))
            return [Write("update", table, note=self._merged(after))] if is_merge else None
        if strict:
            return None
        if verb == "TRUNCATE":
            return self._truncate(place)
        if verb == "COPY":
            return self._copy(place)
        return self._load(place)

    def _merged(self, place: int) -> str:
        """The possible operations of a MERGE."""
        words = [self._word(one) for one in range(place, self._end)]
        after_then = {word for then, word in pairwise(words) if then == "THEN"}
        done = [one for one in ("INSERT", "UPDATE", "DELETE") if one in after_then]
        return f"MERGE: {', '.join(done).lower()}"

    def _insert(self, place: int, *, strict: bool) -> list[Write] | None:
        while self._word(place) in (
            "OR", "REPLACE", "IGNORE", "ABORT", "FAIL", "ROLLBACK", "LOW_PRIORITY", "DELAYED",
            "HIGH_PRIORITY",
        ):  # fmt: skip
            place += 1
        if self._word(place) in ("INTO", "OVERWRITE"):
            place += 1
        elif strict:
            return None
        place += self._word(place) in ("TABLE", "ONLY")
        table, after = self._name(place)
        if not table:
            return None
        upserts = any(
            self._word(one) == "ON" and self._word(one + 1) in ("CONFLICT", "DUPLICATE")
            for one in range(after, self._end)
        )
        return [Write("insert", table, note=UPSERT if upserts else None)]

    def _update(self, place: int) -> list[Write] | None:
        if self._word(place) == "OR":
            place += 2
        while self._word(place) in ("LOW_PRIORITY", "IGNORE", "ONLY"):
            place += 1
        table, after = self._name(place)
        if not table:
            return None
        several = [table]
        depth = 0
        for one in range(after, self._end):
            word = self._word(one)
            depth += (word == "(") - (word == ")")
            if depth < 0:
                return None
            if depth == 0 and word == "SET":
                return [Write("update", name) for name in dict.fromkeys(several)]
            if depth == 0 and word in (",", "JOIN"):  # MySQL updates several tables at once
                name, _ = self._name(one + 1)
                several += [name] if name else []
        return None

    def _delete(self, place: int, *, strict: bool) -> list[Write] | None:
        while self._word(place) in ("LOW_PRIORITY", "QUICK", "IGNORE"):
            place += 1
        if self._word(place) == "FROM":
            place += 1
        elif strict:
            return None
        place += self._word(place) == "ONLY"
        names = []
        while True:
            name, place = self._name(place)
            if not name:
                return None
            names.append(name)
            place += self._word(place) == "*"
            if self._word(place) != ",":
                return [Write("delete", one) for one in dict.fromkeys(names)]
            place += 1

    def _truncate(self, place: int) -> list[Write] | None:
        place += self._word(place) == "TABLE"
        names = []
        while True:
            place += self._word(place) == "ONLY"
            name, place = self._name(place)
            if not name:
                return None
            names.append(name)
            place += self._word(place) == "*"
            if self._word(place) != ",":
                break
            place += 1
        cascades = any(self._word(one) == "CASCADE" for one in range(place, self._end))
        note = _CASCADING if cascades else None
        return [Write("delete", one, note=note, empties=True) for one in dict.fromkeys(names)]

    def _copy(self, place: int) -> list[Write] | None:
        place += self._word(place) == "BINARY"
        if self._word(place) == "(":
            return []  # of a query: what that writes is found inside
        table, place = self._name(place)
        place = self._after_group(place)
        if not table or self._word(place) not in ("FROM", "TO"):
            return None
        return [Write("insert", table)] if self._word(place) == "FROM" else []

    def _load(self, place: int) -> list[Write] | None:
        """LOAD DATA … INTO TABLE t of MySQL, BULK INSERT t of SQL Server, LOAD of a library."""
        for one in range(place, self._end):
            if self._word(one) in ("TABLE", "INSERT"):
                table, _ = self._name(one + 1)
                return [Write("insert", table)] if table else None
        return [] if self._tokens[place - 1].upper == "LOAD" else None

    def _control(self, first: int) -> TransactionControl | None:  # noqa: PLR0911 - one return a verb
        verb, second = self._word(first), self._word(first + 1)
        if verb == "BEGIN" or (verb == "START" and second == "TRANSACTION"):
            rest = (self._word(one) for one in range(first + 1, self._end))
            return (
                TransactionControl("begin") if all(one in _BESIDE_BEGIN for one in rest) else None
            )
        if verb == "SAVEPOINT":
            return TransactionControl("savepoint", self._identifier(first + 1))
        if verb == "RELEASE":
            return TransactionControl(
                "release", self._identifier(first + 1 + (second == "SAVEPOINT"))
            )
        if verb in ("COMMIT", "END"):
            return None if second == "PREPARED" else TransactionControl("commit")
        if verb in ("ROLLBACK", "ABORT"):
            if second == "PREPARED":
                return None
            to = first + 1 + (second in ("WORK", "TRANSACTION", "TRAN"))
            if self._word(to) != "TO":
                return TransactionControl("rollback")
            named = to + 1 + (self._word(to + 1) == "SAVEPOINT")
            return TransactionControl("rollback_to", self._identifier(named))
        return None

    def _called(self, first: int) -> str:
        if self._word(first) == "DO":
            return "?"
        return self._name(first + 1)[0] or "?"

    def _name(self, place: int) -> tuple[str, int]:
        """A name, with its schema if it has one, and what follows; empty where there is none."""
        parts: list[str] = []
        while place < self._end:
            token = self._tokens[place]
            if token.kind == NAME:
                parts.append(token.text)
            elif token.kind == WORD and (parts or token.upper not in _NO_TABLE):
                parts.append(token.text.lower() if self._style.folds else token.text)
            else:
                break
            place += 1
            if self._word(place) != ".":
                return ".".join(parts), place
            place += 1
        return "", place

    def _identifier(self, place: int) -> str:
        if place >= self._end:
            return ""
        token = self._tokens[place]
        return token.text if token.kind == NAME else token.text.lower()

    def _after_group(self, place: int) -> int:
        if self._word(place) != "(":
            return place
        depth = 0
        while place < self._end:
            word = self._word(place)
            depth += (word == "(") - (word == ")")
            place += 1
            if not depth:
                break
        return place

    def _word(self, place: int) -> str:
        return self._tokens[place].upper if 0 <= place < self._end else ""
