"""The tokens of a SQL text: what is a name, a literal, a placeholder, a comment."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

_NESTING = frozenset({"postgresql", "cockroachdb", "redshift", "mssql"})
"""Dialects in which a comment may stand in a comment."""
_BRACKETED = frozenset({"sqlite", "mssql"})
"""Dialects in which ``[a name]`` is quoted so; to others the bracket opens an index."""
_TEXTS_IN_DOUBLE_QUOTES = frozenset({"mysql", "mariadb"})
"""Dialects in which ``"…"`` is a text, and a backslash escapes."""

_TOKEN = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z))
    | (?P<literal>(?:[bBxXnN]|[uU]&)?'(?:[^']|'')*(?:'|\Z))
    | (?P<dollar>\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z))
    | (?P<line>--[^\n]*)
    | (?P<block>/\*)
    | (?P<double>(?:[uU]&)?"(?:[^"]|"")*(?:"|\Z))
    | (?P<quoted>`(?:[^`]|``)*(?:`|\Z))
    | (?P<bracket>\[)
    | (?P<cast>::)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?\w*|\.\d+(?:[eE][+-]?\d+)?)
    | (?P<format>%(?:\((?P<named>[^)]*)\))?[sbt](?!\w)|%%)
    | (?P<colon>(?<![:\\]):(?P<colon_name>\w+)(?!:))
    | (?P<dollar_name>[$@](?P<dollar_word>\w+))
    | (?P<qmark>\?\d*)
    | (?P<arrow>->>|->|\#>>|\#>)
    | (?P<mark>[(),;.=\]])
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_MYSQL_TEXT = re.compile(r"""'(?:[^'\\]|\\.|'')*(?:'|\Z)|"(?:[^"\\]|\\.|"")*(?:"|\Z)""", re.DOTALL)
_ESCAPED_LETTER = re.compile(r"\\(?:([0-9a-fA-F]{4})|\+([0-9a-fA-F]{6}))")
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_BRACKETED_NAME = re.compile(r"\[[^\]]*(?:\]|\Z)")

WORD, NAME, LITERAL, NUMBER, BIND, COMMENT, MARK = range(7)
"""Kinds of tokens: a name without and one with quotes, a text, a number, a placeholder, ..."""


class Style(NamedTuple):
    """The style in which a text is read.

    Attributes:
        dialect: SQLAlchemy's name of the database; empty: none in particular.
        paramstyle: As in PEP 249, or SQLAlchemy's ``numeric_dollar``; empty: any.
    """

    dialect: str = ""
    paramstyle: str = ""

    @property
    def folds(self) -> bool:
        """Whether a name without quotes is one in lower case."""
        return self.dialect in ("postgresql", "cockroachdb", "redshift")


ANY_STYLE: Final = Style()


class Token(NamedTuple):
    """One piece of a text.

    Attributes:
        kind: See above.
        text: The piece; of a name in quotes without them; of a placeholder its name, or its
            position (``"0"``, ``"1"``, ...).
        start: Where it begins.
        end: Where it ends.
    """

    kind: int
    text: str
    start: int
    end: int

    @property
    def upper(self) -> str:
        """The keyword that it may be; empty for what is none."""
        return self.text.upper() if self.kind in (WORD, MARK) else ""


def keywords(text: str) -> frozenset[str]:
    """The words of a text, for `Token.upper` to be looked up in."""
    return frozenset(text.split())


def tokens_of(text: str, style: Style = ANY_STYLE) -> list[Token]:
    """Take a text apart.

    Args:
        text: The SQL.
        style: How to read it.

    Returns:
        Its tokens with comments, without spaces. What is not closed reaches to the end.
    """
    return list(_tokens(text, style))


def _tokens(text: str, style: Style) -> Iterator[Token]:  # noqa: C901, PLR0912 - one branch a kind
    place, position = 0, 0
    last = -1
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:  # pragma: no cover - the last alternative takes any character
            return
        kind, end = found.lastgroup, found.end()
        start, place = place, end
        if kind in ("literal", "double") and style.dialect in _TEXTS_IN_DOUBLE_QUOTES:
            escaped = _MYSQL_TEXT.match(text, text.index(found.group()[-1], start))
            place = escaped.end() if escaped is not None else end
            yield Token(LITERAL, text[start:place], start, place)
        elif kind == "space":
            continue
        elif kind in ("escaped", "literal", "dollar"):
            yield Token(LITERAL, found.group(), start, end)
        elif kind == "line":
            yield Token(COMMENT, "", start, end)
            continue
        elif kind == "block":
            place = _comment_end(text, end, nested=style.dialect in _NESTING)
            yield Token(COMMENT, "", start, place)
            continue
        elif kind == "double":
            yield Token(NAME, _unquoted(found.group(), style), start, end)
        elif kind == "quoted":
            yield Token(NAME, found.group().strip("`"), start, end)
        elif kind == "bracket" and _quotes(style, last):
            name = _BRACKETED_NAME.match(text, start)
            place = end if name is None else name.end()
            yield Token(NAME, text[start:place].strip("[]"), start, place)
        elif kind == "word":
            yield Token(WORD, found.group(), start, end)
        elif kind == "number":
            yield Token(NUMBER, found.group(), start, end)
        else:
            bind = _bind(found, style, position)
            position += bind is not None and bind == str(position)
            yield Token(MARK if bind is None else BIND, bind or found.group(), start, end)
        last = WORD if text[start] in "])" or kind == "word" else MARK


def _unquoted(name: str, style: Style) -> str:
    if name[0] in "uU":
        name = _ESCAPED_LETTER.sub(_letter, name[2:])
    bare = name.strip('"').replace('""', '"')
    # where % begins a placeholder it is doubled to stand for itself
    return bare.replace("%%", "%") if style.paramstyle in ("format", "pyformat") else bare


def _letter(found: re.Match[str]) -> str:
    number = int(found[1] or found[2], 16)
    is_letter = number <= sys.maxunicode and not 0xD800 <= number <= 0xDFFF  # noqa: PLR2004
    return chr(number) if is_letter else found.group()


def _bind(found: re.Match[str], style: Style, position: int) -> str | None:
    """The name or position of a placeholder; None if it is none."""
    paramstyle = style.paramstyle
    if found["format"] and found["format"] != "%%" and paramstyle in ("", "format", "pyformat"):
        return str(position) if found["named"] is None else found["named"]
    if found["colon"] and paramstyle in ("", "named", "numeric", "qmark"):
        name = found["colon_name"]
        return str(int(name) - 1) if paramstyle == "numeric" and name.isdecimal() else name
    name = found["dollar_word"]
    if name and name.isdecimal() and paramstyle in ("", "numeric_dollar", "numeric", "named"):
        return str(int(name) - 1)
    if name and style.dialect in ("sqlite", "mssql"):
        return str(name)
    if found["qmark"] and paramstyle == "qmark":
        number = found["qmark"][1:]
        return str(int(number) - 1) if number else str(position)
    return None


def _quotes(style: Style, last: int) -> bool:
    """Whether a bracket begins a name: not where it may be an index."""
    return style.dialect in _BRACKETED or (style.dialect in ("", "default") and last != WORD)


def _comment_end(text: str, place: int, *, nested: bool) -> int:
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(text, place)
        if edge is None:
            return len(text)
        place = edge.end()
        if edge.group() == "*/":
            depth -= 1
        elif nested:
            depth += 1
    return place
