"""What of SQLAlchemy's `app_engine` takes, and which changes are recorded then."""

from __future__ import annotations

from typing import ClassVar

import pytest
from orm_models import Base, Customer, Order, PostgresBase, Tag
from sqlalchemy import MetaData, create_engine, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import otel_audit
from otel_audit import AuditConfig
from otel_audit.errors import InstrumentationError
from otel_audit.orm import sources_of
from otel_audit.testing import recorded


class OtherBase(DeclarativeBase):
    pass


class Note(OtherBase):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    words: Mapped[str]


class Watched(AsyncSession):
    """Async sessionmakers are told apart by class and engine."""


@pytest.fixture
def engine(tmp_path):
    made = create_engine(f"sqlite:///{tmp_path / 'first.db'}")
    Base.metadata.create_all(made)
    OtherBase.metadata.create_all(made)
    yield made
    made.dispose()


@pytest.fixture
def other_engine(tmp_path):
    made = create_engine(f"sqlite:///{tmp_path / 'second.db'}")
    Base.metadata.create_all(made)
    OtherBase.metadata.create_all(made)
    yield made
    made.dispose()


def write(make, *things: object) -> None:
    with make() as session:
        session.add_all(things)
        session.commit()


def entities(source: object, *work) -> list[str]:
    """The classes of what is recorded of some work."""
    with recorded(app_engine=source) as records, otel_audit.audit("work.done"):
        for one in work:
            one()
    return sorted(change.entity for change in records.one("work.done").changes)


class TestOne:
    def test_engine(self, engine, other_engine):
        """Connections of that engine, whoever's sessions they serve."""
        found = entities(
            engine,
            lambda: write(sessionmaker(engine), Customer(full_name="a")),
            lambda: write(sessionmaker(other_engine), Tag(code="t")),
        )
        assert found == ["Customer"]

    def test_sessionmaker(self, engine):
        """Its sessions, and not those of another one over the same engine."""
        watched, other = sessionmaker(engine), sessionmaker(engine)

        def fail_part_way() -> None:
            with other() as session, pytest.raises(IntegrityError):
                session.connection().execute(insert(Tag), [{"code": "u"}, {"code": "u"}])
            session.commit()

        found = entities(
            watched,
            lambda: write(watched, Customer(full_name="a")),
            lambda: write(other, Order(tags=[Tag(code="t")])),
            fail_part_way,
        )
        assert found == ["Customer"]

    async def test_async_sessionmaker(self, pg):
        """The same, through asyncpg."""
        watched = async_sessionmaker(pg.async_engine, class_=Watched)
        other = async_sessionmaker(pg.async_engine)
        with recorded(app_engine=watched) as records:
            async with otel_audit.audit("work.done"):
                async with watched.begin() as session:
                    session.add(Customer(full_name="a"))
                async with other.begin() as session:
                    session.add(Tag(code="t"))
        assert [change.entity for change in records.one("work.done").changes] == ["Customer"]

    async def test_async_scoped_session(self, pg):
        """A registry stands for the sessionmaker in it."""
        watched = async_sessionmaker(pg.async_engine, class_=Watched)
        registry = async_scoped_session(watched, scopefunc=lambda: 1)
        with recorded(app_engine=registry) as records:
            async with otel_audit.audit("work.done"):
                registry.add(Customer(full_name="a"))
                await registry.commit()
                await registry.remove()
                async with AsyncSession(pg.async_engine) as session, session.begin():
                    session.add(Tag(code="t"))
        assert [change.entity for change in records.one("work.done").changes] == ["Customer"]

    def test_declarative_base(self, engine):
        """Classes that derive from it, and statements on its tables."""

        def by_statement() -> None:
            with engine.begin() as connection:
                connection.execute(insert(Customer.__table__).values(name="b"))
                connection.execute(insert(Note.__table__).values(words="b"))

        found = entities(
            Base,
            lambda: write(sessionmaker(engine), Customer(full_name="a"), Note(words="n")),
            by_statement,
        )
        assert found == ["Customer", "Customer"]

    def test_nothing_given(self, engine, other_engine):
        """All is recorded."""
        found = entities(
            None,
            lambda: write(sessionmaker(engine), Customer(full_name="a"), Note(words="n")),
            lambda: write(sessionmaker(other_engine), Tag(code="t")),
        )
        assert found == ["Customer", "Note", "Tag"]


