"""All reports, by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Final

from otel_audit.errors import ConfigurationError
from otel_audit_postgres.reports.access import ACCESS_REPORTS
from otel_audit_postgres.reports.content import CONTENT_REPORTS
from otel_audit_postgres.reports.model import Definition
from otel_audit_postgres.reports.store_reports import STORE_REPORTS

_ORDER: Final = (
    "integrity", "rights", "sign-ins", "sensitive-access", "changes", "subject", "watchers",
    "review", "incident", "disposal", "coverage",
)  # fmt: skip
_ALL: Final = {one.name: one for one in (*ACCESS_REPORTS, *CONTENT_REPORTS, *STORE_REPORTS)}

REPORTS: Final[Mapping[str, Definition]] = {name: _ALL[name] for name in _ORDER}
"""In the order in which they are listed."""


def find_report(name: str) -> Definition:
    """Find a report by its name.

    Raises:
        ConfigurationError: There is none of this name; the message has the nearest.
    """
    found = REPORTS.get(name)
    if found is not None:
        return found
    near = difflib.get_close_matches(name[:50], REPORTS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigurationError(f"there is no report {name[:50]!r}{hint}: {', '.join(REPORTS)}")
