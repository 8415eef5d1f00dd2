"""Determines the actor of an action: an ordered list of resolvers; anonymous if none knows."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, cast
from urllib.parse import unquote

import msgspec

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.identity.certificate import certificate_subject, check_readable
from otel_audit.identity.jwt import DecodedToken, TokenError, TokenReader
from otel_audit.identity.safe_access import (
    AsgiScope,
    claim,
    cookie_value,
    exact,
    first_header,
    first_identifier,
    has_no_named_actor,
    header_values,
    headers_by_name,
    identifier,
    load_hook,
    peek,
    primary_key,
    state_of,
    words,
)
from otel_audit.identity.source import Proxies
from otel_audit.identity.unresolved_credential import unresolved_credential, warn_once
from otel_audit.record import Actor, ActorType
from otel_audit.redaction.hashing import KeyedHash
from otel_audit.setting_values import PREFIX, check_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.scope import AuditScope

_logger = logging.getLogger(__name__)

_IDS: Final = ("id", "user_id", "sub", "pk", "uuid", "identity", "username", "email", "name")
_ROLES: Final = ("actor_type", "role")
_TYPES: Final = ("user", "service", "system")
_TOKENS: Final = 512
"""Verified tokens whose actor is remembered."""
_SESSION_BEFORE: Final = "otel_audit.session_actor"

_KEYS: Final = f"{PREFIX}JWT_KEY, _JWKS_URL or _JWKS_FILE: is it the issuer's key?"
_MENDED_BY: Final = {
    "bad_signature": _KEYS,
    "unknown_key": _KEYS,
    "ambiguous_key": _KEYS,
    "key_not_for_signatures": _KEYS,
    "keys_not_loaded": f"{PREFIX}JWT_JWKS_URL or _JWKS_FILE: can it be read?",
    "alg_not_allowed": f"{PREFIX}JWT_ALGORITHMS: does it name what the issuer signs with?",
    "missing_issuer": f"{PREFIX}JWT_ISSUER: the tokens name none",
    "wrong_issuer": f"{PREFIX}JWT_ISSUER: is it written as in the tokens?",
    "missing_audience": f"{PREFIX}JWT_AUDIENCE: the tokens name none",
    "wrong_audience": (
        f"{PREFIX}JWT_AUDIENCE: is it written as in the tokens, and all of theirs named?"
    ),
    "audience_not_configured": f"{PREFIX}JWT_AUDIENCE: the tokens name one, and it is not set",
    "missing_exp": "only tokens that expire are believed: have the issuer set exp",
}
"""Reasons that come from our settings or the issuer's, with what to check; all others are the
client's."""


