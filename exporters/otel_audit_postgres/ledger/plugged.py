"""Anchors and signers that the settings name as ``module:name``."""

from __future__ import annotations

import importlib
from typing import Any

from otel_audit.errors import ConfigurationError


def called(place: str, setting: str) -> Any:
    """Import a callable, call it without arguments, and return what it gives.

    Args:
        place: ``module:name``.
        setting: Where that was said, for the message.

    Raises:
        ConfigurationError: It cannot be imported, or raised.
    """
    module, separator, name = place.partition(":")
    if not (module and separator and name):
        raise ConfigurationError(f"{setting}: module:name is needed, not {place}")
    try:
        return getattr(importlib.import_module(module), name)()
    except Exception as error:
        raise ConfigurationError(
            f"{setting}: {place} could not be made ({type(error).__name__}: {error})"
        ) from error
