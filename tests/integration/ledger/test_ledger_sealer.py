"""Sealing: every row once, in order, by one sealer at a time, and never over a changed past."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import textwrap
import threading
import uuid

import asyncpg
import pytest
from otel_audit_postgres import PostgresSink, init
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger import sealer as sealer_module
from otel_audit_postgres.ledger.anchors import (
    FileAnchor,
    HttpAnchor,
    ObjectAnchor,
    anchors_from,
)
from otel_audit_postgres.ledger.checkpoints import read_checkpoint, read_note
from otel_audit_postgres.ledger.keys import generate, write_key_files
from otel_audit_postgres.ledger.merkle import Frontier
from otel_audit_postgres.ledger.sealer import LedgerError, Sealer
from otel_audit_postgres.ledger.verify.findings import ProblemKind
from otel_audit_postgres.schema.migrations import migrations
from slow_link import behind, slow_link, socket_of
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.errors import ConfigurationError, StoreError, StoreUnavailableError


async def leaves(connection):
    rows = await connection.fetch("SELECT ids, hashes FROM audit.ledger_blocks ORDER BY first")
    return (
        [uuid.UUID(bytes=row["ids"][at : at + 16]) for row in rows for at in range(0, len(row["ids"]), 16)],
        [row["hashes"][at : at + 32] for row in rows for at in range(0, len(row["hashes"]), 32)],
    )  # fmt: skip


class TestSeal:
    async def test_seals_every_row_once(self, log, connection):
        """Each row is a leaf, the queue is empty, the checkpoint says it with a signature."""
        written = await log.write(10) + await log.write(5)
        done = await log.seal()
        assert (done.rows, done.size, done.faulty) == (15, 15, ())
        ids, hashes = await leaves(connection)
        assert sorted(map(str, ids)) == sorted(written)
        assert await connection.fetchval("SELECT count(*) FROM audit.ledger_queue") == 0
        note = await connection.fetchval("SELECT note FROM audit.ledger_checkpoints")
        checkpoint = read_checkpoint(note)
        assert checkpoint.size == 15
        assert checkpoint.root == Frontier().extended(hashes).root()
        assert checkpoint.origin == log.key.name
        assert read_note(note).signed_by([log.key.public]) == [log.key.public]
        assert await log.anchor.last() == note

    async def test_does_nothing_where_nothing_waits(self, log, connection):
        """No rows, no checkpoint."""
        await log.seal()
        assert await connection.fetchval("SELECT count(*) FROM audit.ledger_checkpoints") == 0
        assert await log.anchor.last() is None

    async def test_goes_on_where_another_sealer_ended(self, log, connection):
        """A new sealer reads the tree and appends to it."""
        for count in (3, 1, 7):
            await log.write(count)
            await log.seal()
        _, hashes = await leaves(connection)
        note = await connection.fetchval(
            "SELECT note FROM audit.ledger_checkpoints ORDER BY size DESC LIMIT 1"
        )
        assert read_checkpoint(note).root == Frontier().extended(hashes).root()
        assert len(hashes) == 11

    async def test_seals_large_rows_in_blocks_of_bytes(self, log, connection):
        """Rows of half a megabyte: a block has no more of them than can be read at once, and one at least."""
        await log.write(30, metadata={"text": "x" * 500_000})
        sealer = log.sealer(block_bytes=5_000_000)
        rounds = []
        while (done := await sealer.seal()).rows:
            rounds.append((done.rows, done.more))
        await sealer.close()
        assert sum(rows for rows, _ in rounds) == 30
        assert [more for _, more in rounds] == [True] * (len(rounds) - 1) + [False]
        sizes = [row[0] for row in await connection.fetch(
            "SELECT octet_length(ids) / 16 FROM audit.ledger_blocks ORDER BY first"
        )]  # fmt: skip
        assert max(sizes) == 10
        assert (await log.verify()).problems == ()

    async def test_a_round_that_fails_is_tried_with_less(self, log):
        """Where the server cuts off what reads too many rows, fewer are read the next time."""
        await log.write(40)
        sealer = log.sealer()
        tried = []
        real = ledger_queries.rows

        def refusing(connection, ids):
            tried.append(len(ids))
            if len(ids) > 10:
                raise asyncpg.QueryCanceledError("too many at once")
            return real(connection, ids)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ledger_queries, "rows", refusing)
            for _ in range(2):
                with pytest.raises(StoreUnavailableError):
                    await sealer.seal()
                assert "took too long" in str(sealer.failure)
            done = await sealer.seal()
        assert tried == [8, 32, 8, 12, 8, 2]
        assert (done.rows, done.more, sealer.failure) == (10, True, None)
        await sealer.close()

    async def test_seals_in_blocks_of_the_size_wanted(self, log, connection):
        """What is more than one batch becomes several blocks."""
        await log.write(25)
        await log.seal(batch=10)
        sizes = await connection.fetch("SELECT size FROM audit.ledger_checkpoints ORDER BY size")
        assert [row[0] for row in sizes] == [10, 20, 25]

    async def test_seals_a_late_commit(self, log, connection):
        """A row whose transaction commits after later rows were sealed is sealed then."""
        await log.write(1)
        async with connection.transaction():
            await connection.execute(
                "INSERT INTO audit.audit_logs SELECT (jsonb_populate_record(a, jsonb_build_object("
                "'id', $1::text))).* FROM audit.audit_logs a",
                uuid7(),
            )
            await log.write(3)
            assert (await log.seal()).size == 4
        assert (await log.seal()).size == 5

    async def test_takes_no_row_that_comes_twice(self, log):
        """Delivering again queues nothing."""
        record, sink = a_record(record_id=uuid7()), PostgresSink(log.dsn)
        await sink.write([record])
        await sink.write([record, record])
        await sink.close()
        assert (await log.seal()).size == 1

    async def test_works_without_a_key(self, log, connection):
        """Unsigned checkpoints are notes without signature lines."""
        await log.write(2)
        assert (await log.seal(signer=None)).size == 2
        note = await connection.fetchval("SELECT note FROM audit.ledger_checkpoints")
        assert read_note(note).signatures == ()
        assert read_checkpoint(note).origin.startswith("otel-audit/")

    async def test_leaves_the_work_to_one(self, log, connection):
        """While somebody else seals, nothing is done."""
        await log.write(1)
        async with connection.transaction():
            assert await connection.fetchval("SELECT audit.try_to_lead()")
            sealer = log.sealer()
            done = await sealer.seal()
            assert (done.rows, done.leads) == (0, False)
        assert (await sealer.seal()).rows == 1
        await sealer.close()

    @pytest.mark.parametrize(
        ("tampering", "word"),
        [
            ("UPDATE audit.audit_logs SET actor_id = 'nobody'", "changed"),
            ("UPDATE audit.audit_logs SET recorded_at = recorded_at - interval '1 h'", "changed"),
            ("DELETE FROM audit.audit_logs", "deleted"),
        ],
    )
    async def test_tells_what_was_changed_before(self, log, administrator, caplog, tampering, word):
        """A row changed in the seconds before sealing is named, and sealed as it was."""
        (record_id,) = await log.write(1)
        await administrator.does(tampering)
        assert (await log.seal()).faulty == (record_id,)
        assert f"were {word} before they were sealed; the first is {record_id}" in caplog.text
        problem = (await log.verify()).first_bad
        assert problem.record_id == record_id

    async def test_is_not_confused_by_a_clock_that_goes_back(self, log, administrator):
        """Rows of an earlier time that come later are later leaves; all verifies."""
        await log.write(3)
        await log.seal()
        for back in ("1 hour", "2 days", "1 minute"):
            await administrator.connection.execute(
                "INSERT INTO audit.audit_logs SELECT (jsonb_populate_record(a, jsonb_build_object("
                "'recorded_at', a.recorded_at - $1::text::interval, 'tenant_id', $1::text, "
                "'content_hash', a.content_hash))).* FROM audit.audit_logs a LIMIT 1", back,
            )  # fmt: skip
        done = await log.seal()
        assert done.size == 6
        later = await log.write(1)
        await log.seal()
        report = await log.verify()
        assert set(report.counts) <= {
            ProblemKind.CHANGED,
            ProblemKind.INSERTED,
        }  # tenants that no payload has
        assert report.size == 7
        assert later[0] not in [problem.record_id for problem in report.problems]

    async def test_can_have_its_key_elsewhere(self, log, monkeypatch):
        """A signer is anything that has a name, an id, and signs: a key management service."""
        asked = []

        class Service:
            name, key_id = log.key.name, log.key.key_id

            def sign(self, message):
                asked.append(message)
                return log.key.sign(message)

        await log.write(2)
        await log.seal(signer=Service())
        # the log's beginning, for the anchor, and its first checkpoint
        assert [message.split(b"\n")[1] for message in asked] == [b"2", b"0"]
        assert (await log.verify()).signed_size == 2

    async def test_offers_its_numbers(self, log, tmp_path):
        """Rows, size, lag and failed publications are OpenTelemetry metrics."""
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from otel_audit_postgres.ledger.metrics import publish

        (tmp_path / "file").write_text("")
        away = FileAnchor(tmp_path / "file" / "below", directory=False)
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader])
        sealer = log.sealer(batch=4, anchors=[away])
        publish(provider.get_meter("x"), sealer)
        await log.write(6)
        await sealer.seal()
        await sealer.close()
        seen = {
            metric.name: metric.data.data_points[0].value
            for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
        }
        provider.shutdown()
        assert seen["audit.seal.rows"] == seen["audit.seal.size"] == 4
        assert seen["audit.seal.lag"] > 0
        assert seen["audit.seal.publish_failures"] >= 1
        assert seen["audit.seal.faulty_rows"] == 0


class TestRefusal:
    async def test_of_a_ledger_whose_tail_was_cut(self, sealed, administrator):
        """A tree smaller than the anchor's is not signed."""
        await administrator.does("DELETE FROM audit.ledger_checkpoints WHERE size > 11")
        await administrator.does("DELETE FROM audit.ledger_blocks WHERE first >= 11")
        await sealed.write(20)
        with pytest.raises(LedgerError, match="has seen 23 leaves, the ledger has 11"):
            await sealed.seal()

    async def test_also_when_nothing_waits(self, sealed, administrator):
        """The anchor's larger checkpoint is never overwritten by a smaller one."""
        await administrator.does("DELETE FROM audit.ledger_checkpoints WHERE size > 11")
        await administrator.does("DELETE FROM audit.ledger_blocks WHERE first >= 11")
        kept = await sealed.anchor.last()
        with pytest.raises(LedgerError, match="has seen 23 leaves"):
            await sealed.seal()
        assert await sealed.anchor.last() == kept

    async def test_of_another_history(self, sealed, administrator, connection):
        """A tree as large, but different, is not signed, whoever signed it."""
        await administrator.does("TRUNCATE audit.ledger_blocks, audit.ledger_checkpoints")
        await administrator.does(
            "DELETE FROM audit.audit_logs WHERE id = (SELECT min(id::text)::uuid "
            "FROM audit.audit_logs)"
        )
        await sealed.write(1)
        await administrator.does(
            "INSERT INTO audit.ledger_queue (id, tenant_id, content_hash, recorded_at) "
            "SELECT id, tenant_id, content_hash, recorded_at FROM audit.audit_logs a "
            "WHERE NOT EXISTS (SELECT FROM audit.ledger_queue q WHERE q.id = a.id)"
        )
        await sealed.seal(anchors=[])
        with pytest.raises(LedgerError, match="not those that the anchor"):
            await sealed.seal()

    async def test_of_an_anchor_of_another_log(self, log, tmp_path):
        """Two logs that share an anchor by mistake are told so."""
        other = FileAnchor(tmp_path / "other", directory=False)
        await log.write(1)
        await log.seal()
        note = (await log.anchor.last()).replace(log.key.name, "elsewhere", 1)
        await other.publish(note)
        with pytest.raises(LedgerError, match="another log, elsewhere"):
            await log.seal(anchors=[other])

    async def test_while_it_lives(self, sealed, administrator):
        """A running sealer remembers without any anchor what it has sealed."""
        sealer = sealed.sealer(anchors=[])
        await sealer.seal()
        await administrator.does("DELETE FROM audit.ledger_checkpoints WHERE size > 11")
        await administrator.does("DELETE FROM audit.ledger_blocks WHERE first >= 11")
        await sealed.write(1)
        with pytest.raises(LedgerError, match="run `otel-audit verify`"):
            await sealer.seal()
        await sealer.close()

    async def test_of_a_store_without_ledger(self, database):
        """A store of an earlier version is told what to do, by sealer and sink."""
        connection = await asyncpg.connect(database)
        await connection.execute(f"CREATE SCHEMA audit; {migrations()[0].sql}")
        await connection.execute("INSERT INTO audit.schema_version VALUES (1, 'audit_store')")
        with pytest.raises(StoreError, match="otel-audit migrate"):
            await Sealer(database).seal()
        sink = PostgresSink(database)
        with pytest.raises(StoreError, match=r"version 1.*`otel-audit migrate`"):
            await sink.check()
        await sink.close()
        await connection.execute(
            "INSERT INTO audit.audit_logs (id, action_id, phase, occurred_at, duration_ms, event_name, "
            "action, outcome, actor_id, actor_type, transaction_outcome, schema_version, payload, "
            "content_hash) VALUES (gen_random_uuid(), 'a', 'completed', now(), 0, 'e', 'READ', "
            "'success', 'x', 'user', 'none', '1', '{}', sha256('{}'))"
        )
        await connection.close()
        assert (await init(database)).applied == tuple(step.name for step in migrations()[1:])
        sealer = Sealer(database)
        assert (await sealer.seal()).size == 1
        await sealer.close()

    async def test_says_that_nobody_answers(self):
        """No server: unavailable."""
        with pytest.raises(StoreUnavailableError):
            await Sealer("postgresql://postgres@127.0.0.1:1/x").seal()


