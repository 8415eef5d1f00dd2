"""SQL texts against a real PostgreSQL, by drivers that take several statements in one text."""

from __future__ import annotations

import pytest
from orm_harness import action
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class First(Base):
    __tablename__ = "text_first"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None]
    code: Mapped[str | None] = mapped_column(info={"audit": "redact"})


class Second(Base):
    __tablename__ = "text_second"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture(params=["psycopg", "psycopg2"])
def engine(request, orm_dsn):
    engine = create_engine(orm_dsn.replace("+asyncpg", f"+{request.param}"))
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE OR REPLACE PROCEDURE text_fill() LANGUAGE sql AS "
            "'INSERT INTO text_first (id) VALUES (50)'"
        )
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


def told(engine, statement, parameters=None, *, end="commit"):
    with action() as scope, Session(engine) as session:
        session.execute(text(statement), parameters)
        getattr(session, end)()
    return scope


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("TRUNCATE text_first, text_second", [("delete", "text_first"), ("delete", "text_second")]),
        ("EXPLAIN INSERT INTO text_first VALUES (1)", []),
        ("EXPLAIN ANALYZE INSERT INTO text_first VALUES (1)", [("insert", "text_first")]),
        ("INSERT INTO Text_First (id) VALUES (1)", [("insert", "text_first")]),
        ('INSERT INTO public . "text_first" (id) VALUES (1)', [("insert", "public.text_first")]),
        (
            (
                "WITH a AS (INSERT INTO text_first (id) VALUES (1) RETURNING id) "
                "INSERT INTO text_second SELECT id FROM a"
            ),
            [("insert", "text_second"), ("insert", "text_first")],
        ),
        ("SELECT $x$ DELETE FROM text_first $x$ /* ; /* */ DELETE FROM text_first */", []),
        ("CALL text_fill()", [("update", "text_fill")]),
        ("DO $$ BEGIN DELETE FROM text_first; END $$", [("update", "?")]),
        (
            (
                "MERGE INTO text_first t USING (SELECT 1 AS i) s ON t.id = s.i "
                "WHEN NOT MATCHED THEN INSERT (id) VALUES (s.i)"
            ),
            [("update", "text_first")],
        ),
    ],
)
def test_writes(engine, capture, statement, expected):
    """What a text writes is found, under the names that the database has for it."""
    changes = told(engine, statement).changes
    assert [(one.operation, one.table) for one in changes] == expected


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_what_follows_a_commit(engine, capture, end):
    """It is committed with the text, whatever comes after."""
    scope = told(
        engine,
        "INSERT INTO text_second VALUES (1); COMMIT; INSERT INTO text_first (id) VALUES (1)",
        end=end,
    )
    with Session(engine) as session:
        assert session.scalars(select(First.id)).all() == [1]
    assert [one.table for one in scope.changes] == ["text_second", "text_first"]
    assert scope.transaction == "committed"


def test_a_savepoint_in_a_text(engine, capture):
    """What is undone to it is not told."""
    with action() as scope, Session(engine) as session:
        session.execute(text("SAVEPOINT q; INSERT INTO text_first (id) VALUES (1)"))
        session.execute(text("ROLLBACK TO q; INSERT INTO text_second VALUES (1)"))
        session.commit()
    assert [one.table for one in scope.changes] == ["text_second"]
    assert scope.changes_rolled_back == 1


def test_rows_of_one_statement(engine, capture):
    """The row count is told for the one write that a text is."""
    told(engine, "INSERT INTO text_first (id) VALUES (1), (2)")
    (change,) = told(engine, "UPDATE text_first SET note = 'x' WHERE id > 0").changes
    assert change.rows == 2
    assert change.statement == "UPDATE text_first SET note = '…' WHERE id > 0"


def test_parameters(engine, capture):
    """Marks hold for the placeholders of these drivers."""
    scope = told(
        engine,
        "INSERT INTO text_first (id, note, code) VALUES (:i, :n, :c) "
        "ON CONFLICT (id) DO UPDATE SET code = :d, note = 'n' || CAST(:e AS text)",
        {"i": 1, "n": "seen", "c": "S3CR3T", "d": "S3CR3T", "e": "too"},
    )
    (change,) = scope.changes
    hidden = "[REDACTED]"
    assert change.parameters == {"i": 1, "n": "seen", "c": hidden, "d": hidden, "e": "too"}
    with action() as scope, engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE text_first SET code = %s WHERE note LIKE 'n%%' AND id = %s", ("S3CR3T", 1)
        )
    assert scope.changes[0].parameters == [hidden, 1]
