"""Secrets in every position, sent to a real server: none may be found wherever we write."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import secrets
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx
import pytest
import websockets.sync.client
from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from servers import Server, uvicorn

from demo.receiver import Receiver, running_receiver

pytestmark = pytest.mark.slow

INNOCENT = "two-pots-of-tea"


def luhn(digits: str) -> str:
    doubled = [int(d) * (2 if place % 2 == 0 else 1) for place, d in enumerate(reversed(digits))]
    return digits + str(-sum(n // 10 + n % 10 for n in doubled) % 10)


def iban() -> str:
    account = "".join(secrets.choice("123456789") for _ in range(18))
    return f"DE{98 - int(f'{account}131400') % 97:02}{account}"


def any_jwt() -> str:
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": secrets.token_hex(8)})
    spelled = [
        base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts
    ]
    return ".".join([*spelled, secrets.token_urlsafe(32)])


def word() -> str:
    return f"Canary{secrets.token_hex(10)}"


def digits(count: int) -> str:
    return "".join(secrets.choice("123456789") for _ in range(count))


def post(path: str, **options: Any) -> Callable[[httpx.Client, str], Any]:
    """Post to a path; in the options every ``SECRET`` is the canary."""

    def send(client: httpx.Client, canary: str) -> Any:
        given = json.loads(json.dumps(options).replace("SECRET", canary))
        method = given.pop("method", "POST")
        return client.request(method, path.replace("SECRET", canary), **given)

    return send


def compressed(client: httpx.Client, canary: str) -> Any:
    body = gzip.compress(json.dumps({"password": canary, "note": INNOCENT}).encode())
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    return client.post("/anything", content=body, headers=headers)


def beyond_the_cap(client: httpx.Client, canary: str) -> Any:
    filler = [{"note": INNOCENT, "password": canary}] * 400
    return client.post("/anything", json={"lines": filler})


def at_the_cut(client: httpx.Client, canary: str) -> Any:
    for room in range(2, 40, 4):
        start = f'{{"note": "{"x" * (10_000 - 30 - len(canary) + room)}", "password": "'
        client.post("/anything", content=f'{start}{canary}"}}', headers=JSON)


def multipart(client: httpx.Client, canary: str) -> Any:
    file = ("tea.txt", f"{canary} {INNOCENT}".encode() * 10, "text/plain")
    return client.post("/anything", data={"password": canary}, files={"upload": file})


def socket(client: httpx.Client, canary: str) -> Any:
    url = str(client.base_url).replace("http", "ws") + f"/feed?token={canary}&page=1"
    with websockets.sync.client.connect(url, additional_headers={"cookie": f"a={canary}"}) as feed:
        feed.send(json.dumps({"password": canary, "note": INNOCENT}))
        return feed.recv()


def in_text(path: str = "/anything") -> Callable[[httpx.Client, str], Any]:
    return post(path, json={"note": f"{INNOCENT} SECRET thanks", "list": [["SECRET"]]})


JSON = {"content-type": "application/json"}
HEADERS = ("authorization", "cookie", "x-api-key", "x-session-token", "referer", "x-note")

POSITIONS: dict[str, tuple[Callable[[], str], Callable[[httpx.Client, str], Any]]] = {
    "key at the top": (word, post("/anything", json={"password": "SECRET", "note": INNOCENT})),
    "key styles": (word, post("/anything", json={
        "creditCard": "SECRET", "credit_card": "SECRET", "CREDIT-CARD": "SECRET",
        "passwd": "SECRET", "apiKey": "SECRET", "client_secret": "SECRET"})),
    "deep key": (word, post("/anything", json={"a": {"b": [{"c": {"d": {"secret": "SECRET"}}}]}})),
    "list of lists": (word, post("/anything", json=[[[{"password": ["SECRET", ["SECRET"]]}]]])),
    "JSON in a string": (word, post("/anything", json={"payload": '{"password": "SECRET"}'})),
    "JSON in JSON in a string": (word, post("/anything", json={
        "payload": json.dumps({"more": json.dumps({"password": "SECRET"})})})),
    "query": (word, post("/anything?page=1&token=SECRET&pass%77ord=SECRET")),
    "bearer": (word, post("/anything", headers={"authorization": "Bearer SECRET"})),
    "basic": (word, post("/anything", headers={"authorization": "Basic SECRET"})),
    "API key's header": (word, post("/anything", headers={"x-api-key": "SECRET"})),
    "unknown header": (word, post("/anything", headers={"x-session-token": "SECRET"})),
    "text of a header": (word, post("/anything", headers={"x-note": "password=SECRET"})),
    "referer": (word, post("/anything", headers={
        "referer": "https://bob:SECRET@example.com/?token=SECRET"})),
    "user agent": (word, post("/anything", headers={"user-agent": "curl password=SECRET"})),
    "cookie": (word, post("/anything", headers={"cookie": "session=SECRET; theme=dark"})),
    "form": (word, post("/anything", data={"password": "SECRET", "note": INNOCENT})),
    "multipart": (word, multipart),
    "URL with credentials": (word, post("/anything", json={
        "callback": "https://bob:SECRET@example.com/hook"})),
    "DSN": (word, post("/anything", json={"dsn": "postgresql://bob:SECRET@db/shop"})),
    "compressed": (word, compressed),
    "beyond the cap": (word, beyond_the_cap),
    "at the cut": (word, at_the_cut),
    "invalid JSON": (word, post("/anything", content='{"password": "SECRET"', headers=JSON)),
    "plain text": (word, post("/anything", content="password=SECRET",
                              headers={"content-type": "text/plain"})),
    "no content type": (word, post("/anything", content='{"password": "SECRET"}')),
    "response and cookie": (word, post("/answers", json={"password": "SECRET"})),
    "exception": (word, post("/raises", json={"password": "SECRET"})),
    "validation error": (word, post("/login", json={"password": "SECRET"})),
    "SecretStr": (word, post("/login", json={"name": INNOCENT, "password": "SECRET"})),
    "metadata": (word, post("/metadata", json={"password": "SECRET"})),
    "ORM values": (word, post("/customers", json={"password": "SECRET"})),
    "SQL parameters": (word, post("/customers", method="PUT", json={"password": "SECRET"})),
    "database error": (word, post("/customers", method="PATCH", json={"password": "SECRET"})),
    "path": (word, post("/password-reset/SECRET")),
    "path of no route": (word, post("/no/such/reset/SECRET")),
    "socket": (word, socket),
    "identity": (any_jwt, post("/identity", json={"password": "SECRET"})),
    "request id": (lambda: "ghp_" + secrets.token_hex(18),
                   post("/anything", headers={"x-request-id": "SECRET"})),
    "tenant's header": (any_jwt, post("/anything", headers={"x-tenant": "SECRET"})),
    "card": (lambda: luhn(f"4{digits(14)}"), in_text()),
    "SSN": (lambda: f"{secrets.randbelow(600) + 100}-{secrets.randbelow(89) + 10}-{digits(4)}",
            in_text()),
    "IBAN": (iban, in_text()),
    "JWT": (any_jwt, in_text()),
    "AWS key": (lambda: "AKIA" + secrets.token_hex(8).upper(), in_text()),
    "GitHub token": (lambda: "ghp_" + secrets.token_hex(18), in_text()),
    "Stripe key": (lambda: "sk_live_" + secrets.token_hex(12), in_text()),
    "private key": (lambda: secrets.token_hex(32), post("/anything", json={
        "note": "-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----"})),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What one run of the application has left, place by place."""

    canaries: dict[str, str]
    places: dict[str, bytes]
    rows: list[asyncpg.Record]


