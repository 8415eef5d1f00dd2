"""Redaction of one text: value rules, and `name=value` in the many ways that texts spell it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import re2

from otel_audit._util.lazy_pattern import LazyPattern
from otel_audit._util.text import storable
from otel_audit.redaction import patterns, secret_urls
from otel_audit.redaction.budget import PER_SEARCHED
from otel_audit.redaction.checksums import is_card
from otel_audit.redaction.key_value import PROSE, names_a_secret, redact_assignments
from otel_audit.redaction.normalize import plain_view
from otel_audit.redaction.patterns import SHAPES, TextSpan, ValueRule
from otel_audit.redaction.placeholders import REDACTED, WITHHELD, is_token

if TYPE_CHECKING:
    from otel_audit.redaction.budget import WorkBudget
    from otel_audit.redaction.names import NameRules

Replace = Callable[[str], str]
NoteFinding = Callable[[str], None]

DEEPEST_ENCODING: Final = 4
"""Times that a text is percent-decoded; what is encoded more often is withheld."""

_HEADER_LINE: Final = LazyPattern(
    r"(?i)\b(?:(?:proxy-)?authorization|(?:set-)?cookie2?)\s*[:=]\s*([^\s\"'\\][^\r\n]*)"
)
_XML: Final = LazyPattern(r"(?s)<([\w:.-]+)(?:\s[^<>]*)?>((?:<!\[CDATA\[.*?(?:\]\]>|\z)|[^<])+)")
_NAMED_TAG: Final = LazyPattern(
    r"(?i)<[a-z:]+\s[^<>]*?\b(?:name|key|id|property)\s*=\s*[\"']([^\"'<>]+)[\"'][^<>]*>"
)
# the content of a named element is the named value, but not in elements for display
_NAMED_ELEMENT: Final = LazyPattern(
    r"(?is)<([a-z][\w:.-]*)\s[^<>]*?\b(?:name|key)\s*=\s*[\"']([^\"'<>]+)[\"'][^<>]*>"
    r"((?:<!\[CDATA\[.*?(?:\]\]>|\z)|[^<])+)"
)
_SEEN: Final = frozenset({
    "a", "button", "div", "fieldset", "form", "h1", "h2", "h3", "iframe", "label", "map", "meta",
    "object", "option", "p", "section", "select", "slot", "span", "td", "th", "input",
})  # fmt: skip
_NAME_THEN_VALUE: Final = LazyPattern(
    r"(?i)<(?:[\w.]+:)?(?:key|name|k|field|label|param|parameter|property|attribute|variable"
    r"|[a-z]+-?name|[a-z]+-key)>\s*([^<>]{1,100}?)\s*</[^<>]{1,60}>\s*"
    r"<(?:[\w.]+:)?(?:string|value|val|v|data|text|content|integer|[a-z]+-?value)(?:\s[^<>]*)?>"
    r"([^<]+)"
)
_GRAPHQL_DEFAULT: Final = LazyPattern(
    r"\$([A-Za-z_][A-Za-z0-9_]*)\s*:\s*[\[A-Za-z0-9_\]!]+\s*=\s*"
    r"(?:\"\"\"((?:[^\"]|\"[^\"])*)|\"((?:[^\"\\]|\\.)*))"
)
_SET_TO: Final = LazyPattern(
    r"(?is)\bset\s+(?:session\s+|local\s+)?[\"']?([\w.]{1,100})[\"']?\s+to\s+"
    r"E?'((?:[^'\\]|''|\\.)*)(?:'|\z)"
)
_NAME_IS_VALUE: Final = LazyPattern(
    # `your login code is 123456`, `the password is Xy12abcd`
    r"(?i)\b((?:[a-z-]+ )?[a-z-]+)\s{1,4}is:?\s{1,4}[\"'`*<]{0,3}"
    r"([A-Z]-[0-9]{4,10}|[0-9]{3}[ -][0-9]{3}|[0-9A-Za-z!#$%^&*_+~@-]{4,64})"
    r"[\"'`*>]{0,3}(?:[.,;!]|\z|\s+([A-Za-z]*))"
)
_VALUE_IS_NAME: Final = LazyPattern(
    r"(?i)(?:^|[\s\"'`*:(])([A-Z]-[0-9]{4,10}|[0-9]{3}[ -][0-9]{3}|[0-9]{4,10}) [ai]s your "
    r"((?:[a-z-]+ ){0,4}[a-z-]+)"
)
_UNITS: Final = frozenset({
    "base64", "base32", "sha1", "sha256", "sha384", "sha512", "md5", "oauth2", "utf8", "utf-8",
    "hs256", "rs256", "es256", "aes256", "aes-256", "pkcs8", "pkcs12", "x509", "argon2", "argon2id",
    "bcrypt", "ed25519", "rfc3339", "iso8601",
})  # fmt: skip
_BEHIND_CODES: Final = frozenset({
    "and", "at", "do", "don", "enter", "for", "from", "in", "it", "never", "on", "or", "please",
    "to", "this", "use", "valid", "with", "your",
})  # fmt: skip
_MEASURED: Final = LazyPattern(
    r"(?i)[0-9]+-?(?:digits?|chars?|characters?|letters?|bytes?|bits?|days?|hours?|min|minutes?)"
)
_NAME_LINE: Final = LazyPattern(
    r"(?i)\b(?:name|key|field|label)[\"']?[ \t]*:[ \t]*[\"']?([^\s\"']{1,100})[\"']?[ \t]*\r?\n"
    r"[ \t]*[\"']?(?:value|val)[\"']?[ \t]*:[ \t]*[\"']?([^\r\n\"']+)"
)
_BLOCK: Final = LazyPattern(
    r"(?m)^([ \t]*(?:- +)?)[\"']?([\w.-]{1,100})[\"']?[ \t]*:[ \t]+[|>][-+0-9]{0,2}[ \t]*\r?\n"
)
_VALUE_OF_TAG: Final = LazyPattern(
    r"(?i)\b(?:value|content)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'<>]+))"
)
_FLAG: Final = LazyPattern(
    r"(?:^|[\s\"'`])--([A-Za-z][A-Za-z0-9_-]*)\s+(?:\"([^\"]*)|'([^']*)|([^\s\"'`-][^\s\"'`]*))"
)
_PART: Final = LazyPattern(
    # a line may also end as the source code of a literal has it: messages quote bodies so
    r"(?is)\bform-data\s*;((?:[^\r\n\\]|\\+[\"'])*)"
    r"(?:.*?)(?:(?:\\+r|\r)?(?:\\+n|\n)){2}(.*?)(?:(?:(?:\\+r|\r)?(?:\\+n|\n))--|\z)"
)
_NAME_OF_PART: Final = LazyPattern(r"(?i)\bname\*?\s*=\s*\\*[\"']?([^\"';\\]*)")
_KEY: Final = LazyPattern(
    r"(?is)\bkey \(((?:[^()]|\([^()]*\))*)\)=\((.*?)\)(?:\s(?:already|is|conflicts|was)\b|\.|\n|\z)"
)
_INSERT: Final = LazyPattern(
    r"(?is)\(([A-Za-z0-9_,.\s\"`\[\]]+)\)\s{0,8}values\s{0,8}"
    r"\(((?:[^()']|'(?:[^']|'')*'|\([^()]*\))*)\)"
)
_LITERAL_OR_NOT: Final = LazyPattern(r"(?s)[^,']*'((?:[^']|'')*)'[^,']*|[^,]+")
_LITERAL: Final = LazyPattern(
    r"(?:\b([A-Za-z]+) )?\b([A-Za-z_][A-Za-z0-9_-]{1,40})\s{1,4}"
    r"(?:'([^'\s]{1,200})'|\"([^\"\s]{1,200})\")"
)
_SHORTEST_VALUE: Final = 6
"""Characters of letters and digits that can be a code; shorter ones are names such as ``A4``."""
_SEPARATORS: Final = (",", ";", "\t")
_AROUND_CELLS: Final = " \r\"'"
_TABLE: Final = LazyPattern(r"(?s)\A([^\r\n]+)\r?\n(.+)")
_HEAD: Final = LazyPattern(r"[\pL_][\pL\pN_.-]*(?: [\pL\pN_.-]+){0,3}")
_LONGEST_HEAD: Final = 2_000
"""Characters of a table's first line; a longer one is no list of names."""
_CELL: Final = {
    # a quoted cell may hold the separator, and the last is empty where a line ends in one
    sign: LazyPattern(rf'(?:^|{sign})((?:[ ]?"(?:[^"]|"")*"[^{sign}]*|[^{sign}]*))')
    for sign in _SEPARATORS
}
_OF_PARSERS: Final = frozenset({"unexpected", "illegal", "expected"})
"""Parsers, whose "token" is a piece of a language."""

