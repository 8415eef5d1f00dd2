"""The webhook destination: one signed request per event (Standard Webhooks 1.0)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import socket
import time
from collections.abc import Sequence
from typing import Final

import httpx

from otel_audit._util.loopback import is_loopback
from otel_audit.errors import ConfigurationError
from otel_audit.identity.source import Address
from otel_audit.streams.destination import TURN, Delivered, DestinationError, Encoded, Outgoing
from otel_audit.streams.file import line
from otel_audit.streams.http import Client, rejection_reason

_PREFIX: Final = "whsec_"
_SHORTEST_SECRET: Final = 24
"""Bytes of a secret, by Standard Webhooks: 24 to 64."""
_LONGEST_SECRET: Final = 64
"""The upper one of these bounds."""
# addresses that stand for an IPv4 address (RFC 6052)
_TRANSLATED: Final = ipaddress.ip_network("64:ff9b::/96")
# registered since, or not in the table of every Python version (RFC 6890, RFC 9637)
_NOT_PUBLIC: Final = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "3fff::/20")))


class WebhookDestination:
    """An HTTP endpoint; ``webhook-id`` is the record's id, the same on every delivery."""

    def __init__(
        self, url: str, client: Client, secrets: Sequence[bytes], *, allow_private: bool
    ) -> None:
        """Remember where.

        Args:
            url: The endpoint.
            client: The connection.
            secrets: Keys of the signature, the newest first.
            allow_private: Whether it may be an address that is not public.
        """
        self._url = httpx.URL(url)
        self._host = self._url.netloc.decode("ascii")
        # as it is looked up and stands in certificates: of a name beyond ASCII the xn-- form
        self._name = self._url.raw_host.decode("ascii")
        self._client = client
        self._secrets = tuple(secrets)
        self._allow_private = allow_private

    def encode(self, event: Outgoing, log: str) -> bytes:
        """Write an event as a request's body."""
        del log
        return line(event)[:-1]

    async def send(self, events: Sequence[Encoded]) -> Delivered:
        """Send events one by one; stop at the first that is not accepted."""
        delivered = Delivered()
        begun = time.monotonic()
        try:
            # to the address that was looked at, whatever the name means by now
            url = self._url.copy_with(host=str(await self._address()))
            for event in events:
                why = await self._send(event, url)
                if why is not None:
                    delivered.refused[event.leaf] = why
                delivered.done += 1
                if time.monotonic() - begun > TURN:
                    break
        except DestinationError as error:
            delivered.stopped = error
        return delivered

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def _send(self, event: Encoded, url: httpx.URL) -> str | None:
        body = event.content
        message_id, moment = str(event.id), str(int(time.time()))
        headers = {
            "host": self._host,
            "content-type": "application/json",
            "user-agent": "otel-audit",
            "webhook-id": message_id,
            "webhook-timestamp": moment,
            "webhook-signature": " ".join(
                signature(secret, message_id, moment, body) for secret in self._secrets
            ),
        }
        answer = await self._client.post(url, headers, body, {"sni_hostname": self._name})
        return rejection_reason(answer)

    async def _address(self) -> Address:
        """Look up the host's name, and refuse addresses that are not public."""
        port = self._url.port or (443 if self._url.scheme == "https" else 80)
        try:
            async with asyncio.timeout(self._client.timeout):
                found = await resolved(self._name, port)
        except TimeoutError:
            raise DestinationError(
                f"the host's name {self._name} is not looked up within {self._client.timeout:g} s"
            ) from None
        if not self._allow_private:
            private = [one for one in found if not is_public(one)]
            if private:
                raise DestinationError(
                    f"{self._name} is {private[0]}, which is not a public address: set "
                    "allow_private = true if the endpoint is meant to be there"
                )
        return found[0]


def signature(secret: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    """Sign a message (Standard Webhooks 1.0, symmetric)."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.digest(secret, signed, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def read_secret(text: str, setting: str) -> bytes:
    """Read a secret, ``whsec_`` and base64 of 24 to 64 bytes.

    Raises:
        ConfigurationError: It is none; the message does not show it.
    """
    try:
        found = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if not _SHORTEST_SECRET <= len(found) <= _LONGEST_SECRET:
        raise ConfigurationError(
            f"{setting}: is not a secret of Standard Webhooks: whsec_ and base64 of "
            f"{_SHORTEST_SECRET} to {_LONGEST_SECRET} random bytes"
        )
    return found


def refuse_private_literal(url: str, setting: str) -> None:
    """Refuse an address that is not public where it stands in the URL itself: at the start.

    Raises:
        ConfigurationError: It is.
    """
    host = httpx.URL(url).host
    try:
        is_refused = not is_public(ipaddress.ip_address(host))
    except ValueError:
        is_refused = is_loopback(host)
    if is_refused:
        raise ConfigurationError(
            f"{setting}: {host} is not a public address: set allow_private = true if the endpoint "
            "is meant to be there"
        )


def is_public(address: Address) -> bool:
    """Whether an address is one of the Internet, also where it stands for another one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        # site-local was given up (RFC 3879), and is routed within a site where it is in use
        if inner is None and (address.teredo is not None or address.is_site_local):
            return False
        if inner is not None:
            return is_public(inner)
    if any(address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


async def resolved(host: str, port: int) -> list[Address]:
    """The addresses of a host.

    Raises:
        DestinationError: It has none now.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise DestinationError(f"the host's name {host} cannot be looked up") from None
    addresses = [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]
    return sorted(dict.fromkeys(addresses), key=lambda one: one.version)
