"""What an action's transactions say about its outcome, for every kind of action."""

from __future__ import annotations

from typing import get_args

import pytest

import otel_audit
from otel_audit._util.spill import SpilledChanges
from otel_audit.http.exchange_record import outcome_of
from otel_audit.record import Outcome, TransactionOutcome
from otel_audit.scope import current_scope, outcome_of_transactions
from otel_audit.testing import recorded

BY_TRANSACTION: dict[TransactionOutcome, Outcome] = {
    "none": "success",
    "committed": "success",
    "rolled_back": "failure",
    "mixed": "failure",
    "unknown": "unknown",
}


def test_each_has_its_rule() -> None:
    """A new outcome of transactions has to be judged, too."""
    assert {*BY_TRANSACTION} == {*get_args(TransactionOutcome)}


@pytest.mark.parametrize(("transaction", "outcome"), BY_TRANSACTION.items())
class TestOutcome:
    def test_it_is_decided_in_one_place(
        self, transaction: TransactionOutcome, outcome: Outcome
    ) -> None:
        """Transactions alone never make a success; all else they decide."""
        expected = None if outcome == "success" else outcome
        assert outcome_of_transactions(transaction) == expected

    def test_of_a_request(self, transaction: TransactionOutcome, outcome: Outcome) -> None:
        """A good answer does not hide what became of the transaction."""
        assert outcome_of(status=200, error=None, transaction=transaction) == outcome

    def test_of_a_block(self, transaction: TransactionOutcome, outcome: Outcome) -> None:
        """An action that is recorded by hand follows the same rule."""
        with recorded() as records, otel_audit.audit("seat.taken"):
            scope = current_scope()
            assert scope is not None
            if transaction != "none":
                scope.note_transaction_end(transaction, SpilledChanges())
        assert records.one("seat.taken").outcome == outcome
