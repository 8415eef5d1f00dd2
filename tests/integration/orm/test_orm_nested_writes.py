"""Listeners that write while a flush is under way, through sessions of their own."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from orm_harness import action, capturing
from sqlalchemy import create_engine, event, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "row"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None]


class Log(Base):
    __tablename__ = "log"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def connection():
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@contextmanager
def after_insert(write):
    def hear(_mapper, connection, row):
        if row.id < 100:
            write(connection, row)

    event.listen(Row, "after_insert", hear)
    try:
        yield
    finally:
        event.remove(Row, "after_insert", hear)


def told_of(connection, write):
    """What is told of a row, and of what a listener writes when it is inserted."""
    with (
        capturing() as capture,
        action() as scope,
        after_insert(write),
        Session(connection) as session,
    ):
        session.add(Row(id=1))
        session.commit()
    assert capture.errors == 0
    return {(one.kind, one.operation, one.table, one.key.get("id")) for one in scope.changes}


@pytest.mark.parametrize("_turn", range(5))
def test_a_flush_of_another_session(connection, _turn):
    """Each row is told once, by the flush that has written it, of whatever class it is."""

    def write(inner, row):
        with Session(inner, join_transaction_mode="create_savepoint") as session:
            session.add_all([Row(id=row.id + 100), Log(id=row.id)])
            session.commit()

    assert told_of(connection, write) == {
        ("entity", "insert", "row", 1),
        ("entity", "insert", "row", 101),
        ("entity", "insert", "log", 1),
    }


BULK = {
    "insert": lambda session: session.bulk_insert_mappings(Row, [{"id": 101, "text": "b"}]),
    "update": lambda session: session.bulk_update_mappings(Row, [{"id": 1, "text": "b"}]),
    "objects": lambda session: session.bulk_save_objects([Row(id=101)]),
    "statement": lambda session: session.execute(insert(Row), [{"id": 101}]),
}


@pytest.mark.parametrize("kind", BULK)
def test_many_rows_of_another_session(connection, kind):
    """What is written without a unit of work is told, though a flush writes the same class."""
    told = told_of(connection, lambda inner, _: BULK[kind](Session(inner)))
    operation = "update" if kind == "update" else "insert"
    assert told == {("entity", "insert", "row", 1), ("bulk", operation, "row", None)}


def test_a_flush_after_the_flush(connection):
    """One that begins when all is written is another's, on the same connection."""

    def later(session, _context):
        with Session(session.connection(), join_transaction_mode="create_savepoint") as other:
            other.add(Row(id=102))
            other.commit()

    for name in ("after_flush", "after_flush_postexec"):
        with capturing() as capture, action() as scope, Session(connection) as session:
            event.listen(session, name, later, once=True)
            session.add(Row(id=2))
            session.commit()
            told = [(one.kind, one.key["id"]) for one in scope.changes]
            for one in (2, 102):
                session.delete(session.get(Row, one))
            session.commit()
        assert sorted(told) == [("entity", 2), ("entity", 102)]
        assert capture.errors == 0
