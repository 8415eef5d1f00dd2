"""Records over OTLP: to a Collector, or to the sink of `otel-audit serve`."""

from otel_audit_otlp.endpoint import Endpoint
from otel_audit_otlp.exporter import OtlpAuditExporter
from otel_audit_otlp.sink import OtlpSink

__all__ = ["Endpoint", "OtlpAuditExporter", "OtlpSink"]
