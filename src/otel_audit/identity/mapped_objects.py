"""Actor and tenant attributes of mapped objects, saved before a commit expires them.

SQLAlchemy expires the attributes of each object when its transaction ends, and queries the database
again when one is read. An observer must not cause that query; so the few attributes that
name an actor or a tenant are remembered before.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Final

NAMES: Final = frozenset({
    "id", "user_id", "sub", "pk", "uuid", "identity", "username", "email", "name", "actor_type",
    "role", "roles", "type", "on_behalf_of", "is_authenticated",
    "tenant_id", "tenant_slug", "slug",
})  # fmt: skip
"""The attributes that are ever read of such an object."""

_known: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def state_of_mapped(thing: object) -> Any:
    """Return SQLAlchemy's state of a mapped object, None for any other."""
    try:
        return vars(thing).get("_sa_instance_state")
    except TypeError:
        return None


def remembered(state: Any, name: str) -> Any:
    """Return the last seen value of an attribute; None if it was not seen."""
    known = _known.get(state)
    return None if known is None else known.get(name)


def has_remembered() -> bool:
    """Whether anything is remembered, which a commit may have made out of date."""
    return len(_known) > 0


def remember_loaded(things: Iterable[object]) -> None:
    """Remember the current attributes of mapped objects; they are about to be committed.

    Args:
        things: Objects of the application; what is not mapped is left alone.
    """
    for thing in things:
        state = state_of_mapped(thing)
        if state is not None:
            loaded = vars(thing)
            found = {name: loaded[name] for name in NAMES if name in loaded}
            if found:
                _known[state] = {**_known.get(state, {}), **found}


def remember_stored(things: Iterable[object]) -> None:
    """Remember the committed attributes of mapped objects: later values may be rolled back.

    Args:
        things: Objects of the application; what is not mapped is left alone.
    """
    for thing in things:
        state = state_of_mapped(thing)
        if state is None:
            continue
        loaded, before, known = vars(thing), state.committed_state, _known.get(state, {})
        found = {
            name: before.get(name, loaded[name])
            for name in NAMES
            if name in loaded and name not in known
        }
        # a marker of SQLAlchemy's stands for what was not there before
        found = {name: one for name, one in found.items() if not _is_marker(one)}
        if found:
            _known[state] = {**known, **found}


def _is_marker(value: Any) -> bool:
    return type(value).__module__.startswith("sqlalchemy.")
