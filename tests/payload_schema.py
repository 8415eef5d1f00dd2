"""The payload's JSON Schema: validating by it, and its tables in docs/payload.md.

Run this file to write the tables anew.
"""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from otel_audit.record import READABLE_VERSIONS

PAGE = Path(__file__).parents[1] / "docs" / "payload.md"
SCHEMA: dict[str, Any] = json.loads(
    files("otel_audit_postgres").joinpath("payload.schema.json").read_text()
)
_BEGIN = "<!-- fields: begin, made by tests/payload_schema.py -->\n"
_END = "<!-- fields: end -->\n"
_ANY_VALUE = {
    "type": ["null", "boolean", "number", "string", "array", "object"],
    "items": {"$ref": "#/$defs/Value"},
    "additionalProperties": {"$ref": "#/$defs/Value"},
}
"""What the schema wants of a value: `json.loads` returns nothing else, so there is nothing to check."""

_CONSTRAINTS = {
    "additionalProperties", "enum", "items", "maxItems", "minItems", "prefixItems", "properties",
    "required", "type",
}  # fmt: skip
_ANNOTATIONS = {
    "$defs", "$id", "$schema", "default", "description", "examples", "title", "x-present", "x-unit",
}  # fmt: skip


def constraints(schema: Any = SCHEMA) -> Any:
    """Return what of the schema a text of JSON can break, with each definition where it is used.

    Validating by it takes a third of the time: most of a record are values, and references are
    looked up for each of them.

    Raises:
        ValueError: A keyword is neither a constraint nor an annotation that is known here.
    """
    if not isinstance(schema, dict):
        return schema
    told = {name: schema[name] for name in schema if name not in _ANNOTATIONS}
    if told == _ANY_VALUE:
        return True
    if list(told) == ["$ref"]:
        return constraints(SCHEMA["$defs"][told["$ref"].removeprefix("#/$defs/")])
    if unknown := set(told) - _CONSTRAINTS:
        raise ValueError(f"unknown keywords, or some beside a reference: {sorted(unknown)}")
    return {name: _inner(name, told[name]) for name in told}


def _inner(keyword: str, told: Any) -> Any:
    if keyword == "properties":
        return {name: constraints(field) for name, field in told.items()}
    if keyword == "prefixItems":
        return [constraints(item) for item in told]
    return constraints(told) if keyword in ("items", "additionalProperties") else told


_VALIDATOR = Draft202012Validator(constraints())
_PARTS = (
    "Actor", "Tenant", "Target", "Source", "Request", "Response", "Body", "Change", "ErrorInfo",
    "Received",
)  # fmt: skip

OLD_ROW = json.dumps(
    {
        "record_id": "01a2274e-6a15-7c4f-8b39-6f0a4f2f4d11",
        "action_id": "01a2274e-6a15-7c4f-8b39-6f0a4f2f4d11",
        "phase": "completed",
        "schema_version": "1",
        "event_name": "order.created",
        "action": "CREATE",
        "outcome": "success",
        "occurred_at": 1_795_955_000_000_000_000,
        "actor": {"id": "user-1", "type": "user"},
        "changes": [
            {
                "operation": "insert",
                "entity": "Order",
                "table": "orders",
                "key": {"id": 1},
                "values": {
                    "scan": [None, {"bytes": 80, "sha256": "ab" * 32}],
                    "note": [None, {"cut": "tea", "size": 9_000, "sha256": "cd" * 32}],
                    "took": [None, "P1DT7200S"],
                    "total": [None, {"type": "app.Money"}],
                    "at": [None, "2024-01-02T08:00:00+00:00"],
                },
            }
        ],
        "transaction": "committed",
        "metadata": {"took": 93600.0},
    }
)
"""As version 1 wrote it: values in changes had forms of their own."""


def faults_of(payload: str | bytes) -> list[str]:
    """What the schema has against a payload; nothing against one that claims no known version.

    Tests that put odd rows into a store, behind the back of all that writes records, do that.
    """
    return list(_faults_of(payload))


# copies of one filled store hold the same payloads, and to validate one takes a millisecond
@functools.lru_cache(maxsize=10_000)
def _faults_of(payload: str | bytes) -> tuple[str, ...]:
    told = json.loads(payload)
    if not isinstance(told, dict) or told.get("schema_version") not in READABLE_VERSIONS:
        return ()
    return tuple(f"{error.json_path}: {error.message}" for error in _VALIDATOR.iter_errors(told))


def tables() -> str:
    parts = [("The record", SCHEMA), *((f"`{name}`", SCHEMA["$defs"][name]) for name in _PARTS)]
    return "\n".join(f"### {title}\n\n{_table(part)}" for title, part in parts)


def with_tables(page: str) -> str:
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{tables()}\n{_END}{after}"


def _table(part: dict[str, Any]) -> str:
    lines = ["| field | type | there | meaning | example |", "|---|---|---|---|---|"]
    for name, field in part["properties"].items():
        there = "always" if name in part["required"] else f"if {field['x-present']}"
        if there.startswith("if not "):
            there = f"unless {there.removeprefix('if not ')}"
        example = (
            json.dumps(field["examples"][0], ensure_ascii=False) if "examples" in field else ""
        )
        told = (f"`{name}`", _type(field), there, _meaning(field), example and f"`{example}`")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in told) + " |")
    return "\n".join(lines) + "\n"


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return "value" if name == "Value" else f"[{name}](#{name.lower()})"
    if field["type"] == "array":
        inner = field["items"]
        return f"list of {_type(inner)}"
    kind = str(field["type"])
    return f"{kind}, {field['x-unit']}" if "x-unit" in field else kind


def _meaning(field: dict[str, Any]) -> str:
    words = ", ".join(f"`{word}`" for word in field.get("enum", ()))
    told = [str(field["description"])]
    if words:
        told.append(f"One of {words}.")
    if "default" in field:
        told.append(f"Default: `{json.dumps(field['default'])}`.")
    return " ".join(told)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
