"""Transactional mode on a real database: what is committed has its entry, and nothing else has."""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import Depends, FastAPI
from otel_audit_postgres.outbox import PostgresOutbox, init_outbox, inspect_outbox
from sqlalchemy import (
    ForeignKey,
    String,
    create_engine,
    delete,
    event,
    insert,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import otel_audit
from otel_audit import AuditConfig, ConfigurationError, StoreError


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(String(40))
    balance: Mapped[int] = mapped_column(default=0)
    password: Mapped[str | None]
    parent_id: Mapped[int | None] = mapped_column(
        ForeignKey("account.id", deferrable=True, initially="DEFERRED")
    )


@dataclass
class Bank:
    """An application with a database of its own, and the audit store beside it."""

    engine: AsyncEngine
    superuser: str
    store: str
    relay_dsn: str

    async def rows(self, statement: str) -> list[Any]:
        connection = await asyncpg.connect(self.superuser)
        try:
            return await connection.fetch(statement)
        finally:
            await connection.close()

    async def waiting(self) -> list[dict[str, Any]]:
        rows = await self.rows("SELECT record FROM audit.outbox ORDER BY record_id")
        return [json.loads(row["record"]) for row in rows]

    async def stored(self) -> list[Any]:
        assert await asyncio.to_thread(otel_audit.flush, 60)
        connection = await asyncpg.connect(self.store)
        try:
            return await connection.fetch(
                "SELECT *, payload::text AS text FROM audit.audit_logs ORDER BY id"
            )
        finally:
            await connection.close()

    def session(self) -> AsyncSession:
        return AsyncSession(self.engine, expire_on_commit=False)


def changes_of(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (change["operation"], change["entity"])
        for record in records
        for change in record["changes"]
    ]


@pytest.fixture
async def roles(postgres) -> tuple[str, str]:
    """The application's role and the relay's."""
    for name in ("bank_app", "bank_relay"):
        await postgres.execute(
            f"DO $$ BEGIN CREATE ROLE {name} LOGIN; EXCEPTION WHEN duplicate_object THEN END $$"
        )
    return "bank_app", "bank_relay"


@pytest.fixture
async def without_outbox(postgres, database, audit_store, roles) -> AsyncIterator[Bank]:
    name = database.partition("?")[0].rpartition("/")[2]
    owner = create_async_engine(_url(database))
    async with owner.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(text("GRANT ALL ON account TO bank_app"))
        await connection.execute(text("GRANT ALL ON SEQUENCE account_id_seq TO bank_app"))
    await owner.dispose()
    engine = create_async_engine(_url(postgres.dsn(name, "bank_app")))
    yield Bank(engine, database, audit_store, postgres.dsn(name, "bank_relay"))
    await engine.dispose()


@pytest.fixture
async def bank(without_outbox, roles) -> AsyncIterator[Bank]:
    """The application at work in transactional mode; nothing relays yet."""
    await init_outbox(without_outbox.superuser, application=roles[0], relay=roles[1])
    otel_audit.instrument(
        app_engine=without_outbox.engine, config=settings(without_outbox, outbox_relay=False)
    )
    yield without_outbox
    await asyncio.to_thread(otel_audit.uninstrument)


def settings(bank: Bank, **more: Any) -> AuditConfig:
    return AuditConfig(
        dsn=bank.store,
        orm="transactional",
        outbox_dsn=bank.relay_dsn,
        batch_interval=0.01,
        outbox_interval=0.2,
        **more,
    )


def _url(dsn: str) -> str:
    return dsn.replace("postgresql://", "postgresql+asyncpg://").replace(
        "postgres://", "postgresql+asyncpg://"
    )


WorkBudget = Callable[[AsyncSession], Awaitable[None]]


class TestWhatIsWritten:
    async def test_committed_changes(self, bank):
        """They stand in the outbox, redacted and complete, when COMMIT returns."""
        with otel_audit.audit("account.opened", actor="u1", tenant="t1") as action:
            async with bank.session() as session, session.begin():
                session.add(Account(owner="ada", balance=5, password="hunter2"))
        (record,) = await bank.waiting()
        assert (record["phase"], record["action_id"]) == ("changes", action.action_id)
        assert record["record_id"] != action.record_id
        assert (record["outcome"], record["transaction"]) == ("success", "committed")
        assert (record["actor"]["id"], record["tenant"]["id"]) == ("u1", "t1")
        assert record.get("sequence_number") is None
        (change,) = record["changes"]
        assert change["transaction"] == "committed"
        assert change["values"]["owner"] == [None, "ada"]
        assert "hunter2" not in json.dumps(record)

    async def test_rollback(self, bank):
        """A rollback takes the entries with it."""
        with otel_audit.audit("account.opened"):
            async with bank.session() as session:
                session.add(Account(owner="ada"))
                await session.flush()
                await session.rollback()
        assert await bank.waiting() == []

    async def test_savepoints(self, bank):
        """What a savepoint has undone is not told."""
        with otel_audit.audit("accounts.opened"):
            async with bank.session() as session, session.begin():
                session.add(Account(owner="kept"))
                async with session.begin_nested() as savepoint:
                    session.add(Account(owner="undone"))
                    await session.flush()
                    await savepoint.rollback()
                async with session.begin_nested():
                    session.add(Account(owner="released"))
        (record,) = await bank.waiting()
        owners = [change["values"]["owner"][1] for change in record["changes"]]
        assert owners == ["kept", "released"]

    async def test_flushed_by_the_commit_itself(self, bank):
        """COMMIT flushes first; what that writes is told too."""
        with otel_audit.audit("account.opened"):
            async with bank.session() as session:
                session.add(Account(owner="ada"))
                await session.commit()
        assert changes_of(await bank.waiting()) == [("insert", "Account")]

    async def test_several_commits_of_one_action(self, bank):
        """Each transaction has a record of its own, with the same action id."""
        with otel_audit.audit("account.opened") as action:
            async with bank.session() as session:
                for owner in ("ada", "bob"):
                    session.add(Account(owner=owner))
                    await session.commit()
        first, second = await bank.waiting()
        assert {first["action_id"], second["action_id"]} == {action.action_id}
        assert first["record_id"] != second["record_id"]

    async def test_core_transaction(self, bank):
        """A connection without any session, with bulk statements and plain text."""
        with otel_audit.audit("accounts.changed"):
            async with bank.engine.begin() as connection:
                await connection.execute(insert(Account), [{"owner": "a"}, {"owner": "b"}])
                await connection.execute(update(Account).values(balance=3))
                await connection.execute(text("DELETE FROM account WHERE owner = 'b'"))
        (record,) = await bank.waiting()
        assert [(one["operation"], one["kind"], one["rows"]) for one in record["changes"]] == [
            ("insert", "bulk", 2),
            ("update", "bulk", 2),
            ("delete", "bulk", 1),
        ]

    async def test_orm_bulk_statements(self, bank):
        """ORM-enabled statements are told like any other."""
        with otel_audit.audit("accounts.changed"):
            async with bank.session() as session, session.begin():
                session.add(Account(owner="a"))
                await session.flush()
                await session.execute(update(Account).values(balance=1))
                await session.execute(delete(Account))
        assert changes_of(await bank.waiting()) == [
            ("insert", "Account"),
            ("update", "Account"),
            ("delete", "Account"),
        ]

    async def test_scoped_session(self, bank):
        """An `async_scoped_session` is a session like any other."""
        factory = async_scoped_session(
            async_sessionmaker(bank.engine), scopefunc=asyncio.current_task
        )
        with otel_audit.audit("account.opened"):
            factory.add(Account(owner="a"))
            await factory.commit()
            await factory.remove()
        assert changes_of(await bank.waiting()) == [("insert", "Account")]

    async def test_commit_by_text(self, bank):
        """An application that sends COMMIT itself is heard before it is sent."""
        with otel_audit.audit("account.opened"):
            async with bank.engine.connect() as connection:
                await connection.execute(insert(Account), {"owner": "a"})
                await connection.execute(text("COMMIT"))
                assert changes_of(await bank.waiting()) == [("insert", "Account")]
                await connection.rollback()
        assert changes_of(await bank.waiting()) == [("insert", "Account")]

    async def test_outside_any_action(self, bank):
        """A script's transaction is a record of its own."""
        async with bank.session() as session, session.begin():
            session.add(Account(owner="a"))
        (record,) = await bank.waiting()
        assert (record["event_name"], record["phase"]) == ("database.changed", "completed")
        assert record["actor"]["type"] == "system"

    async def test_a_task_that_outlives_its_action(self, bank):
        """What it begins later is the process's, which names the action; in the outbox too."""

        async def work() -> None:
            async with bank.session() as session:
                session.add(Account(owner="later"))
                await session.commit()

        with otel_audit.audit("account.opened", actor="ann") as opened:
            context = contextvars.copy_context()
        await asyncio.create_task(work(), context=context)
        (record,) = await bank.waiting()
        assert (record["event_name"], record["phase"]) == ("database.changed", "completed")
        assert record["actor"]["type"] == "system"
        assert record["parent_action_id"] == opened.action_id
        assert record["metadata"] == {"audit.begun_in": opened.action_id}
        assert record["action_id"] != opened.action_id

    async def test_reading_writes_nothing(self, bank):
        """A transaction that has not written leaves nothing."""
        with otel_audit.audit("account.read"):
            async with bank.session() as session, session.begin():
                await session.execute(text("SELECT * FROM account"))
        assert await bank.waiting() == []

    async def test_more_than_one_record_holds(self, bank):
        """Beyond the bound there are further records of the same action; none is missing."""
        await asyncio.to_thread(otel_audit.uninstrument)
        config = settings(bank, orm_max_entries=40)
        otel_audit.instrument(app_engine=bank.engine, config=config)
        with otel_audit.audit("accounts.opened") as action:
            async with bank.session() as session, session.begin():
                session.add_all([Account(owner=str(number)) for number in range(100)])
        rows = await bank.stored()
        told = [json.loads(row["text"]) for row in rows if row["phase"] != "completed"]
        assert [len(record["changes"]) for record in told] == [40, 40, 20]
        assert [record["phase"] for record in told] == ["changes", "continued", "continued"]
        assert {record["action_id"] for record in told} == {action.action_id}
        assert {record["changes_total"] for record in told} == {100}
        entities = [name for row in rows for name in row["entities"]]
        assert len(set(entities)) == 100


class TestCompletedRecord:
    async def test_it_refers_to_what_is_told_elsewhere(self, bank, monkeypatch):
        """The action's own record has the count and the records' ids, not the same changes again."""
        await asyncio.to_thread(otel_audit.uninstrument)
        otel_audit.instrument(app_engine=bank.engine, config=settings(bank))
        with otel_audit.audit("account.opened") as action:
            async with bank.session() as session, session.begin():
                session.add(Account(owner="a"))
        completed, changes = sorted(await bank.stored(), key=lambda row: row["phase"] == "changes")
        assert (completed["phase"], changes["phase"]) == ("completed", "changes")
        assert str(completed["id"]) == action.record_id
        record = json.loads(completed["text"])
        assert "changes" not in record
        assert record["changes_total"] == 1
        assert record["transaction"] == "committed"
        assert record["metadata"]["audit.changes.records"] == [str(changes["id"])]
        assert changes["entities"] == ["account:1"]
        assert await bank.waiting() == []

    async def test_request(self, bank):
        """A request's transaction commits after its answer, and is told with who did it."""
        await asyncio.to_thread(otel_audit.uninstrument)
        app = FastAPI()

        async def session() -> AsyncIterator[AsyncSession]:
            async with bank.session() as opened:
                yield opened
                await opened.commit()

        @app.post("/accounts/{owner}")
        async def create(owner: str, db: AsyncSession = Depends(session)) -> None:  # noqa: B008 - FastAPI reads it
            otel_audit.set_actor("u7")
            otel_audit.set_tenant("t7")
            db.add(Account(owner=owner))

        otel_audit.instrument(app, app_engine=bank.engine, config=settings(bank))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://bank") as client:
            assert (await client.post("/accounts/ada")).status_code == 200
        rows = {row["phase"]: row for row in await bank.stored()}
        assert rows.keys() == {"completed", "changes"}
        told = rows["changes"]
        assert (told["actor_id"], told["tenant_id"]) == ("u7", "t7")
        assert told["action_id"] == rows["completed"]["action_id"]
        assert told["http_route"] == "/accounts/{owner}"
        assert rows["completed"]["outcome"] == "success"


class TestFailures:
    async def test_no_outbox(self, without_outbox, caplog):
        """The transaction is refused, with an error that says what to do; and the app goes on."""
        bank = without_outbox
        config = settings(bank, outbox_relay=False)
        otel_audit.instrument(app_engine=bank.engine, config=config)
        try:
            with otel_audit.audit("account.opened"):
                async with bank.session() as session:
                    session.add(Account(owner="a"))
                    with pytest.raises(StoreError, match="init --outbox"):
                        await session.commit()
                    await session.rollback()
                    assert (await session.execute(text("SELECT 1"))).scalar() == 1
                async with bank.session() as session:
                    with pytest.raises(StoreError):
                        async with session.begin():
                            session.add(Account(owner="a"))
            assert otel_audit.health()["outbox_errors"] == 2
            assert await bank.rows("SELECT * FROM account") == []
            assert "was not committed" in caplog.text
        finally:
            await asyncio.to_thread(otel_audit.uninstrument)

    async def test_what_was_refused_is_not_committed_by_the_next(self, bank, roles):
        """The connection goes back to its pool clean: SQLAlchemy itself sends no ROLLBACK then."""
        await bank.rows(f"REVOKE ALL ON audit.outbox FROM {roles[0]}")
        async with bank.session() as session:
            session.add(Account(owner="refused"))
            with otel_audit.audit("account.opened"), pytest.raises(StoreError):
                await session.commit()
        await bank.rows(f"GRANT INSERT ON audit.outbox TO {roles[0]}")
        async with bank.session() as session:  # on the same connection
            session.add(Account(owner="next"))
            await session.commit()
        rows = await bank.rows("SELECT owner FROM account")
        assert [row["owner"] for row in rows] == ["next"]

    async def test_no_grant(self, bank, roles):
        """So it is where the application's role may not write to it."""
        await bank.rows(f"REVOKE ALL ON audit.outbox FROM {roles[0]}")
        async with bank.session() as session:
            session.add(Account(owner="a"))
            with pytest.raises(StoreError, match="audit.outbox"):
                await session.commit()
        assert await bank.rows("SELECT * FROM account") == []

    @pytest.mark.parametrize(
        "take_on",
        [
            "SET LOCAL ROLE bank_tenant",
            'SET ROLE "bank_tenant"',
            "SELECT set_config('role', 'bank_tenant', true)",
        ],
    )
    async def test_role_that_is_taken_on(self, bank, postgres, take_on):
        """The remedy names the role that commits, and it is one."""
        await postgres.execute(
            "DO $$ BEGIN CREATE ROLE bank_tenant NOLOGIN; "
            "EXCEPTION WHEN duplicate_object THEN END $$"
        )
        await postgres.execute("GRANT bank_tenant TO bank_app")
        await bank.rows("GRANT ALL ON ALL TABLES IN SCHEMA public TO bank_tenant")
        await bank.rows("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO bank_tenant")
        await bank.rows("REVOKE ALL ON audit.outbox FROM bank_tenant")

        async def pay() -> None:
            async with bank.session() as session:
                await session.execute(text(take_on))
                session.add(Account(owner="ann"))
                await session.commit()

        with pytest.raises(StoreError, match="--application bank_tenant"):
            await pay()
        await init_outbox(bank.superuser, application="bank_tenant")
        await pay()
        assert changes_of(await bank.waiting()) == [("insert", "Account")]

    async def test_commit_that_fails(self, bank):
        """A deferred constraint refuses COMMIT: entries are undone with the change."""
        with otel_audit.audit("account.opened"):
            async with bank.session() as session:
                session.add(Account(owner="a", parent_id=99))
                with pytest.raises(IntegrityError):
                    await session.commit()
        assert await bank.waiting() == []
        (row,) = await bank.stored()
        record = json.loads(row["text"])
        assert (record["transaction"], record["outcome"]) == ("rolled_back", "failure")
        assert record["changes_rolled_back"] == 1
        assert "audit.changes.records" not in record.get("metadata", {})

    async def test_commit_after_a_swallowed_error(self, bank):
        """PostgreSQL turns COMMIT into ROLLBACK then, and raises nothing; so do we."""
        async with bank.engine.connect() as connection:
            await connection.execute(insert(Account), {"owner": "a"})
            with pytest.raises(DBAPIError):
                await connection.execute(text("SELECT 1/0"))
            await connection.commit()
        assert await bank.waiting() == []
        assert await bank.rows("SELECT * FROM account") == []

    async def test_serialization_failure_is_the_applications_to_retry(self, bank):
        """An error that the application knows how to handle reaches it as it is."""
        await bank.rows("INSERT INTO account (owner, balance) VALUES ('a', 1)")
        engine = bank.engine.execution_options(isolation_level="SERIALIZABLE")
        async with engine.connect() as one, engine.connect() as other:
            for connection in (one, other):
                await connection.execute(text("SELECT sum(balance) FROM account"))
            for connection in (one, other):
                await connection.execute(insert(Account), {"owner": "b", "balance": 2})
            await one.commit()
            with pytest.raises(DBAPIError) as refused:
                await other.commit()
        assert refused.value.orig.sqlstate == "40001"
        assert len(await bank.waiting()) == 1

    async def test_connection_lost_in_the_commit(self, bank):
        """Whether it was committed nobody knows but the outbox."""
        with otel_audit.audit("account.opened"):
            async with bank.session() as session:
                session.add(Account(owner="a"))
                await session.flush()
                await bank.rows(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE usename = 'bank_app'"
                )
                with pytest.raises(DBAPIError):
                    await session.commit()
        assert await bank.waiting() == []
        assert await bank.rows("SELECT * FROM account") == []

    async def test_other_database(self, bank, tmp_path, caplog):
        """Changes of a database that is not PostgreSQL are recorded as observed, and it is said."""
        await asyncio.to_thread(otel_audit.uninstrument)
        otel_audit.instrument(config=settings(bank))
        engine = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
        Base.metadata.create_all(engine)
        with otel_audit.audit("account.opened"), Session(engine) as session, session.begin():
            session.add(Account(owner="a"))
        engine.dispose()
        (row,) = await bank.stored()
        assert (row["phase"], row["entities"]) == ("completed", ["account:1"])
        assert "sqlite" in caplog.text

    async def test_given_engine_of_another_database(self, bank, tmp_path):
        """One that is named beforehand is refused beforehand."""
        await asyncio.to_thread(otel_audit.uninstrument)
        engine = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
        with pytest.raises(ConfigurationError, match="sqlite"):
            otel_audit.instrument(app_engine=engine, config=settings(bank))
        assert otel_audit.health() == {"auditing": False}
        engine.dispose()

    async def test_autocommit(self, bank, caplog):
        """There is no transaction to be atomic with: recorded as observed, and it is said."""
        engine = bank.engine.execution_options(isolation_level="AUTOCOMMIT")
        with otel_audit.audit("account.opened"):
            async with engine.connect() as connection:
                await connection.execute(insert(Account), {"owner": "a"})
        assert await bank.waiting() == []
        (row,) = await bank.stored()
        assert json.loads(row["text"])["changes"][0]["transaction"] == "committed"
        assert [one.levelname for one in caplog.records if "autocommit" in one.message] == [
            "WARNING"
        ]

    async def test_required_start(self, without_outbox):
        """Where auditing is required a process without its outbox does not start."""
        with pytest.raises(StoreError, match="init --outbox"):
            otel_audit.instrument(config=settings(without_outbox, required=True))


class TestRiding:
    async def test_committed(self, bank):
        """An event that is recorded by hand is there if the transaction is."""
        async with bank.session() as session, session.begin():
            record_id = await otel_audit.emit_in_transaction(
                session, "order.refunded", actor="u1", target="order:7"
            )
            assert await bank.waiting() == []
        (record,) = await bank.waiting()
        assert record["record_id"] == record_id
        assert (record["event_name"], record["phase"]) == ("order.refunded", "completed")
        assert record["target"] == {"type": "order", "id": "7"}

    async def test_rolled_back(self, bank):
        """And is not there if it is not."""
        async with bank.session() as session:
            await otel_audit.emit_in_transaction(session, "order.refunded")
            await session.rollback()
        assert await bank.waiting() == []

    async def test_connections_and_synchronous_sessions(self, bank):
        """Whatever has a transaction will do."""
        async with bank.engine.begin() as connection:
            await otel_audit.emit_in_transaction(connection, "a.done")
            await connection.run_sync(lambda one: otel_audit.emit_in_transaction(one, "b.done"))
        async with bank.session() as session:
            await session.run_sync(lambda one: otel_audit.emit_in_transaction(one, "c.done"))
            await session.commit()
        names = [record["event_name"] for record in await bank.waiting()]
        assert sorted(names) == ["a.done", "b.done", "c.done"]

    async def test_inside_an_action(self, bank):
        """It names the action around it as its parent."""
        with otel_audit.audit("batch.run") as action:
            async with bank.session() as session, session.begin():
                await otel_audit.emit_in_transaction(session, "order.refunded")
        (record,) = await bank.waiting()
        assert record["parent_action_id"] == action.action_id

    async def test_no_outbox(self, bank, roles):
        """Here the caller is told."""
        await bank.rows(f"REVOKE ALL ON audit.outbox FROM {roles[0]}")
        async with bank.session() as session:
            with pytest.raises(StoreError, match="init --outbox"):
                await otel_audit.emit_in_transaction(session, "order.refunded")

    async def test_no_session(self, bank):
        """What is no session is named."""
        with pytest.raises(ConfigurationError, match="not str"):
            otel_audit.emit_in_transaction("db", "order.refunded")

    async def test_observed_mode(self, bank):
        """It needs the mode in which there is an outbox."""
        await asyncio.to_thread(otel_audit.uninstrument)
        otel_audit.instrument(config=AuditConfig(dsn=bank.store))
        async with bank.session() as session:
            with pytest.raises(ConfigurationError, match="OTEL_AUDIT_ORM=transactional"):
                await otel_audit.emit_in_transaction(session, "order.refunded")

    async def test_nothing_is_audited(self, bank):
        """Then it can be awaited all the same."""
        await asyncio.to_thread(otel_audit.uninstrument)
        async with bank.session() as session:
            assert await otel_audit.emit_in_transaction(session, "order.refunded") is None


class TestListenersOfTheApplication:
    async def test_statement_in_a_commit_listener(self, bank):
        """What an application's own listener writes so late is told by the action's record."""

        def write(connection):
            connection.execute(insert(Account), {"owner": "late"})

        event.listen(bank.engine.sync_engine, "commit", write)
        try:
            with otel_audit.audit("account.opened"):
                async with bank.session() as session, session.begin():
                    session.add(Account(owner="first"))
        finally:
            event.remove(bank.engine.sync_engine, "commit", write)
        told = changes_of(await bank.waiting())
        (row,) = await bank.stored()
        record = json.loads(row["text"])
        told += [(one["operation"], one["entity"]) for one in record.get("changes", [])]
        assert told == [("insert", "Account")] * 2
        assert record["changes_total"] == 2

    async def test_commit_that_one_prevents(self, bank):
        """No entries were committed, and nobody says that anything was."""

        def prevent(_):
            raise ZeroDivisionError

        event.listen(bank.engine.sync_engine, "commit", prevent)
        try:
            with pytest.raises(ZeroDivisionError), otel_audit.audit("account.opened"):
                async with bank.session() as session, session.begin():
                    session.add(Account(owner="first"))
        finally:
            event.remove(bank.engine.sync_engine, "commit", prevent)
        assert await bank.waiting() == []
        (row,) = await bank.stored()
        assert json.loads(row["text"])["transaction"] == "unknown"


class TestGrants:
    async def test_application_can_only_insert(self, bank, postgres, roles):
        """Neither read nor change nor delete what waits."""
        dsn = bank.relay_dsn.replace(roles[1], roles[0])
        connection = await asyncpg.connect(dsn)
        try:
            for statement in (
                "SELECT record FROM audit.outbox",
                "UPDATE audit.outbox SET record = ''",
                "DELETE FROM audit.outbox",
                "TRUNCATE audit.outbox",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)
        finally:
            await connection.close()

    async def test_relay_cannot_write(self, bank):
        """Neither make records nor change them."""
        connection = await asyncpg.connect(bank.relay_dsn)
        try:
            for statement in (
                "UPDATE audit.outbox SET record = ''",
                "INSERT INTO audit.outbox (record_id, record) VALUES (gen_random_uuid(), '')",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)
        finally:
            await connection.close()

    async def test_findings(self, bank, without_outbox, roles):
        """Doctor's look at it."""
        app = bank.relay_dsn.replace(roles[1], roles[0])
        found = await inspect_outbox(bank.relay_dsn, app_dsn=app)
        assert [finding.ok for finding in found] == [True, True, True]
        found = await inspect_outbox(bank.relay_dsn, app_dsn=bank.superuser)
        assert [finding.ok for finding in found] == [True, True, None]
        await bank.rows(f"REVOKE UPDATE (claimed_by) ON audit.outbox FROM {roles[1]}")
        found = await inspect_outbox(bank.relay_dsn)
        assert found[0].ok is None
        assert "lacks UPDATE (claimed_by, claimed_until)" in found[0].detail
        await bank.rows(f"REVOKE DELETE ON audit.outbox FROM {roles[1]}")
        found = await inspect_outbox(bank.relay_dsn)
        assert found[0].ok is False
        assert "lacks DELETE" in found[0].detail
        await bank.rows("DROP TABLE audit.outbox")
        found = await inspect_outbox(bank.relay_dsn)
        assert found[0].ok is False
        outbox = PostgresOutbox(bank.relay_dsn)
        with pytest.raises(StoreError, match="init --outbox"):
            await outbox.check()
        await outbox.close()

    async def test_made_twice(self, bank, roles):
        """Nothing is done twice, and nothing is lost."""
        await bank.rows("INSERT INTO audit.outbox VALUES (gen_random_uuid(), now(), 'x')")
        lines = await init_outbox(bank.superuser, application=roles[0])
        assert lines[0] == "table audit.outbox: in place"
        assert len(await bank.rows("SELECT FROM audit.outbox")) == 1

    async def test_role_that_is_not_there(self, bank):
        with pytest.raises(ConfigurationError, match="no role nobody_here"):
            await init_outbox(bank.superuser, application="nobody_here")
