"""A row has one reference, whether its key comes from the application or from the database."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from orm_harness import capturing, postgres_store, sqlite_store
from sqlalchemy import (
    CHAR,
    Column,
    Float,
    ForeignKey,
    LargeBinary,
    Numeric,
    Table,
    Uuid,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from otel_audit.orm import OrmOptions

UPPER = "0F0E0D0C-0B0A-4908-8706-050403020100"


class Reversed(TypeDecorator[bytes]):
    """Bytes in the other order."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return None if value is None else value[::-1]

    def process_result_value(self, value, dialect):
        return None if value is None else bytes(value)[::-1]


class Base(DeclarativeBase):
    pass


KINDS: dict[str, tuple[Any, Any, str]] = {
    "binary": (LargeBinary(16), b"\x01\x02\xff", "0102ff"),
    "own": (Reversed(), b"\x01\x02\xff", "ff0201"),
    "number": (Numeric(10, 2), Decimal("1.5"), "1.5"),
    "round": (Numeric(10, 2), Decimal(100), "100"),
    "fixed": (CHAR(6), "ab", "ab"),
    "uuid": (Uuid(as_uuid=False), UPPER, UPPER.lower()),
    "float": (Float(), 2.0, "2.0"),
}
CLASSES: dict[str, Any] = {
    name: type(
        f"Spelled{name.title()}",
        (Base,),
        {
            "__module__": __name__,
            "__tablename__": f"spelled_{name}",
            "id": mapped_column(kind, primary_key=True, autoincrement=False),
            "count": mapped_column(Numeric(10, 2), nullable=True),
        },
    )
    for name, (kind, _, _) in KINDS.items()
}

joined = Table(
    "spelled_joined",
    Base.metadata,
    Column("left_id", ForeignKey("spelled_left.id"), primary_key=True),
    Column("right_id", ForeignKey("spelled_right.id"), primary_key=True),
)


class SpelledLeft(Base):
    __tablename__ = "spelled_left"
    id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    rights: Mapped[list[SpelledRight]] = relationship(secondary=joined)


class SpelledRight(Base):
    __tablename__ = "spelled_right"
    id: Mapped[Decimal] = mapped_column(Numeric(10, 2), primary_key=True, autoincrement=False)


@pytest.fixture
def sqlite(tmp_path):
    with sqlite_store(tmp_path / "keys.db", Base.metadata) as found:
        yield found


@pytest.fixture
async def pg(orm_dsn):
    async with postgres_store(orm_dsn, Base.metadata) as found:
        yield found


@pytest.mark.parametrize("kind", KINDS)
async def test_all_changes_of_a_row(store, kind):
    """Insert, update, a statement that is told row by row, and delete name the same row."""
    mapped, (_, given, spelled) = CLASSES[kind], KINDS[kind]
    if kind == "uuid" and store.name == "sqlite":
        given = UPPER.lower()  # SQLAlchemy does not find the other one again there

    def work(session):
        session.add(mapped(id=given))
        session.commit()
        session.expunge_all()
        (found,) = session.query(mapped).all()
        found.count = 1
        session.commit()
        session.execute(update(mapped).values(count=2))
        session.delete(found)

    with capturing(OrmOptions(before_images=(mapped.__tablename__,))) as capture:
        changes = await store.changes(work)
    rows = [one for one in changes if one.kind == "entity"]
    assert [one.operation for one in rows] == ["insert", "update", "update", "delete"]
    assert {one.reference for one in rows} == {f"spelled_{kind}:{spelled}"}
    assert capture.errors == 0


async def test_associations(capture, store):
    """The row of an association names both sides as they name themselves."""
    left, right = SpelledLeft(id=b"\x0a\x0b"), SpelledRight(id=Decimal("7.50"))
    left.rights.append(right)
    changes = await store.changes(lambda session: session.add(left))
    by_kind = {one.table: one for one in changes}
    assert {
        by_kind["spelled_left"].reference,
        by_kind["spelled_right"].reference,
    } == {"spelled_left:0a0b", "spelled_right:7.5"}
    assert {"spelled_left:0a0b", "spelled_right:7.5"} <= set(by_kind["spelled_joined"].related)
