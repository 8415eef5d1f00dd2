"""Policy rules: conditions on a request, and level and name for it; and what a route overrides.

A route says so itself: by a decorator, or in its OpenAPI description.
"""

from __future__ import annotations

import logging
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, get_args

import msgspec
import re2

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.config import Level
from otel_audit.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

_logger = logging.getLogger(__name__)

MARK: Final = "__otel_audit__"
"""Attribute of an endpoint that holds its `Override`."""

EXTENSION: Final = "x-audit"
"""Name of the extension in a route's ``openapi_extra``."""

_TARGET: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*(:.+)?")

F = TypeVar("F", bound=Callable[..., Any])

LEVELS: Final[tuple[Level, ...]] = get_args(Level)
"""From nothing to everything, each with all of the one before."""

WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
READS: Final = frozenset({"GET", "HEAD", "OPTIONS", "QUERY"})

_EVENT: Final = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+")
_ACTION: Final = re.compile(r"[A-Z][A-Z_]*")
_STATUS: Final = re.compile(r"([1-5])xx|([1-5]\d\d)(?:-([1-5]\d\d))?", re.IGNORECASE)
_WILD: Final = re.compile(r"(/\*\*|\*\*|\*|\{[^{}]*\})")

BODY_LIMIT: Final = 10_000_000
"""Bytes that a rule may copy of a body: the bound of the setting `body_limit`, too."""


# A path that some router, proxy or file system may read otherwise than as it is spelled: dot
# segments, path parameters, empty segments, backslashes, what is still percent-encoded, controls.
_AMBIGUOUS: Final = re.compile(r"//|/\.{1,2}(?:/|$)|[;\\%\x00-\x1f\x7f]")

_SOMEBODY: Final = "\0"
"""Stands for an unknown actor who is not anonymous: only a pattern for everyone matches it."""


