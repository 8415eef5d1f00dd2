"""What a record looks like elsewhere: valid there, by the public schemas, whatever it says."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path

import jsonschema
import msgspec
import pytest
from fhir.resources.R4B.auditevent import AuditEvent
from hypothesis import given, settings
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema
from strategies import a_record, examples, records

from otel_audit.errors import ConfigurationError
from otel_audit.record import (
    Actor,
    Change,
    ErrorInfo,
    Request,
    Response,
    Source,
    Target,
    Tenant,
    to_json,
)
from otel_audit.shapes import SHAPES, UnshapeableError, read_event, shape_named
from otel_audit.shapes.ocsf import OCSF_VERSIONS

GOLDEN = Path(__file__).parent / "golden"
HASH = bytes(range(32))
HOSTILE = "\x1b[2J\u202egpj.exe\r\n\x00\x85\u2028' OR 1=1 -- \U000e0041"


def event_of(record, **fields):
    payload = to_json(record).decode()
    return read_event(
        payload, **{"leaf": 10_231, "log": "audit.example.com/log", "content_hash": HASH, **fields}
    )


def typical(**fields):
    """A POST that changed an order, with all there is to say of it."""
    whole = {
        "record_id": "01890a5d-ac96-774b-bcce-b302099a8057",
        "action_id": "01890a5d-ac96-774b-bcce-b302099a8057",
        "event_name": "order.updated",
        "action": "UPDATE",
        "outcome": "success",
        "occurred_at": 1_790_000_000_123_456_789,
        "duration": 12_345_678,
        "actor": Actor(
            id="clerk-1", type="user", role="clerk", email="clerk@example.com", verified=True
        ),
        "tenant": Tenant(id="acme", slug="acme-inc"),
        "target": Target(type="order", id="42"),
        "source": Source(address="192.0.2.7", user_agent="curl/8", session_id="s-1"),
        "request": Request(
            id="req-1", method="PUT", route="/orders/{order_id}", path="/orders/42", query="a=1",
            headers={"accept": "application/json"}, http_version="1.1", host="shop.example.com",
        ),
        "response": Response(status_code=200),
        "changes": (
            Change(
                operation="update", entity="Order", table="orders", key={"id": 42},
                values={"state": ["open", "paid"]},
            ),
        ),
        "transaction": "committed",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "span_id": "b7ad6b7169203331",
        "trace_sampled": True,
        "producer_id": "p-1",
        "sequence_number": 7,
        "resource": {"service.name": "shop"},
    }  # fmt: skip
    return a_record(**{**whole, **fields})


EXAMPLES = {
    "order-updated": typical(),
    "login-denied": typical(
        event_name="session.created", action="LOGIN", outcome="failure", target=None, changes=(),
        response=Response(status_code=401), transaction="none",
        error=ErrorInfo(type="InvalidPassword"),
    ),
    "by-a-job": typical(request=None, response=None, source=None, tenant=None),
    "impersonated": typical(actor=Actor(id="clerk-1", type="user", on_behalf_of="support-7")),
}  # fmt: skip


@cache
def ocsf_schema(version, number):
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version))
    found = schema.get_class_schema(schema.lookup_class_name_from_uid(number))
    return jsonschema.Draft202012Validator(found)


def faults_in_ocsf(document, version):
    validator = ocsf_schema(version, document["class_uid"])
    return [f"{list(one.path)}: {one.message[:200]}" for one in validator.iter_errors(document)]


@pytest.mark.slow
@settings(max_examples=examples(150, exploring=500))
@given(record=records())
def test_each_shape_is_what_its_specification_wants(record):
    """Records of every kind, each in all shapes: to check one takes a tenth of a second."""
    event = event_of(record)
    for version in OCSF_VERSIONS:
        document = shape_named(f"ocsf-{version}")(event)
        # one stray key would be a fault
        assert faults_in_ocsf(json.loads(json.dumps(document)), version) == [], version
        assert document["metadata"]["uid"] == record.record_id, version
    # read by the public model of FHIR R4B
    assert AuditEvent.model_validate(shape_named("fhir")(event)).id == record.record_id
    has_what_cloudevents_require(shape_named("cloudevents")(event))
    uses_the_words_of_ecs(shape_named("ecs")(event), record.record_id)


def has_what_cloudevents_require(document):
    """Required attributes are texts that are not empty; names of extensions are a-z and 0-9."""
    assert document["specversion"] == "1.0"
    assert all(document[name] for name in ("id", "source", "type", "time"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", document["time"])
    assert all(re.fullmatch("[a-z0-9]{1,20}", name) for name in document)
    assert all(isinstance(value, str | bool) for name, value in document.items() if name != "data")


ECS_CATEGORIES = {"authentication", "configuration", "database", "iam", "web"}
ECS_TYPES = {
    "access", "change", "creation", "deletion", "denied", "end", "error", "info", "start",
}  # fmt: skip


def uses_the_words_of_ecs(document, record_id):
    """Elasticsearch takes no other words in these fields, and only addresses for ``ip``."""
    event = document["event"]
    assert event["kind"] == "event"
    assert event["outcome"] in {"success", "failure", "unknown"}
    assert event["category"]
    assert set(event["category"]) <= ECS_CATEGORIES
    assert set(event["type"]) <= ECS_TYPES
    assert document["ecs"]["version"].startswith("8.")
    assert event["id"] == record_id
    assert (event["sequence"], event["hash"]) == (10_231, HASH.hex())


@pytest.mark.parametrize("shape", [*SHAPES, "ocsf-1.1.0", "ocsf-1.5.0"])
@pytest.mark.parametrize("example", EXAMPLES)
def test_golden_files(shape, example):
    """A shape is a contract: whoever changes one changes these files, and says so."""
    document = shape_named(shape)(event_of(EXAMPLES[example]))
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    file = GOLDEN / f"{example}.{shape}.json"
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("fields", "number", "activity"),
    [
        ({"action": "LOGIN"}, 3002, 1),
        ({"action": "LOGOUT"}, 3002, 2),
        ({"target": Target(type="user", id="9"), "action": "CREATE"}, 3001, 1),
        ({"target": Target(type="user", id="9"), "action": "GRANT"}, 3001, 7),
        ({"target": Target(type="role", id="9"), "action": "DELETE"}, 3006, 5),
        ({"target": Target(type="setting", id="9"), "action": "UPDATE"}, 3004, 3),
        ({"target": Target(type="setting", id="9"), "action": "READ", "changes": ()}, 6003, 2),
        ({"action": "EXECUTE"}, 6003, 99),
        ({"request": None, "action": "DELETE"}, 6005, 7),
        ({"event_name": "audit.producer.started", "request": None, "changes": ()}, 6002, 3),
    ],
)
def test_classes_of_ocsf(fields, number, activity):
    """Each kind of record has its class and activity."""
    document = shape_named("ocsf")(event_of(typical(**fields)))
    assert (document["class_uid"], document["activity_id"]) == (number, activity)
    assert document["type_uid"] == number * 100 + activity
    assert faults_in_ocsf(document, "1.8.0") == []


@pytest.mark.parametrize(
    ("fields", "severity", "status"),
    [
        ({}, 1, 1),
        ({"outcome": "failure"}, 2, 2),
        ({"outcome": "unknown"}, 2, 0),
        ({"outcome": "failure", "response": Response(status_code=403)}, 3, 2),
        ({"outcome": "failure", "transaction": "rolled_back"}, 4, 2),
    ],
)
def test_severity_of_ocsf(fields, severity, status):
    """An alert goes by these two."""
    document = shape_named("ocsf")(event_of(typical(**fields)))
    assert (document["severity_id"], document["status_id"]) == (severity, status)


def test_the_hash_in_ocsf_is_the_proofs():
    """A row in a SIEM can be compared with our proof: text and hash, where the text is exact."""
    exact = event_of(typical())
    assert "raw_data" not in shape_named("ocsf")(exact)  # HASH is not of this text
    payload = exact.payload
    digest = hashlib.sha256(payload.encode()).digest()
    document = shape_named("ocsf")(event_of(typical(), content_hash=digest))
    assert document["raw_data"] == payload
    assert document["raw_data_hash"]["value"] == digest.hex()
    assert "raw_data_hash" not in shape_named("ocsf-1.5.0")(exact)


@pytest.mark.parametrize("shape", SHAPES)
def test_hostile_text_is_only_text(shape):
    """Control characters, bidi marks and a line's end change no shape, and stay in their field."""
    record = typical(
        event_name=HOSTILE, actor=Actor(id=HOSTILE, type="user"), target=Target(type=HOSTILE),
        source=Source(address=HOSTILE, user_agent=HOSTILE),
    )  # fmt: skip
    document = shape_named(shape)(event_of(record))
    assert msgspec.json.decode(msgspec.json.encode(document)) == document
    if shape == "fhir":
        AuditEvent.model_validate(document)
    if shape == "ocsf":
        assert faults_in_ocsf(document, "1.8.0") == []


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "native"])
def test_what_is_no_record_has_no_shape(shape):
    """It is parked by the stream, with this reason; our own shape takes it as it is."""
    event = read_event('{"hello": 1}', leaf=1, log="l", content_hash=HASH)
    with pytest.raises(UnshapeableError, match="not a record of otel-audit's"):
        shape_named(shape)(event)
    assert shape_named("native")(event)["record"] == {"hello": 1}


