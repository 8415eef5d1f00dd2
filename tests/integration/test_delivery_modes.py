"""What an application and its clients see of strict mode, and of a disk that is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import FastAPI

import otel_audit
from otel_audit import AuditConfig, ConfigurationError
from otel_audit.policy import Rule


class Shop:
    """An application that remembers what its handlers did, and when."""

    def __init__(self, **settings: Any) -> None:
        self.done: list[str] = []
        self.app = app = FastAPI()
        self.before: Callable[[], None] = lambda: None

        @app.post("/orders/{number}", status_code=201)
        async def create(number: str) -> str:
            self.before()
            self.done.append(number)
            return number

        @app.get("/orders/{number}")
        async def read(number: str) -> str:
            self.done.append(number)
            return number

        @app.post("/boom")
        async def boom() -> None:
            raise RuntimeError("it broke")

        patient = {"batch_interval": 0.01, "strict_timeout": 60}
        otel_audit.instrument(app, config=AuditConfig(**{**patient, **settings}))

    async def ask(self, method: str, path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            return await client.request(method, path)


@pytest.fixture
async def stored_rows(audit_store: str) -> AsyncIterator[Callable[..., Any]]:
    connection = await asyncpg.connect(audit_store)

    async def rows(*, flushed: bool = True) -> list[asyncpg.Record]:
        if flushed:
            assert await asyncio.to_thread(otel_audit.flush, 60)
        return await connection.fetch("SELECT * FROM audit.audit_logs ORDER BY sequence_number")

    yield rows
    await asyncio.to_thread(otel_audit.uninstrument)
    await connection.close()


@contextlib.asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """A server that accepts connections and never answers; its DSN."""
    accepted: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"postgresql://nobody:x@127.0.0.1:{port}/audit"
        await asyncio.to_thread(otel_audit.uninstrument)
    finally:
        server.close()
        for writer in accepted:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await server.wait_closed()


class TestStrict:
    async def test_the_intent_is_stored_before_the_handler_runs(self, audit_store, stored_rows):
        """While the handler works, the database already has the intent; then comes the outcome."""
        shop = Shop(dsn=audit_store, delivery="strict")
        seen: list[str] = []

        @shop.app.post("/look")
        async def look() -> None:
            seen.extend(row["phase"] for row in await stored_rows(flushed=False))

        assert (await shop.ask("POST", "/look")).status_code == 200
        assert seen == ["intent"]
        intent, completed = await stored_rows()
        assert (intent["phase"], intent["outcome"]) == ("intent", "unknown")
        assert (completed["phase"], completed["outcome"]) == ("completed", "success")
        assert intent["action_id"] == completed["action_id"]
        assert intent["id"] != completed["id"]
        assert (intent["http_method"], intent["url_path"]) == ("POST", "/look")

    async def test_many_at_once_each_have_their_intent(self, audit_store, stored_rows):
        """Concurrent requests share round trips; none is without its two rows, none has three."""
        shop = Shop(dsn=audit_store, delivery="strict")
        answers = await asyncio.gather(*(shop.ask("POST", f"/orders/{n}") for n in range(50)))
        assert {answer.status_code for answer in answers} == {201}
        rows = await stored_rows()
        assert sorted(row["phase"] for row in rows) == ["completed"] * 50 + ["intent"] * 50
        assert len({row["action_id"] for row in rows}) == 50
        assert [row["sequence_number"] for row in rows] == list(range(1, 101))

    async def test_without_the_store_the_handler_does_not_run(self, tmp_path, stored_rows):
        """The store is away: 503, a time to try again, a problem document; nothing was done."""
        shop = Shop(
            dsn=f"postgresql://nobody@/audit?host={tmp_path}",
            delivery="strict",
            shutdown_timeout=0.1,
        )
        answer = await shop.ask("POST", "/orders/7")
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["status"] == 503
        assert shop.done == []
        health = otel_audit.health()
        assert health["refused"] == 1
        # what was refused is told when the store is back: the intent, and that it came to nothing
        assert health["queue_depth"] == 2

    async def test_a_store_that_never_answers_is_waited_for_no_longer_than_said(self, stored_rows):
        """A socket that accepts and says nothing: the refusal comes after the time limit."""
        async with black_hole() as dsn:
            shop = Shop(
                dsn=dsn, delivery="strict", strict_timeout=0.3, connect_timeout=100,
                shutdown_timeout=0.1,
            )  # fmt: skip
            began = time.monotonic()
            answers = await asyncio.gather(*(shop.ask("POST", f"/orders/{n}") for n in range(10)))
            assert {answer.status_code for answer in answers} == {503}
            assert 0.25 < time.monotonic() - began < 30
            assert shop.done == []

    async def test_what_was_refused_is_recorded_when_the_store_is_back(
        self, audit_store, postgres, stored_rows
    ):
        """A refusal is in the trail, too: the intent, and a failure with status 503."""
        name = audit_store.partition("?")[0].rpartition("/")[2]
        shop = Shop(dsn=audit_store, delivery="strict")
        await postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            assert (await shop.ask("POST", "/orders/7")).status_code == 503
        finally:
            await postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        intent, refused = await stored_rows()
        assert (intent["phase"], refused["phase"]) == ("intent", "completed")
        assert (refused["outcome"], refused["status_code"]) == ("failure", 503)
        assert refused["error_type"].endswith("StoreUnavailableError")
        assert shop.done == []

    async def test_a_rule_may_ask_for_it(self, audit_store, stored_rows):
        """Strict for what a rule names; all else goes through the spool alone."""
        rule = Rule(level="metadata", paths=("/orders/**",), methods=("POST",), strict=True)
        shop = Shop(dsn=audit_store, policy_rules=(rule,))
        await shop.ask("POST", "/orders/7")
        await shop.ask("POST", "/boom")
        phases = [(row["url_path"], row["phase"]) for row in await stored_rows()]
        assert phases == [
            ("/orders/7", "intent"),
            ("/orders/7", "completed"),
            ("/boom", "completed"),
        ]

    async def test_a_rule_may_except_from_it(self, audit_store, stored_rows):
        """In strict mode a rule may let a route begin without its intent."""
        rule = Rule(level="metadata", paths=("/orders/**",), strict=False)
        shop = Shop(dsn=audit_store, policy_rules=(rule,), delivery="strict")
        await shop.ask("POST", "/orders/7")
        (row,) = await stored_rows()
        assert row["phase"] == "completed"

    def test_it_needs_a_store_that_answers(self):
        """Strict with an exporter that cannot say what it has is refused at the start."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_DELIVERY"):
            AuditConfig(delivery="strict", exporter="console")


