"""What the documents say of losses is what was measured, and what was measured is tested still."""

from __future__ import annotations

import re
from pathlib import Path

import loss_table

FAULTS = Path(__file__).parents[1] / "faults"


def test_the_tables_are_those_that_were_measured():
    """Run `python tests/loss_table.py` where this fails."""
    text = loss_table.PAGE.read_text()
    assert text == loss_table.with_tables(text)


def test_every_promise_names_a_test_that_is_there():
    """What the page promises beside the measured rows is tested by what it names."""
    named = set(re.findall(r"`(test_\w+)`", loss_table.PAGE.read_text()))
    there = "".join(path.read_text() for path in FAULTS.parent.rglob("test_*.py"))
    assert {name for name in named if f"def {name}(" not in there} == set()


def test_nothing_is_lost_unless_it_is_asked_for():
    """Only where losses were chosen is anything lost; nothing is ever stored twice or untold."""
    for row in loss_table.rows().values():
        assert row.answered > 0, row.event
        assert (row.twice, row.untold) == (0, 0), row.event
        assert row.lost == 0 or "=drop" in row.event, row.event


def test_every_row_is_measured_by_a_test_that_is_there():
    """Each names a test, which measures it again in each run."""
    tests = set(
        re.findall(r"def (test_\w+)\(", "".join(p.read_text() for p in FAULTS.glob("test_*.py")))
    )
    assert {row.test for row in loss_table.rows().values()} <= tests
