"""The HTTP client of destinations: no proxy, no redirects, one connection, bounded answers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit._util.http_response import HttpResponse, retry_after
from otel_audit._util.printable import visible
from otel_audit.errors import ConfigurationError, MissingExtraError
from otel_audit.streams.destination import DestinationError

try:
    import httpx
except ImportError as missing:
    raise MissingExtraError("a stream over HTTP", "streams") from missing

_LONGEST_ANSWER: Final = 65_536
"""Bytes of an answer that are read, so that a receiver cannot fill the memory."""
# they say nothing of the event: whoever keeps the destination has to act
_ABOUT_US: Final = {
    401: "it does not take our token or signature",
    403: "it does not let us in",
    404: "there is nothing at this path",
    405: "this path takes no POST",
    407: "a proxy stands in between",
    410: "it is gone for good",
    411: "it asks for a Content-Length",
    415: "it does not take this kind of content",
    421: "it is not responsible for this host",
    426: "it wants another protocol",
}
_PASSING: Final = frozenset({408, 425, 429})
"""Refusals that a later try may not meet: Request Timeout, Too Early, Too Many Requests."""


class Client:
    """One connection to one destination."""

    def __init__(self, certificate: Path | None, setting: str, timeout: float) -> None:
        """Open nothing yet.

        Args:
            certificate: Whom to trust; None: the system's authorities.
            setting: Of the certificate, for messages.
            timeout: Seconds for one request, from connecting to the answer's last byte.

        Raises:
            ConfigurationError: The certificate cannot be read.
        """
        # not a client: one would follow proxies of the environment and redirects
        self._transport = httpx.AsyncHTTPTransport(
            verify=_trusting(certificate, setting),
            trust_env=False,
            limits=httpx.Limits(max_connections=1),
        )
        self.timeout = timeout

    async def post(
        self,
        url: httpx.URL,
        headers: Mapping[str, str],
        body: bytes,
        extensions: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Send a request.

        Raises:
            DestinationError: There was no answer.
        """
        request = httpx.Request(
            "POST", url, headers=dict(headers), content=body, extensions=extensions or {}
        )
        with suppress_instrumentation():
            try:
                async with asyncio.timeout(self.timeout):
                    return await self._answer(request)
            except TimeoutError:
                raise DestinationError(f"no answer within {self.timeout:g} s") from None
            except (httpx.HTTPError, OSError, UnicodeError) as error:
                raise DestinationError(
                    f"no connection, or it broke; does it run? [{type(error).__name__}]"
                ) from None

    async def close(self) -> None:
        """Close the connection. Never raises."""
        try:
            async with asyncio.timeout(self.timeout):
                await self._transport.aclose()
        except Exception:  # noqa: BLE001, S110 - it is gone either way, and nothing was under way
            pass

    async def _answer(self, request: httpx.Request) -> HttpResponse:
        response = await self._transport.handle_async_request(request)
        try:
            headers = {name.lower(): value for name, value in response.headers.items()}
            read = bytearray()
            async for chunk in response.aiter_raw():
                read += chunk
                if len(read) > _LONGEST_ANSWER:
                    break
            return HttpResponse(response.status_code, headers, bytes(read[:_LONGEST_ANSWER]))
        finally:
            await response.aclose()


def refuse_unfit_url(url: str, setting: str) -> None:
    """Refuse a URL without a usable host name, at start.

    Raises:
        ConfigurationError: It is none.
    """
    try:
        host = httpx.URL(url).raw_host.decode("ascii")
        host.encode("idna")
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ConfigurationError(f"{setting}: this is not a URL: {visible(str(error))}") from None


def rejection_reason(answer: HttpResponse) -> str | None:
    """Return why a destination refused an event, by the status.

    Returns:
        None where it was taken; else why the event is refused.

    Raises:
        DestinationError: Nothing is said about the event: try again.
    """
    status = answer.status
    if 200 <= status < 300:  # noqa: PLR2004 - RFC 9110, 15.3
        return None
    if status in _PASSING or status >= 500:  # noqa: PLR2004 - RFC 9110, 15.6
        raise DestinationError(
            f"it takes nothing now (status {status})", retry_after=retry_after(answer.headers)
        )
    if status in _ABOUT_US or not 400 <= status < 500:  # noqa: PLR2004 - RFC 9110, 15.5
        why = _ABOUT_US.get(status, "redirects are not followed: name the place itself")
        raise DestinationError(f"it answers with status {status}: {why}")
    return f"status {status}{_quoted(answer)}"


def _quoted(answer: HttpResponse) -> str:
    text = visible(answer.body[:300].decode("utf-8", "replace").strip())
    return f": {text}" if text else ""


def _trusting(certificate: Path | None, setting: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=certificate)
    except (OSError, ssl.SSLError) as error:
        why = error.strerror if not isinstance(error, ssl.SSLError) else "holds no PEM certificate"
        raise ConfigurationError(f"{setting}: {certificate}: {why}") from None
