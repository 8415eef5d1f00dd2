"""Whose change it was: tasks that outlive their action, and work that is handed over."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from sqlalchemy import Engine, create_engine, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import otel_audit
from otel_audit import ActionReference, AuditConfig
from otel_audit.record import AuditRecord
from otel_audit.testing import Recorded, recorded


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    by: Mapped[str]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'notes.db'}")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


class Shop:
    """An application whose first request starts a worker, which serves all that follow."""

    def __init__(self, engine: Engine) -> None:
        self.app = FastAPI()
        self.engine = engine
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.worker: asyncio.Task[None] | None = None
        self.app.post("/jobs")(self.enqueue)

    async def enqueue(self, request: Request) -> None:
        user = request.headers["x-user"]
        request.state.user = user
        request.state.tenant = f"tenant-of-{user}"
        self.start()
        done = asyncio.Event()
        await self.queue.put((user, otel_audit.current_action(), done))
        await done.wait()

    def start(self) -> None:
        if self.worker is None:
            self.worker = asyncio.create_task(self.work())

    async def work(self) -> None:
        while True:
            user, reference, done = await self.queue.get()
            self.do(user, reference)
            done.set()

    def do(self, user: str, _reference: ActionReference | None) -> None:
        with Session(self.engine) as session:
            session.add(Note(by=user))
            session.commit()

    def serve(self, *users: str, records: Any = None) -> Recorded:
        """Have each user call once, one after the other."""

        async def calls() -> None:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                for user in users:
                    await client.post("/jobs", headers={"x-user": user})
            assert self.worker is not None
            self.worker.cancel()

        with recorded(self.app, config=AuditConfig(exporter="none")) as found:
            asyncio.run(calls())
        return found


def writers(records: Any) -> list[tuple[str, str]]:
    """Who is told to have written, and for whom it was."""
    return [
        (record.actor.id if record.actor.type == "user" else record.actor.type, wrote(change))
        for record in records
        for change in record.changes
    ]


def wrote(change: Any) -> str:
    return str(change.values["by"][1] if change.values else change.parameters["by"])


def of_process(records: Recorded) -> list[AuditRecord]:
    return records.find(actor__type="system")


class TestWorkerThatARequestStarted:
    def test_later_users_are_not_the_first(self, engine):
        """What comes after the action belongs to the process, which names where it began."""
        records = Shop(engine).serve("ann", "bob", "cat")
        assert writers(records) == [("ann", "ann"), ("system", "bob"), ("system", "cat")]
        ann = records.find(actor__id="ann")[0]
        for record in of_process(records):
            assert record.event_name == "database.changed"
            assert record.parent_action_id == ann.action_id
            assert record.metadata == {"audit.begun_in": ann.action_id}
            assert (record.tenant, record.request) == (None, None)

    def test_it_need_not_have_worked_for_the_first(self, engine):
        """A worker that has not written yet is no more the first user's."""

        class Lazy(Shop):
            async def enqueue(self, request: Request) -> None:
                if request.headers["x-user"] == "ann":
                    request.state.user = "ann"
                    self.start()
                else:
                    await super().enqueue(request)

        shop = Lazy(engine)
        shop.app = FastAPI()
        shop.app.post("/jobs")(shop.enqueue)
        assert writers(shop.serve("ann", "bob")) == [("system", "bob")]

    def test_a_statement_of_core(self, engine):
        """The same for what no flush writes."""

        class Core(Shop):
            def do(self, user: str, _reference: ActionReference | None) -> None:
                with self.engine.begin() as connection:
                    connection.execute(insert(Note).values(by=user))

        assert writers(Core(engine).serve("ann", "bob")) == [("ann", "ann"), ("system", "bob")]

    def test_a_connection_that_lives_long(self, engine):
        """A transaction belongs to the action in which it began, a connection to none."""

        class Long(Shop):
            async def work(self) -> None:
                with self.engine.connect() as connection:
                    while True:
                        user, _, done = await self.queue.get()
                        connection.execute(insert(Note).values(by=user))
                        connection.commit()
                        done.set()

        assert writers(Long(engine).serve("ann", "bob")) == [("ann", "ann"), ("system", "bob")]

    def test_autocommit(self, engine):
        """In autocommit mode each statement is a transaction."""

        class Auto(Shop):
            async def work(self) -> None:
                with self.engine.connect() as opened:
                    connection = opened.execution_options(isolation_level="AUTOCOMMIT")
                    while True:
                        user, _, done = await self.queue.get()
                        connection.execute(insert(Note).values(by=user))
                        done.set()

        assert writers(Auto(engine).serve("ann", "bob")) == [("ann", "ann"), ("system", "bob")]

    def test_a_block_of_its_own(self, engine):
        """Recorded by hand without an actor it is the process, and names where it began."""

        class Blocks(Shop):
            def do(self, user: str, reference: ActionReference | None) -> None:
                with otel_audit.audit("note.made"):
                    super().do(user, reference)

        records = Blocks(engine).serve("ann", "bob")
        assert writers(records.find("note.made")) == [("ann", "ann"), ("system", "bob")]
        ann = records.find("job.created", actor__id="ann")[0]
        assert {one.parent_action_id for one in records.find("note.made")} == {ann.action_id}

    def test_what_it_says_of_itself_is_not_said_of_the_first(self, engine):
        """After the action `set_actor` and the like do nothing, as outside any."""

        class Says(Shop):
            def do(self, user: str, reference: ActionReference | None) -> None:
                if user == "bob":
                    otel_audit.set_actor("mallory")
                    otel_audit.set_tenant("elsewhere")
                    assert otel_audit.current_action() is None
                super().do(user, reference)

        records = Says(engine).serve("ann", "bob")
        assert "mallory" not in [record.actor.id for record in records]

    def test_they_are_recorded_where_what_no_action_contains_is_not(self, engine):
        """An action has begun it: that is not outside of all."""
        shop = Shop(engine)
        config = AuditConfig(exporter="none", orm_outside_actions=False)

        async def calls() -> None:
            transport = httpx.ASGITransport(shop.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                for user in ("ann", "bob"):
                    await client.post("/jobs", headers={"x-user": user})
            assert shop.worker is not None
            shop.worker.cancel()

        with recorded(shop.app, config=config) as records:
            asyncio.run(calls())
            with Session(engine) as session:
                session.add(Note(by="script"))
                session.commit()
        assert writers(records) == [("ann", "ann"), ("system", "bob")]

    def test_detached(self, engine):
        """A worker that is begun outside of the action has nothing of it."""

        class Detached(Shop):
            def start(self) -> None:
                with otel_audit.detached():
                    super().start()

        records = Detached(engine).serve("ann", "bob")
        assert writers(records) == [("system", "ann"), ("system", "bob")]
        assert [record.parent_action_id for record in of_process(records)] == [None, None]

    @pytest.mark.parametrize("as_text", [False, True])
    def test_handed_over(self, engine, as_text):
        """With a reference each job is its own user's."""

        class HandedOver(Shop):
            def do(self, user: str, reference: ActionReference | None) -> None:
                assert reference is not None
                parent = reference.to_json() if as_text else reference
                with otel_audit.audit("note.made", parent=parent):
                    super().do(user, reference)

        records = HandedOver(engine).serve("ann", "bob")
        assert writers(records) == [("ann", "ann"), ("bob", "bob")]
        for user in ("ann", "bob"):
            made = records.one("note.made", actor__id=user)
            request = records.one("job.created", actor__id=user)
            assert made.parent_action_id == request.action_id
            assert made.tenant == request.tenant
            assert made.request is not None
            assert made.request.id == request.request.id
            assert made.source == request.source


class TestTransactionThatOutlivesItsAction:
    def test_it_belongs_to_the_action_it_began_in(self, engine):
        """What is written in it later, by the same task, does too."""
        with recorded(config=AuditConfig(exporter="none")) as records, Session(engine) as session:
            context = contextvars.copy_context()
            with otel_audit.audit("note.made", actor="ann"):
                context = contextvars.copy_context()
                session.add(Note(by="ann"))
                session.flush()
            context.run(lambda: (session.add(Note(by="ann")), session.commit()))
        assert [record.phase for record in records] == ["completed", "changes"]
        assert writers(records) == [("ann", "ann"), ("ann", "ann")]

    def test_it_need_not_have_written_before(self, engine):
        """That it has begun is enough."""
        with recorded(config=AuditConfig(exporter="none")) as records, Session(engine) as session:
            with otel_audit.audit("note.made", actor="ann"):
                context = contextvars.copy_context()
                session.scalars(select(Note)).all()
            context.run(lambda: (session.add(Note(by="ann")), session.commit()))
        assert writers(records) == [("ann", "ann")]

    def test_the_one_after_it_does_not(self, engine):
        """The next transaction of the same session is another one."""
        with recorded(config=AuditConfig(exporter="none")) as records, Session(engine) as session:
            with otel_audit.audit("note.made", actor="ann"):
                context = contextvars.copy_context()
                session.add(Note(by="ann"))
                session.commit()
            context.run(lambda: (session.add(Note(by="bob")), session.commit()))
        assert writers(records) == [("ann", "ann"), ("system", "bob")]

    def test_many_changes_after_it_are_described(self, engine):
        """A task that lives long does not live on the budget of the action that began it."""
        with recorded(config=AuditConfig(exporter="none")) as records, Session(engine) as session:
            with otel_audit.audit("note.made", actor="ann"):
                context = contextvars.copy_context()
            text = "x" * 2_000

            def work() -> None:
                for _ in range(400):
                    session.add(Note(by=text))
                    session.commit()

            context.run(work)
        assert {wrote(change) for record in records for change in record.changes} == {text}


class TestOtherWays:
    def test_a_thread_without_a_context(self, engine):
        """`run_in_executor` copies no context: the reference does."""
        references: list[ActionReference | None] = []

        def work(reference: ActionReference | None) -> None:
            references.append(otel_audit.current_action())
            with (
                otel_audit.audit("note.made", parent=reference),
                Session(engine) as session,
            ):
                session.add(Note(by="ann"))
                session.commit()

        async def main() -> None:
            with otel_audit.audit("import.run", actor="ann", tenant="t-1"):
                loop = asyncio.get_running_loop()
                reference = otel_audit.current_action()
                await loop.run_in_executor(None, work, reference)

        with recorded(config=AuditConfig(exporter="none")) as records:
            asyncio.run(main())
        assert references == [None]
        made = records.one("note.made")
        assert (made.actor.id, made.tenant.id) == ("ann", "t-1")
        assert made.parent_action_id == records.one("import.run").action_id

    def test_a_pool_whose_thread_a_request_has_started(self, engine):
        """A thread that was given the context of an action is left by it, too."""
        with (
            recorded(config=AuditConfig(exporter="none")) as records,
            ThreadPoolExecutor(1) as pool,
        ):

            def work(user: str) -> None:
                with Session(engine) as session:
                    session.add(Note(by=user))
                    session.commit()

            with otel_audit.audit("import.run", actor="ann"):
                context = contextvars.copy_context()
                pool.submit(context.run, work, "ann").result()
            pool.submit(context.run, work, "bob").result()
        assert writers(records) == [("ann", "ann"), ("system", "bob")] or writers(records) == [
            ("system", "bob"),
            ("ann", "ann"),
        ]

    @pytest.mark.parametrize("parent", ["", "{}", '{"action_id": "x"}', "null", 7, object()])
    def test_a_parent_that_is_none(self, parent):
        """What cannot be read is nobody known, and never the process."""
        with recorded(config=AuditConfig(exporter="none")) as records:
            with otel_audit.audit("note.made", parent=parent):
                pass
            otel_audit.emit("note.seen", parent=parent)
        for record in records:
            assert (record.actor.id, record.actor.reason) == ("anonymous", "parent_unreadable")
            assert record.parent_action_id is None

    def test_an_actor_beside_it(self):
        """What is said in the block wins over the reference."""
        with recorded(config=AuditConfig(exporter="none")) as records:
            with otel_audit.audit("import.run", actor="ann", tenant="t-1"):
                reference = otel_audit.current_action()
            with otel_audit.audit("note.made", actor="bob", parent=reference):
                pass
        made = records.one("note.made")
        assert (made.actor.id, made.tenant.id) == ("bob", "t-1")

    def test_a_reference_as_text(self):
        """It survives a message, whole."""
        with (
            recorded(config=AuditConfig(exporter="none")),
            otel_audit.audit(
                "import.run",
                actor={"id": "ann", "role": "clerk"},
                tenant={"id": "7", "slug": "acme"},
            ),
        ):
            reference = otel_audit.current_action()
        assert reference is not None
        assert ActionReference.from_json(reference.to_json()) == reference
        assert json.loads(reference.to_json())["tenant"] == {"id": "7", "slug": "acme"}

    def test_outside_any_action(self):
        """There is nothing to name."""
        with recorded(config=AuditConfig(exporter="none")):
            assert otel_audit.current_action() is None
            with otel_audit.detached():
                assert otel_audit.current_action() is None

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_child_that_a_request_forks(self, engine):
        """It is no part of the request, which its parent answers."""
        app = FastAPI()
        read, write = os.pipe()

        @app.post("/jobs")
        def fork(request: Request) -> None:
            request.state.user = "ann"
            engine.dispose()
            child = os.fork()
            if child == 0:
                try:
                    with Session(engine) as session:
                        session.add(Note(by="bob"))
                        session.commit()
                    os.write(write, json.dumps(writers(records)).encode())
                finally:
                    os._exit(0)
            os.waitpid(child, 0)

        with recorded(app, config=AuditConfig(exporter="none")) as records:

            async def call() -> None:
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                    await client.post("/jobs")

            asyncio.run(call())
        os.close(write)
        with os.fdopen(read) as told:
            assert json.load(told) == [["system", "bob"]]
        assert writers(records) == []

    def test_a_plain_thread(self, engine):
        """`threading.Thread` has no context of the action: it belongs to the process."""

        def work() -> None:
            with Session(engine) as session:
                session.add(Note(by="bob"))
                session.commit()

        with recorded(config=AuditConfig(exporter="none")) as records:
            with otel_audit.audit("import.run", actor="ann"), otel_audit.detached():
                thread = threading.Thread(target=work)
                thread.start()
                thread.join()
            assert writers(records) == [("system", "bob")]
