"""The policy engine: decides level and name of an action."""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from otel_audit._util.cache import BoundedCache, Memo
from otel_audit._util.randomness import generator
from otel_audit._util.text import CONTROLS
from otel_audit.config import AuditConfig, Level
from otel_audit.policy.body_operations import OPERATION_TAIL, carries_operations
from otel_audit.policy.defaults import default_rules
from otel_audit.policy.naming import Naming, Whom, name_action
from otel_audit.policy.route_index import PathIndex
from otel_audit.policy.rules import (
    LEVELS,
    WRITES,
    CompiledRule,
    Override,
    RequestFacts,
    Rule,
    compile_rule,
    override_of,
    read_rules,
    rules_from_file,
)
from otel_audit.record import ANONYMOUS, Target
from otel_audit.redaction.secret_urls import is_secret_parameter
from otel_audit.setting_values import PREFIX

if TYPE_CHECKING:
    from otel_audit.record import Actor, Tenant

_RANK: Final[Mapping[Level, int]] = {level: rank for rank, level in enumerate(LEVELS)}
_NAMES: Final = 2048
"""Entries of each cache of names and decisions, about."""
_CACHED_PATH: Final = 256
"""Characters of such a path: a client chooses it, and memory is bounded."""
_UNNAMED: Final = Naming("http.request", "EXECUTE")
_ID_LIMIT: Final = 256
"""Characters of a target's id that are taken from a path."""
_PLACE: Final = re.compile(r"\{([^{}]*)\}")
_CONTROL: Final = re.compile(CONTROLS)

