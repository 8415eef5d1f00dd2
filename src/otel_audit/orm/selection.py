"""Selection of the engines, sessions, models, tables and columns that are captured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, Table
from sqlalchemy.ext.asyncio import async_scoped_session, async_session, async_sessionmaker
from sqlalchemy.orm import scoped_session

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Column, Connection
    from sqlalchemy.orm import Session

    from otel_audit.orm.options import OrmOptions

OWN_SCHEMA = "audit"
"""The schema of this plugin's own tables, which are never captured."""


class Selection:
    """The answers of one set of options."""

    def __init__(self, options: OrmOptions) -> None:
        """Compile the options.

        Args:
            options: The user's selection.
        """
        self._options = options
        self._engines = tuple(_sync_engine(engine) for engine in options.engines)
        makers = [_unscoped(maker) for maker in options.sessionmakers]
        self._makers = tuple(
            _session_class(maker) for maker in makers if not isinstance(maker, async_sessionmaker)
        )
        self._async_makers = tuple(
            (maker.class_, maker.kw.get("bind"))
            for maker in makers
            if isinstance(maker, async_sessionmaker)
        )
        self.by_session = bool(self._makers or self._async_makers)
        """Whether only given sessionmakers' sessions count."""
        self._metadata = tuple(base.metadata for base in options.bases if hasattr(base, "metadata"))
        self._columns_in = frozenset(options.include_columns)
        self._columns_out = frozenset(options.exclude_columns)

    def takes_connection(self, connection: Connection) -> bool:
        """Whether what happens on this connection is captured."""
        if not self._engines:
            return True
        # an engine with execution options of its own is another object over the same pool
        pool = connection.engine.pool
        for engine in self._engines:  # noqa: SIM110 - called for each statement
            if pool is engine.pool:
                return True
        return False

    def takes_session(self, session: Session | None) -> bool:
        """Whether what this session does is captured."""
        if not self.by_session:
            return True
        if session is None:
            return False
        if isinstance(session, self._makers):
            return True
        outer = async_session(session)
        return outer is not None and any(
            isinstance(outer, kind) and outer.bind is bind for kind, bind in self._async_makers
        )

    def takes_model(self, model: type) -> bool:
        """Whether a mapped class is captured, by what is said of the class itself."""
        options = self._options
        if getattr(model, "__audit__", True) is False:
            return False
        if options.bases and not issubclass(model, options.bases):
            return False
        if _is_named(model, options.exclude_models):
            return False
        return not options.include_models or _is_named(model, options.include_models)

    def takes_table(self, table: Table) -> bool:
        """Whether a table is captured, by what is said of the table itself."""
        if table.info.get("audit") is False:
            return False
        if self._metadata and table.metadata not in self._metadata:
            return False
        return self.takes_table_name(table.fullname)

    def takes_table_name(self, name: str, *, any_case: bool = False) -> bool:
        """Whether a table is captured, by its name with or without a schema.

        Args:
            name: The name.
            any_case: Whether the database ignores case.
        """
        names = {name, name.rpartition(".")[2]}
        if any_case:
            names.update([one.lower() for one in names])
        if OWN_SCHEMA in {one.rpartition(".")[0] for one in names}:
            return False
        options = self._options
        if not names.isdisjoint(options.exclude_tables):
            return False
        return not options.include_tables or not names.isdisjoint(options.include_tables)

    def takes_column(self, column: Column[Any]) -> bool:
        """Whether a column's values are captured."""
        if column.info.get("audit") in ("omit", False):
            return False
        table = column.table
        names = {column.name, f"{table.name}.{column.name}"}
        if isinstance(table, Table):
            names.add(f"{table.fullname}.{column.name}")
        return self._takes_names(names)

    def takes_column_name(self, name: str, tables: Iterable[str]) -> bool:
        """Whether a column's values are captured, by its name and those of its possible tables."""
        return all(
            self._takes_names({name, f"{table}.{name}", f"{table.rpartition('.')[2]}.{name}"})
            for table in tables or ("",)
        )

    def _takes_names(self, names: set[str]) -> bool:
        if not names.isdisjoint(self._columns_out):
            return False
        return not self._columns_in or not names.isdisjoint(self._columns_in)


def _is_named(model: type, wanted: tuple[type | str, ...]) -> bool:
    return any(
        model.__name__ == one if isinstance(one, str) else issubclass(model, one) for one in wanted
    )


def _sync_engine(engine: Any) -> Engine:
    found = getattr(engine, "sync_engine", engine)
    if not isinstance(found, Engine):
        raise TypeError(f"an Engine or AsyncEngine is needed, not {type(engine).__name__}")
    return found


def _unscoped(maker: Any) -> Any:
    scoped = isinstance(maker, scoped_session | async_scoped_session)
    return maker.session_factory if scoped else maker


def _session_class(maker: Any) -> type:
    found = getattr(maker, "class_", maker)
    if not isinstance(found, type):
        raise TypeError(f"a sessionmaker is needed, not {type(maker).__name__}")
    return found
