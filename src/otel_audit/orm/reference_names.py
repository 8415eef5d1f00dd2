"""Nouns of entity references for mapped classes, unique for each class."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table
from sqlalchemy.orm.exc import UnmappedClassError

from otel_audit.policy.entity_names import entity_noun, further_noun
from otel_audit.record import is_plain_key, key_text, snake_case

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy.orm import Mapper, registry


@dataclass(frozen=True, slots=True, eq=False)
class RowNaming:
    """The nouns of a class's or table's rows in references.

    Attributes:
        own: A noun, with a prefix that distinguishes it from the same noun for other rows.
        noun: The same, if it is not the entity's name in snake case.
        also: What else references may call them: a shorter name, the table's, those of the
            classes that the class inherits from.
        bases: Those of `also` that are of inherited classes.
        table: The table, with its schema.
        schema: The schema that it is declared in.
    """

    own: str
    noun: str | None
    also: tuple[str, ...]
    bases: tuple[str, ...]
    table: str
    schema: str | None

    def name_for(self, key: Mapping[str, Any]) -> str | None:
        """A row's noun in a change, if the entity's name does not give it."""
        if self.noun is not None or len(key) < 2 or is_plain_key(key.values()):  # noqa: PLR2004 - of one column
            return self.noun
        return self.own

    def references(self, key: Mapping[str, Any]) -> tuple[str, ...]:
        """The further references to a row."""
        if not self.also:
            return ()
        text = key_text(*key.values())
        return tuple([f"{name}:{text}" for name in self.also])

    @classmethod
    def of_table(cls, table: Table) -> RowNaming:
        """The naming of a table that no class is mapped to."""
        return cls(snake_case(str(table.name)), None, (), (), str(table.fullname), table.schema)


class ReferenceNames:
    """The nouns of the classes seen so far, and of all classes in their registries."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """Start with no class known.

        Args:
            names: Classes, tables or derived nouns to the nouns that are to be used.
        """
        self._names = names
        self._registries: weakref.WeakSet[registry] = weakref.WeakSet()

    def meets(self, mapper: Mapper[Any]) -> bool:
        """Add a mapper; return whether others have come with it."""
        if mapper.registry in self._registries:
            return False
        self._registries.add(mapper.registry)
        return True

    def naming(self, mapper: Mapper[Any], table: str) -> RowNaming:
        """Name the rows of a class.

        Args:
            mapper: Its mapper.
            table: The table's name as it is recorded.
        """
        own, bases = self.own(mapper), tuple(map(self.own, bases_of(mapper)))
        return RowNaming(
            own=own,
            noun=None if own == snake_case(mapper.class_.__name__) else own,
            also=tuple(dict.fromkeys((*self.further(mapper), *bases))),
            bases=bases,
            table=table,
            schema=_place(mapper)[0],
        )

    def own(self, mapper: Mapper[Any]) -> str:
        """The noun of a class's rows: ``order``.

        Where other rows are called so, too, its schema stands before it, or its table if the
        schema does not distinguish them.
        """
        noun = self._noun(mapper)
        rivals = list(self._rivals(mapper, noun))
        if not rivals:
            return noun
        schema, table = _place(mapper)
        if all(_place(rival)[0] != schema for rival in rivals):
            return f"{schema}.{noun}" if schema else noun
        return f"{table}.{noun}"

    def further(self, mapper: Mapper[Any]) -> tuple[str, ...]:
        """Other nouns that a route may use: the noun alone, or that of the table."""
        noun, table = self._noun(mapper), _place(mapper)[1]
        found = [] if noun == self.own(mapper) else [noun]
        if mapper.inherits is None and not self._is_renamed(mapper):
            other = further_noun(noun, mapper.class_.__name__, table)
            if other is not None and not any(self._rivals(mapper, other, further=True)):
                found.append(other)
        return tuple(found)

    def _noun(self, mapper: Mapper[Any]) -> str:
        schema, table = _place(mapper)
        name = mapper.class_.__name__
        for known in (name, f"{schema}.{table}", table):
            if known in self._names:
                return self._names[known]
        noun = entity_noun(name, table)
        return self._names.get(noun, noun)

    def _is_renamed(self, mapper: Mapper[Any]) -> bool:
        schema, table = _place(mapper)
        name = mapper.class_.__name__
        known = (name, f"{schema}.{table}", table, entity_noun(name, table))
        return any(one in self._names for one in known)

    def _rivals(
        self, mapper: Mapper[Any], noun: str, *, further: bool = False
    ) -> Iterator[Mapper[Any]]:
        """The other classes whose rows are called so, and are other rows.

        Args:
            mapper: Of the class.
            noun: What its rows are called.
            further: Whether those count that are called so for their table.
        """
        place = _place(mapper)
        for one in list(self._registries):
            for other in mappers_of(one):
                if (
                    other.base_mapper is not mapper.base_mapper
                    and _place(other) != place
                    and (self._noun(other) == noun or (further and self._after(other) == noun))
                ):
                    yield other

    def _after(self, mapper: Mapper[Any]) -> str | None:
        """The noun of rows by their table."""
        return further_noun(self._noun(mapper), mapper.class_.__name__, _place(mapper)[1])


def mappers_of(known: registry) -> list[Mapper[Any]]:
    """List the mappers of a registry; a class whose mapping has failed may be left in it."""
    try:
        return list(known.mappers)
    except UnmappedClassError:
        managers = list(known._managers)  # noqa: SLF001 - no public way around the failed one
        return [manager.mapper for manager in managers if manager.is_mapped]


def bases_of(mapper: Mapper[Any]) -> tuple[Mapper[Any], ...]:
    """The mappers that a mapper inherits from and shares the identity of its rows with."""
    found = []
    while mapper.inherits is not None and not mapper.concrete:
        mapper = mapper.inherits
        found.append(mapper)
    return tuple(found)


def _place(mapper: Mapper[Any]) -> tuple[str | None, str]:
    table = mapper.local_table
    if isinstance(table, Table):
        return table.schema, str(table.name)
    return None, str(getattr(table, "name", ""))
