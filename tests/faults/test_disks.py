"""The spool's disk is full, or read-only: nothing is lost in silence. Needs to mount: root."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from acceptance.servers import uvicorn
from faults.load import settings_for

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="mounting a small file system needs root: run the tests as root"
)

Mount = Callable[..., Path]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a file system in memory: its path."""
    points: list[Path] = []

    def mount(options: str) -> Path:
        point = tmp_path / "disk"
        point.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"this container may not mount: {done.stderr.strip()}")
        points.append(point)
        return point

    yield mount
    for point in points:
        subprocess.run(["umount", "-l", str(point)], check=True)


@pytest.fixture
def away(postgres, audit_store) -> Callable:
    """For a while, nobody gets into the store's database."""
    name = audit_store.partition("?")[0].rpartition("/")[2]

    @asynccontextmanager
    async def kept_out() -> AsyncIterator[None]:
        await postgres.execute(
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
        )
        try:
            yield
        finally:
            await postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    return kept_out


async def health_of(url: str) -> dict:
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        return (await client.get("/healthz/audit")).json()


async def wait_for(load, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


class TestFull:
    async def test_refusing(self, site, audit_store, mounted, away, told):
        """At the end of the disk requests are refused before they do anything; the rest is kept."""
        settings = settings_for(
            audit_store, SPOOL_DIR=str(mounted("size=600k")), SPOOL_SEGMENT_BYTES="65536",
            SPOOL_FULL="refuse", BATCH_INTERVAL="0.01", HEALTH_PATH="/healthz/audit",
        )  # fmt: skip
        with site.serving(settings, forked=False) as server:
            async with site.load(server).running() as load:
                await load.until_answered(20)
                async with away():
                    await wait_for(load, lambda: len(load.refused) > 50)
                # there is room again as soon as the store has taken what waits
                await load.until_more(50)
            verdict = await site.verdict(audit_store, within=60)
            health = await health_of(server.url)
            await asyncio.to_thread(server.stop)
        verdict.assert_sound()
        begun, _ = site.journal
        assert not load.refused & begun
        assert health["refused"] >= len(load.refused)
        assert health["dropped"] == 0
        told(
            "the spool's disk is full under load, the store away, `OTEL_AUDIT_SPOOL_FULL=refuse`",
            verdict, "audited requests get 503 before they do anything; `audit.requests.refused`",
            refused=len(load.refused),
        )  # fmt: skip

    async def test_dropping(self, site, audit_store, mounted, away, told):
        """At the end of disk and memory requests go on, and each loss is counted."""
        settings = settings_for(
            audit_store, SPOOL_DIR=str(mounted("size=600k")), SPOOL_SEGMENT_BYTES="65536",
            SPOOL_FULL="drop", QUEUE_SIZE="50", BATCH_INTERVAL="0.01",
            HEALTH_PATH="/healthz/audit", STREAM_RECORDS="false",
        )  # fmt: skip
        with site.serving(settings) as server:
            async with site.load(server).running() as load:
                await load.until_answered(20)
                async with away():
                    while (await health_of(server.url))["dropped"] < 50:
                        await load.until_more(20)
                await load.until_more(20)
            while (health := await health_of(server.url))["queue_depth"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            first = await site.verdict(audit_store)
            await asyncio.to_thread(server.stop)
            assert "An audit record is lost" in server.output
        assert len(first.lost) == health["dropped"] >= 50
        # of some the spool had the beginning, and the end found no room: told now, as cut down
        with site.serving(settings) as again:
            verdict = await site.verdict(audit_store, within=60, known_lost=first.lost)
            await asyncio.to_thread(again.stop)
        assert verdict.lost <= first.lost
        assert not load.refused
        assert not verdict.twice
        assert not verdict.invented
        told(
            "the spool's disk is full under load, the store away, `OTEL_AUDIT_SPOOL_FULL=drop`",
            verdict, "`audit.records.dropped`, a critical line in the log",
        )  # fmt: skip


class TestReadOnly:
    @pytest.mark.parametrize(("required", "status"), [("true", 78), ("false", None)])
    async def test_at_the_start(self, site, mounted, required, status):
        """A spool that cannot be written shows at the start, with the remedy."""
        settings = settings_for(
            "postgresql://nobody@127.0.0.1:1/audit",
            SPOOL_DIR=str(mounted("size=1m,ro") / "spool"), REQUIRED=required,
        )  # fmt: skip
        with uvicorn(site.path, settings, forked=True) as server:
            if status is None:
                server.wait_until_up(60)
                await asyncio.to_thread(server.stop)
                assert "NOT AUDITED" in server.output
            else:
                assert await asyncio.to_thread(server.process.wait, 60) == status
            assert "OTEL_AUDIT_SPOOL_DIR" in server.output
            assert "read-only" in server.output