class TestSeveral:
    @pytest.mark.parametrize("several", [list, tuple, set, frozenset])
    def test_of_one_kind(self, engine, other_engine, tmp_path, several):
        """Any of them will do."""
        third = create_engine(f"sqlite:///{tmp_path / 'third.db'}")
        Base.metadata.create_all(third)
        found = entities(
            several([engine, other_engine]),
            lambda: write(sessionmaker(engine), Customer(full_name="a")),
            lambda: write(sessionmaker(other_engine), Tag(code="t")),
            lambda: write(sessionmaker(third), Customer(full_name="c")),
        )
        third.dispose()
        assert found == ["Customer", "Tag"]

    def test_sessionmakers(self, engine):
        """The same for sessionmakers."""
        first, second, third = (sessionmaker(engine) for _ in range(3))
        found = entities(
            [first, second],
            lambda: write(first, Customer(full_name="a")),
            lambda: write(second, Tag(code="t")),
            lambda: write(third, Note(words="n")),
        )
        assert found == ["Customer", "Tag"]

    def test_of_different_kinds(self, engine, other_engine):
        """What is in each of them: classes of that base, and only on that engine."""
        found = entities(
            [engine, Base],
            lambda: write(sessionmaker(engine), Customer(full_name="a"), Note(words="n")),
            lambda: write(sessionmaker(other_engine), Tag(code="t")),
        )
        assert found == ["Customer"]

    async def test_sorted(self, engine):
        """Each goes to the option it belongs to; an asynchronous engine is the one inside it."""
        asynchronous = create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/nothing")
        made, made_async = sessionmaker(engine), async_sessionmaker(asynchronous)
        found = sources_of([made, Base, asynchronous, engine, made_async, PostgresBase])
        assert found == {
            "engines": (asynchronous.sync_engine, engine),
            "sessionmakers": (made, made_async),
            "bases": (Base, PostgresBase),
        }
        await asynchronous.dispose()


class NoBase:
    """Has something called metadata, as classes of many packages have."""

    metadata: ClassVar = {"a": 1}


class TestWrong:
    @pytest.mark.parametrize(
        ("given", "named"),
        [
            ("postgresql://shop@db/shop", "str"),
            (42, "int"),
            ({"main": 1}, "dict"),
            (Session(), "Session"),
            (Session, "Session"),
            (DeclarativeBase, "DeclarativeBase"),
            (MetaData(), "MetaData"),
            (NoBase, "NoBase"),
            (create_engine, "function"),
        ],
        ids=lambda one: one if isinstance(one, str) else type(one).__name__,
    )
    def test_refused(self, given, named):
        """The message names the argument, what it takes, and what was given; nothing is begun."""
        with pytest.raises(InstrumentationError) as refused:
            otel_audit.instrument(app_engine=given, config=AuditConfig(exporter="console"))
        message = str(refused.value)
        assert message.startswith("app_engine: an engine, a sessionmaker or a declarative base")
        assert message.endswith(f"not {named}")
        assert "shop@db" not in message
        assert otel_audit.health() == {"auditing": False}

    def test_one_of_several(self, engine):
        """One that is wrong among right ones is refused too, rather than left out."""
        with (
            pytest.raises(InstrumentationError, match="not str$"),
            recorded(app_engine=[engine, "engine"]),
        ):
            pass
        assert otel_audit.health() == {"auditing": False}

    def test_works_after_the_mistake(self, engine):
        """What was refused leaves nothing behind."""
        with pytest.raises(InstrumentationError):
            otel_audit.instrument(app_engine=42, config=AuditConfig(exporter="console"))
        make = sessionmaker(engine)
        assert entities(make, lambda: write(make, Customer(full_name="a"))) == ["Customer"]
