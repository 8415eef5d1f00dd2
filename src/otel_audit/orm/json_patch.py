"""A minimal patch (RFC 6902) from one redacted JSON value to another."""

from __future__ import annotations

import importlib
from typing import Any

import msgspec


def _library() -> Any:
    try:
        return importlib.import_module("jsonpatch")
    except ImportError:  # the two values are in the entry anyway
        return None


_jsonpatch = _library()

_LARGEST = 16_384


def patch_between(before: Any, after: Any) -> list[dict[str, Any]] | None:
    """Make a patch.

    Args:
        before: A redacted JSON value.
        after: A redacted JSON value.

    Returns:
        The operations; None if one of the two is not an object or list, where they are too large
        for the time a flush may take, or where the library is not installed.
    """
    if _jsonpatch is None or not (
        isinstance(before, dict | list) and isinstance(after, dict | list)
    ):
        return None
    if len(msgspec.json.encode((before, after))) > _LARGEST:
        return None
    return list(_jsonpatch.make_patch(before, after))
