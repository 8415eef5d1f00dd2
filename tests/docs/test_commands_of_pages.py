"""Every command on a page is one, with every option that the page gives it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from otel_audit.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "README.md",
    *sorted((ROOT / "collector-config").rglob("*.md")),
]
PASS_ON = {"run", "dev"}
"""Commands that start another one, with options of its own; the first of them is read elsewhere."""
_FENCED = re.compile(r"^```[^\n]*\n(.*?)^```|^((?:    [^\n]*\n)+)", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_CALL = re.compile(r"\botel-audit ([a-z][a-z-]*(?: [^|;&>`#)\n]*)?)")


def calls_on(page: Path) -> Iterator[list[str]]:
    """The words of each call, in blocks and in running text."""
    text = page.read_text()
    blocks = [one[1] or one[2] for one in _FENCED.finditer(text)]
    said = [one.replace("\n", " ") for one in _INLINE.findall(_FENCED.sub("", text))]
    # what else is quoted there is a message, or the bytes of a leaf
    said = [one for one in said if one.startswith("otel-audit ") and "\\" not in one]
    for one in [*blocks, *said]:
        for call in _CALL.findall(one.replace("\\\n", " ")):
            yield call.split()


def fault_of(words: list[str]) -> str | None:
    """What is wrong with a call; None if the command and its options exist."""
    command: click.Command = cli
    at = 0
    while isinstance(command, click.Group) and at < len(words):
        found = command.commands.get(words[at])
        if found is None:
            break
        command, at = found, at + 1
    if not at:
        return "no such command"
    if command.name in PASS_ON:
        return None
    known = {"--help"}.union(*([*one.opts, *one.secondary_opts] for one in command.params))
    given = {re.split("[=.,:]", word)[0] for word in words[at:] if re.match("--[a-z]", word)}
    return ", ".join(sorted(given - known)) or None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name + "/" + page.stem)
def test_exists_with_its_options(page: Path) -> None:
    """A reader types what the page shows."""
    faults = {" ".join(words): fault_of(words) for words in calls_on(page)}

    assert {call: fault for call, fault in faults.items() if fault} == {}


def test_there_are_many() -> None:
    """What finds them still does, and sees what is wrong."""
    assert sum(1 for page in PAGES for _ in calls_on(page)) > 200
    assert fault_of(["verify", "--every"]) == "--every"
    assert fault_of(["verifi"]) == "no such command"
