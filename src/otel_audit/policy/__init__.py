"""Policy: what is recorded, at which level, under which name."""

from otel_audit.policy.engine import UNDECIDED, Decision, Policy, Start, is_unknown
from otel_audit.policy.rules import Override, Rule, audit_route, override_of

__all__ = [
    "UNDECIDED",
    "Decision",
    "Override",
    "Policy",
    "Rule",
    "Start",
    "audit_route",
    "is_unknown",
    "override_of",
]
