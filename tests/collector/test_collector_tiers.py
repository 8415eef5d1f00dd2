"""More tiers: several gateways and sinks behind a balancing one, and Kafka between two."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from collector.brokers import Broker, kafka_classpath
from collector.collectors import (
    BALANCER,
    GATEWAY,
    KAFKA_GATEWAY,
    KAFKA_READER,
    Collector,
    Sink,
    collector,
    running,
    serving,
)
from collector.senders import Sender, all_stored_once, eventually, said, stored_ids

pytestmark = [pytest.mark.collector, pytest.mark.slow, pytest.mark.timeout(400)]


def sender_with(certificates, url: str) -> Sender:
    context = ssl.create_default_context(cafile=certificates.authority)
    context.load_cert_chain(certificates.certificate, certificates.key)
    return Sender(url, verify=context)


@dataclass
class Balanced:
    """A balancing tier, two gateways, two sinks, one store."""

    balancer: Collector
    gateways: list[Collector]
    sinks: list[Sink]
    sender: Sender


@pytest.fixture
def balanced(binary, certificates, audit_store, tmp_path, backend) -> Iterator[Balanced]:
    sinks = [serving(audit_store, tmp_path, f"sink-{number}") for number in (1, 2)]
    gateways = [
        collector(
            binary,
            f"gateway-{number}",
            files=("gateway.yaml",),
            environment={
                **certificates.environment(),
                **sink.for_collectors(),
                "TRACES_ENDPOINT": backend.endpoint,
            },
            directory=tmp_path,
            listen=GATEWAY,
        )
        for number, sink in enumerate(sinks, 1)
    ]
    ports = {
        name: ", ".join(f"127.0.0.1:{one.ports[variable]}" for one in gateways)
        for name, variable in [
            ("AUDIT_GATEWAYS", "GATEWAY_AUDIT_GRPC"),
            ("TRACES_GATEWAYS", "GATEWAY_GRPC"),
        ]
    }
    balancer = collector(
        binary,
        "balancer",
        files=("loadbalancing.yaml",),
        environment={
            **certificates.environment(),
            **{name: f"[{addresses}]" for name, addresses in ports.items()},
        },
        directory=tmp_path,
        listen=BALANCER,
    )
    with running(*sinks, *gateways, balancer):
        url = balancer.url("BALANCER_AUDIT_HTTP", "https")
        yield Balanced(balancer, gateways, sinks, sender_with(certificates, url))


async def test_several_gateways_and_sinks_store_each_record_once(balanced, audit_store):
    """Both take their share; while one is away its share waits in the balancing tier."""
    balanced.sender.send(60)
    await all_stored_once(audit_store, balanced.sender.acknowledged)
    for sink in balanced.sinks:  # its line is written after the COMMIT that shows the rows
        await eventually(said(sink, '"stored":'), bool)

    balanced.gateways[0].kill()
    balanced.sinks[1].kill()
    balanced.sender.send(30)
    balanced.balancer.restart()
    balanced.sinks[1].start()
    balanced.sender.send(30)
    balanced.gateways[0].start()
    await all_stored_once(audit_store, balanced.sender.acknowledged)


@pytest.fixture(scope="session")
def broker(tmp_path_factory) -> Iterator[Broker]:
    """A single-node Apache Kafka in KRaft mode, with the topic of kafka.yaml."""
    classpath = kafka_classpath()
    made = Broker(classpath, tmp_path_factory.mktemp("kafka"))
    with running(made.process):
        made.create_topic("otel-audit")
        yield made


@dataclass
class Tiers:
    """The tier before Kafka and the one behind it."""

    writer: Collector
    reader: Collector
    sink: Sink
    sender: Sender


@pytest.fixture
def tiers(binary, certificates, audit_store, tmp_path, broker) -> Iterator[Tiers]:
    sink = serving(audit_store, tmp_path)
    kafka = {"AUDIT_KAFKA_BROKERS": f"[127.0.0.1:{broker.port}]"}
    writer = collector(
        binary,
        "writer",
        files=("kafka.yaml",),
        environment={
            **certificates.environment(),
            **kafka,
            "TRACES_ENDPOINT": "http://127.0.0.1:9",  # no traces here
        },
        directory=tmp_path,
        listen=KAFKA_GATEWAY,
    )
    reader = collector(
        binary,
        "reader",
        files=("kafka-to-sink.yaml",),
        environment={
            **kafka,
            **sink.for_collectors(),
        },
        directory=tmp_path,
        listen=KAFKA_READER,
    )
    with running(sink, writer, reader):
        url = writer.url("GATEWAY_AUDIT_HTTP", "https")
        yield Tiers(writer, reader, sink, sender_with(certificates, url))


async def test_kafka_between_two_tiers_loses_nothing(tiers, broker, audit_store):
    """Sink, reader, broker and writer are away in turn."""
    sender = tiers.sender
    sender.send(20)
    await all_stored_once(audit_store, sender.acknowledged, within=90)

    tiers.sink.kill()
    sender.send(20)
    await eventually(said(tiers.reader, "Backing off"), bool)
    tiers.reader.restart()
    tiers.sink.start()
    sender.send(20)
    await all_stored_once(audit_store, sender.acknowledged, within=90)

    broker.process.stop()
    sender.send(20)
    tiers.writer.restart()
    broker.process.start()
    sender.send(20)
    await all_stored_once(audit_store, sender.acknowledged, within=120)


async def test_a_wrong_token_behind_kafka_costs_nothing_but_time(tiers, audit_store, tmp_path):
    """The offset does not move while the sink refuses."""
    token = tmp_path / "sink.token"
    right = token.read_text()
    token.write_text("otas_wrong\n")
    tiers.reader.restart()
    tiers.sender.send(20)
    await eventually(said(tiers.reader, "token is not known"), bool, within=60)
    assert await stored_ids(audit_store) == []
    token.write_text(right)
    await all_stored_once(audit_store, tiers.sender.acknowledged, within=90)
