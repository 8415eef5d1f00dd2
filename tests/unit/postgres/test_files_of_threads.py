"""Files that a thread writes are closed when it has ended, and not when its task is cancelled."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from otel_audit_postgres.archive import write_month
from otel_audit_postgres.exports import write

DONE = ["begins", "has written", "closed"]
CANCELLATIONS = pytest.mark.parametrize("times", [1, 2])


class Files:
    """What a thread writes into; it says what happens to it."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def write(self, *_):
        self.log.append("begins")
        time.sleep(0.2)  # a slow disk
        self.log.append("has written")

    def close(self):
        self.log.append("closed")


async def cancelled(task, times):
    """Cancel it while its thread writes, as often as somebody is impatient."""
    await asyncio.sleep(0.05)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.3)


@CANCELLATIONS
async def test_an_archived_month(times, tmp_path, monkeypatch):
    """The Parquet file's end is not written under the thread that adds rows."""
    files = Files()
    files.complete = files.write

    async def pieces(_):
        piece = SimpleNamespace(first=0, count=0, is_whole=lambda: True)
        yield piece

    async def execute(_):
        pass

    monkeypatch.setattr(write_month, "_Writer", lambda *_: files)
    monkeypatch.setattr(write_month, "_stretch", lambda piece, *_: write_month._Stretch(piece, ()))
    monkeypatch.setattr(write_month.ledger_queries, "pieces", pieces)
    connection = SimpleNamespace(execute=execute)
    month = write_month.date(2025, 1, 1)
    await cancelled(
        asyncio.create_task(write_month.write_month(connection, month, tmp_path, lambda *_: "all")),
        times,
    )
    assert files.log == DONE


@CANCELLATIONS
@pytest.mark.parametrize("batches", [1, 2])
async def test_an_export(times, batches, monkeypatch):
    """Neither its data nor its proof, whether more rows come or these were the last."""
    files = Files()
    files.abandon = files.close

    class Reading:
        def __init__(self, *_):
            pass

        async def batches(self, _):
            for number in range(batches):
                yield [SimpleNamespace(leaf=number, is_as_sealed=True)], number

    monkeypatch.setattr(write, "_target", lambda *_: files)
    monkeypatch.setattr(
        write, "ProofFile", lambda _: SimpleNamespace(add=lambda _: None, abandon=lambda: None)
    )
    monkeypatch.setattr(write, "_Reading", Reading)
    work = write._write(
        None, None, "csv", SimpleNamespace(draft=None, proof_draft=None),
        SimpleNamespace(size=2), SimpleNamespace(meet=lambda _: None), lambda *_: None,
    )  # fmt: skip
    await cancelled(asyncio.create_task(work), times)
    assert files.log == DONE


async def test_what_the_thread_raises_is_raised(tmp_path):
    """Through the shield as well, and once."""
    files = Files()

    def fails(_):
        raise OSError("no room")

    files.complete = fails
    pipeline = write_month._Pipeline(None, files, None)
    pipeline._begin(files.complete, [])
    with pytest.raises(OSError, match="no room"):
        await pipeline._wait_for_writer()
    await pipeline.stop()
