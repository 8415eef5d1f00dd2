"""Rows as CSV, NDJSON and JSON bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from otel_audit._util.csv_cell import not_a_formula


@dataclass(frozen=True)
class TextFormat:
    """A text format for rows.

    Attributes:
        begin: What stands before the first row.
        rows: Writes some rows; the second argument tells whether they are the first.
        end: What stands behind the last one.
        has_payloads: Whether its rows are the records' exact texts, and not columns.
    """

    begin: bytes
    rows: Callable[[Sequence[Any], bool], bytes]
    end: bytes = b""
    has_payloads: bool = True


def csv_lines(rows: Iterable[Sequence[Any]]) -> bytes:
    """Write rows as CSV in which no cell is a formula."""
    target = io.StringIO()
    csv.writer(target).writerows([[harmless(value) for value in row] for row in rows])
    return target.getvalue().encode("utf-8", "replace")


def plain_csv_lines(rows: Iterable[Sequence[Any]]) -> bytes:
    """Write rows as CSV, without a check for formulas."""
    target = io.StringIO()
    csv.writer(target).writerows(rows)
    return target.getvalue().encode()


def harmless(value: Any) -> Any:
    """A cell that no spreadsheet reads as a formula."""
    kind = type(value)
    if kind is str:
        return not_a_formula(value)
    if kind is bytes:
        return value.hex()
    return value.isoformat() if isinstance(value, datetime) else value


def one_line(payload: str) -> str:
    """A stored text; line ends between its parts, which no text of ours has, become spaces."""
    return payload.replace("\n", " ").replace("\r", " ")


def csv_format(columns: Sequence[str]) -> TextFormat:
    """CSV with these columns; rows are sequences of their values."""
    return TextFormat(
        (",".join(columns) + "\r\n").encode(), lambda rows, _: csv_lines(rows), has_payloads=False
    )


def _ndjson(texts: Sequence[str], _first: bool) -> bytes:  # noqa: FBT001 - of one kind
    return b"".join(f"{one_line(text)}\n".encode("utf-8", "surrogatepass") for text in texts)


def _json(texts: Sequence[str], first: bool) -> bytes:  # noqa: FBT001 - as above
    joined = ",\n".join(one_line(text) for text in texts)
    return f"{'' if first else ','}\n{joined}".encode("utf-8", "surrogatepass")


NDJSON: Final = TextFormat(b"", _ndjson)
JSON: Final = TextFormat(b"[", _json, b"\n]\n")