_MOST_VALUES_OF_TAG: Final = 8
"""Values of one tag of markup that are looked at."""
_APART: Final = {ord(sign): "\n" for sign in " \t"}
"""Keeps words apart where a number may go on behind a blank."""

_PERCENT: Final = LazyPattern(r"[^\s\"'<>]*%[0-9A-Fa-f]{2}[^\s\"'<>]*")
_ESCAPED: Final = LazyPattern(r"\\+u00([2-7][0-9A-Fa-f])")

# units of work, each measured
_TEXT: Final = 8
_RULE: Final = 4
_MATCH: Final = 9
_SPAN: Final = 5
_DECODED: Final = 4
_PER_SIGN: Final = 1 / 2
_ESCAPE: Final = 6


class TextRules:
    """The value rules of one configuration, over free text."""

    def __init__(self, rules: NameRules, *, off: Iterable[str] = (), emails: bool = False) -> None:
        """Choose the rules.

        Args:
            rules: Judges the names in ``name=value``.
            off: Names of value rules that are not applied; only those that go by looks.
            emails: Whether e-mail addresses are removed.
        """
        self._names = rules
        unwanted = SHAPES.intersection(off)
        by_looks = [rule for rule in patterns.NUMBERS if rule.name not in unwanted]
        self._emails = (patterns.EMAIL,) if emails else ()
        header = ValueRule("header", _HEADER_LINE, self._header, ("authorization", "cookie"))
        xml = ValueRule("element", _XML, self._element, ("<",))
        tag = ValueRule("element", _NAMED_TAG, self._named_tag, ("<",))
        element = ValueRule("element", _NAMED_ELEMENT, self._named_element, ("<",))
        pair = ValueRule("element", _NAME_THEN_VALUE, self._named_by_first, ("<",))
        default = ValueRule("graphql_default", _GRAPHQL_DEFAULT, self._named_by_first, ("$",))
        setting = ValueRule("sql_set", _SET_TO, self._named_by_first, (" to ",))
        line = ValueRule("named_line", _NAME_LINE, self._named_by_first, ("value", "val"))
        block = ValueRule("block", _BLOCK, self._block, ("|", ">"))
        name_is_value = ValueRule(
            "sentence", _NAME_IS_VALUE, self._name_is_value, (" is ", " is: ")
        )
        value_is_name = ValueRule(
            "sentence", _VALUE_IS_NAME, self._value_is_name, (" is your ", " as your ")
        )
        table = ValueRule("column", _TABLE, self._column, ("\n",))
        flag = ValueRule("flag", _FLAG, self._flag, ("--",))
        part = ValueRule("part", _PART, self._part, ("form-data",))
        detail = ValueRule("sql_key", _KEY, self._key, ("key (",))
        insert = ValueRule("sql_insert", _INSERT, self._insert, ("values",))
        literal = ValueRule("literal", _LITERAL, self._literal, ("'", '"'))
        query = ValueRule("link", secret_urls.QUERY, secret_urls.in_query, ("?", "#"))
        segment = ValueRule("link", secret_urls.SEGMENTS, secret_urls.in_segments, ("/",))
        self._credentials = (
            *patterns.CREDENTIALS, header, part, xml, tag, flag, detail, insert, literal,
            query, segment, element, pair, default, setting, line, block,
            name_is_value, value_is_name, table,
        )  # fmt: skip
        self._by_looks = tuple(by_looks)
        self._takes_cards = patterns.CARD in by_looks

    def redact(  # noqa: PLR0913 - one fact each
        self,
        text: str,
        replace: Replace,
        note: NoteFinding,
        work: WorkBudget,
        *,
        allowed: bool = False,
        numbers: bool = True,
        level: int = 0,
    ) -> str:
        """Redact a text.

        Args:
            text: Well-formed Unicode without NUL.
            replace: Makes the replacement of a removed span.
            note: Called with each rule that took something out.
            work: What this may cost.
            allowed: Whether the application calls the value not sensitive; credentials are removed
                all the same, what only looks like a card or account number is not.
            numbers: Whether what looks like a card or account number is removed.
            level: How many encodings were undone on the way here.

        Returns:
            The text without what the rules name.

        Raises:
            WorkBudgetError: It would cost more.
        """
        if is_token(text):
            return text
        work.spend(_TEXT + len(text) * PER_SEARCHED)
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
        """Return whether a whole number, given as its digits, is removed, such as a card's."""
        return self._takes_cards and is_card(digits)

    def _undo_percent(  # noqa: PLR0913 - as for `redact`
        self,
        text: str,
        replace: Replace,
        note: NoteFinding,
        work: WorkBudget,
        *,
        allowed: bool,
        level: int,
    ) -> str:
        if level < DEEPEST_ENCODING and self._is_clean_decoded(text, work, allowed, level):
            return text

        def word(match: Any) -> str:
            encoded = str(match.group())
            work.spend(2 * _MATCH + len(encoded) * PER_SEARCHED)
            decoded = storable(unquote(encoded, errors="replace"))
            if decoded == encoded:
                return encoded
            if level >= DEEPEST_ENCODING:
                note("encoding")
                return WITHHELD
            found = self.redact(decoded, replace, note, work, allowed=allowed, level=level + 1)
            return encoded if found == decoded else found

        return str(_PERCENT.sub(word, text))

    def _is_clean_decoded(self, text: str, work: WorkBudget, allowed: bool, level: int) -> bool:  # noqa: FBT001
        """Return whether none of the words holds anything; none reaches into another."""
        work.spend(_DECODED + 2 * len(text) * PER_SEARCHED + text.count("%") * _PER_SIGN)
        decoded = storable(unquote(text.translate(_APART), errors="replace"))
        found = self.redact(
            decoded, lambda secret: secret + REDACTED, _ignore_finding, work,
            allowed=allowed, level=level + 1,
        )  # fmt: skip
        return found == decoded

    def _undo_escapes(  # noqa: PLR0913 - as for `redact`
        self,
        text: str,
        replace: Replace,
        note: NoteFinding,
        work: WorkBudget,
        *,
        allowed: bool,
        level: int,
    ) -> str:
        work.spend(_ESCAPE * text.count("u00"))
        plain = str(_ESCAPED.sub(lambda match: chr(int(match.group(1), 16)), text))
        if plain == text:
            return text
        if level >= DEEPEST_ENCODING:
            note("encoding")
            return WITHHELD
        found = self.redact(plain, replace, note, work, allowed=allowed, level=level + 1)
        return text if found == plain else found

    def _header(self, match: Any) -> Iterable[TextSpan]:
        value = match.group(1).strip()
        return () if is_token(value) or value.lower() in PROSE else (match.span(1),)

    def _part(self, match: Any) -> Iterable[TextSpan]:
        """Find the value of a multipart form's field, where the form is quoted or not declared."""
        value = match.group(2)
        names = (found.group(1) for found in _NAME_OF_PART.finditer(match.group(1)))
        if not value.strip() or is_token(value):
            return ()
        sensitive = any(names_a_secret(self._names, name, value) for name in names)
        return (match.span(2),) if sensitive else ()

    def _flag(self, match: Any) -> Iterable[TextSpan]:
        """Find the value in `--password hunter2`, as a command line has it."""
        group = next(number for number in (2, 3, 4) if match.start(number) >= 0)
        value = match.group(group)
        if not value or is_token(value) or not names_a_secret(self._names, match.group(1), value):
            return ()
        return (match.span(group),)

    def _key(self, match: Any) -> Iterable[TextSpan]:
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

    def _insert(self, match: Any) -> Iterable[TextSpan]:
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

    def _literal(self, match: Any) -> Iterable[TextSpan]:
        """Find the value in `PASSWORD 'hunter2'`, without a sign in between."""
        name, group = match.group(2), 3 if match.start(3) >= 0 else 4
        value = match.group(group)
        if (
            is_token(value)
            or value.lower() in PROSE
            or (match.group(1) or "").lower() in _OF_PARSERS
        ):
            return ()
        return (match.span(group),) if names_a_secret(self._names, name, value) else ()

    def _named_tag(self, match: Any) -> Iterable[TextSpan]:
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

    def _named_element(self, match: Any) -> Iterable[TextSpan]:
        """Find the text in `<entry key="db.password">…</entry>`."""
        value = match.group(3).strip()
        seen = match.group(1).lower() in _SEEN
        if seen or not value or is_token(value):
            return ()
        return (match.span(3),) if names_a_secret(self._names, match.group(2), value) else ()

    def _named_by_first(self, match: Any) -> Iterable[TextSpan]:
        """Find the value, the last group that is there, of what the first group names."""
        group = next(number for number in (3, 2) if _has(match, number))
        value = match.group(group).strip()
        if not value or is_token(value):
            return ()
        return (match.span(group),) if names_a_secret(self._names, match.group(1), value) else ()

    def _block(self, match: Any) -> Iterable[TextSpan]:
        """Find the lines of `private_key: |`, as YAML has them: those that are indented further."""
        if not names_a_secret(self._names, match.group(2), ""):
            return
        text, start = match.string, match.end()
        while start < len(text):
            stop = text.find("\n", start) % (len(text) + 1)
            line = text[start:stop]
            bare = line.strip()
            if bare and len(line) - len(line.lstrip()) <= len(match.group(1)):
                return
            if bare and not is_token(bare):
                first = start + line.index(bare)
                yield first, first + len(bare)
            start = stop + 1

    def _name_is_value(self, match: Any) -> Iterable[TextSpan]:
        """Find the value in `the code is 123456`: a number, or letters and digits in one."""
        value = match.group(2)
        letters, digits = any(map(str.isalpha, value)), any(map(str.isdigit, value))
        if not digits or value.lower() in _UNITS or is_token(value):
            return ()
        behind = (match.group(3) or "").lower()
        if letters and (len(value) < _SHORTEST_VALUE or _MEASURED.fullmatch(value)):
            return ()
        if not letters and behind and behind not in _BEHIND_CODES:
            return ()  # `1024 bytes`
        words = match.group(1).split()
        named = (" ".join(words), words[-1])
        return (match.span(2),) if any(self._is_secret(one, value) for one in named) else ()

    def _value_is_name(self, match: Any) -> Iterable[TextSpan]:
        """Find the value in `123456 is your Google verification code`."""
        words: list[str] = []
        for word in match.group(2).lower().split():
            if word in _BEHIND_CODES:
                break
            words.append(word)
        named = (" ".join(words[-2:]), words[-1] if words else "")
        taken = any(self._is_secret(one, match.group(1)) for one in named)
        return (match.span(1),) if taken else ()

    def _is_secret(self, name: str, value: str) -> bool:
        verdict = self._names.judge(name)
        return verdict.rule is not None and not verdict.opaque and verdict.takes(value)

    def _column(self, match: Any) -> Iterable[TextSpan]:
        """Find the columns of a table in a text whose names, in its first line, are secrets."""
        head = match.group(1)
        sign = next((one for one in _SEPARATORS if one in head), None)
        # in prose a blank follows
        if sign is None or f"{sign} " in head or len(head) > _LONGEST_HEAD:
            return
        names = [one.strip(_AROUND_CELLS) for one in head.split(sign)]
        if not all(map(_HEAD.fullmatch, names)):
            return
        secret = [place for place, one in enumerate(names) if names_a_secret(self._names, one, "")]
        start = match.start(2)
        for line in match.group(2).split("\n") if secret else ():
            cells = [one.span(1) for one in _CELL[sign].finditer(line)]
            if len(cells) == len(names):
                for place in secret:
                    first, last = cells[place]
                    bare = line[first:last].strip(_AROUND_CELLS)
                    taken = names_a_secret(self._names, names[place], bare)
                    if taken and bare and not is_token(bare):
                        first += line[first:last].index(bare)
                        yield start + first, start + first + len(bare)
            start += len(line) + 1

    def _element(self, match: Any) -> Iterable[TextSpan]:
        name, value = match.group(1), match.group(2)
        if not value.strip() or is_token(value.strip()):
            return ()
        return (match.span(2),) if names_a_secret(self._names, name, value) else ()


