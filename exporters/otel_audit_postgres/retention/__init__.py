"""Retention: policy, holds, runs, and erasure; see docs/retention.md."""

from __future__ import annotations

from otel_audit_postgres.retention.months import collapse, drop, retire

__all__ = ["collapse", "drop", "retire"]
