"""Names of the draft OpenTelemetry audit signal that are not in use elsewhere, in one place.

The draft moves (state: 2026-10-06). Who follows it changes this module and `docs/otlp-sink.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

INTEGRITY: Final = "audit.integrity."
SEQUENCE: Final = "audit.sequence."

STREAM_ID: Final = "audit.sequence.stream_id"
NUMBER: Final = "audit.sequence.number"
PREVIOUS_HASH: Final = "audit.sequence.previous_hash"
PREVIOUS_RECORD_ID: Final = "audit.sequence.previous_record_id"
END: Final = "audit.sequence.end"
VALUE: Final = "audit.integrity.value"
NEW_VALUE: Final = "audit.integrity.new_value"
SIGNER: Final = "audit.integrity.signer"
CANONICALIZATION: Final = "audit.integrity.canonicalization"
ALGORITHM: Final = "audit.integrity.algorithm"
CERTIFICATE: Final = "audit.integrity.certificate"
DECISION: Final = "audit.decision"

EARLIER_NAMES: Final = {"audit.sequence.prev_hash": PREVIOUS_HASH}
"""Names that the draft had before, and what they are now."""


def attribute_by_any_name(attributes: Mapping[str, Any], name: str) -> Any:
    """Read an attribute by its newest name, or else by an earlier one; None: it has neither."""
    if name in attributes:
        return attributes[name]
    for old, new in EARLIER_NAMES.items():
        if new == name and old in attributes:
            return attributes[old]
    return None


def is_of_the_signal(name: str) -> bool:
    """Tell whether an attribute says how records follow each other, or who signed one."""
    return name.startswith((INTEGRITY, SEQUENCE))
