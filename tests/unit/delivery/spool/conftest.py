"""Fixtures of the spool's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory for spools that does not exist yet."""
    return tmp_path / "spools"
