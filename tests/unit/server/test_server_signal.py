"""The draft audit signal: kept exactly, signatures verified, chains compared."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import NameOID
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from sinks import START, attributes, pairs

from otel_audit import attributes as names
from otel_audit._util.varint import field as part
from otel_audit.delivery.producer_records import ENDED
from otel_audit.errors import ConfigurationError
from otel_audit.record import to_json
from otel_audit.redaction import Redactor
from otel_audit.server import decode_json, decode_protobuf
from otel_audit.server.canonical_forms import canonical_forms, integrity_hash, parse_log
from otel_audit.server.convert import Converter, NotConvertible, with_own_place
from otel_audit.server.credentials import NOBODY
from otel_audit.server.items import ReceivedItem, Resource
from otel_audit.server.signatures import TrustedSigners, read_trust_file
from otel_audit.testing import make_record

SECRET = base64.b64encode(b"k" * 32)
KEYS = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
KEYS["RS512"] = KEYS["RS256"]


@functools.cache
def certificate(key) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "collector")])
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(7).not_valid_before(begin).not_valid_after(begin + timedelta(days=3650))
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )  # fmt: skip


def sign(algorithm: str, text: bytes) -> bytes:
    """As the Collector's signingprocessor does."""
    if algorithm == "HMAC-SHA256":
        return hmac.digest(base64.b64decode(SECRET), text, "sha256")
    key = KEYS[algorithm]
    if algorithm == "EdDSA":
        return key.sign(text)
    if algorithm == "ES256":
        return key.sign(text, ec.ECDSA(hashes.SHA256()))
    return key.sign(
        text, padding.PKCS1v15(), hashes.SHA256() if algorithm == "RS256" else hashes.SHA512()
    )


def log(**more) -> LogRecord:
    told = attributes(audit__actor__id="ada", audit__flagged=None, **more)
    return LogRecord(
        time_unix_nano=START,
        observed_time_unix_nano=START + 5,
        event_name="invoice.approved",
        attributes=[*pairs(told), KeyValue(key="n", value=AnyValue(int_value=7))],
        body=AnyValue(string_value="approved"),
    )


def typed(record: LogRecord) -> bytes:
    """The canonical form, written down again from the Collector's documentation."""

    def value(one: AnyValue):
        kind = one.WhichOneof("value")
        if kind == "int_value":
            return {"intValue": str(one.int_value)}
        return {
            {"string_value": "stringValue", "bool_value": "boolValue"}[kind]: getattr(one, kind)
        }

    return rfc8785.dumps({
        "event_name": record.event_name, "body": record.body.string_value,
        "timestamp": str(record.time_unix_nano),
        "observed_timestamp": str(record.observed_time_unix_nano),
        "attributes": {one.key: value(one.value) for one in record.attributes},
    })  # fmt: skip


def plain(record: LogRecord) -> bytes:
    """The earlier form: values as they are, times as the numbers that a double can hold."""
    return rfc8785.dumps({
        "event_name": record.event_name, "body": record.body.string_value,
        "timestamp": float(record.time_unix_nano),
        "observed_timestamp": float(record.observed_time_unix_nano),
        "attributes": {
            one.key: float(one.value.int_value) if one.value.WhichOneof("value") == "int_value"
            else getattr(one.value, one.value.WhichOneof("value"))
            for one in record.attributes
        },
    })  # fmt: skip


