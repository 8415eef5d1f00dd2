"""The sink against a real receiver that takes, refuses, stalls, and goes away."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gzip
import ipaddress
import json
import socket
import ssl
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from dataclasses import replace
from email.utils import format_datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.rpc.status_pb2 import Status
from otel_audit_otlp import Endpoint, OtlpSink
from otlp_receiver import Answer, Receiver, partial_success, receiving
from strategies import a_record

from demo.receiver import PROTOBUF
from otel_audit._util.ids import uuid7
from otel_audit.config import AuditConfig
from otel_audit.delivery.sink import Refused, Written
from otel_audit.errors import StoreError, StoreUnavailableError


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def some(count: int) -> list:
    return [a_record(record_id=uuid7()) for _ in range(count)]


def _zeros_in_zstd(zeros: bytes) -> bytes:
    """A frame of blocks of 4 bytes, each of which becomes 128 KiB (RFC 8878, 3.1.1.2)."""
    blocks = len(zeros) >> 17
    headers = ((1 << 20 | 1 << 1 | (number == blocks - 1)) for number in range(blocks))
    # magic number; no content size; a window of 2 MiB
    return b"\x28\xb5\x2f\xfd\x00\x58" + b"".join(
        header.to_bytes(3, "little") + b"\0" for header in headers
    )


class Sent:
    """A sink, and what it has set aside."""

    def __init__(self, url: str, **settings: object) -> None:
        config = AuditConfig(otlp_endpoint=url, **settings)
        self.aside: list[Refused] = []
        self.sink = OtlpSink(Endpoint.from_config(config), self.aside.extend)

    async def write(self, records: list) -> Written:
        try:
            return await self.sink.write(records)
        finally:
            await self.sink.close()

    async def check(self) -> None:
        try:
            await self.sink.check()
        finally:
            await self.sink.close()


class TestTaken:
    @pytest.mark.parametrize("compression", ["gzip", "none"])
    async def test_a_batch_arrives_whole(self, receiver, compression):
        """What the receiver answers with success was in the request, record by record."""
        records = some(50)
        assert await Sent(receiver.url, otlp_compression=compression).write(records) == Written(50)
        assert receiver.stored == records
        (asked,) = receiver.asked
        assert asked.path == "/v1/traces"
        assert asked.headers["content-type"] == PROTOBUF
        assert asked.headers.get("content-encoding", "none") == compression

    async def test_headers_are_sent(self, receiver):
        """A token reaches the receiver; trace context does not."""
        await Sent(receiver.url, otlp_headers={"Authorization": "Bearer t"}).write(some(1))
        (asked,) = receiver.asked
        assert asked.headers["authorization"] == "Bearer t"
        assert "traceparent" not in asked.headers

    async def test_the_check_sends_nothing(self, receiver):
        """A check is a request without a span."""
        await Sent(receiver.url).check()
        assert [asked.records for asked in receiver.asked] == [[]]

    @pytest.mark.parametrize(
        "answer",
        [
            Answer(body=b"{}", content_type="application/json"),
            Answer(body=b'{"partialSuccess": {}}', content_type="application/json; charset=utf-8"),
            Answer(content_type=""),
            partial_success(0, "your clock is wrong"),
            Answer(headers={"Content-Encoding": "identity"}),
            replace(
                partial_success(0, "packed"),
                headers={"Content-Encoding": "gzip"},
                body=gzip.compress(partial_success(0, "packed").body),
            ),
        ],
    )
    async def test_other_forms_of_success(self, receiver, answer):
        """JSON, an empty answer, a warning without a rejection, and a gzipped one are success."""
        receiver.next = [answer]
        assert await Sent(receiver.url).write(some(2)) == Written(2)


class TestNotNow:
    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    async def test_it_may_be_tried_again(self, receiver, status):
        """The receiver has no time: nothing is set aside."""
        receiver.next = [Answer(status)]
        sent = Sent(receiver.url)
        with pytest.raises(StoreUnavailableError, match=str(status)) as refused:
            await sent.write(some(3))
        assert refused.value.retry_after is None
        assert sent.aside == []

    async def test_it_says_when_to_come_again(self, receiver):
        """Retry-After in seconds or as a date, but never longer than five minutes."""
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=60)
        for value, low, high in (
            ("7", 7, 7), (format_datetime(soon, usegmt=True), 50, 60), ("99999999", 300, 300),
        ):  # fmt: skip
            receiver.next = [Answer(503, headers={"Retry-After": value})]
            with pytest.raises(StoreUnavailableError) as refused:
                await Sent(receiver.url).write(some(1))
            assert low <= refused.value.retry_after <= high

    @pytest.mark.parametrize("value", ["soon", "-3", "1e9", "\u00b2"])
    async def test_a_strange_retry_after_is_none(self, receiver, value):
        """What is neither seconds nor a date says nothing."""
        receiver.next = [Answer(503, headers={"Retry-After": value})]
        with pytest.raises(StoreUnavailableError) as refused:
            await Sent(receiver.url).write(some(1))
        assert refused.value.retry_after is None

    async def test_nobody_listens(self):
        """Connection refused."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(StoreUnavailableError, match="OTEL_AUDIT_OTLP_ENDPOINT"):
            await Sent(url).write(some(1))

    async def test_it_accepts_and_never_answers(self):
        """A black hole is left after the time limit."""
        with socket.socket() as hole:
            hole.bind(("127.0.0.1", 0))
            hole.listen()
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError, match="no answer in time"):
                url = f"http://127.0.0.1:{hole.getsockname()[1]}"
                await Sent(url, otlp_timeout=0.3).write(some(1))
            assert time.monotonic() - began >= 0.3

    async def test_it_is_slower_than_the_time_limit(self, receiver):
        """An answer that comes too late is none; what is sent again is the same record."""
        receiver.next = [Answer(after=1)]
        records = some(1)
        with pytest.raises(StoreUnavailableError, match="no answer in time"):
            await Sent(receiver.url, otlp_timeout=0.3).write(records)
        await Sent(receiver.url).write(records)
        assert {record.record_id for asked in receiver.asked for record in asked.records} == {
            records[0].record_id
        }

    async def test_a_connection_that_was_closed_is_opened_again(self, receiver):
        """After any failure the next write has a connection of its own."""
        sent = Sent(receiver.url)
        receiver.next = [Answer(headers={"Connection": "close"})]
        for _ in range(3):
            await sent.sink.write(some(1))
        await sent.sink.close()
        assert len(receiver.asked) == 3


