"""A minimal patch (RFC 6902) from one redacted JSON value to another."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import msgspec


@functools.cache
def _library() -> Any:
    # at the first patch, not at the start: most programs never change a JSON value
    try:
        return importlib.import_module("jsonpatch")
    except ImportError:  # the two values are in the entry anyway
        return None


_LARGEST = 16_384
"""Bytes of both values: comparing grows faster than they do, and the flush waits for it."""


def patch_between(before: Any, after: Any) -> list[dict[str, Any]] | None:
    """Make a patch.

    Args:
        before: A redacted JSON value.
        after: A redacted JSON value.

    Returns:
        The operations; None if one of the two is not an object or list, where they are too large
        for the time a flush may take, or where the library is not installed.
    """
    if not (isinstance(before, dict | list) and isinstance(after, dict | list)):
        return None
    library = _library()
    if library is None:
        return None
    if len(msgspec.json.encode((before, after))) > _LARGEST:
        return None
    return list(library.make_patch(before, after))
