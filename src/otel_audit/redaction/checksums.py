"""Checksums that distinguish a card or account number from a number that only looks like one."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from otel_audit.redaction.load_data import networks

CARD_DIGITS: Final = range(13, 20)
"""Lengths of primary account numbers (ISO/IEC 7812-1), without the obsolete shorter ones."""

_ZERO: Final = ord("0")
_DOUBLED: Final = bytes.maketrans(b"0123456789", b"0246813579")

# Lengths by country, from the IBAN registry (ISO 13616) as SWIFT publishes it.
IBAN_LENGTHS: Final = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22,
    "BI": 27, "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27,
    "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27,
    "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HN": 28, "HR": 21, "HU": 28,
    "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28,
    "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22,
    "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23,
    "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24,
    "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28,
    "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip


def luhn(digits: str) -> bool:
    """Return whether the last digit fits the others (ISO/IEC 7812-1, annex B).

    Args:
        digits: ASCII digits only.
    """
    turned = digits[::-1].encode()
    return (
        sum(turned[::2]) + sum(turned[1::2].translate(_DOUBLED)) - _ZERO * len(turned)
    ) % 10 == 0


def is_card(digits: str, *, any_network: bool = False) -> bool:
    """Return whether digits are a card's number.

    Args:
        digits: ASCII digits only, without separators.
        any_network: Trust the check digit alone, for numbers written in groups as on a card.
    """
    if len(digits) not in CARD_DIGITS or len(set(digits)) == 1:
        return False
    return luhn(digits) and (any_network or _is_issued(digits))


def _is_issued(digits: str) -> bool:
    """Return whether a network issues such numbers.

    What no network issues is an order number or a timestamp, also when its last digit fits.
    """
    return any(
        one.low <= int(digits[: len(str(one.low))]) <= one.high and len(digits) in one.lengths
        for one in networks()
    )


def is_iban(compact: str) -> bool:
    """Return whether a text is an account number: its country's length, and ISO 7064 mod 97-10.

    Args:
        compact: Upper-case letters and digits, without separators.
    """
    if len(compact) != IBAN_LENGTHS.get(compact[:2]) or not (
        compact.isascii() and compact.isalnum()
    ):
        return False
    turned = compact[4:] + compact[:4]
    return int(turned.translate(_IBAN_DIGITS)) % 97 == 1


_IBAN_DIGITS: Final = str.maketrans({chr(55 + value): str(value) for value in range(10, 36)})
"""Letters as ISO 13616 counts them: A is 10, Z is 35."""


def is_ssn(area: str, group: str, serial: str) -> bool:
    """Return whether three groups of digits can be a US social security or taxpayer number."""
    return area not in ("000", "666") and group != "00" and serial != "0000"


def is_basic_credential(token: str) -> bool:
    """Return whether a token is ``user:password`` in base64 (RFC 7617)."""
    padded = token + "=" * (-len(token) % 4)
    try:
        decoded = base64.b64decode(padded.encode("ascii", "replace"), altchars=b"-_")
    except (binascii.Error, ValueError):
        return False
    return b":" in decoded
