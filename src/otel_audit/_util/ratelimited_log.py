"""A rate limit for log lines: a storm of failures is one line a minute."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from otel_audit._util.cache import BoundedCache
from otel_audit._util.fork import call_in_child
from otel_audit._util.own_lock import holds_any, own_lock
from otel_audit._util.printable import visible

INTERVAL = 60.0
"""Seconds between two lines with the same key."""

on_caught: Callable[[BaseException], None] | None = None
"""Called with each error that a guard has caught, also if its line is held back: our own tests set
it, so that a mistake of ours does not hide behind a guard."""

_lock = own_lock()
_last: Final[BoundedCache[tuple[str, str], tuple[float, int]]] = BoundedCache(1024)
"""When a line was logged last, and how many were held back since. A key may name a file, of
which there is no end."""


class _Line(NamedTuple):
    """The arguments of `log_limited`; of the error the place."""

    logger: logging.Logger
    key: str | None
    message: str
    args: tuple[object, ...]
    level: int
    place: str = ""


postponed: Final[deque[_Line]] = deque(maxlen=1024)
"""Lines that were to be logged under a lock of ours; see `log_postponed`. Others follow them within
a second, unless the machine is at its end: the bound is for that case."""

_logging: Final[set[int]] = set()
"""Threads that are logging such lines."""


def log_limited(
    logger: logging.Logger,
    key: str,
    message: str,
    *args: object,
    level: int = logging.ERROR,
    error: BaseException | None = None,
) -> None:
    """Log a line, unless one with the same key was logged within the last minute.

    Not while the calling thread holds a lock of ours: a logging handler may record something itself
    (a change, if it writes to a database), or wait for a thread that does.

    Args:
        logger: Where to.
        key: What the line is about; lines with different keys do not hold each other back.
        message: The line, with ``%`` placeholders; it must not show values of the application.
        args: For the placeholders.
        level: The logging level.
        error: Its type and place are added; its message is not, as that may quote values.
    """
    if error is not None and on_caught is not None:
        on_caught(error)
    place = "" if error is None else f" [{place_of(error)}]"
    postponed.append(_Line(logger, key, message, args, level, place))
    log_postponed()


def log_when_free(logger: logging.Logger, level: int, message: str, *args: object) -> None:
    """Log a line when the calling thread holds no lock of ours, and hold none back.

    Args:
        logger: Where to.
        level: The logging level.
        message: As for `log_limited`.
        args: For the placeholders.
    """
    postponed.append(_Line(logger, None, message, args, level))
    log_postponed()


def log_postponed() -> None:
    """Log what was to be logged while the calling thread held a lock; not if it still holds one."""
    me = threading.get_ident()
    # a logging handler that records something is called by the loop below, which goes on
    if not postponed or me in _logging:
        return
    try:
        _logging.add(me)
        while postponed and not holds_any():
            try:
                line = postponed.popleft()
            except IndexError:  # another thread was faster
                return
            _log(line)
    finally:
        _logging.discard(me)


def _log(line: _Line) -> None:
    message, held_back = line.message, 0
    if line.key is not None:
        now = time.monotonic()
        entry = (line.logger.name, line.key)
        with _lock:
            last, held_back = _last.get(entry) or (-INTERVAL, 0)
            if now - last < INTERVAL:
                _last.put(entry, (last, held_back + 1))
                return
            _last.put(entry, (now, 0))
    if held_back:
        message += f" ({held_back} more such lines were held back)"
    message += line.place.replace("%", "%%")
    line.logger.log(line.level, message, *(_shown(one) for one in line.args))


def _shown(value: object) -> object:
    """Escape a quoted value: it may be hostile, and must not end the line or steer a terminal."""
    return visible(str(value)) if isinstance(value, str | BaseException | os.PathLike) else value


def forget() -> None:
    """Forget which lines were logged; for tests."""
    with _lock:
        _last.clear()


def _fresh_lock() -> None:
    """In a forked child: another thread of the parent may have held the lock."""
    global _lock  # noqa: PLW0603 - a lock cannot be given back for somebody else
    _lock = own_lock()
    # the parent logs its own lines
    postponed.clear()
    _logging.clear()


call_in_child(_fresh_lock)
# lines of a thread that had no more to do with us
atexit.register(log_postponed)


def place_of(error: BaseException) -> str:
    """Return the type of an error and where it was raised, and not its message."""
    traceback = error.__traceback__
    if traceback is None:
        return type(error).__name__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    return f"{type(error).__name__} at {code.co_filename}:{traceback.tb_lineno}"
