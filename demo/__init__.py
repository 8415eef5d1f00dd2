"""otel-audit's demonstration: a small shop, audited without a line of audit code in it."""
