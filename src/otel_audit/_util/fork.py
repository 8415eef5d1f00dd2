"""Resets objects in a forked child, in one place and in one order.

`os.register_at_fork` keeps for ever what it is given. Here an object is forgotten with its last
user, and what fails in the child holds up none of the others.
"""

from __future__ import annotations

import itertools
import logging
import os
import weakref
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_logger = logging.getLogger(__name__)

_hooks: Final[dict[int, Callable[[], object]]] = {}
"""In the order of registration: what was made first is in order again when what was built upon it
starts again."""

_numbers: Final = itertools.count()


def call_in_child(act: Callable[[], object]) -> None:
    """Call a function in each forked child.

    Args:
        act: Must not block, and take no lock that another thread of the parent may have held.
    """
    _hooks[next(_numbers)] = act


def renew_in_child(owner: T, renew: Callable[[T], object]) -> None:
    """Reset an object in each forked child, for as long as it exists.

    Args:
        owner: The object; it is not kept alive.
        renew: Is called with it, as for `call_in_child`.
    """
    number = next(_numbers)
    alive = weakref.ref(owner, lambda _: _hooks.pop(number, None))

    def act() -> None:
        found = alive()
        if found is not None:
            renew(found)

    _hooks[number] = act


def _renew_all() -> None:
    # a copy: an object may end while the others start again
    for act in list(_hooks.values()):
        try:
            act()
        except Exception:
            _logger.critical("A part of otel-audit does not work in this child", exc_info=True)


os.register_at_fork(after_in_child=_renew_all)