@dataclass(frozen=True, slots=True)
class ActorOptions:
    """Options of `resolve_actor`; an empty name switches its resolver off.

    Attributes:
        order: Names of the resolvers to call; the first answer wins.
        verifier: Verifies bearer tokens.
        schemes: Schemes of the Authorization header that carry one, in lower case.
        token_cookie: Cookie that carries one where that header does not.
        session_key: Key of ``request.session`` under which the actor stands.
        id_claim, role_claim, email_claim, roles_claim: Claims, or dotted paths into them.
        aliases: The application's roles to canonical ones.
        api_key_header: Header with an API key.
        certificate_header: Header in which a proxy gives the client certificate's subject.
        proxies: Proxies whose certificate headers are trusted.
        hash: Makes the hash that stands for an API key.
        resolver: The user's callable; gets the ASGI scope.
    """

    order: tuple[str, ...] = AuditConfig.model_fields["actor_order"].default
    verifier: TokenReader | None = None
    schemes: frozenset[str] = frozenset({"bearer"})
    token_cookie: str | None = None
    session_key: str | None = None
    id_claim: str = "sub"
    role_claim: str = "actor_type"
    email_claim: str = "email"
    roles_claim: str = "roles"
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    api_key_header: str | None = None
    certificate_header: str | None = None
    proxies: Proxies = field(default_factory=Proxies)
    hash: KeyedHash = field(default_factory=KeyedHash)
    resolver: Callable[[AsgiScope], object] | None = None
    named_by: Callable[[DecodedToken], Actor | str] = field(init=False, repr=False, compare=False)
    """The actor of a token, or why there is none; cached, because tokens come again and again."""

    asked: tuple[tuple[str, Callable[[_Request], Actor | str | None]], ...] = field(
        init=False, repr=False, compare=False
    )
    """The resolvers that are not switched off."""

    asks_token_next: bool = field(init=False, repr=False, compare=False)
    """Whether a token decides where the application has named nobody itself."""

    def __post_init__(self) -> None:
        known = functools.lru_cache(maxsize=_TOKENS)(lambda token: _token_actor(token, self))

        def named_by(token: DecodedToken) -> Actor | str:
            # what anybody may write, and is a new object each time, is not remembered
            return known(token) if token.verified else _token_actor(token, self)

        object.__setattr__(self, "named_by", named_by)
        off = {
            "api_key": self.api_key_header is None,
            "certificate": self.certificate_header is None,
            "callable": self.resolver is None,
            "session": self.session_key is None,
        }
        asked = tuple((name, _RESOLVERS[name]) for name in self.order if not off.get(name))
        object.__setattr__(self, "asked", asked)
        names = [name for name, _ in asked]
        # a resolver that is not among these three, such as a new one, turns the shortcut off
        before = set(names[: names.index("jwt")]) if "jwt" in names else {"callable"}
        asks_token_next = before <= {"app", "state", "user"}
        object.__setattr__(self, "asks_token_next", asks_token_next)

    @classmethod
    def from_config(cls, config: AuditConfig) -> ActorOptions:
        """Read the settings, and make the verifier of bearer tokens.

        Raises:
            ConfigurationError: A setting is wrong; the message names it.
            MissingExtraError: Tokens are to be verified, and python-jose is not installed; or
                certificates are to be read, and cryptography is not.
        """
        check_words(f"{PREFIX}ACTOR_ORDER", config.actor_order, list(_RESOLVERS))
        if config.client_certificate_header and not config.trusted_proxies:
            raise ConfigurationError(
                f"{PREFIX}CLIENT_CERTIFICATE_HEADER: believed from trusted proxies only, "
                f"and {PREFIX}TRUSTED_PROXIES names none"
            )
        check_readable(config.client_certificate_header or "")
        if config.actor_session_key and "session" not in config.actor_order:
            raise ConfigurationError(
                f"{PREFIX}ACTOR_SESSION_KEY: set, and {PREFIX}ACTOR_ORDER does not name session"
            )
        verifier = _verifier_from(config)
        if config.jwt_cookie and verifier is None:
            raise ConfigurationError(
                f"{PREFIX}JWT_COOKIE: set, and nothing says how tokens are verified: set "
                f"{PREFIX}JWT_JWKS_URL or {PREFIX}JWT_KEY"
            )
        return cls(
            order=config.actor_order,
            verifier=verifier,
            schemes=frozenset(one.lower() for one in config.jwt_schemes),
            token_cookie=config.jwt_cookie or None,
            session_key=config.actor_session_key or None,
            id_claim=config.jwt_actor_claim,
            role_claim=config.jwt_role_claim,
            email_claim=config.jwt_email_claim,
            roles_claim=config.jwt_roles_claim,
            aliases=MappingProxyType(dict(config.actor_type_aliases)),
            api_key_header=config.api_key_header or None,
            certificate_header=config.client_certificate_header or None,
            proxies=Proxies.from_config(config),
            hash=KeyedHash.from_config(config),
            resolver=load_hook(config.actor_resolver, "actor_resolver"),
        )


def _verifier_from(config: AuditConfig) -> TokenReader | None:
    if not any(getattr(config, name) for name in config.model_fields_set if "jwt" in name):
        return None
    # only now: what fetches keys (urllib, TLS) takes time to import, and most need none of it
    from otel_audit.identity.jwt.settings import verifier_from_config

    return verifier_from_config(config)


