"""The one way in which the command line prints: what somebody else wrote steers nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, Literal

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from otel_audit._util.printable import ascii_json, visible

Colour = Literal["green", "red", "yellow"]

_NOT_ON_A_SCREEN: Final = 240


def echo(*lines: str, colour: Colour | None = None, err: bool = False) -> None:
    """Print lines; a line end within one of them is shown, and not obeyed.

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
    """Print a JSON text as it is laid out, in ASCII."""
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


def echo_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns that are folded where a screen is too narrow."""
    table = Table(box=None, pad_edge=False)
    for heading in columns:
        table.add_column(heading, overflow="fold")
    for row in rows:
        # as text: square brackets would be markup
        table.add_row(*(Text(visible(cell)) for cell in row))
    # where nobody looks at a screen, lines must not be broken at its width
    console = Console() if sys.stdout.isatty() else Console(width=_NOT_ON_A_SCREEN)
    console.print(table)


def cleaned(error: click.ClickException) -> click.ClickException:
    """Clean the message of an error that click itself will print."""
    vars(error)["message"] = visible(error.message)
    return error


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
