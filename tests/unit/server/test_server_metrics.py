"""Counts become OpenTelemetry metrics; each request becomes a line of JSON."""

from __future__ import annotations

import json
import logging

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_audit.server import access_log
from otel_audit.server.metrics import ServerMetrics


def told(reader: InMemoryMetricReader) -> dict[str, list[tuple[dict, float]]]:
    found = {}
    for resource in reader.get_metrics_data().resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                found[metric.name] = [
                    (dict(point.attributes), getattr(point, "value", getattr(point, "sum", None)))
                    for point in metric.data.data_points
                ]
    return found


def test_every_count_is_a_metric():
    reader = InMemoryMetricReader()
    meters = ServerMetrics()
    meters.publish(MeterProvider([reader]).get_meter("test"), lambda: 4096, lambda: 7)
    meters.counts.update(stored=5, ignored=2)
    meters.quarantined["conflict"] = 3
    meters.refused["undecodable"] = 1
    meters.http_requests["/v1/traces", 200] = 9
    method = "opentelemetry.proto.collector.trace.v1.TraceService/Export"
    meters.grpc_requests[method, "OK"] = 3
    meters.observe_write(0.25, 5)

    assert told(reader) == {
        "audit.sink.records.stored": [({}, 5)],
        "audit.sink.records.ignored": [({}, 2)],
        "audit.sink.records.conflicts": [({}, 0)],
        "audit.sink.records.chains.broken": [({}, 0)],
        "audit.sink.records.quarantined": [({"reason": "conflict"}, 3)],
        "audit.sink.requests.refused": [({"reason": "undecodable"}, 1)],
        "audit.sink.requests": [
            ({"http.route": "/v1/traces", "http.response.status_code": 200}, 9),
            (
                {
                    "rpc.system.name": "grpc",
                    "rpc.method": method,
                    "rpc.response.status_code": "OK",
                },
                3,
            ),
        ],
        "audit.sink.in_flight": [({}, 4096)],
        "audit.sink.queue.depth": [({}, 7)],
        "audit.sink.write.duration": [({}, 0.25)],
        "audit.sink.write.records": [({}, 5)],
    }


def test_a_line_of_the_access_log(caplog):
    caplog.set_level(logging.INFO, "otel_audit.server.access")
    logging.getLogger("otel_audit.server.access").propagate = True

    access_log.write(
        "POST", "/v1/traces", 200, "10.0.0.1", 0.01234, {"sender": "token:x", "stored": 3}
    )

    # another test of this process may have left a second handler
    (line,) = set(caplog.messages)
    assert json.loads(line) == {
        "method": "POST", "path": "/v1/traces", "status": 200, "client": "10.0.0.1",
        "duration_ms": 12.3, "sender": "token:x", "stored": 3,
    }  # fmt: skip
