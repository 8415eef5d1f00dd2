"""Actions that take long: a record says that they have started, so that none runs unseen."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Protocol

from otel_audit._util.aio import Timer, call_after, running_trio


class Watchdog:
    """Notifies actions that have been under way for long: one timer a loop, not one an action."""

    def __init__(self, after: float) -> None:
        """Set the time.

        Args:
            after: Seconds.
        """
        self._after = after
        self._of_thread = threading.local()

    def begin(self, act: Callable[[], None]) -> WatchedAction | None:
        """Have something done when the time is over.

        Args:
            act: Is called on the event loop, in an empty context; must not raise.

        Returns:
            Where to end it before that; None if no event loop runs here.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if running_trio() is None:
                return None
            timer = call_after(self._after, act)
            return None if timer is None else _Alone(timer)
        board: _LoopWatch | None = getattr(self._of_thread, "board", None)
        if board is None or board.loop is not loop:
            board = self._of_thread.board = _LoopWatch(loop, self._after)
        board.add(act)
        return board


class WatchedAction(Protocol):
    """An action's entry at the watchdog."""

    def end(self, act: Callable[[], None]) -> None:
        """Do not do it any more."""


class _Alone:
    def __init__(self, timer: Timer) -> None:
        self._timer = timer

    def end(self, act: Callable[[], None]) -> None:  # noqa: ARG002 - there is only the one
        self._timer.cancel()


class _LoopWatch:
    """The actions under way on one event loop, in the order they began."""

    def __init__(self, loop: asyncio.AbstractEventLoop, after: float) -> None:
        self.loop = loop
        self._after = after
        self._due: dict[Callable[[], None], float] = {}
        self._is_set = False

    def add(self, act: Callable[[], None]) -> None:
        due = self.loop.time() + self._after
        self._due[act] = due
        if not self._is_set:
            self._set(self._after)

    def end(self, act: Callable[[], None]) -> None:
        self._due.pop(act, None)

    def _set(self, seconds: float) -> None:
        self._is_set = call_after(seconds, self._look) is not None

    def _look(self) -> None:
        self._is_set = False
        now = self.loop.time()
        for act, due in list(self._due.items()):
            if due > now:
                self._set(due - now)
                return
            del self._due[act]
            act()
