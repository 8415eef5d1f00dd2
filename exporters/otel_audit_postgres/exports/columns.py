"""Whether the columns of an exported row are those that its sealed text, and its leaf, give it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from otel_audit_postgres.exports.formats import csv_lines, harmless
from otel_audit_postgres.exports.proof import ProvedRow
from otel_audit_postgres.ledger.leaves import Leaf
from otel_audit_postgres.query import all_matching
from otel_audit_postgres.rows import ADDED_IN, projections, versions_with

PROVED_CSV_COLUMNS: Final = ("leaf", *all_matching.CSV_COLUMNS)
"""The columns of a proved file in CSV, in their order."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# a file has the nearest of these for a time that no calendar has
_FIRST: Final = datetime(1, 1, 1, 0, 0, 1, tzinfo=UTC)
_LAST: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_NO_TIME: Final = -1
"""What a leaf has for a time that it cannot hold."""
OWN: Final = frozenset({"leaf", "leaf_hash", "id", "recorded_at", "content_hash"})
"""Columns that follow from the leaf, whatever the text says."""
WRITTEN: Final = "how it is written"
"""Named where the cells of a row are right, and its bytes are not."""


@dataclass(frozen=True, slots=True)
class SealedRow:
    """One row as it was sealed.

    Attributes:
        proved: Its leaf, time and id.
        leaf: The entry in the tree.
        columns: Each column by the text; None: the text is not a record.
    """

    proved: ProvedRow
    leaf: Leaf
    columns: Mapping[str, Any] | None

    def altered(self, shown: Mapping[str, Any]) -> list[str]:
        """Name the columns of a row in Parquet that are others."""
        found = [name for name in OWN if shown[name] != self._own(name, shown)]
        expected = self.columns or {}
        version = expected.get("schema_version")
        for name, value in expected.items():
            if name not in OWN and name != "payload" and shown[name] != value:
                if shown[name] is None and _is_older(version, name):
                    continue
                found.append(name)
        return sorted(found)

    def altered_cells(self, names: Sequence[str], cells: Sequence[str], raw: bytes) -> list[str]:
        """Name the columns of a row in CSV that are others.

        Args:
            names: Those of the file.
            cells: The row's.
            raw: Its bytes, as they are in the file.
        """
        shown = dict(zip(names, cells, strict=False))
        values = [self._value(name, shown) for name in names]
        if csv_lines([values]) == raw:
            return self._lacking(names)
        if len(cells) != len(names):
            return ["the number of cells"]
        found = self._lacking(names)
        for name, cell, value in zip(names, cells, values, strict=True):
            written = "" if value is None else str(harmless(value))
            is_older = cell == "" and _is_older((self.columns or {}).get("schema_version"), name)
            if cell != written and not is_older:
                found.append(name)
        return sorted(found) or ([] if csv_lines([cells]) == raw else [WRITTEN])

    def _value(self, name: str, shown: Mapping[str, str]) -> Any:
        if name == "recorded_at":
            return self._recorded_at(shown.get(name, ""))
        if name == "id":
            return str(uuid.UUID(bytes=self.leaf.id))
        if name in OWN:
            return self._own(name, {})
        if self.columns is None:
            # as nothing is known of it, the file's word; the caller says so
            return shown.get(name, "")
        value = self.columns[name]
        return min(max(value, _FIRST), _LAST) if isinstance(value, datetime) else value

    def _recorded_at(self, cell: str) -> datetime | str:
        recorded = self.leaf.recorded_at
        nearest = {_FIRST.isoformat(), _LAST.isoformat()}
        if recorded == _NO_TIME and cell in nearest:
            return cell
        return min(max(_time(recorded), _FIRST), _LAST)

    def _own(self, name: str, shown: Mapping[str, Any]) -> Any:
        if name == "leaf":
            return self.proved.leaf
        if name == "leaf_hash":
            return self.leaf.hash()
        if name == "id":
            return self.leaf.id
        if name == "content_hash":
            return self.leaf.content_hash
        recorded = self.leaf.recorded_at
        if recorded == _NO_TIME and not _is_usual(shown["recorded_at"]):
            return shown["recorded_at"]
        return recorded

    def _lacking(self, names: Sequence[str]) -> list[str]:
        """Columns that the file should have, by the version of this row."""
        version = (self.columns or {}).get("schema_version")
        return [
            name
            for name in ADDED_IN
            if name in PROVED_CSV_COLUMNS and name not in names and not _is_older(version, name)
        ]


def sealed_row(proved: ProvedRow, text: bytes, content: bytes, *, reads: bool) -> SealedRow:
    """A row by its proof and its text.

    Args:
        proved: Its leaf, time and id.
        text: The payload, UTF-8.
        content: The hash of that.
        reads: Whether its columns are needed.
    """
    columns: Mapping[str, Any] | None = None
    try:
        columns = projections(text) if reads else None
    except Exception:  # noqa: BLE001 - anybody may have written it; it is said of the row
        columns = None
    return SealedRow(proved, Leaf(proved.recorded_at, bytes.fromhex(proved.id), content), columns)


def _is_older(version: Any, name: str) -> bool:
    """Whether rows of a version may lack a column, which was added later."""
    return name in ADDED_IN and version not in versions_with(name)


def _is_usual(recorded: int | None) -> bool:
    """Whether microseconds since 1970 are a time between the first and the last."""
    first, last = (_FIRST - _EPOCH) // _MICROSECOND, (_LAST - _EPOCH) // _MICROSECOND
    return recorded is not None and first < recorded < last


def _time(microseconds: int) -> datetime:
    try:
        return _EPOCH + microseconds * _MICROSECOND
    except OverflowError:
        return _FIRST if microseconds < 0 else _LAST
