"""The work budget of a request, by its sent size: a small request can never cost much.

What is decompressed is counted by the bytes that were sent, too, so that nobody gets seconds of
this process for some kilobytes. An ordinary batch needs a fraction of it: a span that was sent has
some bytes that no other one has, its ids and its time.
"""

from __future__ import annotations

from typing import Final

from otel_audit.redaction.budget import WorkBudget
from otel_audit.server.decode_attributes import Nodes
from otel_audit.server.items import MOST_ITEMS, MOST_SHARED

LARGEST_HEADERS: Final = 32_768
"""Bytes of the names and values of all headers, over HTTP and over gRPC."""

MOST_PARTS: Final = 500_000
"""Resources, scopes, spans and all other objects in one request."""

MOST_OBJECTS: Final = 1_000_000
"""JSON objects and lists in one request; a record of the fullest kind has about a hundred."""

_ORDINARY_RATIO: Final = 16
"""How far ordinary requests are compressed; what is inflated further earns no more budget."""
_FREE_ITEMS: Final = 4_096
"""Spans of a request of any size."""
_FREE_PARTS: Final = 16_384
"""Resources, scopes and the like of a request of any size."""
_FREE_OBJECTS: Final = 65_536
"""Objects and lists of a request of any size."""
_FREE_WORK: Final = 200_000
"""Units of redaction of a request of any size."""
_MOST_WORK: Final = 1_500_000
"""Units of redaction of the largest request: about a second and a half."""
_WORK_PER_BYTE: Final = 1 / 8
_WORK_PER_SPAN: Final = 100
"""Units that each span has whatever its size."""
_WORK_PER_RESOURCE: Final = 500
"""Units that the first different resources of a request have each, as many as are remembered."""
_WORK_PER_SERVICE: Final = 30
"""Units for the attributes `service.*` of each resource: a name, a namespace and a version need
fewer. They say whose record it is, so no other resource may use them up."""
_SHARED_RESOURCE_WORK: Final = 128_000
"""Units that all others share: those of 400 ordinary ones (14 attributes take 300). If each
had its own, nine thousand hostile ones in 100 kB would cost seconds."""
_FREE_COPIES: Final = 1 << 20
"""Bytes of repeated resources of a request of any size."""
_COPIES: Final = 8
"""How many times as large as the request its resources may become by being repeated."""


class RequestBudget:
    """The rest of a request's work budget.

    Attributes:
        items: Spans or log records that it may hold.
        parts: Fields of its protobuf that may be walked over to find them.
        objects: Objects and lists of its JSON that may be.
        work: Units of redaction that all its records share; see `otel_audit.redaction.budget`.
        copies: Bytes of resources that may be stored with its records, each time again.
        nodes: Elements of lists and maps that its attributes may have.
        came: Bytes of records that were read so far.
        resources: Units of redaction that all its resources share, beside those of their own.
    """

    __slots__ = (
        "_own_resources",
        "_weight",
        "came",
        "copies",
        "items",
        "nodes",
        "objects",
        "parts",
        "resources",
        "work",
    )

    def __init__(self, sent: int, size: int) -> None:
        """Start with nothing used.

        Args:
            sent: Bytes of the request as it came.
            size: Its bytes, decompressed.
        """
        weighed = min(size, _ORDINARY_RATIO * sent)
        self.items = min(_FREE_ITEMS + sent // 16, MOST_ITEMS)
        self.parts = min(_FREE_PARTS + sent // 2, MOST_PARTS)
        self.objects = min(_FREE_OBJECTS + 2 * sent, MOST_OBJECTS)
        self.work = WorkBudget.of(min(_FREE_WORK + weighed * _WORK_PER_BYTE, _MOST_WORK))
        self._weight = weighed / max(size, 1)
        self.copies = _FREE_COPIES + _COPIES * weighed
        self.nodes = Nodes(min(_FREE_OBJECTS + sent, MOST_OBJECTS))
        self.came = 0
        self.resources = WorkBudget.of(_SHARED_RESOURCE_WORK)
        self._own_resources = MOST_SHARED

    def own_work(self, size: int) -> float:
        """Units of redaction reserved for each record, independent of others in its request.

        Args:
            size: Its bytes, decompressed.
        """
        return _WORK_PER_SPAN + size * self._weight * _WORK_PER_BYTE

    def resource_work(self) -> tuple[float, float]:
        """Units of redaction reserved for one more resource, independent of the others.

        Returns:
            Those for its attributes ``service.*``, and those for its other ones.
        """
        self._own_resources -= 1
        return _WORK_PER_SERVICE, _WORK_PER_RESOURCE if self._own_resources >= 0 else 0.0

    def spend_copy(self, size: int) -> bool:
        """Take a copy of a resource off; return whether there was room for it."""
        self.copies -= size
        return self.copies >= 0
