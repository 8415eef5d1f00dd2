"""OpenTelemetry instrumentation that turns an application's actions into an audit trail.

Everything public is here; all else is private and may change.
"""

from otel_audit._instrumentation import (
    AuditInstrumentor,
    flush,
    health,
    instrument,
    uninstrument,
    wait_for_receipt,
)
from otel_audit._util.action_reference import ActionReference
from otel_audit.action.manual import audit, current_action, emit, emit_in_transaction
from otel_audit.config import AuditConfig
from otel_audit.delivery.sink import Receipt
from otel_audit.errors import (
    ConfigurationError,
    InstrumentationError,
    InvalidAuditSpanError,
    MissingExtraError,
    OtelAuditError,
    StoreError,
    StoreUnavailableError,
)
from otel_audit.policy import Rule, audit_route
from otel_audit.record import Actor, AuditRecord, Change, Source, Target, Tenant
from otel_audit.redaction import Sensitive
from otel_audit.scope import (
    add_metadata,
    detached,
    set_actor,
    set_event,
    set_target,
    set_tenant,
)

__all__ = [
    "ActionReference",
    "Actor",
    "AuditConfig",
    "AuditInstrumentor",
    "AuditRecord",
    "Change",
    "ConfigurationError",
    "InstrumentationError",
    "InvalidAuditSpanError",
    "MissingExtraError",
    "OtelAuditError",
    "Receipt",
    "Rule",
    "Sensitive",
    "Source",
    "StoreError",
    "StoreUnavailableError",
    "Target",
    "Tenant",
    "add_metadata",
    "audit",
    "audit_route",
    "current_action",
    "detached",
    "emit",
    "emit_in_transaction",
    "flush",
    "health",
    "instrument",
    "set_actor",
    "set_event",
    "set_target",
    "set_tenant",
    "uninstrument",
    "wait_for_receipt",
]
