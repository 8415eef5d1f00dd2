"""Redaction of the values of columns and parameters: by mark, then by name, then by length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from otel_audit.capture.orm.values import bounded, portable
from otel_audit.redaction import REDACTED

_PROBES = ("x", 1, True)


class Redactor(Protocol):
    """What capture needs of redaction."""

    def field(self, name: str, value: Any) -> Any:
        """Redact a JSON value that stands under a name."""

    def text(self, text: str) -> str:
        """Redact free text."""


@dataclass(frozen=True, slots=True)
class Masking:
    """How values become what may be recorded.

    Attributes:
        redactor: Decides by name and content. One with a method ``hashed(value)`` can serve
            columns marked ``hash``.
        longest: Characters of one value's JSON text.
    """

    redactor: Redactor
    longest: int

    def value(self, name: str, value: Any, *, mark: str | None = None, alias: str = "") -> Any:
        """Bring a value to JSON and redact it.

        Args:
            name: Its column.
            value: The application's value, or its JSON form.
            mark: ``redact`` or ``hash``, as the column's ``info`` says.
            alias: The attribute's name, where it differs: sensitive in either is sensitive.

        Returns:
            A JSON value that may leave the listener. None stays None.
        """
        return None if value is None else self.redact(name, portable(value), mark, alias)

    def redact(self, name: str, form: Any, mark: str | None, alias: str) -> Any:
        """Redact a value that is in its JSON form already; as `value`."""
        if mark is not None:
            return self._marked(form, mark)
        redacted = self.redactor.field(name, form)
        if alias and alias != name and redacted == form:
            redacted = self.redactor.field(alias, form)
        return bounded(redacted, self.longest)

    def clean_copy(self, value: Any) -> Any:
        """Copy a list or an object that holds nothing to redact or to cut; None: look closer."""
        copy = getattr(self.redactor, "clean_copy", None)
        found = None if copy is None else copy(value)
        return None if found is None or found[1] > self.longest else found[0]

    def are_clean(self, texts: list[str]) -> bool:
        """Tell whether one look shows that none of some short texts holds anything to redact."""
        copy = getattr(self.redactor, "clean_copy", None)
        return copy is not None and copy(texts) is not None

    def is_innocent(self, name: str) -> bool:
        """Tell whether nothing is redacted for this name alone."""
        try:
            return all(self.redactor.field(name, probe) == probe for probe in _PROBES)
        except Exception:  # noqa: BLE001 - it will raise on the value too, and be noted there
            return False

    def text(self, text: str, longest: int) -> str:
        """Redact free text and cut it."""
        redacted = self.redactor.text(text)
        if len(redacted) <= longest:
            return redacted
        cut = bounded(redacted, longest)
        return f"{redacted[:longest]}… [{cut['size']} bytes, sha256 {cut['sha256']}]"

    def _marked(self, form: Any, mark: str) -> Any:
        hashed = getattr(self.redactor, "hashed", None)
        if mark == "hash" and callable(hashed):
            return hashed(form)
        return REDACTED