class Bearer(msgspec.Struct, frozen=True):
    """A request's bearer token: verified, or why not.

    Attributes:
        token: The verified token; None if there is none, or it is not valid.
        problem: Why it is not valid, such as ``token_expired``.
    """

    token: DecodedToken | None = None
    problem: str | None = None

    @property
    def claims(self) -> Mapping[str, Any] | None:
        """The claims of the token; None unless it is there and verified."""
        token = self.token
        return token.claims if token is not None and token.verified else None


NO_BEARER: Final = Bearer()


class _Request(msgspec.Struct, frozen=True):
    """The input of the resolvers."""

    asgi: AsgiScope
    scope: AuditScope
    options: ActorOptions
    bearer: Bearer


def resolve_actor(
    asgi_scope: AsgiScope, audit_scope: AuditScope, options: ActorOptions, bearer: Bearer
) -> Actor:
    """Find out who does an action. Never raises for what a client or the application gives.

    Args:
        asgi_scope: The ASGI scope, as the application left it: authentication runs inside.
        audit_scope: The action's scope; what the application set there is the resolver ``app``.
        options: From the settings.
        bearer: The request's token, as `read_bearer` read it.

    Returns:
        The actor. Where no resolver knows, ``anonymous``, with the first reason why not: one of
        `UNCHECKED` at least, if there was any credential.
    """
    token = bearer.token
    if (
        token is not None
        and token.verified
        and options.asks_token_next
        and has_no_named_actor(asgi_scope, audit_scope)
    ):
        # as the loop below finds it, without asking those that have nothing to say
        named = options.named_by(token)
        if isinstance(named, Actor) and has_canonical_role(named, options):
            return named
    request = _Request(asgi_scope, audit_scope, options, bearer)
    reason: str | None = None
    for name, ask in options.asked:
        try:
            found = ask(request)
        except Exception as error:  # noqa: BLE001 - the app's objects and callables raise anything
            log_limited(
                _logger, f"actor {name}", "actor resolver %s failed; it is left out", name,
                error=error,
            )  # fmt: skip
            found = f"{name}_failed"
        if found is not None:
            if isinstance(found, Actor):
                return _finished(found, request)
            reason = reason or found
    if reason is None:
        reason = unresolved_credential(asgi_scope, reads_session=options.session_key is not None)
        if reason is not None:
            warn_once(reason)
    return Actor(id="anonymous", type="user", verified=False, reason=reason)


def read_bearer(asgi_scope: AsgiScope, options: ActorOptions) -> Bearer:
    """Read the request's bearer token. Never raises for what a client gives."""
    if options.verifier is None:
        return NO_BEARER
    token = _token_of(asgi_scope, options)
    if token is None:
        return NO_BEARER
    try:
        return Bearer(options.verifier.verify(token))
    except TokenError as problem:
        _hint_at_cause(problem.reason)
        return Bearer(problem=problem.reason)


def _token_of(asgi_scope: AsgiScope, options: ActorOptions) -> str | None:
    """The token in the header, else in the cookie that the settings name."""
    sent = headers_by_name(asgi_scope.get("headers") or ()).get(b"authorization")
    if sent is not None:
        scheme, _, token = sent.decode("latin-1").strip().partition(" ")
        if scheme.lower() in options.schemes:
            return token.strip()
    if options.token_cookie is None:
        return None
    found = cookie_value(asgi_scope, options.token_cookie)
    return None if found is None else unquote(found).strip(' "').removeprefix("Bearer ").strip()


def note_session(asgi_scope: MutableMapping[str, Any], key: str) -> None:
    """Keep whom the session names when a request comes in: a handler may log them out.

    Never raises.

    Args:
        asgi_scope: The ASGI scope as the router gets it; what is found is put into it.
        key: Of the session, or a dotted path into it.
    """
    try:
        found = _named_by_session(asgi_scope, key)
    except Exception as error:  # noqa: BLE001 - a session of any middleware's may raise anything
        log_limited(_logger, "session", "request.session could not be read", error=error)
        return
    if found is not None:
        asgi_scope[_SESSION_BEFORE] = found


