"""`python -m otel_audit` is the command `otel-audit`."""

from otel_audit.cli import main

if __name__ == "__main__":
    main()
