"""What is too much, too slow or not OTLP at all: a clear answer in OTLP's own form."""

from __future__ import annotations

import gzip
import socket
import time
import zlib

import psutil
import pytest
import zstandard
from sinks import request, serving, span

BOUNDS = {
    "OTEL_AUDIT_SERVE_MAX_BODY_BYTES": "100000",
    "OTEL_AUDIT_SERVE_MAX_MESSAGE_BYTES": "400000",
    "OTEL_AUDIT_SERVE_MAX_IN_FLIGHT_BYTES": "500000",
}


@pytest.fixture(scope="module")
def bounded(tmp_path_factory, shared_store):
    directory = tmp_path_factory.mktemp("bounded")
    with serving(directory, shared_store.dsn, environment=BOUNDS) as found:
        yield found


def status(answer) -> tuple[int, str]:
    """Read a google.rpc.Status with no code of the sink's: fields 1 and 2, or JSON."""
    if answer.headers["content-type"] == "application/json":
        told = answer.json()
        return told["code"], told["message"]
    assert answer.headers["content-type"] == "application/x-protobuf"
    content = answer.content
    assert (content[0], content[2]) == (0x08, 0x12)
    length, start = content[3], 4
    if length > 127:
        length, start = length & 127 | content[4] << 7, 5
    assert len(content) == start + length
    return content[1], content[start:].decode()


def _zstd_of_unknown_size(body: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(body) + compressor.flush()


class TestSize:
    @pytest.mark.parametrize(
        ("coding", "body"),
        [
            ("identity", b"\0" * 100_001),
            ("gzip", gzip.compress(b"\0" * 50_000_000)),
            ("gzip", gzip.compress(b"\0" * 300_000) * 2),
            ("zstd", zstandard.compress(b"\0" * 50_000_000)),
            ("zstd", _zstd_of_unknown_size(b"\0" * 50_000_000)),
            ("zstd", zstandard.compress(b"\0" * 300_000) * 2),
        ],
    )
    def test_beyond_the_bound_is_413(self, bounded, coding, body):
        """Before or after decompression; a bomb is never unpacked."""
        memory = psutil.Process(bounded.process.pid).memory_info().rss

        answer = bounded.traces(body, Content_Encoding=coding)

        assert answer.status_code == 413
        code, message = status(answer)
        assert code == 3
        assert "larger than" in message
        grown = psutil.Process(bounded.process.pid).memory_info().rss - memory
        assert grown < 20_000_000

    def test_a_length_that_is_not_told_is_counted(self, bounded):
        def chunks():
            for _ in range(200):
                yield b"\0" * 1000

        answer = bounded.client.post(
            "/v1/traces", content=chunks(), headers={"Content-Type": "application/x-protobuf"}
        )
        assert answer.status_code == 413

    @pytest.mark.parametrize(
        ("coding", "body"),
        [
            ("gzip", b"no gzip at all"),
            ("gzip", gzip.compress(request(span(1)))[:-9]),
            ("gzip", gzip.compress(request(span(1))) + b"trailing"),
            ("gzip", zlib.compress(request(span(1)))),
            ("zstd", b"no zstd at all"),
            ("zstd", zstandard.compress(request(span(1)))[:-3]),
            ("zstd", _zstd_of_unknown_size(request(span(1)))[:-3]),
        ],
    )
    def test_what_is_not_compressed_so_is_400(self, bounded, coding, body):
        answer = bounded.traces(body, Content_Encoding=coding)

        assert answer.status_code == 400
        assert coding in status(answer)[1]

    @pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "x"])
    def test_another_coding_is_415(self, bounded, coding):
        assert bounded.traces(b"", Content_Encoding=coding).status_code == 415


