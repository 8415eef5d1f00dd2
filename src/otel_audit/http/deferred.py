"""A request of which no record is due: it costs one check, unless something is written in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, final

from opentelemetry import context, trace

from otel_audit._util.ids import public_id
from otel_audit.http.request_metadata import path_below_root, with_request_id
from otel_audit.identity.safe_access import has_header, identities_in
from otel_audit.policy import has_own_level
from otel_audit.scope import AuditScope, PendingScope, enter, leave

if TYPE_CHECKING:
    import asyncio
    from contextvars import Token

    from otel_audit.http.exchange import Exchange
    from otel_audit.http.options import CaptureOptions


AsgiScope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]

if TYPE_CHECKING:
    OpenExchange = Callable[[CaptureOptions, AsgiScope, "DeferredRequest"], Exchange | None]


@final
class DeferredRequest(PendingScope):
    """An HTTP request that is recorded only if something is written in it, whatever its answer is.

    With the first write, or whatever else asks for the action, it becomes an `Exchange` that
    knows all that this one has seen.

    Attributes:
        exchange: That exchange; None as long as there is none.
        id: The request's public id.
        inner_scope: The ASGI scope as the router has it; None before the request gets there.
        loop: The event loop that serves it.
        occurred_at, started: When it began, as in `AuditScope`.
        start: The response's head as it was sent.
        ended: Whether the response's last chunk was sent.
        may_wait: Whether a client may have to wait for the disk at all.
    """

    __slots__ = ("__weakref__", "_context", "_header", "_is_moved_on", "_is_routed", "_method",
                 "_open", "_options", "_path", "_scope", "_token", "_whole_path", "ended",
                 "exchange", "id", "inner_scope", "loop", "may_wait", "occurred_at", "start",
                 "started")  # fmt: skip

    def __init__(
        self,
        options: CaptureOptions,
        scope: AsgiScope,
        path: str,
        loop: asyncio.AbstractEventLoop,
        open_exchange: OpenExchange,
    ) -> None:
        """Remember the request; nothing is observed yet.

        Args:
            options: The options of capture.
            scope: The ASGI scope; gets the request id under ``state``.
            path: As the policy has judged it.
            loop: The event loop that serves it.
            open_exchange: Begins to observe this request after all; None if that fails.
        """
        # super().__init__() inlined: this is the hot path of requests that are not recorded
        self.made = None
        self.is_over = False
        self.loop = loop
        self.occurred_at = now = time.time_ns()
        self.started = time.perf_counter_ns()
        self._options = options
        self._header = name = options.request_id_header
        self.may_wait = options.durable is not None
        is_given = name and has_header(scope.get("headers") or (), name)
        self.id = (options.request_id(scope) if is_given else None) or public_id(now)
        # of OpenTelemetry's context alone, a copy would cost ten times as much
        self._context = context.get_current()
        self.exchange: Exchange | None = None
        self.inner_scope: AsgiScope | None = None
        self.start: Message | None = None
        self.ended = self._is_routed = self._is_moved_on = False
        self._method = scope["method"]
        self._whole_path = scope["path"]
        self._path = path
        self._scope = scope
        self._open: OpenExchange | None = open_exchange
        scope.setdefault("state", {})["request_id"] = self.id
        self._token: Token[AuditScope | PendingScope | None] = enter(self)

    @property
    def span(self) -> trace.Span:
        """The application's span of the request."""
        # again a copy: one context cannot be entered by two threads at once
        return trace.get_current_span(self._context)

    def routed(self, scope: AsgiScope) -> Exchange | None:
        """Learn which scope the router works on.

        Returns:
            What observes the request from now on, where middleware has put another method or path
            in: what the router sees is what is done.
        """
        if self._is_moved_on:
            return self.exchange
        if not self._is_routed:
            self._is_routed = True
            entered = self._options.entered
            if entered is not None:
                entered(scope)
            is_same = scope["method"] is self._method and scope["path"] is self._whole_path
            if not is_same and self._is_moved(scope):
                self.resolve()
                self._is_moved_on = self.exchange is not None
                return self.exchange
        if self.exchange is not None:
            self.exchange.routed(scope)
        self.inner_scope = scope
        return None

    def _is_moved(self, scope: AsgiScope) -> bool:
        return scope["method"] != self._method or path_below_root(scope) != self._path

    def sent(self, message: Message) -> Message:
        """See a message that goes to the server; return what is sent in its place."""
        exchange = self.exchange
        if exchange is not None:
            # where the inner middleware does not watch this request, its look is made here
            is_inside = self.inner_scope is not None and not self._is_moved_on
            return exchange.sent(exchange.sent_inside(message) if is_inside else message)
        if message["type"] == "http.response.start":
            self.start = message = with_request_id(message, self._header, self.id)
        elif not message.get("more_body"):
            self.ended = True
        return message

    @property
    def waits_for_disk(self) -> bool:
        """Whether the client must not see the answer's end before the disk has the record."""
        return self.exchange is not None and self.exchange.waits_for_disk

    async def durable(self) -> None:
        """Wait until what was recorded is on disk."""
        if self.exchange is not None:
            await self.exchange.durable()

    def finish(self) -> Exchange | None:
        """The application has returned; give what has observed the request, to be closed."""
        try:  # noqa: SIM105 - `suppress` costs as much as all else here
            leave(self._token)
        except ValueError:
            # ended in another context than it began in, nothing is to be undone
            pass
        del self._token  # it keeps the context, which may keep this
        scope = self.inner_scope
        if self.exchange is None and scope is not None:
            # a route that nobody knew when the request began may have a level of its own
            try:
                asks = has_own_level(scope.get("endpoint"), scope.get("route"))
            except Exception:  # noqa: BLE001 - what cannot be decided is recorded
                asks = True
            if asks:
                self.resolve()
        self.is_over = True
        return self.exchange

    def identities(self) -> Iterable[object]:
        """Objects of the application that may say who does it."""
        return identities_in(self.inner_scope or self._scope)

    def _make(self) -> AuditScope | None:
        if self.is_over:
            return AuditScope(
                occurred_at=self.occurred_at, started=self.started, closed=True, of_request=True
            )
        if self._open is None:
            return None
        self.exchange = self._open(self._options, self._scope, self)
        if self.exchange is None:
            self._open = None
            return None
        return self.exchange.audit