def _has(match: Any, group: int) -> bool:
    try:
        return int(match.start(group)) >= 0
    except (IndexError, re2.error):
        return False


def _applied(  # noqa: PLR0913, PLR0917 - as for `redact`
    rules: Iterable[ValueRule],
    text: str,
    folded: str,
    replace: Replace,
    note: NoteFinding,
    work: WorkBudget,
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
    rule: ValueRule, text: str, view: str, replace: Replace, note: NoteFinding, work: WorkBudget
) -> str:
    """Take out what a rule finds in the view of a text that has a character for each of its own."""
    work.spend(_RULE + len(text) * PER_SEARCHED)
    kept: list[str] = []
    end = 0
    for base, piece in ((0, view),) if rule.within is None else _pieces(rule.within, view):
        for match in rule.pattern.finditer(piece):
            work.spend(_MATCH)
            if rule.weight and match.lastindex is not None:
                first, last = match.span()
                work.spend((last - first) * rule.weight)
            for start, stop in rule.decide(match):
                work.spend(_SPAN)
                kept += (text[end : base + start], replace(text[base + start : base + stop]))
                end = base + stop
    if not kept:
        return text
    note(rule.name)
    return "".join((*kept, text[end:]))


def _ignore_finding(_: str) -> None:
    """Ignore the finding."""


def _pieces(within: Any, view: str) -> Iterator[tuple[int, str]]:
    """Cut out the parts to check closely, each with the characters around it."""
    for match in within.finditer(view):
        first, last = match.span()
        base = max(first - 1, 0)
        yield base, view[base : last + 1]


def _folded(text: str) -> str:
    # casefold finds also what the patterns' own folding takes for a letter, such as a long s
    return text.lower() if text.isascii() else plain_view(text).casefold()
