"""The interface of a stream's destination."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from otel_audit._util.printable import visible
from otel_audit.errors import OtelAuditError

TURN: Final = 60.0
"""Seconds after which what is settled is acknowledged, before more is sent: the store waits in a
transaction meanwhile."""


class Outgoing(NamedTuple):
    """An event to be sent.

    Attributes:
        leaf: Its leaf.
        id: The record's id.
        document: As it is to look there.
        tenant_id: Its tenant, empty where there is none.
        content_hash: In hex.
        event_name: What happened.
        time_ns: When, Unix nanoseconds; None where that is not known.
        is_failure: Whether the outcome is a failure.
    """

    leaf: int
    id: uuid.UUID
    document: dict[str, Any]
    tenant_id: str
    content_hash: str
    event_name: str
    time_ns: int | None
    is_failure: bool


class Encoded(NamedTuple):
    """An event, encoded for sending.

    Attributes:
        leaf: Its leaf.
        id: The record's id.
        content: What the destination made of it.
    """

    leaf: int
    id: uuid.UUID
    content: bytes


class DestinationError(OtelAuditError):
    """The destination cannot take events now. The events themselves are not at fault.

    Attributes:
        retry_after: Seconds that it asks to be left alone; None where it does not say.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """Make the error; control characters in its message are made visible.

        Args:
            message: What failed.
            retry_after: Seconds after which to try again, if the destination said so.
        """
        super().__init__(visible(message))
        self.retry_after = retry_after


@dataclass(slots=True)
class Delivered:
    """The result of a send: how many of the first events are settled, and how.

    Attributes:
        done: How many are settled, from the first on: acknowledged or refused.
        refused: Of those, the leaf and the reason of each that was refused.
        stopped: Why it ended before the last.
    """

    done: int = 0
    refused: dict[int, str] = field(default_factory=dict)
    stopped: DestinationError | None = None


class Destination(Protocol):
    """A destination of streams."""

    def encode(self, event: Outgoing, log: str) -> bytes:
        """Encode an event once, before the first `send`. Retries send the same bytes.

        Raises:
            UnshapeableError: The destination's format cannot say it.
        """

    async def send(self, events: Sequence[Encoded]) -> Delivered:
        """Send events in order. Returns when they are stored there, or when no more can be."""

    async def close(self) -> None:
        """Close connections and files. Never raises."""
