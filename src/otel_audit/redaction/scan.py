"""One search that says whether a text can hold anything that a rule would take out.

It may be wrong in one direction only: what it calls clean, no rule touches. Names are matched here
in a broader way than `names.py` judges them, values in a broader way than `values.py` does.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any, Final

import re2

from otel_audit.redaction import names
from otel_audit.redaction.checks import IBAN_LENGTHS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_GAP = r'[^a-z0-9"\\]*'
_EDGE = "(?-i:[^A-Za-z0-9])"
"""Before a word. Regardless of case the letters would include U+017F and U+212A, which edge one."""

_VALUES: Final = (
    r"\\u00", r"%[0-9a-f]{2}", r"private key|putty-user|age-secret",
    r"e(?:yj|ya|wo|wk|yi)[a-z0-9_-]{4,}\.", r"://[^\s\"]*@", r"bearer|basic[^a-z]", r"slack\.com",
    r"parameters:|row contains|input_value|--[a-z]",
    # the beginnings of the vendors' shapes
    r"[srp]k_(?:live|test)_|whsec_|gh[pousr]_|github_|gl[a-z]{2,5}-|xox[a-z]-|xapp-|ya29\.|gocspx-",
    r"(?:akia|asia|abia|acca)[a-z0-9]{8}|aiza[a-z0-9_-]{8}|eaaa[a-z0-9_-]{16}|[0-9]:aa[a-z0-9_-]{8}",
    _EDGE + r"(?:sk-[a-z0-9]{2}|sg\.[a-z0-9_-]{8}|key-[0-9a-f]{8}|sk[0-9a-f]{16}|hf_)",
    r"[0-9a-f]{8}-us[0-9]|npm_|pypi-|dckr_|do[opr]_v1|shp(?:at|ca|pa|ss)_|sq0[a-z]|dapi[0-9a-f]{8}",
    r"hv[sbr]\.|lin_api|ntn_|pmak-|gl(?:sa|c)_|sntry|nrak-|atatt3|nfp_|pscale_|sbp_",
)  # fmt: skip
_NUMBERS: Final = (
    r"[0-9](?:[^a-z0-9\"\\,:;]{0,2}[0-9]){12}",
    r"[0-9]{3}[- ][0-9]{2}[- ][0-9]{4}",
    rf"{_EDGE}(?:{'|'.join(IBAN_LENGTHS)})[0-9]{{2}}[^a-z0-9]?[a-z0-9]{{2}}",
)


class Scan:
    """The search, compiled for one configuration."""

    def __init__(self, added_names: Iterable[str] = (), *, emails: bool = False) -> None:
        """Compile.

        Args:
            added_names: Names and patterns that the application redacts beside the built-in ones.
            emails: Whether e-mail addresses are redacted.
        """
        added = [[names.squash(piece) for piece in name.split("*")] for name in added_names]
        pieces = [max(parts, key=len) for parts in added]
        roots = _roots([*(names.squash(phrase) for phrase in names.PHRASES), *pieces])
        alike = [
            *_VALUES,
            *_NUMBERS,
            *(["@"] if emails else []),
            "|".join(_letters(root) for root in roots),
            r'"[^"\\]*[^\x00-\x7f][^"\\]*"\s*:',
        ]
        self._search = _compiled([*alike, *_short_names(_EDGE)])
        # an accent that is taken off, or a letter that is, no longer tells where a word begins
        self._search_spelled = _compiled([*alike, *_short_names("")])
        self._anything = not all(pieces)

    def suspects(self, text: bytes) -> bool:
        """Search JSON text, valid UTF-8 and free of backslashes."""
        if self._anything or self._search(text) is not None:
            return True
        return not text.isascii() and self._search_spelled(_without_accents(text)) is not None

    def suspects_string(self, text: str) -> bool:
        """Search a string as it would stand in JSON text, quotes around it."""
        return self.suspects(b'"%b"' % text.encode())


def _short_names(edge: str) -> Iterator[str]:
    """Patterns of names that are too short to be looked for in the midst of a word."""
    exact = "|".join(_letters(word) for word in sorted({names.squash(n) for n in names.EXACT}))
    yield rf"{edge}(?:{exact})[\W_]*[=:>\"']"
    yield rf'<(?:[^\s<>"\\]*[\W_])?(?:{exact})[\W_]*\s'
    yield rf"{edge}(?:{'|'.join(names.WORDS)})"
    yield "(?-i:" + "|".join(f"[A-Za-z0-9]{_capital(word)}" for word in names.WORDS) + ")"


def _compiled(patterns: Iterable[str]) -> Any:
    options = re2.Options()
    options.never_capture = True
    options.case_sensitive = False
    options.max_mem = 64 << 20
    whole = "|".join(f"(?:{pattern})" for pattern in patterns)
    return re2.compile(whole.encode(), options).search


def _roots(phrases: Iterable[str]) -> list[str]:
    """Drop what contains another: whoever looks for `token` finds `access_token`."""
    every = {phrase for phrase in phrases if phrase}
    return sorted(p for p in every if not any(q != p and q in p for q in every))


def _letters(word: str) -> str:
    return _GAP.join(word)


def _without_accents(text: bytes) -> bytes:
    """Spell a text in the letters that names are judged by: `contraseña` is `contrasena`."""
    spelled = unicodedata.normalize("NFKD", text.decode("utf-8", "replace"))
    return spelled.replace("ß", "ss").replace("ẞ", "ss").encode("ascii", "ignore")


def _capital(word: str) -> str:
    return word[0].upper() + "".join(f"[{c}{c.upper()}]" for c in word[1:])
