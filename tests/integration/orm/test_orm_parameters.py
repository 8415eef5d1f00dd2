"""A parameter is shown as its column may be, whatever it is called and however it gets there."""

from __future__ import annotations

import json

import pytest
from orm_harness import SqliteStore, capturing
from sqlalchemy import (
    DDL,
    JSON,
    ForeignKey,
    bindparam,
    case,
    column,
    create_engine,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    not_,
    or_,
    select,
    table,
    text,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

from otel_audit.orm import OrmOptions

SECRET, NUMBER = "S3CR3T", 987654


class Base(DeclarativeBase):
    pass


class Card(Base):
    __tablename__ = "card"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None]
    code: Mapped[str | None] = mapped_column(info={"audit": "redact"})
    pin: Mapped[int | None] = mapped_column(info={"audit": "redact"})
    salary: Mapped[int | None] = mapped_column(info={"audit": "omit"})
    document = mapped_column(JSON)


class Hidden(Base):
    __tablename__ = "hidden"
    __audit__ = False
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[str | None]


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    pin: Mapped[int | None] = mapped_column(info={"audit": "redact"})
    salary: Mapped[int | None] = mapped_column(info={"audit": "omit"})
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "p"}


class Engineer(Person):
    __tablename__ = "engineer"
    id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    language: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "e"}


card, hidden = Card.__table__, Hidden.__table__
derived = select((card.c.note + bindparam("derived", SECRET)).label("made")).subquery()
named_only = table("card", column("code"), column("note"))
other_card = aliased(Card)
noted = update(card).values(note="seen")

