"""OpenTelemetry instrumentation that turns an application's actions into an audit trail."""