class TestNotOtlp:
    @pytest.mark.parametrize("path", ["/v1/traces", "/v1/audit"])
    @pytest.mark.parametrize("body", [b"\xff", b"GET / HTTP/1.1", b"\x0a\x05abc", b"{}"])
    def test_no_protobuf_is_400(self, bounded, path, body):
        answer = bounded.client.post(
            path, content=body, headers={"Content-Type": "application/x-protobuf"}
        )
        assert answer.status_code == 400
        assert status(answer) == (3, status(answer)[1])
        assert "in protobuf" in status(answer)[1]

    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"[]", b'{"resourceSpans": {}}', b'{"resourceSpans": [{"scopeSpans": 1}]}',
         b"\xff\xfe", b'"\xff"', b"[" * 100_000, b'{"resourceSpans":' * 5_000],
    )  # fmt: skip
    def test_no_json_is_400(self, bounded, body):
        answer = bounded.client.post(
            "/v1/traces", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400
        assert status(answer)[0] == 3

    @pytest.mark.parametrize("kind", ["text/plain", "application/grpc", "", "application/jsonp"])
    def test_another_content_type_is_415(self, bounded, kind):
        answer = bounded.client.post("/v1/traces", content=b"", headers={"Content-Type": kind})

        assert answer.status_code == 415
        assert "application/x-protobuf or application/json" in status(answer)[1]

    def test_other_paths_and_methods(self, bounded):
        assert bounded.client.post("/v1/metrics").status_code == 404
        assert bounded.client.get("/v1/traces").status_code == 405
        assert status(bounded.client.post("/v1/metrics"))[0] == 12

    def test_headers_that_are_too_large(self, bounded):
        answer = bounded.traces(b"", X_Large="x" * 40_000)
        assert answer.status_code == 431
        assert "headers" in status(answer)[1]

        answer = bounded.traces(b"", X_Large="x" * 200_000)
        assert answer.status_code in (400, 431)
        assert "eaders" in status(answer)[1]

    def test_what_is_no_http(self, bounded):
        with _connected(bounded) as connection:
            connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            found = _received(connection)

        assert found.startswith(b"HTTP/1.1 400 ")
        assert b"application/json" in found


class TestSlow:
    def test_a_body_that_does_not_come(self, tmp_path, shared_store):
        """It is told to try again; others are served all the while."""
        impatient = {"OTEL_AUDIT_SERVE_BODY_TIMEOUT": "1"}
        with (
            serving(tmp_path, shared_store.dsn, environment=impatient) as sink,
            _connected(sink) as connection,
        ):
            connection.sendall(_head(sink, 1000))
            connection.sendall(b"\x0a")
            assert sink.traces(request(span(1))).status_code == 200
            found = _received(connection)

        assert found.startswith(b"HTTP/1.1 503 ")
        assert b"did not come within 1 seconds" in found

    def test_a_head_that_does_not_come(self, bounded):
        with _connected(bounded) as connection:
            connection.sendall(b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nX-A: ")
            began = time.monotonic()
            assert connection.recv(1) == b""
            assert time.monotonic() - began < 25


class TestTooMuchAtOnce:
    def test_beyond_what_may_be_under_way_is_429(self, bounded):
        """Not queued without end; and what has gone away makes room again."""
        full = b"\0" * 90_000
        for _ in range(20):  # a busy machine may take longer to see them than they are waited for
            waiting = [_connected(bounded) for _ in range(6)]
            for connection in waiting:
                connection.sendall(_head(bounded, 90_000))
            time.sleep(0.3)
            answer = bounded.traces(full)
            if answer.status_code == 429:
                break
            for connection in waiting:
                connection.close()

        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert status(answer)[0] == 8
        for connection in waiting:
            connection.close()
        deadline = time.monotonic() + 60
        while bounded.traces(full).status_code == 429:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert bounded.traces(full).status_code == 400


def _connected(sink) -> socket.socket:
    host, _, port = sink.url.partition("://")[2].rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def _head(sink, length) -> bytes:
    return (
        f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {sink.token}\r\n"
        f"Content-Type: application/x-protobuf\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def _received(connection) -> bytes:
    found = b""
    while piece := connection.recv(65_536):
        found += piece
        if b"\r\n\r\n" in found and len(found.partition(b"\r\n\r\n")[2]) > 5:
            break
    return found
