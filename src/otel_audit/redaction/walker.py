"""The walk through a document: every value at every depth, within bounds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from otel_audit._util.ids import is_uuid
from otel_audit._util.text import storable
from otel_audit.redaction.annotations import Marked
from otel_audit.redaction.budget import PER_SEARCHED, Limits, WorkBudget, WorkBudgetError
from otel_audit.redaction.json_values import (
    NotUnderstoodError,
    describe_type,
    json_float,
    json_int,
    json_key,
    json_shape,
)
from otel_audit.redaction.labelled_values import labelled_secrets
from otel_audit.redaction.names import CLEAR, REMEMBERED
from otel_audit.redaction.number_spelling import SpelledFloat, encode, parse_exact
from otel_audit.redaction.placeholders import REDACTED, WITHHELD, WITHHELD_FOR_WORK, is_token
from otel_audit.redaction.text import TextRules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_audit.redaction.hashing import KeyedHash
    from otel_audit.redaction.names import NameRules
    from otel_audit.redaction.path_rules import PathRules
    from otel_audit.redaction.prefilter import Prefilter

Mode = Literal["replace", "omit", "hmac"]
Step = tuple[Any, str | int] | None
"""The walk's position: the step before, and the key or index of this one; None at the root."""

OMITTED: Final = object()
"""Result for a value that is to be left out."""

_SHORTEST_SUSPECT: Final = 5
"""Characters below which no rule for values matches."""
_SMALLEST_SUSPECT: Final = 10**12
"""The smallest number of 13 digits, as many as the shortest card has."""
_CACHED_KEY: Final = 128
"""Characters of a key that is remembered as it is shown: clients choose keys."""
_IN_GROUPS: Final = re.compile("[0-9A-Za-z]{2,6}(?:[ .-]{1,2}[0-9A-Za-z]{1,6}){2,8}")

# units of work, each measured
_NODE: Final = 1
_CONTAINER: Final = 3
_SEARCH: Final = 3
_NUMBER: Final = 3
_NEW_NAME: Final = 10
_NOT_JSON: Final = 16
_PARSED_CHARACTER: Final = 1 / 16
_PER_LETTER: Final = 1 / 4
"""Beyond ASCII, where a character may mean several letters (NFKD)."""

_PAIR_LENGTH: Final = 2
_LEAVES: Final = frozenset({str, int, float, SpelledFloat})

_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that would be removed.

    Attributes:
        path: Where, for example ``customer.cards[0].number``; the root is ``$``.
        rule: By which rule, for example ``name:password``, ``value:card``, ``path:customer.*``.
    """

    path: str
    rule: str


@dataclass(frozen=True)
class RedactionRules:
    """Everything that one configuration decides; immutable, shared by all walks."""

    names: NameRules
    paths: PathRules | None
    text: TextRules
    scan: Prefilter
    hash: KeyedHash
    mode: Mode = "replace"
    limits: Limits = field(default_factory=Limits)
    known_key: Callable[[str], tuple[str, float]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "known_key", lru_cache(maxsize=REMEMBERED)(self._clean_key))

    def replacement(self, value: Any) -> str:
        """Make the replacement of a removed value."""
        return self.hash.of(value) if self.mode == "hmac" else REDACTED

    def plain_text(self, text: str, note: Callable[[str], None], work: WorkBudget) -> str:
        """Redact a text that is not looked into as JSON."""
        text = storable(text)
        if len(text) < _SHORTEST_SUSPECT or not self.scan.suspects_string(text):
            return text
        try:
            return self.text.redact(text, self.replacement, note, work)
        except WorkBudgetError:
            return WITHHELD_FOR_WORK

    def identifier(self, text: str, work: WorkBudget | None = None) -> str:
        """Redact what names somebody or something: a number in one piece is not a card's there."""
        text = storable(text)
        if not self.scan.suspects_string(text):
            return text
        numbers = _IN_GROUPS.fullmatch(text) is not None
        try:
            may_cost = WorkBudget(len(text)) if work is None else work
            return self.text.redact(
                text, self.replacement, _ignore_finding, may_cost, numbers=numbers
            )
        except WorkBudgetError:
            return WITHHELD_FOR_WORK

    def _clean_key(self, key: str) -> tuple[str, float]:
        """Redact a key; say also what it costs a document that has it."""
        work = WorkBudget(len(key))
        before = work.left
        return self.plain_text(key, _ignore_finding, work), before - work.left


