"""What the page about changing the code says is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from otel_audit.action.compose import Ending
from otel_audit.config import AuditConfig
from otel_audit.identity.actor import _RESOLVERS, ActorOptions
from otel_audit.record import AuditRecord

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contributing.md").read_text()
DESIGN = (ROOT / "docs" / "architecture.md").read_text()
ROOTS = (ROOT, ROOT / "src", ROOT / "src/otel_audit", ROOT / "exporters")
NOT_YET = "exporters/otel_audit_postgres/sql/NNNN_region.sql"
TABLES = {"audit.quarantine"}
"""In the glossary's last column, and no modules."""
EXAMPLE = "trace_sampled"
"""A field that nothing but the record itself needs: so it stands in the places of any field."""
SCOPE = "src/otel_audit/scope.py"
"""Where a field waits that the action learns on its way."""
OF_THE_SPAN = {"occurred_at", "duration", "trace_id", "span_id", "resource"}
OF_THE_STORE = {"received", "conflict_of"}
"""No sender says these."""
NEVER_OTHERWISE = OF_THE_STORE | {
    "record_id", "action_id", "parent_action_id", "phase", "schema_version", "occurred_at",
    "trace_id", "span_id", "trace_sampled", "producer_id", "resource",
}  # fmt: skip
"""Fields that are the same at the answer and at the end."""
DESCRIBED_AGAIN = {
    "event_name", "action", "level", "actor", "source", "request", "response", "error", "metadata",
}  # fmt: skip
"""Fields whose change `ExchangeRecordBuilder.still_rests_on` notices."""


def section(title: str) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


class TestAField:
    def test_has_the_places_that_the_page_lists(self) -> None:
        """Whoever adds a field finds each place on the page, and no other place needs it."""
        listed = re.findall(
            r"^\d\. `([^`]+\.py)`", section("Add a field to the record"), re.MULTILINE
        )
        sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "exporters").rglob("*.py")]
        found = {
            str(path.relative_to(ROOT))
            for path in sources
            # users' tests, the command line and the shapes for other systems show fields by name
            if not {"testing", "cli", "shapes"} & {*path.parts}
            and re.search(rf"\b{EXAMPLE}\b", path.read_text())
        }

        assert found - {SCOPE} == {*listed}
        assert f"`{SCOPE}`" in section("Add a field to the record")

    @pytest.mark.parametrize("name", AuditRecord.__struct_fields__)
    def test_is_filled_by_the_builder(self, name: str) -> None:
        """No field is set anywhere but in the one module that builds records."""
        builder = (ROOT / "src/otel_audit/action/compose.py").read_text()

        assert re.search(rf"\b{name}=", builder)

    @pytest.mark.parametrize("name", sorted({*AuditRecord.__struct_fields__} - OF_THE_STORE))
    def test_is_carried_by_spans(self, name: str) -> None:
        """A field that is forgotten there is lost on the way through a Collector."""
        attributes = (ROOT / "src/otel_audit/attributes.py").read_text()
        spelling, _, reading = attributes.partition("def record_from_attributes(")

        assert name in OF_THE_SPAN or re.search(rf'"{name}"|record\.{name}\b', spelling)
        assert re.search(rf'\b{name}=|"{name}":', reading)

    def test_that_changes_after_the_answer_is_not_kept_as_it_was(self) -> None:
        """Whoever adds a field says here which: the end states it, or what it rests on is looked at."""
        kept_or_said = NEVER_OTHERWISE | DESCRIBED_AGAIN | {*Ending.__struct_fields__}

        assert {*AuditRecord.__struct_fields__} == kept_or_said


def test_every_file_on_the_page_exists() -> None:
    """A path that leads nowhere helps nobody."""
    named = set(re.findall(r"`([\w./-]+/[\w./-]*)`", PAGE)) - {NOT_YET}

    assert [one for one in sorted(named) if not any((root / one).exists() for root in ROOTS)] == []


def test_every_module_of_the_design_page_exists() -> None:
    """The glossary's last column, and the layers, are places in the code."""
    glossary = DESIGN.partition("## Glossary\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| [^|]+ \| .+ \| (.+) \|$", glossary, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    layers = DESIGN.partition("## Layers\n")[2].partition("\n## ")[0]
    columns = re.findall(r"^\| (`.+?) \|", layers, re.MULTILINE)
    named |= {
        name.removeprefix("otel_audit.").removeprefix(".").replace(".", "/")
        for column in columns
        for name in re.findall(r"`([^`]+)`", column)
    }
    named |= set(re.findall(r"`([\w/]+/\w+\.py)`", DESIGN))
    places = [*ROOTS, ROOT / "exporters/otel_audit_postgres"]
    missing = [
        name
        for name in sorted(named - TABLES)
        if not any((root / f"{name}{end}").exists() for root in places for end in ("", ".py"))
    ]

    assert missing == []
    assert len(named) > 50


def test_the_design_page_has_every_shared_helper() -> None:
    """Who looks for a helper, and does not find it there, writes it a second time."""
    row = re.search(r"^\| `otel_audit\._util` \| (.+) \|$", DESIGN, re.MULTILINE)
    helpers = {path.stem for path in (ROOT / "src/otel_audit/_util").glob("*.py")} - {"__init__"}

    assert row is not None
    assert helpers - set(re.findall(r"`(\w+)`", row[1])) == set()


def test_the_unit_tier_is_quick() -> None:
    """What takes seconds, or a document, has a tier of its own."""
    slow = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests" / "unit").rglob("test_*.py")
        if re.search(r"mark\.slow\b|docs_runner", path.read_text())
    ]

    assert slow == []


def test_every_tier_is_on_the_page() -> None:
    """A directory of tests without a line says nothing to who adds one."""
    tiers = {
        f"tests/{path.name}"
        for path in (ROOT / "tests").iterdir()
        if path.name == "benchmarks" or any(path.glob("**/test_*.py"))
    }

    assert tiers == set(re.findall(r"^\| `(tests/\w+)`", section("Add a test"), re.MULTILINE))


def test_every_function_of_the_page_is_in_its_file() -> None:
    """Who follows a row finds the function where the row says."""
    groups = re.findall(r"`([\w/]+\.py)`,? \(((?:`[\w.]+`[^()`]*)+)\)", PAGE)
    named = [(file, name) for file, names in groups for name in re.findall(r"`([\w.]+)`", names)]
    missing = [
        (file, name)
        for file, name in named
        if not any(
            re.search(rf"\b(?:def|class) {part}\b", (root / file).read_text())
            for root in ROOTS
            if (root / file).exists()
            for part in name.split(".")[-1:]
        )
    ]

    assert missing == []
    assert len(named) > 15


@pytest.mark.parametrize("package", ["otel_audit", "otel_audit_postgres"])
def test_the_design_page_has_every_layer(package: str) -> None:
    """A layer of the import checker that the page leaves out is one that nobody can place."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(
        contract["layers"]
        for contract in contracts["contracts"]
        if contract.get("containers") == [package]
    )
    table = DESIGN.partition("## Layers\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(?:otel_audit)?\.?(\w+)`", table))

    assert {name for layer in layers for name in layer.split(" | ")} - named - {"__main__"} == set()


def test_the_order_of_actors_names_each_resolver() -> None:
    """A resolver that the default leaves out is one that nobody asks."""
    assert set(AuditConfig.model_fields["actor_order"].default) == set(_RESOLVERS)
    assert ActorOptions().order == AuditConfig.model_fields["actor_order"].default
