"""The viewer stays small: what a browser loads, and what there is to read."""

from __future__ import annotations

from pathlib import Path

import pytest

import otel_audit.viewer

PLACE = Path(otel_audit.viewer.__file__).parent
KIB = 1024


@pytest.mark.parametrize(
    ("names", "most"),
    [
        (("viewer.js",), 8 * KIB),
        (("embed.js", "loader.js"), 4.5 * KIB),
        (("viewer.css",), 15 * KIB),
    ],
)  # fmt: skip
def test_scripts_and_styles_are_small(names, most):
    """The script of the pages, those of the frame, and the style sheet; as they are sent."""
    assert sum((PLACE / "static" / name).stat().st_size for name in names) <= most


def test_there_is_nothing_else_to_load():
    """No library was copied in, and nothing is built."""
    names = {file.name for file in (PLACE / "static").iterdir()}
    assert names == {"viewer.js", "embed.js", "loader.js", "viewer.css", "icon.svg"}


def test_the_code_is_short():
    """Modules and templates together."""
    files = [*PLACE.rglob("*.py"), *PLACE.rglob("*.html")]
    assert sum(len(file.read_text().splitlines()) for file in files) <= 4_000
