"""Policy: what is recorded, at which level, under which name.

Private: ``docs/api.md`` lists the public modules.
"""

from otel_audit.policy.engine import (
    UNDECIDED,
    HeadAssessment,
    Policy,
    PolicyDecision,
    is_unidentified,
)
from otel_audit.policy.rules import Override, Rule, audit_route, has_own_level

__all__ = [
    "UNDECIDED",
    "HeadAssessment",
    "Override",
    "Policy",
    "PolicyDecision",
    "Rule",
    "audit_route",
    "has_own_level",
    "is_unidentified",
]
