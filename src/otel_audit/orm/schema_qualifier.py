"""The schema or database of rows in references: ``tenant_a.order:1``, ``eu.order:1``."""

from __future__ import annotations

import re
import weakref
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import msgspec

from otel_audit._util.cache import BoundedCache

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import URL, Connection
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import Pool

    from otel_audit.orm.mapper_info import MapperInfo
    from otel_audit.orm.reference_names import RowNaming
    from otel_audit.record import Change

OPTION: Final = "otel_audit_database"
"""Execution option of an engine: the name of its database in references, whatever the URL says."""

_SCHEMAS: Final = "schema_translate_map"
_SHARDS: Final = "_ShardedSession__shards"
"""Key of a sharded session's engines, by name; SQLAlchemy does not expose them."""

_PLACED: Final = 2_048
"""Places of tables that are remembered; beyond these they are found again each time."""
_STRUCTURE: Final = re.compile(r"[\\.:]")


@dataclass(frozen=True, slots=True)
class WriteLocation:
    """The place where a connection writes.

    Attributes:
        schemas: To which schemas it translates those of the tables.
        default_schema: The one that tables without a schema are in, as the database says.
        database: Distinguishes its database from others.
        label: What the application calls its database, if it does.
        mapper_infos: The facts about mappers as they are here, as far as they were asked for.
    """

    schemas: Mapping[str | None, str | None] | None
    default_schema: str | None
    database: str
    label: str | None
    mapper_infos: dict[MapperInfo, MapperInfo] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def schema(self, declared: str | None) -> str | None:
        """The schema that a table is in here, by the one that it is declared in."""
        if not self.schemas:
            return declared
        found = self.schemas.get(declared, declared)
        return declared if declared is None and found == self.default_schema else found


