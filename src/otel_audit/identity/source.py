"""The source of an action: address, user agent, session; and the request's id.

An address from a forwarded header counts only where a trusted proxy has set it.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from otel_audit._util.cache import Memo
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.identity.redact_identity import shown_source
from otel_audit.identity.safe_access import (
    AsgiScope,
    claim,
    clean,
    cookie_value,
    first_header,
    header_values,
    headers_by_name,
    identifier,
    state_of,
)
from otel_audit.record import Source
from otel_audit.redaction.hashing import KeyedHash
from otel_audit.redaction.truncate import cut_text
from otel_audit.setting_values import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from otel_audit.redaction import Redactor


UNIX: Final = "unix"
"""Among the trusted proxies: peers of a Unix socket, which have no address."""

_HOPS: Final = 64
"""Entries of a forwarding header that are read, from the last one: the nearest proxy wrote that."""
_LONGEST: Final = 100
"""Characters of an address with zone and port; a longer text is none."""
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORWARDED_FOR: Final = re.compile(r"""(?:^|;)\s*for\s*=\s*("[^"]*"|[^;,"]*)""", re.IGNORECASE)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies whose headers are trusted.

    Attributes:
        networks: Their addresses.
        unix: Whether a peer without an address is one.
        header: Header in which they pass addresses on, in lower case.
    """

    networks: tuple[Network, ...] = ()
    unix: bool = False
    header: str = "x-forwarded-for"

    @classmethod
    def from_config(cls, config: AuditConfig) -> Proxies:
        """Read the settings.

        Raises:
            ConfigurationError: An entry is neither an address nor a network; it names the setting.
        """
        named = config.trusted_proxies
        if not _NAME.fullmatch(config.forwarded_header):
            raise ConfigurationError(f"{PREFIX}FORWARDED_HEADER: not a header's name")
        return cls(
            networks=tuple(_network(entry) for entry in named if entry != UNIX),
            unix=UNIX in named,
            header=config.forwarded_header.lower(),
        )

    def trusts(self, address: Address | None) -> bool:
        """Return whether a peer is a proxy of ours; None is a peer without an address."""
        if address is None:
            return self.unix
        return bool(self.networks) and any(address in network for network in self.networks)

    def trusts_peer(self, scope: AsgiScope) -> bool:
        """Return whether the request came straight from a proxy of ours."""
        name, address = peer(scope)
        return self.trusts(address) and (name is None) == (address is None)

    def client(self, scope: AsgiScope) -> str | None:
        """Find the client's address: from the right, as far as proxies of ours reach.

        The last entry was written by the peer itself, the one before it by the proxy before it,
        and so on: the first one that is not of our own proxies is the client. An entry that is no
        address ends the walk, and the proxy that wrote it is all that is known.

        Args:
            scope: The ASGI scope; its ``client`` is the peer.

        Returns:
            The address in its usual form, the peer's name where it has no address, None if it
            has neither.
        """
        name, address = peer(scope)
        if address is None and name is not None:
            return name
        if name is not None and not self.trusts(address):
            return _usual(name)
        for hop in self._hops(scope):
            if not self.trusts(address) or hop is None:
                break
            address = hop
        return None if address is None else str(address)

    def _hops(self, scope: AsgiScope) -> Iterator[Address | None]:
        entries = ",".join(header_values(scope, self.header)).rsplit(",", _HOPS)
        if len(entries) > _HOPS:
            entries = entries[1:]
        for entry in reversed(entries):
            if self.header == "forwarded":
                found = _FORWARDED_FOR.search(entry)
                yield parse_address(found[1]) if found else None
            else:
                yield parse_address(entry)


def peer(scope: AsgiScope) -> tuple[str | None, Address | None]:
    """Return the name and, where it is one, the address of who is connected."""
    client: Any = scope.get("client")
    if not isinstance(client, (tuple, list)) or not client or not client[0]:
        return None, None
    name = str(client[0])
    return name, parse_address(name)


def parse_address(text: str) -> Address | None:
    """Read an address as proxies write it: with a port, in brackets, in quotes, or plain.

    Returns:
        The address, an IPv4 one mapped into IPv6 as IPv4 and without a zone; None for all else
        (RFC 7239 allows ``unknown`` and ``_names``).
    """
    return _parse(text) if len(text) <= _LONGEST else None


# proxies, and the clients of the last minutes; one that is forgotten costs a few microseconds
@functools.lru_cache(maxsize=1024)
def _parse(text: str) -> Address | None:
    text = text.strip().strip('"').strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


# as above
@functools.lru_cache(maxsize=1024)
def _usual(text: str) -> str:
    """Spell an address in its usual form."""
    return str(parse_address(text))


def _network(entry: str) -> Network:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        raise ConfigurationError(
            f"{PREFIX}TRUSTED_PROXIES: expected addresses, networks such as 10.0.0.0/8, or unix"
        ) from None


_REMEMBERED: Final = 1024
"""Pairs of address and user agent that are remembered as they are shown, about."""