STATEMENTS = {
    "a name of its own": (update(card).values(code=bindparam("fresh")), {"fresh": SECRET}),
    "in a criterion": (noted.where(card.c.code == bindparam("w")), {"w": SECRET}),
    "a number": (update(card).values(pin=bindparam("n")), {"n": NUMBER}),
    "left out": (update(card).values(salary=bindparam("n"), note="seen"), {"n": NUMBER}),
    "function": (noted.where(func.lower(card.c.code) == SECRET), None),
    "case": (update(card).values(code=case((card.c.id == 1, SECRET), else_=SECRET)), None),
    "operator": (update(card).values(code=card.c.note + SECRET), None),
    "subquery": (update(card).values(code=select(literal(SECRET)).scalar_subquery()), None),
    "derived table": (update(card).values(code=select(derived.c.made).scalar_subquery()), None),
    "with": (
        update(card).values(
            code=select(select(literal(SECRET).label("v")).cte("k").c.v).scalar_subquery()
        ),
        None,
    ),
    "list": (delete(card).where(card.c.code.in_([SECRET, "b"])), None),
    "list by name": (
        delete(card).where(card.c.code.in_(bindparam("some", expanding=True))),
        {"some": [SECRET, "b"]},
    ),
    "tuples": (delete(card).where(tuple_(card.c.note, card.c.code).in_([("a", SECRET)])), None),
    "between": (noted.where(card.c.pin.between(NUMBER, NUMBER + 1)), None),
    "not, or": (delete(card).where(not_(or_(card.c.code == SECRET, card.c.note == "x"))), None),
    "operator by text": (delete(card).where(card.c.code.op("GLOB")(SECRET)), None),
    "contains": (delete(card).where(card.c.code.contains(SECRET)), None),
    "from a query": (
        insert(card).from_select(["note", "code"], select(literal("seen"), literal(SECRET))),
        None,
    ),
    "from an expression": (
        insert(card).from_select(["code"], select(card.c.note + SECRET)),
        None,
    ),
    "from a union": (
        insert(card).from_select(
            ["note", "code"],
            union_all(
                select(literal("seen"), literal(SECRET)), select(literal("b"), literal(SECRET))
            ),
        ),
        None,
    ),
    "several rows": (insert(card).values([{"code": SECRET}, {"code": SECRET}]), None),
    "many sets": (
        insert(card),
        [{"note": "seen", "code": SECRET, "pin": NUMBER}, {"note": "b", "code": SECRET, "pin": 1}],
    ),
    "many, returning": (
        insert(card).returning(card.c.id),
        [{"code": SECRET, "pin": NUMBER}, {"code": SECRET, "pin": NUMBER}],
    ),
    "upsert": (
        upsert(card)
        .values(id=1, note="seen")
        .on_conflict_do_update(index_elements=["id"], set_={"code": SECRET, "note": "seen"}),
        None,
    ),
    "upsert by name": (
        upsert(card)
        .values(id=1)
        .on_conflict_do_update(index_elements=["id"], set_={"code": bindparam("q")}),
        {"q": SECRET},
    ),
    "upsert where": (
        upsert(card)
        .values(id=1)
        .on_conflict_do_update(
            index_elements=["id"], set_={"note": "n"}, where=card.c.code == SECRET
        ),
        None,
    ),
    "beside a query": (
        noted.where(card.c.id + select(func.max(card.c.pin)).scalar_subquery() == bindparam("x")),
        {"x": NUMBER},
    ),
    "in a query": (noted.where(bindparam("x").in_(select(card.c.pin))), {"x": NUMBER}),
    "in a query for all": (
        noted.where(
            bindparam("x") == union_all(select(card.c.id), select(card.c.pin)).scalar_subquery()
        ),
        {"x": NUMBER},
    ),
    "text, beside a query": (
        text("UPDATE card SET note = 'n' WHERE id + (SELECT max(pin) FROM card) = :x"),
        {"x": NUMBER},
    ),
    "text, in a query": (
        text("DELETE FROM card WHERE :x IN (SELECT pin FROM card)"),
        {"x": NUMBER},
    ),
    "literal column": (noted.where(literal_column("code") == SECRET), None),
    "literal expression": (noted.where(literal_column("lower(code)") == SECRET), None),
    "literal text": (update(card).values(code=literal_column(f"'{SECRET}'")), None),
    "literal number": (update(card).values(pin=literal_column(str(NUMBER))), None),
    "rendered": (
        update(card).values(pin=bindparam("n", literal_execute=True)),
        {"n": NUMBER},
    ),
    "text as a value": (update(card).values(code=text(":q").bindparams(q=SECRET)), None),
    "text as a criterion": (noted.where(text("code = :q AND note = :n")), {"q": SECRET, "n": "x"}),
    "table by name": (update(named_only).values(code=SECRET, note="seen"), None),
    "aliased": (
        noted.where(card.c.id.in_(select(other_card.id).where(other_card.code == SECRET))),
        None,
    ),
    "of another class": (
        noted.where(exists(select(hidden.c.id).where(hidden.c.value == SECRET))),
        None,
    ),
    "document": (noted.where(card.c.document["password"].as_string() == SECRET), None),
    "in a document": (
        update(card).values(document=func.json_set(card.c.document, "$.password", SECRET)),
        None,
    ),
    "orm": (update(Card).where(Card.note == "seen").values({Card.code: SECRET}), None),
    "orm, many": (insert(Card), [{"note": "seen", "code": SECRET, "pin": NUMBER}]),
    "orm, by key": (update(Card), [{"id": 1, "code": SECRET}]),
    "text": (text("UPDATE card SET code = :h, note = :n"), {"h": SECRET, "n": "seen"}),
    "text, a number": (text(f"UPDATE card SET pin = {NUMBER} WHERE id = 1"), None),
    "text, inserting": (
        text("INSERT INTO card (note, code) VALUES (:a, :b)"),
        {"a": "seen", "b": SECRET},
    ),
    "text, from a query": (
        text("INSERT INTO card (note, code) SELECT :a, note || :b FROM card"),
        {"a": "seen", "b": SECRET},
    ),
    "text, derived": (
        text("UPDATE card SET code = (SELECT v FROM (SELECT note || :b AS v FROM card))"),
        {"b": SECRET},
    ),
    "text, other case": (text('UPDATE CARD SET CODE = :b, "Note" = :n'), {"b": SECRET, "n": "x"}),
    "text, left out": (text("UPDATE card SET salary = :b"), {"b": NUMBER}),
    "text, without columns": (
        text("INSERT INTO card VALUES (:i, 'n', :c, :p, 1, NULL)"),
        {"i": 77, "c": SECRET, "p": NUMBER},
    ),
    "text, a list": (
        text("DELETE FROM card WHERE code IN :some").bindparams(bindparam("some", expanding=True)),
        {"some": [SECRET, "b"]},
    ),
    "comment": (noted.prefix_with(f"/* {SECRET} */"), None),
    "definition": (DDL(f"INSERT INTO card (code) VALUES ('{SECRET}')"), None),
}
SHOWN = {
    "left out": {"note": "seen"},
    "from a query": {"param_1": "seen"},
    "upsert": {"id": 1, "note": "seen", "param_1": "seen"},
    "text": {"n": "seen"},
    "text, inserting": {"a": "seen"},
    "text, from a query": {"a": "seen"},
    "text, other case": {"n": "x"},
    "text as a criterion": {"n": "x", "note": "seen"},
    "orm": {"note_1": "seen"},
}


