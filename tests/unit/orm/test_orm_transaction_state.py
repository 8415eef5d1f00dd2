from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from otel_audit._util.spill import SpilledChanges, SpillOptions
from otel_audit.orm.transaction_state import TransactionState
from otel_audit.record import Change


def change(number: int) -> Change:
    return Change(operation="insert", entity="Order", table="orders", key={"id": number})


def numbers(ledger: TransactionState) -> list[int]:
    batches = dict(ledger.finish())
    return [one.key["id"] for one in batches[None]] if None in batches else []


class TestLedger:
    def test_released_savepoint(self):
        """What a released savepoint holds is the transaction's."""
        ledger = TransactionState()
        ledger.open_savepoint("a")
        ledger.add(None, change(1))
        ledger.release_savepoint("a")
        assert numbers(ledger) == [1]

    def test_undone_savepoint(self):
        """What an undone savepoint holds is gone, and its number is told."""
        ledger = TransactionState()
        ledger.add(None, change(1))
        ledger.open_savepoint("a")
        ledger.open_savepoint("b")
        ledger.add(None, change(2))
        assert ledger.undo_savepoint("a") == {None: 1}
        assert numbers(ledger) == [1]

    def test_reopened_savepoint(self):
        """A bare ROLLBACK TO leaves the savepoint open."""
        ledger = TransactionState()
        ledger.open_savepoint("a")
        ledger.add(None, change(1))
        ledger.undo_savepoint("a", reopen=True)
        ledger.add(None, change(2))
        assert ledger.undo_savepoint("a") == {None: 1}

    def test_unknown_savepoint(self):
        """A savepoint that was set before capture began changes nothing."""
        ledger = TransactionState()
        ledger.add(None, change(1))
        assert ledger.undo_savepoint("x") == {}
        ledger.release_savepoint("x")
        assert numbers(ledger) == [1]

    def test_aborted(self):
        """A failed savepoint dooms the transaction only as long as it is open."""
        ledger = TransactionState()
        assert ledger.aborted is False
        ledger.open_savepoint("a")
        ledger.top.aborted = True
        assert ledger.aborted is True
        ledger.undo_savepoint("a")
        assert ledger.aborted is False
        ledger.top.aborted = None
        assert ledger.aborted is None

    @given(
        st.integers(1, 5),
        st.lists(st.sampled_from(["add", "open", "release", "undo"]), max_size=40),
    )
    def test_order(self, page, steps):
        """Whatever the size of a page, what is left is what was not undone, in its order."""
        ledger = TransactionState(SpillOptions(page=page))
        model: list[list[int]] = [[]]
        for number, step in enumerate(steps):
            if step == "add":
                ledger.add(None, change(number))
                model[-1].append(number)
            elif step == "open":
                ledger.open_savepoint(str(len(model)))
                model.append([])
            elif len(model) > 1:
                top = model.pop()
                name = str(len(model))
                if step == "release":
                    ledger.release_savepoint(name)
                    model[-1] += top
                else:
                    assert ledger.undo_savepoint(name).get(None, 0) == len(top)
        expected = [number for numbers in model for number in numbers]
        batch = dict(ledger.finish()).get(None, SpilledChanges())
        assert batch.count == len(expected)
        batch.set_outcome("committed")
        assert [one.key["id"] for one in batch] == expected
        assert {one.transaction for one in batch} <= {"committed"}
        assert len(batch.recent) <= page
        first, rest = batch.split(3)
        assert [one.key["id"] for one in first] == expected[:3]
        assert [one.key["id"] for one in rest] == expected[3:]
