"""Headers as a record shows them: remembered only where nothing else could come of them."""

from __future__ import annotations

from typing import Any

import pytest

from otel_audit.http.request_metadata import LONGEST_HEADER, describe_headers
from otel_audit.redaction import Redactor
from otel_audit.redaction.budget import Budget

KEEP = frozenset({"accept", "content-type", "referer"})


@pytest.fixture(name="describe")
def _describe() -> Any:
    redactor = Redactor()
    return lambda headers, budget: describe_headers(headers, KEEP, redactor, budget, "headers")


def test_the_same_lines_are_shown_alike(describe: Any) -> None:
    """Once more, in another case, as lists, and beside other lines that are not kept."""
    expected = {"accept": "*/*, text/html", "content-type": "text/plain"}
    lines = [(b"accept", b"*/*"), (b"content-type", b"text/plain"), (b"accept", b"text/html")]
    upper = [(name.upper(), value) for name, value in lines]
    beside = [(b"cookie", b"a=b"), *lines]
    for given in (lines, lines, upper, upper, [list(line) for line in lines], beside):
        assert describe(given, Budget()) == expected


def test_a_cut_is_noted_each_time(describe: Any) -> None:
    """A long line is cut for each request, and each record says so."""
    for _ in range(2):
        budget = Budget()
        found = describe([(b"accept", b"a," * LONGEST_HEADER)], budget)
        assert len(found["accept"]) <= LONGEST_HEADER
        assert budget.cut == ["headers"]


def test_a_line_that_costs_work_is_judged_within_its_own_budget(describe: Any) -> None:
    """What one request has left for its head does not decide over the next one."""
    line = [(b"referer", b"https://shop.example/a?b=c")]
    shown = describe(line, Budget())
    spent = Budget()
    spent.head.left = 0
    assert describe(line, spent) != shown
    assert describe(line, Budget()) == shown
