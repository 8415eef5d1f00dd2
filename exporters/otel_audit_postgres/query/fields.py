"""The fields that a query can name, and what each is in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

FieldKind = Literal[
    "text", "path", "status", "time", "target", "entity", "changed", "payload", "either"
]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a query.

    Attributes:
        name: As it is written.
        kind: How its values are compared.
        column: The column; for ``payload`` the place in the payload, with dots.
        help: What it is, in one phrase.
        example: A value of it.
    """

    name: str
    kind: FieldKind
    column: str
    help: str
    example: str

    @property
    def is_ordered(self) -> bool:
        """Whether its values can be compared by ``<``, ``>`` and ``..``."""
        return self.kind in {"status", "time"}

    @property
    def reads_payload(self) -> bool:
        """Whether records have to be read whole to compare it."""
        return self.kind in {"changed", "payload", "either"}

    @property
    def takes_prefix(self) -> bool:
        """Whether ``a*`` stands for what begins with ``a``."""
        return self.kind in {"text", "path", "payload"}


_ALL: Final = (
    Field("time", "time", "occurred_at", "when it happened", "7d"),
    Field("actor", "text", "actor_id", "who did it, by id or else e-mail", "ada@example.com"),
    Field("email", "payload", "actor.email", "the actor's e-mail", "ada@example.com"),
    Field("role", "text", "actor_role", "the actor's role", "admin"),
    Field("on_behalf_of", "payload", "actor.on_behalf_of", "for whom the actor acted", "user-7"),
    Field("tenant", "text", "tenant_id", "for which tenant, by id", "42"),
    Field("slug", "payload", "tenant.slug", "for which tenant, by readable name", "acme"),
    Field("event", "text", "event_name", "what happened", "order.refunded"),
    Field("action", "text", "action", "what kind of action it was", "UPDATE"),
    Field("phase", "text", "phase", "the record's part of its action", "completed"),
    Field("outcome", "text", "outcome", "success, failure or unknown", "failure"),
    Field("status", "status", "status_code", "the answer's status", "5xx"),
    Field("tx", "text", "transaction_outcome", "how the transaction ended", "committed"),
    Field("error", "text", "error_type", "the error's type", "ValueError"),
    Field("target", "target", "target_id", "upon what, as type:id or type", "order:123"),
    Field("entity", "entity", "entities", "what it is about, as type:id", "order:123"),
    Field("changed", "changed", "changes", "a column that changed", "status"),
    Field("ip", "text", "source_address", "the client's address", "192.0.2.7"),
    Field("session", "text", "session_id", "the session", "s-81"),
    Field("method", "text", "http_method", "the HTTP method", "POST"),
    Field("path", "path", "url_path", "the path, or its route", "/orders/*"),
    Field("request", "text", "request_id", "the request's id", "0192f0c1-…"),
    Field("trace", "text", "trace_id", "the trace's id", "4bf92f35…"),
    Field("service", "text", "service_name", "which service recorded it", "shop"),
    Field("level", "payload", "level", "how much is recorded", "changes"),
)

FIELDS: Final[Mapping[str, Field]] = {field.name: field for field in _ALL}
"""By name, in the order in which they are explained."""
