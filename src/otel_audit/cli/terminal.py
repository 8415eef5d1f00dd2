"""Output of the command line; text from records never controls the terminal."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import select
import shutil
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

import click
import msgspec
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from otel_audit._util.csv_cell import not_a_formula
from otel_audit._util.printable import ascii_json, visible

Colour = Literal["green", "red", "yellow", "cyan"]
Piece = tuple[str, Colour | None]
"""Some text of a line, and its colour."""

_NOT_ON_A_SCREEN: Final = 240
"""Columns where there is no screen, as in a pipe: wide enough that hardly a cell is cut."""
_CUT: Final = ".."
_GAP: Final = "  "


def escape_unencodable() -> None:
    """Print characters outside the terminal's encoding as escapes, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def can_print(text: str) -> bool:
    """Say whether the encoding of standard output has all characters of a text."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def is_pipe_closed() -> bool:
    """Say whether the pipe behind standard output is closed at its other end."""
    try:
        watched = select.poll()
        watched.register(sys.stdout.fileno(), 0)
        return any(what & select.POLLERR for _, what in watched.poll(0))
    except (OSError, ValueError):  # no descriptor, so no pipe either
        return False


def screen_width() -> int | None:
    """The screen's width in columns; None if the output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def echo(*lines: str, colour: Colour | None = None, err: bool = False) -> None:
    """Print lines. A line end inside one of them is shown as an escape.

    Args:
        lines: What to print.
        colour: Of all of them.
        err: Print to standard error.
    """
    for line in lines:
        shown = visible(line)
        click.echo(shown if colour is None else click.style(shown, fg=colour), err=err)


def echo_marked(mark: str, colour: Colour, rest: str) -> None:
    """Print a line of which only the first word is coloured."""
    click.echo(f"{click.style(visible(mark), fg=colour)}{visible(rest)}")


def echo_json(value: Any, *, indent: int | None = None) -> None:
    """Print a value as JSON in ASCII: on one line, or indented."""
    click.echo(ascii_json(json.dumps(value, default=_plain, indent=indent)))


def echo_json_text(text: str) -> None:
    """Print a JSON text in ASCII, with its layout."""
    click.echo(ascii_json(text))


def echo_document(text: str) -> None:
    """Print a JSON text over several lines, with all it holds; one that is none as one line."""
    try:
        laid_out = msgspec.json.format(text, indent=2)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        echo(text)
        return
    click.echo(ascii_json(laid_out))