class SchemaQualifiers:
    """Names what mapped classes and tables are called where they are written.

    A schema is part of the name where a connection translates the declared one. A database is where
    rows of one class were seen in several, or where the engine or a sharded session has a name for
    it.
    """

    def __init__(self) -> None:
        """Start with no database known."""
        self._pools: weakref.WeakKeyDictionary[Pool, str] = weakref.WeakKeyDictionary()
        self._shards: weakref.WeakKeyDictionary[Pool, str] = weakref.WeakKeyDictionary()
        self._has_shards = False
        self._plain: weakref.WeakKeyDictionary[Pool, WriteLocation] = weakref.WeakKeyDictionary()
        self._in_memory = 0
        self._first: dict[tuple[str, str], str] = {}
        self._several: set[tuple[str, str]] = set()
        self._labels: dict[str, str] = {}
        self._taken: dict[str, str] = {}
        self._placed: BoundedCache[tuple[RowNaming, str | None, str], RowNaming] = BoundedCache(
            _PLACED
        )

    def of_statement(self, connection: Connection, options: Mapping[str, Any]) -> WriteLocation:
        """Return where a statement writes that is executed with options of its own."""
        place = self.at(connection)
        return replace(place, schemas=options[_SCHEMAS]) if _SCHEMAS in options else place

    def at(self, connection: Connection, session: Session | None = None) -> WriteLocation:
        """Return where a connection writes.

        Args:
            connection: The connection.
            session: The session that writes there. One that is spread over several databases says
                what it calls them.
        """
        if session is not None and _SHARDS in session.__dict__:
            self._learn_shards(session.__dict__[_SHARDS])
        options = connection.get_execution_options()
        pool = connection.engine.pool
        is_plain = not self._has_shards and _SCHEMAS not in options and OPTION not in options
        known = self._plain.get(pool) if is_plain else None
        if known is not None:
            return known
        database = self._pools.get(pool)
        if database is None:
            database = self._pools[pool] = self._identify(connection.engine.url)
        found = WriteLocation(
            schemas=options.get(_SCHEMAS),
            default_schema=connection.dialect.default_schema_name,
            database=database,
            label=options.get(OPTION) or (self._shards.get(pool) if self._has_shards else None),
        )
        if is_plain:
            self._plain[pool] = found
        return found

    def _learn_shards(self, shards: Any) -> None:
        if isinstance(shards, dict):
            for name, bind in shards.items():
                pool = getattr(getattr(bind, "engine", None), "pool", None)
                if pool is not None:
                    self._has_shards = True
                    self._shards[pool] = str(name)

    def plan(self, place: WriteLocation, plan: MapperInfo) -> MapperInfo:
        """The facts about a mapper, with its table and names at a place."""
        found = place.mapper_infos.get(plan)
        if found is None:
            naming = self.naming(place, plan.naming)
            found = plan
            if naming is not plan.naming:
                found = replace(plan, naming=naming, table=naming.table)
            if len(place.mapper_infos) >= _PLACED:
                place.mapper_infos.clear()
            place.mapper_infos[plan] = found
        return found

    def naming(self, place: WriteLocation, naming: RowNaming) -> RowNaming:
        """The nouns of rows at a place."""
        schema = place.schema(naming.schema)
        database = self._database(place, naming)
        if not database and schema == naming.schema:
            return naming
        parts = [database, schema if schema != naming.schema else None]
        qualifier = "".join(f"{_escaped(part)}." for part in parts if part)
        key = (naming, schema, qualifier)
        found = self._placed.get(key)
        if found is None:
            found = _placed(naming, schema, qualifier)
            self._placed.put(key, found)
        return found

    def _database(self, place: WriteLocation, naming: RowNaming) -> str | None:
        key = (naming.own, naming.table)
        first = self._first.setdefault(key, place.database)
        if first != place.database and key not in self._several:
            self._several.add(key)
            for other in list(self._plain.values()):
                other.mapper_infos.clear()
        if place.label:
            return str(place.label)
        return self._label(place.database) if key in self._several else None

    def _label(self, database: str) -> str:
        """A short name of a database that no other one has."""
        found = self._labels.get(database)
        if found is None:
            short = PurePath(database).name
            found = short if self._taken.setdefault(short, database) == database else database
            self._labels[database] = found
        return found

    def _identify(self, url: URL) -> str:
        """Identify a database by its address."""
        query = url.query
        if url.get_backend_name() == "sqlite":
            path = url.database or ":memory:"
            if path != ":memory:" and not (path.startswith("file:") and "memory" in str(url)):
                return path
            self._in_memory += 1
            return f"memory-{self._in_memory}"
        host = url.host or _first_of(query.get("host")) or ""
        port = url.port or _first_of(query.get("port")) or ""
        return f"{host}{f':{port}' if port else ''}/{url.database or ''}"


def qualified(schemas: Mapping[str | None, str | None] | None, change: Change) -> Change:
    """Name the schema that a statement's table really is in.

    Args:
        schemas: To which the statement translates those of the tables.
        change: What it did, by the declared schema.
    """
    if not schemas:
        return change
    declared, _, bare = change.table.rpartition(".")
    schema = schemas.get(declared or None, declared or None)
    return msgspec.structs.replace(change, table=f"{schema}.{bare}" if schema else bare)


def _placed(naming: RowNaming, schema: str | None, qualifier: str) -> RowNaming:
    bare = naming.table.rpartition(".")[2]
    own = f"{qualifier}{naming.own}"
    also = (*(f"{qualifier}{base}" for base in naming.bases), naming.own, *naming.also)
    return replace(
        naming,
        own=own,
        noun=own if qualifier else naming.noun,
        also=tuple(dict.fromkeys(one for one in also if one != own)),
        table=f"{schema}.{bare}" if schema else bare,
    )


def _first_of(value: str | tuple[str, ...] | None) -> str | None:
    return value[0] if isinstance(value, tuple) else value


def _escaped(part: str) -> str:
    return _STRUCTURE.sub(r"\\\g<0>", part)