USER_AGENT_LIMIT: Final = 512
"""Characters of a user agent that are kept."""

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+/@-]{7,127}")
"""A well-formed request id: 8 to 128 characters, the first a letter or a digit.

UUIDs, ULIDs, base64 and the ids of the usual gateways pass. What could break a log line, a header,
or a spreadsheet's cell does not.
"""


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Options of `resolve_source`.

    Attributes:
        proxies: Proxies whose forwarded headers are trusted.
        session_claim: Claim of a verified token that is the session's id.
        session_cookie: Cookie of the session, if its hash shall be kept.
        hash: Makes that hash; without a key there is none.
    """

    proxies: Proxies = field(default_factory=Proxies)
    session_claim: str = "sid"
    session_cookie: str | None = None
    hash: KeyedHash = field(default_factory=KeyedHash)

    @classmethod
    def from_config(cls, config: AuditConfig) -> SourceOptions:
        """Read the settings.

        Raises:
            ConfigurationError: As for `Proxies.from_config`.
        """
        return cls(
            proxies=Proxies.from_config(config),
            session_claim=config.jwt_session_claim,
            session_cookie=config.session_cookie or None,
            hash=KeyedHash.from_config(config),
        )


def resolve_source(
    asgi_scope: AsgiScope,
    options: SourceOptions,
    claims: Mapping[str, Any] | None = None,
    known: Source | None = None,
) -> Source:
    """Find out where an action came from. Never raises for what a client sends.

    Args:
        asgi_scope: The ASGI scope.
        options: From the settings.
        claims: Claims of a verified token, for the session; None if there is none.
        known: What this said before of the same connection: only the session may be news.

    Returns:
        What is known. ``type`` is ``host`` where the server gives a name instead of an address.
    """
    session = _session(asgi_scope, options, claims)
    if known is None:
        known = _of_connection(asgi_scope, options)
    if session == known.session_id:
        return known
    return msgspec.structs.replace(known, session_id=session)


def _of_connection(asgi_scope: AsgiScope, options: SourceOptions) -> Source:
    """Say what all requests over one connection have alike."""
    address = options.proxies.client(asgi_scope)
    agent = first_header(asgi_scope, "user-agent")
    return Source(
        address=None if address is None else clean(address) or None,
        type="ip" if address is None or parse_address(address) is not None else "host",
        user_agent=None if agent is None else _user_agent(agent),
    )


class SourceReader:
    """Reads the source of requests, as it is shown; what they have alike is read once."""

    def __init__(self, options: SourceOptions, redactor: Redactor) -> None:
        """Remember which proxies and headers are trusted.

        Args:
            options: From the settings.
            redactor: Takes secrets out.
        """
        self._options = options
        self._redactor = redactor
        self._claim = options.session_claim
        self._is_claim_path = "." in options.session_claim
        self._has_cookie = options.session_cookie is not None and bool(options.hash)
        self._forwarded = options.proxies.header.encode("latin-1")
        self._alike: Memo[tuple[str, bytes | None], Source] = Memo(
            self._of_pair, _REMEMBERED, lambda pair: len(pair[1] or b"") <= USER_AGENT_LIMIT
        )

    def read(
        self, asgi_scope: AsgiScope, claims: Mapping[str, Any] | None, known: Source | None
    ) -> Source:
        """Find out where an action came from; see `resolve_source`.

        Args:
            asgi_scope: The ASGI scope.
            claims: Claims of a verified token, for the session; None if there is none.
            known: What this said before of the same connection: only the session may be news.
        """
        if known is None:
            known = self._of_connection(asgi_scope)
        if (
            not self._has_cookie
            and known.session_id is None
            and (
                claims is None
                or (claim(claims, self._claim) if self._is_claim_path else claims.get(self._claim))
                is None
            )
            and "session_id" not in state_of(asgi_scope)
        ):
            return known  # nothing names a session
        found = resolve_source(asgi_scope, self._options, claims, known)
        return found if found is known else shown_source(found, self._redactor)

    def _of_connection(self, asgi_scope: AsgiScope) -> Source:
        client: Any = asgi_scope.get("client")
        sent = headers_by_name(asgi_scope.get("headers") or ())
        agent = sent.get(b"user-agent")
        if (
            type(client) is tuple
            and client
            and type(client[0]) is str
            and (agent is None or type(agent) is bytes)
            and self._forwarded not in sent
        ):
            return self._alike[client[0], agent]
        return shown_source(_of_connection(asgi_scope, self._options), self._redactor)

    def _of_pair(self, pair: tuple[str, bytes | None]) -> Source:
        """Say it of all who come from one address, with one user agent and by no proxy."""
        name, agent = pair
        headers = () if agent is None else ((b"user-agent", agent),)
        scope = {"client": (name, 0), "headers": headers}
        return shown_source(_of_connection(scope, self._options), self._redactor)


def _user_agent(given: str) -> str | None:
    shown = clean(given, USER_AGENT_LIMIT + 1)
    return (shown if len(shown) <= USER_AGENT_LIMIT else cut_text(shown, USER_AGENT_LIMIT)) or None


def request_id(
    asgi_scope: AsgiScope, header_name: str, is_safe: Callable[[str], bool] = bool
) -> str | None:
    """Return the client's id of the request, if it is well-formed (`REQUEST_ID`).

    Args:
        asgi_scope: The ASGI scope.
        header_name: The header to look at; empty: none. Several such headers: none is taken.
        is_safe: Returns whether a client's id may be stored: it may be a token.

    Returns:
        8 to 128 characters; None if there is none to be taken.
    """
    given = header_values(asgi_scope, header_name) if header_name else []
    if len(given) == 1 and REQUEST_ID.fullmatch(given[0].strip()) and is_safe(given[0].strip()):
        return given[0].strip()
    return None


def _session(
    asgi_scope: AsgiScope, options: SourceOptions, claims: Mapping[str, Any] | None
) -> str | None:
    named = state_of(asgi_scope).get("session_id")
    session = None if named is None else identifier(named)
    if session is None and claims is not None:
        named = claim(claims, options.session_claim)
        session = None if named is None else identifier(named)
    if session is not None or options.session_cookie is None or not options.hash:
        return session
    secret = cookie_value(asgi_scope, options.session_cookie)
    return None if secret is None else options.hash.of(secret)
