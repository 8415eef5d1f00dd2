"""What the threat model says of tests is true: each that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "threat-model.md"
NAME = re.compile(r"`([^`]+)`")


def rows() -> list[list[str]]:
    """The rows of the table, cell by cell."""
    table = PAGE.read_text().partition("## Hostile parties, case by case")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def names_in(file: str) -> set[str]:
    """Tests and classes of a file of that name, wherever it is."""
    found: set[str] = set()
    for path in TESTS.rglob(file):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
    return found


def test_each_test_that_it_names_is_there() -> None:
    """A renamed test is renamed there, too; a row without a test says that nothing stops it."""
    missing, named = [], 0
    for row in rows():
        assert len(row) == 4, row
        known: set[str] | None = None
        for name in NAME.findall(row[3]):
            if name.endswith(".py"):
                known = names_in(name)
                if not known:
                    missing.append(name)
                continue
            named += 1
            if known is None or name not in known:
                missing.append(name)
        if row[3] == "-":
            assert "nothing stops it" in row[2], row
        else:
            assert known, f"no test for: {row[1]}"
    assert missing == []
    assert named > 40


def test_each_party_has_a_row() -> None:
    """Client, user, developer, writer, sender, reader, and who shares the host."""
    parties = " ".join(row[0] for row in rows())
    for party in ("client", "user", "writer", "sender", "reader", "host", "developer"):
        assert party in parties
