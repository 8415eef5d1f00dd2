"""Loaded first by every Python process of an `otel-audit run` command."""

import os
import sys

try:
    from otel_audit_bootstrap.run import begin
except ImportError as _error:
    _value = os.environ.get("OTEL_AUDIT_REQUIRED", "").strip().lower()
    _required = _value not in {"", "0", "false", "no", "off", "n", "f"}
    sys.stderr.write(
        "THIS APPLICATION IS NOT AUDITED: otel-audit is not installed for "
        f"{sys.executable}: {_error}"
        f"{'; refusing to start, because OTEL_AUDIT_REQUIRED is set' if _required else ''}\n"
    )
    if _required:
        sys.stderr.flush()
        # EXIT_CONFIGURATION of otel_audit_bootstrap, which could not be imported
        os._exit(78)
else:
    begin()
