"""What must never be found anywhere: every secret that the traffic sends is noted here."""

from __future__ import annotations

import base64
import hashlib
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class SecretsSent:
    """Makes secrets, and remembers each with its kind."""

    known: dict[str, str] = field(default_factory=dict)
    _random: random.Random = field(default_factory=lambda: random.Random(20))

    def note(self, kind: str, secret: str) -> str:
        self.known[secret] = kind
        return secret

    def password(self) -> str:
        letters = "".join(self._random.choices(string.ascii_letters + string.digits, k=14))
        return self.note("password", f"{letters}!")

    def card(self, *, separator: str = "") -> str:
        """A card number that passes the Luhn check, as a real one does."""
        digits = "4" + "".join(self._random.choices(string.digits, k=14))
        number = digits + _luhn_digit(digits)
        return self.note("card number", separator.join(_fours(number)))

    def iban(self) -> str:
        """A German account number with the right check digits (ISO 13616)."""
        account = "".join(self._random.choices(string.digits, k=18))
        check = 98 - int(f"{account}131400") % 97  # D is 13, E is 14
        return self.note("IBAN", f"DE{check:02}{account}")

    def kinds(self) -> dict[str, int]:
        """How many there are of each kind."""
        counts: dict[str, int] = {}
        for kind in self.known.values():
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    def found_in(self, data: bytes) -> list[str]:
        """Name the kinds of the secrets that a text holds, in clear, coded, or plainly hashed."""
        return [
            kind
            for secret, kind in self.known.items()
            if any(form in data for form in _forms(secret))
        ]


def _forms(secret: str) -> Iterator[bytes]:
    clear = secret.encode()
    yield clear
    yield clear.replace(b" ", b"").replace(b"-", b"")
    yield base64.b64encode(clear)
    yield clear.hex().encode()
    yield hashlib.sha256(clear).hexdigest().encode()


def _fours(number: str) -> list[str]:
    return [number[start : start + 4] for start in range(0, len(number), 4)]


def _luhn_digit(digits: str) -> str:
    """ISO/IEC 7812-1, annex B."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) * (2 if place % 2 == 0 else 1)
        total += doubled - 9 if doubled > 9 else doubled
    return str(-total % 10)
