"""Redaction measured on both sides: what of the secrets goes, and what of the innocents stays."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from corpus import Case, innocents, secrets

from otel_audit.redaction import Redactor

redactor = Redactor()
PAGE = Path(__file__).parents[3] / "docs" / "redaction.md"


def is_taken_out(case: Case) -> bool:
    """Tell whether the secret is gone, as a document and as JSON text."""
    told = json.dumps(redactor.document(case.document), ensure_ascii=False)
    raw = redactor.json_or_none(json.dumps(case.document, ensure_ascii=False).encode()).decode()
    assert case.secret is not None
    return case.secret not in told and case.secret not in raw


def is_kept(case: Case) -> bool:
    """Tell whether nothing was taken out, as a document and as JSON text."""
    raw = redactor.json_or_none(json.dumps(case.document).encode())
    return redactor.document(case.document) == case.document == json.loads(raw)


def measured() -> dict[str, tuple[str, int, int]]:
    """Count by kind: which side it is of, how many are judged rightly, of how many."""
    right: Counter[str] = Counter()
    every: Counter[str] = Counter()
    sides: dict[str, str] = {}
    for side, cases, is_right in (
        ("secret", secrets(), is_taken_out), ("innocent", innocents(), is_kept),
    ):  # fmt: skip
        for case in cases:
            name = f"{side}: {case.kind}"
            sides[name] = side
            every[name] += 1
            right[name] += is_right(case)
    return {name: (side, right[name], every[name]) for name, side in sides.items()}


@pytest.fixture(scope="module")
def figures() -> dict[str, tuple[str, int, int]]:
    return measured()


def test_most_secrets_go(figures: dict[str, tuple[str, int, int]]) -> None:
    """Recall: at least 99 of 100 secrets."""
    taken = sum(right for side, right, _ in figures.values() if side == "secret")
    every = sum(count for side, _, count in figures.values() if side == "secret")
    assert every > 350
    assert taken / every >= 0.99, figures


def test_most_innocents_stay(figures: dict[str, tuple[str, int, int]]) -> None:
    """Of what is innocent at most one in a hundred is touched."""
    kept = sum(right for side, right, _ in figures.values() if side == "innocent")
    every = sum(count for side, _, count in figures.values() if side == "innocent")
    assert every > 700
    assert kept / every >= 0.99, figures


def test_the_page_says_it(figures: dict[str, tuple[str, int, int]]) -> None:
    """The table in the documentation is what is measured here."""
    text = PAGE.read_text("utf-8")
    rows = [f"| {name} | {right} of {every} |" for name, (_, right, every) in figures.items()]
    missing = [row for row in rows if row not in text]
    assert not missing, "\n".join(rows)