class TestWaitingForTheDisk:
    @pytest.fixture
    def synced(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """When the disk had been synced; each sync takes 50 ms."""
        times: list[float] = []
        real = os.fdatasync

        def fdatasync(file: int) -> None:
            time.sleep(0.05)
            real(file)
            times.append(time.monotonic())

        monkeypatch.setattr(os, "fdatasync", fdatasync)
        return times

    @pytest.mark.parametrize(("path", "status"), [("/orders/7", 201), ("/boom", 500)])
    async def test_the_answer_waits_for_the_disk(
        self, audit_store, stored_rows, synced, path, status
    ):
        """The client sees the end of an answer only after the disk has the record of it."""
        shop = Shop(dsn=audit_store, spool_fsync="always")
        began: list[float] = []
        shop.before = lambda: began.append(time.monotonic())
        started = time.monotonic()
        answer = await shop.ask("POST", path)
        ended = time.monotonic()
        assert answer.status_code == status
        # a sync that began after the handler: it ended at least one whole sync later
        assert [at for at in synced if (began or [started])[0] + 0.05 <= at <= ended]
        (row,) = await stored_rows()
        assert row["status_code"] == status

    async def test_by_default_nobody_waits(self, audit_store, stored_rows, monkeypatch):
        """With the interval answers are out while the disk is still busy."""
        let_go, in_time, real = threading.Event(), [], os.fdatasync

        def fdatasync(file: int) -> None:
            in_time.append(let_go.wait(60))
            real(file)

        monkeypatch.setattr(os, "fdatasync", fdatasync)
        shop = Shop(dsn=audit_store)
        for number in range(5):
            assert (await shop.ask("POST", f"/orders/{number}")).status_code == 201
        let_go.set()
        assert len(await stored_rows()) == 5
        assert all(in_time)


class TestTheEventLoop:
    async def test_an_outage_does_not_hold_it_up(self, stored_rows):
        """While the store swallows everything, no turn of the application's loop takes long."""
        longest, last = 0.0, time.monotonic()

        async def watch() -> None:
            nonlocal longest, last
            while True:
                await asyncio.sleep(0.001)
                now = time.monotonic()
                longest, last = max(longest, now - last), now

        async with black_hole() as dsn:
            shop = Shop(dsn=dsn, connect_timeout=100, shutdown_timeout=0.1)
            watching = asyncio.create_task(watch())
            for number in range(100):
                assert (await shop.ask("POST", f"/orders/{number}")).status_code == 201
            watching.cancel()
        # a blocking connect would take its whole time limit
        assert longest < 30
