"""An action named elsewhere: in a queue, in a task that outlives it, in another process."""

from __future__ import annotations

import msgspec

from otel_audit.record import Actor, Source, Tenant


class ActionReference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A reference to an action, for the records of work that it causes elsewhere.

    Made by `otel_audit.current_action`, given to ``audit(parent=…)`` or ``emit(parent=…)``.

    Attributes:
        action_id: The action's id; the parent of what it has caused.
        actor: Who did it, as far as that was known.
        tenant: For whom.
        source: From where.
        request_id: The id of the request that it was, or that it was part of.

    Example::

        with otel_audit.audit("order.placed", actor="ann"):
            message = otel_audit.current_action().to_json()
        with otel_audit.audit("label.printed", parent=message):
            ...
    """

    action_id: str
    actor: Actor | None = None
    tenant: Tenant | None = None
    source: Source | None = None
    request_id: str | None = None

    def to_json(self) -> str:
        """Write it as text, for a message. It names the actor, so show it to nobody else."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> ActionReference:
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is not such a text.
        """
        return msgspec.json.decode(text, type=cls)
