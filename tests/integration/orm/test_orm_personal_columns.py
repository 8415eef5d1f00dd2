"""A column that a model marks as personal is named in each change, and encrypted where it is stored."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from orm_harness import SqliteStore, capturing
from otel_audit_postgres.personal.protect import read_fields
from sqlalchemy import ForeignKey, create_engine, delete, insert, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

PERSONAL = {"audit": "personal"}


@pytest.fixture(scope="module")
def models():
    """Marked models, for as long as this module's tests run: others must not meet them."""

    class Base(DeclarativeBase):
        pass

    class Person(Base):
        __tablename__ = "persons"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(default="person")
        email: Mapped[str | None] = mapped_column("e_mail", info=PERSONAL, unique=True)
        city: Mapped[str | None]
        password: Mapped[str | None] = mapped_column(info=PERSONAL)
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    class Clerk(Person):
        __tablename__ = "clerks"
        id: Mapped[int] = mapped_column(ForeignKey("persons.id"), primary_key=True)
        phone: Mapped[str | None] = mapped_column(info=PERSONAL)
        __mapper_args__ = {"polymorphic_identity": "clerk"}

    class Letter(Base):
        __tablename__ = "letters"
        id: Mapped[int] = mapped_column(primary_key=True)
        to: Mapped[str | None] = mapped_column(ForeignKey("persons.e_mail"))
        shown: Mapped[str | None] = mapped_column(
            ForeignKey("persons.e_mail"), info={"audit": True}
        )

    yield SimpleNamespace(Base=Base, Person=Person, Clerk=Clerk, Letter=Letter)
    Base.registry.dispose()
    Base.metadata.clear()


@pytest.fixture
def persons(tmp_path, models):
    engine = create_engine(f"sqlite:///{tmp_path / 'persons.db'}")
    models.Base.metadata.create_all(engine)
    with capturing():
        yield SqliteStore(engine)
    engine.dispose()


async def test_is_named_in_every_kind_of_change(persons, models):
    """Objects, an inheriting class, a foreign key, and statements without objects."""
    Person, Clerk, Letter = models.Person, models.Clerk, models.Letter  # noqa: N806 - classes

    def write(session):
        session.add(Person(id=1, email="a@example.com", city="Bonn"))
        session.add(Clerk(id=2, email="b@example.com", phone="0228"))
        session.flush()
        session.add(Letter(id=1, to="a@example.com", shown="a@example.com"))
        session.flush()
        session.get(Person, 1).city = "Ulm"
        session.flush()
        session.get(Person, 1).email = None
        session.flush()

    changes = await persons.changes(write)
    told = {(one.entity, one.operation, tuple(sorted(one.values))): one.personal for one in changes}
    by_entity = {key[:2]: value for key, value in told.items()}
    assert by_entity["Clerk", "insert"] == ("e_mail", "phone")
    assert by_entity["Letter", "insert"] == ("to",)
    updates = {key[2]: value for key, value in told.items() if key[:2] == ("Person", "update")}
    assert updates == {("city",): (), ("e_mail",): ("e_mail",)}

    for statement in (
        insert(Person).values(id=3, email="c@example.com"),
        update(Person).where(Person.id == 3).values(email="d@example.com"),
        delete(Person).where(Person.email == "d@example.com"),
        text("UPDATE persons SET e_mail = :address WHERE id = 1").bindparams(
            address="e@example.com"
        ),
    ):
        found = await persons.changes(lambda session, it=statement: session.execute(it))
        assert found
        assert all("e_mail" in one.personal for one in found)


async def test_is_kept_readable_and_a_secret_stays_one(persons, models):
    """The mark hides nothing from the audit, and undoes no redaction."""
    (change,) = await persons.changes(
        lambda session: session.add(models.Person(id=1, email="a@example.com", password="S3CR3T"))
    )
    assert change.values["e_mail"] == [None, "a@example.com"]
    assert "S3CR3T" not in str(change)
    assert "e_mail" in read_fields([]).columns(change)
