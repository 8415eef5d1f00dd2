"""The producer of this process: its resource, its numbered stream of records, its audit spans."""

from __future__ import annotations

import functools
import logging
import time
import weakref
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from otel_audit._util.fork import renew_in_child
from otel_audit._util.ids import uuid7
from otel_audit._util.own_lock import is_mine, own_lock
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.action.compose import (
    Ending,
    Opening,
    ended,
    numbered,
    provenance_of,
    with_provenance,
)
from otel_audit.action.ports import Close
from otel_audit.action.record_limit import MARGIN, RECORD_LIMIT, first_of, fit
from otel_audit.attributes import SCOPE_NAME, plain_values, to_attributes
from otel_audit.delivery.delivery import Delivery
from otel_audit.delivery.intent import Intents
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.producer_records import (
    ALIVE,
    ENDED,
    STARTED,
    ProducerRecordOptions,
    producer_record,
)
from otel_audit.delivery.queue import ChangedSince
from otel_audit.delivery.queue_entries import Entry
from otel_audit.delivery.sink import Refused
from otel_audit.delivery.spool import FrameKind, Position, SpoolError
from otel_audit.record import AuditRecord, to_json
from otel_audit.scope import Provenance

_logger = logging.getLogger(__name__)

_UNLIMITED = SpanLimits(
    max_attributes=SpanLimits.UNSET,
    max_events=SpanLimits.UNSET,
    max_links=SpanLimits.UNSET,
    max_span_attributes=SpanLimits.UNSET,
    max_event_attributes=SpanLimits.UNSET,
    max_link_attributes=SpanLimits.UNSET,
    max_attribute_length=SpanLimits.UNSET,
    max_span_attribute_length=SpanLimits.UNSET,
)


