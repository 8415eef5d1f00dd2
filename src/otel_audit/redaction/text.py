"""Redaction of one text: value rules, and `name=value` in the many ways that texts spell it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import re2

from otel_audit.redaction import links, values
from otel_audit.redaction.assignments import PROSE, names_a_secret, redact_assignments
from otel_audit.redaction.checks import is_card
from otel_audit.redaction.lookalikes import plain_view
from otel_audit.redaction.tokens import WITHHELD, is_token
from otel_audit.redaction.values import SHAPES, Span, ValueRule

if TYPE_CHECKING:
    from otel_audit.redaction.names import NameRules
    from otel_audit.redaction.work import Work

Replace = Callable[[str], str]
Note = Callable[[str], None]

_DEEPEST_ENCODING: Final = 4

_HEADER_LINE: Final = re2.compile(
    r"(?i)\b(?:(?:proxy-)?authorization|(?:set-)?cookie2?)\s*[:=]\s*([^\s\"'\\][^\r\n]*)"
)
_XML: Final = re2.compile(r"(?s)<([\w:.-]+)(?:\s[^<>]*)?>((?:<!\[CDATA\[.*?(?:\]\]>|\z)|[^<])+)")
_NAMED_TAG: Final = re2.compile(
    r"(?i)<[a-z:]+\s[^<>]*?\b(?:name|key|id|property)\s*=\s*[\"']([^\"'<>]+)[\"'][^<>]*>"
)
_VALUE_OF_TAG: Final = re2.compile(
    r"(?i)\b(?:value|content)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'<>]+))"
)
_FLAG: Final = re2.compile(
    r"(?:^|[\s\"'`])--([A-Za-z][A-Za-z0-9_-]*)\s+(?:\"([^\"]*)|'([^']*)|([^\s\"'`-][^\s\"'`]*))"
)
_PART: Final = re2.compile(
    # a line may also end as the source code of a literal has it: messages quote bodies so
    r"(?is)\bform-data\s*;((?:[^\r\n\\]|\\+[\"'])*)"
    r"(?:.*?)(?:(?:\\+r|\r)?(?:\\+n|\n)){2}(.*?)(?:(?:(?:\\+r|\r)?(?:\\+n|\n))--|\z)"
)
_NAME_OF_PART: Final = re2.compile(r"(?i)\bname\*?\s*=\s*\\*[\"']?([^\"';\\]*)")
_KEY: Final = re2.compile(
    r"(?is)\bkey \(((?:[^()]|\([^()]*\))*)\)=\((.*?)\)(?:\s(?:already|is|conflicts|was)\b|\.|\n|\z)"
)
_INSERT: Final = re2.compile(
    r"(?is)\(([A-Za-z0-9_,.\s\"`\[\]]+)\)\s{0,8}values\s{0,8}"
    r"\(((?:[^()']|'(?:[^']|'')*'|\([^()]*\))*)\)"
)
_LITERAL_OR_NOT: Final = re2.compile(r"(?s)[^,']*'((?:[^']|'')*)'[^,']*|[^,]+")
_LITERAL: Final = re2.compile(
    r"(?:\b([A-Za-z]+) )?\b([A-Za-z_][A-Za-z0-9_-]{1,40})\s{1,4}"
    r"(?:'([^'\s]{1,200})'|\"([^\"\s]{1,200})\")"
)
_OF_PARSERS: Final = frozenset({"unexpected", "illegal", "expected"})
"""What they call a token is a piece of a language."""

_MOST_VALUES_OF_TAG: Final = 8
_PERCENT: Final = re2.compile(r"[^\s\"'<>]*%[0-9A-Fa-f]{2}[^\s\"'<>]*")
_ESCAPED: Final = re2.compile(r"\\+u00([2-7][0-9A-Fa-f])")

# units of work, each measured
_TEXT: Final = 8
_RULE: Final = 4
_MATCH: Final = 9
_SPAN: Final = 5
_ESCAPE: Final = 6
_PER_CHARACTER: Final = 1 / 64


class TextRules:
    """The value rules of one configuration, over free text."""

    def __init__(self, rules: NameRules, *, off: Iterable[str] = (), emails: bool = False) -> None:
        """Choose the rules.

        Args:
            rules: Judges the names in ``name=value``.
            off: Names of value rules that are not applied; only those that go by looks.
            emails: Whether e-mail addresses are taken out.
        """
        self._names = rules
        unwanted = SHAPES.intersection(off)
        by_looks = [rule for rule in values.NUMBERS if rule.name not in unwanted]
        self._emails = (values.EMAIL,) if emails else ()
        header = ValueRule("header", _HEADER_LINE, self._header, ("authorization", "cookie"))
        xml = ValueRule("element", _XML, self._element, ("<",))
        tag = ValueRule("element", _NAMED_TAG, self._named_tag, ("<",))
        flag = ValueRule("flag", _FLAG, self._flag, ("--",))
        part = ValueRule("part", _PART, self._part, ("form-data",))
        detail = ValueRule("sql_key", _KEY, self._key, ("key (",))
        insert = ValueRule("sql_insert", _INSERT, self._insert, ("values",))
        literal = ValueRule("literal", _LITERAL, self._literal, ("'", '"'))
        query = ValueRule("link", links.QUERY, links.in_query, ("?", "#"))
        segment = ValueRule("link", links.SEGMENTS, links.in_segments, ("/",))
        self._credentials = (
            *values.CREDENTIALS, header, part, xml, tag, flag, detail, insert, literal,
            query, segment,
        )  # fmt: skip
        self._by_looks = tuple(by_looks)
        self._takes_cards = values.CARD in by_looks

    def redact(  # noqa: PLR0913 - one fact each
        self,
        text: str,
        replace: Replace,
        note: Note,
        work: Work,
        *,
        allowed: bool = False,
        numbers: bool = True,
        level: int = 0,
    ) -> str:
        """Redact a text.

        Args:
            text: Well-formed Unicode without NUL.
            replace: Makes what stands where a span was taken out.
            note: Told each rule that took something out.
            work: What this may cost.
            allowed: Whether the application calls the value innocent; credentials are taken out
                all the same, what only looks like a card or account number is not.
            numbers: Whether what looks like a card or account number is taken out.
            level: How many encodings were undone on the way here.

        Returns:
            The text without what the rules name.

        Raises:
            WorkSpentError: It would cost more.
        """
        if is_token(text):
            return text
        work.spend(_TEXT + len(text) * _PER_CHARACTER)
        folded = _folded(text)
        text = _applied(self._credentials, text, folded, replace, note, work)
        if "=" in text or ":" in text:
            text = redact_assignments(text, self._names, replace, note, work)
        by_looks = self._rules_by_looks(allowed=allowed, numbers=numbers)
        text = _applied(by_looks, text, folded, replace, note, work)
        if "%" in text:
            text = self._undo_percent(text, replace, note, work, allowed=allowed, level=level)
        if "\\u00" in text:
            text = self._undo_escapes(text, replace, note, work, allowed=allowed, level=level)
        return text

    def _rules_by_looks(self, *, allowed: bool, numbers: bool) -> tuple[ValueRule, ...]:
        if allowed:
            return ()
        return (*self._by_looks, *self._emails) if numbers else self._emails

    def is_number_taken(self, digits: str) -> bool:
        """Tell whether a whole number, given as its digits, is taken out: what a card's is."""
        return self._takes_cards and is_card(digits)

    def _undo_percent(  # noqa: PLR0913 - as for `redact`
        self, text: str, replace: Replace, note: Note, work: Work, *, allowed: bool, level: int
    ) -> str:
        def word(match: Any) -> str:
            encoded = str(match.group())
            work.spend(2 * _MATCH + len(encoded) * _PER_CHARACTER)
            decoded = clean(unquote(encoded, errors="replace"))
            if decoded == encoded:
                return encoded
            if level >= _DEEPEST_ENCODING:
                note("encoding")
                return WITHHELD
            found = self.redact(decoded, replace, note, work, allowed=allowed, level=level + 1)
            return encoded if found == decoded else found

        return str(_PERCENT.sub(word, text))

    def _undo_escapes(  # noqa: PLR0913 - as for `redact`
        self, text: str, replace: Replace, note: Note, work: Work, *, allowed: bool, level: int
    ) -> str:
        work.spend(_ESCAPE * text.count("u00"))
        plain = str(_ESCAPED.sub(lambda match: chr(int(match.group(1), 16)), text))
        if plain == text:
            return text
        if level >= _DEEPEST_ENCODING:
            note("encoding")
            return WITHHELD
        found = self.redact(plain, replace, note, work, allowed=allowed, level=level + 1)
        return text if found == plain else found

    def _header(self, match: Any) -> Iterable[Span]:
        value = match.group(1).strip()
        return () if is_token(value) or value.lower() in PROSE else (match.span(1),)

    def _part(self, match: Any) -> Iterable[Span]:
        """Find the value of a multipart form's field, where the form is quoted or not declared."""
        value = match.group(2)
        names = (found.group(1) for found in _NAME_OF_PART.finditer(match.group(1)))
        if not value.strip() or is_token(value):
            return ()
        sensitive = any(names_a_secret(self._names, name, value) for name in names)
        return (match.span(2),) if sensitive else ()

    def _flag(self, match: Any) -> Iterable[Span]:
        """Find the value in `--password hunter2`, as a command line has it."""
        group = next(number for number in (2, 3, 4) if match.start(number) >= 0)
        value = match.group(group)
        if not value or is_token(value) or not names_a_secret(self._names, match.group(1), value):
            return ()
        return (match.span(group),)

    def _key(self, match: Any) -> Iterable[Span]:
        """Find the secrets in `Key (token, user_id)=(…, 7) already exists`."""
        names = match.group(1).split(",")
        secret = [names_a_secret(self._names, name.strip(' "'), "") for name in names]
        if not any(secret):
            return
        start, end = match.span(2)
        parts = match.group(2).split(",")
        if len(parts) != len(names):
            yield start, end
            return
        for part, is_secret in zip(parts, secret, strict=True):
            blank = len(part) - len(part.lstrip())
            if is_secret and part.strip() and not is_token(part.strip()):
                yield start + blank, start + len(part)
            start += len(part) + 1

    def _insert(self, match: Any) -> Iterable[Span]:
        """Find the secrets in `INSERT INTO users (name, password) VALUES ('bob', …)`."""
        names = match.group(1).split(",")
        secret = {
            place
            for place, name in enumerate(names)
            if names_a_secret(self._names, name.strip(' "`[]'), "")
        }
        if not secret:
            return
        start = match.start(2)
        literals = list(_LITERAL_OR_NOT.finditer(match.group(2)))
        for place, one in enumerate(literals):
            value = one.group(1)
            if value is None or is_token(value):
                continue
            if len(literals) != len(names) or place in secret:
                yield start + one.start(1), start + one.end(1)

    def _literal(self, match: Any) -> Iterable[Span]:
        """Find the value in `PASSWORD 'hunter2'`, where no sign stands between."""
        name, group = match.group(2), 3 if match.start(3) >= 0 else 4
        value = match.group(group)
        if (
            is_token(value)
            or value.lower() in PROSE
            or (match.group(1) or "").lower() in _OF_PARSERS
        ):
            return ()
        return (match.span(group),) if names_a_secret(self._names, name, value) else ()

    def _named_tag(self, match: Any) -> Iterable[Span]:
        """Find the value in `<input name="csrf_token" value="…">`."""
        if not names_a_secret(self._names, match.group(1), ""):
            return
        for count, found in enumerate(_VALUE_OF_TAG.finditer(match.group())):
            if count == _MOST_VALUES_OF_TAG:
                yield match.start() + found.start(), match.end()
                return
            group = next(number for number in (1, 2, 3) if found.start(number) >= 0)
            start, end = found.span(group)
            if end > start and not is_token(found.group(group)):
                yield match.start() + start, match.start() + end

    def _element(self, match: Any) -> Iterable[Span]:
        name, value = match.group(1), match.group(2)
        if not value.strip() or is_token(value.strip()):
            return ()
        return (match.span(2),) if names_a_secret(self._names, name, value) else ()


