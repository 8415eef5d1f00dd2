"""What ORM capture leaves behind: nothing that only the garbage collector would find."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
from orm_harness import action
from orm_models import Customer
from sqlalchemy.orm import Session


def _commits(session: Session) -> None:
    session.add(Customer(full_name="a"))
    session.commit()


def _changes(session: Session) -> None:
    thing = Customer(full_name="a")
    session.add(thing)
    session.flush()
    thing.full_name = "b"
    session.flush()
    session.delete(thing)
    session.commit()


def _rolls_back(session: Session) -> None:
    session.add(Customer(full_name="a"))
    session.flush()
    session.rollback()


def _uses_savepoints(session: Session) -> None:
    with session.begin_nested():
        session.add(Customer(full_name="a"))
    undone = session.begin_nested()
    session.add(Customer(full_name="b"))
    session.flush()
    undone.rollback()
    session.commit()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No collection during the test, and none of what was there before is found by it."""
    gc.collect()
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def _ours() -> list[str]:
    """The kinds of objects of this part's that no reference leads to, but in a circle."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = [type(one) for one in gc.garbage]
    gc.garbage.clear()
    return sorted(
        {
            f"{kind.__module__}.{kind.__qualname__}"
            for kind in found
            # not all of the project's: another test's runtime may be freed only now
            if str(kind.__module__).startswith(("otel_audit.orm", "otel_audit.scope"))
        }
    )


@pytest.mark.usefixtures("capture", "uncollected")
@pytest.mark.parametrize("work", [_commits, _changes, _rolls_back, _uses_savepoints])
async def test_transaction_leaves_no_circle(store, work: Callable[[Session], None]):
    """Everything of a transaction is freed at once when it is over."""
    for _ in range(2):
        with action() as scope:
            await store.run(work)
        assert scope.transactions
        del scope
    assert _ours() == []


@pytest.mark.usefixtures("uncollected")
def test_circle_is_found():
    """The test above would find one."""
    from otel_audit.orm.connection_facts import ConnectionFacts

    facts = ConnectionFacts()
    facts.flush = facts  # type: ignore[assignment]
    del facts
    assert _ours() == ["otel_audit.orm.connection_facts.ConnectionFacts"]


def test_sessions_on_one_connection(capture, sqlite):
    """A connection that an application keeps remembers the sessions in use, not all there were."""
    with sqlite.engine.connect() as connection:
        for _ in range(20):
            with Session(connection) as session, action() as scope:
                _commits(session)
            assert scope.changes_total == 1
            del session
        facts = capture.attachment._tracker.facts(connection)
        assert len(facts.sessions) <= 2
