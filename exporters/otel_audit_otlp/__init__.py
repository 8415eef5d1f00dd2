"""Records over OTLP: to a Collector, or to the sink of `otel-audit serve`."""
