"""The fixture ``audit``: the records of one test, with assertions."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from otel_audit._util.aio import is_in_loop
from otel_audit.config import AuditConfig
from otel_audit.record import AuditRecord, to_json
from otel_audit.testing.explain import named, reasons
from otel_audit.testing.matchers import Wanted
from otel_audit.testing.recorder import Recorded, recorded
from otel_audit.testing.routes import TestedRoute, tested_routes
from otel_audit.testing.secrets import search
from otel_audit.testing.snapshots import snapshot

PATIENCE: Final = 2.0
"""Seconds that an assertion waits for actions that are still open."""

_LOOK_EVERY: Final = 0.005
"""Seconds between two looks at them: not noticed by a person, and no load."""

_NEAREST: Final = 3
"""Records that a failed assertion compares with what was expected, the most alike first."""
_REASONS: Final = 5
"""Reasons that it lists; the others are counted."""


class Audit:
    """The records of one test; every assertion fails with a text that names the fault.

    Attributes:
        records: What was recorded, in the order in which it ended.
        config: The settings at work.
        routes: The application's routes; empty where there is no application.

    Example::

        with audit_trail(app) as audit:
            await client.post("/orders")
        audit.only("order.created", actor="anonymous")
    """

    def __init__(
        self, records: Recorded, config: AuditConfig, routes: list[TestedRoute] | None = None
    ) -> None:
        """Look at records while they are made; see `audit_trail`.

        Args:
            records: What the application has recorded.
            config: The application's settings.
            routes: Its routes; None where there is no application.
        """
        self.records = records
        self.config = config
        self.routes = routes or []
        self.spool: Path | None = None
        self._forgotten: list[AuditRecord] = []
        self._earlier: list[AuditRecord] = []
        self._logs = _Logs()
        self._spans: list[ReadableSpan] = []

    def __iter__(self) -> Iterator[AuditRecord]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"<Audit: {self.records!r}>"

    def recorded(self, event: Any = None, /, **fields: Any) -> AuditRecord:
        """Assert that something was recorded.

        Args:
            event: The event's name; or a pattern, a predicate, `ANY`.
            fields: Further expectations: ``actor`` (its id), ``tenant`` (id or slug), ``target``
                (``order:1``, or the type), ``outcome``, ``action``, ``status``, ``level``,
                ``committed`` (bool), ``changes`` (``{"order:1": {"status": ("open", "paid")}}``,
                a part of what changed is enough); two underscores lead into a part:
                ``request__body__content``.

        Returns:
            The first record that fits all of it.

        Raises:
            AssertionError: None does; the message has the nearest ones, and reasons.
            TypeError: A field that records do not have.
        """
        __tracebackhide__ = True
        wanted = Wanted.of(event, fields)
        self._wait(lambda: bool(self._fitting(wanted)))
        found = self._fitting(wanted)
        if not found:
            raise AssertionError(self._missing(wanted))
        return found[0]

    def only(self, event: Any = None, /, **fields: Any) -> AuditRecord:
        """Assert that one record fits, and that there is no other; see `recorded`."""
        __tracebackhide__ = True
        found = self.recorded(event, **fields)
        self._wait(lambda: False)
        others = [record for record in self.records if record is not found]
        if others:
            raise AssertionError(
                f"one audit record was expected, and there are {len(others) + 1}:\n"
                + _listed([found, *others])
            )
        return found

    def nothing(self, event: Any = None, /, **fields: Any) -> None:
        """Assert that nothing that fits was recorded; without arguments: nothing at all."""
        __tracebackhide__ = True
        wanted = Wanted.of(event, fields)
        self._wait(lambda: bool(self._fitting(wanted)))
        found = self._fitting(wanted)
        if found:
            raise AssertionError(
                f"no audit record was expected of\n{wanted}\nand there "
                f"{'is' if len(found) == 1 else 'are'} {len(found)}:\n{_listed(found)}"
            )

    def count(self, event: Any = None, /, *, times: int | None = None, **fields: Any) -> int:
        """Count the records that fit; with ``times``, assert that there are so many."""
        __tracebackhide__ = True
        wanted = Wanted.of(event, fields)
        self._wait(lambda: False)
        found = self._fitting(wanted)
        if times is not None and len(found) != times:
            raise AssertionError(
                f"{times} audit records were expected of\n{wanted}\nand there are {len(found)}"
                + (f":\n{_listed(found)}" if found else f"\n{self._reasons()}".rstrip())
            )
        return len(found)

    def no_secrets(self, *secrets: str) -> None:
        """Assert that no secret is in records, spans, logs or spool, in any usual form.

        Args:
            secrets: Plain values; looked for as they are, in base64, hex, URL and JSON form.

        Raises:
            AssertionError: One is; the message says where, and in which form.
            ValueError: None is given, or one is too short.
        """
        __tracebackhide__ = True
        if not secrets:
            raise ValueError("no_secrets: name at least one value that must be nowhere")
        self._wait(lambda: False)
        found = list(search(secrets, self._places()))
        if found:
            raise AssertionError("secrets got out:\n" + "\n".join(f"  {line}" for line in found))

    def snapshot(self) -> list[dict[str, Any]]:
        """Return the records as plain values that are the same in every run; see `snapshot`."""
        self._wait(lambda: False)
        return snapshot(self.records)

    def clear(self) -> None:
        """Forget what was recorded so far, such as by a test's preparations.

        Secrets are still looked for in it, and the coverage of routes still counts it.
        """
        self._wait(lambda: False)
        self._forgotten += self.records
        self._earlier += self.records.requests
        self.records.clear()

    @property
    def requests(self) -> list[AuditRecord]:
        """Every request of this test, also one that is forgotten or not recorded."""
        return [*self._earlier, *self.records.requests]

    async def settled(self, timeout: float = PATIENCE) -> None:  # noqa: ASYNC109 - a limit of ours
        """Wait, in a test on asyncio, for actions that are still open; their loop continues."""
        until = time.monotonic() + timeout
        while self.records.unfinished and time.monotonic() < until:  # noqa: ASYNC110 - any thread
            await asyncio.sleep(_LOOK_EVERY)

    def _fitting(self, wanted: Wanted) -> list[AuditRecord]:
        return [record for record in self.records if not wanted.differences(record)]

    def _wait(self, enough: Any) -> None:
        """Wait for actions that are still open, unless this holds up the loop they run on."""
        if is_in_loop():
            return
        until = time.monotonic() + PATIENCE
        while self.records.unfinished and not enough() and time.monotonic() < until:
            time.sleep(_LOOK_EVERY)

    def _missing(self, wanted: Wanted) -> str:
        records = list(self.records)
        lines = ["no audit record fits:", str(wanted)]
        if records:
            tries = [(wanted.differences(record), record) for record in records]
            tries.sort(key=lambda one: len(one[0]))
            event = wanted.asked.get("event")
            if event is not None:
                # of the expected event, first
                tries.sort(key=lambda one: any(line.startswith("event: ") for line in one[0]))
            lines.append(f"the nearest of {len(records)}:")
            for number, (differences, record) in enumerate(tries[:_NEAREST], 1):
                lines.append(f"  {number}. {_summary(record)}")
                lines += [f"       {line}" for line in differences]
        else:
            lines.append("nothing was recorded")
        return "\n".join([*lines, self._reasons()]).rstrip()

    def _reasons(self) -> str:
        requests = self.records.requests
        found = list(dict.fromkeys(reasons(requests, list(self.records), self.routes, self.config)))
        open_ = self.records.unfinished
        if open_:
            found.append(
                f"{open_} {'action has' if open_ == 1 else 'actions have'} begun and not ended"
                + ("; in an async test: await audit.settled() first" if is_in_loop() else "")
            )
        if not found and not len(self.records) and not requests:
            found.append(
                "no request came to an application that is audited here, and nothing was recorded "
                "by hand: is the client's application that of audit_app?"
            )
        shown = found[:_REASONS]
        if len(found) > _REASONS:
            shown.append(f"and {len(found) - _REASONS} more")
        return "\n".join(f"why: {line}" for line in shown)

    def _places(self) -> Iterator[tuple[str, str]]:
        for record in [*self._forgotten, *self.records]:
            yield f"the record {record.event_name}", to_json(record).decode()
        for span in list(self._spans):
            yield f"the span {span.name}", _span_text(span)
        for line in list(self._logs.lines):
            yield "the log", line
        if self.spool is not None and self.spool.is_dir():
            for file in sorted(self.spool.rglob("*")):
                if file.is_file():
                    yield f"the spool's file {file.name}", file.read_bytes().decode("latin-1")


@contextmanager
def audit_trail(
    app: Any = None,
    *,
    config: AuditConfig | None = None,
    app_engine: Any = None,
    spool: Path | None = None,
) -> Iterator[Audit]:
    """Audit into memory, as `recorded`, with the assertions of the fixture ``audit``.

    Args:
        app: The application.
        config: The settings; by default those of environment and file, without a store.
        app_engine: The SQLAlchemy engine whose changes are recorded; None: all.
        spool: A directory that is searched for secrets, too.

    Yields:
        The object of the fixture.

    Example::

        with audit_trail(app) as audit:
            await client.post("/orders")
        audit.recorded("order.created", outcome="success")
    """
    settings = AuditConfig(exporter="none") if config is None else config
    routes = [] if app is None else tested_routes(app)
    with recorded(app, app_engine=app_engine, config=settings) as records:
        audit = Audit(records, settings, routes)
        audit.spool = spool
        root = logging.getLogger()
        root.addHandler(audit._logs)  # noqa: SLF001 - its own
        _collector.into(audit._spans)  # noqa: SLF001 - its own
        try:
            yield audit
        finally:
            _collector.into(None)
            root.removeHandler(audit._logs)  # noqa: SLF001 - its own


class _Logs(logging.Handler):
    """Keeps what is logged, with tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.lines.append(self.format(record))
        except Exception:  # noqa: BLE001 - as logging does: the application continues
            self.handleError(record)


class _Collector(SpanProcessor):
    """Sees the spans of the process's provider; a processor cannot be removed again."""

    def __init__(self) -> None:
        self._kept: list[ReadableSpan] | None = None
        self._provider: Any = None

    def into(self, kept: list[ReadableSpan] | None) -> None:
        """Keep spans there from now on; None: keep none."""
        self._kept = kept
        provider = trace.get_tracer_provider()
        add = getattr(provider, "add_span_processor", None)
        if kept is not None and callable(add) and provider is not self._provider:
            self._provider = provider
            add(self)

    def on_end(self, span: ReadableSpan) -> None:
        if self._kept is not None:
            self._kept.append(span)


_collector = _Collector()


def _span_text(span: ReadableSpan) -> str:
    events = [[event.name, dict(event.attributes or {})] for event in span.events]
    parts = [span.name, dict(span.attributes or {}), events, span.status.description]
    return json.dumps(parts, default=str, ensure_ascii=False)


def _listed(records: list[AuditRecord]) -> str:
    return "\n".join(f"  {number}. {_summary(one)}" for number, one in enumerate(records, 1))


def _summary(record: AuditRecord) -> str:
    return f"{record.event_name} by {record.actor.id}, {record.outcome}, {named(record)}"
