"""The subject of a client certificate, from the header a proxy gives it in."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from otel_audit.capture.reading import clean

LIMIT: Final = 512
"""Characters of a subject that are kept."""

_LONGEST: Final = 8192
_NAMED: Final = re.compile(
    r"(?:^|[,/;+])\s*(?:CN|OU|O|UID|SERIALNUMBER|EMAILADDRESS)=", re.IGNORECASE
)
_ENVOY_KEYS: Final = frozenset({"by", "hash", "cert", "chain", "subject", "uri", "dns"})


def certificate_subject(value: str) -> str | None:
    """Read a certificate's subject.

    Args:
        value: What the proxy wrote: a distinguished name (RFC 4514, or with slashes, as nginx's
            ``$ssl_client_s_dn`` and its like), perhaps percent-encoded; or Envoy's
            ``x-forwarded-client-cert``, whose last element is the peer's: its URI (SPIFFE), else
            its Subject.

    Returns:
        The name, cleaned; None where there is none, or where it is longer than 8192 characters.
    """
    text = value.strip()
    if len(text) > _LONGEST:
        return None
    if text.partition("=")[0].lower() in _ENVOY_KEYS:
        return _envoy(text)
    if "%" in text:
        text = unquote(text)
    return (clean(text, LIMIT) or None) if _NAMED.search(text) else None


def _envoy(text: str) -> str | None:
    pairs = [pair.partition("=") for pair in _split(_split(text, ",")[-1], ";")]
    found = {key.strip().lower(): word.strip() for key, _, word in pairs}
    name = found.get("uri") or found.get("subject") or ""
    return clean(name.strip('"').replace('\\"', '"'), LIMIT) or None


def _split(text: str, separator: str) -> list[str]:
    """Split where the separator stands outside quotes."""
    parts, start, quoted, escaped = [], 0, False, False
    for place, sign in enumerate(text):
        if escaped:
            escaped = False
        elif sign == "\\":
            escaped = True
        elif sign == '"':
            quoted = not quoted
        elif sign == separator and not quoted:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]
