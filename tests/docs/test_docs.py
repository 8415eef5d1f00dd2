"""Every example in the documentation is run, and every setting and name in it exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import settings_table
from docs_runner import needs_postgres, parts_of, run_page
from otel_audit_postgres.personal.protect import read_fields
from otel_audit_postgres.schema.migrations import latest_version

import otel_audit
from otel_audit import AuditConfig, ConfigurationError

ROOT = Path(__file__).parents[2]
RUN = (
    "start",
    "capture",
    "recording-by-hand",
    "orm",
    "payload",
    "policy",
    "redaction",
    "retention",
    "actors-and-tenants",
    "command-line",
    "containers",
    "frameworks",
    "kubernetes",
    "searching",
    "streams",
    "tracing-backends",
    "troubleshooting",
    "uninstall",
    "upgrade",
    "configuration",
    "delivery",
    "testing",
    "viewer",
)
PAGES = [ROOT / "docs" / f"{name}.md" for name in RUN]
EVERY = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]


def names_of(pages: list[Path]) -> list[str]:
    return [page.stem for page in pages]


def headings_of(page: Path) -> set[str]:
    """The anchors that a reader's browser knows of a page."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in found}


class TestExamples:
    @pytest.mark.slow
    @pytest.mark.parametrize("page", PAGES, ids=names_of(PAGES))
    def test_each_one_does_what_the_page_says(self, page, tmp_path, request):
        """Blocks are executed, files written, commands typed, outputs compared."""
        admin = request.getfixturevalue("database") if needs_postgres(page) else None
        assert run_page(page, tmp_path, admin) > 0

    @pytest.mark.parametrize("page", PAGES, ids=names_of(PAGES))
    def test_none_is_only_for_show(self, page):
        """A block of a language that can be run, is."""
        shown = {"python", "console", "check", "run", "needs"}
        assert [
            part.line for part in parts_of(page) if part.name is None and part.language not in shown
        ] == []


class TestNames:
    @pytest.mark.parametrize("page", EVERY, ids=names_of(EVERY))
    def test_every_setting_exists(self, page):
        """No page names a setting that is not there."""
        known = {f"OTEL_AUDIT_{name.upper()}" for name in AuditConfig.model_fields}
        named = set(re.findall(r"OTEL_AUDIT_[A-Z_]+", page.read_text()))
        # the second is there to show what becomes of a mistake, the third is click's
        others = {"OTEL_AUDIT_CONFIG_FILE", "OTEL_AUDIT_BODYLIMIT", "OTEL_AUDIT_COMPLETE"}
        assert named - known - others == set()

    @pytest.mark.parametrize("page", EVERY, ids=names_of(EVERY))
    def test_every_function_exists(self, page):
        """What a page calls in the package is public."""
        named = set(re.findall(r"otel_audit\.(\w+)\(", page.read_text()))
        assert named - set(otel_audit.__all__) == set()

    @pytest.mark.parametrize("page", EVERY, ids=names_of(EVERY))
    def test_every_link_leads_somewhere(self, page):
        """Pages that are linked to are there."""
        links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
        assert [link for link in links if not (page.parent / link).exists()] == []


class TestIndex:
    def test_every_page_has_one_kind(self):
        """The index names each page once, under start, how-to, reference or explanation."""
        index = (ROOT / "docs" / "README.md").read_text()
        kinds = re.findall(r"^## (.+)$", index, re.MULTILINE)
        assert kinds == ["Start", "How-to", "Reference", "Explanation"]
        listed = re.findall(r"^- .*?\]\((\w[\w-]*\.md)\)", index, re.MULTILINE)
        pages = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.stem != "README")
        assert sorted(listed) == pages

    def test_every_page_begins_with_its_kind_and_its_question(self):
        """Whoever opens a page sees in one line whether it is the right one."""
        index = (ROOT / "docs" / "README.md").read_text()
        kind, wrong = "", []
        for title, link in re.findall(r"^## (.+)$|^- .*?\]\((\w[\w-]*\.md)\)", index, re.MULTILINE):
            kind = title or kind
            begin = (ROOT / "docs" / link).read_text().split("\n")[:3] if link else None
            if begin and not re.fullmatch(rf"\*{kind}\. [A-Z][^.?]+\?\*", begin[2]):
                wrong.append((link, begin[2]))
        assert wrong == []

    @pytest.mark.parametrize(
        "page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem
    )
    def test_every_link_of_every_page_leads_somewhere(self, page):
        """Files that are linked to are there, and headings within pages, too."""
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
            path, _, heading = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            if heading and target.suffix == ".md":
                assert heading in headings_of(target), link

    def test_the_front_door_takes_three_minutes(self):
        """The README has less than 1,200 words."""
        assert len((ROOT / "README.md").read_text().split()) < 1_200


class TestMigrations:
    @pytest.mark.parametrize(
        "place", ["docs/migrations.md", "exporters/otel_audit_postgres/alembic.py"]
    )
    def test_a_revision_names_the_latest_version(self, place):
        """Whoever copies the example gets the schema that this version writes to."""
        named = re.findall(r"audit\.upgrade\(op, to=(\d+)\)", (ROOT / place).read_text())
        assert named == [str(latest_version())]


class TestConfiguration:
    def test_the_table_is_that_of_the_code(self):
        """To write it anew: python tests/settings_table.py."""
        page = settings_table.PAGE.read_text()
        assert page == settings_table.with_table(page), "run: python tests/settings_table.py"

    def test_bounds_are_those_that_hold(self):
        """The lowest and highest value in the table are taken; "above 0" says that 0 is not."""
        rows = re.findall(r"^\| `OTEL_AUDIT_(\w+)` \| ((?:number|integer)[^|]*) \|",
                          settings_table.table(), re.MULTILINE)  # fmt: skip
        assert len(rows) > 25
        for setting, takes in rows:
            low = float(re.search(r"(?:above|from|,) ([\d.]+)", takes)[1])
            if " above " in takes:
                with pytest.raises(ConfigurationError, match=f"OTEL_AUDIT_{setting}: "):
                    AuditConfig(**{setting.lower(): low})
            for _, highest in re.findall(r"(to|at most) ([\d.]+)", takes):
                kind = int if takes.startswith("integer") else float
                AuditConfig(**{setting.lower(): kind(highest)})
                with pytest.raises(ConfigurationError, match=f"OTEL_AUDIT_{setting}: "):
                    AuditConfig(**{setting.lower(): kind(highest) + 1})
            if " above " not in takes:
                AuditConfig(**{setting.lower(): low})

    def test_every_personal_value_is_named(self):
        """In the setting's description, on the page, and in the message for a wrong one."""
        with pytest.raises(ConfigurationError) as refused:
            read_fields(["nothing"])
        names = str(refused.value).rpartition("names nothing: ")[2].split(", ")
        setting = AuditConfig.model_fields["personal"]
        described = {*setting.default, *re.findall(r"[\w.]+\.[\w.]*\w", setting.description)}
        page = (ROOT / "docs" / "personal-data.md").read_text()
        assert described == set(names)
        assert [name for name in names if name not in page] == []
        read_fields([name.replace("NAME", "x").replace("ENTITY.COLUMN", "A.b") for name in names])

    def test_every_setting_is_described(self):
        """No line of the table is empty."""
        assert [n for n, f in AuditConfig.model_fields.items() if not f.description] == []
