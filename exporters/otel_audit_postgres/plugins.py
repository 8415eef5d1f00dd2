"""Anchors and signers that the settings name as ``module:name``."""

from __future__ import annotations

import importlib
from typing import Any

from otel_audit._util.ratelimited_log import place_of
from otel_audit.errors import ConfigurationError


def called(place: str, setting: str, *, kind: str, members: tuple[str, ...]) -> Any:
    """Import a callable, call it without arguments, and return what it gives.

    Args:
        place: ``module:name``.
        setting: Where that was said, for the message.
        kind: What it must give, as the message calls it: ``an anchor``.
        members: The names that it must have; those of methods with ``()`` behind them.

    Raises:
        ConfigurationError: It cannot be imported, or raised, or gave something else.
    """
    module, separator, name = place.partition(":")
    if not (module and separator and name):
        raise ConfigurationError(f"{setting}: module:name is needed")
    try:
        made = getattr(importlib.import_module(module), name)()
    except Exception as error:
        raise ConfigurationError(
            f"{setting}: what it names could not be made [{place_of(error)}]"
        ) from error
    if not all(hasattr(made, member.removesuffix("()")) for member in members):
        raise ConfigurationError(
            f"{setting}: what it names returned {type(made).__name__}, which has not the "
            f"{', '.join(members[:-1])} and {members[-1]} of {kind}"
        )
    return made
