"""Entry point ``opentelemetry_environment_variables``: a look before ``opentelemetry-instrument``.

That command loads it before it starts the application. Where it would then fail to load an
exporter, it loads no instrumentation either, ours included: this is the last place where that can
be said, and refused.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

from otel_audit_bootstrap import not_audited
from otel_audit_bootstrap.exporters import missing_exporters

_CHOSEN_BY_OPTION: Final = (
    "--traces_",
    "--metrics_",
    "--logs_",
    "--exporter_",
    "--distro",
    "--config",
)
_NO: Final = ("0", "false", "no", "off", "n", "f")


def _look() -> None:
    off = os.environ.get("OTEL_AUDIT_ENABLED", "").strip().lower() in _NO
    if off or any(one.startswith(_CHOSEN_BY_OPTION) for one in sys.argv[1:]):
        return
    missing = ", ".join(map(str, missing_exporters(os.environ)))
    if missing:
        not_audited(
            f"not installed: {missing}; without them OpenTelemetry loads no instrumentation. Start "
            "it by `otel-audit run`, which goes on without them; or install them, or set these "
            "variables to none"
        )


with contextlib.suppress(Exception):  # whatever is odd here: the command is OpenTelemetry's
    _look()
