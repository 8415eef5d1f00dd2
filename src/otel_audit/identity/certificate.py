"""The subject of a client certificate, from the header a proxy gives it in."""

from __future__ import annotations

import base64
import binascii
import functools
import importlib.util
import re
from typing import Final
from urllib.parse import unquote

from otel_audit.errors import MissingExtraError
from otel_audit.identity.safe_access import clean
from otel_audit.setting_values import PREFIX

LIMIT: Final = 512
"""Characters of a subject that are kept."""

CLIENT_CERT: Final = "client-cert"
"""The header of RFC 9440, in lower case: the whole certificate."""

_LONGEST: Final = 8192
"""Characters of a header that names a subject; a longer one is not read."""
_LONGEST_CERTIFICATE: Final = 16_384
"""Characters of a header that holds the whole certificate; a longer one is not read."""
_BYTES: Final = re.compile(r":([A-Za-z0-9+/]+={0,2}):")
"""A byte sequence of structured fields (RFC 8941, section 3.3.5) without parameters."""
_NAMED: Final = re.compile(
    r"(?:^|[,/;+])\s*(?:CN|OU|O|UID|SERIALNUMBER|EMAILADDRESS)=", re.IGNORECASE
)
_ENVOY_KEYS: Final = frozenset({"by", "hash", "cert", "chain", "subject", "uri", "dns"})


def check_readable(header: str) -> None:
    """See whether what a header holds could be read at all.

    Raises:
        MissingExtraError: It is that of RFC 9440, and the package that reads certificates is not
            installed.
    """
    if header.lower() == CLIENT_CERT and importlib.util.find_spec("cryptography") is None:
        raise MissingExtraError(f"{PREFIX}CLIENT_CERTIFICATE_HEADER={header}", "encryption")


def certificate_subject(value: str) -> str | None:
    """Read a certificate's subject.

    Args:
        value: What the proxy wrote: a distinguished name (RFC 4514, or with slashes, as nginx's
            ``$ssl_client_s_dn`` and its like), perhaps percent-encoded; or Envoy's
            ``x-forwarded-client-cert``, whose last element is the peer's: its URI (SPIFFE), else
            its Subject; or ``Client-Cert`` (RFC 9440): the certificate itself, of which likewise
            the first URI is taken, else the subject.

    Returns:
        The name, cleaned; None if there is none, or where the value is longer than 8192
        characters (a certificate: 16384).
    """
    text = value.strip()
    if text.startswith(":"):
        return _certificate(text) if len(text) <= _LONGEST_CERTIFICATE else None
    if len(text) > _LONGEST:
        return None
    if text.partition("=")[0].lower() in _ENVOY_KEYS:
        return _envoy(text)
    if "%" in text:
        text = unquote(text)
    return (clean(text, LIMIT) or None) if _NAMED.search(text) else None


# a client shows the same certificate with each request
@functools.lru_cache(maxsize=128)
def _certificate(text: str) -> str | None:
    found = _BYTES.fullmatch(text)
    if found is None:
        return None
    try:
        # imported where it is used: it is not needed without such a header
        from cryptography import x509

        certificate = x509.load_der_x509_certificate(base64.b64decode(found[1], validate=True))
        subject = certificate.subject.rfc4514_string()
    except (ImportError, ValueError, TypeError, binascii.Error):
        return None
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        uris = []
    return clean(uris[0] if uris else subject, LIMIT) or None


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
