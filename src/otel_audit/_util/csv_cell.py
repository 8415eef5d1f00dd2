"""Cells of CSV files."""

from __future__ import annotations

from typing import Final

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet takes for the beginning of a formula, in full width, too."""


def not_a_formula(text: str) -> str:
    """A cell's text, after an apostrophe if a spreadsheet would read it as a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text
