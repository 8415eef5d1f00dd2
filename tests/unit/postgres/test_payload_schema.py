"""The payload's schema says what records are, the page says what the schema does."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import payload_schema
import pytest
from hypothesis import given
from jsonschema import Draft202012Validator
from otel_audit_postgres import record_from_payload
from otel_audit_postgres.rows import to_row
from payload_schema import OLD_ROW, SCHEMA, faults_of
from strategies import a_record, records

from otel_audit import record as model
from otel_audit.record import READABLE_VERSIONS, SCHEMA_VERSION, AuditRecord, Body

PARTS = {"AuditRecord": SCHEMA, **{name: SCHEMA["$defs"][name] for name in payload_schema._PARTS}}
KINDS = {str: "string", int: "integer", bool: "boolean", dict: "object", tuple: "array"}


def kind_of(hint: Any) -> str | None:
    """The JSON type of a field's type; None where it is a part, or any value."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (one for one in get_args(hint) if one is not types.NoneType)
    if get_origin(hint) is Literal:
        return "string"
    return KINDS.get(get_origin(hint) or hint)


def example(part: dict[str, Any]) -> Any:
    """A value with all fields that the part of the schema describes."""
    if "$ref" in part:
        return example(SCHEMA["$defs"][part["$ref"].rpartition("/")[2]])
    if "properties" in part:
        return {name: example(field) for name, field in part["properties"].items()}
    if part.get("type") == "array":
        return [example(item) for item in part.get("prefixItems", [part.get("items")])]
    if part.get("type") == "object":
        inner = part.get("additionalProperties")
        return {"x": example(inner)} if isinstance(inner, dict) else {}
    return {"integer": 1, "boolean": True}.get(str(part.get("type")), part.get("enum", ["x"])[0])


def variants(told: Any, depth: int) -> Iterator[Any]:
    """The value with one part of it replaced, left out or added, so many levels down."""
    yield from (None, True, 1, 1.5, "?", [], ["?"], [None, 1, "?"], {}, {"?": [1]})
    if not depth:
        return
    if isinstance(told, dict):
        yield {**told, "?": 1}
        for name, inner in told.items():
            yield {other: told[other] for other in told if other != name}
            yield from ({**told, name: one} for one in variants(inner, depth - 1))
    if isinstance(told, list):
        for at, inner in enumerate(told):
            yield told[:at] + told[at + 1 :]
            yield from ([*told[:at], one, *told[at + 1 :]] for one in variants(inner, depth - 1))


class TestSchema:
    def test_is_a_schema(self):
        """It is valid by its own standard."""
        Draft202012Validator.check_schema(SCHEMA)

    @pytest.mark.parametrize("name", PARTS)
    def test_has_the_fields_of_the_record(self, name):
        """Each field of each part, with its type; what has no default is required."""
        struct = getattr(model, name)
        hints = get_type_hints(struct)
        told = PARTS[name]["properties"]
        assert list(told) == list(struct.__struct_fields__)
        assert {field: told[field].get("type") for field in told} == {
            field: kind_of(hints[field]) for field in told
        }
        assert PARTS[name]["required"] == [
            field.name for field in msgspec.structs.fields(struct) if field.required
        ]

    @pytest.mark.parametrize("name", PARTS)
    def test_has_the_words_of_the_record(self, name):
        """Where a field takes only some words, the schema names the same ones."""
        hints = get_type_hints(getattr(model, name))
        for field, told in PARTS[name]["properties"].items():
            words = [one for part in (hints[field], *get_args(hints[field]))
                     if get_origin(part) is Literal for one in get_args(part)]  # fmt: skip
            if words:
                assert told["enum"] == words

    @pytest.mark.parametrize("name", PARTS)
    def test_examples_are_examples(self, name):
        """Each example is valid where it stands."""
        for field, told in PARTS[name]["properties"].items():
            one = Draft202012Validator({**told, "$defs": SCHEMA["$defs"]})
            for example in told.get("examples", ()):
                assert one.is_valid(example), field

    @pytest.mark.parametrize("name", PARTS)
    def test_its_constraints_find_what_it_finds(self, name):
        """Tests validate by the constraints alone: of whatever is spoilt, they say the same."""
        whole = Draft202012Validator({**PARTS[name], "$defs": SCHEMA["$defs"]})
        bare = Draft202012Validator(payload_schema.constraints(PARTS[name]))
        sound = example(PARTS[name])
        found = [
            [[(fault.json_path, fault.message) for fault in one.iter_errors(value)]
             for one in (whole, bare)]
            for value in (sound, *variants(sound, 1 if name == "AuditRecord" else 3))
        ]  # fmt: skip
        assert all(faults == same for faults, same in found)
        assert found[0] == [[], []]
        assert sum(faults != [] for faults, _ in found) > 10

    def test_names_the_versions_that_are_read(self):
        """The record's own version is one of them, and the newest."""
        assert tuple(SCHEMA["properties"]["schema_version"]["enum"]) == READABLE_VERSIONS
        assert READABLE_VERSIONS[-1] == SCHEMA_VERSION
        assert SCHEMA["$id"].endswith(f":{SCHEMA_VERSION}")

    def test_the_page_has_its_tables(self):
        """To write them anew: python tests/payload_schema.py."""
        page = payload_schema.PAGE.read_text()
        assert page == payload_schema.with_tables(page), "run: python tests/payload_schema.py"


class TestPayloads:
    @given(records())
    def test_every_record_fits(self, record):
        """Whatever a record holds, its payload is what the schema says."""
        assert faults_of(to_row(record).payload) == []

    def test_what_does_not_fit_is_found(self):
        """A field that no one has described, and a wrong type."""
        payload = json.loads(to_row(a_record()).payload)
        assert faults_of(json.dumps({**payload, "colour": "red"}))
        assert faults_of(json.dumps({**payload, "duration": "1 s"}))

    def test_a_row_of_the_first_version_is_read(self):
        """What is stored stays readable: the record, and by the schema."""
        record = record_from_payload(OLD_ROW)
        assert record.schema_version == "1"
        assert record.changes[0].values["took"] == [None, "P1DT7200S"]
        assert faults_of(OLD_ROW) == []
        assert record_from_payload(to_row(record).payload) == record

    def test_bodies_are_values(self):
        """Any JSON may be a body."""
        for text in (b"null", b"[1,2.5e3]", b'"x"', b'{"a":{"b":[]}}'):
            body = Body(content=msgspec.Raw(text), size=len(text))
            made = a_record(request=model.Request(body=body))
            assert faults_of(to_row(made).payload) == []
            assert isinstance(made, AuditRecord)
