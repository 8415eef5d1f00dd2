"""Annotations by which an application marks fields that must not be stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

Mark = Literal["redact", "omit", "hash"]
"""Treatment of a marked value: replaced, left out, or replaced by its keyed hash."""

_MARKS = frozenset(get_args(Mark))


@dataclass(frozen=True, slots=True)
class Sensitive:
    """Marks a field of a model: ``password: Annotated[str, Sensitive()]``.

    The same can be said with ``json_schema_extra={"audit": "redact"}`` on a Pydantic field, with
    ``metadata={"audit": "redact"}`` on a dataclass field, and with ``info={"audit": "redact"}`` on
    a SQLAlchemy column.

    Attributes:
        mark: ``redact``, ``omit`` or ``hash``.

    Example::

        from typing import Annotated

        from pydantic import BaseModel

        class Card(BaseModel):
            number: Annotated[str, otel_audit.Sensitive()]

        otel_audit.emit("card.added", metadata={"card": Card(number="4000 0000")})
    """

    mark: Mark = "redact"


@dataclass(frozen=True, slots=True)
class Marked:
    """A value together with the mark of the field it was found in."""

    mark: Mark
    value: Any


def as_mark(word: object) -> Mark:
    """Read a mark; a word that is none of the three means the strictest that keeps the field."""
    return word if isinstance(word, str) and word in _MARKS else "redact"  # type: ignore[return-value]
