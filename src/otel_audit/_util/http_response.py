"""The response to an HTTP request that we sent, and when it asks us to send again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST: Final = 300.0
"""Seconds: a server cannot have us wait longer."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An HTTP response.

    Attributes:
        status: The status code.
        headers: By name, in lower case.
        body: The bytes; cut at the reader's limit.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from a ``Retry-After`` (RFC 9110, 10.2.3), bounded; None if there is none.

    Args:
        headers: Of the response; names in lower case.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), LONGEST)
    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), LONGEST)
