"""Blocking calls while the interpreter ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from otel_audit._util.loop_thread import WorkerLoop

ENDING = """
import asyncio, atexit, threading
from otel_audit._util.loop_thread import LoopThread

main, ended = threading.main_thread(), threading.Event()

async def work():
    await asyncio.to_thread(len, "before")
    started.set()
    while main.is_alive():
        await asyncio.sleep(0.01)
    found = await asyncio.get_running_loop().getaddrinfo("localhost", 1)
    print(len(found) > 0, await asyncio.to_thread(sum, (1, 2)), flush=True)
    ended.set()

started = threading.Event()
worker = LoopThread("w", work)
atexit.register(lambda: ended.wait(30) and worker.join(30))
worker.start()
started.wait(30)
"""


def run(act: object) -> object:
    with asyncio.Runner(loop_factory=WorkerLoop) as runner:
        return runner.run(act)  # type: ignore[arg-type]


def test_it_works_while_the_interpreter_ends() -> None:
    """Names are looked up and files are written when the main thread is over, at exit."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True 3\n", "")


def test_answers_and_errors_come_back() -> None:
    """As from asyncio's own threads."""

    async def ask() -> None:
        assert await asyncio.to_thread(sum, (1, 2)) == 3
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(divmod, 1, 0)

    run(ask())


def test_a_call_that_raises_stop_iteration_is_over() -> None:
    """A signer of the application's may do that; asyncio's own futures cannot raise it."""

    async def ask() -> None:
        async with asyncio.timeout(60):
            with pytest.raises(RuntimeError, match="StopIteration"):
                await asyncio.to_thread(next, iter(()))

    run(ask())


def test_a_call_that_hangs_does_not_hold_up_the_next() -> None:
    """Several run at a time; one thread is enough for those that come one by one."""
    go = threading.Event()
    seen = set()

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, WorkerLoop)
        hanging = [asyncio.create_task(asyncio.to_thread(go.wait, 60)) for _ in range(3)]
        await asyncio.sleep(0)
        for _ in range(20):
            seen.add(await asyncio.to_thread(threading.get_ident))
            # the thread waits again a moment after its answer
            while loop._idle.empty():  # noqa: ASYNC110 - another thread puts it
                await asyncio.sleep(0.001)
        go.set()
        await asyncio.gather(*hanging)

    run(ask())
    assert len(seen) == 1


def test_its_threads_end_with_it() -> None:
    """Nothing is left behind."""
    before = threading.active_count()
    run(asyncio.to_thread(len, ""))
    until = time.monotonic() + 60
    while threading.active_count() > before:
        assert time.monotonic() < until
        time.sleep(0.01)