@pytest.fixture(scope="module")
def engine():
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Card(id=1, document={"city": "x"}))
        session.commit()
    return engine


def work_of(statement, parameters):
    def work(session):
        session.execute(statement, parameters) if parameters else session.execute(statement)

    return work


@pytest.fixture
def execute(engine):
    store = SqliteStore(engine)

    async def run(statement, parameters=None, options=None):
        with capturing(options) as capture:
            changes = await store.changes(work_of(statement, parameters))
        assert capture.errors == 0
        return changes

    return run


class TestMarks:
    @pytest.mark.parametrize("kind", STATEMENTS)
    async def test_they_hold(self, execute, kind):
        """What is marked is not shown, in the parameters or in the text; the rest is."""
        changes = await execute(*STATEMENTS[kind])
        assert changes
        for change in changes:
            told = json.dumps([change.parameters, change.statement])
            assert SECRET not in told
            assert str(NUMBER) not in told
        expected = SHOWN.get(kind, {})
        assert expected.items() <= dict(changes[0].parameters if expected else {}).items()

    @pytest.mark.parametrize(
        ("statement", "parameters", "shown"),
        [
            ("UPDATE card SET code = ?, note = ?", (SECRET, "seen"), ["[REDACTED]", "seen"]),
            ("UPDATE card SET salary = ?, note = ?", (5, "seen"), ["[WITHHELD]", "seen"]),
            (
                "INSERT INTO card (note, code) VALUES (?, ?)",
                [("seen", SECRET), ("too", SECRET)],
                [["seen", "[REDACTED]"], ["too", "[REDACTED]"]],
            ),
            (
                "UPDATE card SET code = :a, note = :b",
                {"a": SECRET, "b": "seen"},
                {"a": "[REDACTED]", "b": "seen"},
            ),
            ("INSERT INTO card VALUES (?, 'n', ?, 5, 6, NULL)", (88, SECRET), ["[WITHHELD]"] * 2),
        ],
    )
    async def test_in_statements_of_the_driver(self, engine, statement, parameters, shown):
        """Parameters that the driver is given are judged by the text."""
        with capturing() as capture:
            (change,) = await SqliteStore(engine).changes(
                lambda s: s.connection().exec_driver_sql(statement, parameters)
            )
        assert change.parameters == shown
        assert capture.errors == 0

    async def test_names_in_quotes(self, execute):
        """SQLite takes what is in double quotes for a text only where it is no column."""
        statement = text(f'UPDATE card SET note = "code", code = "{SECRET}" WHERE "id" = "pin"')
        (change,) = await execute(statement)
        assert change.statement == ('UPDATE card SET note = "code", code = "…" WHERE "id" = "pin"')

    async def test_a_very_long_text(self, execute):
        """No value of it is shown, as it would take long to tell which may be."""
        rows = ", ".join(f"({n}, '{SECRET}')" for n in range(1_000, 4_000))
        (change,) = await execute(
            text(f"INSERT INTO card (id, code) VALUES {rows}, (:i, :n)"), {"i": 9, "n": 9}
        )
        assert change.rows == 3_001
        assert change.parameters == {"i": "[WITHHELD]", "n": "[WITHHELD]"}
        assert change.statement.startswith("INSERT INTO card (id, code) VALUES (…, '…')")
        assert change.statement.endswith("characters in all]")
        assert len(change.statement) < 3_000

    async def test_a_number_of_rows_is_shown(self, execute):
        """A LIMIT is no value of a column."""
        some = select(card.c.id).where(card.c.id > 5_000).limit(7)
        (change,) = await execute(delete(card).where(card.c.id.in_(some)))
        assert change.parameters["id_1"] == 5_000
        assert change.parameters["param_1"] == 7

    async def test_a_document_is_judged_by_the_name_within(self, execute):
        """The same statement with another name: what it holds is shown."""
        (change,) = await execute(noted.where(card.c.document["city"].as_string() == "Rome"))
        assert "Rome" in change.parameters.values()

    async def test_subclasses(self, execute):
        """Rows of a subclass are inserted into two tables, and each is named."""
        changes = await execute(
            insert(Engineer), [{"language": "py", "pin": NUMBER, "salary": 99_000}]
        )
        assert [one.table for one in changes] == ["person", "engineer"]
        assert changes[0].parameters["pin"] == "[REDACTED]"
        assert "salary" not in changes[0].parameters
        assert changes[1].parameters["language"] == "py"

    async def test_subclasses_by_key(self, execute):
        """The same for updates by key."""
        await execute(insert(Engineer), [{"id": 500, "language": "py"}])
        changes = await execute(update(Engineer), [{"id": 500, "language": "c", "pin": NUMBER}])
        assert sorted(one.table for one in changes) == ["engineer", "person"]
        assert str(NUMBER) not in str([one.parameters for one in changes])


