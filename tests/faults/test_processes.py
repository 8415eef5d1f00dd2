"""What clients saw answered against what is stored, while processes are killed and stopped."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time

import asyncpg
import pytest
from faults.load import rows_of, settings_for
from otel_audit_postgres.query.gaps import find_gaps
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.delivery.spool import FrameKind, open_spool
from otel_audit.record import to_json

SCRIPT = """
import os, sys, time
import otel_audit
from fastapi import FastAPI

otel_audit.instrument(FastAPI())
otel_audit.emit("job.begun", actor="parent")
exec(os.environ["THEN"])
"""


class TestKilled:
    @pytest.mark.parametrize(("seed", "fsync"), [(1, "interval"), (2, "never"), (3, "always")])
    async def test_sigkill_under_load(self, site, audit_store, told, seed, fsync):
        """Killed at any moment: what was answered is stored once, what was cut down says so."""
        settings = {**settings_for(audit_store, SPOOL_FSYNC=fsync), "WORK": "0.05"}
        with site.serving(settings, forked=fsync != "never") as server:
            async with site.load(server, clients=12).running() as load:
                await load.until_answered(random.Random(seed).randint(50, 250))
                await site.kill_at_work(server)
        with site.serving(settings) as server:
            verdict = await site.verdict(audit_store, within=60)
            server.stop()
        assert verdict.assert_sound().cut_down
        killed, orderly = await find_gaps(audit_store)
        assert (killed.ended, killed.lost_at_least) == (False, 0)
        assert (orderly.ended, orderly.missing) == (True, ())
        told(
            f"process killed (SIGKILL) under load, `OTEL_AUDIT_SPOOL_FSYNC={fsync}`",
            verdict, "a stream without its end; interrupted actions with outcome `unknown`",
        )  # fmt: skip

    async def test_strict_sigkill_under_load(self, site, audit_store, told):
        """In strict mode the intent of each action that began is stored, too."""
        settings = {**settings_for(audit_store, DELIVERY="strict"), "WORK": "0.05"}
        with site.serving(settings) as server:
            async with site.load(server).running() as load:
                await load.until_answered(100)
                server.stop(signal.SIGKILL)
        intents = {r["request_id"] for r in await rows_of(audit_store) if r["phase"] == "intent"}
        begun, _ = site.journal
        assert begun <= intents
        with site.serving(settings) as server:
            verdict = await site.verdict(audit_store, within=60)
            server.stop()
        verdict.assert_sound()
        told(
            "strict: process killed (SIGKILL) under load", verdict,
            "as above; the intent of each was stored before it began",
        )  # fmt: skip


class TestStopped:
    async def test_sigterm_under_load(self, site, audit_store, told):
        """Told to stop under load: everything answered is stored when the process has ended."""
        with site.serving(settings_for(audit_store)) as server:
            async with site.load(server).running() as load:
                await load.until_answered(150)
                await asyncio.to_thread(server.stop)
        verdict = (await site.verdict(audit_store)).assert_sound()
        (stream,) = await find_gaps(audit_store)
        assert (stream.missing, stream.unnumbered, stream.ended) == ((), 0, True)
        told("SIGTERM under load", verdict, "the stream has an end and no hole")

    @pytest.mark.slow
    async def test_four_workers(self, site, audit_store, told):
        """Four processes under load, told to stop: four whole streams, nothing lost."""
        options = ("--workers", "4", "--timeout-worker-healthcheck", "60")
        with site.serving(settings_for(audit_store), *options) as server:
            async with site.load(server).running() as load:
                await load.until_answered(300)
                # the others have answered them, where one of the four is still starting
                while len(await find_gaps(audit_store)) < 4:
                    await load.until_more()
                await asyncio.to_thread(server.stop, timeout=60)
        verdict = (await site.verdict(audit_store)).assert_sound()
        streams = await find_gaps(audit_store)
        assert len(streams) == 4
        assert all(stream.ended and not stream.missing for stream in streams)
        told("SIGTERM under load, four workers", verdict, "as above, four times")


class TestScripts:
    """A script without a server: however it ends, what it did is stored."""

    def run(self, site, dsn: str, then: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
        return subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={
                **clean, **settings_for(dsn), "THEN": then,
                "OTEL_AUDIT_SPOOL_DIR": str(site.path / "spool"),
            },
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    async def events(self, dsn: str) -> list[str]:
        connection = await asyncpg.connect(dsn)
        try:
            return [
                row["told"]
                for row in await connection.fetch(
                    "SELECT event_name || ' ' || actor_id AS told FROM audit.audit_logs "
                    "WHERE event_name NOT LIKE 'audit.%' ORDER BY 1"
                )
            ]
        finally:
            await connection.close()

    @pytest.mark.parametrize(
        ("then", "status"),
        [("pass", 0), ("sys.exit(3)", 3), ("raise ValueError", 1)],
        ids=["end", "exit", "exception"],
    )
    async def test_the_interpreter_ends(self, site, audit_store, then, status):
        """Returning, exiting, an exception: delivered before the process has ended."""
        assert self.run(site, audit_store, then).returncode == status
        assert await self.events(audit_store) == ["job.begun parent"]
        (stream,) = await find_gaps(audit_store)
        assert (stream.ended, stream.missing) == (True, ())

    async def test_it_ends_without_a_word(self, site, audit_store):
        """os._exit runs nothing: what is in the spool is delivered by the next start."""
        self.run(site, audit_store, "os._exit(0)")
        assert self.run(site, audit_store, "time.sleep(1)").returncode == 0
        assert await self.events(audit_store) == ["job.begun parent"] * 2

    async def test_a_fork_records_for_itself(self, site, audit_store):
        """Parent and child each deliver what they did, as producers of their own."""
        then = (
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    otel_audit.emit('job.begun', actor='child'); sys.exit(0)\n"
            "os.waitpid(pid, 0)\n"
            "otel_audit.emit('job.ended', actor='parent')\n"
        )
        assert self.run(site, audit_store, then).returncode == 0
        assert await self.events(audit_store) == [
            "job.begun child", "job.begun parent", "job.ended parent",
        ]  # fmt: skip
        streams = await find_gaps(audit_store)
        assert len(streams) == 2
        assert all(stream.ended and not stream.missing for stream in streams)

    async def test_a_fork_that_is_left_without_a_word(self, site, audit_store):
        """A child of multiprocessing ends with os._exit: the next start delivers what it did."""
        then = (
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    otel_audit.emit('job.begun', actor='child'); os._exit(0)\n"
            "os.waitpid(pid, 0)\n"
        )
        self.run(site, audit_store, then)
        self.run(site, audit_store, "time.sleep(1)")
        assert await self.events(audit_store) == [
            "job.begun child", "job.begun parent", "job.begun parent",
        ]  # fmt: skip


async def test_a_backlog_of_ten_thousand(site, audit_store, told):
    """What a dead process left, 10,000 records, is delivered whole and once."""
    spool = open_spool(site.path / "spool", service="shop", fsync="never")
    for _ in range(10_000):
        record = a_record(record_id=uuid7(), event_name="order.created")
        spool.append(FrameKind.CLOSED, record.record_id, to_json(record))
    spool.close()
    connection = await asyncpg.connect(audit_store)
    stored = 0
    with site.serving(settings_for(audit_store)) as server:
        until = time.monotonic() + 200
        # the spool is removed after the last COMMIT
        while stored < 10_000 or spool.path.exists():
            assert time.monotonic() < until
            await asyncio.sleep(0.2)
            stored = await connection.fetchval(
                "SELECT count(*) FROM audit.audit_logs WHERE event_name = 'order.created'"
            )
        server.stop()
    assert stored == await connection.fetchval(
        "SELECT count(DISTINCT id) FROM audit.audit_logs WHERE event_name = 'order.created'"
    )
    await connection.close()
    assert stored == 10_000
    assert not spool.path.exists()
    told.count(
        "a dead process's backlog of 10,000 records", stored, "a log line that says how many"
    )


class TestClock:
    async def test_the_clock_jumps_under_load(self, site, audit_store, told):
        """An hour back, a day ahead, five years ahead, and home again: no record is lost."""
        (site.path / "app.py").write_text(CLOCK + (site.path / "app.py").read_text())
        with site.serving(settings_for(audit_store)) as server:
            async with site.load(server).running() as load:
                for jump in (0, -3600, 86_400, 5 * 365 * 86_400, 0):
                    (site.path / "clock").write_text(str(jump))
                    await load.until_more(30)
            await asyncio.to_thread(server.stop)
        verdict = (await site.verdict(audit_store)).assert_sound()
        (stream,) = await find_gaps(audit_store)
        assert (stream.missing, stream.ended) == ((), True)
        connection = await asyncpg.connect(audit_store)
        rows = await connection.fetch(
            "SELECT sequence_number, duration_ms, occurred_at, recorded_at FROM audit.audit_logs "
            "WHERE request_id IS NOT NULL ORDER BY sequence_number"
        )
        await connection.close()
        assert len({row["sequence_number"] for row in rows}) == len(rows)
        assert all(0 <= row["duration_ms"] < 60_000 for row in rows)
        hours = {round((r["occurred_at"] - r["recorded_at"]).total_seconds() / 3600) for r in rows}
        assert hours == {0, -1, 24, 5 * 365 * 24}
        told(
            "the clock jumps back an hour, ahead a day and five years, under load", verdict,
            "`occurred_at` against `recorded_at`, which is the store's; numbers go on by one",
        )  # fmt: skip


CLOCK = """
import time
from pathlib import Path

_real_ns, _real = time.time_ns, time.time

def _jump():
    try:
        return int(Path("clock").read_text() or 0)
    except (FileNotFoundError, ValueError):
        return 0

time.time_ns = lambda: _real_ns() + _jump() * 1_000_000_000
time.time = lambda: _real() + _jump()
"""
