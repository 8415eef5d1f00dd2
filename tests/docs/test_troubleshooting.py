"""What a process logs about a fault, and what it counts, is on the pages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from otel_audit.delivery import metrics

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "troubleshooting.md").read_text().split())
SHORTEST = 8
"""Letters of a part of a line by which somebody would look for it."""
CAUGHT = "are defects of ours that were caught"
"""The sentence about all lines that end in an error's type and place."""


class Line(NamedTuple):
    """A line at ERROR or CRITICAL; if a defect of ours was caught, it ends in the error's place."""

    place: str
    text: str
    is_caught: bool


def is_known(text: str) -> bool:
    """Whether a part of the line without values is on the page; a line of values only is another's."""
    parts = [part.strip() for part in re.split(r"%[a-z]|[;:.()]", text)]
    telling = [part for part in parts if len(part) > SHORTEST]
    return not telling or any(part in PAGE for part in telling)


def logged() -> Iterator[Line]:
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "exporters").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.Call):
                continue
            name = (
                node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            )
            keywords = {one.arg: ast.unparse(one.value) for one in node.keywords}
            if name == "log_limited":
                message, level = node.args[2], keywords.get("level", "ERROR")
            elif name in {"error", "critical"} and "log" in ast.unparse(node.func):
                message, level = node.args[0], name.upper()
            else:
                continue
            if "ERROR" not in level and "CRITICAL" not in level:
                continue
            if isinstance(message, ast.Constant):
                is_caught = "error" in keywords and "CRITICAL" not in level
                yield Line(f"{path.name}:{node.lineno}", str(message.value), is_caught)


def test_each_line_about_a_fault_is_on_the_page() -> None:
    """Who reads a line in the log finds what to do; a caught defect of ours has one sentence for all."""
    lines = list(logged())
    lacking = [
        (one.place, one.text) for one in lines if not one.is_caught and not is_known(one.text)
    ]

    assert lacking == []
    assert CAUGHT in PAGE
    assert len(lines) > 40


@pytest.mark.parametrize(
    "module", ["delivery/writer.py", "delivery/outbox_relay.py", "delivery/intent.py"]
)
def test_each_message_of_a_writer_is_on_the_page(module: str) -> None:
    """They begin the line; the store's reason follows."""
    tree = ast.parse((ROOT / "src/otel_audit" / module).read_bytes())
    texts = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword | ast.AnnAssign)
        and (node.arg if isinstance(node, ast.keyword) else ast.unparse(node.target))
        in {"waiting", "failed", "_REFUSED"}
        and isinstance(node.value, ast.Constant)
    ]

    assert texts
    assert [text for text in texts if text not in PAGE] == []


def test_each_metric_is_in_the_table() -> None:
    """A metric that nobody can look up is not watched."""
    page = (ROOT / "docs" / "delivery.md").read_text()
    table = page.partition("| metric | |\n")[2].partition("\n\n")[0]
    listed = set()
    for cell in re.findall(r"^\| (.+?) \|", table, re.MULTILINE):
        names = re.findall(r"`([\w.]+)`", cell)
        listed |= {
            one if one.startswith("audit.") else names[0].rpartition(".")[0] + one for one in names
        }
    source = Path(metrics.__file__).read_text()

    assert listed == set(re.findall(r'"(audit\.[\w.]+)"', source))
