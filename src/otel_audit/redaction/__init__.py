"""Redaction: what must not be stored is removed before data touches a span, a log, or a row.

Private: ``docs/api.md`` lists the public modules.
"""

from otel_audit.redaction.annotations import Mark, Sensitive
from otel_audit.redaction.budget import Limits
from otel_audit.redaction.placeholders import REDACTED, WITHHELD
from otel_audit.redaction.redactor import Redactor
from otel_audit.redaction.walker import Finding

__all__ = ["REDACTED", "WITHHELD", "Finding", "Limits", "Mark", "Redactor", "Sensitive"]
