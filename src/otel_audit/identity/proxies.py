"""Which peers are proxies of ours, and what address they say the client has."""

from __future__ import annotations

import functools
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from otel_audit.config import PREFIX, AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.identity.safe_access import Scope, header_values

if TYPE_CHECKING:
    from collections.abc import Iterator

UNIX: Final = "unix"
"""Among the trusted proxies: peers of a Unix socket, which have no address."""

_HOPS: Final = 64
_LONGEST: Final = 100
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORWARDED_FOR: Final = re.compile(r"""(?:^|;)\s*for\s*=\s*("[^"]*"|[^;,"]*)""", re.IGNORECASE)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies whose word is taken.

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

    def trusts_peer(self, scope: Scope) -> bool:
        """Return whether the request came straight from a proxy of ours."""
        name, address = peer(scope)
        return self.trusts(address) and (name is None) == (address is None)

    def client(self, scope: Scope) -> str | None:
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

    def _hops(self, scope: Scope) -> Iterator[Address | None]:
        entries = ",".join(header_values(scope, self.header)).rsplit(",", _HOPS)
        if len(entries) > _HOPS:
            entries = entries[1:]
        for entry in reversed(entries):
            if self.header == "forwarded":
                found = _FORWARDED_FOR.search(entry)
                yield parse_address(found[1]) if found else None
            else:
                yield parse_address(entry)


def peer(scope: Scope) -> tuple[str | None, Address | None]:
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
