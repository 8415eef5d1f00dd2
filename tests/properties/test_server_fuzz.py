"""Whatever is sent, the answer is OTLP's, and nothing that was not stored is acknowledged."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import tracemalloc

import httpx
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore
from sinks import START, attributes, request, span
from strategies import a_record

from otel_audit.attributes import to_attributes
from otel_audit.config import AuditConfig
from otel_audit.server.app import create_app
from otel_audit.server.decode_protobuf import logs, spans

VALID = request(
    span(1, audit__metadata='{"a":[1,2]}', user__roles=["a", "b"]),
    span(2, audit__flagged=None),
    span(3, audit__request__body='{"password":"x"}', http__request__header__accept=["*/*"]),
)
PROTOBUF = "application/x-protobuf"
JSON = "application/json"


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid request in which some bytes are changed, cut out, doubled or put in."""
    found = bytearray(VALID)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(found) - 1, 0)))
        length = draw(st.integers(0, 12))
        piece = draw(st.binary(max_size=12) | st.just(bytes(found[at : at + length]) * 2))
        found[at : at + length] = piece
    return bytes(found)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
words = st.sampled_from([
    "resourceSpans", "scopeSpans", "spans", "attributes", "key", "value", "stringValue",
    "boolValue", "intValue", "arrayValue", "values", "traceId", "spanId", "startTimeUnixNano",
    "resource", "scope", "name", "resourceLogs", "scopeLogs", "logRecords", "body", "kvlistValue",
])  # fmt: skip
documents = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5),
    max_leaves=30,
)


def send(
    store: MemoryStore, *requests: tuple[str, bytes, dict[str, str]], **settings: object
) -> list[httpx.Response]:
    """Send to the sink in this process, its lifespan begun, in an event loop of its own."""
    return asyncio.run(_send(store, requests, settings))


async def _send(store, requests, more) -> list[httpx.Response]:
    config = AuditConfig(**{
        "dsn": "postgresql://unused@127.0.0.1:1/unused", "serve_no_auth": "anywhere",
        "serve_max_body_bytes": 50_000, "serve_max_message_bytes": 100_000,
        "serve_max_record_bytes": 20_000, **more,
    })  # fmt: skip
    app = create_app(config, make_store=lambda: store)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://sink") as client,
    ):
        return [
            await client.post(path, content=body, headers=headers)
            for path, body, headers in requests
        ]


def assert_answered(answer: httpx.Response) -> None:
    assert answer.status_code in (200, 400, 413, 415, 431), answer.content
    if answer.status_code == 200:
        return
    if answer.headers["content-type"] == "application/json":
        assert set(answer.json()) == {"code", "message"}
    else:
        assert answer.headers["content-type"] == "application/x-protobuf"
        assert answer.content[:1] == b"\x08"


class TestFuzz:
    @settings(max_examples=150)
    @given(body=mutated() | st.binary(max_size=300), path=st.sampled_from(["traces", "audit"]))
    def test_bytes(self, body, path):
        """Compressed or not, the same answer; and what is flagged is kept one way or the other."""
        store = MemoryStore()
        plain = {"Content-Type": PROTOBUF}
        packed = {**plain, "Content-Encoding": "gzip"}

        first, again = send(
            store, (f"/v1/{path}", body, plain), (f"/v1/{path}", gzip.compress(body), packed)
        )

        assert_answered(first)
        assert again.status_code == first.status_code
        if first.status_code == 200:
            batches = list((spans if path == "traces" else logs)(body))
            kept = len(store.records) + len({item.received for item in store.quarantine})
            ids = {item.record_id for item in store.quarantine}
            assert bool(kept) == any(batch.items or batch.undecodable for batch in batches)
            assert all(isinstance(one, str) for one in ids)

    @settings(max_examples=150)
    @given(
        document=documents | st.fixed_dictionaries({"resourceSpans": documents})
        | st.fixed_dictionaries({"resourceLogs": documents}),
        path=st.sampled_from(["traces", "audit"]),
    )  # fmt: skip
    def test_json(self, document, path):
        body = json.dumps(document).encode()

        (answer,) = send(MemoryStore(), (f"/v1/{path}", body, {"Content-Type": JSON}))

        assert_answered(answer)

    @settings(max_examples=60)
    @given(
        kind=st.sampled_from([PROTOBUF, JSON, "text/plain", ""]),
        coding=st.sampled_from(["gzip", "zstd", "identity", "br", "gzip,gzip"]),
        body=st.binary(max_size=200) | st.just(gzip.compress(VALID))
        | st.just(zstandard.compress(VALID)) | st.just(gzip.compress(b"\0" * 10_000_000)),
    )  # fmt: skip
    def test_codings(self, kind, coding, body):
        headers = {"Content-Type": kind, "Content-Encoding": coding}

        (answer,) = send(MemoryStore(), ("/v1/traces", body, headers))

        assert_answered(answer)

    @settings(max_examples=100)
    @given(value=st.recursive(leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=6),
           name=st.sampled_from(sorted(to_attributes(a_record()))))  # fmt: skip
    def test_an_attribute_of_any_type_and_value(self, value, name):
        """It is a record or in quarantine, and what is beside it is stored."""
        bad = {**attributes(), name: value}
        message = json_request(bad, attributes(audit__actor__id="beside"))
        store = MemoryStore()

        (answer,) = send(store, ("/v1/traces", message, {"Content-Type": JSON}))

        assert_answered(answer)
        if answer.status_code == 200:
            flagged = bad["audit.flagged"] is True
            assert len(store.records) + len(store.quarantine) == 1 + flagged
            assert any(record.actor.id == "beside" for record in store.records.values())


def json_request(*found: dict) -> bytes:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [
        {"traceId": f"{number:032x}", "spanId": f"{number:016x}", "name": "x",
         "startTimeUnixNano": START,
         "attributes": [{"key": key, "value": any_value(value)} for key, value in told.items()]}
        for number, told in enumerate(found, 1)
    ]}]}]}).encode()  # fmt: skip


def any_value(value: object) -> dict:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": value}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [any_value(one) for one in value]}}
    return {} if value is None else {"stringValue": value}


def test_nothing_grows_with_what_is_refused():
    """A thousand bad requests of all kinds leave no more behind than a hundred."""
    bad = [
        (f"/v1/{path}", body, {"Content-Type": kind})
        for path in ("traces", "audit")
        for kind in (PROTOBUF, JSON)
        for body in (b"\xff" * 1000, b"{", VALID[:-7], b'{"resourceSpans":[{}]' * 50)
    ]

    async def run() -> tuple[int, int]:
        store = MemoryStore()
        sizes = []
        for rounds in (8, 60):
            await _send(store, bad * rounds, {})
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
        return sizes[0], sizes[1]

    tracemalloc.start()
    try:
        before, after = asyncio.run(run())
    finally:
        tracemalloc.stop()
    assert after - before < 500_000
