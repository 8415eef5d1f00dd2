"""The bodies of an HTTP exchange, seen at two places and copied up to a bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from otel_audit.http.body import LONGEST_TYPE, make_body
from otel_audit.http.request_metadata import Headers, header_of
from otel_audit.identity.safe_access import headers_by_name
from otel_audit.record import Body
from otel_audit.redaction.truncate import cut_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.redaction import Redactor
    from otel_audit.redaction.budget import WorkBudget

_BODILESS = frozenset({101, 204, 304})
"""Answers without a body (RFC 9110): Switching Protocols, No Content, Not Modified."""


class BodyCopy:
    """Keeps the head of a body and counts the whole. Adding a chunk never copies it."""

    __slots__ = ("_chunks", "_kept", "_limit", "complete", "size")

    def __init__(self, limit: int) -> None:
        """Set the bound.

        Args:
            limit: Bytes to keep, at most.
        """
        self._limit = limit
        self._chunks: list[bytes] = []
        self._kept = 0
        self.size = 0
        self.complete = False

    def add(self, message: Mapping[str, Any]) -> None:
        """Count a message with a chunk, and copy it as far as there is room.

        Args:
            message: An ASGI message with ``body``, and ``more_body`` where it is not the last.
        """
        chunk = message.get("body", b"")
        size = len(chunk)
        self.size += size
        self.complete = not message.get("more_body", False)
        kept = self._kept
        if size and kept < self._limit:
            if kept + size > self._limit:
                chunk = chunk[: self._limit - kept]
            # a server may pass a buffer that its owner uses again
            self._chunks.append(chunk if type(chunk) is bytes else bytes(chunk))
            self._kept = kept + len(chunk)

    def restart(self) -> None:
        """Forget what was seen: another response is sent in its place."""
        self._chunks.clear()
        self._kept = self.size = 0
        self.complete = False

    @property
    def head(self) -> bytes:
        """The copied bytes."""
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    @property
    def whole(self) -> bool:
        """Whether what was kept is all there was."""
        return self.complete and self._kept == self.size


class HttpExchangeCapture(msgspec.Struct, eq=False):
    """The bodies and the response's head, inside and outside of the application's middleware.

    The inside is what the handler sees and says, before any middleware encodes it; it counts,
    unless middleware answers in the handler's place.

    Attributes:
        request_inside, request_outside: Copies of the request's body; None if none is wanted.
        response: The copy of the response's body; None if none is wanted.
        status: What the client was sent; None if nothing was.
        ended: Whether the response's last chunk has been seen.
    """

    request_inside: BodyCopy | None = None
    request_outside: BodyCopy | None = None
    response: BodyCopy | None = None
    status: int | None = None
    ended: bool = False
    _inner_status: int | None = None
    _inner_headers: Headers = ()
    _headers: Headers = ()
    _outside: bool = False
    _as_file: bool = False

    def copy(self, limit: int, *, request: bool, response: bool) -> None:
        """Make copies, of at most ``limit`` bytes each."""
        if request:
            self.request_inside, self.request_outside = BodyCopy(limit), BodyCopy(limit)
        if response:
            self.response = BodyCopy(limit)

    def sent_inside(self, message: Mapping[str, Any]) -> None:
        """See a message of the response before the application's middleware sees it."""
        kind = message["type"]
        if kind == "http.response.start":
            self._inner_status = message["status"]
            # a copy, because middleware may change the very list (Starlette's GZipMiddleware does)
            self._inner_headers = tuple(message.get("headers", ()))
        elif kind == "http.response.body" and self.response is not None and not self._outside:
            self.response.add(message)

    def started(self, message: Mapping[str, Any]) -> None:
        """See the head of the response that goes to the server."""
        self.status = message["status"]
        self._headers = tuple(message.get("headers", ()))
        if self._inner_status != self.status:
            # the application's own middleware answers, or answers otherwise
            self._outside = True
            if self.response is not None:
                self.response.restart()

    def sent(self, message: Mapping[str, Any]) -> bool:
        """See what follows the head; return whether it is the last of the response."""
        kind = message["type"]
        if kind == "http.response.body":
            if self._outside and self.response is not None:
                self.response.add(message)
        elif kind in ("http.response.pathsend", "http.response.zerocopysend"):
            self._as_file = True
        else:
            return False
        if self.ended or message.get("more_body", False):
            return False
        self.ended = True
        return True

    @property
    def headers(self) -> Headers:
        """The headers that describe the body which was copied."""
        return self._headers if self._outside else self._inner_headers

    def request_body(
        self,
        headers: Headers,
        inner_headers: Headers,
        redactor: Redactor,
        limit: int,
        work: WorkBudget | Callable[[], WorkBudget] | None = None,
    ) -> Body | None:
        """Turn the request's body into what is stored; None if it has none.

        Args:
            headers: Those of the client.
            inner_headers: Those that the router got: middleware that undoes a content coding
                takes the header off.
            redactor: Takes secrets out.
            limit: Bytes of it that are kept.
            work: What looking at it may cost.
        """
        copy, described = self.request_inside, inner_headers
        if copy is not None and copy.size == 0:
            # the application's own middleware may have read it, and not passed it on
            copy, described = self.request_outside, headers
        promised = promises_body(headers)
        return describe_body(
            copy, described, redactor=redactor, limit=limit, may_exist=promised, work=work
        )

    @property
    def copies(self) -> bool:
        """Whether any body is copied."""
        return self.request_inside is not None or self.response is not None

    @property
    def response_bytes(self) -> bytes | None:
        """The response's body as it was sent, if it was copied whole."""
        copy = self.response
        return copy.head if copy is not None and copy.whole else None

    @property
    def response_head(self) -> tuple[bytes, bool]:
        """The copied part of the response's body, and whether that is all of it."""
        copy = self.response
        return (b"", False) if copy is None else (copy.head, copy.whole)

    @property
    def request_bytes(self) -> bytes | None:
        """The request's body as the handler got it, if it was copied whole."""
        copy = self.request_inside
        if copy is not None and copy.size == 0:
            copy = self.request_outside
        return copy.head if copy is not None and copy.size and copy.whole else None

    def response_body(
        self,
        redactor: Redactor,
        limit: int,
        *,
        may_exist: bool,
        work: WorkBudget | Callable[[], WorkBudget] | None = None,
    ) -> Body | None:
        """Turn the response's body into what is stored; None if it has none."""
        return describe_body(
            self.response,
            self.headers,
            redactor=redactor,
            limit=limit,
            may_exist=may_exist and self.status not in _BODILESS,
            passed_as_file=self._as_file,
            work=work,
        )


