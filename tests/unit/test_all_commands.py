"""What all commands have in common: help that can be read, JSON, and a place on the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from otel_audit_postgres.query.fields import FIELDS

from otel_audit.cli import terminal
from otel_audit.cli.main import cli
from otel_audit.cli.options import seconds
from otel_audit.cli.search import search
from otel_audit.cli.terminal import FittedColumns

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
SERVERS = {"serve", "web", "run", "dev", "stream"}
"""Commands that run until they are stopped, or run another: they have no result."""
WITHOUT_OPTION = {"level", "on_behalf_of", "time", "tx"}
"""Fields of a query that have no option: time has --since and --until, the others are rare."""


def commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))
        if command.invoke_without_command:
            yield " ".join(path), command
    else:
        yield " ".join(path), command


ALL = dict(commands(cli))
GROUPS = ["", *sorted({name.rpartition(" ")[0] for name in ALL if " " in name})]


class TestHelp:
    @pytest.mark.parametrize("group", GROUPS)
    def test_summaries_are_whole_on_80_columns(self, group):
        """Each command has one line in the list, which is a sentence."""
        shown = CliRunner().invoke(cli, [*group.split(), "--help"], terminal_width=80).output
        lines = shown[shown.index("\n\n", shown.rindex("--help")) :].splitlines()
        listed = [line for line in lines if line.startswith("  ")]
        assert listed
        assert [line for line in listed if not line.endswith(".") or "..." in line] == []

    @pytest.mark.parametrize("name", ALL)
    def test_every_command_prints_json(self, name):
        """But for those that have no result."""
        options = {option for one in ALL[name].params for option in one.opts}
        assert ("--json" in options) or name in SERVERS | {"subject export"}

    @pytest.mark.parametrize("name", ALL)
    def test_every_command_is_on_the_page(self, name):
        """With what it is for."""
        assert f"`{name}`" in PAGE.read_text()


class TestSearchOptions:
    def test_every_field_has_its_option(self):
        """What a query can name, an option can."""
        options = {one.name for one in search.params}
        assert set(FIELDS) - options == WITHOUT_OPTION


class TestDurations:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [("30", 30), ("1.5", 1.5), ("30s", 30), ("15m", 900), ("12h", 43_200), ("7d", 604_800)],
    )
    def test_have_the_units_of_times(self, text, expected):
        """Or are seconds."""
        assert seconds(click.Context(cli), cli.params[0], text) == expected

    @pytest.mark.parametrize("text", ["", "soon", "-1", "1y", "1h30m", "\u0663s"])
    def test_others_are_refused(self, text):
        """With what is expected."""
        with pytest.raises(click.BadParameter, match="expected 30s"):
            seconds(click.Context(cli), cli.params[0], text)


class TestFittedColumns:
    @pytest.fixture
    def columns(self, monkeypatch: pytest.MonkeyPatch) -> FittedColumns:
        monkeypatch.setattr(terminal, "screen_width", lambda: 30)
        return FittedColumns({"what": 6}, ("where",))

    def test_what_comes_later_is_not_cut_to_what_came_first(self, columns, capsys):
        """Rows that come one by one have room as far as the screen has it."""
        for text in ("a", "a longer text", "x" * 40):
            row = {"time": ("12:00:00", None), "what": (text, None)}
            columns.arrange([row])
            columns.print_row(row)
        assert capsys.readouterr().out.splitlines() == [
            "time      what", "12:00:00  a", "12:00:00  a longer text", f"12:00:00  {'x' * 18}..",
        ]  # fmt: skip

    def test_a_column_that_was_empty_gets_its_place(self, columns, capsys):
        """And a new heading says so; one that has no room is left out."""
        for where in ("", "there", "y" * 30):
            row = {"what": ("a", None), "where": (where, None), "id": ("1", None)}
            columns.arrange([row])
            columns.print_row(row)
        assert capsys.readouterr().out.splitlines() == [
            "what  id", "a     1", "what  where  id", "a     there  1", "what  id", "a     1",
        ]  # fmt: skip

    def test_wide_characters_count_twice(self, columns, capsys):
        """As a terminal shows them."""
        row = {"what": ("\u8a02\u6587", None), "id": ("1", None)}
        columns.arrange([row])
        columns.print_row(row)
        assert capsys.readouterr().out.splitlines()[1] == "\u8a02\u6587  1"

    def test_a_pipe_has_all_columns(self, columns, capsys, monkeypatch):
        """Empty or not, so that programs find them; and nothing is cut."""
        monkeypatch.setattr(terminal, "screen_width", lambda: None)
        row = {"what": ("x" * 40, None), "where": ("", None), "id": ("1", None)}
        columns.arrange([row])
        columns.print_row(row)
        assert capsys.readouterr().out.splitlines()[0].split() == ["what", "where", "id"]
