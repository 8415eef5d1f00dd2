"""The owner of a statement: the unit of work, or the application during a flush."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapper


def is_of_flush(statement: Any, options: Mapping[str, Any], mappers: Iterable[Mapper[Any]]) -> bool:
    """Return whether a flush has made a statement to write the rows of some mapped classes.

    A flush compiles into the cache of the mapper itself. An application may set a cache too, and
    the bulk UPDATE of the ORM uses the mapper's, but for a statement that names a class.

    Args:
        statement: The statement, uncompiled.
        options: What it is executed with.
        mappers: Of the classes.
    """
    cache = options.get("compiled_cache")
    if cache is None or getattr(statement, "_propagate_attrs", None):
        return False
    for mapper in mappers:  # noqa: SIM110 - called for each statement of a flush
        # in the mapper's own dictionary: asking for the attribute would make a cache
        if mapper.base_mapper.__dict__.get("_compiled_cache") is cache:
            return True
    return False
