"""A stream through the real Collector of siem.yaml: to Splunk's collector, to Kafka, to a file."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from collector.brokers import Broker, kafka_classpath
from collector.collectors import Collector, collector, running
from ledger_store import Log
from ports import free_port

from demo.receiver import Answer, listening
from otel_audit.streams.factory import make_streams
from otel_audit.streams.settings import read_settings

pytestmark = [pytest.mark.collector, pytest.mark.slow]

TOPIC = "otel-audit-events"
SIEM = ("SIEM_HTTP", "SIEM_HEALTH", "SIEM_METRICS_PORT")
TOKEN = "11111111-2222-3333-4444-555555555555"


@dataclass
class Splunk:
    """A stand-in for the HTTP Event Collector, which can be told to misbehave."""

    url: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    requests: int = 0
    tokens: set[str] = field(default_factory=set)
    next: list[Answer | float] = field(default_factory=list)
    """What the next requests get: an answer, or so many seconds of silence before a 503."""

    def take(self, headers: Mapping[str, str], body: bytes) -> Answer:
        self.requests += 1
        self.tokens.add(headers.get("authorization", ""))
        told = self.next.pop(0) if self.next else None
        if isinstance(told, float):
            time.sleep(told)
            return Answer(status=503)
        if told is not None:
            return told
        # events one behind the other, with nothing between
        decoder, text, at = json.JSONDecoder(), body.decode(), 0
        while at < len(text):
            event, at = decoder.raw_decode(text, at)
            at = re.compile(r"\s*").match(text, at).end()
            self.events.append(event)
        return Answer(body=b'{"text":"Success","code":0}', content_type="application/json")


@contextmanager
def splunk(port: int = 0) -> Iterator[Splunk]:
    found = Splunk()
    with listening(lambda _path, headers, body: found.take(headers, body), port=port) as found.url:
        yield found


@pytest.fixture
def siem(binary: Path, tmp_path: Path) -> Callable[..., Collector]:
    def make(hec: str, brokers: str) -> Collector:
        return collector(
            binary, "siem", files=("siem.yaml",), directory=tmp_path, listen=SIEM,
            environment={
                "SPLUNK_HEC_ENDPOINT": f"{hec}/services/collector", "SPLUNK_HEC_TOKEN": TOKEN,
                "AUDIT_KAFKA_BROKERS": f"[{brokers}]", "SIEM_FILE": str(tmp_path / "siem.json"),
            },
        )  # fmt: skip

    return make


async def stream_to(it: Collector, log: Log, directory: Path, shape: str = "native") -> int:
    """Send all that is sealed; returns how many leaves there are."""
    file = directory / "streams.toml"
    file.write_text(
        f'[streams.siem]\nkind = "otlp"\nendpoint = "{it.url("SIEM_HTTP")}"\nshape = "{shape}"\n'
        "batch = 50\n"
    )
    (stream,) = make_streams(
        log.dsn, read_settings(file), state_directory=directory / "state", start=0, interval=0.05
    )
    stop = asyncio.Event()
    task = asyncio.create_task(stream.run(stop))
    try:
        async with asyncio.timeout(60):
            while not stream.progress.size or stream.progress.next_leaf < stream.progress.size:  # noqa: ASYNC110 - the stream's own numbers
                await asyncio.sleep(0.05)
    finally:
        stop.set()
        await task
        await stream.close()
    return stream.progress.size


async def until(condition: Callable[[], bool], within: float = 60.0) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.05)


def read_topic(broker: Broker, count: int) -> list[dict[str, Any]]:
    command = broker._command("org.apache.kafka.tools.consumer.ConsoleConsumer")
    done = subprocess.run(
        [
            *command, "--bootstrap-server", f"127.0.0.1:{broker.port}", "--topic", TOPIC,
            "--from-beginning", "--timeout-ms", "15000", "--max-messages", str(count),
        ],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


async def test_a_stream_reaches_splunk_kafka_and_a_file(audit_store, tmp_path, siem):
    """Every record is in all three, with its leaf; Splunk's collector refuses and hangs at first."""
    log = Log(audit_store, tmp_path)
    await log.write(120)
    await log.seal()
    directory = tmp_path / "kafka"
    directory.mkdir()
    broker = Broker(kafka_classpath(), directory)
    with splunk() as hec, running(broker.process):
        broker.create_topic(TOPIC)
        hec.next = [Answer(status=503), Answer(status=429), 0.5, Answer(status=500)]
        it = siem(hec.url, f"127.0.0.1:{broker.port}")
        with running(it):
            size = await stream_to(it, log, tmp_path)
            await until(lambda: len({one["event"]["leaf"] for one in hec.events}) >= size)
            events = await asyncio.to_thread(read_topic, broker, size)
            it.stop()
    assert hec.tokens == {f"Splunk {TOKEN}"}
    assert {one["event"]["leaf"] for one in hec.events} == set(range(size))
    assert {one["sourcetype"] for one in hec.events} == {"otel-audit"}
    assert {one["leaf"] for one in events} == set(range(size))
    assert events[0]["record"]["event_name"] == "order.created"
    written = [json.loads(line) for line in (tmp_path / "siem.json").read_text().splitlines()]
    in_file = [
        attribute["value"]["intValue"]
        for line in written
        for resource in line["resourceLogs"]
        for scope in resource["scopeLogs"]
        for record in scope["logRecords"]
        for attribute in record["attributes"]
        if attribute["key"] == "audit.ledger.leaf"
    ]
    assert [int(leaf) for leaf in in_file] == list(range(size))


async def test_a_collector_that_is_killed_loses_nothing_for_splunk(audit_store, tmp_path, siem):
    """Splunk is away while the stream sends; the Collector is killed, and delivers from its disk."""
    log = Log(audit_store, tmp_path)
    await log.write(200)
    await log.seal()
    port = free_port()
    it = siem(f"http://127.0.0.1:{port}", "127.0.0.1:1")
    with running(it):
        size = await stream_to(it, log, tmp_path, shape="ocsf")
        it.kill()
        with splunk(port) as hec:
            it.start()
            await until(lambda: len({_leaf(one) for one in hec.events}) >= size)
    assert {_leaf(one) for one in hec.events} == set(range(size))
    assert {one["event"]["metadata"]["version"] for one in hec.events} == {"1.8.0"}


def _leaf(event: dict[str, Any]) -> int:
    return int(event["event"]["metadata"]["sequence"])
