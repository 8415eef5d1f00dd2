from __future__ import annotations

import logging
import sys

import pytest
from orm_harness import NameRedactor, action, capturing
from orm_models import BrokenType, Customer, Money, Shape
from sqlalchemy import event, insert, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from otel_audit._util.ratelimited_log import forget
from otel_audit.errors import InstrumentationError, MissingExtraError
from otel_audit.orm import OrmOptions, attach, detach


class RaisingRedactor(NameRedactor):
    """Fails on one column, and on every statement."""

    def field(self, name, value):
        if name == "note":
            raise RuntimeError(value)
        return value

    def text(self, text):
        raise RuntimeError(text)


@pytest.fixture
def failing():
    forget()
    errors: list[None] = []
    attachment = attach(RaisingRedactor(), on_error=lambda: errors.append(None))
    yield errors
    detach(attachment)


class TestAttach:
    async def test_attaching_twice(self, sqlite):
        """Attaching again is the same attachment: nothing is recorded twice."""
        redactor = NameRedactor()
        first, second = attach(redactor), attach(redactor)
        try:
            changes = await sqlite.changes(lambda s: s.add(Customer(full_name="a")))
        finally:
            detach(second)
        assert first is second
        assert len(changes) == 1

    async def test_attaching_otherwise(self):
        """Attaching with other options while attached is refused."""
        with capturing(), pytest.raises(InstrumentationError):
            attach(NameRedactor())

    async def test_detaching(self, sqlite):
        """After detaching nothing of ours is left to be called."""
        with capturing() as capture:
            pass
        assert await sqlite.changes(lambda s: s.add(Customer(full_name="a"))) == []
        for one in capture.attachment._listeners:
            assert not event.contains(one.target, one.name, one.call)
        detach(capture.attachment)

    async def test_detaching_in_a_transaction(self, sqlite):
        """What is open when capture is detached is reported as unknown."""
        with action() as scope, Session(sqlite.engine) as session:
            with capturing():
                session.add(Customer(full_name="a"))
                session.flush()
            session.commit()
        assert scope.transaction == "unknown"

    async def test_sqlalchemy_is_missing(self, monkeypatch):
        """Without SQLAlchemy the error names the extra to install."""
        for name in [one for one in sys.modules if one.startswith("otel_audit.orm")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "sqlalchemy", None)
        with pytest.raises(MissingExtraError, match=r"otel-audit\[sqlalchemy\]"):
            import otel_audit.orm  # noqa: F401


class TestRestriction:
    async def test_engines(self, sqlite, pg):
        """Only given engines' connections are captured, also through options of their own."""
        with capturing(OrmOptions(engines=(pg.async_engine,))), action() as scope:
            await sqlite.run(lambda s: (s.add(Customer(full_name="a")), s.commit()))
            await pg.run(lambda s: (s.add(Customer(full_name="b")), s.commit()))
            optional = pg.async_engine.execution_options(logging_token="x")
            async with AsyncSession(optional) as session:
                await session.execute(insert(Customer).values(full_name="c"))
                await session.commit()
            await sqlite.run(lambda s: (s.execute(text("DELETE FROM customer")), s.commit()))
        assert [change.kind for change in scope.changes] == ["entity", "bulk"]

    async def test_sessionmakers(self, sqlite):
        """Only given sessionmakers' sessions are captured."""
        watched, other = sessionmaker(sqlite.engine), sessionmaker(sqlite.engine)
        with capturing(OrmOptions(sessionmakers=(scoped_session(watched),))), action() as scope:
            for number, make in enumerate((watched, other)):
                with make.begin() as session:
                    session.add(Customer(full_name=str(number)))
                    session.flush()
                    session.execute(insert(Customer).values(full_name=str(number)))
        assert [change.kind for change in scope.changes] == ["entity", "bulk"]

    async def test_async_sessionmakers(self, pg):
        """The same for sessionmakers of asynchronous sessions, told by class and engine."""

        class Watched(AsyncSession):
            pass

        watched = async_sessionmaker(pg.async_engine, class_=Watched)
        other = async_sessionmaker(pg.async_engine)
        with capturing(OrmOptions(sessionmakers=(watched,))), action() as scope:
            for number, make in enumerate((watched, other)):
                async with make.begin() as session:
                    session.add(Customer(full_name=str(number)))
        assert [change.values["name"][1] for change in scope.changes] == ["0"]

    async def test_no_engine(self):
        """Something that is no engine is refused when capture is attached."""
        with pytest.raises(TypeError, match="Engine"):
            attach(NameRedactor(), options=OrmOptions(engines=("no engine",)))


