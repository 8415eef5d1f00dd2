"""A foreign key holds what it refers to: it is shown no further than that."""

from __future__ import annotations

import json

import msgspec
import pytest
from orm_harness import SqliteStore, capturing
from sqlalchemy import Column, ForeignKey, Table, create_engine, insert, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

import otel_audit
from otel_audit import AuditConfig
from otel_audit.orm import OrmOptions
from otel_audit.testing import recorded

SECRET, NUMBER = "S3CR3T", 987654321


class Base(DeclarativeBase):
    pass


vault_keys = Table(
    "vault_keys",
    Base.metadata,
    Column("vault", ForeignKey("vaults.number"), primary_key=True),
    Column("key", ForeignKey("door_keys.k"), primary_key=True),
)


class Key(Base):
    __tablename__ = "door_keys"
    password: Mapped[str] = mapped_column("k", primary_key=True)
    uses: Mapped[int | None]


class Vault(Base):
    __tablename__ = "vaults"
    number: Mapped[int] = mapped_column(primary_key=True, info={"audit": "redact"})
    keys = relationship(Key, secondary=vault_keys)


class Visit(Base):
    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
    with_: Mapped[str | None] = mapped_column("opened_with", ForeignKey("door_keys.k"))
    at: Mapped[int | None] = mapped_column(ForeignKey("vaults.number"))
    shown: Mapped[int | None] = mapped_column(ForeignKey("vaults.number"), info={"audit": True})


class Note(Base):
    __tablename__ = "visit_notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[int | None] = mapped_column(ForeignKey("visits.at"))


class Elsewhere(DeclarativeBase):
    pass


class Remote(Elsewhere):
    __tablename__ = "remotes"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[str | None] = mapped_column(ForeignKey("not_there.password"))


def written(session):
    key, vault = Key(password=SECRET), Vault(number=NUMBER)
    vault.keys = [key]
    session.add(vault)
    session.flush()
    session.add(Visit(id=1, with_=SECRET, at=NUMBER))
    session.flush()
    vault.keys = []
    session.flush()


STATEMENTS = {
    "flush": written,
    "bulk": lambda session: session.execute(
        insert(Visit), [{"id": 2, "with_": SECRET, "at": NUMBER}]
    ),
    "criterion": lambda session: session.execute(
        update(Visit).where(Visit.at == NUMBER).values(with_=SECRET)
    ),
    "text": lambda session: session.execute(
        text("UPDATE visits SET opened_with = :x WHERE at = 987654321"), {"x": SECRET}
    ),
}


@pytest.fixture
def engine():
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE remotes (id INTEGER, at TEXT)"))
    return engine


def shown(changes):
    return json.dumps(msgspec.to_builtins(changes))


@pytest.mark.parametrize("work", STATEMENTS.values(), ids=STATEMENTS)
async def test_no_further_than_what_it_refers_to(engine, work):
    """Marks and names of the column that is referred to hold for the foreign key."""
    options = OrmOptions(before_images=frozenset({"visits"}))
    with capturing(options):
        if work is not written:
            with Session(engine) as session:
                session.add(Visit(id=1, with_=SECRET, at=NUMBER))
                session.commit()
        changes = await SqliteStore(engine).changes(work)
    assert changes
    assert SECRET not in shown(changes)
    assert str(NUMBER) not in shown(changes)


async def test_through_several_tables_and_to_one_that_is_not_known(engine):
    """A foreign key may refer to another one; one that leads nowhere is taken by its name."""

    def work(session):
        session.add(Note(id=1, at=NUMBER))
        session.flush()
        session.connection().execute(insert(Remote.__table__).values(id=1, at=SECRET))

    with capturing():
        note, remote = await SqliteStore(engine).changes(work)
    assert note.values["at"] == [None, "[REDACTED]"]
    assert remote.parameters == {"id": 1, "at": "***"}


async def test_what_is_marked_as_open_is_shown(engine):
    """The application can say that a foreign key is no secret."""

    def work(session):
        session.add(Visit(id=3, shown=7))
        session.flush()

    with capturing():
        (change,) = await SqliteStore(engine).changes(work)
    assert change.values["shown"] == [None, 7]


def test_a_target_whose_key_is_a_secret(engine):
    """An object that an action is about is told without a key that its changes do not show."""
    key, vault, visit = Key(password=SECRET), Vault(number=NUMBER), Visit(id=1)
    with recorded(config=AuditConfig(exporter="none")) as records:
        with Session(engine, expire_on_commit=False) as session:
            for one in (key, vault, visit):
                with otel_audit.audit("thing.made", target=one):
                    session.add(one)
                    session.commit()
        with otel_audit.audit("thing.used", target=key):
            pass
        found = records.find("thing.made")
        assert SECRET not in shown(list(records))
        assert str(NUMBER) not in shown(list(records))
        assert found[2].target.id == "1"
