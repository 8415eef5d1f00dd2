"""Recording by hand with a database, inside requests, beside tracing; stored in a real Postgres."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import BackgroundTasks, FastAPI, Request
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import otel_audit
from otel_audit import AuditConfig
from otel_audit._util import ratelimited_log


class Base(DeclarativeBase):
    pass


class Plan(Base):
    __tablename__ = "plans"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    password: Mapped[str] = mapped_column(default="hunter2-canary")


Rows = Callable[[], Any]


@pytest.fixture
async def rows(audit_store: str) -> AsyncIterator[Rows]:
    """Audit into the store; read what it has in the order of the producer's numbers."""
    connection = await asyncpg.connect(audit_store)
    otel_audit.instrument(config=AuditConfig(dsn=audit_store, batch_interval=0.01))

    async def read() -> list[asyncpg.Record]:
        assert await asyncio.to_thread(otel_audit.flush, 60)
        return await connection.fetch("SELECT * FROM audit.audit_logs ORDER BY sequence_number")

    yield read
    await asyncio.to_thread(otel_audit.uninstrument)
    await connection.close()


@pytest.fixture
async def sessions(engine_with: Any) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(await engine_with(Base.metadata), expire_on_commit=False)


async def answer(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        return await client.request(method, path, **options)


class TestChanges:
    async def test_what_a_block_commits_belongs_to_it(self, sessions, rows):
        """The row names the entity, before and after, and that it was committed; no secret."""
        async with sessions() as session, otel_audit.audit("plan.created", actor="job") as action:
            plan = Plan(name="trial")
            session.add(plan)
            action.set_target(plan)
            await session.commit()
        (row,) = await rows()
        assert (row["event_name"], row["outcome"], row["actor_id"]) == (
            "plan.created",
            "success",
            "job",
        )
        assert (row["transaction_outcome"], row["entities"]) == ("committed", ["plan:1"])
        assert (row["target_type"], row["target_id"]) == ("plan", "1")
        assert '"name":[null,"trial"]' in row["payload"]
        assert "hunter2" not in row["payload"]

    async def test_a_rollback_inside_is_a_failure(self, sessions, rows):
        """Without an exception too: what was not committed did not succeed."""
        async with sessions() as session, otel_audit.audit("plan.created"):
            session.add(Plan(name="trial"))
            await session.flush()
            await session.rollback()
        (row,) = await rows()
        assert (row["outcome"], row["transaction_outcome"]) == ("failure", "rolled_back")

    @pytest.mark.parametrize(
        ("how", "transaction", "outcome"),
        [("commit", "committed", "success"), ("rollback", "rolled_back", "failure")],
    )
    async def test_what_ends_after_the_block_is_told_afterwards(
        self, how, transaction, outcome, sessions, rows
    ):
        """While the transaction is open nobody knows; a second record of the action says it."""
        async with sessions() as session:
            async with otel_audit.audit("plan.created", actor="job") as action:
                session.add(Plan(name="trial"))
                await session.flush()
            await getattr(session, how)()
        first, then = await rows()
        assert {str(first["action_id"]), str(then["action_id"])} == {action.action_id}
        assert (first["phase"], first["outcome"]) == ("completed", "unknown")
        assert (first["transaction_outcome"], first["entities"]) == ("unknown", [])
        assert (then["phase"], then["outcome"]) == ("changes", outcome)
        assert then["transaction_outcome"] == transaction
        assert then["actor_id"] == "job"
        assert then["entities"] == (["plan:1"] if how == "commit" else [])

    async def test_what_the_application_says_after_the_block_is_told_with_it(self, sessions, rows):
        """Whoever keeps the action may add to it until its transaction has ended."""
        async with sessions() as session:
            async with otel_audit.audit("plan.created") as action:
                session.add(Plan(name="trial"))
                await session.flush()
            action.add_metadata(checked="late")
            action.set_target(otel_audit.Target(type="plan", id="P-1"))
            action.fail("quota_exceeded")
            await session.commit()
        first, then = await rows()
        assert (first["error_type"], first["target_id"]) == (None, None)
        assert (then["error_type"], then["target_id"]) == ("quota_exceeded", "P-1")
        assert json.loads(then["payload"])["metadata"]["checked"] == "late"

    async def test_each_change_is_told_once_by_the_innermost_action(self, sessions, rows):
        """The outer action does not repeat what an inner one has changed, nor fail with it."""
        async with otel_audit.audit("import.run") as outer, sessions() as session:
            async with otel_audit.audit("plan.imported"):
                session.add(Plan(name="one"))
                await session.commit()
            async with otel_audit.audit("plan.imported"):
                session.add(Plan(name="two"))
                await session.flush()
                await session.rollback()
            session.add(Plan(name="three"))
            await session.commit()
        one, two, whole = await rows()
        assert (one["entities"], one["outcome"]) == (["plan:1"], "success")
        assert (two["entities"], two["outcome"]) == ([], "failure")
        assert (whole["entities"], whole["outcome"]) == (["plan:3"], "success")
        payloads = [json.loads(row["payload"]) for row in (one, two, whole)]
        assert [p.get("parent_action_id") for p in payloads] == [outer.action_id] * 2 + [None]

    async def test_an_uncommitted_session_that_fails_is_a_failure(self, sessions, rows):
        """The exception leaves the session and the block: rolled back, failed, and raised."""

        @otel_audit.audit("plan.created")
        async def create() -> None:
            async with sessions.begin() as session:
                session.add(Plan(name="trial"))
                await session.flush()
                raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            await create()
        (row,) = await rows()
        assert (row["outcome"], row["transaction_outcome"]) == ("failure", "rolled_back")
        assert row["error_type"] == "RuntimeError"


class TestInsideARequest:
    @pytest.fixture
    def app(self, rows: Rows, sessions: Any) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def authenticate(request: Request, call_next: Any) -> Any:
            request.state.user = {"id": "clerk-1", "role": "clerk"}
            request.state.tenant = {"tenant_id": "t-1"}
            return await call_next(request)

        @app.post("/plans")
        async def create() -> dict[str, int]:
            async with sessions() as session, otel_audit.audit("plan.created"):
                session.add(Plan(name="trial"))
                await session.commit()
            return {"id": 1}

        @app.get("/plans")
        def read() -> list[int]:
            otel_audit.emit("plan.exported", target="plan")
            return []

        @app.get("/quiet")
        def quiet() -> list[int]:
            return []

        @app.post("/later")
        async def later(tasks: BackgroundTasks) -> None:
            @otel_audit.audit("mail.sent")
            def send() -> None: ...

            tasks.add_task(send)

        @app.post("/handled")
        async def handled() -> str:
            try:
                with otel_audit.audit("plan.checked"):
                    raise ValueError("no")
            except ValueError:
                return "handled"

        return app

    async def test_it_has_a_record_of_its_own_with_the_request_as_parent(self, app, rows):
        """Who, for whom, from where and the request's id are those of the request."""
        response = await answer(app, "POST", "/plans", headers={"user-agent": "test/1"})
        inner, outer = await rows()
        assert (inner["event_name"], outer["http_method"]) == ("plan.created", "POST")
        assert json.loads(inner["payload"])["parent_action_id"] == str(outer["action_id"])
        assert (inner["actor_id"], inner["actor_role"], inner["tenant_id"]) == (
            "clerk-1",
            "clerk",
            "t-1",
        )
        assert inner["request_id"] == outer["request_id"] == response.headers["x-request-id"]
        assert inner["user_agent"] == "test/1"
        assert inner["entities"] == ["plan:1"]
        assert outer["entities"] == []

    async def test_the_request_is_recorded_if_something_inside_is(self, app, rows):
        """A read that nobody would record is, where its record is the parent of another one."""
        await answer(app, "GET", "/quiet")
        assert await rows() == []
        await answer(app, "GET", "/plans")
        inner, outer = await rows()
        assert json.loads(inner["payload"])["parent_action_id"] == str(outer["action_id"])
        assert (inner["actor_id"], outer["actor_id"]) == ("clerk-1", "clerk-1")
        assert json.loads(outer["payload"])["level"] == "changes"

    async def test_a_background_task_is_inside_too(self, app, rows):
        """What runs after the answer still belongs to the request."""
        await answer(app, "POST", "/later")
        inner, outer = await rows()
        assert inner["event_name"] == "mail.sent"
        assert json.loads(inner["payload"])["parent_action_id"] == str(outer["action_id"])
        assert inner["actor_id"] == "clerk-1"

    async def test_what_the_handler_deals_with_is_no_failure_of_the_request(self, app, rows):
        """The inner action failed; the request did not."""
        assert (await answer(app, "POST", "/handled")).json() == "handled"
        inner, outer = await rows()
        assert (inner["outcome"], outer["outcome"]) == ("failure", "success")


class TestStrict:
    """With strict delivery no block begins before the store has its intent."""

    @pytest.fixture
    async def strict(self, audit_store: str) -> AsyncIterator[Rows]:
        connection = await asyncpg.connect(audit_store)
        await asyncio.to_thread(
            otel_audit.instrument,
            config=AuditConfig(
                dsn=audit_store, batch_interval=60, delivery="strict", strict_timeout=20
            ),
        )

        async def read() -> list[asyncpg.Record]:
            return await connection.fetch("SELECT * FROM audit.audit_logs ORDER BY id")

        yield read
        await asyncio.to_thread(otel_audit.uninstrument)
        await connection.close()

    @pytest.fixture
    async def away(self, tmp_path: Any) -> AsyncIterator[None]:
        """A store that cannot be reached."""
        dsn = f"postgresql://nobody@/audit?host={tmp_path}"
        config = AuditConfig(dsn=dsn, delivery="strict", strict_timeout=1, shutdown_timeout=0)
        otel_audit.instrument(config=config)
        yield
        await asyncio.to_thread(otel_audit.uninstrument)

    async def test_the_store_has_the_intent_when_the_block_runs(self, strict):
        """In a coroutine, and in a thread with a plain `with`; an inner action needs none."""
        async with otel_audit.audit("a.done", actor="x") as action:
            (intent,) = await strict()
            async with otel_audit.audit("inner.done"):
                assert len(await strict()) == 1
        assert (intent["phase"], intent["outcome"], intent["actor_id"]) == (
            "intent",
            "unknown",
            "x",
        )
        assert str(intent["action_id"]) == action.action_id
        seen: list[int] = []

        def work(loop: asyncio.AbstractEventLoop) -> None:
            with otel_audit.audit("b.done"):
                look = asyncio.run_coroutine_threadsafe(strict(), loop)
                seen.append(len([row for row in look.result(10) if row["phase"] == "intent"]))

        await asyncio.to_thread(work, asyncio.get_running_loop())
        assert seen == [2]
        assert await asyncio.to_thread(otel_audit.flush, 60)
        assert len(await strict()) == 5

    async def test_without_the_store_no_block_begins(self, away):
        """Neither in a coroutine nor in a thread nor as a function: an error says why."""
        ran = []

        @otel_audit.audit("c.done")
        async def work() -> None:
            ran.append("function")

        def block() -> None:
            with otel_audit.audit("b.done"):
                ran.append("thread")

        with pytest.raises(otel_audit.StoreUnavailableError, match="not begun"):
            async with otel_audit.audit("a.done"):
                ran.append("coroutine")
        with pytest.raises(otel_audit.StoreUnavailableError, match="not begun"):
            await asyncio.to_thread(block)
        with pytest.raises(otel_audit.StoreUnavailableError, match="not begun"):
            await work()
        assert ran == []
        assert otel_audit.health()["refused"] == 3

    async def test_a_plain_with_in_a_coroutine_holds_nobody_up(self, away, caplog):
        """It cannot wait there, so it goes on without an intent and says what to use instead."""
        ratelimited_log.forget()
        with otel_audit.audit("a.done"):
            pass
        assert "use `async with otel_audit.audit" in caplog.text


class TestTracing:
    async def test_the_row_points_to_the_span_around(self, rows):
        """With a span there the row has its ids; without one it has none."""
        tracer = TracerProvider().get_tracer("test")
        with tracer.start_as_current_span("job") as span:
            otel_audit.emit("a.done")
        otel_audit.emit("b.done")
        traced, untraced = await rows()
        assert traced["trace_id"] == trace.format_trace_id(span.get_span_context().trace_id)
        assert traced["span_id"] == trace.format_span_id(span.get_span_context().span_id)
        assert untraced["trace_id"] is None

    async def test_a_disabled_sdk_changes_nothing(self, rows, monkeypatch):
        """OTEL_SDK_DISABLED turns tracing off, not auditing."""
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        with otel_audit.audit("a.done"):
            pass
        (row,) = await rows()
        assert row["event_name"] == "a.done"


class TestManyAtOnce:
    async def test_none_is_lost_between_threads(self, rows):
        """Four threads with 250 actions each: 1,000 rows, numbered without a gap."""

        def work(name: str) -> None:
            for number in range(250):
                with otel_audit.audit("item.imported", actor=name, metadata={"number": number}):
                    pass

        await asyncio.gather(*(asyncio.to_thread(work, f"w{n}") for n in range(4)))
        found = await rows()
        assert [row["sequence_number"] for row in found] == list(range(1, 1001))
        assert len({row["action_id"] for row in found}) == 1000


class TestFullSpool:
    """The spool at its bound, the store away: a block runs unless `required` is set."""

    async def test_every_block_runs_and_each_record_is_stored_or_counted(
        self, audit_store, tmp_path, caplog
    ):
        """Nothing counts as refused, as nothing was; what is lost counts as dropped."""
        settings: dict[str, Any] = {
            "spool_dir": tmp_path / "spools",
            "spool_segment_bytes": 4096,
            "spool_max_bytes": 16_384,
            "queue_size": 20,
            "stream_records": False,
        }
        away = f"postgresql://nobody@/audit?host={tmp_path}"
        otel_audit.instrument(config=AuditConfig(dsn=away, shutdown_timeout=0, **settings))
        ran = 0
        try:
            for number in range(60):
                with otel_audit.audit("plan.changed", actor="job", metadata={"number": number}):
                    ran += 1
            health = otel_audit.health()
        finally:
            await asyncio.to_thread(otel_audit.uninstrument)
        assert ran == health["emitted"] == 60
        assert health["refused"] == 0
        assert health["dropped"] > 0
        assert health["healthy"] is False
        at_the_end = re.search(r"(\d+) audit records are lost: the store did not", caplog.text)
        lost = health["dropped"] + (int(at_the_end[1]) if at_the_end else 0)
        for label in (tmp_path / "spools").glob("*/*/spool.json"):
            # the store has moved, and the service has no name: the remedy that is documented
            label.unlink()
        otel_audit.instrument(config=AuditConfig(dsn=audit_store, **settings))
        connection = await asyncpg.connect(audit_store)
        try:
            otel_audit.emit("store.mended")
            # adopting comes before a process's own records
            assert await asyncio.to_thread(otel_audit.flush, 60)
            stored = await connection.fetchval(
                "SELECT count(*) FROM audit.audit_logs WHERE event_name = 'plan.changed'"
            )
        finally:
            await connection.close()
            await asyncio.to_thread(otel_audit.uninstrument)
        assert stored + lost == 60
