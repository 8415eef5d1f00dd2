from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from otel_audit.capture.orm.ledger import Ledger
from otel_audit.record import Change


def change(number: int) -> Change:
    return Change(operation="insert", entity="Order", table="orders", key={"id": number})


def numbers(ledger: Ledger) -> list[int]:
    batches = dict(ledger.finish())
    return [one.key["id"] for one in batches[None].kept] if None in batches else []


class TestLedger:
    def test_released_savepoint(self):
        """What a released savepoint holds is the transaction's."""
        ledger = Ledger(10)
        ledger.open_savepoint("a")
        ledger.add(None, change(1))
        ledger.release_savepoint("a")
        assert numbers(ledger) == [1]

    def test_undone_savepoint(self):
        """What an undone savepoint holds is gone, and its number is told."""
        ledger = Ledger(10)
        ledger.add(None, change(1))
        ledger.open_savepoint("a")
        ledger.open_savepoint("b")
        ledger.add(None, change(2))
        assert ledger.undo_savepoint("a") == {None: 1}
        assert numbers(ledger) == [1]

    def test_reopened_savepoint(self):
        """A bare ROLLBACK TO leaves the savepoint open."""
        ledger = Ledger(10)
        ledger.open_savepoint("a")
        ledger.add(None, change(1))
        ledger.undo_savepoint("a", reopen=True)
        ledger.add(None, change(2))
        assert ledger.undo_savepoint("a") == {None: 1}

    def test_unknown_savepoint(self):
        """A savepoint that was set before capture began changes nothing."""
        ledger = Ledger(10)
        ledger.add(None, change(1))
        assert ledger.undo_savepoint("x") == {}
        ledger.release_savepoint("x")
        assert numbers(ledger) == [1]

    def test_undone_room_is_free_again(self):
        """What was undone does not use up the bound."""
        ledger = Ledger(1)
        ledger.open_savepoint("a")
        ledger.add(None, change(1))
        assert not ledger.has_room(None)
        ledger.undo_savepoint("a")
        assert ledger.has_room(None)

    def test_aborted(self):
        """A failed savepoint dooms the transaction only as long as it is open."""
        ledger = Ledger(1)
        assert ledger.aborted is False
        ledger.open_savepoint("a")
        ledger.top.aborted = True
        assert ledger.aborted is True
        ledger.undo_savepoint("a")
        assert ledger.aborted is False
        ledger.top.aborted = None
        assert ledger.aborted is None

    @given(
        st.integers(0, 5),
        st.lists(st.sampled_from(["add", "open", "release", "undo"]), max_size=40),
    )
    def test_counts(self, limit, steps):
        """Kept and counted changes together are exactly those that were not undone."""
        ledger = Ledger(limit)
        model: list[int] = [0]
        for number, step in enumerate(steps):
            if step == "add":
                ledger.add(None, change(number))
                model[-1] += 1
            elif step == "open":
                ledger.open_savepoint(str(len(model)))
                model.append(0)
            elif len(model) > 1:
                top = model.pop()
                name = str(len(model))
                if step == "release":
                    ledger.release_savepoint(name)
                    model[-1] += top
                else:
                    assert ledger.undo_savepoint(name).get(None, 0) == top
        batches = dict(ledger.finish())
        batch = batches.get(None)
        count = 0 if batch is None else batch.count
        assert count == sum(model)
        if batch is not None:
            assert len(batch.kept) <= limit
            assert len(batch.kept) + sum(batch.rest.values()) == count
            entries = batch.entries("committed")
            assert {entry.transaction for entry in entries} <= {"committed"}
