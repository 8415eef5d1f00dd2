"""The options of capture: everything that is decided when the configuration is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from otel_audit.action.ports import Recorder
from otel_audit.identity.tenant import Claims
from otel_audit.record import Actor, AuditRecord, Source, Tenant
from otel_audit.redaction import Redactor
from otel_audit.scope import AuditScope, Provenance

if TYPE_CHECKING:
    from otel_audit.action.lifecycle import Watchdog
    from otel_audit.identity.actor import Bearer
    from otel_audit.policy import Policy


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """The options of capture.

    Attributes:
        recorder: Takes the records.
        policy: Says what is recorded, and at which level.
        redactor: Takes secrets out.
        bearer: Reads the request's bearer token out of an ASGI scope.
        actor, tenant, source, request_id: Read who, for whom, from where (also given what was read
            before of the same connection), and the request's id.
        token_identity: Reads who and for whom at once, where the token alone says both; else None.
        kept_headers: Names of the headers that are kept, in lower case.
        request_id_header: The name of the response header, as bytes in lower case; empty: none.
        body_limit: Bytes of a body that are copied.
        request_bodies, response_bodies: Whether they are copied at all.
        socket_messages: Whether the messages of WebSockets are, where the policy does not say so.
        full_payload: Whether the server span gets bodies and changes too.
        span_urls: Whether the URLs on the server span are redacted.
        watch: Notifies actions that still run, so that they are recorded as started;
            None: not at all.
        log: Writes the line of the request log; None if there is no such log.
        on_error: Called for each failure of ours.
        on_loss: Called for each failure of ours that costs a record.
        subject_of: Whom a token names that an answer hands out; None if it is not verified.
        entered: Called with the ASGI scope as the router gets it; None: not at all. Never raises.
        provenance: Says in which process and trace an action's records are, by its span; None:
            the recorder says so later.
        durable: Waits until the record of an answer is on disk; None: no wait.
        intended: Brings an intent to the store; says whether the action may begin.
        report_commits: Assigns commits that the database has answered to their actions, so that
            they are in the records.
        refuses_unrecorded: Whether an action that cannot be written down must not run.
        strict: Whether every action needs an intent, where the policy does not say so.
    """

    recorder: Recorder
    policy: Policy
    redactor: Redactor
    bearer: Callable[[Mapping[str, Any]], Bearer]
    actor: Callable[[Mapping[str, Any], AuditScope, Bearer], Actor]
    tenant: Callable[[Mapping[str, Any], AuditScope, Claims | None], Tenant | None]
    source: Callable[[Mapping[str, Any], Claims | None, Source | None], Source]
    request_id: Callable[[Mapping[str, Any]], str | None]
    kept_headers: Collection[str]
    request_id_header: bytes
    body_limit: int
    request_bodies: bool
    response_bodies: bool
    full_payload: bool
    watch: Watchdog | None
    log: Callable[[AuditRecord, trace.Span | None], None] | None
    on_error: Callable[[], None]
    token_identity: Callable[
        [Mapping[str, Any], AuditScope, Bearer], tuple[Actor, Tenant | None] | None
    ] = lambda _scope, _audit, _bearer: None
    provenance: Callable[[trace.Span | None], Provenance] | None = None
    durable: Callable[[], Awaitable[None]] | None = None
    intended: Callable[[AuditRecord, trace.Span | None], Awaitable[bool]] | None = None
    strict: bool = False
    refuses_unrecorded: bool = False
    report_commits: Callable[[], None] = lambda: None
    socket_messages: bool = False
    span_urls: bool = False
    on_loss: Callable[[Exception], None] = lambda _error: None
    subject_of: Callable[[str], str | None] = lambda _token: None
    entered: Callable[[MutableMapping[str, Any]], None] | None = None