async def test_a_marked_boolean_and_what_is_no_value(engine):
    """True and false are values as any other; that there is none is shown."""

    class Own(DeclarativeBase):
        pass

    class Case(Own):
        __tablename__ = "court_case"
        id: Mapped[int] = mapped_column(primary_key=True)
        guilty: Mapped[bool | None] = mapped_column(info={"audit": "redact"})
        closed: Mapped[bool | None]

    Own.metadata.create_all(engine)
    rows = [
        {"id": 1, "guilty": True, "closed": True},
        {"id": 2, "guilty": None, "closed": None},
    ]
    with capturing():
        (change,) = await SqliteStore(engine).changes(
            lambda s: s.execute(insert(Case.__table__), rows)
        )
    assert change.parameters == [
        {"id": 1, "guilty": "[REDACTED]", "closed": True},
        {"id": 2, "guilty": None, "closed": None},
    ]


class TestSelection:
    @pytest.mark.parametrize(
        "statement",
        [
            text("UPDATE hidden SET value = 'x'"),
            text("INSERT INTO HIDDEN (id) VALUES (7)"),
            text("WITH x AS (SELECT 1) DELETE FROM hidden"),
            update(Hidden).values(value="x"),
            DDL("DELETE FROM hidden"),
        ],
    )
    async def test_a_class_that_is_not_to_be_audited(self, execute, statement):
        """It is left out of texts as well."""
        assert await execute(statement) == []

    @pytest.mark.parametrize(
        "options",
        [
            OrmOptions(exclude_columns=("card.note",)),
            OrmOptions(exclude_columns=("note",)),
            OrmOptions(include_columns=("id",)),
            OrmOptions(include_columns=("card.id",)),
        ],
    )
    @pytest.mark.parametrize(
        "statement",
        [
            text("UPDATE card SET note = :given WHERE id = :which"),
            text("UPDATE card AS c SET note = :given WHERE c.id = :which"),
            update(card).where(card.c.id == bindparam("which")).values(note=bindparam("given")),
        ],
    )
    async def test_columns(self, execute, options, statement):
        """A column that is excluded, or not included, is left out however the statement is made."""
        (change,) = await execute(statement, {"given": "seen", "which": 1}, options)
        assert change.parameters == {"which": 1}

    async def test_tables_that_are_not_known(self, engine, execute):
        """SQLite does not tell cases apart, and neither do the settings."""
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS other (a text)")
        statement = text("INSERT INTO OTHER (a) VALUES ('x')")
        assert await execute(statement, options=OrmOptions(exclude_tables=("other",))) == []
        assert len(await execute(statement, options=OrmOptions(include_tables=("other",)))) == 1
        assert await execute(statement, options=OrmOptions(include_tables=("card",))) == []

    async def test_columns_of_a_table_that_is_not_known(self, engine, execute):
        """They are known by what the text calls them."""
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS loose (a text, password text)")
        statement = text("INSERT INTO loose (a, password) VALUES (:x, :y)")
        (change,) = await execute(statement, {"x": "seen", "y": SECRET})
        assert change.parameters == {"x": "seen", "y": "***"}
        options = OrmOptions(exclude_columns=("loose.a",))
        (change,) = await execute(statement, {"x": "seen", "y": SECRET}, options)
        assert change.parameters == {"y": "***"}
