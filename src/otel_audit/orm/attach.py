"""Attaching to SQLAlchemy: class-level listeners for every session and connection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ClauseElement, Connection, Engine, event
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.pool import Pool

from otel_audit.errors import InstrumentationError
from otel_audit.orm.association_rows import Relations
from otel_audit.orm.before_images import BeforeImageListeners
from otel_audit.orm.bulk import BulkReader
from otel_audit.orm.column_redaction import ColumnRedaction, ValueRedactor
from otel_audit.orm.flush import Fetching, OpenFlushes
from otel_audit.orm.guard import ErrorGuard
from otel_audit.orm.listeners import (
    EngineListeners,
    MapperListeners,
    PoolListeners,
    SessionListeners,
    guarded,
)
from otel_audit.orm.mapper_info import MapperInfoCache
from otel_audit.orm.options import OrmOptions
from otel_audit.orm.outbox import OutboxListeners, Transactional, warn_unrecorded
from otel_audit.orm.parameters import Parameters
from otel_audit.orm.row_diff import ValueReader
from otel_audit.orm.schema_qualifier import SchemaQualifiers
from otel_audit.orm.selection import Selection
from otel_audit.orm.transactions import OrphanRecorder, TransactionTracker
from otel_audit.record import key_text
from otel_audit.redaction import REDACTED, WITHHELD

if TYPE_CHECKING:
    from sqlalchemy.orm import InstanceState


class _Listener(NamedTuple):
    target: type
    name: str
    call: Callable[..., None]
    how: dict[str, bool]


_lock = threading.Lock()
_attached: list[Attachment] = []


@dataclass(eq=False, slots=True)
class Attachment:
    """Capture at work.

    Attributes:
        redactor: Redacts before anything leaves a listener.
        options: What is captured.
        report_commits: Reports commits that have been answered; see
            `TransactionTracker.report_commits`. Never raises.
    """

    redactor: ValueRedactor
    options: OrmOptions
    report_commits: Callable[[], None]
    _tracker: TransactionTracker
    _mappers: MapperInfoCache
    _redaction: ColumnRedaction
    _listeners: list[_Listener] = field(default_factory=list)

    def can_enlist(self, connection: Connection) -> None:
        """Say that the connection's transaction holds a record that the application has made."""
        self._tracker.of(connection).can_enlist = True


def attach(
    redactor: ValueRedactor,
    *,
    options: OrmOptions | None = None,
    on_orphan: OrphanRecorder | None = None,
    transactional: Transactional | None = None,
    on_error: Callable[[], None] = lambda: None,
) -> Attachment:
    """Listen to every session and connection of the process.

    Args:
        redactor: Redacts values and statements.
        options: What is captured; everything by default.
        on_orphan: Takes what a transaction outside any action (or of one that is closed) has
            left: its outcome, and its changes.
        transactional: Writes changes in the transactions themselves; None: they are observed.
        on_error: Called for each failure of ours.

    Returns:
        The attachment; the one there is, if capture is attached already.

    Raises:
        InstrumentationError: Capture is attached with another redactor or other options.
    """
    options = OrmOptions() if options is None else options
    with _lock:
        if _attached:
            present = _attached[0]
            if present.redactor is not redactor or present.options != options:
                raise InstrumentationError(
                    "ORM capture is attached already, with another redactor or other options: "
                    "detach it first"
                )
            return present
        attachment = _build(redactor, options, on_orphan, transactional, ErrorGuard(on_error))
        for target, name, listener, how in attachment._listeners:  # noqa: SLF001 - made here
            event.listen(target, name, listener, **how)
        _attached.append(attachment)
        return attachment