def _cost_of_name(name: str) -> float:
    # beyond ASCII a character may mean up to 18 (NFKD)
    return _NEW_NAME + len(name) * (0.25 if name.isascii() else 3)


def _ignore_finding(_: str) -> None:
    """Ignore the finding."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON, also the variants that Python's own parser takes (NaN, lone surrogates).

    Raises:
        NotUnderstoodError: It is neither, or too deep, or holds a number too long to read.
    """
    try:
        return _decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise NotUnderstoodError("JSON") from None


class Walk:
    """One walk through one document: holds what is left of the bounds, and what was found."""

    __slots__ = ("_chars", "_findings", "_nodes", "_rules", "_values_clean", "_work")

    def __init__(
        self,
        rules: RedactionRules,
        findings: list[Finding] | None = None,
        *,
        values_clean: bool = False,
        work: WorkBudget | None = None,
    ) -> None:
        """Start a walk with nothing seen yet.

        Args:
            rules: The configuration's rules.
            findings: Collects what was removed, if the caller wants it.
            values_clean: Whether a glance has shown that only names and paths can matter.
            work: What the walk may cost, where several share it or the size is known.
        """
        self._work = WorkBudget() if work is None else work
        self._values_clean = values_clean
        self._rules = rules
        self._findings = findings
        self._nodes = rules.limits.nodes
        self._chars = rules.limits.length

    def value(  # noqa: PLR0911 - a table
        self, value: Any, step: Step, depth: int = 0, *, allowed: bool = False
    ) -> Any:
        """Redact a value of any type; the result has JSON's types only, or is `OMITTED`."""
        kind = type(value)
        self._nodes -= 1
        if self._nodes < 0:
            return self._withhold("bound:nodes", step)
        work = self._work
        work.left -= _NODE
        if work.left < 0:
            return self._withhold_for_work(step)
        if value is None or kind is bool or (self._values_clean and kind in _LEAVES):
            return value
        if kind is str:
            return self._string(value, step, depth, allowed=allowed)
        if kind is dict:
            return self._mapping(value, step, depth)
        if kind is list:
            return self._sequence(value, step, depth, allowed=allowed)
        return self._other(value, step, depth, allowed=allowed)

    def _other(self, value: Any, step: Step, depth: int, *, allowed: bool) -> Any:
        kind = type(value)
        if kind is int or kind is float or kind is SpelledFloat:
            return self._number(value, step, allowed=allowed)
        if kind is Marked:
            return self._marked(value, step)
        if depth > self._rules.limits.depth:
            return self._withhold("bound:depth", step)
        self._work.left -= _CONTAINER
        try:
            shape = json_shape(value)
        except NotUnderstoodError:
            self._note("unknown_type", step)
            return WITHHELD if isinstance(value, int) else describe_type(kind)
        return self.value(shape, step, depth + 1, allowed=allowed)

    def named(self, name: str, value: Any, step: Step, depth: int = 0) -> Any:
        """Redact the value under a name; None stays None, because absence is not a secret."""
        if value is None:
            return None
        verdict = self._rules.names.judge(name)
        rule = verdict.rule
        if rule is not None and not verdict.takes(value):
            rule = None
        if rule is None and self._rules.paths:
            pattern = self._rules.paths.matching(steps_to(step))
            rule = None if pattern is None else f"path:{pattern}"
        if rule is not None:
            return self._remove(value, rule, step)
        return self.value(value, step, depth, allowed=verdict.allowed)

    def linked(self, name: str, value: str, step: Step) -> Any:
        """Redact a credential in a URL's parameter, unless the application allows it."""
        if self._rules.names.judge(name).allowed:
            return self.named(name, value, step)
        return self._remove(value, f"link:{name}", step)

    def _mapping(self, value: dict[Any, Any], step: Step, depth: int) -> Any:
        if depth >= self._rules.limits.depth:
            return self._withhold("bound:depth", step)
        labelled = labelled_secrets(value, self._rules.names, values_clean=self._values_clean)
        found: dict[str, Any] = {}
        judge, work = self._rules.names.judge, self._work
        work.left -= _CONTAINER
        for seen, (raw_key, item) in enumerate(value.items()):
            if self._nodes <= 0 or work.left <= 0:
                found[self._withhold_rest(step)] = len(value) - seen
                break
            name = json_key(raw_key)
            if (
                labelled is None
                and self._values_clean
                and type(item) in _LEAVES
                and judge(name) is CLEAR
            ):
                self._nodes -= 1
                work.left -= _NODE
                found[self._free_key(found, name, step)] = item
                continue
            here = (step, name)
            if labelled is not None and raw_key in labelled.spared:
                result: Any = self.value(item, here, depth + 1)
            elif labelled is not None and raw_key in labelled.taken and item is not None:
                result = self._remove(item, labelled.taken[raw_key], here)
            else:
                seen_as = item if labelled is None else labelled.instead.get(raw_key, item)
                result = self.named(name, seen_as, here, depth + 1)
            if result is not OMITTED:
                found[self._free_key(found, name, here)] = result
        return found

    def _sequence(self, value: Sequence[Any], step: Step, depth: int, *, allowed: bool) -> Any:
        if depth >= self._rules.limits.depth:
            return self._withhold("bound:depth", step)
        paired = not self._values_clean and _is_list_of_pairs(value)
        found: list[Any] = []
        before = ""
        self._work.left -= _CONTAINER
        for index, item in enumerate(value):
            if self._nodes <= 0 or self._work.left <= 0:
                found.append(self._withhold_rest(step))
                break
            here = (step, index)
            # a command line in a list: what `--password` is followed by
            if type(item) is str and before[:2] == "--" and self._is_given(before, item):
                before = ""
                found.append(self._remove(item, "named_beside", here))
                continue
            if paired:
                result: Any = self._pair(item, here, depth + 1)
            elif self._rules.paths:
                result = self.named("", item, here, depth + 1)
            else:
                result = self.value(item, here, depth + 1, allowed=allowed)
            before = item if type(item) is str else ""
            if result is not OMITTED:
                found.append(result)
        return found

    def _is_given(self, option: str, item: str) -> bool:
        """Return whether an item is the value of the option before it, and is a secret."""
        if "=" in option or len(option) > _CACHED_KEY or item[:1] == "-":
            return False
        return self._rules.names.judge(option.lstrip("-")).takes(item)

    def _pair(self, item: Sequence[Any], step: Step, depth: int) -> Any:
        result = self.named(item[0], item[1], (step, item[0]), depth)
        return [self.key(item[0], step), REDACTED if result is OMITTED else result]

    def _string(  # noqa: PLR0911 - one way out each
        self, value: str, step: Step, depth: int, *, allowed: bool
    ) -> str:
        self._chars -= len(value)
        if self._chars < 0:
            return self._withhold("bound:length", step)
        work = self._work
        work.left += len(value) * work.rate - _SEARCH
        work.left -= len(value) * (PER_SEARCHED if value.isascii() else _PER_LETTER)
        if work.left < 0:
            return self._withhold_for_work(step)
        text = value if value.isascii() and "\0" not in value else storable(value)
        if len(text) < _SHORTEST_SUSPECT:
            return text
        may_be_json = text.lstrip()[:1] in ("{", "[", '"')
        looked_into = may_be_json and ("\\" in text or self._rules.paths is not None)
        if is_uuid(text) or not (looked_into or self._rules.scan.suspects_string(text)):
            return text
        try:
            if may_be_json and not is_token(text):
                try:
                    return self._json_inside(text, step, depth)
                except NotUnderstoodError:
                    # it only begins like JSON; the text rules see it whole
                    work.spend(_NOT_JSON)
            return self._rules.text.redact(
                text,
                self._rules.replacement,
                lambda rule: self._note(rule, step),
                work,
                allowed=allowed,
            )
        except WorkBudgetError:
            return self._withhold_for_work(step)

    def _json_inside(self, text: str, step: Step, depth: int) -> str:
        self._work.spend(_SEARCH + len(text) * _PARSED_CHARACTER)
        parsed = parse_exact(text)
        if depth >= self._rules.limits.depth:
            return self._withhold("bound:depth", step)
        redacted = self.value(parsed, (step, "(json)"), depth + 1)
        if redacted == parsed:
            return text
        return encode(REDACTED if redacted is OMITTED else redacted).decode()

    def _number(self, value: Any, step: Step, *, allowed: bool) -> Any:
        if isinstance(value, float):
            if allowed or not (value.is_integer() and abs(value) >= _SMALLEST_SUSPECT):
                return value if type(value) is SpelledFloat else json_float(value)
            whole = int(value) if abs(value) < _SMALLEST_SUSPECT**2 else 0
        else:
            if -_SMALLEST_SUSPECT < value < _SMALLEST_SUSPECT:
                return value
            try:
                whole = json_int(value)
            except NotUnderstoodError:
                return self._withhold("bound:number", step)
        self._work.left -= _NUMBER
        digits = str(abs(whole))
        if not allowed and self._rules.text.is_number_taken(digits):
            self._note("card", step)
            return self._rules.replacement(digits)
        return value

    def _marked(self, marked: Marked, step: Step) -> Any:
        if marked.value is None and marked.mark != "redact":
            return OMITTED if marked.mark == "omit" else None
        self._note(f"mark:{marked.mark}", step)
        if marked.mark == "omit":
            return OMITTED
        return self._rules.hash.of(marked.value) if marked.mark == "hash" else REDACTED

    def _remove(self, value: Any, rule: str, step: Step) -> Any:
        if isinstance(value, str) and is_token(value):
            return value
        self._note(rule, step)
        if self._rules.mode == "omit":
            return OMITTED
        if isinstance(value, Marked):
            value = value.value
        return self._rules.replacement(value)

    def _free_key(self, found: dict[str, Any], name: str, step: Step) -> str:
        key = self.key(name, step)
        if key not in found:
            return key
        return f"{key} ({len(found) + 1})"

    def key(self, name: str, step: Step = None) -> str:
        """Redact a name that itself holds a secret: the value rules, and what no store takes."""
        work = self._work
        if len(name) <= _CACHED_KEY:
            key, cost = self._rules.known_key(name)
            if work.is_new_key(name):
                work.left += len(name) * work.rate - _cost_of_name(name) - cost
        else:
            self._chars -= len(name)
            work.left += len(name) * work.rate - _cost_of_name(name)
            key = WITHHELD
            if self._chars >= 0:
                key = self._rules.plain_text(name, _ignore_finding, work)
        if key != name:
            self._note("key", step)
        return key

    def _withhold(self, rule: str, step: Step) -> str:
        self._note(rule, step)
        return WITHHELD

    def _withhold_for_work(self, step: Step) -> str:
        self._work.withheld = True
        self._note("bound:work", step)
        return WITHHELD_FOR_WORK

    def _withhold_rest(self, step: Step) -> str:
        if self._nodes <= 0:
            return self._withhold("bound:nodes", step)
        return self._withhold_for_work(step)

    def _note(self, rule: str, step: Step) -> None:
        if self._findings is not None:
            path = spell_path(step)
            spelled = self._rules.plain_text(path, _ignore_finding, WorkBudget(len(path)))
            named = rule if ":" in rule or rule in _OWN_RULES else f"value:{rule}"
            self._findings.append(Finding(spelled, named))


_OWN_RULES: Final = frozenset({
    "key", "named_beside", "said_beside", "oauth_code", "unknown_type",
})  # fmt: skip


def steps_to(step: Step) -> list[str | int]:
    """Unroll where the walk is, from the root; what is inside a JSON string counts on."""
    found: list[str | int] = []
    while step is not None:
        step, name = step
        if name != "(json)":
            found.append(name)
    return found[::-1]


def spell_path(step: Step) -> str:
    """Spell where the walk is: ``orders[0].card``."""
    parts = [f"[{name}]" if isinstance(name, int) else f".{name}" for name in steps_to(step)]
    return "".join(parts).removeprefix(".") or "$"


def _is_list_of_pairs(value: Sequence[Any]) -> bool:
    return bool(value) and all(
        type(item) in (list, tuple) and len(item) == _PAIR_LENGTH and isinstance(item[0], str)
        for item in value
    )
