"""Options of ORM capture: which changes are captured, and how much of them is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, MetaData
from sqlalchemy.ext.asyncio import async_scoped_session, async_sessionmaker
from sqlalchemy.orm import scoped_session, sessionmaker

from otel_audit._util.spill import Cipher
from otel_audit.errors import InstrumentationError

if TYPE_CHECKING:
    from otel_audit.config import AuditConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class OrmOptions:
    """Settings of ORM capture.

    Names of tables are taken with and without their schema; models are mapped classes or their
    names; columns are ``column`` or ``table.column``. An empty ``include_…`` includes everything,
    ``exclude_…`` wins over it.

    Attributes:
        engines: Only connections of these engines (``Engine`` or ``AsyncEngine``).
        sessionmakers: Only sessions made by these (``sessionmaker``, ``async_sessionmaker``, or
            ``scoped_session`` and ``async_scoped_session`` over one). An ``async_sessionmaker``
            is identified by its class and its engine: two that share both are one.
        bases: Only classes that derive from these, and tables in their metadata.
        include_tables: Only these tables.
        exclude_tables: Not these tables.
        include_models: Only these models.
        exclude_models: Not these models.
        include_columns: Only these columns' values.
        exclude_columns: Not these columns' values; a change of nothing else is not a change.
        keep_rolled_back: Keep what was rolled back, marked so, rather than only count it.
        max_entries: Changes in one record, and in memory; more go into further records.
        spill_directory: Directory of the private files in which large transactions are kept until
            they end; the system's own for such files by default.
        spill_cipher: Encrypts them.
        max_parameter_sets: Parameter sets of one bulk statement that are kept.
        max_value: Characters of one value's JSON text; a longer one is cut, with size and hash.
        max_statement: Characters of a statement's text.
        fetch_unknown: Read earlier values that are not loaded from the database, with one
            SELECT per row, before a flush overwrites them.
        before_images: Tables of which a bulk UPDATE or DELETE is recorded row by row: the rows
            are read in the same transaction first.
        max_before_images: Rows of one statement that are read; of more none is.
        entity_names: Classes, tables or derived nouns to the nouns that references use.
    """

    engines: tuple[Any, ...] = ()
    sessionmakers: tuple[Any, ...] = ()
    bases: tuple[type, ...] = ()
    include_tables: tuple[str, ...] = ()
    exclude_tables: tuple[str, ...] = ()
    include_models: tuple[type | str, ...] = ()
    exclude_models: tuple[type | str, ...] = ()
    include_columns: tuple[str, ...] = ()
    exclude_columns: tuple[str, ...] = ()
    keep_rolled_back: bool = False
    max_entries: int = 1_000
    spill_directory: Path | None = None
    spill_cipher: Cipher | None = None
    # a sample of what was sent; what the statement has changed is listed apart from it
    max_parameter_sets: int = 20
    max_value: int = 4_096
    max_statement: int = 2_000
    fetch_unknown: bool = False
    before_images: tuple[str, ...] = ()
    max_before_images: int = 1_000
    entity_names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def from_config(cls, config: AuditConfig, **given: Any) -> OrmOptions:
        """Take what the settings say.

        Args:
            config: The settings.
            given: What only a program can say: engines and the like.
        """
        return cls(
            include_tables=config.orm_include_tables,
            exclude_tables=config.orm_exclude_tables,
            include_models=config.orm_include_models,
            exclude_models=config.orm_exclude_models,
            include_columns=config.orm_include_columns,
            exclude_columns=config.orm_exclude_columns,
            keep_rolled_back=config.orm_keep_rolled_back,
            fetch_unknown=config.orm_fetch_unknown,
            before_images=config.orm_before_images,
            max_before_images=config.orm_max_before_images,
            max_entries=config.orm_max_entries,
            spill_directory=config.spool_path if config.has_spool else config.spool_dir,
            entity_names=config.entity_names,
            **given,
        )


def sources_of(given: Any) -> dict[str, tuple[Any, ...]]:
    """Sort what a program names as sources of changes.

    Args:
        given: An engine, a sessionmaker, a declarative base, or several of these; None: nothing.

    Returns:
        The options ``engines``, ``sessionmakers`` and ``bases``.

    Raises:
        InstrumentationError: One of them is none of these.
    """
    several = tuple(given) if isinstance(given, list | tuple | set | frozenset) else (given,)
    found: dict[str, tuple[Any, ...]] = {"engines": (), "sessionmakers": (), "bases": ()}
    for one in several:
        if one is not None:
            found[_kind(one)] += (getattr(one, "sync_engine", one),)
    return found


def _kind(one: Any) -> str:
    if isinstance(getattr(one, "sync_engine", one), Engine):
        return "engines"
    if isinstance(one, sessionmaker | async_sessionmaker | scoped_session | async_scoped_session):
        return "sessionmakers"
    if isinstance(one, type) and isinstance(getattr(one, "metadata", None), MetaData):
        return "bases"
    raise InstrumentationError(
        "app_engine: an engine, a sessionmaker or a declarative base of SQLAlchemy is needed, "
        f"not {one.__name__ if isinstance(one, type) else type(one).__name__}"
    )