class TestAnchors:
    async def test_do_not_hold_up_sealing(self, log, tmp_path, caplog):
        """An anchor that is away is reported, and gets the checkpoint when it is back."""
        (tmp_path / "blocked").write_text("a file where a directory is wanted")
        anchor = FileAnchor(tmp_path / "blocked", directory=True)
        sealer = log.sealer(anchors=[anchor, log.anchor])
        await log.write(2)
        assert (await sealer.seal()).size == 2
        assert sealer.failed_publications >= 1
        assert "not published" in caplog.text
        assert read_checkpoint(await log.anchor.last()).size == 2
        (tmp_path / "blocked").unlink()
        await sealer.seal()
        assert read_checkpoint(await anchor.last()).size == 2
        assert (tmp_path / "blocked" / "checkpoint-000000000000002").is_file()
        await sealer.close()

    @pytest.mark.usefixtures("hanging_anchors")
    async def test_that_block_their_loop_do_not_hold_up_sealing(self, log):
        """Somebody's anchor that never awaits is left out; it gets the checkpoint once it can."""
        may_go_on = threading.Event()

        class Blocking(ObjectAnchor):
            async def publish(self, note):
                may_go_on.wait(60)
                await super().publish(note)

        kept = {}
        anchor = Blocking("mine", lambda: kept.get("note"), lambda note: kept.update(note=note))
        sealer = log.sealer(anchors=[anchor, log.anchor])
        await log.write(2)
        assert (await sealer.seal()).size == 2
        assert read_checkpoint(await log.anchor.last()).size == 2
        await log.write(1)
        assert (await sealer.seal()).size == 3
        assert sealer.failed_publications >= 1
        assert read_checkpoint(await log.anchor.last()).size == 3
        may_go_on.set()
        await sealer.end_publications()
        await sealer.seal()
        await sealer.close()
        assert read_checkpoint(kept["note"]).size == 3

    async def test_may_be_an_address(self, log, tmp_path):
        """A service that keeps what is PUT holds the checkpoint; 503 is a failure like another."""
        kept = {}

        async def serve(reader, writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                (int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length")), 0,
            )  # fmt: skip
            body = await reader.readexactly(length)
            if kept.get("down"):
                answer = b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            elif head.startswith("PUT"):
                kept["note"] = body
                answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            elif "note" in kept:
                size = str(len(kept["note"])).encode()
                answer = (
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " + size + b"\r\n\r\n"
                )
                answer += kept["note"]
            else:
                answer = b"HTTP/1.1 404 None\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            writer.write(answer)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        anchor = HttpAnchor(f"http://127.0.0.1:{port}/note?token=secret")
        assert "secret" not in anchor.name
        sealer = log.sealer(anchors=[anchor])
        await log.write(1)
        kept["down"] = True
        assert (await sealer.seal()).size == 1
        assert sealer.failed_publications == 1
        kept["down"] = False
        await sealer.seal()
        assert read_checkpoint(kept["note"].decode()).size == 1
        report = await log.verify(anchors=[anchor])
        assert report.ok
        await sealer.close()
        server.close()

    async def test_may_be_an_object_store(self, log):
        """Two callables over its own client are enough; a failing one is reported and retried."""
        kept = {}

        def put(note):
            if kept.pop("down", None):
                raise OSError("503")
            kept["note"] = note

        anchor = ObjectAnchor("s3://audit/log", lambda: kept.get("note"), put)
        kept["down"] = True
        sealer = log.sealer(anchors=[anchor])
        await log.write(1)
        await sealer.seal()
        assert (sealer.failed_publications, kept) == (1, {})
        await sealer.seal()
        await sealer.close()
        assert read_checkpoint(kept["note"]).size == 1
        assert (await log.verify(anchors=[anchor])).ok

    async def test_may_be_named_in_the_settings(self, tmp_path, monkeypatch):
        """python:module:name is called; what is no anchor, or cannot be made, is named."""
        (tmp_path / "my_anchor.py").write_text(
            "from otel_audit_postgres.ledger.anchors import ObjectAnchor\n"
            "def make(): return ObjectAnchor('mine', lambda: None, print)\n"
            "def wrong(): return 5\n"
            "def broken(): raise RuntimeError('no credentials')\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        (anchor,) = anchors_from(["python:my_anchor:make"])
        assert anchor.name == "mine"
        for place, message in (
            ("my_anchor:wrong", "returned int"),
            ("my_anchor:broken", r"could not be made \[RuntimeError at .*my_anchor.py:4\]"),
            ("my_anchor:none", "could not be made"),
            ("my_anchor", "module:name"),
        ):
            with pytest.raises(ConfigurationError, match=message) as raised:
                anchors_from([f"python:{place}"])
            assert "OTEL_AUDIT_ANCHOR" in str(raised.value)


class TestWithinAnApplication:
    async def test_seals_beside_the_writer(self, log, tmp_path, monkeypatch):
        """With OTEL_AUDIT_SEAL the process that records seals too, to the last row."""
        from otel_audit.config import AuditConfig
        from otel_audit.runtime import Runtime

        write_key_files(log.key, tmp_path / "key")
        runtime = Runtime(
            AuditConfig(
                dsn=log.dsn, seal=True, seal_interval=0.05, signing_key_file=tmp_path / "key",
                anchor=[f"file:{tmp_path / 'anchor'}"],
            )
        )  # fmt: skip
        try:
            await runtime.started()
            await log.write(5)
            async with asyncio.timeout(60):
                while (await log.verify()).waiting:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await log.write(2)
            await runtime.stopping()
        finally:
            await asyncio.to_thread(runtime.close)
        report = await log.verify()
        assert (report.ok, report.size, report.signed_size) == (True, 7, 7)

    async def test_says_why_it_does_not(self, tmp_path, log, caplog):
        """A key that others may read is refused, and the application goes on."""
        from otel_audit.config import AuditConfig
        from otel_audit.runtime import Runtime

        write_key_files(log.key, tmp_path / "key")
        (tmp_path / "key").chmod(0o644)
        runtime = Runtime(AuditConfig(dsn=log.dsn, seal=True, signing_key_file=tmp_path / "key"))
        try:
            await runtime.started()
            await runtime.stopping()
        finally:
            await asyncio.to_thread(runtime.close)
        assert (
            "This process does not seal: OTEL_AUDIT_SIGNING_KEY_FILE: others may read"
            in caplog.text
        )

    async def test_complains_where_the_role_may_not(self, log, postgres, caplog):
        """A writer that may not seal records all the same."""
        from otel_audit_postgres.ledger.sealer_thread import SealingThread

        role = f"plain_{uuid.uuid4().hex[:8]}"
        await postgres.execute(f"CREATE ROLE {role} LOGIN")
        dsn = postgres.dsn(log.dsn.partition("?")[0].rpartition("/")[2], role)
        sealing = SealingThread(Sealer(dsn), 0.05)
        sealing.start()
        async with asyncio.timeout(60):
            while "Sealing is not possible" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        sealing.stop(5)


class TestRun:
    async def test_seals_until_told_to_stop(self, log):
        """Rows are sealed within the interval; stopping ends it cleanly."""
        stop, sealer = asyncio.Event(), log.sealer(batch=10)
        running = asyncio.create_task(sealer.run(stop, interval=0.05))
        await log.write(25)
        async with asyncio.timeout(60):
            while not (last := await log.anchor.last()) or read_checkpoint(last).size < 25:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        stop.set()
        await running
        await sealer.close()

    async def test_waits_for_a_server_that_is_away(self, caplog):
        """Unavailable is tried again, and said once."""
        stop = asyncio.Event()
        running = asyncio.create_task(
            Sealer("postgresql://postgres@127.0.0.1:1/x").run(stop, interval=0.01)
        )
        async with asyncio.timeout(60):
            while "Sealing waits" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        stop.set()
        await running
        assert caplog.text.count("Sealing waits") == 1


class TestMany:
    @pytest.mark.slow
    async def test_writers_and_killed_leaders_leave_no_row_unsealed(self, log, tmp_path):
        """Sixteen write, sealers are killed at random: every row is sealed, and all verifies."""
        write_key_files(log.key, tmp_path / "key")
        program = textwrap.dedent(f"""
            import asyncio
            from pathlib import Path
            from otel_audit_postgres.ledger.anchors import FileAnchor
            from otel_audit_postgres.ledger.keys import read_key_file
            from otel_audit_postgres.ledger.sealer import Sealer
            key = read_key_file(Path({str(tmp_path / "key")!r}), "key")
            anchor = FileAnchor(Path({str(tmp_path / "anchor")!r}), directory=False)
            sealer = Sealer({log.dsn!r}, signer=key, anchors=[anchor], batch=50)
            asyncio.run(sealer.run(asyncio.Event(), interval=0.01))
        """)

        def start():
            return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)

        async def write(number):
            for _ in range(12):
                await log.write(10, producer_id=f"writer-{number}")

        dice, sealers = random.Random(7), [start(), start()]
        writers = asyncio.gather(*(write(number) for number in range(16)))
        kills = 0
        while not writers.done() or kills < 4:
            await asyncio.sleep(dice.uniform(0.3, 0.9))
            victim = dice.randrange(2)
            sealers[victim].send_signal(signal.SIGKILL)
            sealers[victim].communicate()
            sealers[victim] = start()
            kills += 1
        await writers
        for sealer in sealers:
            sealer.kill()
            _, errors = sealer.communicate()
            assert b"LedgerError" not in errors
        done = await log.seal()
        assert done.size == 16 * 12 * 10
        report = await log.verify()
        assert report.problems == ()
        assert (report.rows_checked, report.waiting) == (1920, 0)

    async def test_keys_can_be_changed(self, log):
        """A new key goes on with the log under its old name; verifying takes both."""
        await log.write(3)
        await log.seal()
        new = generate("audit.example.com/log")
        await log.write(2)
        await log.seal(signer=new)
        report = await log.verify(keys=[log.key.public, new.public])
        assert report.ok
        assert report.signed_size == 5
        assert not (await log.verify()).ok


class TestStoreThatStandsStill:
    """It accepts connections and statements, and answers nothing: a stopped server, a cut link."""

    async def test_is_a_failure(self, log, monkeypatch):
        """In time, with a lag by our own clock; and a new connection seals on."""
        silent = asyncio.Event()
        await log.write(3)
        async with slow_link(socket_of(log.dsn), silent=silent) as port:
            monkeypatch.setattr(sealer_module, "ANSWER", 2.0)
            sealer = Sealer(behind(log.dsn, port), signer=log.key, anchors=[log.anchor])
            await sealer.seal()
            silent.set()
            async with asyncio.timeout(60):
                with pytest.raises(StoreUnavailableError, match="has not answered for 2 s"):
                    await sealer.seal()
            assert "has not answered" in sealer.failure
            assert sealer.lag >= 2.0
            sealer._dsn = log.dsn
            await log.write(2)
            assert (await sealer.seal()).rows == 2
            assert sealer.failure is None
            assert sealer.lag < 2.0
            await sealer.close()

    @pytest.mark.parametrize("other", ["leads", "seals meanwhile"])
    async def test_is_none_any_more_once_another_one_seals(self, log, connection, other):
        """The round that only follows has gone well, so the outage is over."""
        sealer = log.sealer()
        await log.write(1)
        await sealer.seal()
        await sealer.close()
        own, sealer._dsn = sealer._dsn, "postgresql://nobody@127.0.0.1:1/nowhere"
        with pytest.raises(StoreUnavailableError):
            await sealer.seal()
        assert sealer.failure is not None
        sealer._dsn = own
        await log.write(1)
        if other == "leads":
            async with connection.transaction():
                assert await connection.fetchval("SELECT audit.try_to_lead()")
                done = await sealer.seal()
        else:
            planned = sealer._planned

            async def overtaken(*args):
                plan = await planned(*args)
                await log.seal()
                return plan

            sealer._planned = overtaken
            done = await sealer.seal()
        assert (done.rows, done.leads, sealer.failure) == (0, False, None)
        await sealer.close()

    async def test_within_a_transaction_as_well(self, log, monkeypatch):
        """The answer to its ROLLBACK is not waited for, and the first error is told."""
        silent = asyncio.Event()
        await log.write(3)
        async with slow_link(socket_of(log.dsn), silent=silent) as port:
            monkeypatch.setattr(sealer_module, "ANSWER", 2.0)
            sealer = Sealer(behind(log.dsn, port), signer=log.key, anchors=[log.anchor])
            queued = sealer_module.ledger_queries.queued

            async def falls_silent(*args):
                silent.set()
                return await queued(*args)

            monkeypatch.setattr(sealer_module.ledger_queries, "queued", falls_silent)
            async with asyncio.timeout(30):
                with pytest.raises(StoreUnavailableError, match="has not answered for 2 s"):
                    await sealer.seal()
            await sealer.close()

    async def test_does_not_hold_up_who_stops(self, log):
        """The round under way has some seconds, and is cut off then."""
        silent, stop = asyncio.Event(), asyncio.Event()
        async with slow_link(socket_of(log.dsn), silent=silent) as port:
            sealer = Sealer(behind(log.dsn, port), signer=log.key, anchors=[log.anchor])
            running = asyncio.create_task(sealer.run(stop, interval=0.01))
            async with asyncio.timeout(60):
                while not sealer.size:
                    await log.write(1)
                    await asyncio.sleep(0.02)
            silent.set()
            await asyncio.sleep(0.2)
            stop.set()
            async with asyncio.timeout(30):
                await running
            await sealer.close()
