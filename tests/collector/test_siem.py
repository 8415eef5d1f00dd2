"""Streams through the real Collector of siem.yaml: to Splunk, Kafka, a file, Elasticsearch."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from collector.brokers import Broker, kafka_classpath
from collector.collectors import Collector, collector, running
from collector.siem_stand_ins import elasticsearch, splunk
from ledger_store import Log
from ports import free_port

from demo.receiver import Answer
from otel_audit.streams.factory import make_streams
from otel_audit.streams.settings import read_settings

pytestmark = [pytest.mark.collector, pytest.mark.slow]

TOPIC = "otel-audit-events"
SIEM = ("SIEM_HTTP", "SIEM_ELASTICSEARCH_HTTP", "SIEM_HEALTH", "SIEM_METRICS_PORT")
NOBODY = "http://127.0.0.1:1"
TOKEN = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def siem(binary: Path, tmp_path: Path) -> Callable[..., Collector]:
    def make(hec: str = NOBODY, brokers: str = "127.0.0.1:1", elastic: str = NOBODY) -> Collector:
        return collector(
            binary, "siem", files=("siem.yaml",), directory=tmp_path, listen=SIEM,
            environment={
                "SPLUNK_HEC_ENDPOINT": f"{hec}/services/collector", "SPLUNK_HEC_TOKEN": TOKEN,
                "AUDIT_KAFKA_BROKERS": f"[{brokers}]", "SIEM_FILE": str(tmp_path / "siem.json"),
                "ELASTICSEARCH_ENDPOINT": elastic, "ELASTICSEARCH_API_KEY": TOKEN,
            },
        )  # fmt: skip

    return make


async def stream_to(
    it: Collector, log: Log, directory: Path, shape: str = "native", *,
    at: str = "SIEM_HTTP", name: str = "siem",
) -> int:  # fmt: skip
    """Send all that is sealed; returns how many leaves there are."""
    file = directory / "streams.toml"
    file.write_text(
        f'[streams.{name}]\nkind = "otlp"\nendpoint = "{it.url(at)}"\nshape = "{shape}"\n'
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
            "--from-beginning", "--timeout-ms", "60000", "--max-messages", str(count),
        ],
        check=False, capture_output=True, text=True, timeout=240,
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
    it = siem(hec=f"http://127.0.0.1:{port}")
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


ELASTIC = "SIEM_ELASTICSEARCH_HTTP"


async def test_a_stream_reaches_elasticsearch(audit_store, tmp_path, siem):
    """Each record is one document, though it refuses, breaks off, and takes some items later."""
    log = Log(audit_store, tmp_path)
    await log.write(60)
    poisoned = (await log.write(1, event_name="poison.taken"))[0]
    await log.write(60)
    await log.seal()
    busy = set(range(0, 121, 7))

    def status_of(document):
        if document["event"]["action"] == "poison.taken":
            return 400
        if document["event"]["sequence"] in busy:
            busy.discard(document["event"]["sequence"])
            return 429
        return 201

    with elasticsearch() as elastic:
        elastic.status_of = status_of
        elastic.next = [Answer(status=503), None, Answer(status=429)]
        it = siem(elastic=elastic.url)
        with running(it):
            size = await stream_to(it, log, tmp_path, "ecs", at=ELASTIC)
            await until(lambda: len(elastic.documents) >= size - 1)
            # the whole of it a second time, as after a rewind, or a kill
            await stream_to(it, log, tmp_path, "ecs", at=ELASTIC, name="again")
            await until(lambda: elastic.conflicts >= size - 1)
            it.stop()
    assert size == 121
    assert not busy
    assert elastic.indices == {"otel-audit"}
    assert {key.lower() for key in elastic.keys} == {f"apikey {TOKEN}"}
    leaves = {one["event"]["sequence"]: name for name, one in elastic.documents.items()}
    assert leaves.keys() == set(range(size)) - {60}
    assert all(one["event"]["hash"] == name for name, one in elastic.documents.items())
    assert poisoned not in json.dumps(list(elastic.documents.values()))
    # what its mapping refuses is in the log of the Collector, and in the trail
    assert "document_parsing_exception" in it.output


async def test_elasticsearch_that_hangs_or_is_away_loses_nothing(audit_store, tmp_path, siem):
    """An attempt without an answer, a Collector that is killed meanwhile, nobody at the port."""
    log = Log(audit_store, tmp_path)
    await log.write(100)
    await log.seal()
    port = free_port()
    it = siem(elastic=f"http://127.0.0.1:{port}")
    with running(it):
        with elasticsearch(port) as elastic:
            elastic.next = [3.0]
            size = await stream_to(it, log, tmp_path, "ecs", at=ELASTIC)
            await until(lambda: len(elastic.documents) >= size)
        await log.write(50)
        await log.seal()
        size = await stream_to(it, log, tmp_path, "ecs", at=ELASTIC)
        it.kill()
        it.start()
        with elasticsearch(port) as later:
            later.documents = dict(elastic.documents)
            await until(lambda: len(later.documents) >= size)
    assert {one["event"]["sequence"] for one in later.documents.values()} == set(range(size))


async def test_one_destination_that_is_away_holds_up_no_other(audit_store, tmp_path, siem):
    """Splunk gets its events while nobody is where Kafka and Elasticsearch should be."""
    log = Log(audit_store, tmp_path)
    await log.write(30)
    await log.seal()
    with splunk() as hec:
        it = siem(hec=hec.url)
        with running(it):
            await stream_to(it, log, tmp_path, "ecs", at=ELASTIC, name="elastic")
            await log.seal()
            size = await stream_to(it, log, tmp_path)
            await until(lambda: len({one["event"]["leaf"] for one in hec.events}) >= size)
