"""Streams as real processes that are killed at any moment: nothing is missing, nothing jumps."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import preloaded
import pytest
from ledger_store import Log
from otlp_receiver import Answer
from ports import free_port
from stream_receiver import lines_of, receiving

pytestmark = pytest.mark.slow

ROUNDS = 12


class Streams:
    """The command in a directory of its own."""

    def __init__(self, dsn: str, directory: Path, table: str) -> None:
        self.directory = directory
        self.environment = {**os.environ, "OTEL_AUDIT_DSN": dsn}
        (directory / "streams.toml").write_text(f"[streams.siem]\n{table}\n")

    def command(self, *options: str) -> list[str]:
        return [
            "stream", "run", "--config", "streams.toml", "--state", "state",
            "--from", "start", "--yes", "--interval", "0.05", *options,
        ]  # fmt: skip

    @contextmanager
    def running(self) -> Iterator[preloaded.Process]:
        process = preloaded.Process(
            self.command(), cwd=self.directory, env=self.environment,
            stdout=self.directory / "log.txt",
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0

    def once(self) -> subprocess.CompletedProcess[str]:
        return preloaded.run(
            *self.command("--once"), cwd=self.directory, env=self.environment, timeout=120
        )


def in_order_without_gap(events: list[dict[str, Any]], count: int) -> None:
    """Each leaf comes once, or again with the same id; a leaf is new only right after the last."""
    highest, ids = -1, {}
    for event in events:
        leaf = event["leaf"]
        assert leaf <= highest + 1, f"{leaf} comes after {highest}"
        assert ids.setdefault(leaf, event["id"]) == event["id"]
        highest = max(highest, leaf)
    assert highest >= count - 1


async def wait_until(condition: Any, within: float = 60.0) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", ["file", "otlp", "webhook"])
async def test_a_stream_that_is_killed_again_and_again(audit_store, tmp_path, kind):
    """SIGKILL at seeded moments, while rows are written and sealed beside it."""
    chance = random.Random(f"kill {kind}")
    log = Log(audit_store, tmp_path)
    path = tmp_path / "out.ndjson"
    with receiving() as receiver:
        tables = {
            "file": f'kind = "file"\npath = "{path}"\nbatch = 20',
            "otlp": f'kind = "otlp"\nendpoint = "{receiver.url}"\nbatch = 20',
            "webhook": (
                f'kind = "webhook"\nurl = "{receiver.url}/"\nsecret_env = ["HOOK"]\n'
                "allow_private = true"
            ),
        }
        streams = Streams(audit_store, tmp_path, tables[kind])
        streams.environment["HOOK"] = "whsec_" + "A" * 44
        for _ in range(ROUNDS):
            await log.write(chance.randrange(1, 60))
            await log.seal()
            # before it starts: it may have sent all by the time that this process has its turn
            have = len(receiver.stored)
            with streams.running() as process:
                more = chance.random() < 0.7
                if more:  # kill amid the sending; else while it starts
                    await wait_until(
                        lambda have=have: (
                            (path.stat().st_size if path.exists() else 0) > 0
                            if kind == "file"
                            else len(receiver.stored) > have
                        )
                    )
                await asyncio.sleep(chance.random() * (0.05 if more else 1.0))
                process.kill()
                process.wait()
        until = time.monotonic() + 60
        # the server may not have noticed yet that the killed one is gone
        while "another process sends it" in (done := streams.once()).stderr:
            assert time.monotonic() < until
        assert done.returncode == 0, done.stderr
        assert streams.once().returncode == 0
        events = lines_of(path) if kind == "file" else receiver.stored
    connection = await asyncpg.connect(audit_store)
    size = await connection.fetchval("SELECT max(size) FROM audit.ledger_checkpoints")
    await connection.close()
    in_order_without_gap(events, size)


async def test_two_processes_of_one_name(audit_store, tmp_path):
    """One sends and the other stands by; when the first is killed the other goes on."""
    log = Log(audit_store, tmp_path)
    with receiving() as receiver:
        table = f'kind = "otlp"\nendpoint = "{receiver.url}"\nbatch = 10'
        streams = Streams(audit_store, tmp_path, table)
        await log.write(30)
        await log.seal()
        with streams.running() as first:
            # whoever begins to send is the one that is killed
            await wait_until(lambda: receiver.stored)
            with streams.running():
                for _ in range(4):
                    await log.write(30)
                    await log.seal()
                await wait_until(lambda: len(receiver.stored) >= 150)
                first.kill()
                first.wait()
                await log.write(30)
                await log.seal()
                await wait_until(lambda: len({one["leaf"] for one in receiver.stored}) >= 181)
        in_order_without_gap(receiver.stored, 181)
        # standing by is not sending: what was sent twice is at most the killed one's last batch
        assert len(receiver.stored) <= 181 + 10


async def test_a_destination_that_is_away_for_a_while(audit_store, tmp_path):
    """Nothing listens, then a server that answers 500, 429, and hangs; then it works."""
    log = Log(audit_store, tmp_path)
    port = free_port()
    table = f'kind = "otlp"\nendpoint = "http://127.0.0.1:{port}"\nbatch = 25\ntimeout = 0.5'
    streams = Streams(audit_store, tmp_path, table)
    await log.write(100)
    await log.seal()
    with streams.running() as process:
        await wait_until(lambda: "no connection" in (tmp_path / "log.txt").read_text())
        with receiving(port) as receiver:
            receiver.next = [
                Answer(status=500), Answer(status=429, headers={"retry-after": "1"}),
                Answer(after=1.0), Answer(status=503),
            ]  # fmt: skip
            await log.write(20)
            await log.seal()
            await wait_until(lambda: len({one["leaf"] for one in receiver.stored}) >= 121)
            in_order_without_gap(receiver.stored, 121)
        assert process.poll() is None


async def test_lag_at_a_hundred_rows_a_second(audit_store, tmp_path):
    """From the database's clock at the row to the line in the file: five seconds at the most."""
    log = Log(audit_store, tmp_path)
    path = tmp_path / "out.ndjson"
    streams = Streams(audit_store, tmp_path, f'kind = "file"\npath = "{path}"')
    await log.seal()
    sealer = log.sealer()

    async def longest_lag() -> float:
        seen: dict[str, float] = {}
        written: dict[str, float] = {}

        def look() -> None:
            for event in lines_of(path):
                seen.setdefault(event["id"], time.monotonic())

        until = time.monotonic() + 8
        while time.monotonic() < until:
            for record_id in await log.write(50):
                written[record_id] = time.monotonic()
            await sealer.seal()
            look()
            await asyncio.sleep(0.5)
        await sealer.seal()
        await wait_until(lambda: look() or written.keys() <= seen.keys())
        return max(seen[one] - written[one] for one in written)

    with streams.running():
        # not how long a process takes to start
        await log.write(1)
        await sealer.seal()
        await wait_until(lambda: lines_of(path))
        lag = await longest_lag()
        # a machine that stood still for seconds is no lag of ours; one that is ours is there again
        for _ in range(2):
            if lag > 5.0:
                lag = await longest_lag()
    await sealer.close()
    assert lag <= 5.0