@pytest.mark.parametrize("payload", ["[1]", "7", "not json", '{"a": '])
def test_what_is_no_object_is_no_event(payload):
    """The message says so, without the text."""
    with pytest.raises(UnshapeableError, match="the payload is not (a JSON object|JSON that)"):
        read_event(payload, leaf=1, log="l", content_hash=HASH)


def test_a_number_that_no_double_holds_is_text():
    """Older versions of the store took such a number; the event is not lost for it."""
    event = read_event('{"a": 1e999, "b": [1.5]}', leaf=1, log="l", content_hash=HASH)
    assert event.document == {"a": "1e999", "b": [1.5]}


def test_half_a_pair_of_surrogates_does_not_stop_an_event():
    """PostgreSQL stores such an escape as it is; it becomes a replacement character."""
    payload = to_json(typical()).decode().replace("clerk-1", "clerk-\\ud800")
    event = read_event(payload, leaf=1, log="l", content_hash=HASH)
    assert event.typed().actor.id == "clerk-?"


def test_a_changed_row_says_so_in_every_shape():
    """Whoever reads only the SIEM sees it there."""
    event = event_of(typical(), is_as_sealed=False)
    assert shape_named("native")(event)["is_as_sealed"] is False
    assert shape_named("ocsf")(event)["unmapped"]["otel_audit"]["is_as_sealed"] is False
    assert shape_named("ecs")(event)["otel_audit"]["is_as_sealed"] is False
    assert shape_named("cloudevents")(event)["auditaltered"] is True
    details = shape_named("fhir")(event)["entity"][-1]["detail"]
    assert {"type": "ledger.altered", "valueString": "true"} in details


@pytest.mark.parametrize("name", ["", "cef", "ocsf-9.9.9", "OCSF"])
def test_an_unknown_shape_is_refused(name):
    """The error lists those that there are."""
    with pytest.raises(ConfigurationError, match=r"is not a shape: one of native, ocsf, ecs"):
        shape_named(name)