def item(record: LogRecord, resource: dict | None = None, raw: bytes | None = None) -> ReceivedItem:
    told = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in record.attributes}
    return with_own_place(
        ReceivedItem(
            record.event_name, "", "", "", record.time_unix_nano, record.time_unix_nano, told, "",
            Resource(resource or {}), is_log=True, body=record.body.string_value,
            raw=record.SerializeToString() if raw is None else raw,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def trust_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everybody who signs here."""
    folder = tmp_path_factory.mktemp("trust")
    (folder / "legacy.key").write_bytes(SECRET)
    lines = ['[[signer]]\nname = "legacy"\nhmac_key = "legacy.key"\n']
    for name in ("RS256", "ES256", "EdDSA"):
        pem = certificate(KEYS[name]).public_bytes(serialization.Encoding.PEM)
        (folder / f"{name}.pem").write_bytes(pem)
        lines.append(f'[[signer]]\nname = "{name}"\ncertificate = "{name}.pem"\n')
    (folder / "trust.toml").write_text("".join(lines))
    return folder / "trust.toml"


@pytest.fixture(scope="module")
def signers(trust_file: Path) -> TrustedSigners:
    return read_trust_file(trust_file)


def signed(algorithm: str, form=typed, *, full: bool = False) -> tuple[LogRecord, dict]:
    record = log()
    value = base64.b64encode(sign(algorithm, form(record))).decode()
    resource = {"audit.integrity.algorithm": algorithm}
    if algorithm != "HMAC-SHA256":
        der = certificate(KEYS[algorithm]).public_bytes(serialization.Encoding.DER)
        resource["audit.integrity.certificate"] = (
            base64.b64encode(der).decode() if full else f"sha256:{hashlib.sha256(der).hexdigest()}"
        )
    record.attributes.extend(pairs({"audit.integrity.value": value}))
    return record, resource


def check(signers: TrustedSigners, record: LogRecord, resource: dict, raw: bytes | None = None):
    found = item(record, resource, raw)
    return signers.check(found.raw, found.attributes, resource, found.body)


class TestASignature:
    @pytest.mark.parametrize("form", [typed, plain])
    @pytest.mark.parametrize("algorithm", ["RS256", "RS512", "ES256", "EdDSA", "HMAC-SHA256"])
    def test_holds_in_both_forms_by_each_algorithm(self, signers, algorithm, form):
        """What the Collector signed is verified, whichever of its versions it was."""
        record, resource = signed(algorithm, form)

        found = check(signers, record, resource)

        assert (found.verdict, found.form) == ("valid", "jcs-typed" if form is typed else "jcs")

    def test_does_not_hold_once_anything_is_changed(self, signers):
        """A value, the event's name, the time, the body: each is signed."""
        record, resource = signed("HMAC-SHA256")
        for change in (
            lambda one: setattr(one, "event_name", "invoice.rejected"),
            lambda one: setattr(one, "time_unix_nano", START + 1),
            lambda one: setattr(one.body, "string_value", "rejected"),
            lambda one: one.attributes.extend(pairs({"more": "x"})),
        ):
            changed = LogRecord.FromString(record.SerializeToString())
            change(changed)
            assert check(signers, changed, resource).verdict == "invalid"

    def test_of_a_stranger_is_nobodys(self, signers):
        """A certificate that the file does not have is not believed, whatever it signs."""
        record, resource = signed("ES256")
        resource["audit.integrity.certificate"] = "sha256:" + "0" * 64

        assert check(signers, record, resource).verdict == "unknown_signer"

    def test_by_another_algorithm_than_the_keys_is_not_tried(self, signers):
        """The sender's word for the algorithm does not make a public key a secret."""
        record, resource = signed("ES256")
        named = next(one for one in signers._named if one.startswith("sha256:"))
        resource |= {"audit.integrity.certificate": named, "audit.integrity.algorithm": "EdDSA"}

        assert check(signers, record, resource).verdict in {"unknown_signer", "invalid"}
        resource["audit.integrity.algorithm"] = "none"
        assert check(signers, record, resource).verdict == "unsupported"

    def test_is_missing(self, signers):
        """What is not signed is called so."""
        assert check(signers, log(), {}).verdict == "unsigned"

    @pytest.mark.parametrize("raw", [b"\xff\xff", b"{", b'{"attributes": [[]]}', b'{"body": 7}'])
    def test_over_what_is_no_record_is_invalid(self, signers, raw):
        """Bytes that cannot be read cost a verdict, not the batch."""
        record, resource = signed("HMAC-SHA256")

        assert check(signers, record, resource, raw).verdict == "invalid"

    def test_over_an_empty_record_verifies_no_other(self, signers):
        """What could be read in part only has no bytes: it is not the empty record that was signed."""
        record, resource = signed("HMAC-SHA256", lambda _: rfc8785.dumps({}))

        assert check(signers, record, resource, b"").verdict == "invalid"

    @pytest.mark.parametrize("decode", ["logs", "large"])
    def test_verifies_what_is_stored_and_no_second_reading(self, signers, decode):
        """Of a value of two kinds one is signed; if the other is stored, nothing was verified."""
        record = LogRecord(time_unix_nano=START, event_name="invoice.approved")
        if decode == "logs":
            record.attributes.append(
                KeyValue(key="reason", value=AnyValue(bytes_value=b"agreed by both"))
            )
        else:
            record.attributes.append(KeyValue(key="reason", value=AnyValue(int_value=7)))
        _, text = next(canonical_forms(record))
        value = base64.b64encode(sign("HMAC-SHA256", text)).decode()
        resource = {"audit.integrity.algorithm": "HMAC-SHA256"}
        if decode == "logs":
            forged = {"arrayValue": {"values": [{"stringValue": "never agreed"}]}}
            said = {"bytesValue": base64.b64encode(b"agreed by both").decode(), **forged}
            pair = {"key": "audit.integrity.value", "value": {"stringValue": value}}
            (found,) = items_of(decode_json.logs(json.dumps({"resourceLogs": [{"scopeLogs": [{
                "logRecords": [{
                    "timeUnixNano": str(START), "eventName": "invoice.approved",
                    "attributes": [{"key": "reason", "value": said}, pair],
                }],
            }]}]}).encode()))  # fmt: skip
        else:
            record.attributes.extend(pairs({"audit.integrity.value": value}))
            # behind a long text in the same value, the signed number is what protobuf reads
            long = AnyValue(string_value="never agreed " * 6_000).SerializeToString()
            raw = record.SerializeToString()
            plain_pair = record.attributes[0].SerializeToString()
            forged_value = long + AnyValue(int_value=7).SerializeToString()
            forged_pair = b"\x0a\x06reason" + part(2, forged_value)
            raw = raw.replace(part(6, plain_pair), part(6, forged_pair), 1)
            inner = part(1, part(2, part(2, raw)))
            (found,) = items_of(decode_protobuf.logs(inner))

        assert "never agreed" in str(found.attributes["reason"])
        told = signers.check(found.raw, found.attributes, resource, found.body)
        assert told.verdict == "invalid"

    def test_holds_over_every_kind_of_value_as_it_is_decoded(self, signers):
        """Bytes, lists, maps, nothing: what is stored is compared with what was signed."""
        record = log()
        several = AnyValue()
        several.kvlist_value.values.add(key="list").value.array_value.values.add(double_value=0.5)
        several.kvlist_value.values.add(key="none")
        for key, value in (
            ("map", several), ("bytes", AnyValue(bytes_value=b"\x00\xff")), ("nothing", AnyValue()),
            ("yes", AnyValue(bool_value=True)), ("empty", AnyValue(string_value="")),
            ("large", AnyValue(string_value="x" * 70_000)),
        ):  # fmt: skip
            record.attributes.append(KeyValue(key=key, value=value))
        _, text = next(canonical_forms(record))
        value = base64.b64encode(sign("HMAC-SHA256", text)).decode()
        record.attributes.extend(pairs({"audit.integrity.value": value}))
        (found,) = items_of(
            decode_protobuf.logs(part(1, part(2, part(2, record.SerializeToString()))))
        )

        resource = {"audit.integrity.algorithm": "HMAC-SHA256"}
        told = signers.check(found.raw, found.attributes, resource, found.body)

        assert told.verdict == "valid"


def items_of(batches) -> list[ReceivedItem]:
    found: list[ReceivedItem] = []
    for batch in batches:
        assert not batch.undecodable
        for decode in batch.large:
            decode(batch)
        found += batch.items
    return found


class TestOtlpInJson:
    def test_has_the_same_form_as_in_protobuf(self):
        """A record's canonical form does not depend on how it travelled."""
        record = log()
        told = json.dumps({
            "timeUnixNano": str(START), "observedTimeUnixNano": str(START + 5),
            "eventName": "invoice.approved", "body": {"stringValue": "approved"},
            "attributes": [
                {"key": one.key, "value": (
                    {"intValue": str(one.value.int_value)}
                    if one.value.WhichOneof("value") == "int_value"
                    else {"stringValue": one.value.string_value}
                )} for one in record.attributes
            ],
        }).encode()  # fmt: skip

        assert list(canonical_forms(parse_log(told))) == list(canonical_forms(record))


class TestTheTrustFile:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "names no"),
            ("[[signer]]\nname = 'x'\n", "either a certificate or"),
            ("[[signer]]\nname = 'x'\ncertificate = 'none.pem'\n", "cannot be read"),
            ("[[signer]]\nname = 'x'\nhmac_key = 'short.key'\n", "less than 16 bytes"),
            ("[[signer]]\nname = 'x'\ncertificate = 'short.key'\n", "not a certificate in PEM"),
            ("[[signer]]\nname = 'x'\nalgorithms = ['none']\n", "no trust file"),
            ("[[signer", "no trust file"),
        ],
    )
    def test_that_cannot_be_meant_is_refused(self, tmp_path, text, says):
        """The message names the file, and what is wrong with which entry."""
        (tmp_path / "short.key").write_text("c2hvcnQ=")
        (tmp_path / "trust.toml").write_text(text)

        with pytest.raises(ConfigurationError, match=says):
            read_trust_file(tmp_path / "trust.toml")


