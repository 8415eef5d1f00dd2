"""Nouns of entities: one noun for a route and for a row of the database."""

from __future__ import annotations

import functools
from typing import Final

from otel_audit.policy.words import singular, split_words

_BEHIND: Final = frozenset({"db", "entity", "model", "orm", "row", "table", "tbl"})
_BEFORE: Final = frozenset({"db", "orm", "sql", "tbl"})
"""Words that code adds to a noun for its mapped class: ``UserModel``, ``DBUser``."""

_PERHAPS_BEHIND: Final = frozenset({"mapping", "object", "record", "schema"})
"""The same, if the table's name confirms it; a ``MedicalRecord`` is a record."""


# more classes and tables than applications have
@functools.lru_cache(maxsize=2048)
def entity_noun(name: str, table: str | None = None) -> str:
    """Say what the rows of a mapped class are called.

    Args:
        name: The class's name.
        table: The table's name, without its schema. It shows whether a word such as ``Model``
            belongs to the thing: ``CarModel`` in ``car_models`` is a car model, ``UserModel`` in
            ``users`` is a user.

    Returns:
        The noun in snake case and in the singular, as a route's is.
    """
    words = split_words(name) or split_words(table or "")
    if not words:
        return name.lower()
    stored = _singular(split_words(table or ""))
    bare = _bare(words, stored)
    if _ends_with(stored, _singular(words)) and not _ends_with(stored, _singular(bare)):
        bare = words
    return "_".join((*bare[:-1], singular(bare[-1])))


def table_noun(table: str) -> str:
    """Say what the rows of a table would be called by its name alone; empty if it has no word."""
    words = split_words(table)
    while len(words) > 1 and words[0] in {"t", "tbl"}:
        del words[0]
    return "_".join((*words[:-1], singular(words[-1]))) if words else ""


def further_noun(noun: str, name: str, table: str) -> str | None:
    """Say by which other noun a route may call the rows of a table.

    Args:
        noun: What they are called.
        name: The mapped class's name.
        table: The table's name, without its schema.

    Returns:
        That of the table, where it says something else: a ``CustomerOrder`` in ``orders`` is an
        ``order``. None if it says the same, or only adds a prefix: ``shop_orders``.
    """
    found = table_noun(table)
    stored, spoken = _singular(split_words(found)), _singular(split_words(noun))
    if not stored or _ends_with(stored, spoken):
        return None
    # a table that is only named after the class says nothing more
    if "".join(stored) in ("".join(spoken), "".join(_singular(split_words(name)))):
        return None
    return found


def _bare(words: list[str], stored: list[str]) -> list[str]:
    """Leave out what only says that a class is mapped."""
    while len(words) > 1:
        if words[-1] in _BEHIND or (
            words[-1] in _PERHAPS_BEHIND and stored == _singular(words[:-1])
        ):
            words = words[:-1]
            if words[-1] == "in" and len(words) > 1:  # UserInDB
                words = words[:-1]
        elif words[0] in _BEFORE:
            words = words[1:]
        else:
            break
    return words


def _singular(words: list[str]) -> list[str]:
    return [singular(word) for word in words]


def _ends_with(words: list[str], end: list[str]) -> bool:
    return words[-len(end) :] == end