class TestSomebodyMustAct:
    @pytest.mark.parametrize(
        ("status", "remedy"),
        [(401, "OTLP_HEADERS"), (403, "token"), (404, "/v1/traces"), (405, "POST"),
         (415, "OTLP_COMPRESSION"), (302, "correct the URL"), (204, "correct the URL")],
    )  # fmt: skip
    async def test_what_is_about_us_costs_no_record(self, receiver, status, remedy):
        """A wrong token or path is no fault of the records: they wait, and the line says why."""
        receiver.decide = lambda _: Answer(status, headers={"Location": "http://127.0.0.1:1"})
        sent = Sent(receiver.url)
        with pytest.raises(StoreError, match=remedy) as refused:
            await sent.write(some(3))
        assert not isinstance(refused.value, StoreUnavailableError)
        assert sent.aside == []

    @pytest.mark.parametrize(
        "answer",
        [
            Answer(body=b"<html>Welcome</html>", content_type="text/html"),
            Answer(body=b"<html>Welcome</html>"),
            Answer(body=b"[]", content_type="application/json"),
            Answer(body=b"x" * 2_000_000),
            Answer(content_type="text/html"),
            Answer(headers={"Content-Encoding": "br"}),
            Answer(headers={"Content-Encoding": "zstd"}),
            Answer(headers={"Content-Encoding": "gzip"}, body=b"no gzip"),
            Answer(headers={"Content-Encoding": "gzip"}, body=b"\0" * 100),
        ],
    )
    async def test_a_success_that_is_not_otlps_is_none(self, receiver, answer):
        """Some web server that answers everything with 200 does not swallow records."""
        receiver.next = [answer]
        sent = Sent(receiver.url)
        with pytest.raises(StoreError, match="OTLP/HTTP receiver"):
            await sent.write(some(1))
        assert sent.aside == []

    @pytest.mark.parametrize("coding", ["zstd", "gzip", "deflate"])
    @pytest.mark.parametrize("status", [200, 400])
    async def test_an_answer_cannot_fill_the_memory(self, receiver, coding, status):
        """What is small on its way and huge when it is unpacked is not unpacked."""
        pack = {"zstd": _zeros_in_zstd, "gzip": gzip.compress, "deflate": zlib.compress}[coding]
        bomb = pack(bytes(64 << 20))
        assert len(bomb) < 100_000
        receiver.next = [Answer(status, body=bomb, headers={"Content-Encoding": coding})]
        sink = Sent(receiver.url).sink
        tracemalloc.start()
        try:
            with contextlib.suppress(StoreError):
                await sink.check()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            await sink.close()
        assert peak < 8 << 20
        assert receiver.asked[0].headers["accept-encoding"] == "identity"