def _named_by_session(asgi_scope: AsgiScope, key: str) -> object:
    session = asgi_scope.get("session")
    return claim(session, key) if isinstance(session, Mapping) else None


def subject_of(token: str, options: ActorOptions) -> str | None:
    """Say whom a token names, if it is verified; for one that the application hands out."""
    if options.verifier is None:
        return None
    try:
        found = options.verifier.verify(token)
    except TokenError:
        return None
    named = options.named_by(found) if found.verified else None
    return named.id if isinstance(named, Actor) else None


def _hint_at_cause(reason: str) -> None:
    if reason in _MENDED_BY:
        log_limited(
            _logger, f"bearer {reason}",
            "bearer tokens are not believed: %s; their actions are recorded as anonymous, unless "
            "something else tells who acts (%s)",
            reason, _MENDED_BY[reason], level=logging.WARNING,
        )  # fmt: skip


def has_canonical_role(actor: Actor, options: ActorOptions) -> bool:
    """Return whether an actor's role is no alias of another."""
    return options.aliases.get(actor.role or "", actor.role) == actor.role


def _finished(actor: Actor, request: _Request) -> Actor:
    """Use the canonical role, and add what only the token says of the same actor."""
    token = None
    if request.bearer.token is not None and actor.source not in ("jwt", "jwt-unverified"):
        named = request.options.named_by(request.bearer.token)
        token = (
            named if isinstance(named, Actor) and named.id == actor.id and named.verified else None
        )
    if token is None and has_canonical_role(actor, request.options):
        return actor
    role = actor.role or (token.role if token else None)
    return msgspec.structs.replace(
        actor,
        role=request.options.aliases.get(role, role) if role is not None else None,
        email=actor.email or (token.email if token else None),
        roles=actor.roles or (token.roles if token else ()),
        on_behalf_of=actor.on_behalf_of or (token.on_behalf_of if token else None),
    )


def _app(request: _Request) -> Actor | None:
    actor = request.scope.actor
    return None if actor is None else _spelled(actor)


def _state(request: _Request) -> Actor | None:
    return actor_from(state_of(request.asgi).get("user"), "request.state")


def _user(request: _Request) -> Actor | None:
    user = request.asgi.get("user")
    if user is None:
        return None
    # Starlette's BaseUser always has it; an object without it promises nothing
    return actor_from(user, "scope.user") if peek(user, "is_authenticated") is True else None


def _session(request: _Request) -> Actor | None:
    key = request.options.session_key
    if key is None:
        return None
    # whoever logs in is named by what the handler has put there
    found = _named_by_session(request.asgi, key)
    return actor_from(request.asgi.get(_SESSION_BEFORE) if found is None else found, "session")


def _jwt(request: _Request) -> Actor | str | None:
    if request.bearer.token is None:
        return request.bearer.problem
    return request.options.named_by(request.bearer.token)


def _api_key(request: _Request) -> Actor | str | None:
    name, keyed = request.options.api_key_header, request.options.hash
    given = first_header(request.asgi, name) if name else None
    if not given:
        return None
    return Actor(
        id=f"api-key:{keyed.of(given)}" if keyed else "api-key",
        type="service",
        verified=False,
        reason="api_key_not_checked",
        source="api_key",
    )


def _certificate(request: _Request) -> Actor | str | None:
    name = request.options.certificate_header
    given = [value for value in header_values(request.asgi, name) if value.strip()] if name else []
    if not given:
        return None
    if not request.options.proxies.trusts_peer(request.asgi):
        return "certificate_from_untrusted_peer"
    subject = certificate_subject(given[0]) if len(given) == 1 else None
    if subject is None:
        return "certificate_unreadable"
    return Actor(id=subject, type="service", verified=True, source="certificate")


