"""Reading a request's body, within bounds of size and time."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final

from otel_audit._util.gunzip import TooManyMembersError, gunzip
from otel_audit.server.backpressure import MemoryLease
from otel_audit.server.errors import Code, RequestError, too_large, too_slow, undecodable

_STEP: Final = 1 << 20
"""Bytes that are decompressed before others have their turn."""

_CALL: Final = 1 << 14
"""Bytes that a call of a decompressor counts as, whatever comes out of it."""

_ZSTD_PIECE: Final = 128
"""Bytes that are given to zstd at a time: four of them can become 128 KiB, all given out."""

_MOST_MEMBERS: Final = 1_000
"""Members of gzip, or frames of zstd: exporters send one."""

_LARGEST_WINDOW: Final = 1 << 23
"""Bytes of a zstd window: RFC 8878 wants every decoder to support it."""

CODINGS: Final = ("", "identity", "gzip", "zstd")


async def read_body(
    chunks: AsyncIterator[bytes],
    declared: int | None,
    limit: int,
    lease: MemoryLease,
    patience: float,
) -> bytes:
    """Read a body.

    Args:
        chunks: Its parts.
        declared: Its Content-Length.
        limit: Bytes, at most.
        lease: Where its bytes are accounted for.
        patience: Seconds that it may take in all.

    Raises:
        RequestError: 413 beyond the limit, 429 where there is no memory for it now, 503 where it
            comes too slowly.
    """
    if declared is not None:
        if declared > limit:
            raise _too_long(limit)
        lease.grow_to(declared)
    body = bytearray()
    try:
        async with asyncio.timeout(patience):
            async for chunk in chunks:
                body += chunk
                if len(body) > limit:
                    raise _too_long(limit)
                lease.grow_to(len(body))
    except TimeoutError:
        raise too_slow("body", patience) from None
    return bytes(body)


def _too_long(limit: int) -> RequestError:
    return too_large(f"the body is larger than {limit} bytes; send smaller batches")


async def _let_others() -> None:
    await asyncio.sleep(0)


async def decompressed(
    body: bytes,
    coding: str,
    limit: int,
    lease: MemoryLease,
    pause: Callable[[], Awaitable[None]] = _let_others,
) -> bytes:
    """Undo a content coding.

    Args:
        body: As it came.
        coding: What Content-Encoding says; several are not taken.
        limit: Bytes after decompression, at most.
        lease: Where they are accounted for.
        pause: Lets others have their turn.

    Raises:
        RequestError: 413 beyond the limit; 415 for an unknown coding; 400 for data that are not in
            the coding which is named; 429 where there is no memory for it now, or where it is
            small and becomes very large, more often than the sender may.
    """
    coding = coding.strip().lower()
    if coding not in CODINGS:
        raise RequestError(
            415, Code.INVALID_ARGUMENT, "content_coding",
            "Content-Encoding must be gzip, zstd or identity",
        )  # fmt: skip
    if coding in ("", "identity"):
        if len(body) > limit:
            raise _too_long(limit)
        return body
    return await inflated(body, gunzipped if coding == "gzip" else _unzstd, limit, lease, pause)


async def inflated(
    body: bytes,
    undo: Callable[[bytes], Iterator[bytes]],
    limit: int,
    lease: MemoryLease,
    pause: Callable[[], Awaitable[None]] = _let_others,
) -> bytes:
    """Decompress in small steps, each accounted for before the next one.

    Args:
        body: As it came.
        undo: Decompresses it, part by part.
        limit: Bytes after decompression, at most.
        lease: Where they are accounted for.
        pause: Lets others have their turn.

    Raises:
        RequestError: As for `decompressed`.
    """
    found = bytearray()
    turn = 0
    for part in undo(body):
        found += part
        if len(found) > limit:
            raise _bomb(limit)
        lease.grow_to(len(body) + len(found))
        lease.count_inflation(len(body), len(found))
        turn += len(part) + _CALL
        if turn >= _STEP:
            turn = 0
            await pause()
    lease.pay_inflation(len(body), len(found))
    return bytes(found)


def gunzipped(body: bytes) -> Iterator[bytes]:
    """Decompress gzip (RFC 1952), part by part.

    Raises:
        RequestError: 400, it is not gzip.
    """
    try:
        yield from gunzip(body, _STEP, _MOST_MEMBERS)
    except zlib.error:
        raise undecodable("the body is not valid gzip") from None
    except EOFError:
        raise undecodable("the body is gzip that ends too early") from None
    except TooManyMembersError:
        raise undecodable(f"the body has more than {_MOST_MEMBERS} members of gzip") from None


def undeflated(body: bytes) -> Iterator[bytes]:
    """Decompress zlib's format (RFC 1950), which HTTP and gRPC call deflate, part by part.

    Raises:
        RequestError: 400, it is not in that format.
    """
    stream, rest = zlib.decompressobj(), body
    try:
        while not stream.eof:
            part = stream.decompress(rest, _STEP)
            rest = stream.unconsumed_tail
            if not part and not rest and not stream.eof:
                raise undecodable("the body is deflate that ends too early")
            yield part
    except zlib.error:
        raise undecodable("the body is not valid deflate") from None


def _unzstd(body: bytes) -> Iterator[bytes]:
    """Decompress zstd (RFC 8878), which may have several frames."""
    try:
        import zstandard
    except ImportError:
        raise RequestError(
            415, Code.INVALID_ARGUMENT, "content_coding",
            "zstd is not installed here; send gzip, or install otel-audit[server]",
        ) from None  # fmt: skip
    decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    at, frames = 0, 0
    try:
        while at < len(body):
            if frames >= _MOST_MEMBERS:
                raise undecodable(f"the body has more than {_MOST_MEMBERS} frames of zstd")
            frames += 1
            frame = decompressor.decompressobj()
            while not frame.eof:
                piece = body[at : at + _ZSTD_PIECE]
                if not piece:
                    raise undecodable("the body is zstd that ends too early")
                at += len(piece)
                yield frame.decompress(piece)
            at -= len(frame.unused_data)
    except zstandard.ZstdError:
        raise undecodable("the body is not valid zstd") from None


def _bomb(limit: int) -> RequestError:
    return too_large(f"decompressed, the body is larger than {limit} bytes; send smaller batches")