_is_secret: Final = functools.lru_cache(maxsize=512)(is_secret_parameter)
"""Whether a path parameter is a credential, and so not the id of a target."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
"""Redirects that have a place to go to (RFC 9110, section 15.4)."""
_REPEATS: Final = frozenset({307, 308})
"""Statuses with which a client is to send the same request elsewhere (RFC 9110, section 15.4)."""

_REDIRECTED: Final = Naming("http.redirected", "EXECUTE")

_NO_OVERRIDE: Final = Override()
_replace: Final = msgspec.structs.replace


class HeadAssessment(msgspec.Struct, frozen=True):
    """Facts that may be needed of a request, judged by its head.

    Attributes:
        level: The highest level that any answer could lead to.
        request: Whether its body may be needed.
        response: Whether the response's body may be needed.
        body_limit: Bytes of each that are copied, where a rule says so.
        messages: Whether a rule captures a WebSocket's messages, whatever the setting says.
        operations: Whether both bodies say what is requested and whether it succeeded, as in
            GraphQL and JSON-RPC.
    """

    level: Level
    request: bool
    response: bool
    body_limit: int | None = None
    messages: bool = False
    operations: bool = False


class PolicyDecision(msgspec.Struct, frozen=True):
    """Decision of the policy on one request.

    Attributes:
        level: ``none`` where nothing is.
        event_name: Such as ``order.created``.
        action: Such as ``CREATE``.
        target: What is acted upon, as far as the path names it.
        rule: Name of the rule that decided; ``route`` where the route itself did.
        sample: Where only one of so many such requests is kept, how many.
        body_limit: Bytes of each body that are copied, where the rule says so.
        strict: Whether the intent must be stored first, where the rule says so.
        messages: Whether the messages of a WebSocket are kept, where rule or route says so.
        whom: Where to look for the account's id if the path has none; see `Naming`.
        turned_away: Whether the answer is only a redirect.
        is_derived: Whether neither a rule nor the route has chosen the name, nor that it was turned
            away: what the body says may be a better one.
    """

    level: Level
    event_name: str
    action: str
    target: Target | None
    rule: str
    sample: int | None = None
    body_limit: int | None = None
    strict: bool | None = None
    messages: bool | None = None
    whom: Whom | None = None
    turned_away: bool = False
    is_derived: bool = False


UNDECIDED: Final = PolicyDecision(
    level="changes",
    event_name="http.request",
    action="EXECUTE",
    target=None,
    rule="undecided",
    is_derived=True,
)
"""Decision if deciding fails: recorded without bodies, which a rule may have left out."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Decides what is recorded, at which level, under which name. Made once; thread-safe.

    Attributes:
        rules: In the order of evaluation; the last one matches everything.
        routes: What routes say about themselves, for `assess_head`.
        nouns: Derived nouns to those that are to be used.
    """

    rules: tuple[CompiledRule, ...]
    routes: tuple[CompiledRule, ...] = ()
    nouns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    _names: BoundedCache[tuple[str, str], Naming] = field(
        default_factory=lambda: BoundedCache(_NAMES), repr=False, compare=False
    )
    _paths: BoundedCache[tuple[str, str], Naming] = field(
        default_factory=lambda: BoundedCache(_NAMES), repr=False, compare=False
    )
    _assessed: Memo[tuple[str, str], HeadAssessment] = field(init=False, repr=False, compare=False)
    _decisions: BoundedCache[tuple[Any, ...], tuple[PolicyDecision, Naming]] = field(
        default_factory=lambda: BoundedCache(_NAMES), repr=False, compare=False
    )
    _by_head: Memo[tuple[str, str], PolicyDecision] = field(init=False, repr=False, compare=False)
    _index: PathIndex = field(init=False, repr=False, compare=False)
    _of_method: Mapping[str, tuple[CompiledRule, ...]] = field(
        init=False, repr=False, compare=False
    )
    _of_others: tuple[CompiledRule, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", PathIndex(self.routes))
        object.__setattr__(self, "_assessed", Memo(self._assess, _NAMES, _is_short))
        object.__setattr__(self, "_by_head", Memo(self._decide_head, _NAMES, _is_short))
        named = frozenset().union(*(compiled.methods for compiled in self.rules))
        of_method = {
            method: tuple(one for one in self.rules if not one.methods or method in one.methods)
            for method in named
        }
        object.__setattr__(self, "_of_method", of_method)
        of_others = tuple(compiled for compiled in self.rules if not compiled.methods)
        object.__setattr__(self, "_of_others", of_others)

    @property
    def may_be_strict(self) -> bool:
        """Whether a rule requires an intent; if deciding fails, it may have been that one."""
        return any(compiled.rule.strict for compiled in self.rules)

    @classmethod
    def from_config(cls, config: AuditConfig) -> Policy:
        """Read the rules: those of the settings, then those of the file, then the defaults.

        Raises:
            ConfigurationError: A rule or a path is wrong; the message names setting and place.
        """
        own = read_rules(config.policy_rules, f"{PREFIX}POLICY_RULES")
        if config.policy_file is not None:
            own += rules_from_file(config.policy_file, f"{PREFIX}POLICY_FILE")
        return cls(rules=own + default_rules(config), nouns=MappingProxyType(config.entity_names))

    def with_routes(self, routes: Iterable[tuple[Iterable[str], str, Override]]) -> Policy:
        """Make a policy that knows beforehand what routes say about themselves.

        `decide` needs no such help; `assess_head` does, to know that a body will be needed.

        Args:
            routes: Methods, template, and override of each route that has one; no methods: all.
        """
        known = [
            compile_rule(
                Rule(
                    level=override.level or "request_response",
                    methods=tuple(methods),
                    paths=(template,),
                    body_limit=override.body_limit,
                    messages=override.messages,
                ),
                template,
            )
            for methods, template, override in routes
            if override.level is not None or override.messages
        ]
        return Policy(self.rules, (*self.routes, *known), self.nouns)

    def assess_head(self, method: str, path: str) -> HeadAssessment:
        """Say what may be needed of a request, before anything but its head is known.

        Args:
            method: HTTP method in upper case; ``WEBSOCKET`` for a socket.
            path: As requested.

        Returns:
            The highest level that a rule could give. That a request which writes to the database
            is recorded in any case needs no body, and is not counted here.
        """
        return self._assessed[method, path]

    def decide_by_head(self, method: str, path: str) -> PolicyDecision:
        """Decide on a request of which only the head is known; who it is, is not.

        Args:
            method: HTTP method in upper case; ``WEBSOCKET`` for a socket.
            path: As requested.

        Returns:
            As `decide`, which it asks. No rule that samples matches a request without an answer.
        """
        return self._by_head[method, path]

    def _decide_head(self, pair: tuple[str, str]) -> PolicyDecision:
        return self.decide(
            method=pair[0],
            path=pair[1],
            route=None,
            status=None,
            actor=ANONYMOUS,
            tenant=None,
            wrote=False,
            reached=False,
        )

    def _assess(self, pair: tuple[str, str]) -> HeadAssessment:
        method, path = pair
        level: Level = "none"
        limits: list[int] = []
        messages = False
        for compiled in (*self._index.candidates(path), *self.rules):
            if not compiled.concerns(method, path):
                continue
            level = max(level, compiled.rule.level, key=_RANK.__getitem__)
            if compiled.rule.body_limit is not None:
                limits.append(compiled.rule.body_limit)
            messages = messages or compiled.rule.messages is True
            if compiled.is_certain:
                break
        return HeadAssessment(
            level=level,
            request=_RANK[level] >= _RANK["request"],
            response=level == "request_response",
            body_limit=max(limits, default=None),
            messages=messages,
            operations=level != "none"
            and method == "POST"
            and carries_operations(path[-OPERATION_TAIL:]),
        )

    def decide(  # noqa: PLR0913 - one argument a fact
        self,
        *,
        method: str,
        path: str,
        route: str | None,
        status: int | None,
        actor: Actor,
        tenant: Tenant | None,
        wrote: bool,
        scope: Mapping[str, Any] | None = None,
        key: str | None = None,
        name_all: bool = True,
        reached: bool = True,
        on_failure: Callable[[str, Exception], object] | None = None,
    ) -> PolicyDecision:
        """Decide on a request with the facts known so far; a later call may decide otherwise.

        Args:
            method: HTTP method in upper case; ``WEBSOCKET`` for a socket.
            path: As requested.
            route: The route's template, None if none matched.
            status: The response's status code, None if there is none.
            actor: Who.
            tenant: For whom.
            wrote: Whether the request wrote to the database: then it is recorded, at least at
                level ``changes``, whatever the rules say.
            scope: The ASGI scope, for path parameters and what the route says about itself.
            key: The record's id: makes the same choice each time for a sampled request.
            name_all: Whether a request that is not recorded gets a name, too.
            reached: Whether it came to the router: middleware may have answered it before.
            on_failure: Called with ``name`` or ``target`` if that could not be found; then the
                decision stands without it. Without a callback, the error is raised.

        Returns:
            The decision. Never raises for what a client or a route gives.
        """
        given = scope or {}
        override = override_of(given.get("endpoint"), given.get("route"))
        is_usual = override is None and status not in _REDIRECTS and len(path) <= _CACHED_PATH
        # all that rules and names depend on, but for the path's parameters
        facts = (
            method, path, route, status, actor.id, actor.type, actor.role, actor.verified,
            actor.reason is None, None if tenant is None else (tenant.id, tenant.slug), wrote,
            name_all,
        )  # fmt: skip
        known = self._decisions.get(facts) if is_usual else None
        if known is not None:
            decision, naming = known
            if naming.target_parameter is None:
                return decision
            target = _target(_NO_OVERRIDE, naming, _parameters(given), actor)
            return decision if target == decision.target else _replace(decision, target=target)
        decision, found = self._decide(
            RequestFacts(
                method=method,
                path=path,
                route=route,
                status=status,
                actor_id=actor.id,
                actor_type=actor.type,
                actor_role=actor.role,
                tenant_id=None if tenant is None else tenant.id,
                tenant_slug=None if tenant is None else tenant.slug,
                wrote=wrote,
                nobody=is_without_credential(actor),
            ),
            actor,
            override or _NO_OVERRIDE,
            given,
            key=key,
            name_all=name_all,
            reached=reached,
            on_failure=on_failure,
        )
        if is_usual and found is not None:
            self._decisions.put(facts, (decision, found))
        return decision

    def _decide(  # noqa: PLR0913 - one argument a fact
        self,
        facts: RequestFacts,
        actor: Actor,
        override: Override,
        given: Mapping[str, Any],
        *,
        key: str | None,
        name_all: bool,
        reached: bool,
        on_failure: Callable[[str, Exception], object] | None,
    ) -> tuple[PolicyDecision, Naming | None]:
        """As `decide`; also gives the name that it rests on, None if a part was not found."""
        method, path, route = facts.method, facts.path, facts.route
        status, wrote = facts.status, facts.wrote
        rule = self._rule(facts)
        level, name, sample = rule.level, rule.name or "unnamed", rule.sample
        if override.level is not None:
            level, name, sample = override.level, "route", None
        elif sample is not None and not _kept(sample, key):
            level, name = "none", f"{name} (not the one of {sample})"
        if wrote and _RANK[level] < _RANK["changes"]:
            level, name = "changes", f"{name} (but it wrote)"
        is_named = name_all or level != "none"
        naming, target, is_whole = _UNNAMED, None, True
        turned_away = status in _REDIRECTS and _is_turned_away(
            method, status, given, reached=reached
        )
        try:
            if is_named:
                # what nothing has served was not done, whatever its name would be
                nothing_served = turned_away and not (reached and _is_served(given))
                naming = _REDIRECTED if nothing_served else self._naming(method, path, route)
                if (override.action or rule.action) == "READ" and naming.action != "READ":
                    naming = naming if wrote else self._naming("QUERY", path, route)
        except Exception as error:
            if on_failure is None:
                raise
            is_whole = False
            on_failure("name", error)
        try:
            target = _target(override, naming, _parameters(given), actor)
        except Exception as error:
            if on_failure is None:
                raise
            is_whole = False
            on_failure("target", error)
        decision = PolicyDecision(
            level=level,
            event_name=override.event or rule.event or naming.event_name,
            action=override.action or rule.action or naming.action,
            target=target,
            rule=name,
            sample=sample,
            body_limit=override.body_limit if override.body_limit is not None else rule.body_limit,
            strict=rule.strict,
            messages=override.messages if override.messages is not None else rule.messages,
            whom=naming.whom,
            turned_away=turned_away,
            is_derived=not (turned_away or override.event or rule.event),
        )
        return decision, naming if is_whole and rule.sample is None else None

    def _rule(self, facts: RequestFacts) -> Rule:
        asked = self._of_method.get(facts.method, self._of_others)
        for compiled in asked:
            if compiled.matches(facts):
                return compiled.rule
        return asked[-1].rule

    def _naming(self, method: str, path: str, route: str | None) -> Naming:
        if route is None:
            return self._naming_of_path(method, path)
        known = self._names.get((method, route))
        if known is None:
            known = self._renamed(name_action(method, route))
            self._names.put((method, route), known)
        return known

    def _renamed(self, naming: Naming) -> Naming:
        noun = self.nouns.get(naming.target_type or "")
        if noun is None:
            return naming
        done = naming.event_name.partition(".")[2]
        return replace(naming, event_name=f"{noun}.{done}", target_type=noun)

    def _naming_of_path(self, method: str, path: str) -> Naming:
        known = self._paths.get((method, path))
        if known is None:
            known = self._renamed(name_action(method, path, is_template=False))
            if len(path) <= _CACHED_PATH:
                self._paths.put((method, path), known)
        return known


def _is_short(pair: tuple[str, str]) -> bool:
    return len(pair[1]) <= _CACHED_PATH


def is_without_credential(actor: Actor) -> bool:
    """Return whether an actor is anonymous.

    A verified actor is not, even if its id reads ``anonymous``. Nor is the actor of a request whose
    credential could not be verified: it has a reason.
    """
    return actor.id == "anonymous" and actor.reason is None and not actor.verified


def is_unidentified(actor: Actor) -> bool:
    """Return whether it is not known who an actor is."""
    return actor.id == "anonymous" and not actor.verified


def _kept(one_of: int, key: str | None) -> bool:
    if key is None:
        return generator.random() * one_of < 1
    return zlib.crc32(key.encode()) % one_of == 0


def _is_turned_away(
    method: str, status: int | None, scope: Mapping[str, Any], *, reached: bool
) -> bool:
    """Return whether a redirection is the only effect of a request.

    A handler may redirect after it has done what was asked; only one that has the client repeat a
    write has not done it here.
    """
    if reached and _is_served(scope):
        return status in _REPEATS and method in WRITES
    # only a framework that names the serving endpoint shows that none did
    return status in _REPEATS or "app" in scope


def _is_served(scope: Mapping[str, Any]) -> bool:
    endpoint = scope.get("endpoint")
    # a mounted application that has routes of its own is only passed through
    return scope.get("route") is not None or (
        endpoint is not None and getattr(endpoint, "routes", None) is None
    )


def _target(
    override: Override, naming: Naming, parameters: Mapping[str, Any], actor: Actor
) -> Target | None:
    if override.target is not None:
        kind, colon, template = override.target.partition(":")
        return Target(type=kind, id=_filled(template, parameters) if colon else None)
    if naming.target_type is None:
        return None
    value = naming.target_id
    if naming.target_parameter:
        value = _parameter(naming.target_parameter, parameters)
    elif value is None and naming.whom == "actor" and not is_unidentified(actor):
        value = actor.id
    return Target(type=naming.target_type, id=value)


def _parameters(scope: Mapping[str, Any]) -> Mapping[str, Any]:
    found = scope.get("path_params")
    return found if isinstance(found, Mapping) else {}


def _filled(template: str, parameters: Mapping[str, Any]) -> str | None:
    """Put path parameters in their places; None if one is missing or secret."""
    values = {name: _parameter(name, parameters) for name in _PLACE.findall(template)}
    if None in values.values():
        return None
    return _PLACE.sub(lambda place: str(values[place[1]]), template)[:_ID_LIMIT] or None


def _parameter(name: str, parameters: Mapping[str, Any]) -> str | None:
    if name not in parameters or _is_secret(name):
        return None
    try:
        text = str(parameters[name])
    except Exception:  # noqa: BLE001 - a convertor of the application's may give anything
        return None
    return _CONTROL.sub(" ", text[:_ID_LIMIT]) or None
