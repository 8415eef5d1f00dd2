"""The retention policy: which records are kept for how long, and where.

All days count from the end of the month that a record is in, as a month goes as a whole.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from otel_audit.errors import ConfigurationError

LONGEST_MONTH: Final = 31
MOST_DAYS: Final = 36_500
"""A hundred years: more is a typing error."""
MOST_RULES: Final = 200
"""Rules of one policy: each row that is judged is compared with them."""

_MATCHES: Final = ("tenant", "event", "action", "level")
_DAYS: Final = ("min", "max", "hot", "archive")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_DEFAULT: Final = "default"


class PolicyError(ConfigurationError):
    """A policy that cannot be read, or that contradicts itself."""


class RecordKind(NamedTuple):
    """The fields that a rule can match."""

    tenant: str
    event: str
    action: str
    level: str | None


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """One rule.

    Attributes:
        name: Names it in messages, and the class of records in an archive.
        match: ``tenant``, ``event``, ``action``, ``level``: the value, with ``*`` at its end for
            any that begin so (not for ``level``).
        days: ``min``, ``max``, ``hot``, ``archive``, as far as it sets them.
    """

    name: str
    match: Mapping[str, str]
    days: Mapping[str, int]

    def applies_to(self, kind: RecordKind) -> bool:
        """Whether the rule matches records of this kind."""
        return all(
            _fits(pattern, getattr(kind, field) or "") for field, pattern in self.match.items()
        )

    def overlaps(self, other: RetentionRule) -> bool:
        """Whether a record can match both rules."""
        return all(
            _meet(pattern, other.match[field])
            for field, pattern in self.match.items()
            if field in other.match
        )

    def as_plain(self) -> dict[str, Any]:
        """The values as stored."""
        return {"name": self.name, **self.match, **self.days}


@dataclass(frozen=True, slots=True)
class RetentionClass:
    """The retention of one kind of records.

    Attributes:
        name: By the rules that say it.
        rules: Which rule says what, by ``min``, ``max``, ``hot`` and ``archive``.
        min: Days before which nothing may go; at least the floor.
        max: Days by which everything must be gone; None: never.
        hot: Days in the database; None: for ever.
        archive: Days in the archive after that; 0: not archived; None: for ever.
    """

    name: str
    rules: Mapping[str, str]
    min: int
    max: int | None
    hot: int | None
    archive: int | None

    @property
    def is_archived(self) -> bool:
        """Whether these records are archived."""
        return self.archive != 0

    @property
    def expires_after(self) -> int | None:
        """Days after which the archive's copy may be deleted; None for never."""
        return None if self.hot is None or self.archive is None else self.hot + self.archive

    @property
    def locked_for(self) -> int:
        """Days for which the archive's copy cannot be deleted."""
        return self.min if self.expires_after is None else self.expires_after


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Ordered rules: for each of its days a kind follows the first rule that applies and has it.

    Attributes:
        floor: Days before which no record goes, whatever a rule says.
        rules: In their order; the last is the default, which applies to all.
        two_persons: Whether another role must approve what may keep less than this.
    """

    floor: int
    rules: tuple[RetentionRule, ...]
    two_persons: bool = False

    def explain(self, kind: RecordKind) -> RetentionClass:
        """Return the retention of a kind of records.

        Raises:
            PolicyError: Two rules contradict each other for it; both are named.
        """
        days: dict[str, int] = {}
        rule_names: dict[str, str] = {}
        for rule in self.rules:
            if not rule.applies_to(kind):
                continue
            for name, count in rule.days.items():
                if name not in days:
                    days[name], rule_names[name] = count, rule.name
        names = dict.fromkeys(rule_names.values())
        if len(names) > 1:
            names.pop(_DEFAULT, None)
        least = days.get("min", 0)
        if least <= self.floor:
            least, rule_names["min"] = self.floor, "floor"
        found = RetentionClass(
            "+".join(names) or _DEFAULT, rule_names,
            least, days.get("max"), days.get("hot"), days.get("archive"),
        )  # fmt: skip
        _refuse_contradiction(found, kind)
        return found

    @property
    def reads_level(self) -> bool:
        """Whether a rule matches the level, which is in the payload alone."""
        return any("level" in rule.match for rule in self.rules)

    def as_plain(self) -> dict[str, Any]:
        """The values as stored."""
        plain: dict[str, Any] = {
            "floor": self.floor, "rules": [rule.as_plain() for rule in self.rules]
        }  # fmt: skip
        return {**plain, "two_persons": True} if self.two_persons else plain


def read_policy(text: str, place: str = "retention policy") -> RetentionPolicy:
    """Read a policy.

    Args:
        text: TOML: ``floor``, ``two_persons``, ``[default]``, and ``[[rule]]`` with ``name``,
            ``match`` and days.
        place: Where it came from, for messages.

    Raises:
        PolicyError: It is not TOML, has an unknown key or a wrong value, or contradicts itself; the
            message names the key, or both rules.
    """
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PolicyError(f"{place}: not TOML: {error}") from None
    _refuse_unknown(found, ("floor", "two_persons", "default", "rule"), place)
    two_persons = found.get("two_persons", False)
    if not isinstance(two_persons, bool):
        raise PolicyError(f"{place}: two_persons: true or false is expected")
    floor = _number(found.get("floor", 0), f"{place}: floor")
    entries = found.get("rule", [])
    if not isinstance(entries, list) or len(entries) > MOST_RULES:
        raise PolicyError(f"{place}: rule: up to {MOST_RULES} tables [[rule]] are expected")
    rules = [_rule(entry, f"{place}: rule {number}") for number, entry in enumerate(entries, 1)]
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise PolicyError(f"{place}: two rules are called {name!r}")
    default = found.get("default", {})
    where = f"{place}: default"
    if not isinstance(default, dict):
        raise PolicyError(f"{where}: a table [default] is expected")
    _refuse_unknown(default, _DAYS, where)
    rules.append(RetentionRule(_DEFAULT, {}, _days(default, where)))
    policy = RetentionPolicy(floor, tuple(rules), two_persons)
    for rule in rules:
        _refuse_impossible(rule, policy, place)
    return policy


def read_policy_file(path: Path) -> RetentionPolicy:
    """Read a policy from its file.

    Raises:
        PolicyError: It cannot be read, or as for `read_policy`.
    """
    try:
        return read_policy(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path} cannot be read ({type(error).__name__})") from None


def _rule(entry: Any, place: str) -> RetentionRule:
    if not isinstance(entry, dict):
        raise PolicyError(f"{place}: a table is expected")
    _refuse_unknown(entry, ("name", "match", *_DAYS), place)
    name = entry.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in {_DEFAULT, "floor"}:
        raise PolicyError(
            f"{place}: name: small letters, digits and - are expected, such as orders"
        )
    place = f"{place} ({name})"
    match = entry.get("match")
    if not isinstance(match, dict) or not match:
        raise PolicyError(f"{place}: match: one of {', '.join(_MATCHES)} is needed")
    _refuse_unknown(match, _MATCHES, f"{place}: match")
    for field, pattern in match.items():
        if not isinstance(pattern, str) or not pattern:
            raise PolicyError(f"{place}: match.{field}: a text is expected")
        if "*" in pattern[:-1] or (field == "level" and "*" in pattern):
            raise PolicyError(f"{place}: match.{field}: * is allowed only at the end: order.*")
    days = _days(entry, place)
    if not days:
        raise PolicyError(f"{place}: it says nothing: one of {', '.join(_DAYS)} is needed")
    return RetentionRule(name, match, days)


def _days(entry: Mapping[str, Any], place: str) -> dict[str, int]:
    return {name: _number(entry[name], f"{place}: {name}") for name in _DAYS if name in entry}


def _number(value: Any, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_DAYS:
        raise PolicyError(f"{place}: whole days from 0 to {MOST_DAYS} are expected")
    return value


def _refuse_unknown(table: Mapping[str, Any], known: Iterable[str], place: str) -> None:
    names = tuple(known)
    for key in table:
        if key not in names:
            raise PolicyError(f"{place}: unknown key {key!r}; there are {', '.join(names)}")


def _refuse_impossible(rule: RetentionRule, policy: RetentionPolicy, place: str) -> None:
    """Refuse a policy with rules that contradict each other for some record."""
    for other in policy.rules:
        if not rule.overlaps(other):
            continue
        kind = RecordKind(*(_example(rule, other, field) for field in _MATCHES))
        try:
            policy.explain(kind)
        except PolicyError as error:
            raise PolicyError(f"{place}: {error}") from None


def _example(rule: RetentionRule, other: RetentionRule, field: str) -> str:
    """A value that both rules match."""
    patterns = [one.match[field] for one in (rule, other) if field in one.match]
    exact = [pattern for pattern in patterns if not pattern.endswith("*")]
    longest = max(patterns, key=len, default="")
    return exact[0] if exact else longest.removesuffix("*")


def _refuse_contradiction(found: RetentionClass, kind: RecordKind) -> None:
    rules, most = found.rules, found.max
    about = f"for records such as event {kind.event or 'any'!r} of tenant {kind.tenant or 'any'!r}"
    if most is not None:
        latest = most - LONGEST_MONTH
        if found.min > latest:
            raise PolicyError(
                f"rule {rules['min']!r} keeps for at least {found.min} days, and by rule "
                f"{rules['max']!r} all must be gone after {most}, {about}: as a month goes as a "
                f"whole, max is to be {LONGEST_MONTH} days more than min"
            )
        if found.hot is None:
            raise PolicyError(
                f"by rule {rules['max']!r} all must be gone after {most} days, and no rule says "
                f"how long they stay in the database (hot), {about}"
            )
        stays = found.hot + (found.archive or 0)
        if found.archive is None or stays > latest:
            longest = "archive" if "archive" in rules else "hot"
            where = "for ever (no rule has archive)" if found.archive is None else f"{stays} days"
            raise PolicyError(
                f"rule {rules[longest]!r} keeps for {where}, hot and archive together, and by rule "
                f"{rules['max']!r} all must be gone after {most}, {about}: as a month goes as a "
                f"whole, max is to be {LONGEST_MONTH} days more"
            )
    if found.expires_after is not None and found.expires_after < found.min:
        last = "archive" if "archive" in rules else "hot"
        raise PolicyError(
            f"rule {rules['min']!r} keeps for at least {found.min} days, and by rule "
            f"{rules[last]!r} hot and archive end after {found.expires_after}, {about}"
        )


def _fits(pattern: str, value: str) -> bool:
    return value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern


def _meet(one: str, other: str) -> bool:
    if one.endswith("*") and other.endswith("*"):
        return one[:-1].startswith(other[:-1]) or other[:-1].startswith(one[:-1])
    return _fits(one, other) if one.endswith("*") else _fits(other, one)
