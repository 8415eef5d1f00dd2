"""OTLP over gRPC: the same store, the same answers as gRPC statuses."""

from __future__ import annotations

import grpc
import pytest
from ports import free_port
from sinks import request, serving, span

_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@pytest.fixture(scope="module")
def port():
    return free_port()


@pytest.fixture(scope="module")
def called(tmp_path_factory, shared_store, port):
    directory = tmp_path_factory.mktemp("grpc")
    bound = {"OTEL_AUDIT_SERVE_MAX_MESSAGE_BYTES": "100000"}
    with serving(directory, shared_store.dsn, "--grpc-port", str(port), environment=bound) as found:
        yield found


def export(port, token, body, *, more=(), **options):
    metadata = (*more, *(() if token is None else (("authorization", f"Bearer {token}"),)))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return channel.unary_unary(_METHOD)(body, metadata=metadata, timeout=20, **options)


async def test_a_flagged_span_is_stored_and_then_answered(called, port, shared_store, actor):
    plain = span(2, audit__actor__id=actor, audit__flagged=None)
    body = request(span(1, audit__actor__id=actor), plain)

    assert export(port, called.token, body, compression=grpc.Compression.Gzip) == b""
    assert export(port, called.token, body) == b""

    (row,) = await shared_store.rows(actor)
    assert row["received_by"] == "token:test"


@pytest.mark.parametrize("token", [None, "wrong"])
def test_without_the_right_token(called, port, token):
    with pytest.raises(grpc.RpcError) as refused:
        export(port, token, request(span(1)))

    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_sender_may_ask_to_be_told_to_send_again(called, port):
    """As over HTTP: a Collector drops what is UNAUTHENTICATED, and keeps what is UNAVAILABLE."""
    with pytest.raises(grpc.RpcError) as refused:
        export(port, "wrong", request(span(1)), more=(("x-otel-audit-refusal", "retry"),))

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "token" in refused.value.details()
    assert "grpc-status-details-bin" in dict(refused.value.trailing_metadata())


def test_what_cannot_be_decoded(called, port):
    with pytest.raises(grpc.RpcError) as refused:
        export(port, called.token, b"\xff\xff")

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not a valid ExportTraceServiceRequest" in refused.value.details()


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_what_is_too_large(called, port, compression):
    with pytest.raises(grpc.RpcError) as refused:
        export(port, called.token, b"\0" * 3_000_000, compression=compression)

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_while_the_store_is_away(tmp_path):
    """UNAVAILABLE, and in its details when to try again."""
    from google.protobuf.any_pb2 import Any

    port = free_port()
    gone = "postgresql://nobody@127.0.0.1:1/none"
    with (
        serving(tmp_path, gone, "--grpc-port", str(port)) as sink,
        pytest.raises(grpc.RpcError) as refused,
    ):
        export(port, sink.token, request(span(1)))

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    details = dict(refused.value.trailing_metadata())["grpc-status-details-bin"]
    start = details.index(b"\x1a")
    retry = Any.FromString(details[start + 2 :])
    assert retry.type_url == "type.googleapis.com/google.rpc.RetryInfo"
    assert retry.value == b"\x0a\x02\x08\x05"
