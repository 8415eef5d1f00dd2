"""A real Apache Kafka, from its published jars."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs
import pytest
from collector.collectors import Process
from ports import free_port

VERSION = "4.1.0"
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>tests</groupId><artifactId>broker</artifactId><version>1</version><dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
<version>{VERSION}</version></dependency>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId>
<version>{VERSION}</version></dependency></dependencies></project>
"""
_PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={directory}/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
"""


def kafka_classpath() -> str:
    """The jars, fetched once with Maven into the user's cache."""
    if shutil.which("java") is None or shutil.which("mvn") is None:
        if os.environ.get("TEST_COLLECTOR_REQUIRED"):
            pytest.fail("java and mvn are needed")
        pytest.skip("a Kafka broker needs java 17 and mvn: apt-get install openjdk-17-jre maven")
    directory = platformdirs.user_cache_path("otel-audit") / f"kafka-{VERSION}"
    directory.mkdir(parents=True, exist_ok=True)
    listing = directory / "classpath"
    # two that test side by side must not fetch into Maven's cache at once
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not listing.exists():
            (directory / "pom.xml").write_text(_POM)
            target = directory / f"classpath.{uuid.uuid4().hex}"
            output = f"-Dmdep.outputFile={target}"
            command = ["mvn", "-q", "-B", "dependency:build-classpath", output]
            subprocess.run(command, cwd=directory, check=True, timeout=300)
            target.replace(listing)
    return listing.read_text()


@dataclass
class Broker:
    """A single node that is broker and controller; it is formatted, and not started."""

    classpath: str
    directory: Path
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.properties = self.directory / "server.properties"
        self.properties.write_text(
            _PROPERTIES.format(port=self.port, controller=free_port(), directory=self.directory)
        )
        cluster = "q1Sh-9_ISia_zwGINzRvyQ"
        self._java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self.properties))
        self.process = BrokerProcess(
            "kafka",
            [*self._command("kafka.Kafka", heap="512m"), str(self.properties)],
            {"PATH": os.environ["PATH"]},
            self.directory,
            f"127.0.0.1:{self.port}",
        )

    def create_topic(self, name: str) -> None:
        """Make a topic as kafka.yaml says."""
        self._java(
            "org.apache.kafka.tools.TopicCommand",
            *("--bootstrap-server", f"127.0.0.1:{self.port}", "--create", "--topic", name),
            *("--partitions", "2", "--replication-factor", "1"),
            *("--config", "max.message.bytes=25165824"),
        )

    def _java(self, main: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._command(main), *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _command(self, main: str, heap: str = "256m") -> list[str]:
        return ["java", f"-Xmx{heap}", "-XX:+UseSerialGC", "-cp", self.classpath, main]


class BrokerProcess(Process):
    """A broker is up when it takes connections."""

    def wait_until_up(self, timeout: float = 90.0) -> None:
        assert self.process is not None
        host, _, port = self.up_at.partition(":")
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.output
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError(f"no broker in {timeout} s:\n{self.output}")