def converter(signers=None, **more) -> Converter:
    return Converter(Redactor(), b"k" * 32, 1 << 20, signers, **more)


class TestWhatArrives:
    def test_is_kept_exactly(self):
        """A signature looks like a secret, and is stored as it came, with its resource's part."""
        value = base64.b64encode(hashlib.sha512(b"x").digest()).decode()
        told = {"audit.integrity.value": value, "audit.sequence.number": 3,
                "audit.sequence.stream_id": "s-1", "audit.integrity.signer": "collector"}  # fmt: skip
        record = log()
        record.attributes.extend(pairs(told))
        resource = {"audit.integrity.algorithm": "ES256", "service.name": "billing"}

        found = converter().read(item(record, resource), NOBODY)

        assert found.received.signal == {
            "record": told, "resource": {"audit.integrity.algorithm": "ES256"},
        }  # fmt: skip
        assert (found.producer_id, found.sequence_number) == ("s-1", 3)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("audit.integrity.value", "password = hunter2"),
            ("audit.integrity.certificate", "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----"),
            ("audit.integrity.hint", "hunter2"),
            ("audit.sequence.stream_id", "my secret is hunter2"),
            ("audit.integrity.value", "A" * 20_000),
        ],
    )  # fmt: skip
    def test_of_another_form_is_not_kept(self, name, value):
        """Nobody gets a secret past redaction by calling it a signature."""
        record = log(**{name.replace(".", "__"): value})

        found = converter().read(item(record), NOBODY)

        assert found.received.signal == {"unfit": [name]}
        assert value not in json.dumps(found.received.signal)

    def test_without_anything_of_the_signal_costs_nothing(self):
        """Records of this plugin say their stream in fields of their own."""
        record = log(audit__sequence__stream_id="s-1", audit__producer__id="s-1")
        found = converter().read(item(record), NOBODY)

        assert found.received.signal == {}
        assert b"signal" not in to_json(found)

    def test_unsigned_goes_to_quarantine_where_a_signature_is_required(self, signers):
        """And one that is signed is stored, with whose signature it is."""
        strict = converter(signers, requires_signature=True)
        record, resource = signed("HMAC-SHA256")

        refused = strict.read(item(log()), NOBODY)
        stored = strict.read(item(record, resource), NOBODY)

        assert isinstance(refused, NotConvertible)
        assert refused.kind == "unverified"
        assert (stored.received.signature, stored.received.signed_by) == ("valid", "legacy")

    def test_a_span_is_no_way_around_a_required_signature(self, signers):
        """It cannot be signed, so it goes to quarantine; noted only, it is stored as before."""
        span = msgspec.structs.replace(item(log()), is_log=False, body=None)

        refused = converter(signers, requires_signature=True).read(span, NOBODY)
        stored = converter(signers).read(span, NOBODY)

        assert (refused.kind, refused.reason) == (
            "unverified", "a valid signature is required, and a span has none"
        )  # fmt: skip
        assert stored.received.signature is None


