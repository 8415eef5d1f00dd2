"""An application that knows nothing of us, run by opentelemetry-instrument."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from otel_audit_postgres import init
from servers import uvicorn

APP = """
from fastapi import FastAPI

app = FastAPI()

@app.get("/up")
def up():
    return "up"

@app.post("/orders", status_code=201)
def create(order: dict):
    return {"id": 1, **order}

@app.post("/reports", status_code=202)
def report():
    from opentelemetry import trace
    told = {"audit.flagged": True, "audit.actor.id": "reporter", "audit.actor.type": "service",
            "audit.action": "EXECUTE", "audit.outcome": "success"}
    with trace.get_tracer("shop").start_as_current_span("report.made", attributes=told):
        pass
    with trace.get_tracer("shop").start_as_current_span("bad", attributes={"audit.flagged": True}):
        pass

@app.post("/orders/{order_id}/die")
def die(order_id: int):
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
"""

UNREACHABLE = "postgresql://nobody:hunter2@127.0.0.1:1/audit"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


async def rows_of(store: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(store)
    try:
        return await connection.fetch("SELECT * FROM audit.audit_logs ORDER BY id")
    finally:
        await connection.close()


def place_orders(url: str, count: int) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        for _ in range(count):
            assert client.post("/orders", json={"item": "tea"}).status_code == 201


async def eventually(look: Callable[[], Awaitable[Any]], wanted: Callable[[Any], bool]) -> Any:
    deadline = asyncio.get_running_loop().time() + 60
    while not wanted(found := await look()):
        assert asyncio.get_running_loop().time() < deadline, found
        await asyncio.sleep(0.1)
    return found


class TestZeroCode:
    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
    async def test_every_action_is_a_row_after_an_orderly_stop(self, directory, audit_store, how):
        """Requests are rows; what still waits when the server is told to stop is delivered."""
        settings = {"OTEL_AUDIT_DSN": audit_store, "OTEL_AUDIT_BATCH_INTERVAL": "60"}
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            place_orders(server.url, 20)
            assert await rows_of(audit_store) == []
            server.stop(how)
        rows = await rows_of(audit_store)
        assert [row["event_name"] for row in rows] == ["order.created"] * 20
        assert sorted(row["sequence_number"] for row in rows) == list(range(1, 21))

    async def test_every_worker_process_delivers(self, directory, audit_store):
        """Under --workers each process is a producer of its own, and none loses a record."""
        settings = {"OTEL_AUDIT_DSN": audit_store}
        # a busy machine may start a worker more slowly than uvicorn expects by itself
        options = ("--workers", "2", "--timeout-worker-healthcheck", "60")
        with uvicorn(directory, settings, *options) as server:
            server.wait_until_up()
            place_orders(server.url, 40)
            server.stop()
        assert len(await rows_of(audit_store)) == 40

    @pytest.mark.parametrize(
        "tracing",
        [
            {"OTEL_TRACES_SAMPLER": "always_off"},
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
            {"OTEL_SDK_DISABLED": "true"},
        ],
    )
    async def test_what_is_not_sampled_is_a_row_all_the_same(self, directory, audit_store, tracing):
        """Sampled away, sampled at 1 %, or tracing switched off: every action is a row."""
        with uvicorn(directory, {"OTEL_AUDIT_DSN": audit_store, **tracing}) as server:
            server.wait_until_up()
            place_orders(server.url, 20)
            server.stop()
        assert len(await rows_of(audit_store)) == 20

    async def test_contribs_instrumentors_may_be_disabled(self, directory, audit_store):
        """Disabling contrib's FastAPI instrumentation leaves auditing on."""
        settings = {
            "OTEL_AUDIT_DSN": audit_store,
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "fastapi,sqlalchemy",
        }
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            place_orders(server.url, 1)
            server.stop()
        assert len(await rows_of(audit_store)) == 1

    @pytest.mark.parametrize("sampler", ["always_off", "parentbased_always_off", "always_on"])
    async def test_a_flagged_span_of_the_application_is_a_row(
        self, directory, audit_store, sampler
    ):
        """Whatever is sampled: a row for the request and one for the span that the app flagged."""
        settings = {"OTEL_AUDIT_DSN": audit_store, "OTEL_TRACES_SAMPLER": sampler}
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            assert httpx.post(f"{server.url}/reports", timeout=60).status_code == 202
            server.stop()
            assert "a flagged span goes to quarantine" in server.output.lower()
        flagged, request = sorted(await rows_of(audit_store), key=lambda row: row["actor_id"])[::-1]
        assert (flagged["event_name"], flagged["actor_id"]) == ("report.made", "reporter")
        assert flagged["trace_id"] == request["trace_id"]
        assert {flagged["sequence_number"], request["sequence_number"]} == {1, 2}

    @pytest.mark.parametrize(
        "tracing",
        [
            {
                "OTEL_TRACES_SAMPLER": "traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": "0.01",
                "OTEL_ATTRIBUTE_COUNT_LIMIT": "2",
                "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "4",
                "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS": "orders",
            },
            {"OTEL_SDK_DISABLED": "true"},
        ],
        ids=["limits", "disabled"],
    )
    async def test_no_setting_of_tracing_takes_anything_away(self, directory, audit_store, tracing):
        """Sampling, limits, excluded URLs, a disabled SDK: each record is there, and whole."""
        with uvicorn(directory, {"OTEL_AUDIT_DSN": audit_store, **tracing}) as server:
            server.wait_until_up()
            for number in range(5):
                order = {"item": "tea" * 50, "number": number}
                httpx.post(
                    f"{server.url}/orders", json=order, headers={"User-Agent": "till/7"}, timeout=60
                )
            server.stop()
        rows = await rows_of(audit_store)
        assert len(rows) == 5
        for row in rows:
            assert "tea" * 50 in row["payload"]
            assert (row["user_agent"], row["http_route"]) == ("till/7", "/orders")

    async def test_without_settings_nothing_is_audited_and_it_says_so(self, directory):
        """Installed but not configured: the application runs as ever, and a line says so."""
        with uvicorn(directory, {}) as server:
            server.wait_until_up()
            assert "x-request-id" not in httpx.get(f"{server.url}/up", timeout=60).headers
            server.stop()
            assert "NOT AUDITED: OTEL_AUDIT_DSN: missing" in server.output

    async def test_auditing_may_be_switched_off(self, directory, audit_store):
        """OTEL_AUDIT_ENABLED=false leaves no trace of us."""
        settings = {"OTEL_AUDIT_DSN": audit_store, "OTEL_AUDIT_ENABLED": "false"}
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            assert "x-request-id" not in httpx.get(f"{server.url}/up", timeout=60).headers
            server.stop()
            assert "AUDITED" not in server.output
        assert await rows_of(audit_store) == []

    async def test_the_exporter_may_be_named_beside_others(self, directory, audit_store):
        """OTEL_TRACES_EXPORTER=…,audit_postgres works, and is told to be best effort only."""
        settings = {
            "OTEL_AUDIT_DSN": audit_store,
            "OTEL_TRACES_EXPORTER": "console,audit_postgres",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            place_orders(server.url, 1)
            # told to stop, the server ends without a last export
            span = '"name": "POST /orders"'
            await eventually(lambda: asyncio.sleep(0, server.output), lambda seen: span in seen)
            server.stop()
            assert "best effort" in server.output
        assert len(await rows_of(audit_store)) == 1


WRONG = [
    ({"OTEL_AUDIT_DSN": "mysql://db/audit"}, "OTEL_AUDIT_DSN"),
    ({"OTEL_AUDIT_DNS": "postgresql://db/audit"}, "OTEL_AUDIT_DNS"),
    ({"OTEL_AUDIT_DSN": UNREACHABLE, "OTEL_AUDIT_BODY_LIMIT": "lots"}, "OTEL_AUDIT_BODY_LIMIT"),
    ({"OTEL_AUDIT_DSN": UNREACHABLE, "OTEL_AUDIT_CONFIG_FILE": "no.toml"}, "CONFIG_FILE"),
]


class TestFaults:
    async def test_a_store_that_is_not_set_up_is_told_from_not_auditing(self, directory, database):
        """No schema yet: the log says that records are kept, and they are there once it is."""
        settings = {"OTEL_AUDIT_DSN": database, "OTEL_AUDIT_SHUTDOWN_TIMEOUT": "0.5"}
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            place_orders(server.url, 2)
            told = "AUDIT RECORDS DO NOT REACH THE STORE"
            await eventually(lambda: asyncio.sleep(0, server.output), lambda seen: told in seen)
            server.stop()
            assert "they are kept in the spool until that is fixed" in server.output
            assert "otel-audit init" in server.output
            assert "NOT AUDITED" not in server.output
        await init(database)
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            await eventually(lambda: rows_of(database), lambda rows: len(rows) == 2)
            server.stop()

    async def test_an_interrupt_while_the_store_is_away_is_no_second_fault(self, directory):
        """Ctrl-C: what is kept is said; nothing of the interpreter's end looks like a loss."""
        settings = {
            # a name, which is to be looked up in a thread
            "OTEL_AUDIT_DSN": UNREACHABLE.replace("127.0.0.1", "localhost"),
            "OTEL_AUDIT_SHUTDOWN_TIMEOUT": "2",
        }
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            place_orders(server.url, 2)
            server.stop(signal.SIGINT)
            assert "records are kept in" in server.output
            assert "no connection to the server" in server.output
            assert "not on disk" not in server.output
            assert "RuntimeError" not in server.output
            assert "Traceback" not in server.output.partition("KeyboardInterrupt")[0]

    @pytest.mark.parametrize(("settings", "named"), WRONG)
    async def test_a_wrong_setting_leaves_the_application_running_and_is_named(
        self, directory, settings, named
    ):
        """Not required: the application starts, unaudited, and says loudly why."""
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            server.stop()
            assert "THIS APPLICATION IS NOT AUDITED" in server.output
            assert named in server.output

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            *WRONG,
            ({}, "OTEL_AUDIT_DSN"),
            ({"OTEL_AUDIT_DSN": UNREACHABLE}, "OTEL_AUDIT_DSN"),
            (
                {
                    "OTEL_AUDIT_DSN": UNREACHABLE,
                    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "otel_audit",
                },
                "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS",
            ),
        ],
    )
    async def test_required_refuses_to_start(self, directory, settings, named):
        """Required: the process ends at once, says why, and shows no password."""
        with uvicorn(directory, {**settings, "OTEL_AUDIT_REQUIRED": "true"}) as server:
            assert server.process.wait(60) == 78
            assert named in server.output
            assert "refusing to start" in server.output
            assert "hunter2" not in server.output
            assert "Traceback" not in server.output

    @pytest.mark.allow_errors
    @pytest.mark.parametrize("required", ["true", "perhaps", "false"])
    async def test_a_package_that_is_broken_is_said_in_one_line(self, directory, required):
        """What cannot even be imported is not passed over: said, and refused if required."""
        broken = directory / "broken"
        broken.mkdir()
        (broken / "msgspec.py").write_text("raise RuntimeError('password=hunter2')")
        settings = {
            "OTEL_AUDIT_DSN": UNREACHABLE,
            "OTEL_AUDIT_REQUIRED": required,
            "PYTHONPATH": str(broken),
        }
        with uvicorn(directory, settings) as server:
            if required == "false":
                server.wait_until_up()
                server.stop()
            else:
                assert server.process.wait(60) == 78
            (line,) = [one for one in server.output.splitlines() if "NOT AUDITED" in one]
            assert "auditing could not be started [RuntimeError at" in line
            assert "hunter2" not in server.output
            assert "Traceback" not in server.output

    @pytest.mark.parametrize("text", ["required = true\nbody_limt = 1", "required = true\ndsn ="])
    async def test_required_in_a_file_that_is_wrong_counts(self, directory, text):
        """A file that says ``required`` and cannot be used otherwise refuses to start, too."""
        (directory / "audit.toml").write_text(text)
        with uvicorn(directory, {"OTEL_AUDIT_CONFIG_FILE": "audit.toml"}) as server:
            assert server.process.wait(60) == 78
            assert "NOT AUDITED" in server.output
            assert "Traceback" not in server.output

    @pytest.mark.parametrize("required", ["true", "false"])
    async def test_a_missing_schema_names_the_remedy(self, directory, database, required):
        """A database without the schema: refuse if required, else start and say what to run."""
        settings = {"OTEL_AUDIT_DSN": database, "OTEL_AUDIT_REQUIRED": required}
        with uvicorn(directory, settings) as server:
            if required == "true":
                assert server.process.wait(60) == 78
            else:
                server.wait_until_up()
                place_orders(server.url, 1)
                server.stop()
            assert "otel-audit init" in server.output

    async def test_what_an_unreachable_store_missed_is_delivered_by_the_next_start(
        self, directory, audit_store
    ):
        """Unreachable: the application answers, records are kept, and delivered when it is back."""
        named = {"OTEL_SERVICE_NAME": "shop"}
        away = {"OTEL_AUDIT_DSN": UNREACHABLE, "OTEL_AUDIT_SHUTDOWN_TIMEOUT": "0.5"}
        with uvicorn(directory, named | away) as server:
            server.wait_until_up()
            place_orders(server.url, 3)
            await eventually(
                lambda: asyncio.sleep(0, server.output), lambda seen: "Audit records wait" in seen
            )
            server.stop()
            assert "hunter2" not in server.output
            assert "Audit records wait" in server.output
            assert "3 audit records are kept in" in server.output
        with uvicorn(directory, named | {"OTEL_AUDIT_DSN": audit_store}) as server:
            server.wait_until_up()
            rows = await eventually(lambda: rows_of(audit_store), lambda rows: len(rows) == 3)
            server.stop()
        assert {row["outcome"] for row in rows} == {"success"}

    async def test_a_killed_server_loses_nothing_that_was_answered(self, directory, audit_store):
        """SIGKILL before anything was delivered: the next start delivers every answered action."""
        settings = {"OTEL_AUDIT_DSN": audit_store, "OTEL_AUDIT_BATCH_INTERVAL": "60"}
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            place_orders(server.url, 10)
            server.stop(signal.SIGKILL)
        assert await rows_of(audit_store) == []
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            rows = await eventually(lambda: rows_of(audit_store), lambda rows: len(rows) == 10)
            server.stop()
        assert {row["event_name"] for row in rows} == {"order.created"}

    async def test_what_is_cut_down_in_the_middle_is_there_with_outcome_unknown(
        self, directory, audit_store
    ):
        """SIGKILL inside a handler: the action is in the store, and its outcome is not invented."""
        settings = {"OTEL_AUDIT_DSN": audit_store}
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            with pytest.raises(httpx.TransportError):
                httpx.post(f"{server.url}/orders/7/die")
            server.process.wait(60)
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            (row,) = await eventually(lambda: rows_of(audit_store), bool)
            server.stop()
        assert (row["outcome"], row["phase"]) == ("unknown", "started")
        assert (row["http_method"], row["url_path"]) == ("POST", "/orders/7/die")

    async def test_a_full_spool_refuses_what_it_cannot_record(self, directory):
        """At the spool's bound an audited request is refused; what is not audited goes on."""
        settings = {
            "OTEL_AUDIT_DSN": UNREACHABLE,
            "OTEL_AUDIT_SHUTDOWN_TIMEOUT": "0.5",
            "OTEL_AUDIT_SPOOL_MAX_BYTES": "65536",
            "OTEL_AUDIT_SPOOL_SEGMENT_BYTES": "8192",
        }
        with uvicorn(directory, settings) as server:
            server.wait_until_up()
            with httpx.Client(base_url=server.url, timeout=60) as client:
                answers = [client.post("/orders", json={"item": "t" * 500}) for _ in range(100)]
                assert client.get("/up").status_code == 200
            server.stop()
        refused = [answer for answer in answers if answer.status_code == 503]
        assert refused
        assert refused[0].headers["content-type"] == "application/problem+json"
        assert "retry-after" in refused[0].headers
        assert {answer.status_code for answer in answers} == {201, 503}
