"""The recorded history against the one that triggers in the database have written."""

from __future__ import annotations

import asyncio
import enum
import functools
import json
import tempfile
from collections import Counter as Tally
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from orm_harness import action, capturing
from otel_audit_postgres.outbox import init_outbox
from sqlalchemy import (
    Engine,
    Enum,
    ForeignKey,
    Integer,
    create_engine,
    delete,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.types import TypeDecorator
from sqlalchemy.util import greenlet_spawn

from otel_audit.action.compose import changes_outside
from otel_audit.action.failed_parts import FailedParts
from otel_audit.orm import OrmOptions, Transactional
from otel_audit.record import AuditRecord, Change
from otel_audit.transactional import encode


class State(enum.Enum):
    """Stored by value."""

    LENT = "lent-out"
    LOST = "lost-it"


class Doubled(TypeDecorator[int]):
    """Stored as twice the number."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return None if value is None else value * 2

    def process_result_value(self, value, dialect):
        return None if value is None else value // 2


class HistoryBase(DeclarativeBase):
    pass


class Log(HistoryBase):
    """What a listener of the application writes during a flush."""

    __tablename__ = "log"
    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str | None]


class Shelf(HistoryBase):
    __tablename__ = "shelf"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str | None]
    late: Mapped[str | None]
    books: Mapped[list[Book]] = relationship(back_populates="shelf")


class Book(HistoryBase):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    pages: Mapped[int | None] = mapped_column(Doubled)
    state: Mapped[State | None] = mapped_column(
        Enum(State, native_enum=False, values_callable=lambda kind: [one.value for one in kind])
    )
    shelf_id: Mapped[int | None] = mapped_column(ForeignKey("shelf.id"))
    shelf: Mapped[Shelf | None] = relationship(back_populates="books")


@event.listens_for(Shelf, "after_insert")
@event.listens_for(Shelf, "after_update")
def log_and_set_too_late(_mapper, connection, shelf) -> None:
    """Write during the flush, and set what it does not write any more."""
    connection.execute(insert(Log.__table__).values(what=shelf.label))
    shelf.late = "never written"


WRITES = (
    "add_shelf",
    "rename_shelf",
    "change_state",
    "bulk_state",
    "add_book",
    "add_book",
    "change_book",
    "change_book",
    "move_book",
    "delete_book",
    "delete_shelf",
    "bulk_update",
    "bulk_delete",
    "bulk_insert",
    "write_by_text",
)
TABLES = {
    "shelf": ("id", "label", "late"),
    "book": ("id", "title", "pages", "state", "shelf_id"),
    "log": ("id", "what"),
}


def _begin(connection) -> None:
    connection.exec_driver_sql("BEGIN")


def make_triggers(connection, schema: str) -> None:
    """Let the database write down what happens to it, in the same transaction."""
    connection.exec_driver_sql(
        f"CREATE TABLE {schema}.history (op TEXT, tab TEXT, before TEXT, after TEXT)"
    )
    for table, columns in TABLES.items():
        old, new = (
            "json_object(" + ", ".join(f"'{c}', {side}.{c}" for c in columns) + ")"
            for side in ("OLD", "NEW")
        )
        for operation, before, after in (
            ("insert", "NULL", new),
            ("update", old, new),
            ("delete", old, "NULL"),
        ):
            connection.exec_driver_sql(
                f"CREATE TRIGGER {schema}.{table}_{operation} AFTER {operation} ON {table} BEGIN "
                f"INSERT INTO history VALUES ('{operation}', '{table}', {before}, {after}); END"
            )


def differences(operation: str, before: dict | None, after: dict | None) -> dict:
    """What a trigger saw, in the form of a recorded entry."""
    names = (before or after or {}).keys()
    pairs = {name: [(before or {}).get(name), (after or {}).get(name)] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def within(step):
    """Let a step of the machine run where its database can be talked to."""

    @functools.wraps(step)
    def stepped(self, *arguments, **named):
        return self.run(lambda: step(self, *arguments, **named))

    return stepped


class History(RuleBasedStateMachine):
    """Random sessions, flushes, savepoints, rollbacks and statements, and one true history."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = self.open()
        self.capturing = self.listen()
        self.capture = self.capturing.__enter__()
        self.acting = action()
        self.scope = self.acting.__enter__()
        self.session = Session(self.engine)
        self.savepoints = []
        self.begin()

    def open(self) -> Engine:
        """Make the database."""
        self.directory = tempfile.TemporaryDirectory()
        path = Path(self.directory.name) / "history.db"
        engine = create_engine(f"sqlite:///{path}")
        event.listen(engine, "connect", self.connect)
        event.listen(engine, "begin", _begin)
        translated = engine.execution_options(schema_translate_map={None: self.SCHEMA})
        HistoryBase.metadata.create_all(translated)
        with engine.begin() as connection:
            make_triggers(connection, self.SCHEMA or "main")
        return engine

    SCHEMA: str | None = None

    def listen(self):
        return capturing(OrmOptions(exclude_tables=("history",), max_entries=100_000))

    def told(self) -> list[Change]:
        """What was recorded of committed transactions."""
        return self.scope.changes

    def close(self) -> None:
        self.engine.dispose()
        self.directory.cleanup()

    def run(self, step):
        """Run what talks to the database."""
        return step()

    @within
    def begin(self) -> None:
        for number in range(3):
            self.session.add(Shelf(books=[Book(title="first", pages=number), Book()]))
        self.session.commit()

    @within
    def history(self) -> list[tuple[str, str, dict | None, dict | None]]:
        """What the triggers have written down, as far as it is committed."""
        with self.engine.connect() as other:
            rows = other.exec_driver_sql(self.HISTORY).all()
        return [
            (operation, table, *(None if side is None else json.loads(side) for side in sides))
            for operation, table, *sides in rows
        ]

    HISTORY = "SELECT op, tab, before, after FROM history"

    def connect(self, connection, _record) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = WAL")

    def teardown(self) -> None:
        try:
            self.run(self.session.commit)
            self.records_what_happened()
        finally:
            self.leave()

    def leave(self) -> None:
        self.run(self.session.close)
        self.acting.__exit__(None, None, None)
        self.capturing.__exit__(None, None, None)
        self.close()

    def pick(self, model, number):
        found = self.session.scalars(select(model).order_by(model.id)).all()
        return found[number % len(found)] if found else None

    @rule(kind=st.sampled_from(WRITES), number=st.integers(0, 5), other=st.integers(0, 5))
    @within
    def write(self, kind, number, other):
        getattr(self, kind)(number, other)

    @rule(kind=st.sampled_from(WRITES), number=st.integers(0, 5), flush=st.booleans())
    @within
    def write_in_savepoint(self, kind, number, flush):
        """Set a savepoint and write in it; whether it stays is for later."""
        self.savepoints.append(self.session.begin_nested())
        getattr(self, kind)(number, number)
        if flush:
            self.session.flush()

    @rule(depth=st.integers(0, 2), keep=st.booleans())
    @within
    def leave_savepoint(self, depth, keep):
        if not self.savepoints:
            return
        if keep:
            self.savepoints.pop().commit()
            return
        position = max(len(self.savepoints) - 1 - depth, 0)
        self.savepoints[position].rollback()
        del self.savepoints[position:]

    @rule(how=st.sampled_from(["commit", "commit", "commit", "rollback", "close"]))
    @within
    def end(self, how):
        before = self.committed()
        getattr(self.session, how)()
        self.savepoints.clear()
        self.check_outcome(before, how)

    @rule(times=st.integers(1, 3))
    @within
    def retry(self, times):
        """Write, and roll it back; then once more, and commit: that is a success in the end."""
        for _ in range(times):
            self.session.add(Book(title="retried"))
            self.session.flush()
            self.session.rollback()
            self.savepoints.clear()
        before = self.committed()
        self.session.add(Book(title="kept"))
        self.session.commit()
        self.check_outcome(before, "commit")

    def committed(self):
        """How many rows were written that stay."""
        with self.engine.connect() as other:
            return other.exec_driver_sql(self.COUNT).scalar_one()

    COUNT = "SELECT count(*) FROM history"

    def check_outcome(self, before, how):
        """The outcome of the action follows the last transaction that wrote."""
        self.capture.attachment.report_commits()
        if how == "commit" and self.committed() > before:
            assert self.scope.final_transaction == "committed"
            rolled_back = self.scope.rolled_back_transactions > 0
            assert self.scope.is_retried == rolled_back
            assert (self.scope.transaction == "mixed") == rolled_back

    @rule()
    @within
    def fail_to_flush(self):
        shelf = self.pick(Shelf, 0)
        if shelf is None:
            return
        self.session.flush()
        self.session.expunge(shelf)
        self.session.add_all([Book(title="lost"), Shelf(id=shelf.id)])
        with pytest.raises(IntegrityError):
            self.session.flush()
        # it has rolled back the innermost savepoint, or everything
        if self.savepoints:
            self.savepoints.pop().rollback()
        else:
            self.session.rollback()

    def add_shelf(self, number, other):
        self.session.add(Shelf(label=f"s{number}"))

    def add_book(self, number, other):
        self.session.add(Book(title=f"b{number}", pages=other or None))

    def change_book(self, number, other):
        book = self.pick(Book, number)
        if book is not None:
            if other % 2:
                self.session.flush()
                self.session.expire(book)
            book.title = f"c{other}" if other else None

    def move_book(self, number, other):
        book, shelf = self.pick(Book, number), self.pick(Shelf, other)
        if book is not None:
            book.shelf = shelf

    def delete_book(self, number, other):
        book = self.pick(Book, number)
        if book is not None:
            self.session.delete(book)

    def delete_shelf(self, number, other):
        shelf = self.pick(Shelf, number)
        if shelf is not None:
            self.read_anew(shelf)
            self.session.delete(shelf)

    def rename_shelf(self, number, other):
        shelf = self.pick(Shelf, number)
        if shelf is not None:
            shelf.label = f"r{other}"

    def read_anew(self, shelf):
        """Forget what the object holds and the database does not."""
        self.session.flush()
        self.session.expire(shelf, ["late"])

    def change_state(self, number, other):
        book = self.pick(Book, number)
        if book is not None:
            book.state = (None, State.LENT, State.LOST)[other % 3]

    def bulk_state(self, number, other):
        state = (State.LENT, State.LOST)[other % 2]
        statement = update(Book).where(Book.state.is_distinct_from(state), Book.pages >= number)
        # not read back: by RETURNING, SQLite counts rows only once they have been fetched
        options = {"synchronize_session": False}
        self.session.execute(statement.values(state=state), execution_options=options)
        self.session.expire_all()

    def bulk_update(self, number, other):
        self.session.execute(update(Book).where(Book.pages >= number).values(pages=other))

    def bulk_delete(self, number, other):
        self.session.execute(delete(Book).where(Book.pages == number))

    def bulk_insert(self, number, other):
        rows = [{"title": f"i{number}", "state": State.LENT} for _ in range(other % 3 + 1)]
        self.session.execute(insert(Book), rows)

    def write_by_text(self, number, other):
        statement = text("UPDATE shelf SET label = 'text' WHERE id % 2 = :rest")
        self.session.execute(statement, {"rest": number % 2})
        self.session.expire_all()

    @invariant()
    def records_what_happened(self):
        """Entries of objects say what the triggers saw; statements say how many rows."""
        seen: Tally = Tally()
        written: Tally = Tally()
        true: list = []
        for operation, table, old, new in self.history():
            written[operation, table] += 1
            key = (new or old)["id"]
            true.append((operation, table, key, differences(operation, old, new)))
        for change in self.told():
            assert change.transaction == "committed"
            assert change.kind in ("entity", "bulk")
            # a text names no schema
            by_text = (change.statement or "").startswith("UPDATE shelf")
            assert self.SCHEMA is None or "." in change.table or by_text
            table = change.table.rpartition(".")[2]
            if change.kind == "bulk":
                assert change.rows is not None
                seen[change.operation, table] += change.rows
                continue
            seen[change.operation, table] += 1
            self.find(true, change)
        assert seen == written
        assert self.capture.errors == 0

    @staticmethod
    def find(true, change):
        """Find what the triggers saw of this entry, once."""
        for position, (operation, table, key, values) in enumerate(true):
            if (operation, change.table.rpartition(".")[2], key) != (
                change.operation,
                table,
                change.key["id"],
            ):
                continue
            recorded = {
                name: pair
                for name, pair in change.values.items()
                if pair != [None, None] or name in change.unknown_before
            }
            known = {
                name: pair for name, pair in recorded.items() if name not in change.unknown_before
            }
            guessed = {name: recorded[name][1] for name in recorded if name not in known}
            if (
                all(values.get(name) == pair for name, pair in known.items())
                and all(
                    name not in values or values[name][1] == after
                    for name, after in guessed.items()
                )
                and set(values) <= set(recorded) | set(change.unknown_before)
            ):
                del true[position]
                return
        raise AssertionError(f"never happened: {change}")


class AutocommitHistory(History):
    """The same where the driver commits each statement, which SQLAlchemy was not told."""

    def open(self) -> Engine:
        engine = super().open()
        event.remove(engine, "begin", _begin)
        return engine

    def told(self) -> list[Change]:
        # SQLite commits where a savepoint is released that has begun the transaction
        self.capture.attachment.report_commits()
        return super().told()

    def check_outcome(self, before, how):
        """Nothing is rolled back but to a savepoint, and nothing waits for a commit."""


class SchemaHistory(History):
    """The same in a schema that is only named when the statement is compiled."""

    SCHEMA = "tenant"
    HISTORY = "SELECT op, tab, before, after FROM tenant.history"
    COUNT = "SELECT count(*) FROM tenant.history"

    def open(self) -> Engine:
        engine = super().open()
        return engine.execution_options(schema_translate_map={None: self.SCHEMA})

    def connect(self, connection, _record) -> None:
        super().connect(connection, _record)
        path = Path(self.directory.name) / "tenant.db"
        connection.execute(f"ATTACH DATABASE '{path}' AS tenant")
        connection.execute("PRAGMA tenant.journal_mode = WAL")


class PostgresHistory(History):
    """The same through asyncpg, against PostgreSQL's own triggers."""

    HISTORY = "SELECT op, tab, before::text, after::text FROM history"
    dsn = ""

    def open(self) -> Engine:
        self.loop = asyncio.new_event_loop()
        engine = create_async_engine(self.dsn).sync_engine

        def empty():
            with engine.begin() as connection:
                connection.exec_driver_sql(
                    "TRUNCATE shelf, book, log, history, audit.outbox RESTART IDENTITY"
                )

        self.run(empty)
        return engine

    def run(self, step):
        return self.loop.run_until_complete(greenlet_spawn(step))

    def close(self) -> None:
        self.run(self.engine.dispose)
        self.loop.close()


class OutboxHistory(PostgresHistory):
    """The same in transactional mode: the outbox against the triggers."""

    def listen(self):
        transactional = Transactional(
            compose=lambda _owner, changes: [
                next(
                    changes_outside("committed", changes, lambda: "test", FailedParts(lambda: None))
                )
            ],
            encode=encode,
            committed=lambda: None,
            failed=lambda: None,
        )
        options = OrmOptions(exclude_tables=("history",), max_entries=100_000)
        return capturing(options, transactional)

    @within
    def told(self) -> list[Change]:
        assert self.scope.changes == []
        with self.engine.connect() as other:
            rows = other.exec_driver_sql("SELECT record FROM audit.outbox").all()
        records = [msgspec.json.decode(row[0], type=AuditRecord) for row in rows]
        return [change for record in records for change in record.changes]


PG_TRIGGERS = """
CREATE TABLE history (op text, tab text, before jsonb, after jsonb);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO history VALUES (lower(TG_OP), TG_TABLE_NAME, to_jsonb(OLD), to_jsonb(NEW));
    RETURN NULL;
END $$;
CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON shelf
    FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON book
    FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON log
    FOR EACH ROW EXECUTE FUNCTION note();
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("machine", [PostgresHistory, OutboxHistory])
def test_history_on_postgres(postgres, machine):
    """Random sessions on a real PostgreSQL, and no difference."""

    async def make() -> None:
        await postgres.execute(f"CREATE DATABASE {name}")
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            await connection.run_sync(HistoryBase.metadata.create_all)
        await engine.dispose()
        await postgres.execute(PG_TRIGGERS, database=name)
        await init_outbox(dsn)

    name = f"orm_{machine.__name__.lower()}"
    dsn = postgres.dsn(name)
    url = dsn.replace("postgresql://", "postgresql+asyncpg://")
    asyncio.run(make())
    machine.dsn = url
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


TestHistory = History.TestCase
TestHistory.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("machine", [AutocommitHistory, SchemaHistory])
def test_history_of_another_kind(machine):
    """Random sessions where each statement commits, and in a schema that is named late."""
    run_state_machine_as_test(
        machine,
        settings=settings(TestHistory.settings, max_examples=10, stateful_step_count=25),
    )