class TestBadInput:
    async def test_unprintable_objects(self, capture, store):
        """Models that raise in `__repr__` or in a property are captured all the same."""
        (change,) = await store.changes(lambda s: s.add(Customer(full_name="a")))
        assert change.note is None

    async def test_value_that_cannot_be_read(self, capture, store):
        """A value without a JSON form is named by its type."""
        (change,) = await store.changes(lambda s: s.add(Shape(x=1, y=2, price=Money(1, "EUR"))))
        assert change.values["price"] == [None, "1 EUR"]

    async def test_type_that_raises(self, capture, store):
        """A type that raises while it is read loses its value, not the entry, and is named."""

        def work(session):
            session.add(Shape(x=1, y=2, odd=object()))
            # it raises only after the INSERT has been sent
            event.listen(
                store.engine,
                "after_cursor_execute",
                lambda *what: setattr(BrokenType, "failing", what[2].startswith("INSERT")),
            )

        try:
            (change,) = await store.changes(work)
        finally:
            BrokenType.failing = False
        assert change.values["odd"] == [None, {"_type": "builtins.object"}]
        assert change.note == "not readable: odd (RuntimeError)"
        assert change.values["x"] == [None, 1]

    @pytest.mark.allow_errors
    async def test_redactor_that_raises_on_a_value(self, failing, store):
        """A redactor that raises withholds that value."""
        (change,) = await store.changes(lambda s: s.add(Customer(full_name="a", note="hunter2")))
        assert change.values["note"] == [None, {"_type": "builtins.str"}]
        assert "note" in change.note

    @pytest.mark.allow_errors
    async def test_redactor_that_raises_on_a_statement(self, failing, store, caplog):
        """A statement that cannot be described leaves an entry that says so, and a log line."""
        with caplog.at_level(logging.ERROR, "otel_audit.orm"):
            for _ in range(3):
                (change,) = await store.changes(
                    lambda s: s.execute(text("DELETE FROM customer WHERE name = 'hunter2'"))
                )
                assert change.kind == "untracked"
        assert len(failing) == 3
        assert sum(line.name.startswith("otel_audit.orm") for line in caplog.records) == 1
        assert "hunter2" not in caplog.text

    @pytest.mark.allow_errors
    async def test_listener_that_raises(self, store, monkeypatch):
        """If reading a whole row fails the application goes on, and the entry says so."""
        from otel_audit.orm import flush

        def broken(*_):
            raise RuntimeError("hunter2")

        forget()
        monkeypatch.setattr(flush, "describe_insert", broken)
        with capturing() as capture:
            (change,) = await store.changes(lambda s: s.add(Customer(full_name="a")))
        assert (change.kind, change.entity) == ("untracked", "Customer")
        assert change.note == "could not be described: RuntimeError"
        assert capture.errors == 1

    @pytest.mark.allow_errors
    async def test_orphans_that_raise(self, sqlite):
        """A callback that raises is counted; the commit has worked."""
        forget()

        def refuse(_outcome, _changes):
            raise RuntimeError("hunter2")

        errors: list[None] = []
        attachment = attach(NameRedactor(), on_orphan=refuse, on_error=lambda: errors.append(None))
        try:
            await sqlite.run(lambda s: (s.add(Customer(full_name="a")), s.commit()))
        finally:
            detach(attachment)
        assert len(errors) == 1

    async def test_detached_instance(self, capture, store):
        """An instance of an earlier session that is added again is captured."""
        customer = Customer(id=1, full_name="a")
        await store.run(lambda s: (s.add(customer), s.commit()), expire_on_commit=False)
        customer.full_name = "b"
        (change,) = await store.changes(lambda s: s.add(customer))
        assert change.values["name"][1] == "b"