class Producer:
    """One producer: a numbered stream of records, from 1.

    A forked child is a producer of its own. Where somebody listens each record is also made an
    audit span; its tracer is made with the first one, when the application has long set up its
    tracing, so that both have the same resource.
    """

    def __init__(  # noqa: PLR0913 - one argument a part
        self,
        delivery: Delivery,
        counters: Counters,
        *,
        refuse_when_full: bool,
        own_records: ProducerRecordOptions | None = None,
        intents: Callable[[], Intents] | None = None,
        span_processors: Sequence[SpanProcessor] = (),
        record_limit: int = RECORD_LIMIT,
    ) -> None:
        """Remember where records go.

        Args:
            delivery: Takes what is known of actions, and finished records, in microseconds each.
            counters: Where a span that cannot be read is counted.
            refuse_when_full: Whether an action shall be refused that the spool has no room for.
            own_records: What its own records say, and how often; None: it makes none.
            intents: Makes what stores intents; None: there are none.
            span_processors: Who wants to see the audit spans.
            record_limit: Bytes of a record; a larger one is split, or loses what is largest.
        """
        self._delivery = delivery
        self._counters = counters
        self._refuse_when_full = refuse_when_full
        self._own_records = own_records
        self._make_intents = intents
        self._span_processors = span_processors
        self._record_limit = record_limit
        self._begin()
        alive = weakref.ref(self)
        renew_in_child(self, Producer._begin)
        if own_records is not None and own_records.heartbeat:
            delivery.every(own_records.heartbeat / 2, lambda: _beat(alive))

    def _begin(self) -> None:
        self._beginning = own_lock()
        self.producer_id = uuid7()
        self._numbers = count(1)
        self._last_at = time.monotonic()
        self._announced = False
        self._ended = False
        self._tracer: trace.Tracer | None = None
        self._intents = None if self._make_intents is None else self._make_intents()

    def begin(self) -> None:
        """Record the start of the stream, once. Never raises."""
        if self._own_records is None or self._announced:
            return
        # a signal handler or the garbage collector records something in the middle of our own work:
        # the thread that announces may wait for this one, so this one does not wait for it, and the
        # next record announces
        if is_mine(self._beginning) or self._delivery.is_held:
            return
        # other threads block here, so that the record `started` gets number 1
        with self._beginning:
            if not self._announced:
                self._send_own_record(STARTED)
                self._announced = True

    def end(self) -> None:
        """Say that the stream has ended in order; what comes after it takes that back."""
        if self._announced and not self._ended:
            self._send_own_record(ENDED)
            self._ended = True

    def beat(self) -> None:
        """Say that the process lives, if it has said nothing for as long as the heartbeat."""
        if self._own_records is None or not self._announced or self._ended:
            return
        # called twice as often, so the pause is at most one and a half
        if time.monotonic() - self._last_at >= self._own_records.heartbeat:
            self._send_own_record(ALIVE)

    def _send_own_record(self, event: str) -> None:
        try:
            configuration = "" if self._own_records is None else self._own_records.configuration
            resource = resource_attributes()
            self._send(producer_record(event, self.producer_id, resource, configuration), None)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._counters.add("capture_errors")
            log_limited(
                _logger, event, "The stream's own record %s was not made", event, error=error
            )

    def provenance(self, server_span: trace.Span | None) -> Provenance:
        """Say from which process and in which trace the records of an action will be."""
        return provenance_of(server_span, self.producer_id, resource_attributes())

    def opened(self, begun: AuditRecord | Opening, server_span: trace.Span | None) -> bool:
        """Write down that an action has begun.

        Returns:
            Whether it may go on; False where it could not be recorded and so must be refused.
        """
        if self._note_begun(begun, server_span) or not self._refuse_when_full:
            return True
        self._counters.add("refused")
        return False

    def opened_regardless(
        self, begun: AuditRecord | Opening, server_span: trace.Span | None
    ) -> bool:
        """As `opened`, for an action that is never refused: nothing counts as refused then."""
        self._note_begun(begun, server_span)
        return True

    def _note_begun(self, begun: AuditRecord | Opening, server_span: trace.Span | None) -> bool:
        try:
            if isinstance(begun, AuditRecord):
                self._note(FrameKind.OPENED, begun, server_span)
                return True
            text = self._opening_text(begun)
            if text is None:
                self._note(FrameKind.OPENED, begun.record(), server_span)
            else:
                self._delivery.queue.note(FrameKind.OPENED, begun.record_id, text)
        except SpoolError as error:
            log_limited(
                _logger, "opened", "The audit spool takes no new action: %s", error,
                level=logging.CRITICAL,
            )  # fmt: skip
            return False
        return True

    async def intended(self, record: AuditRecord, server_span: trace.Span | None) -> bool:
        """Bring an intent to the store, before its action begins.

        Returns:
            Whether the store has it; if not, its action must be refused. The intent is
            then delivered like any record, so that its number is not missing.
        """
        if self._intents is None:
            return True
        self.begin()
        known = with_provenance(record, server_span, self.producer_id, resource_attributes())
        record = first_of(self._fitted(known))
        record = numbered(record, self.producer_id, self._next())
        try:
            stored = await self._intents.store(record)
        except BaseException:
            self._delivery.submit(record)
            raise
        if stored:
            self._counters.add("emitted")
        else:
            self._counters.add("refused")
            self._delivery.submit(record)
        return stored

    @property
    def intents(self) -> Intents | None:
        """The writer of intents, if there is one."""
        return self._intents

    def close(self) -> None:
        """Say that the stream has ended, and give back what intents needed. Never raises."""
        self.end()
        if self._intents is not None:
            self._intents.close()

    def _opening_text(self, begun: Opening) -> bytes | None:
        """Write what is known of the beginning; None if it needs a record to be made first."""
        if begun.provenance.producer_id != self.producer_id:
            return None
        try:
            text = to_json(begun)
        except Exception:  # noqa: BLE001 - the record is measured, and says what is wrong
            return None
        return text if len(text) + MARGIN <= self._record_limit else None

    def answered(self, record: AuditRecord, server_span: trace.Span | None) -> Close | None:
        """Write down all that is known before the client sees the end of its answer.

        Returns:
            How to close the action by what has changed since; None if the frame does not say all.
        """
        return self._note(FrameKind.ANSWERED, record, server_span)

    def discarded(self, record_id: str) -> None:
        """Take back what was opened: the action is not recorded after all."""
        self._delivery.discard(record_id)

    def closed(self, record: AuditRecord, server_span: trace.Span | None) -> None:
        """Number a finished record and hand it over.

        Args:
            record: The record, complete but for its place in the stream and in a trace.
            server_span: The application's own span of the action, if any.
        """
        if not self._announced:
            self.begin()
        self._send(record, server_span)

    def deliver_span(self, entry: Entry) -> None:
        """Deliver the record of another program's span; it has been a span already."""
        if isinstance(entry, Refused):
            self._delivery.submit(entry)
            return
        self.begin()
        for piece in self._fitted(entry):
            self._delivery.submit(numbered(piece, self.producer_id, self._next()))

    def _note(
        self, kind: FrameKind, record: AuditRecord, server_span: trace.Span | None
    ) -> Close | None:
        known = record
        # a forked child is another producer than the one in which the action has begun
        if known.producer_id != self.producer_id:
            known = with_provenance(record, server_span, self.producer_id, resource_attributes())
        text = self._small(known)
        if text is None:
            known = first_of(self._fitted(known))
            self._delivery.queue.note(kind, known.record_id, known)
            return None
        position = self._delivery.queue.note(kind, known.record_id, text)
        if position is None or known is not record:
            return None
        return functools.partial(self._close, known, position, len(text))

    def _close(
        self,
        answered: AuditRecord,
        position: Position,
        size: int,
        ending: Ending,
        server_span: trace.Span | None,
    ) -> AuditRecord:
        """Number a record whose answer was written down, and hand it over: what has changed."""
        if answered.producer_id != self.producer_id:
            # a forked child
            finished = ended(answered, ending)
            self.closed(finished, server_span)
            return finished
        if not self._announced:
            self.begin()
        number = self._next()
        finished = ended(answered, ending, number)
        try:
            text = ending.text(number)
        except Exception:  # noqa: BLE001 - the whole record is measured, and says what is wrong
            text = None
        if text is None or size + len(text) + MARGIN > self._record_limit:
            self._send_numbered(finished, server_span)
        else:
            self._submit(finished, ChangedSince(text, position, size), server_span)
        return finished

    def _send(self, record: AuditRecord, server_span: trace.Span | None) -> None:
        # encoded once, number and all: what is measured is what the spool takes
        number = self._next()
        if record.producer_id == self.producer_id:
            finished = numbered(record, self.producer_id, number)
        else:
            finished = with_provenance(
                record, server_span, self.producer_id, resource_attributes(), number
            )
        self._send_numbered(finished, server_span)

    def _send_numbered(self, finished: AuditRecord, server_span: trace.Span | None) -> None:
        text = self._small(finished)
        if text is not None:
            self._submit(finished, text, server_span)
            return
        first, *further = self._fitted(finished)
        self._submit(first, None, server_span)
        for piece in further:
            self._submit(numbered(piece, self.producer_id, self._next()), None, server_span)

    def _submit(
        self,
        finished: AuditRecord,
        text: bytes | ChangedSince | None,
        server_span: trace.Span | None,
    ) -> None:
        self._delivery.submit(finished, text)
        if self._span_processors:
            self._trace(finished, server_span)

    def _small(self, record: AuditRecord) -> bytes | None:
        """Encode a record; None if it is above its bound, or cannot be encoded as it is."""
        try:
            text = to_json(record)
        except Exception:  # noqa: BLE001 - `fit` says what is wrong, and the queue what to do
            return None
        return text if len(text) + MARGIN <= self._record_limit else None

    def _fitted(self, record: AuditRecord) -> list[AuditRecord]:
        """Bring a record below its bound; one that cannot be measured passes unchanged."""
        try:
            return fit(record, self._record_limit)
        except Exception as error:  # noqa: BLE001 - the fact comes before its size
            self._counters.add("capture_errors")
            log_limited(
                _logger, "fit", "A record could not be brought below its bound", error=error
            )
            return [record]

    def _trace(self, record: AuditRecord, server_span: trace.Span | None) -> None:
        """Make the audit span; the record is delivered also if that fails."""
        try:
            if self._tracer is None:
                self._tracer = make_audit_tracer(application_resource(), *self._span_processors)
            trace_record(self._tracer, record, server_span)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._counters.add("capture_errors")
            log_limited(_logger, "span", "An audit record goes without its span", error=error)

    def with_provenance(
        self, record: AuditRecord, server_span: trace.Span | None
    ) -> list[AuditRecord]:
        """Say in a record which trace and process it belongs to, without giving it a number.

        For records that may yet be undone: a number that is never stored would be a gap.

        Returns:
            The record; several where one would be too large.
        """
        return self._fitted(with_provenance(record, server_span, None, resource_attributes()))

    def _next(self) -> int:
        # no lock: in CPython no two threads get the same number of one counter
        number = next(self._numbers)
        self._last_at = time.monotonic()
        self._ended = False
        return number


