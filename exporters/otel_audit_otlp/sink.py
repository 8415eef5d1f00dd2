"""Sends batches of records over OTLP/HTTP, and returns only after the receiver has taken them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import ssl
import zlib
from collections.abc import AsyncIterable, Callable, Sequence
from typing import Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit._util.gunzip import TooManyMembersError, gunzip
from otel_audit._util.http_response import HttpResponse
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.delivery.halving import write_by_halves
from otel_audit.delivery.sink import Refused, Written
from otel_audit.errors import MissingExtraError, StoreError, StoreUnavailableError
from otel_audit.record import AuditRecord, to_json
from otel_audit_otlp.encoding import Carried, carry, parts_of, to_request
from otel_audit_otlp.endpoint import Endpoint
from otel_audit_otlp.responses import rejection_reason

try:
    import httpx
except ImportError as missing:
    raise MissingExtraError("OTEL_AUDIT_EXPORTER=otlp", "otlp") from missing

_logger = logging.getLogger(__name__)

_LONGEST_ANSWER: Final = 1_000_000
"""Bytes of an answer, as it comes and unpacked: a receiver's has some hundred."""
_STEP: Final = 65_536
"""Bytes that are unpacked before the bound is looked at again."""
_MOST_MEMBERS: Final = 16
"""Members of a gzip stream; a receiver's has one."""
_COMPRESSION_LEVEL: Final = 3
"""A low level: it is CPU of the application's process."""
_GZIP: Final = frozenset({"gzip", "x-gzip"})
_TO: Final = "could not send to OTEL_AUDIT_OTLP_ENDPOINT"


class OtlpSink:
    """A `otel_audit.delivery.sink.Sink` over one connection, opened when it is first needed.

    The receiver must answer only when what it got is safe, as `otel-audit serve` does, and a
    Collector with a persistent queue. A record that it refuses is found by halving and quarantined
    on this machine with the reason, and holds up no other.

    Example::

        refused = []
        sink = OtlpSink(Endpoint("http://127.0.0.1:4318/v1/traces"), refused.extend)
        await sink.close()
    """

    def __init__(self, endpoint: Endpoint, set_aside: Callable[[Sequence[Refused]], None]) -> None:
        """Remember the settings; no connection is opened yet.

        Args:
            endpoint: The receiver.
            set_aside: Keeps what the receiver refuses; blocks; raises `StoreError` if it cannot.
        """
        self._endpoint = endpoint
        self._set_aside = set_aside
        # not a client: one would follow proxies of the environment, and log each request
        self._transport = httpx.AsyncHTTPTransport(
            verify=endpoint.tls or False, trust_env=False, limits=httpx.Limits(max_connections=1)
        )
        self._headers = {
            "content-type": "application/x-protobuf",
            "user-agent": "otel-audit",
            "accept-encoding": "identity",
            **endpoint.headers,
        }
        if endpoint.compression == "gzip":
            self._headers["content-encoding"] = "gzip"

    async def check(self) -> None:
        """See whether the receiver takes a request, with nothing in it.

        Raises:
            StoreUnavailableError: It cannot be reached, or takes nothing now.
            StoreError: It refuses us; the message says the remedy.
        """
        objection = rejection_reason(await self._post(b""))
        if objection is not None:
            raise StoreError(f"{objection}; is OTEL_AUDIT_OTLP_ENDPOINT an OTLP/HTTP receiver?")

    async def write(self, records: Sequence[AuditRecord]) -> Written:
        """Send a batch; return only after the receiver has taken it.

        Args:
            records: The batch, any size.

        Returns:
            How many the receiver has accepted, and how many are quarantined.

        Raises:
            StoreUnavailableError: Not all of the batch is known to be taken; try again later.
            StoreError: As for `check`, or a refused record cannot be quarantined.
        """
        carried, refused = carry(records)

        async def refuse(one: Carried, objection: str) -> None:
            refused.append(Refused(one.record.record_id, to_json(one.record), objection))

        for part in parts_of(carried):
            await write_by_halves(part, self._send, refuse)
        await self.quarantine(refused)
        return Written(stored=len(records) - len(refused), quarantined=len(refused))

    async def quarantine(self, refused: Sequence[Refused]) -> None:
        """Keep what never became a record on this machine, with the reason.

        Raises:
            StoreError: It cannot be kept.
        """
        if refused:
            await asyncio.to_thread(self._set_aside, refused)

    async def known(self, _record_ids: Sequence[str]) -> set[str]:
        """A receiver does not say what is stored: it collapses what comes twice."""
        return set()

    async def close(self) -> None:
        """Give back the connection. Never raises."""
        try:
            async with asyncio.timeout(self._endpoint.timeout):
                await self._transport.aclose()
        except Exception as error:  # noqa: BLE001 - it is gone either way
            log_limited(_logger, "close", "A connection was not closed in order", error=error)

    async def _send(self, part: Sequence[Carried]) -> str | None:
        return rejection_reason(await self._post(to_request(part)))

    async def _post(self, body: bytes) -> HttpResponse:
        if self._endpoint.compression == "gzip":
            body = gzip.compress(body, _COMPRESSION_LEVEL)
        request = httpx.Request("POST", self._endpoint.url, headers=self._headers, content=body)
        with suppress_instrumentation():
            try:
                async with asyncio.timeout(self._endpoint.timeout):
                    return await self._answer(request)
            except TimeoutError:
                raise StoreUnavailableError(f"{_TO}: no answer in time") from None
            except (httpx.HTTPError, OSError) as error:
                raise _as_store_error(error) from None

    async def _answer(self, request: httpx.Request) -> HttpResponse:
        response = await self._transport.handle_async_request(request)
        try:
            headers = {name.lower(): value for name, value in response.headers.items()}
            # raw: httpx unpacks a piece as a whole, and that may become any size
            body = await _bounded(response.aiter_raw())
            if headers.get("content-encoding", "").strip().lower() in _GZIP:
                # not asked for, but a proxy in between may do so
                with contextlib.suppress(zlib.error, EOFError, TooManyMembersError):
                    body = _unpacked(body)
                    del headers["content-encoding"]
            return HttpResponse(response.status_code, headers, body)
        finally:
            await response.aclose()


async def _bounded(chunks: AsyncIterable[bytes]) -> bytes:
    read = bytearray()
    async for chunk in chunks:
        read += chunk
        _refuse_long(read)
    return bytes(read)


def _unpacked(body: bytes) -> bytes:
    read = bytearray()
    for part in gunzip(body, _STEP, _MOST_MEMBERS):
        read += part
        _refuse_long(read)
    return bytes(read)


def _refuse_long(read: bytearray) -> None:
    if len(read) > _LONGEST_ANSWER:
        raise StoreError(f"{_TO}: its answer is too long for an OTLP/HTTP receiver's")


def _as_store_error(error: httpx.HTTPError | OSError) -> StoreError:
    seen = type(error).__name__
    if _is_about_certificates(error):
        return StoreError(
            f"{_TO}: the certificates do not fit [{seen}]; name the authority of the receiver's in "
            "OTEL_AUDIT_OTLP_CERTIFICATE, and ours in OTEL_AUDIT_OTLP_CLIENT_CERTIFICATE"
        )
    return StoreUnavailableError(f"{_TO}: no connection, or it broke; does it run? [{seen}]")


def _is_about_certificates(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError) and not isinstance(
            error, ssl.SSLEOFError | ssl.SSLZeroReturnError
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
