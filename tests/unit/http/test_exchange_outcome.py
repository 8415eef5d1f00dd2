from __future__ import annotations

import asyncio

import pytest

from otel_audit.http.exchange_record import outcome_of


class TestOutcome:
    @pytest.mark.parametrize(
        ("status", "error", "transaction", "expected"),
        [
            (200, None, "none", "success"),
            (201, None, "committed", "success"),
            (302, None, "none", "success"),
            (404, None, "none", "failure"),
            (500, RuntimeError(), "none", "failure"),
            (200, RuntimeError(), "committed", "failure"),
            (200, None, "rolled_back", "failure"),
            (200, None, "mixed", "failure"),
            (200, None, "unknown", "unknown"),
            (500, RuntimeError(), "unknown", "unknown"),
            (None, None, "none", "unknown"),
            (None, asyncio.CancelledError(), "committed", "unknown"),
        ],
    )
    def test_it_is_success_only_if_all_says_so(self, status, error, transaction, expected):
        """Answer, error and transactions must agree on success; doubt is named as such."""
        assert outcome_of(status=status, error=error, transaction=transaction) == expected

    @pytest.mark.parametrize(
        ("status", "transaction", "expected"),
        [(307, "none", "unknown"), (307, "committed", "success"), (307, "mixed", "failure")],
    )
    def test_who_was_sent_elsewhere_has_no_success_here(self, status, transaction, expected):
        """Unless something was committed: then it was done here all the same."""
        found = outcome_of(status=status, error=None, transaction=transaction, turned_away=True)
        assert found == expected

    @pytest.mark.parametrize(
        ("status", "transaction", "expected"),
        [(200, "none", "unknown"), (200, "rolled_back", "failure"), (500, "none", "failure")],
    )
    def test_an_answer_that_was_cut_off_is_no_success(self, status, transaction, expected):
        """What is known to have failed has failed; else nobody knows what the client has."""
        found = outcome_of(status=status, error=None, transaction=transaction, cut_off=True)
        assert found == expected