def describe_body(  # noqa: PLR0913 - one fact each
    copy: BodyCopy | None,
    headers: Headers,
    *,
    redactor: Redactor,
    limit: int,
    may_exist: bool,
    passed_as_file: bool = False,
    work: WorkBudget | Callable[[], WorkBudget] | None = None,
) -> Body | None:
    """Turn what was copied of a body into what is stored.

    Args:
        copy: The copy, None if none was made because nothing said beforehand that it is wanted.
        headers: Those that describe the body.
        redactor: Takes secrets out.
        limit: Bytes of it that are kept.
        may_exist: Whether the head promises a body.
        passed_as_file: Whether the application named a file for the server to send.
        work: What redacting it may cost.

    Returns:
        The body, or why there is none: ``not_copied``, ``not_read``, ``file``. None if there
        was nothing.
    """
    if passed_as_file:
        return Body(content_type=shown_type(headers, redactor), absent="file")
    if copy is None:
        return Body(absent="not_copied") if may_exist else None
    if copy.size == 0:
        return Body(absent="not_read") if may_exist and not copy.complete else None
    head = copy.head
    named = headers_by_name(headers)
    kind, coding = named.get(b"content-type"), named.get(b"content-encoding")
    return make_body(
        head if len(head) <= limit else head[:limit],
        size=copy.size,
        content_type=None if kind is None else kind.decode("latin-1"),
        content_encoding=None if coding is None else coding.decode("latin-1"),
        complete=copy.whole and len(head) <= limit,
        redactor=redactor,
        limit=limit,
        work=work,
    )


def shown_type(headers: Headers, redactor: Redactor) -> str | None:
    """The declared media type as it is shown: redacted, and bounded."""
    given = header_of(headers, b"content-type")
    return None if given is None else redactor.phrase(cut_text(given, LONGEST_TYPE))


def promises_body(headers: Headers) -> bool:
    """Return whether a request's head announces a body (RFC 9112, section 6)."""
    length = header_of(headers, b"content-length")
    if length is not None:
        return length.strip() != "0"
    return header_of(headers, b"transfer-encoding") is not None
