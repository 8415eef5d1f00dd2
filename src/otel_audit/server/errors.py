"""Answers to requests that cannot be accepted, in OTLP's form.

OTLP/HTTP answers errors with a ``google.rpc.Status`` in the request's own encoding
(https://opentelemetry.io/docs/specs/otlp/#failures-1). A client tries again on 429, 502, 503 and
504 only, and drops its batch on every other error.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"


RETRY_AFTER: Final = 5
"""Seconds after which senders shall try again, where no setting says it."""

REFUSAL_HEADER: Final = "x-otel-audit-refusal"
"""Header, or gRPC metadata, by which a sender asks for 503 instead of 401 or 403: a Collector takes
401 and 403 for final, and drops what it has acknowledged to others."""


class Code(IntEnum):
    """The codes of ``google.rpc.Code`` that are used here."""

    INVALID_ARGUMENT = 3
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class RequestError(Exception):
    """A request is answered with an error.

    Attributes:
        status: The HTTP status.
        code: The code of ``google.rpc.Status``, which is the gRPC status as well.
        message: What was wrong and what to do; it shows no values of records and no secrets.
        kind: One word for the counter.
        retry_after: Seconds after which to try again, None if that does not help.
    """

    def __init__(
        self, status: int, code: Code, kind: str, message: str, *, retry_after: int | None = None
    ) -> None:
        """Make the error from the fields of the answer.

        Args:
            status: The HTTP status.
            code: The gRPC status code.
            kind: One word for the counter of refused requests.
            message: What is wrong, for the sender.
            retry_after: Seconds after which to send again.
        """
        super().__init__(message)
        self.status = status
        self.code = code
        self.kind = kind
        self.message = message
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        """The headers that belong to the answer."""
        found = {}
        if self.retry_after is not None:
            found["Retry-After"] = str(self.retry_after)
        if self.code is Code.UNAUTHENTICATED:
            found["WWW-Authenticate"] = "Bearer"
        return found


def undecodable(message: str) -> RequestError:
    """The request cannot be read at all; only this refuses OTLP data for good."""
    return RequestError(400, Code.INVALID_ARGUMENT, "undecodable", message)


def too_large(message: str) -> RequestError:
    """More than a bound allows."""
    return RequestError(413, Code.INVALID_ARGUMENT, "too_large", message)


def too_many(most: int, what: str) -> RequestError:
    """More things in one request than are looked at."""
    return too_large(f"the request has more than {most} {what}; send smaller batches")


def unavailable(message: str, retry_after: int) -> RequestError:
    """The store is away, or this server is ending: nothing was taken."""
    return RequestError(503, Code.UNAVAILABLE, "unavailable", message, retry_after=retry_after)


def too_slow(what: str, patience: float) -> RequestError:
    """The body or message did not come in time: 503 and not 408, as exporters try a 503 again."""
    return RequestError(
        503, Code.UNAVAILABLE, "slow", f"the {what} did not come within {patience:g} seconds",
        retry_after=1,
    )  # fmt: skip


def overloaded(message: str, retry_after: int = 1) -> RequestError:
    """More is under way than the bound allows."""
    return RequestError(
        429, Code.RESOURCE_EXHAUSTED, "overloaded", message, retry_after=retry_after
    )


def unauthenticated(message: str) -> RequestError:
    """The sender is not known."""
    return RequestError(401, Code.UNAUTHENTICATED, "unauthenticated", message)


def without_frames(error: RequestError) -> RequestError:
    """Let go what it came through: those frames hold what was decompressed.

    The frame that keeps the error is one of them, so only the garbage collector would end it all,
    long after the memory has been given back to other requests.
    """
    error.__context__ = None
    return error.with_traceback(None)


def as_asked(refused: RequestError, asked: str | None, retry_after: int) -> RequestError:
    """The refusal of a sender, in the form that it asks for.

    Args:
        refused: 401 or 403.
        asked: Its `REFUSAL_HEADER`, if there is one.
        retry_after: Seconds after which to send again, if it asks for that.
    """
    if asked != "retry":
        return refused
    return RequestError(
        503, Code.UNAVAILABLE, refused.kind, refused.message, retry_after=retry_after
    )


def forbidden(message: str) -> RequestError:
    """The sender is not allowed to send this."""
    return RequestError(403, Code.PERMISSION_DENIED, "forbidden", message)


def as_status(problem: RequestError, content_type: str) -> bytes:
    """Write the ``google.rpc.Status`` of a problem.

    Args:
        problem: What was wrong.
        content_type: `PROTOBUF`, or else JSON is written.

    Returns:
        The response's body.
    """
    if content_type == PROTOBUF:
        return status_message(problem.code, problem.message)
    return msgspec.json.encode({"code": int(problem.code), "message": problem.message})


def status_message(code: int, message: str, *details: Message) -> bytes:
    """Write a ``google.rpc.Status`` as protobuf.

    Args:
        code: Field 1.
        message: Field 2.
        details: Field 3.

    Returns:
        The serialized message.
    """
    status = Status(code=code, message=message.encode("utf-8", "replace").decode())
    for detail in details:
        status.details.add().Pack(detail)
    return bytes(status.SerializeToString())
