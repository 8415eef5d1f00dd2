"""Anchors that hang, forget, or let nothing be replaced; and what the sealer holds meanwhile."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import threading
import time

import asyncpg
import pytest
from click.testing import CliRunner
from ledger_store import Log
from otel_audit_postgres.ledger import anchors
from otel_audit_postgres.ledger.anchors import (
    AnchorError,
    FileAnchor,
    LogAnchor,
    ObjectAnchor,
    anchors_from,
)
from otel_audit_postgres.ledger.checkpoints import read_checkpoint
from otel_audit_postgres.ledger.health import inspect_ledger
from otel_audit_postgres.ledger.operator_actions import begin
from otel_audit_postgres.ledger.sealer import LedgerError
from otel_audit_postgres.ledger.verify.findings import ProblemKind
from otel_audit_postgres.ledger.verify.verify import verify

from otel_audit.cli.main import cli
from otel_audit.errors import OtelAuditError


class Hanging:
    """An anchor that never answers, and counts how often it was asked."""

    name = "hanging"

    def __init__(self) -> None:
        self.asked = 0

    async def last(self) -> str | None:
        self.asked += 1
        await asyncio.sleep(3600)
        return None

    async def publish(self, note: str) -> None:
        await asyncio.sleep(3600)


class SlowSigner:
    """A key management service that takes its time."""

    def __init__(self, key, seconds: float) -> None:
        self.name, self.key_id, self._key, self._seconds = key.name, key.key_id, key, seconds

    def sign(self, message: bytes) -> bytes:
        time.sleep(self._seconds)
        return self._key.sign(message)


@pytest.fixture
async def impatient(audit_store: str) -> str:
    """A store that ends whoever keeps a transaction open and does nothing."""
    connection = await asyncpg.connect(audit_store)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(
        f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '1500ms'"
    )
    await connection.close()
    return audit_store


def held_by_us() -> str:
    return (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND state = 'idle in transaction' AND state_change < clock_timestamp() - interval '1 s'"
    )


class TestWaiting:
    @pytest.mark.usefixtures("hanging_anchors")
    async def test_for_anchors_that_hang_holds_up_nothing(self, impatient, tmp_path, caplog):
        """Two of three never answer: rows are sealed all the same, the third one is told."""
        log = Log(impatient, tmp_path)
        hanging = [Hanging(), Hanging()]
        sealer = log.sealer(anchors=[*hanging, log.anchor])
        await log.write(12)
        async with asyncio.timeout(60):
            assert (await sealer.seal()).size == 12
        assert read_checkpoint(await log.anchor.last()).size == 12
        # they are not waited for again
        await log.write(3)
        async with asyncio.timeout(60):
            assert (await sealer.seal()).size == 15
        assert [one.asked for one in hanging] == [1, 1]
        assert "hanging does not answer" in caplog.text
        assert sealer.failed_publications >= 2
        await sealer.end_publications(0.1)
        await sealer.close()

    async def test_for_a_signer_holds_no_transaction(self, impatient, tmp_path):
        """A signature takes longer than the server lets a transaction idle: nothing was held."""
        log = Log(impatient, tmp_path)
        await log.write(4)
        sealing = asyncio.create_task(log.seal(signer=SlowSigner(log.key, 2.5)))
        connection = await asyncpg.connect(impatient)
        held = 0
        while not sealing.done():
            held = max(held, await connection.fetchval(held_by_us()))
            await asyncio.sleep(0.05)
        await connection.close()
        assert (await sealing).size == 4
        assert held == 0
        assert (await log.verify()).signed_size == 4

    @pytest.mark.usefixtures("hanging_anchors")
    async def test_one_that_answers_late_still_counts(self, log):
        """An anchor that takes longer than a round waits gets its checkpoints all the same."""
        kept: list[str] = []
        a_round_is_over = threading.Event()  # it is asked on a thread of its own

        class Late:
            name = "late"

            async def last(self):
                await asyncio.to_thread(a_round_is_over.wait, 60)
                return kept[-1] if kept else None

            async def publish(self, note):
                kept.append(note)

        sealer = log.sealer(anchors=[Late()])
        async with asyncio.timeout(60):
            await log.write(1)
            await sealer.seal()
            assert kept == []
            a_round_is_over.set()
            while not kept:
                await log.write(1)
                await sealer.seal()
        await sealer.end_publications()
        await sealer.close()

    async def test_two_sealers_that_plan_the_same_append_it_once(self, log):
        """Both look, both sign; one appends, and the other sees that it came too late."""
        await log.write(5)
        slow = [log.sealer(signer=SlowSigner(log.key, 0.5)) for _ in range(2)]
        done = await asyncio.gather(*(one.seal() for one in slow))
        assert sorted(one.rows for one in done) == [0, 5]
        for one in slow:
            await one.close()
        report = await log.verify()
        assert (report.ok, report.size) == (True, 5)


@pytest.fixture(params=["file", "dir", "object"])
def anchor(request, tmp_path):
    """An anchor, and how to make it forget."""
    place = tmp_path / "worm" / "audit"
    if request.param == "object":
        kept: dict[str, str] = {}
        made = ObjectAnchor("s3://x", lambda: kept.get("note"), lambda n: kept.update(note=n))
        return made, kept.clear
    made = FileAnchor(place, directory=request.param == "dir")
    return made, lambda: shutil.rmtree(tmp_path / "worm")


class TestForgotten:
    async def test_is_an_error_everywhere_until_it_is_told(self, log, anchor):
        """Sealer, verify and doctor say it; nothing is sealed or made anew until a person says so."""
        place, forget = anchor
        for count in (3, 2):
            await log.write(count)
            await log.seal(anchors=[place])
        assert (await log.verify(anchors=[place])).ok
        forget()
        await log.write(1)
        with pytest.raises(LedgerError, match="holds no checkpoint, and the ledger has 5 leaves"):
            await log.seal(anchors=[place])
        report = await log.verify(anchors=[place])
        assert set(report.counts) == {ProblemKind.EMPTIED_ANCHOR}
        found = await inspect_ledger(log.dsn, anchors=[place])
        assert [one.ok for one in found if one.name.startswith("anchor")] == [False]
        assert await place.last() is None
        assert await begin(log.dsn, place) == 5
        await log.seal(anchors=[place])
        assert read_checkpoint(await place.last()).size == 6
        assert (await log.verify(anchors=[place])).ok

    async def test_also_when_nothing_waits(self, log, anchor):
        """It shows in the first round, without a new row."""
        place, forget = anchor
        await log.write(3)
        await log.seal(anchors=[place])
        forget()
        with pytest.raises(LedgerError, match="holds no checkpoint"):
            await log.seal(anchors=[place])

    async def test_also_by_the_sealer_that_began_the_log(self, log, anchor):
        """It has published there itself, and so does not take it for a new one."""
        place, forget = anchor
        sealer = log.sealer(anchors=[place])
        await log.write(3)
        await sealer.seal()
        forget()
        await log.write(1)
        with pytest.raises(LedgerError, match="holds no checkpoint"):
            await sealer.seal()
        await sealer.close()

    async def test_one_that_has_begun_is_not_begun_again(self, log, anchor):
        """What it holds is not written over."""
        place, _ = anchor
        await log.write(3)
        await log.seal(anchors=[place])
        with pytest.raises(OtelAuditError, match="has begun already"):
            await begin(log.dsn, place)

    async def test_one_that_cannot_be_asked_has_not_forgotten(self, log):
        """A log line is no memory."""
        for count in (3, 2):
            await log.write(count)
            await log.seal(anchors=[LogAnchor()])
        assert (await log.verify(anchors=[LogAnchor()])).ok

    async def test_the_address_that_knows_nothing_any_more(self, log, unused_tcp_server):
        """HTTP 404 after it had checkpoints is an error, too."""
        url, kept = unused_tcp_server
        (place,) = anchors_from([url])
        await log.write(3)
        await log.seal(anchors=[place])
        assert b"audit.example.com/log" in kept["note"]
        kept.clear()
        with pytest.raises(LedgerError, match="holds no checkpoint"):
            await log.seal(anchors=[place])

    def test_the_commands(self, audit_store, log, tmp_path, monkeypatch):
        """`seal --once` fails with the remedy, and the remedy helps."""
        monkeypatch.setenv("OTEL_AUDIT_DSN", audit_store)
        monkeypatch.setenv("OTEL_AUDIT_ANCHOR", f"dir:{tmp_path / 'worm'}")
        call = CliRunner().invoke
        asyncio.run(log.write(3))
        assert call(cli, ["seal", "--once"]).exit_code == 0
        shutil.rmtree(tmp_path / "worm")
        refused = call(cli, ["seal", "--once"])
        assert refused.exit_code == 1
        assert "otel-audit begin-anchor" in refused.output
        assert not (tmp_path / "worm").exists()
        assert "FAIL  anchor" in call(cli, ["doctor"]).output
        begun = call(cli, ["begin-anchor", f"dir:{tmp_path / 'worm'}"])
        assert "has the checkpoint of 3 rows" in begun.output
        assert call(cli, ["seal", "--once"]).exit_code == 0


@pytest.fixture
async def unused_tcp_server():
    """A service that keeps what is PUT; its address, and what it keeps."""
    kept: dict[str, bytes] = {}

    async def serve(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            (int(line[15:]) for line in head.lower().split("\r\n") if "content-length" in line), 0
        )
        body = await reader.readexactly(length)
        if head.startswith("PUT"):
            kept["note"] = body
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        elif "note" in kept:
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(kept["note"])
            answer += kept["note"]
        else:
            answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/note", kept
    server.close()
    await server.wait_closed()


class TestDirectory:
    async def test_nothing_in_it_is_replaced_or_left_over(self, log, tmp_path):
        """Each checkpoint is a file, the newest is the last; there are no others."""
        place = FileAnchor(tmp_path / "worm", directory=True)
        for count in (3, 2, 4):
            await log.write(count)
            await log.seal(anchors=[place])
        names = sorted(path.name for path in (tmp_path / "worm").iterdir())
        assert names == [f"checkpoint-{size:015}" for size in (0, 3, 5, 9)]
        assert read_checkpoint(await place.last()).size == 9

    async def test_one_that_was_cut_off_is_passed_over(self, log, tmp_path):
        """The newest whole one counts; the same size is written beside what cannot be replaced."""
        place = FileAnchor(tmp_path / "worm", directory=True)
        await log.write(3)
        await log.seal(anchors=[place])
        note = await place.last()
        for cut in ("", note[:20]):
            (tmp_path / "worm" / "checkpoint-000000000000005").write_text(cut)
            assert await place.last() == note
        await log.write(2)
        await log.seal(anchors=[place])
        assert read_checkpoint(await place.last()).size == 5
        assert (tmp_path / "worm" / "checkpoint-000000000000005.1").exists()

    async def test_latest_of_an_earlier_version(self, log, tmp_path):
        """It counts where it is newer than the others, and is not written any more."""
        place = FileAnchor(tmp_path / "worm", directory=True)
        await log.write(3)
        await log.seal(anchors=[place])
        (tmp_path / "worm" / "checkpoint-000000000000003").rename(tmp_path / "worm" / "latest")
        assert read_checkpoint(await place.last()).size == 3
        await log.write(1)
        await log.seal(anchors=[place])
        assert read_checkpoint(await place.last()).size == 4

    async def test_another_checkpoint_of_the_same_size_is_refused(self, log, tmp_path):
        """What is there stays there."""
        place = FileAnchor(tmp_path / "worm", directory=True)
        await log.write(3)
        await log.seal(anchors=[place])
        note = await place.last()
        other = note.replace(log.key.name, "another.example.com", 1)
        with pytest.raises(AnchorError, match="cannot be written"):
            await place.publish(other)
        assert await place.last() == note

    @pytest.mark.skipif(os.geteuid() != 0, reason="chattr +a needs root")
    async def test_on_a_volume_that_only_takes_more(self, log, tmp_path, caplog):
        """An append-only directory: checkpoints are published, and no temporary file stays."""
        worm = tmp_path / "worm"
        worm.mkdir()
        if subprocess.run(["chattr", "+a", worm], capture_output=True, check=False).returncode:
            pytest.skip("this file system knows no append-only directories")
        try:
            place = FileAnchor(worm, directory=True)
            for count in (3, 2):
                await log.write(count)
                await log.seal(anchors=[place])
            with pytest.raises(PermissionError):
                (worm / "checkpoint-000000000000003").unlink()
            assert read_checkpoint(await place.last()).size == 5
            assert sorted(one.name for one in worm.iterdir()) == [
                f"checkpoint-{size:015}" for size in (0, 3, 5)
            ]
            assert "not published" not in caplog.text
        finally:
            subprocess.run(["chattr", "-a", worm], check=True)


class Blocking:
    """An anchor of somebody's own that blocks its event loop, or drips."""

    name = "blocking"

    def __init__(self, block) -> None:
        self._block = block

    async def last(self) -> str | None:
        await self._block()
        return None

    async def publish(self, note: str) -> None:
        await self._block()