def _applied(  # noqa: PLR0913, PLR0917 - as for `redact`
    rules: Iterable[ValueRule], text: str, folded: str, replace: Replace, note: Note, work: Work
) -> str:
    view = plain_view(text)
    for rule in rules:
        # written out, for there are many rules, and few that match
        if len(folded) < rule.shortest:
            continue
        for hint in rule.hints:
            if hint in folded:
                break
        else:
            if rule.hints:
                continue
        found = _apply(rule, text, view, replace, note, work)
        if found is not text:
            text, view = found, plain_view(found)
    return text


def _apply(  # noqa: PLR0913, PLR0917 - as for `redact`
    rule: ValueRule, text: str, view: str, replace: Replace, note: Note, work: Work
) -> str:
    """Take out what a rule finds in the view of a text that has a character for each of its own."""
    work.spend(_RULE + len(text) * _PER_CHARACTER)
    kept: list[str] = []
    end = 0
    for match in rule.pattern.finditer(view):
        first, last = match.span()
        work.spend(_MATCH + (last - first) * rule.weight)
        for start, stop in rule.decide(match):
            work.spend(_SPAN)
            kept += (text[end:start], replace(text[start:stop]))
            end = stop
    if not kept:
        return text
    note(rule.name)
    return "".join((*kept, text[end:]))


def _folded(text: str) -> str:
    # casefold finds also what the patterns' own folding takes for a letter, such as a long s
    return text.lower() if text.isascii() else plain_view(text).casefold()


def clean(text: str) -> str:
    """Replace what no store takes, NUL and lone surrogates, by U+FFFD."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
