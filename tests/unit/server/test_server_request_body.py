"""Decompression: within bounds of size and of parts, and others have their turn all the while."""

from __future__ import annotations

import asyncio
import gzip
import random
import tracemalloc
import zlib
from types import SimpleNamespace

import pytest
import zstandard

from otel_audit.server import backpressure
from otel_audit.server.backpressure import FREE_SIZE, MemoryBudget
from otel_audit.server.errors import RequestError
from otel_audit.server.request_body import decompressed

LIMIT = 64 << 20
EMPTY = {
    "gzip": gzip.compress(b""),
    "zstd": zstandard.ZstdCompressor(write_content_size=False).compress(b""),
}
COMPRESS = {"gzip": gzip.compress, "zstd": zstandard.compress}


async def undone(body: bytes, coding: str, limit: int = LIMIT) -> tuple[bytes, int]:
    """Decompress, and count the turns that others had meanwhile."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    try:
        with MemoryBudget(1 << 30).lease() as lease:
            return await decompressed(body, coding, limit, lease), turns
    finally:
        beside.cancel()


@pytest.mark.parametrize("coding", COMPRESS)
class TestParts:
    async def test_several_are_one_body(self, coding):
        parts = [bytes([number]) * number * 100 for number in range(100)]

        found, _ = await undone(b"".join(map(COMPRESS[coding], parts)), coding)

        assert found == b"".join(parts)

    async def test_a_thousand_are_the_most(self, coding):
        found, turns = await undone(EMPTY[coding] * 1000, coding)
        assert found == b""
        assert turns >= 10

        with pytest.raises(RequestError, match="more than 1000") as refused:
            await undone(EMPTY[coding] * 1001, coding)
        assert refused.value.status == 400

    async def test_one_too_many_is_seen_before_the_rest_is_looked_at(self, coding):
        with pytest.raises(RequestError, match="more than 1000"):
            await undone(EMPTY[coding] * 200_000 + b"no such thing", coding)


@pytest.mark.parametrize("coding", COMPRESS)
class TestTurns:
    async def test_by_what_comes_out(self, coding):
        hard = random.Random(1).randbytes(200_000)
        body = COMPRESS[coding](hard) + COMPRESS[coding](b"\0" * (16 << 20))

        found, turns = await undone(body, coding)

        assert len(found) == len(hard) + (16 << 20)
        assert turns >= 8

    async def test_what_is_small_may_become_very_large_now_and_then(self, coding, monkeypatch):
        """Up to a sender's credit, which comes back; then it is told to wait, and nothing is lost."""
        # a slow machine would have some of it back meanwhile
        monkeypatch.setattr(backpressure, "time", SimpleNamespace(monotonic=lambda: 0.0))
        budget = MemoryBudget(1 << 30)
        small = COMPRESS[coding](b"\0" * (28 << 20))
        with budget.lease("acme") as lease:
            await decompressed(small, coding, LIMIT, lease)
            await decompressed(small, coding, LIMIT, lease)
            with pytest.raises(RequestError, match="100 times as large as it was sent") as refused:
                await decompressed(small, coding, LIMIT, lease)
            assert refused.value.status == 429
            assert 1 <= refused.value.retry_after <= 20
            # what is not inflated costs no credit
            for _ in range(30):
                await decompressed(COMPRESS[coding](b"\0" * FREE_SIZE), coding, LIMIT, lease)
        with budget.lease("globex") as lease:
            await decompressed(small, coding, LIMIT, lease)

    async def test_by_what_goes_in(self, coding):
        """Blocks of nothing: input that costs, and gives nothing out."""
        if coding == "gzip":
            block = zlib.compressobj(wbits=31)
            body = block.compress(b"") + b"".join(
                block.flush(zlib.Z_FULL_FLUSH) or b"\0\0\0\xff\xff" for _ in range(5)
            )
            body += b"\0\0\0\xff\xff" * 2_000_000 + block.flush()
        else:
            body = EMPTY["zstd"][:-3] + b"\0\0\0" * 100_000 + EMPTY["zstd"][-3:]

        found, turns = await undone(body, coding)
        assert found == b""
        assert turns >= 2


async def test_a_bomb_is_not_unpacked():
    head = b"\x28\xb5\x2f\xfd\x00\x38"  # a window of 128 KiB
    body = head + ((2 | 131_072 << 3).to_bytes(3, "little") + b"\0") * 20_000  # 2.6 GB
    tracemalloc.start()
    try:
        with pytest.raises(RequestError) as refused:
            await undone(body, "zstd", 20 << 20)
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()
    assert refused.value.status == 413
