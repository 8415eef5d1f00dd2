"""The answer to an HTTP request that we sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An HTTP answer.

    Attributes:
        status: The status code.
        headers: By name, in lower case.
        body: The bytes; cut at the reader's limit.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