def _callable(request: _Request) -> Actor | str | None:
    if request.options.resolver is None:
        return None
    found = request.options.resolver(request.asgi)
    if hasattr(found, "__await__"):
        getattr(found, "close", lambda: None)()
        return "callable_is_async"
    return actor_from(found, "callable")


_RESOLVERS: Final[Mapping[str, Callable[[_Request], Actor | str | None]]] = {
    "app": _app,
    "state": _state,
    "user": _user,
    "session": _session,
    "jwt": _jwt,
    "api_key": _api_key,
    "certificate": _certificate,
    "callable": _callable,
}


def actor_from(thing: object, source: str) -> Actor | None:
    """Read an actor from what an application has: an `Actor`, an id, a mapping, or an object.

    Args:
        thing: Its ``id`` (or ``user_id``, ``sub``, ``pk``, ``uuid``, ``identity``, ``username``,
            ``email``, ``name``), ``actor_type`` or ``role``, ``email``, ``roles`` are read. A
            stored SQLAlchemy object is read without a query.
        source: Who gave it.

    Returns:
        The actor, verified because the application vouches for it; None if there is no
        identifier, or if it says that no user is authenticated.
    """
    if thing is None:
        return None
    if isinstance(thing, Actor):
        return _spelled(msgspec.structs.replace(thing, source=thing.source or source))
    plain = identifier(thing)
    if plain is not None:
        return Actor(id=plain, type="user", verified=True, source=source)
    if peek(thing, "is_authenticated") is False:
        return None
    found = first_identifier(thing, _IDS[:1]) or primary_key(thing) or first_identifier(thing, _IDS)
    if found is None:
        return None
    return Actor(
        id=found,
        type=_type(peek(thing, "type")),
        role=first_identifier(thing, _ROLES),
        email=_email(peek(thing, "email")),
        roles=words(peek(thing, "roles")),
        verified=True,
        source=source,
    )


def _spelled(actor: Actor) -> Actor:
    """Use the exact spelling of the ids that the application has given."""
    other = actor.on_behalf_of
    found, behind = exact(actor.id), None if other is None else exact(other)
    if found == actor.id and behind == other:
        return actor
    return msgspec.structs.replace(actor, id=found, on_behalf_of=behind)


def _token_actor(token: DecodedToken, options: ActorOptions) -> Actor | str:
    claims = token.claims
    found = identifier(claim(claims, options.id_claim))
    if found is None:
        return "token_names_nobody"
    role = identifier(claim(claims, options.role_claim))
    return Actor(
        id=found,
        type=_token_type(claims, found, options.aliases.get(role or "", role)),
        role=options.aliases.get(role, role) if role is not None else None,
        email=_email(claim(claims, options.email_claim)),
        verified=token.verified,
        on_behalf_of=_really(claims, options),
        reason=None if token.verified else "token_not_verified",
        roles=words(claim(claims, options.roles_claim)) or words(claims.get("scope")),
        source="jwt" if token.verified else "jwt-unverified",
    )


def _really(claims: Mapping[str, Any], options: ActorOptions) -> str | None:
    """Name who acts behind the subject: the outermost ``act`` (RFC 8693, section 4.1)."""
    if "act" not in claims:
        return None
    names = (options.id_claim, "sub", "client_id", "azp")
    # another one acts on behalf: that must not vanish because the claim is odd
    return first_identifier(claims["act"], names) or "unknown"


def _token_type(claims: Mapping[str, Any], subject: str, role: str | None) -> ActorType:
    if role in ("service", "system"):
        return cast("Literal['service', 'system']", role)
    client = claims.get("client_id") or claims.get("azp")
    # how the usual providers mark a client-credentials grant (RFC 9068, section 2.2: sub = client)
    machine = (
        client == subject
        or claims.get("gty") == "client-credentials"
        or claims.get("idtyp") == "app"
    )
    return "service" if machine else "user"


def _type(value: object) -> ActorType:
    word = identifier(value)
    return cast("ActorType", word) if word in _TYPES else "user"


def _email(value: object) -> str | None:
    text = identifier(value)
    return text if text is not None and "@" in text else None
