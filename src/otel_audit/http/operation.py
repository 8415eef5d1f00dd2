"""The operation in a body, and whether its answer reports a failure: GraphQL and JSON-RPC.

Both have one path for everything, and answer errors with status 200.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from otel_audit.action.arguments import parse_event, parse_name
from otel_audit.policy.body_operations import (
    Failure,
    Operations,
    carries_operations,
    name_operations,
    read_failure,
    read_operations,
)
from otel_audit.record import ErrorInfo, Target

if TYPE_CHECKING:
    from otel_audit.http.body_capture import BodyCapture
    from otel_audit.policy import Decision
    from otel_audit.redaction import Redactor

_TAIL = 64
_SIGN_OF_RPC = b'"jsonrpc"'


class RequestedOperation(msgspec.Struct, frozen=True):
    """The operation of a request, and the result in its answer.

    Attributes:
        operations: The requested operations.
        failure: What has gone wrong; None if the answer does not say so.
    """

    operations: Operations
    failure: Failure | None = None

    @classmethod
    def read(cls, bodies: BodyCapture, path: str) -> RequestedOperation | None:
        """Read both bodies, once the answer has passed. Never raises.

        Args:
            bodies: The copies of the bodies.
            path: As requested.

        Returns:
            None if the operation is not known.
        """
        body = bodies.question
        if body is None or not (_SIGN_OF_RPC in body or carries_operations(path[-_TAIL:])):
            return None
        operations = read_operations(body)
        if operations is None:
            return None
        answer, whole = bodies.answer_head
        return cls(operations, read_failure(answer, operations.system, whole=whole))

    def renamed(self, decision: Decision, redactor: Redactor) -> Decision:
        """Name an action by its operation, unless a rule or the route has named it."""
        if not decision.is_derived:
            return decision
        naming = name_operations(self.operations)
        if naming is None:
            return msgspec.structs.replace(
                decision, event_name=f"{self.operations.system}.executed", action="EXECUTE"
            )
        kind = naming.target_type
        return msgspec.structs.replace(
            decision,
            event_name=parse_event(naming.event_name, redactor),
            action=naming.action,
            target=decision.target if kind is None else Target(type=kind),
            whom=None,
        )

    def error(self) -> ErrorInfo | None:
        """Say what has gone wrong, by its type; the message is in the body, redacted."""
        failure = self.failure
        if failure is None:
            return None
        message = None if failure.code is None else f"code {failure.code}"
        return ErrorInfo(type=failure.error_type, message=message)

    def facts(self, redactor: Redactor) -> dict[str, Any]:
        """Return the operation, under the names of OpenTelemetry's semantic conventions."""
        asked = self.operations
        names = [parse_name(name, redactor) for name in asked.names]
        if asked.system == "jsonrpc":
            found: dict[str, Any] = {"rpc.system": "jsonrpc"}
            found["rpc.method"] = names[0] if len(names) == 1 else names
            if self.failure is not None and self.failure.code is not None:
                found["rpc.jsonrpc.error_code"] = self.failure.code
            return found
        found = {"graphql.operation.type": asked.kind, "graphql.fields": names}
        if asked.label:
            found["graphql.operation.name"] = parse_name(asked.label, redactor)
        return found
