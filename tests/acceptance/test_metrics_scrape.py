"""Each metric that a dashboard or an alert names is there: in the demo, the sink, a stream, verify."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx
import make_dashboards
import pytest
from ports import free_port

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))  # the demonstration is not installed

from demo.client import make_http  # noqa: E402
from demo.postgres import AUDIT, running_postgres  # noqa: E402
from demo.receiver import running_receiver  # noqa: E402
from demo.server import running_shop  # noqa: E402
from demo.stage import Stage, make_audit_store, open_shop  # noqa: E402

BIN = Path(sys.executable).parent


def prometheus(port: int) -> dict[str, str]:
    return {
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
    }


@contextlib.asynccontextmanager
async def running(*command: str, log: Path, **environment: str) -> AsyncIterator[None]:
    """A command of ours under opentelemetry-instrument."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    more = {"OTEL_TRACES_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            # it would take --config for an option of its own, but for the two dashes
            str(BIN / "opentelemetry-instrument"), "--", str(BIN / "otel-audit"), *command,
            env={**clean, **more, **environment}, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def names_of(port: int, wanted: Mapping[str, object] | set[str]) -> set[str]:
    """The metrics of a scrape, once those that are wanted are there; all that are, at the end."""
    found: set[str] = set()
    async with httpx.AsyncClient(timeout=30) as client:
        for _ in range(500):
            with contextlib.suppress(httpx.TransportError):
                text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
                found = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
                if set(wanted) <= found:
                    break
            await asyncio.sleep(0.2)
    return found


def of(*prefixes: str) -> set[str]:
    return {name for name in make_dashboards.metrics() if name.startswith(prefixes)}


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_every_metric_that_is_named_is_scraped():
    """From the shop, `otel-audit serve --seal`, `stream run` and `verify --metrics`."""
    found: set[str] = set()
    store_wide = of("audit_verify", "audit_store")
    elsewhere = of("audit_sink", "audit_seal", "audit_destination") | store_wide
    with (
        tempfile.TemporaryDirectory(prefix="otel-audit-metrics-") as folder,
        running_postgres() as server,
        running_receiver() as receiver,
    ):
        directory = Path(folder)
        stage = Stage(directory, server, receiver)
        await server.set_up()
        await open_shop(stage)
        await make_audit_store(stage)
        port = free_port()
        settings = stage.settings() | prometheus(port)
        async with running_shop(settings, stage.log) as shop, make_http(shop.url) as http:
            await http.post("/login", json={"email": "nobody@example.com", "password": "x"})
            found |= await names_of(port, make_dashboards.metrics() - elsewhere)
        found |= await of_the_sink(directory, server.dsn(AUDIT))
        found |= await of_a_stream(directory, server.dsn(AUDIT))
        file = directory / "audit.prom"
        verified = await asyncio.create_subprocess_exec(
            str(BIN / "otel-audit"), "verify", "--dsn", server.dsn(AUDIT), "--metrics", str(file),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await verified.communicate()
        assert file.exists(), said.decode()
        found |= set(re.findall(r"^# TYPE (\S+) gauge$", file.read_text(), re.MULTILINE))

    assert make_dashboards.metrics() - found == set()


async def of_the_sink(directory: Path, dsn: str) -> set[str]:
    """What a sink that seals says, once it has refused a request and set a record aside."""
    port, served = free_port(), free_port()
    key = directory / "key"
    made = await asyncio.create_subprocess_exec(
        str(BIN / "otel-audit"), "keygen", str(key), "--name", "audit.example.com/log",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await made.communicate()
    assert key.exists(), said.decode()
    settings = prometheus(port) | {
        "OTEL_AUDIT_DSN": dsn, "OTEL_AUDIT_SIGNING_KEY_FILE": str(key),
        "OTEL_AUDIT_ANCHOR": f"file:{directory / 'anchor'}",
    }  # fmt: skip
    options = ("serve", "--seal", "--insecure-no-auth", "--port", str(served))
    async with running(*options, log=directory / "sink.log", **settings):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served}", timeout=60) as client:
            for _ in range(500):
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get("/health")).status_code == 200:
                        break
                await asyncio.sleep(0.2)
            bad = {"resourceLogs": [{"scopeLogs": [{"logRecords": [
                {"timeUnixNano": "1790000000000000000", "eventName": "x.y"}]}]}]}  # fmt: skip
            await client.post("/v1/audit", json=bad)
            await client.post(
                "/v1/audit", content=b"{", headers={"content-type": "application/json"}
            )
        return await names_of(port, of("audit_sink", "audit_seal"))


async def of_a_stream(directory: Path, dsn: str) -> set[str]:
    """What a stream into a file says."""
    port = free_port()
    config = directory / "streams.toml"
    config.write_text(f'[streams.siem]\nkind = "file"\npath = "{directory / "siem.ndjson"}"\n')
    options = ("stream", "run", "--config", str(config), "--dsn", dsn)
    async with running(*options, log=directory / "stream.log", **prometheus(port)):
        found = await names_of(port, of("audit_destination"))
    assert found, (directory / "stream.log").read_text()
    return found