class RequestFacts(msgspec.Struct, frozen=True):
    """Facts of a request that is over.

    Attributes:
        nobody: Whether the actor is anonymous: neither a credential nor the application
            names anyone. An actor whose name is not known is somebody: a token that cannot be
            verified now belongs to a person.
    """

    method: str
    path: str
    route: str | None
    status: int | None
    actor_id: str
    actor_type: str
    actor_role: str | None
    tenant_id: str | None
    tenant_slug: str | None
    wrote: bool
    nobody: bool = True

    @property
    def refused_or_failed(self) -> bool:
        """Whether it was denied, failed on our side, or was never answered."""
        return self.status is None or self.status in (401, 403) or self.status >= 500  # noqa: PLR2004 - server errors


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. It matches a request if all its conditions hold; an empty condition always holds.

    Attributes:
        level: What is recorded of a request that matches.
        name: Name of the rule in ``policy explain`` and in tests.
        methods: HTTP methods, in any case.
        paths: Patterns of the path or the route: ``*`` and ``{name}`` stand for one segment,
            ``**`` for any number; ``/orders`` is that path alone, ``/orders/**`` it and all below.
            A rule that keeps nothing, or a sample, matches only unambiguous paths, never
            ``/docs/../orders``.
        status: ``404``, ``4xx``, or ``500-599``.
        actors: Ids, or patterns with ``*``; ``anonymous`` matches actors that are not known. In a
            rule that keeps nothing, or a sample, it matches only requests without any credential.
        actor_types: ``user``, ``service``, ``system``.
        roles: The actor's role.
        tenants: Ids or slugs, or patterns with ``*``.
        wrote: Whether the request wrote to the database.
        sample: Keep one of so many; reads only, and only those that went well. A POST is a read
            where ``action`` says ``READ``.
        event: Event name instead of the derived one.
        action: Action instead of the derived one. ``READ`` for a search or a query by POST, whose
            derived name then is a read's, too.
        body_limit: Bytes of a body that are copied, each way, instead of the setting's.
        strict: Whether the intent must be in the store before the handler runs, instead of what
            the setting says. Only what is known of a request before it runs can decide it.
        messages: Whether the messages of a WebSocket are kept, instead of what the setting says:
            those received at level ``request``, those sent, too, at ``request_response``.

    Example::

        rule = otel_audit.Rule(name="reports", paths=("/reports/*",), level="metadata")
        config = otel_audit.AuditConfig(exporter="console", policy_rules=(rule,))
    """

    level: Level
    name: str = ""
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    actors: tuple[str, ...] = ()
    actor_types: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    wrote: bool | None = None
    sample: int | None = None
    event: str | None = None
    action: str | None = None
    body_limit: int | None = None
    strict: bool | None = None
    messages: bool | None = None


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """A compiled rule; its path patterns take linear time."""

    rule: Rule
    methods: frozenset[str]
    paths: tuple[Any, ...]
    status: tuple[tuple[int, int], ...]
    is_certain: bool
    """Whether method and path alone decide that it matches."""
    leaves_out: bool
    """Whether a request that matches may not be recorded."""

    def concerns(self, method: str, path: str) -> bool:
        """Return whether it can match a request of which only the head is known."""
        if self.methods and method not in self.methods:
            return False
        return not self.paths or self._has_path(path, None)

    def matches(self, facts: RequestFacts) -> bool:
        """Return whether it matches a finished request of one of its methods.

        Sampling is not its matter.
        """
        if self.paths and not self._has_path(facts.path, facts.route):
            return False
        return self.is_certain or self._holds(facts)

    def _has_path(self, path: str, route: str | None) -> bool:
        if self.leaves_out and _AMBIGUOUS.search(path):
            # whoever serves it may take it for another path, and the client chose the spelling
            return False
        for pattern in self.paths:
            if pattern.fullmatch(path) or (route is not None and pattern.fullmatch(route)):
                return True
        return False

    def _holds(self, facts: RequestFacts) -> bool:
        """Return whether its conditions apart from method and path hold."""
        rule = self.rule
        return (
            (not self.status or self._has_status(facts.status))
            and (not rule.actors or _like(self._actor(facts), rule.actors))
            and (not rule.actor_types or facts.actor_type in rule.actor_types)
            and (not rule.roles or facts.actor_role in rule.roles)
            and (
                not rule.tenants
                or _like(facts.tenant_id, rule.tenants)
                or _like(facts.tenant_slug, rule.tenants)
            )
            and (rule.wrote is None or rule.wrote == facts.wrote)
            and (rule.sample is None or not (facts.wrote or facts.refused_or_failed))
        )

    def _actor(self, facts: RequestFacts) -> str:
        # "not known" is never "nobody": that somebody could not be identified drops no record
        unknown = facts.actor_id == "anonymous" and not facts.nobody
        return _SOMEBODY if unknown and self.leaves_out else facts.actor_id

    def _has_status(self, status: int | None) -> bool:
        return status is not None and any(low <= status <= high for low, high in self.status)


def compile_rule(rule: Rule, where: str) -> CompiledRule:
    """Check a rule and make it ready.

    Args:
        rule: The rule.
        where: The setting and place it comes from, for the message.

    Raises:
        ConfigurationError: It says what no rule can say; the message names place and field.
    """
    methods = frozenset(method.upper() for method in rule.methods)
    if rule.level not in LEVELS:
        raise ConfigurationError(f"{where}: level: expected one of {', '.join(LEVELS)}")
    if rule.event is not None and not _EVENT.fullmatch(rule.event):
        raise ConfigurationError(f"{where}: event: expected a name such as order.refunded")
    if rule.action is not None and not _ACTION.fullmatch(rule.action):
        raise ConfigurationError(f"{where}: action: expected a word such as EXECUTE")
    if rule.body_limit is not None and not 0 <= rule.body_limit <= BODY_LIMIT:
        raise ConfigurationError(f"{where}: body_limit: expected 0 to {BODY_LIMIT} bytes")
    if rule.messages and rule.level not in ("request", "request_response"):
        raise ConfigurationError(f"{where}: messages: needs level request or request_response")
    if rule.sample is not None:
        methods = _sampled_methods(rule, methods, where)
    for path in rule.paths:
        if not path.startswith(("/", "*")):
            raise ConfigurationError(f"{where}: paths: a pattern begins with / or *")
    asked = (rule.status, rule.actors, rule.actor_types, rule.roles, rule.tenants)
    return CompiledRule(
        rule=rule,
        methods=methods,
        paths=_compile_paths(rule.paths),
        status=tuple(_status(word, where) for word in rule.status),
        is_certain=not any(asked) and rule.wrote is None and rule.sample is None,
        leaves_out=rule.level == "none" or rule.sample is not None,
    )


def rules_from_file(path: Path, where: str) -> tuple[CompiledRule, ...]:
    """Read rules from a TOML file: an array of tables ``[[rule]]``.

    Raises:
        ConfigurationError: It cannot be read, is not TOML, or a rule in it is wrong.
    """
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        # a parser's message quotes no more than a place
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(f"{where}: {why}") from None
    unknown = sorted(found.keys() - {"rule"})
    if unknown:
        raise ConfigurationError(f"{where}: {', '.join(unknown)}: expected [[rule]] tables only")
    return read_rules(found.get("rule", []), where)


def read_rules(given: object, where: str) -> tuple[CompiledRule, ...]:
    """Read a list of rules, each a `Rule` or a mapping with its fields.

    Raises:
        ConfigurationError: One of them is wrong; the message says which.
    """
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigurationError(f"{where}: expected a list of rules")
    return tuple(
        compile_rule(
            one if isinstance(one, Rule) else _from_mapping(one, f"{where}: rule {place}"),
            f"{where}: rule {place}",
        )
        for place, one in enumerate(given, start=1)
    )


def _from_mapping(given: object, where: str) -> Rule:
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{where}: expected a table")
    known = {field.name: str(field.type) for field in fields(Rule)}
    unknown = sorted(str(name) for name in given if name not in known)
    if unknown:
        raise ConfigurationError(
            f"{where}: {', '.join(unknown)}: unknown; a rule has {', '.join(known)}"
        )
    if "level" not in given:
        raise ConfigurationError(f"{where}: level: missing")
    return Rule(**{name: _value(name, known[name], given[name], where) for name in given})


def _value(name: str, kind: str, value: object, where: str) -> Any:
    if kind.startswith("tuple"):
        entries = [value] if isinstance(value, (str, int)) else value
        if not isinstance(entries, Sequence):
            raise ConfigurationError(f"{where}: {name}: expected a list of words")
        return tuple(str(entry) for entry in entries)
    expected = bool if kind.startswith("bool") else int if kind.startswith("int") else str
    if type(value) is not expected:
        raise ConfigurationError(f"{where}: {name}: expected a {expected.__name__}")
    return value


def _sampled_methods(rule: Rule, methods: frozenset[str], where: str) -> frozenset[str]:
    if cast("int", rule.sample) < 1:
        raise ConfigurationError(f"{where}: sample: expected 1 or more")
    reads = READS | {"POST"} if rule.action == "READ" else READS
    if methods - reads:
        raise ConfigurationError(
            f"{where}: sample: writes are never sampled; name reads only (a POST that only reads: "
            'action = "READ")'
        )
    return methods or READS


def _status(word: str, where: str) -> tuple[int, int]:
    found = _STATUS.fullmatch(word.strip())
    if found is None:
        raise ConfigurationError(f"{where}: status: expected 404, 4xx, or 500-599")
    family, low, high = found.groups()
    if family:
        return int(family) * 100, int(family) * 100 + 99
    return int(low), int(high or low)


def _compile_paths(paths: tuple[str, ...]) -> tuple[Any, ...]:
    """Make as few patterns as can be, all of linear time."""
    plain = [_spell(path) for path in paths if _is_linear(path)]
    hard = [_spell(path) for path in paths if not _is_linear(path)]
    # re2 takes any pattern in linear time, but its calls cost twenty times as much
    return (
        *((re.compile(f"(?s)(?:{'|'.join(plain)})/?"),) if plain else ()),
        *((re2.compile(f"(?s)(?:{'|'.join(hard)})/?"),) if hard else ()),
    )


def _is_linear(path: str) -> bool:
    """Return whether a backtracking matcher never backtracks twice to the same place."""
    segments = path.replace("**", "").split("/")
    return path.count("**") <= 1 and all(len(_WILD.findall(segment)) <= 1 for segment in segments)


def _spell(path: str) -> str:
    """Spell a path with ``*``, ``**`` and ``{name}`` as a regular expression."""
    parts = []
    for piece in _WILD.split(path.rstrip("/") or "/"):
        if piece == "/**":
            parts.append("(?:/.*)?")
        elif piece == "**":
            parts.append(".*")
        elif piece == "*" or piece.startswith("{"):
            parts.append(".*" if piece.endswith(":path}") else "[^/]+")
        else:
            parts.append(re.escape(piece))
    return "".join(parts)


def _like(value: str | None, patterns: tuple[str, ...]) -> bool:
    return value is not None and any(fnmatchcase(value, pattern) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class Override:
    """Policy override of a route; a field that is None stays as the policy has it.

    Attributes:
        event: Event name.
        target: ``type:id``, where ``{name}`` in the id is a path parameter; or the type alone.
        action: Action.
        level: Level, for every answer of this route.
        body_limit: Bytes of a body that are copied, each way.
        messages: Whether the messages of a WebSocket are kept.
    """

    event: str | None = None
    target: str | None = None
    action: str | None = None
    level: Level | None = None
    body_limit: int | None = None
    messages: bool | None = None


def audit_route(  # noqa: PLR0913 - one fact an argument
    event: str | None = None,
    *,
    target: str | None = None,
    action: str | None = None,
    level: Level | None = None,
    body_limit: int | None = None,
    messages: bool | None = None,
) -> Callable[[F], F]:
    """Say how the actions of an endpoint are recorded.

    It only marks the function, so it can be above or below the route's decorator::

        @app.post("/orders/{order_id}/refund")
        @audit_route("order.refunded", target="order:{order_id}")
        async def refund(order_id: int) -> None: ...

    Args:
        event: Event name; derived from the route if None.
        target: What is acted upon, ``type:id`` with path parameters in braces; derived if None.
        action: ``CREATE READ UPDATE DELETE EXECUTE`` …; derived if None.
        level: ``none metadata changes request request_response``; by the policy if None.
        body_limit: Bytes of a body that are copied, each way; the setting's if None.
        messages: Whether the messages of a WebSocket are kept; as the setting says if None.

    Returns:
        A decorator that returns the function it gets.

    Raises:
        ConfigurationError: An argument is wrong; the message names it.
    """
    override = Override(event, target, action, level, body_limit, messages)
    check(override, "audit_route")

    def mark(function: F) -> F:
        setattr(function, MARK, override)
        return function

    return mark


def has_own_level(endpoint: object, route: object = None) -> bool:
    """Return whether a route asks to be recorded, by a level of its own.

    Args:
        endpoint: As for `override_of`.
        route: As for `override_of`.
    """
    override = override_of(endpoint, route)
    return override is not None and override.level not in (None, "none")


def override_of(endpoint: object, route: object = None) -> Override | None:
    """Return what a route says about itself; the decorator wins over the description.

    Args:
        endpoint: The endpoint, as the ASGI scope has it.
        route: The route, as the ASGI scope has it.

    Returns:
        None if it says nothing, or says it wrong: that is logged, and must not break a request.
    """
    found = getattr(endpoint, MARK, None)
    if isinstance(found, Override):
        return found
    extra = getattr(route, "openapi_extra", None)
    if not extra or not isinstance(extra, Mapping) or EXTENSION not in extra:
        return None
    try:
        return from_extension(extra[EXTENSION])
    except ConfigurationError as error:
        log_limited(
            _logger, f"x-audit {id(route)}", "a route's %s is not used: %s", EXTENSION, error
        )
        return None


def from_extension(given: object) -> Override:
    """Read an OpenAPI extension: an event name, ``false``, or an object with `Override`'s fields.

    Raises:
        ConfigurationError: It says what cannot be said.
    """
    if given is False:
        return Override(level="none")
    if isinstance(given, str):
        given = {"event": given}
    known = {field.name for field in fields(Override)}
    if not isinstance(given, Mapping) or not given.keys() <= known:
        raise ConfigurationError(
            f"{EXTENSION}: expected an event name, false, or an object with some of "
            f"{', '.join(sorted(known))}"
        )
    override = Override(**given)
    check(override, EXTENSION)
    return override


def check(override: Override, where: str) -> None:
    """See whether an override says what can be said.

    Raises:
        ConfigurationError: It does not; the message names place and field.
    """
    for field in fields(Override):
        value = getattr(override, field.name)
        expected = {"body_limit": int, "messages": bool}.get(field.name, str)
        if value is not None and type(value) is not expected:
            raise ConfigurationError(f"{where}: {field.name}: expected a {expected.__name__}")
    if override.target is not None and not _TARGET.fullmatch(override.target):
        raise ConfigurationError(f"{where}: target: expected type:id, such as order:{{order_id}}")
    compile_rule(
        Rule(
            level=override.level or "request_response",
            event=override.event,
            action=override.action,
            body_limit=override.body_limit,
            messages=override.messages,
        ),
        where,
    )
