"""One module builds and derives records."""

from __future__ import annotations

import ast
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanContext

from otel_audit.action.compose import provenance_of
from otel_audit.record import Actor, AuditRecord, Change, Source

ROOT = Path(__file__).parents[3]
SOURCES = [
    *(ROOT / "src").rglob("*.py"),
    *(ROOT / "exporters").rglob("*.py"),
]
BUILDS = {
    "src/otel_audit/action/compose.py",
    # decodes what is spelled as attributes of a span
    "src/otel_audit/attributes.py",
    # examples for the tests of users
    "src/otel_audit/testing/make_record.py",
    # a record that is rolled back: it tells whether the table takes any
    "exporters/otel_audit_postgres/sink.py",
    # a reader's copy, which is shown without its bodies
    "exporters/otel_audit_postgres/query/display.py",
}
OF_RECORDS = set(AuditRecord.__struct_fields__) - {
    # other structs have these, too
    *Actor.__struct_fields__,
    *Change.__struct_fields__,
    *Source.__struct_fields__,
    "event_name",
    "action",
    "target",
}


def found_in(tree: ast.AST) -> Iterator[int]:
    """Lines in which a record is built, or a copy of one is made with other fields."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        fields = {keyword.arg for keyword in node.keywords}
        if name == "AuditRecord" or (name.endswith("structs.replace") and fields & OF_RECORDS):
            yield node.lineno


def test_no_other_module_builds_or_derives_records() -> None:
    """A field is filled, and a rule of phases written, in one place."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        if str(path.relative_to(ROOT)) not in BUILDS
        for line in found_in(ast.parse(path.read_text()))
    ]

    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "AuditRecord(record_id=x)",
        "msgspec.structs.replace(record, phase='intent')",
        "structs.replace(a.record, sequence_number=1)",
    ],
)
def test_the_rule_sees_what_it_forbids(code: str) -> None:
    """The test above can fail."""
    assert list(found_in(ast.parse(code))) == [1]


def test_a_span_ends_with_its_action() -> None:
    """The span that was asked for last, and what hangs on it, is not kept until the next action."""
    span = TracerProvider().get_tracer("app").start_span("GET /")
    place = provenance_of(span, "producer", {})
    assert provenance_of(span, "producer", {}) == place
    gone = weakref.ref(span)
    del span
    gc.collect()
    assert gone() is None


def test_a_span_that_takes_no_weak_reference_has_its_place() -> None:
    """A span of another make is asked each time."""

    class Slotted:
        __slots__ = ("context",)

        def get_span_context(self) -> SpanContext:
            return SpanContext(1, 2, is_remote=False)

    for _ in range(2):
        assert provenance_of(Slotted(), "producer", {}).trace_id == f"{1:032x}"  # type: ignore[arg-type]
