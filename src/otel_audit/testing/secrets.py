"""Whether a secret is somewhere, in any of the forms in which it could have got there."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote, quote_plus

SHORTEST: Final = 4
"""Characters; anything shorter is found everywhere by chance."""

_ROUND: Final = 24
"""Characters that the message shows on either side of what was found."""


def forms_of(secret: str) -> dict[str, str]:
    """Name the forms in which text carries a secret.

    Returns:
        Each form's text, and what it is called. Base64 depends on where the secret begins, so
        there are three forms of it, each without the characters that its neighbours decide.

    Raises:
        ValueError: The secret is too short to be looked for.
    """
    if len(secret) < SHORTEST:
        raise ValueError(
            f"no_secrets: {secret!r} is too short to be looked for: "
            f"give a value of {SHORTEST} characters or more that occurs nowhere by chance"
        )
    raw = secret.encode("utf-8", "surrogatepass")
    found = {secret: "plain"}
    for escaped in (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]):
        # within a text that stands in JSON itself, the escapes are escaped again
        found.setdefault(escaped, "JSON")
        found.setdefault(json.dumps(escaped)[1:-1], "JSON in JSON")
    for url in (quote(raw, safe=""), quote(raw), quote_plus(raw)):
        found.setdefault(url, "URL")
        found.setdefault(url.lower() if "%" in url else url, "URL")
    found.setdefault(raw.hex(), "hex")
    found.setdefault(raw.hex().upper(), "hex")
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(b"\0" * offset + raw).decode()
            # characters that share bits with what stands before or behind are left out
            first = (0, 2, 3)[offset]
            last = (offset + len(raw)) * 8 // 6
            if last - first >= SHORTEST:
                found.setdefault(text[first:last], "base64")
    return found


def search(secrets: Iterable[str], places: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Look for secrets.

    Args:
        secrets: Their plain values.
        places: What each text is called, and the text.

    Yields:
        One line for each secret, form and place, with what stands around it.
    """
    looked_for = [(secret, forms_of(secret)) for secret in dict.fromkeys(secrets)]
    for place, text in places:
        for secret, forms in looked_for:
            for form, name in forms.items():
                at = text.find(form)
                if at >= 0:
                    around = text[max(at - _ROUND, 0) : at + len(form) + _ROUND]
                    yield f"{secret!r} in {name} form in {place}: …{around}…"
                    break
