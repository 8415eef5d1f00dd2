"""Cells of CSV files."""

from __future__ import annotations

import pytest
from otel_audit_postgres.exports.formats import csv_lines

from otel_audit._util.csv_cell import not_a_formula
from otel_audit.cli.terminal import echo_csv


@pytest.mark.parametrize("first", "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
def test_no_cell_begins_as_a_formula(first):
    """In lists as in exports, which share the characters."""
    assert not_a_formula(f"{first}cmd()") == f"'{first}cmd()"
    assert f"'{first}cmd()".encode() in csv_lines([[f"{first}cmd()"]])


def test_other_text_stays():
    """Also where such a character stands later."""
    assert [not_a_formula(text) for text in ("", "a=b", "7")] == ["", "a=b", "7"]


def test_a_listed_cell(capsys):
    """A control character is shown as an escape, so it begins no formula."""
    echo_csv(["=1+1", "\t=1", "plain", None])
    assert capsys.readouterr().out == "'=1+1,\\u{9}=1,plain,\n"