def name_of_mapped(state: InstanceState[Any]) -> tuple[str, str | None] | None:
    """Return the noun and the primary key of a mapped object, without a query.

    Args:
        state: The object's state.

    Returns:
        None if nothing is captured; no key where it has none yet, or one that is not shown.
    """
    attachment = next(iter(_attached), None)
    if attachment is None:
        return None
    info = attachment._mappers.of(state.mapper)  # noqa: SLF001 - made here
    loaded = state.dict
    values = [loaded.get(one.key) for one in info.key] if state.key is None else state.key[1]
    if len(values) != len(info.key):
        return info.naming.own, None
    if any(value is None or isinstance(value, ClauseElement) for value in values):
        return info.naming.own, None
    session = state.session
    dialect = DefaultDialect() if session is None else session.get_bind(state.mapper).dialect
    reader = ValueReader(attachment._redaction, dialect)  # noqa: SLF001 - made here
    shown = [reader.read_key(one, value) for one, value in zip(info.key, values, strict=True)]
    hidden = any(one in (REDACTED, WITHHELD) for one in shown)
    return info.naming.own, None if hidden else key_text(*shown)


def detach(attachment: Attachment) -> None:
    """Stop listening. Detaching twice does nothing.

    What open transactions have written so far is reported with outcome ``unknown``.
    """
    with _lock:
        if attachment not in _attached:
            return
        _attached.remove(attachment)
        for target, name, listener, _ in attachment._listeners:  # noqa: SLF001 - made here
            event.remove(target, name, listener)
    attachment._tracker.close()  # noqa: SLF001 - made here


def _build(
    redactor: ValueRedactor,
    options: OrmOptions,
    on_orphan: OrphanRecorder | None,
    transactional: Transactional | None,
    guard: ErrorGuard,
) -> Attachment:
    on_recorded = (lambda: None) if transactional is None else transactional.committed
    on_unrecorded = None if transactional is None else warn_unrecorded
    tracker = TransactionTracker(options, guard, on_orphan, on_recorded, on_unrecorded)
    selection = Selection(options)
    column_redaction = ColumnRedaction(redactor, options.max_value)
    mapper_infos = MapperInfoCache(
        selection, column_redaction.is_not_sensitive, options.entity_names
    )
    tracker.mark = mapper_infos.personal.mark
    qualifiers = SchemaQualifiers()
    relations = Relations(mapper_infos, column_redaction, qualifiers)
    flushes = OpenFlushes(
        selection, mapper_infos, column_redaction, relations, tracker, guard, qualifiers
    )
    bulk = BulkReader(
        mapper_infos,
        selection,
        Parameters(mapper_infos, selection, column_redaction, options, guard),
    )
    executions = EngineListeners(selection, tracker, flushes, bulk, guard)
    fetch = Fetching(options)
    heard: tuple[tuple[type, object, dict[str, bool]], ...] = (
        # raw: the state, not the object; retval: no wrapper of SQLAlchemy's around ours; insert:
        # before a listener of the application sets what is not written any more
        (
            Mapper,
            MapperListeners(flushes, mapper_infos, fetch=fetch),
            {"raw": True, "retval": True, "insert": True},
        ),
        (Session, SessionListeners(flushes, executions, tracker), {}),
        (Engine, executions, {}),
        (Pool, PoolListeners(tracker), {}),
    )
    if options.before_images:
        images = BeforeImageListeners(
            mapper_infos, selection, column_redaction, executions, tracker, options, qualifiers
        )
        heard += ((Engine, images, {}),)
    listeners = [
        _Listener(target, name, guarded(getattr(one, name), guard), how)
        for target, one, how in heard
        for name in _events(one)
        if fetch.any or name != "before_delete"
    ]
    if transactional is not None:
        promised = OutboxListeners(transactional, tracker)
        # unguarded, as a transaction that cannot be recorded must not be committed; and first
        listeners[:0] = [
            _Listener(Engine, name, getattr(promised, name), {}) for name in _events(promised)
        ]
    report_commits = guarded(tracker.report_commits, guard)
    return Attachment(
        redactor, options, report_commits, tracker, mapper_infos, column_redaction, listeners
    )


def _events(listeners: object) -> list[str]:
    return [name for name in vars(type(listeners)) if not name.startswith("_")]
