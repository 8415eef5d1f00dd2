"""A real Collector for the tests, and the pipeline that collector-config/ describes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from collector.collectors import (
    AGENT,
    GATEWAY,
    REPOSITORY,
    Certificates,
    Collector,
    Sink,
    collector,
    make_certificates,
    running,
    serving,
)

from demo.receiver import Receiver, running_receiver

HOW_TO_GET_IT = (
    "no OpenTelemetry Collector here: `make collector` builds it (it needs Go and some minutes), "
    "or name one with the same components in TEST_COLLECTOR"
)


@pytest.fixture(scope="session")
def binary() -> Path:
    """The Collector of builder-config.yaml."""
    given = os.environ.get("TEST_COLLECTOR")
    command = [str(REPOSITORY / ".ci" / "collector"), "--path"]
    found = Path(
        given or subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    )
    if not found.exists():
        if os.environ.get("TEST_COLLECTOR_REQUIRED"):
            pytest.fail(HOW_TO_GET_IT)
        pytest.skip(HOW_TO_GET_IT)
    return found


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """What agents and gateways know each other by."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def backend() -> Iterator[Receiver]:
    """The usual trace backend."""
    with running_receiver() as receiver:
        yield receiver


@dataclass
class Pipeline:
    """Agent, gateway and sink, as the README's drawing has them; the traces end in `backend`."""

    agent: Collector
    gateway: Collector
    sink: Sink
    backend: Receiver
    store: str

    @property
    def url(self) -> str:
        """Where an application sends."""
        return self.agent.url("AGENT_HTTP")


@pytest.fixture
def pipeline(
    binary: Path, certificates: Certificates, audit_store: str, tmp_path: Path, backend: Receiver
) -> Callable[..., AbstractContextManager[Pipeline]]:
    """Make a pipeline: `with pipeline() as it`; what is asked for may differ from the files."""

    @contextmanager
    def make(
        *overlays: str,
        agent: Mapping[str, str] | None = None,
        gateway: Mapping[str, str] | None = None,
        store: str = audit_store,
    ) -> Iterator[Pipeline]:
        sink = serving(store, tmp_path)

        def tier(
            name: str, files: tuple[str, ...], listen: tuple[str, ...], environment: dict[str, str]
        ) -> Collector:
            whole = {**certificates.environment(), **environment}
            return collector(
                binary, name, files=files, environment=whole, directory=tmp_path, listen=listen
            )

        below = tier(
            "gateway",
            ("gateway.yaml", *overlays),
            GATEWAY,
            {**sink.for_collectors(), "TRACES_ENDPOINT": backend.endpoint, **(gateway or {})},
        )
        above = tier(
            "agent",
            ("agent.yaml",),
            AGENT,
            {
                "AUDIT_GATEWAY_ENDPOINT": below.url("GATEWAY_AUDIT_HTTP", "https"),
                "TRACES_ENDPOINT": below.url("GATEWAY_HTTP", "https"),
                **(agent or {}),
            },
        )
        with running(sink, below, above):
            yield Pipeline(above, below, sink, backend, store)

    return make
