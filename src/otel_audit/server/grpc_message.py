"""A message of gRPC as it was sent: decompressed here, within the bounds of HTTP's bodies.

gRPC itself would decompress a message before anybody has looked at who sends it, in one step and
beyond the memory budget. With ``grpc.per_message_decompression`` off it hands over what was sent,
but neither the message's flag nor the header ``grpc-encoding``. The first bytes tell them: no
OTLP request begins with those of gzip or zlib, as its only field has the tag 0x0A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from otel_audit.server.backpressure import MemoryLease
from otel_audit.server.errors import Code, RequestError
from otel_audit.server.fair_scheduling import Turn
from otel_audit.server.request_body import gunzipped, inflated, undeflated

_GZIP: Final = b"\x1f\x8b\x08"
_DEFLATE: Final = 8
"""The method in zlib's first byte (RFC 1950); the window's size is in its upper half."""
_LARGEST_WINDOW: Final = 0x7F


def compression(sent: bytes) -> Callable[[bytes], Iterator[bytes]] | None:
    """Return what decompresses a message; None: it is not compressed.

    Args:
        sent: The message as it came.
    """
    if sent.startswith(_GZIP):
        return gunzipped
    if len(sent) < 2:  # noqa: PLR2004 - what zlib's header has
        return None
    is_zlib = sent[0] & 0x0F == _DEFLATE and sent[0] <= _LARGEST_WINDOW
    return undeflated if is_zlib and int.from_bytes(sent[:2], "big") % 31 == 0 else None


async def decompressed(sent: bytes, limit: int, lease: MemoryLease, turn: Turn) -> bytes:
    """Decompress a message, if it is compressed.

    Args:
        sent: The message as it came.
        limit: Bytes after decompression, at most.
        lease: Where they are accounted for.
        turn: The sender's turn, not entered.

    Raises:
        RequestError: RESOURCE_EXHAUSTED beyond the limit, which is gRPC's own status for it; and
            else as for `request_body.decompressed`.
    """
    undo = compression(sent)
    if undo is None:
        return sent
    try:
        async with turn:
            return await inflated(sent, undo, limit, lease, turn.pause)
    except RequestError as refused:
        if refused.code is not Code.INVALID_ARGUMENT or refused.kind != "too_large":
            raise
        raise RequestError(
            refused.status, Code.RESOURCE_EXHAUSTED, refused.kind, refused.message
        ) from None
