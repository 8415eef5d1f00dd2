"""Audit records in memory, without a database, for as long as a block lasts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace

from otel_audit._instrumentation import instrument_into, uninstrument
from otel_audit.action.compose import Opening, in_trace
from otel_audit.config import AuditConfig
from otel_audit.record import AuditRecord


class Recorded:
    """The records made so far, in the order in which their actions ended; safe in any thread.

    Example::

        with recorded(app) as records:
            await client.post("/orders")
        assert [one.event_name for one in records] == ["order.created"]
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: list[AuditRecord] = []
        self._open: set[str] = set()
        self._requests: list[AuditRecord] = []

    def __iter__(self) -> Iterator[AuditRecord]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    def __getitem__(self, place: int) -> AuditRecord:
        return self._now()[place]

    def __repr__(self) -> str:
        return f"<Recorded: {self._summary()}>"

    def find(self, event_name: str | None = None, **wanted: Any) -> list[AuditRecord]:
        """Find records.

        Args:
            event_name: Such as ``order.created``.
            wanted: Further fields and their values; two underscores lead into a part:
                ``outcome="failure"``, ``actor__id="clerk-1"``, ``target__type="order"``.

        Returns:
            Those that match all of it.

        Raises:
            AttributeError: Records have no such field.
        """
        if event_name is not None:
            wanted["event_name"] = event_name
        return [
            record
            for record in self._now()
            if all(_read(record, name) == value for name, value in wanted.items())
        ]

    def one(self, event_name: str | None = None, **wanted: Any) -> AuditRecord:
        """Find the only record that matches; see `find`.

        Raises:
            AssertionError: None matches, or several do; the message says what there is.
        """
        found = self.find(event_name, **wanted)
        if len(found) == 1:
            return found[0]
        asked = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
        raise AssertionError(
            f"{len(found)} audit records match {event_name or 'anything'} {asked}".rstrip()
            + f"; there are: {self._summary()}"
        )

    def clear(self) -> None:
        """Forget the records made so far."""
        with self._lock:
            self._records.clear()
            self._requests.clear()

    def opened(self, begun: AuditRecord | Opening, _span: trace.Span | None = None, /) -> bool:
        """Called when an action begins."""
        with self._lock:
            self._open.add(begun.record_id)
        return True

    def answered(self, _record: AuditRecord, _span: trace.Span | None = None, /) -> None:
        """Called when a client is answered; the record may still change."""

    def discarded(self, record_id: str, /) -> None:
        """Called when what has begun is not recorded after all."""
        with self._lock:
            self._open.discard(record_id)

    def closed(self, record: AuditRecord, span: trace.Span | None = None, /) -> None:
        """Called with each finished record."""
        if span is not None:
            record = in_trace(record, span)
        with self._lock:
            self._open.discard(record.record_id)
            self._records.append(record)

    def seen(self, request: AuditRecord, _span: trace.Span | None = None, /) -> None:
        """Called with each request that is over, also one that is not recorded."""
        with self._lock:
            self._requests.append(request)

    @property
    def requests(self) -> list[AuditRecord]:
        """Every request so far, as it would be recorded; level ``none`` where it is not."""
        with self._lock:
            return list(self._requests)

    @property
    def unfinished(self) -> int:
        """The number of open actions; they have no record yet."""
        with self._lock:
            return len(self._open)

    def _now(self) -> list[AuditRecord]:
        with self._lock:
            return list(self._records)

    def _summary(self) -> str:
        texts = [f"{record.event_name} by {record.actor.id}" for record in self._now()]
        return "; ".join(texts) or "none"


@contextmanager
def recorded(
    app: Any = None, *, app_engine: Any = None, config: AuditConfig | None = None
) -> Iterator[Recorded]:
    """Audit into memory for as long as the block lasts.

    Everything works as in production, redaction and policy included; only the store is left out.
    ORM changes need SQLAlchemy and HTTP requests need Starlette; recording by hand needs neither.

    Args:
        app: A FastAPI or Starlette application, also one that has handled requests before;
            None: every one that is built inside the block.
        app_engine: The SQLAlchemy engine (or several) whose changes are recorded; None: all.
        config: The settings; by default those of environment and file. A destination is not used.

    Yields:
        The records, which can be read after the block too.

    Raises:
        InstrumentationError: Auditing is at work in this process already; call
            ``otel_audit.uninstrument()`` first, or set ``OTEL_AUDIT_ENABLED=false`` for the tests.
        ConfigurationError: A setting is wrong.

    Example::

        with recorded(app) as records:
            await client.post("/orders")
        assert records.one("order.created").outcome == "success"
    """
    records = Recorded()
    settings = AuditConfig(exporter="none") if config is None else config
    if getattr(app, "middleware_stack", None) is not None:
        # built again with the next request, now with the hooks in it
        app.middleware_stack = None
    instrument_into(records, app, app_engine=app_engine, config=settings, seen=records.seen)
    try:
        yield records
    finally:
        uninstrument()


def _read(record: AuditRecord, name: str) -> Any:
    found: Any = record
    for part in name.split("__"):
        if found is None:
            return None
        found = getattr(found, part)
    return found
