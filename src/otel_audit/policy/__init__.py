"""Policy: what is recorded, at which level, under which name."""

from otel_audit.policy.engine import UNDECIDED, Decision, Policy, Start, is_unknown
from otel_audit.policy.overrides import Override, audit_route, override_of
from otel_audit.policy.rules import Rule

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
