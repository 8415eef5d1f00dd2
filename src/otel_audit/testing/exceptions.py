"""The checked-in file of routes that need not be recorded. It is read, and never written."""

from __future__ import annotations

import datetime as dt
import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from otel_audit.errors import ConfigurationError

_NEEDED: Final = ("route", "reason", "owner")
_KNOWN: Final = (*_NEEDED, "until")


@dataclass(frozen=True, slots=True)
class RouteException:
    """One route that need not be recorded.

    Attributes:
        route: ``POST /webhooks/stripe``.
        reason: Why.
        owner: Who answers for it.
        until: The last day on which it holds; None: always.
    """

    route: str
    reason: str
    owner: str
    until: dt.date | None = None


def read_exceptions(file: Path) -> list[RouteException]:
    """Read the exceptions; a file that is not there has none.

    Raises:
        ConfigurationError: It is not TOML, or an exception in it lacks something or has a field
            that is not known; the message names file, place and field.
    """
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file.name}: cannot be read: {error}") from error
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file.name}: not TOML: {error}") from error
    for name in found:
        if name != "exception":
            raise ConfigurationError(f"{file.name}: {name}: {_unknown(name, ('exception',))}")
    entries = found.get("exception", [])
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise ConfigurationError(f"{file.name}: expected tables of the name [[exception]]")
    read = [_exception(one, f"{file.name}: exception {n}") for n, one in enumerate(entries, 1)]
    known: set[str] = set()
    for one in read:
        if one.route in known:
            raise ConfigurationError(f"{file.name}: {one.route} is there twice")
        known.add(one.route)
    return read


def _exception(entry: dict[str, Any], where: str) -> RouteException:
    route = entry.get("route")
    place = f"{where} ({route})" if isinstance(route, str) else where
    for name in entry:
        if name not in _KNOWN:
            raise ConfigurationError(f"{place}: {name}: {_unknown(name, _KNOWN)}")
    for name in _NEEDED:
        value = entry.get(name)
        if not isinstance(value, str) or not value.strip():
            raise ConfigurationError(f"{place}: {name}: missing; every exception needs one")
    method, space, path = str(route).partition(" ")
    if not space or not path.startswith("/") or method != method.upper():
        raise ConfigurationError(
            f'{place}: route: expected method and path, such as "POST /orders/{{order_id}}"'
        )
    until = entry.get("until")
    if until is not None and (not isinstance(until, dt.date) or isinstance(until, dt.datetime)):
        raise ConfigurationError(f"{place}: until: expected a date such as 2027-01-31, unquoted")
    return RouteException(str(route), entry["reason"], entry["owner"], until)


def _unknown(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"not known; {hint}"