async def sleeps_in_its_loop() -> None:
    time.sleep(60)


async def waits_for_a_thread() -> None:
    await asyncio.to_thread(time.sleep, 60)


async def waits_for_ever() -> None:
    await asyncio.Event().wait()


async def raises_anything() -> None:
    raise ZeroDivisionError


class TestAskedByAPerson:
    @pytest.mark.parametrize(
        ("block", "said"),
        [
            (sleeps_in_its_loop, "has not answered within 0.5 seconds"),
            (waits_for_a_thread, "has not answered within 0.5 seconds"),
            (waits_for_ever, "has not answered within 0.5 seconds"),
            (raises_anything, "failed (ZeroDivisionError)"),
        ],
    )
    async def test_none_holds_up_verify_or_doctor(self, log, monkeypatch, block, said):
        """However it hangs, verify and doctor come to their end and name it; so does begin-anchor."""
        monkeypatch.setattr(anchors, "ANSWERS_WITHIN", 0.5 if "0.5" in said else 30)
        await log.write(3)
        await log.seal()
        anchor = Blocking(block)
        began = time.monotonic()
        report = await verify(log.dsn, keys=[log.key.public], anchors=[anchor, log.anchor])
        assert report.problems == ()
        assert any(f"anchor not checked: blocking {said}" in line for line in report.warnings)
        [found] = [
            one for one in await inspect_ledger(log.dsn, anchors=[anchor])
            if one.name == "anchor blocking"
        ]  # fmt: skip
        assert said in found.detail
        with pytest.raises(OtelAuditError, match=re.escape(said)):
            await begin(log.dsn, anchor)
        # each of them holds up whoever waits for it for a minute
        assert time.monotonic() - began < 50
