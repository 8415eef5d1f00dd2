"""The tree that many proofs share: those under way neither wait for one another nor spoil it."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.leaves import Block
from otel_audit_postgres.ledger.merkle import Frontier, verify_inclusion
from otel_audit_postgres.ledger.tree_cache import TreeCache


class Log:
    """A log of blocks, as the store gives it."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.hashes: list[bytes] = []
        self.tree = Frontier()
        self.reads_of_all = 0
        self.hold = asyncio.Event()
        self.hold.set()

    def seal(self, count: int) -> tuple[int, bytes]:
        hashes = [os.urandom(32) for _ in range(count)]
        self.blocks.append(Block(len(self.hashes), bytes(16 * count), b"".join(hashes)))
        self.hashes += hashes
        self.tree = self.tree.extended(hashes)
        return self.tree.size, self.tree.root()

    async def fetchval(self, _, start):
        await self.hold.wait()
        return max(block.first for block in self.blocks if block.first <= start)

    async def pieces(self, _, since=0, until=sys.maxsize, at_once=8):
        self.reads_of_all += since == 0 and until == sys.maxsize
        for block in [one for one in self.blocks if since <= one.first <= until]:
            await asyncio.sleep(0)
            yield block


@pytest.fixture
def log(monkeypatch):
    log = Log()
    monkeypatch.setattr(ledger_queries, "pieces", log.pieces)
    for _ in range(9):
        log.seal(100)
    return log


async def holds(log, cache, leaf, size, root):
    path = await cache.proof(log, leaf, size)
    return verify_inclusion(log.hashes[leaf], leaf, size, path, root)


async def test_an_older_checkpoint_is_proved_by_the_same_tree(log):
    """Who has waited for the tree knows an older size than it has, and does not read it again."""
    cache = TreeCache()
    older = log.seal(5)
    newer = log.seal(5)
    await cache.follow(log, newer[0])
    await cache.follow(log, older[0])
    assert await holds(log, cache, 3, *older)
    await cache.follow(log, newer[0])
    assert await holds(log, cache, 3, *newer)
    assert log.reads_of_all == 1


async def test_a_proof_under_way_is_whole_though_another_one_doubts_the_tree(log):
    """What it began with is what it ends with."""
    cache = TreeCache()
    size, root = log.seal(5)
    await cache.follow(log, size)
    log.hold.clear()
    proof = asyncio.create_task(holds(log, cache, 3, size, root))
    await asyncio.sleep(0)
    assert await cache.doubt(cache.reading, b"another root")
    log.hold.set()
    assert await proof


async def test_a_doubt_waits_for_who_takes_in_the_log(log):
    """It would be called damaged otherwise: it goes on behind what was forgotten."""
    cache = TreeCache()
    await cache.follow(log, 900)
    size, root = [log.seal(100) for _ in range(5)][-1]
    other = asyncio.create_task(cache.follow(log, size))
    for _ in range(4):
        await asyncio.sleep(0)
    assert not other.done()
    assert await cache.doubt(cache.reading, b"another root")
    await other
    await cache.follow(log, size)
    assert await holds(log, cache, 3, size, root)


async def test_those_who_doubt_one_tree_have_it_read_once(log):
    """And once in a minute: the log is at fault, and not what was read of it."""
    cache = TreeCache()
    await cache.follow(log, 900)
    reading = cache.reading
    assert [await cache.doubt(reading, b"root") for _ in range(3)] == [True, True, True]
    await cache.follow(log, 900)
    assert log.reads_of_all == 2
    assert not await cache.doubt(cache.reading, b"root")
    assert not await cache.doubt(cache.reading, b"the next root")
    await cache.follow(log, 900)
    assert log.reads_of_all == 2


async def test_many_proofs_beside_a_sealer(log):
    """Each holds, and the log is read from its beginning once."""
    cache = TreeCache()

    async def look(place: int) -> bool:
        size, root = log.tree.size, log.tree.root()
        await asyncio.sleep(0)
        await cache.follow(log, size)
        return await holds(log, cache, place, size, root)

    looks = []
    for place in range(0, 900, 30):
        looks.append(asyncio.create_task(look(place)))
        await asyncio.sleep(0)
        log.seal(3)
    assert all(await asyncio.gather(*looks))
    assert log.reads_of_all == 1