class TestAChain:
    def links(self, second: dict) -> str | None:
        reader = converter()
        first = log(audit__sequence__stream_id="s-1")
        first.attributes.extend(pairs({"audit.sequence.number": 1}))
        reader.read(item(first), NOBODY)
        record = log(audit__sequence__stream_id="s-1", **{
            name.replace(".", "__"): value for name, value in second.items()
        })  # fmt: skip
        record.attributes.extend(pairs({"audit.sequence.number": 2}))
        record.time_unix_nano += 1
        return reader.read(item(record), NOBODY).received.link

    @pytest.mark.parametrize("name", ["audit.sequence.previous_hash", "audit.sequence.prev_hash"])
    def test_holds_by_either_name_of_the_hash(self, name):
        """The draft has renamed it; senders have not all followed."""
        first = log(audit__sequence__stream_id="s-1")
        first.attributes.extend(pairs({"audit.sequence.number": 1}))
        digest = hashlib.sha256(typed(first)).digest()

        assert self.links({name: digest.hex()}) == "linked"
        assert self.links({name: "sha256:" + digest.hex()}) == "linked"
        assert self.links({name: base64.b64encode(digest).decode()}) == "linked"
        assert self.links({name: "0" * 64}) == "broken"

    def test_is_not_judged_without_the_record_before(self):
        """What this process has not seen it does not call broken."""
        reader = converter()
        record = log(audit__sequence__stream_id="s-9", audit__sequence__previous_hash="0" * 64)
        record.attributes.extend(pairs({"audit.sequence.number": 2}))

        assert reader.read(item(record), NOBODY).received.link is None


class TestOurOwnRecords:
    def test_say_their_stream_and_its_end_in_the_drafts_words(self):
        """A sink of the draft finds the chain's name and that it ended in order."""
        record = make_record(ENDED, producer_id="p-1", sequence_number=9)
        told = names.to_attributes(record)

        assert told["audit.sequence.stream_id"] == "p-1"
        assert told["audit.sequence.end"] is True
        assert "audit.sequence.end" not in names.to_attributes(make_record("order.paid"))


def test_the_integrity_hash_is_over_rfc_8785_with_large_numbers_as_texts():
    """The order of names and the spelling of numbers do not matter, each value does."""
    first = integrity_hash(b'{"b": 1.0, "a": 1790000000000000001}')

    assert first == integrity_hash(b'{"a":1790000000000000001,"b":1}')
    assert first == hashlib.sha256(b'{"a":"1790000000000000001","b":1}').hexdigest()
    assert first != integrity_hash(b'{"a":1790000000000000002,"b":1}')