@pytest.fixture(scope="module", params=["full", "summary"])
def leaked(request, postgres, audit_template, tmp_path_factory) -> Run:
    """Send every canary once, to an app whose spans and metrics go to a collector of its own too; look at the spool while it holds all, then at all the rest."""
    directory = tmp_path_factory.mktemp("leaky")
    shutil.copy(Path(__file__).parent / "leaky_app.py", directory / "app.py")
    store, shop = (f"{kind}_{uuid.uuid4().hex[:8]}" for kind in ("store", "shop"))
    wait_for(postgres.execute(f"CREATE DATABASE {store} TEMPLATE {audit_template}",
                              f"CREATE DATABASE {shop}"))  # fmt: skip
    settings = {
        "APP_DSN": postgres.dsn(shop).replace("postgresql://", "postgresql+asyncpg://"),
        "OTEL_TRACES_EXPORTER": "console,otlp",
        "OTEL_METRICS_EXPORTER": "console",
        "OTEL_METRIC_EXPORT_INTERVAL": "300",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "PYTHONUNBUFFERED": "1",
        "OTEL_AUDIT_DSN": postgres.dsn(store),
        "OTEL_AUDIT_BATCH_INTERVAL": "60",
        "OTEL_AUDIT_SPAN_PAYLOAD": request.param,
        "OTEL_AUDIT_CAPTURE_SOCKET_MESSAGES": "true",
        "OTEL_AUDIT_TENANT_HEADER": "x-tenant",
        "OTEL_AUDIT_REQUEST_LOG": "true",
        "OTEL_AUDIT_CAPTURE_HEADERS": ",".join(HEADERS),
        "OTEL_AUDIT_API_KEY_HEADER": "x-api-key",
        "OTEL_AUDIT_SESSION_COOKIE": "session",
        "OTEL_AUDIT_HMAC_KEY": "a key of the tests",
        "OTEL_AUDIT_JWT_KEY": "a key of the tests that is long enough",
        "OTEL_AUDIT_JWT_ALGORITHMS": "HS256",
    }
    canaries = {name: make() for name, (make, _) in POSITIONS.items()}
    # what uvicorn itself says of requests and exceptions is not ours to redact
    quiet = ("--no-access-log", "--log-level", "critical")
    with running_receiver() as collector, ExitStack() as stack:
        settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.endpoint
        # one starts as users start it: auto-instrumentation comes before the framework then
        forked = request.param != "summary"
        server = stack.enter_context(uvicorn(directory, settings, *quiet, forked=forked))
        server.wait_until_up()
        one_each = httpx.Limits(max_keepalive_connections=0)
        answers: list[Any] = []
        with httpx.Client(base_url=server.url, timeout=30, limits=one_each) as client:
            for name, (_, send) in POSITIONS.items():
                answers.append(send(client, canaries[name]))
        # the spans' and metrics' own exporters are no concern of an orderly stop
        wait_for(exported_all(server, collector))
        spool = b"".join(p.read_bytes() for p in (directory / "spool").rglob("*") if p.is_file())
        server.stop()
        logs, spans, metrics = split(server.output)
        exported = "\n".join(map(own_parts, collector.received))
    tables, rows = wait_for(everything(postgres.dsn(store)))
    pages = [f"{a.headers}{a.text}" for a in answers if getattr(a, "status_code", 0) >= 500]
    places = {
        "spool": spool,
        "database": tables,
        "logs": logs.encode(),
        "spans": spans.encode(),
        "collector": exported.encode(),
        "metrics": metrics.encode(),
        "error pages": "\n".join(pages).encode(),
    }
    return Run(canaries, places, rows)


