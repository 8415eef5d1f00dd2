"""The sink's page does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_runner import run_page

from otel_audit import AuditConfig

PAGE = Path(__file__).parents[2] / "docs" / "otlp-sink.md"


@pytest.mark.slow
def test_its_examples_run(tmp_path):
    assert run_page(PAGE, tmp_path) > 0


def test_every_setting_and_link_exists():
    text = PAGE.read_text()
    known = {f"OTEL_AUDIT_{name.upper()}" for name in AuditConfig.model_fields}
    assert set(re.findall(r"OTEL_AUDIT_[A-Z_]+", text)) <= known
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert [link for link in links if not (PAGE.parent / link).exists()] == []


def test_every_metric_is_there():
    source = (PAGE.parents[1] / "src" / "otel_audit" / "server" / "metrics.py").read_text()
    named = re.findall(r"`(audit\.sink\.[a-z_.]+)`", PAGE.read_text())
    named = [name for name in named if not name.startswith("audit.sink.records")]
    assert [name for name in named if f'"{name}"' not in source] == []
