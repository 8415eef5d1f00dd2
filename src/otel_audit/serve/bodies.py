"""Reading a request's body, within bounds of size and time."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Final

from otel_audit.serve.bounds import Lease
from otel_audit.serve.problems import Code, Problem, too_large, undecodable

_STEP: Final = 1 << 20
"""Bytes that are decompressed before others have their turn."""

_LARGEST_WINDOW: Final = 1 << 23
"""Bytes of a zstd window: what RFC 8878 asks every decoder to support."""

CODINGS: Final = ("", "identity", "gzip", "zstd")


async def read_body(
    chunks: AsyncIterator[bytes], declared: int | None, limit: int, lease: Lease, patience: float
) -> bytes:
    """Read a body.

    Args:
        chunks: Its parts.
        declared: Its Content-Length.
        limit: Bytes, at the most.
        lease: Where its bytes are accounted for.
        patience: Seconds that it may take in all.

    Raises:
        Problem: 413, 429, or 408 where it comes too slowly.
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
        # 503 and not 408: exporters try a 503 again
        raise Problem(
            503, Code.UNAVAILABLE, "slow", f"the body did not come within {patience:g} seconds",
            retry_after=1,
        ) from None  # fmt: skip
    return bytes(body)


def _too_long(limit: int) -> Problem:
    return too_large(f"the body is larger than {limit} bytes; send smaller batches")


async def decompressed(body: bytes, coding: str, limit: int, lease: Lease) -> bytes:
    """Undo a content coding.

    Args:
        body: As it came.
        coding: What Content-Encoding says; several are not taken.
        limit: Bytes after decompression, at the most.
        lease: Where they are accounted for.

    Raises:
        Problem: 413 beyond the limit, 415 for an unknown coding, 400 for what is not compressed so.
    """
    coding = coding.strip().lower()
    if coding not in CODINGS:
        raise Problem(
            415, Code.INVALID_ARGUMENT, "content_coding",
            "Content-Encoding must be gzip, zstd or identity",
        )  # fmt: skip
    if coding in ("", "identity"):
        if len(body) > limit:
            raise _too_long(limit)
        return body
    undo = _gunzip if coding == "gzip" else _unzstd
    found = bytearray()
    for part in undo(body, limit):
        found += part
        if len(found) > limit:
            raise _bomb(limit)
        lease.grow_to(len(body) + len(found))
        if len(found) >= _STEP:
            await asyncio.sleep(0)
    return bytes(found)


def _gunzip(body: bytes, _limit: int) -> Iterator[bytes]:
    """Decompress gzip (RFC 1952), which may have several members."""
    rest = body
    while rest:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            try:
                part = member.decompress(rest, _STEP)
            except zlib.error:
                raise undecodable("the body is not valid gzip") from None
            rest = member.unconsumed_tail
            if not part and not rest and not member.eof:
                raise undecodable("the body is gzip that ends too early")
            yield part
        rest = member.unused_data


def _unzstd(body: bytes, limit: int) -> Iterator[bytes]:
    """Decompress zstd (RFC 8878), which may have several frames."""
    try:
        import zstandard
    except ImportError:
        raise Problem(
            415, Code.INVALID_ARGUMENT, "content_coding",
            "zstd is not installed here; send gzip, or install otel-audit[server]",
        ) from None  # fmt: skip
    size = 0
    decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    try:
        # a few bytes can become many in one step, so it is measured before it is kept
        reader = decompressor.stream_reader(body, read_across_frames=True)
        while part := reader.read(_STEP):
            size += len(part)
            if size > limit:
                raise _bomb(limit)
        rest = body
        while rest:
            frame = decompressor.decompressobj()
            yield frame.decompress(rest)
            if not frame.eof:
                raise undecodable("the body is zstd that ends too early")
            rest = frame.unused_data
    except zstandard.ZstdError:
        raise undecodable("the body is not valid zstd") from None


def _bomb(limit: int) -> Problem:
    return too_large(f"decompressed, the body is larger than {limit} bytes; send smaller batches")