def wait_for(coroutine: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


async def exported_all(server: Server, collector: Receiver) -> None:
    """Metrics were exported twice since, and no more spans come."""
    wanted, last = server.output.count('"resource_metrics"') + 2, -1
    async with asyncio.timeout(60):
        while server.output.count('"resource_metrics"') < wanted or len(collector.received) != last:
            last = len(collector.received)
            await asyncio.sleep(0.3)  # longer than spans wait


async def everything(dsn: str) -> tuple[bytes, list[asyncpg.Record]]:
    """Every column of every table outside of the catalog, as text; and the audit rows."""
    connection = await asyncpg.connect(dsn)
    try:
        tables = await connection.fetch(
            "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables "
            "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        found = [
            row[0]
            for table in tables
            for row in await connection.fetch(f"SELECT t::text FROM {table['name']} AS t")
        ]
        rows = await connection.fetch("SELECT * FROM audit.audit_logs")
        return "\n".join(found).encode(), rows
    finally:
        await connection.close()


OTHERS = (
    "http.",
    "url.",
    "user_agent.",
    "net.",
    "server.",
    "client.",
    "network.",
    "db.",
    "exception.",
)


def split(output: str) -> tuple[str, str, str]:
    """Part what was printed into log lines, spans, metrics; of spans, leave out what others set."""
    decoder, logs, spans, metrics, at = json.JSONDecoder(), [], [], [], 0
    while at < len(output):
        if output.startswith("{\n", at):
            found, at = decoder.raw_decode(output, at)
            if "resource_metrics" in found:
                metrics.append(json.dumps(found))
                continue
            own = {k: v for k, v in found["attributes"].items() if not k.startswith(OTHERS)}
            spans.append(json.dumps({**found, "attributes": own, "events": [], "status": {}}))
            continue
        line, _, _ = output[at:].partition("\n")
        logs.append(line)
        at += len(line) + 1
    return "\n".join(logs), "\n".join(spans), "\n".join(metrics)


def own_parts(received: bytes) -> str:
    """Spell what a collector got, without what others set on the spans."""
    request = ExportTraceServiceRequest.FromString(received)
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                own = [a for a in span.attributes if not a.key.startswith(OTHERS)]
                for name in ("attributes", "events", "status"):
                    span.ClearField(name)
                span.attributes.extend(own)
    return MessageToJson(request, ensure_ascii=False)


def forms(canary: str) -> Iterator[bytes]:
    """How a secret might be spelled: in clear, coded, cut, or plainly hashed."""
    clear = canary.encode()
    yield clear
    yield clear[: len(clear) * 3 // 4]
    yield quote(canary, safe="").encode()
    yield clear.replace(b"-", b"")
    yield base64.b64encode(clear).rstrip(b"=")
    yield clear.hex().encode()
    for algorithm in ("md5", "sha1", "sha256"):
        yield hashlib.new(algorithm, clear).hexdigest().encode()


class TestCanaries:
    @pytest.mark.parametrize("position", POSITIONS)
    def test_none_is_found_anywhere(self, leaked, position):
        """Not in a column or payload, not in the spool, not on a span, not in a log line."""
        canary = leaked.canaries[position]
        found = [
            place
            for place, data in leaked.places.items()
            if any(form in data for form in forms(canary))
        ]
        assert found == []

    @pytest.mark.parametrize(
        ("place", "trace"),
        [("spool", INNOCENT), ("database", INNOCENT), ("spans", "audit.event.name"),
         ("collector", "audit.event.name"), ("metrics", "audit.records.emitted"),
         ("error pages", "Internal Server Error")],
    )  # fmt: skip
    def test_what_is_innocent_is_there(self, leaked, place, trace):
        """Each place was really written to, and keeps what is no secret."""
        assert trace.encode() in leaked.places[place]

    @pytest.mark.parametrize("place", ["spans", "collector"])
    def test_spans_have_bodies_where_that_is_asked_for(self, leaked, place, request):
        """Where only a summary is, there is none."""
        full = request.node.callspec.params["leaked"] == "full"
        assert (INNOCENT.encode() in leaked.places[place]) is full

    def test_messages_of_the_socket_are_there(self, leaked):
        """Both ways, without the secret in them."""
        (row,) = [row for row in leaked.rows if row["url_path"] == "/feed"]
        payload = json.loads(row["payload"])
        for side in ("request", "response"):
            (kept,) = payload[side]["body"]["content"]
            assert kept["message"] == {"password": "[REDACTED]", "note": INNOCENT}

    def test_every_request_is_a_row(self, leaked):
        """No canary has cost its request the record."""
        paths = [row["url_path"] for row in leaked.rows]
        expected = len(POSITIONS) - 1 + len(range(2, 40, 4))
        assert len([path for path in paths if path is not None]) == expected

    def test_every_request_is_a_line_of_the_request_log(self, leaked):
        """The log was written, too, with the same facts."""
        assert leaked.places["logs"].count(b'"request_id"') >= len(POSITIONS)
        assert b'"path":"/password-reset/[REDACTED]"' in leaked.places["logs"]

    def test_what_was_changed_is_in_the_rows(self, leaked):
        """The columns that are no secrets are there, so the changes were looked at."""
        changed = [row for row in leaked.rows if row["url_path"] == "/customers"]
        assert any('"name":[null,"innocent"]' in row["payload"] for row in changed)
        assert {row["outcome"] for row in changed} == {"success", "failure"}
