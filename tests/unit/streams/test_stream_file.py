"""The file of a stream, as whoever follows it sees it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import signal
import threading
import uuid

import pytest

from otel_audit.streams.destination import Encoded
from otel_audit.streams.file import FileDestination


def events(*leaves, size=200):
    return [
        Encoded(leaf, uuid.UUID(int=leaf), b'{"leaf":%d,"text":"%s"}\n' % (leaf, b"x" * size))
        for leaf in leaves
    ]


def leaves_of(path):
    return [json.loads(line)["leaf"] for line in path.read_bytes().splitlines()]


@pytest.fixture
async def destination(tmp_path):
    found = FileDestination(tmp_path / "out.ndjson", 1 << 40)
    yield found
    await found.close()


@pytest.fixture
def at_most():
    """Bounds the size of files that this process writes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def bound(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield bound
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


async def test_a_batch_is_one_write(destination, monkeypatch):
    """Nobody sees a line of it without those before."""
    written = []
    write = os.write

    def counted(opened, text):
        written.append(len(text))
        return write(opened, text)

    monkeypatch.setattr(os, "write", counted)
    batch = events(*range(500))
    assert (await destination.send(batch)).done == 500
    assert written == [sum(len(event.content) for event in batch)]


async def test_lines_that_are_whole_stay_where_there_is_no_more_room(
    destination, tmp_path, at_most
):
    """They are acknowledged, and the half line behind them is taken away: nothing comes twice."""
    path = tmp_path / "out.ndjson"
    size = len(events(1)[0].content)
    await destination.send(events(0, 1))
    at_most(4 * size + size // 2)
    told = await destination.send(events(2, 3, 4, 5))
    assert told.done == 2
    assert os.strerror(errno.EFBIG) in str(told.stopped)
    assert leaves_of(path) == [0, 1, 2, 3]
    told = await destination.send(events(4, 5))
    assert told.done == 0
    assert leaves_of(path) == [0, 1, 2, 3]
    at_most(1 << 30)
    assert (await destination.send(events(4, 5))).done == 2
    assert leaves_of(path) == [0, 1, 2, 3, 4, 5]


async def test_what_a_follower_has_read_is_never_taken_back(destination, tmp_path):
    """Who takes what ends with a newline, and waits for the rest, reads each line once."""
    path = tmp_path / "out.ndjson"
    path.touch()
    read, done = [], threading.Event()

    def follow():
        with path.open("rb") as file:
            rest = b""
            while not done.is_set() or rest or file.tell() < path.stat().st_size:
                *lines, rest = (rest + file.read(4096)).split(b"\n")
                read.extend(json.loads(line)["leaf"] for line in lines)

    follower = asyncio.create_task(asyncio.to_thread(follow))
    for start in range(0, 1000, 50):
        await destination.send(events(*range(start, start + 50)))
    done.set()
    await follower
    assert read == list(range(1000))


async def test_a_path_that_is_no_file_is_said(tmp_path):
    """A pipe holds nothing: it is no place where an event is safe."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    destination = FileDestination(path, 1000)
    told = await destination.send(events(0))
    await destination.close()
    assert told.done == 0
    assert "cannot be written" in str(told.stopped)