def echo_columns(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print columns side by side, never cut: ids are there to be copied."""
    texts = [["" if value is None else visible(str(value)) for value in row] for row in rows]
    lines = [list(columns), *texts]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    for line in lines:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def echo_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    whole: Container[str] = (),
    dispensable: str | None = None,
) -> None:
    """Print columns that are folded where a screen is too narrow.

    Args:
        columns: Their headings.
        rows: A text for each column.
        whole: Columns that are never folded.
        dispensable: A column that is left out where the screen is too narrow.
    """
    # where nobody looks at a screen, lines must not be broken at its width
    console = Console(width=screen_width() or _NOT_ON_A_SCREEN)
    # as text: square brackets would be markup
    texts = [[Text(visible(cell)) for cell in row] for row in rows]
    if dispensable and console.width < _wanted(columns, texts):
        left_out = columns.index(dispensable)
        texts = [[*row[:left_out], *row[left_out + 1 :]] for row in texts]
        columns = [name for name in columns if name != dispensable]
    console.print(_table(columns, texts, whole))


def _table(columns: Sequence[str], rows: Iterable[Sequence[Text]], whole: Container[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in columns:
        table.add_column(heading, overflow="fold", no_wrap=heading in whole)
    for row in rows:
        table.add_row(*row)
    return table


def _wanted(columns: Sequence[str], rows: Sequence[Sequence[Text]]) -> int:
    """Return a width at which no line is folded."""
    widest = (
        max(cell_len(name), *(row[number].cell_len for row in rows)) if rows else cell_len(name)
        for number, name in enumerate(columns)
    )
    return sum(widest) + len(_GAP) * (len(columns) - 1)


def echo_csv(cells: Sequence[Any]) -> None:
    """Print a line of CSV; no cell is a formula, and none has line ends."""
    target = io.StringIO()
    texts = ("" if cell is None else visible(_plain(cell)) for cell in cells)
    csv.writer(target, lineterminator="").writerow([not_a_formula(text) for text in texts])
    click.echo(target.getvalue())


class FittedColumns:
    """Columns that fit the screen, for rows that come a few at a time.

    Where nobody looks at a screen nothing is cut.
    """

    def __init__(self, shortest: Mapping[str, int], dispensable: Sequence[str] = ()) -> None:
        """Print nothing yet.

        Args:
            shortest: Columns that may be cut, and how short.
            dispensable: Columns that are left out where the screen is too narrow for all, the
                first of them first.
        """
        self._shortest = shortest
        self._dispensable = dispensable
        self._longest: dict[str, int] = {}
        self._widths: dict[str, int] = {}
        self._names: tuple[str, ...] = ()

    def arrange(self, rows: Sequence[Mapping[str, Piece]]) -> None:
        """Choose columns and widths for some more rows; print the heading where it changes.

        A column is left out of a screen while it is empty in all rows. All rows name the same
        columns, in the same order.
        """
        width = screen_width()
        for row in rows:
            for name, (text, _) in row.items():
                known = self._longest.get(name, 0)
                self._longest[name] = max(known, cell_len(visible(text)))
        before = self._names
        self._names = tuple(
            name for name, longest in self._longest.items() if longest or width is None
        )
        self._widths = {name: max(len(name), self._longest[name]) for name in self._names}
        if width is not None:
            self._shrink(width)
        if self._names != before:
            self._print([(name, None) for name in self._names])

    def print_row(self, row: Mapping[str, Piece], details: Sequence[Sequence[Piece]] = ()) -> None:
        """Print a row, and lines of details below it."""
        self._print([row.get(name, ("", None)) for name in self._names])
        for line in details:
            echo_folded([("    ", None), *line])

    def _shrink(self, width: int) -> None:
        for name in self._dispensable:
            if self._excess(width) > 0 and name in self._names:
                self._names = tuple(one for one in self._names if one != name)
        excess = self._excess(width)
        while excess > 0:
            longer = [
                one for one in self._names if self._widths[one] > self._shortest.get(one, 1 << 20)
            ]
            if not longer:
                return
            name = max(longer, key=lambda one: self._widths[one] - self._shortest[one])
            self._widths[name] -= 1
            excess -= 1

    def _excess(self, width: int) -> int:
        taken = sum(self._widths[name] for name in self._names)
        return taken + len(_GAP) * (len(self._names) - 1) - width

    def _print(self, cells: Sequence[Piece]) -> None:
        shown = []
        for name, (text, colour) in zip(self._names, cells, strict=True):
            padded = _fitted(
                visible(text), self._widths[name],
                cuts=name in self._shortest and screen_width() is not None,
            )  # fmt: skip
            shown.append(click.style(padded, fg=colour) if colour else padded)
        click.echo(_GAP.join(shown).rstrip())


def _fitted(text: str, width: int, *, cuts: bool) -> str:
    """Fill a text up to a width, or cut it."""
    length = cell_len(text)
    if length <= width or not cuts:
        return text + " " * (width - length)
    return set_cell_size(text, width - len(_CUT)) + _CUT


def echo_folded(pieces: Sequence[Piece]) -> None:
    """Print a coloured line, folded at the screen's width."""
    text = _text(pieces)
    indent = len(text.plain) - len(text.plain.lstrip(" "))
    width = screen_width()
    if width is None:
        click.echo(text.plain)
        return
    console = _console(width)
    text = _text(pieces)[indent:]
    # on a screen that is narrower than the indent, 20 columns are still words
    for line in text.wrap(console, max(width - indent, 20)):
        console.print(Text(" " * indent) + line, soft_wrap=True)


def echo_panel(title: str, rows: Iterable[tuple[str, Sequence[Piece]]]) -> None:
    """Print names and what stands behind them: in a frame on a screen, else a line each."""
    width = screen_width()
    if width is None:
        click.echo(visible(title))
        for name, pieces in rows:
            click.echo(f"{visible(name):<12}{_text(pieces).plain}".rstrip())
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, pieces in rows:
        grid.add_row(Text(visible(name)), _text(pieces))
    panel = Panel(grid, title=Text(visible(title)), title_align="left", border_style="dim")
    _console(width).print(panel)


def _text(pieces: Sequence[Piece]) -> Text:
    return Text.assemble(*((visible(text), colour or "") for text, colour in pieces))


def _console(width: int) -> Console:
    return Console(highlight=False, width=width)


@contextlib.contextmanager
def json_list() -> Iterator[Callable[[str], None]]:
    """Print JSON texts as the members of one list, as they come."""
    is_first = True

    def member(text: str) -> None:
        nonlocal is_first
        click.echo("[" if is_first else ",")
        click.echo(ascii_json(text), nl=False)
        is_first = False

    yield member
    click.echo("[]" if is_first else "\n]")


def as_json_text(value: Any) -> str:
    """Write a value as JSON, as `echo_json` prints it."""
    return json.dumps(value, default=_plain)


def without_controls(error: click.ClickException) -> click.ClickException:
    """Clean the message of an error that click itself will print."""
    vars(error)["message"] = visible(error.message)
    return error


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
