"""OpenTelemetry instrumentation that turns an application's actions into an audit trail.

Everything public is here; all else is private and may change.
"""

from otel_audit._instrumentation import (
    AuditInstrumentor,
    flush,
    health,
    instrument,
    receipt,
    uninstrument,
)
from otel_audit._util.entity_reference import ActionReference
from otel_audit.action.manual import audit, current_action, emit
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
from otel_audit.policy import Rule, audited
from otel_audit.record import AuditRecord
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
    "AuditConfig",
    "AuditInstrumentor",
    "AuditRecord",
    "ConfigurationError",
    "InstrumentationError",
    "InvalidAuditSpanError",
    "MissingExtraError",
    "OtelAuditError",
    "Receipt",
    "Rule",
    "StoreError",
    "StoreUnavailableError",
    "add_metadata",
    "audit",
    "audited",
    "current_action",
    "detached",
    "emit",
    "flush",
    "health",
    "instrument",
    "receipt",
    "set_actor",
    "set_event",
    "set_target",
    "set_tenant",
    "uninstrument",
]
