"""Default rules, for requests that no rule of the user decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_audit.config import AuditConfig
from otel_audit.policy.rules import READS, WRITES, CompiledRule, Rule, compile_rule
from otel_audit.setting_values import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable


_LOOKING: Final = ("GET", "HEAD", "QUERY", "WEBSOCKET")
"""Methods by which something is read; OPTIONS, which browsers send before each, reads nothing."""


def default_rules(config: AuditConfig) -> tuple[CompiledRule, ...]:
    """Make the last rules: together they decide on every request.

    Writes in full; denials, failures, sensitive reads and sockets at ``metadata``; other reads
    not at all. Sockets in full if their messages are captured. A level in the settings takes the
    place of all of these levels.

    Raises:
        ConfigurationError: A path in the settings is wrong; the message names the setting.
    """
    full = config.level or "request_response"
    little = config.level or "metadata"
    rules = []
    if config.exclude_paths:
        rules.append(Rule("none", "exclude_paths", paths=_below(config.exclude_paths)))
    if not config.log_anonymous:
        went_well = ("1xx", "2xx", "3xx")
        rules.append(Rule("none", "log_anonymous", status=went_well, actors=("anonymous",)))
    rules += [
        Rule(full, "writes", methods=tuple(sorted(WRITES))),
        Rule(little, "denials", status=("401", "403")),
        Rule(little, "failures", status=("5xx",)),
    ]
    if config.sensitive_paths:
        paths = _below(config.sensitive_paths)
        rules.append(Rule(little, "sensitive_paths", methods=_LOOKING, paths=paths))
    if config.capture_socket_messages:
        rules.append(Rule(full, "sockets", methods=("WEBSOCKET",)))
    rules += [
        Rule("none", "reads", methods=tuple(sorted(READS))),
        # sockets, and unknown methods: these may do anything
        Rule(little, "other_methods"),
    ]
    return tuple(compile_rule(rule, f"{PREFIX}{rule.name.upper()}") for rule in rules)


def _below(prefixes: Iterable[str]) -> tuple[str, ...]:
    """Turn prefixes into patterns; ``/`` is that path alone, or it would be every path."""
    return tuple(
        prefix if prefix == "/" or "*" in prefix else f"{prefix.rstrip('/')}/**"
        for prefix in prefixes
    )