def _beat(alive: weakref.ref[Producer]) -> None:
    recorder = alive()
    if recorder is not None:
        recorder.beat()


def make_resource() -> None:
    """Make the resource for a process that has no tracing of its own, from the environment.

    It is made when auditing begins, as the SDK needs threads for it: none can be started any more
    when the interpreter ends, and an event loop that is watched refuses to wait for them.
    """
    global _own, _known  # noqa: PLW0603 - made again each time that auditing begins
    _known = (lambda: None), {}
    try:
        _own = Resource.create()
    except Exception as error:  # noqa: BLE001 - what the environment says can be read without
        log_limited(_logger, "resource", "Resource detectors could not be asked", error=error)
        _own = OTELResourceDetector().detect()


def application_resource() -> Resource:
    """The resource of the application's own tracing; one made from the environment without it."""
    found = getattr(trace.get_tracer_provider(), "resource", None)
    if isinstance(found, Resource):
        return found
    if _own is None:
        make_resource()
    assert _own is not None  # noqa: S101 - just made
    return _own


def resource_attributes() -> dict[str, Any]:
    """The attributes of `application_resource`, as plain values; not to be changed."""
    global _known  # noqa: PLW0603 - read several times for each action
    of_provider, known = _known
    provider = of_provider()
    if _is_stand_in(provider):
        return known
    provider = trace.get_tracer_provider()
    if of_provider() is not provider:
        known = plain_values(application_resource().attributes)
        _known = weakref.ref(provider), known
    return known