class TestRefused:
    @pytest.mark.parametrize("answer", [Answer(400), Answer(413), Answer(422), partial_success(1)])
    async def test_a_poisonous_record_is_found_and_set_aside(self, receiver, answer):
        """The receiver refuses one of many: the others are stored, it is kept with the reason."""
        records = some(20)
        bad = records[13]
        receiver.decide = lambda asked: answer if bad in asked.records else Answer()
        sent = Sent(receiver.url)
        assert await sent.write(records) == Written(stored=19, quarantined=1)
        assert receiver.stored == [record for record in records if record is not bad]
        (refused,) = sent.aside
        assert refused.record_id == bad.record_id
        assert json.loads(refused.received)["event_name"] == bad.event_name

    async def test_the_reason_is_in_the_receivers_words(self, receiver):
        """What the receiver says of it is kept, but bounded and printable."""
        status = Status(code=3, message="no tenant\n\x00" + "x" * 5_000)
        receiver.next = [Answer(400, body=status.SerializeToString())]
        sent = Sent(receiver.url)
        await sent.write(some(1))
        (refused,) = sent.aside
        assert refused.reason.startswith("the receiver answered with status 400: no tenant")
        assert len(refused.reason) < 600
        assert refused.reason.isprintable()

    async def test_the_reason_may_come_as_json(self, receiver):
        """As a receiver answers that does not look at what it was sent."""
        receiver.next = [
            Answer(
                400, body=b'{"code": 3, "message": "no tenant"}', content_type="application/json"
            )
        ]
        sent = Sent(receiver.url)
        await sent.write(some(1))
        assert sent.aside[0].reason == "the receiver answered with status 400: no tenant"

    async def test_a_batch_that_is_too_large_is_sent_in_halves(self, receiver):
        """413 for many is no 413 for each."""
        receiver.decide = lambda asked: Answer(413 if len(asked.records) > 3 else 200)
        records = some(10)
        assert await Sent(receiver.url).write(records) == Written(10)
        assert receiver.stored == records

    async def test_what_cannot_be_set_aside_is_not_given_up(self, receiver):
        """No room for the quarantine: the write has failed, and is tried again."""

        def full(_: object) -> None:
            raise StoreError("no room")

        receiver.next = [Answer(400)]
        sink = OtlpSink(Endpoint(f"{receiver.url}/v1/traces"), full)
        with pytest.raises(StoreError, match="no room"):
            await sink.write(some(1))
        await sink.close()


class Authority:
    """Makes certificates of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
        self.file = directory / "authority.pem"
        made = self._sign(self._name, self._key.public_key(), authority=True)
        self.file.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        files = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        made = self._sign(subject, key.public_key(), authority=False)
        files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, authority: bool):
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )


class TestTls:
    @pytest.fixture
    def authority(self, tmp_path: Path) -> Authority:
        return Authority(tmp_path)

    @pytest.fixture
    def secured(self, authority: Authority) -> Iterator[Receiver]:
        """A receiver that wants a certificate of its clients."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("receiver"))
        context.load_verify_locations(authority.file)
        context.verify_mode = ssl.CERT_REQUIRED
        with receiving(context) as running:
            yield running

    async def test_both_sides_show_their_certificates(self, authority, secured):
        """Mutual TLS with an authority of one's own."""
        certificate, key = authority.issue("shop")
        sent = Sent(
            secured.url,
            otlp_certificate=authority.file,
            otlp_client_certificate=certificate,
            otlp_client_key=key,
        )
        assert await sent.write(some(3)) == Written(3)
        assert len(secured.stored) == 3

    async def test_a_receiver_that_is_not_trusted_gets_nothing(self, authority, secured):
        """An unknown authority: the error names the setting."""
        with pytest.raises(StoreError, match="OTEL_AUDIT_OTLP_CERTIFICATE") as refused:
            await Sent(secured.url).write(some(1))
        assert not isinstance(refused.value, StoreUnavailableError)
        assert secured.asked == []

    async def test_without_our_certificate_nothing_is_taken(self, authority, secured):
        """The receiver wants a certificate and gets none."""
        with pytest.raises(StoreError):
            await Sent(secured.url, otlp_certificate=authority.file).write(some(1))
        assert secured.asked == []


async def test_the_event_loop_is_not_held_up_by_a_quarantine(receiver):
    """What is set aside is written by another thread."""
    turned, turns = threading.Event(), []

    async def turn() -> None:
        while True:
            await asyncio.sleep(0.001)
            turned.set()

    def set_aside(_: object) -> None:
        for _ in range(20):
            turned.clear()
            turns.append(turned.wait(30))

    receiver.next = [Answer(400)]
    sink = OtlpSink(Endpoint(f"{receiver.url}/v1/traces"), set_aside)
    turning = asyncio.create_task(turn())
    await sink.write(some(1))
    turning.cancel()
    await sink.close()
    assert turns == [True] * 20
