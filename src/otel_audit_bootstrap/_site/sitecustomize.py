"""What `otel-audit run` has every Python process of a command load first."""

import os
import sys

try:
    from otel_audit_bootstrap.run import begin
except ImportError as _error:
    _required = os.environ.get("OTEL_AUDIT_REQUIRED", "").strip().lower()
    sys.stderr.write(
        "THIS APPLICATION IS NOT AUDITED: otel-audit is not installed for "
        f"{sys.executable}: {_error}\n"
    )
    if _required not in {"", "0", "false", "no", "off", "n", "f"}:
        sys.stderr.write("Refusing to start, because OTEL_AUDIT_REQUIRED is set.\n")
        sys.stderr.flush()
        os._exit(78)
else:
    begin()