def _is_stand_in(provider: trace.TracerProvider | None) -> bool:
    """Return whether a provider stands in for one that the application has not set yet.

    It says so itself by the tracers that it gives. `trace.get_tracer_provider` costs several times
    as much as long as none is set: it looks for an environment variable each time.
    """
    return type(provider) is trace.ProxyTracerProvider and (
        type(provider.get_tracer(SCOPE_NAME)) is trace.ProxyTracer
    )


_own: Resource | None = None
_known: tuple[Callable[[], trace.TracerProvider | None], dict[str, Any]] = (lambda: None), {}


def make_audit_tracer(resource: Resource, *processors: SpanProcessor) -> trace.Tracer:
    """Make the tracer of audit spans.

    Args:
        resource: Who produces the records.
        processors: See the spans.

    Returns:
        A tracer whose spans are always recorded, with no limit on attributes; a no-op one under
        ``OTEL_SDK_DISABLED=true``.
    """
    provider = TracerProvider(
        sampler=ALWAYS_ON, resource=resource, span_limits=_UNLIMITED, shutdown_on_exit=False
    )
    for processor in processors:
        provider.add_span_processor(processor)
    return provider.get_tracer(SCOPE_NAME)


def trace_record(tracer: trace.Tracer, record: AuditRecord, server_span: trace.Span | None) -> None:
    """Make the audit span of a record; it is over at once, and was never the current one.

    Args:
        tracer: From `make_audit_tracer`.
        record: The finished record.
        server_span: The application's span that becomes the parent, if any.
    """
    parent = trace.set_span_in_context(
        server_span if server_span is not None else trace.INVALID_SPAN
    )
    span = tracer.start_span(
        record.event_name,
        context=parent,
        attributes=to_attributes(record),
        start_time=record.occurred_at,
    )
    span.end(record.observed_at)
