"""The health endpoint: the report of `otel_audit.health()`, for monitoring."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def answer_health(report: Mapping[str, Any], method: str, send: Send) -> None:
    """Answer a request for the health endpoint.

    Args:
        report: The report; ``overdue`` decides between status 200 and 503.
        method: GET or HEAD are answered, anything else with 405.
        send: ASGI's.
    """
    if method not in ("GET", "HEAD"):
        await _answer(send, 405, b"", [(b"allow", b"GET, HEAD")])
        return
    body = msgspec.json.encode(report)
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    status = 503 if report.get("overdue") else 200
    await _answer(send, status, body, headers, with_body=method == "GET")


async def _answer(
    send: Send,
    status: int,
    body: bytes,
    headers: list[tuple[bytes, bytes]],
    *,
    with_body: bool = True,
) -> None:
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body if with_body else b""})
