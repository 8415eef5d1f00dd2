"""Small batches into the store by one statement, in one round trip.

The columns travel as one JSON array of objects, and the payloads as an array of texts beside it: a
driver takes more time for thirty-five arrays of one value each than for all else that a record
costs. A payload is never part of the other JSON: what is wrong with it must not change a column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec

from otel_audit_postgres.rows import COLUMNS, Row, encode_exact

_NAMES: Final = ", ".join(name for name, _ in COLUMNS)
_PROJECTED: Final = COLUMNS[:-1]
_DEFINITIONS: Final = ", ".join(f"{name} pg_catalog.{kind}" for name, kind in _PROJECTED)
_VALUES: Final = ", ".join([*(name for name, _ in _PROJECTED), "payload::pg_catalog.json"])
INSERT: Final = (
    "WITH sent AS MATERIALIZED (SELECT * FROM ROWS FROM ("  # noqa: S608 - constants
    "pg_catalog.json_to_recordset(pg_catalog.convert_from($1, 'UTF8')::pg_catalog.json) "
    f"AS ({_DEFINITIONS}), pg_catalog.unnest($2::pg_catalog.text[])) AS sent ({_NAMES})) "
    f"INSERT INTO audit.audit_logs ({_NAMES}) SELECT {_VALUES} FROM sent "
    # the key is id and tenant: an id that another tenant's record has is taken, too
    "WHERE id <> ALL (ARRAY(SELECT taken.id FROM audit.audit_logs AS taken "
    "WHERE taken.id = ANY (ARRAY(SELECT id FROM sent)))) ON CONFLICT DO NOTHING"
)
"""Inserts those rows of `parameters` whose ids no row has."""

_TEXTS: Final = frozenset({str, type(None)})
_TEXT_PLACES: Final = [place for place, (_, kind) in enumerate(COLUMNS) if kind == "text"]
_texts = itemgetter(*_TEXT_PLACES)

# what is unknown is left out: the server fills it up with NULL
_Columns: Final = msgspec.defstruct(
    "_Columns", [(name, Any, None) for name, _ in _PROJECTED], omit_defaults=True, gc=False
)


def parameters(rows: Iterable[Row]) -> tuple[bytes, list[str]]:
    """Put rows down as the parameters of `INSERT`.

    Raises:
        TypeError: A field has a type that its class does not allow; so a refusal, as the server's.
    """
    columns, payloads = [], []
    try:
        for row in rows:
            values = row.json_values
            # JSON has types of its own: the server would make a text of a number
            if not _TEXTS.issuperset(map(type, _texts(values))):
                _refuse_other_than_texts(values)
            columns.append(_Columns(*values[:-1]))
            payloads.append(values[-1])
    except (AttributeError, LookupError) as error:
        raise TypeError(type(error).__name__) from None
    return encode_exact(columns), payloads


def _refuse_other_than_texts(values: Sequence[Any]) -> None:
    for place in _TEXT_PLACES:
        if values[place] is not None and not isinstance(values[place], str):
            raise TypeError(COLUMNS[place][0])
