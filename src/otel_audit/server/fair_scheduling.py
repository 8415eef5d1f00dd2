"""The event loop's time, shared fairly: senders of much wait for senders of little.

Reading requests is the sink's own work, and one at a time does it, for some milliseconds. Of those
who wait the sender is next that has used the least time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final, Self

_LONGEST: Final = 0.005
"""Seconds of work after which others have their turn."""

_MOST_REMEMBERED: Final = 1024
"""Senders whose use is known; where there are more, all begin again."""


class FairTurns:
    """Gives senders turns to work; used from one event loop only."""

    def __init__(self) -> None:
        """Start with no sender waiting."""
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._used: dict[str, float] = {}
        self._least = 0.0
        self._is_busy = False

    def of(self, sender: str) -> Turn:
        """Make a sender's turn, to be entered."""
        return Turn(self, sender)

    async def take(self, sender: str) -> None:
        """Wait until it is a sender's turn."""
        if not self._is_busy:
            self._is_busy = True
            return
        await self._wait(self._line_up(sender))

    async def renew(self, sender: str, seconds: float) -> None:
        """End a turn and wait for the sender's next one, which may follow at once.

        Args:
            sender: Whose it is.
            seconds: What was used of it.
        """
        # lined up before it is given back: what this sender has used counts against the others
        turn = self._line_up(sender)
        self.give_back(sender, seconds)
        await self._wait(turn)

    def give_back(self, sender: str, seconds: float) -> None:
        """End a turn.

        Args:
            sender: Whose it was.
            seconds: What was used of it.
        """
        if len(self._used) >= _MOST_REMEMBERED:
            # all start again with the same time
            self._used.clear()
            self._least = 0.0
        self._used[sender] = self._used_by(sender) + seconds
        self._pass_on()

    def _line_up(self, sender: str) -> asyncio.Future[None]:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(sender, deque()).append(turn)
        return turn

    async def _wait(self, turn: asyncio.Future[None]) -> None:
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # it had just become ours
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            sender = min(self._waiting, key=self._used_by)
            self._least = self._used_by(sender)
            turns = self._waiting[sender]
            turn = turns.popleft()
            if not turns:
                del self._waiting[sender]
            if not turn.done():
                turn.set_result(None)
                return
        self._is_busy = False

    def _used_by(self, sender: str) -> float:
        # who was away has not saved up time meanwhile
        return max(self._used.get(sender, 0.0), self._least)


class Turn:
    """One request's turns, one after another."""

    def __init__(self, turns: FairTurns, sender: str) -> None:
        """Start without a turn.

        Args:
            turns: What gives the turns.
            sender: Whose request it is.
        """
        self._turns = turns
        self._sender = sender
        self._began = 0.0
        self._is_ours = False

    async def pause(self) -> None:
        """Give the turn to others, if it has lasted long enough."""
        used = self._used()
        if used >= _LONGEST:
            await _let_others_line_up()
            self._is_ours = False
            await self._turns.renew(self._sender, used)
            self._begin()

    async def __aenter__(self) -> Self:
        """Wait for the turn."""
        await self._turns.take(self._sender)
        self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give it back, and let the loop look at its connections."""
        if not self._is_ours:
            return  # cancelled in a pause
        used = self._used()
        try:
            await _let_others_line_up()
        finally:
            self._is_ours = False
            self._turns.give_back(self._sender, used)

    def _begin(self) -> None:
        self._is_ours = True
        self._began = time.perf_counter()

    def _used(self) -> float:
        return time.perf_counter() - self._began


async def _let_others_line_up() -> None:
    """Let the loop look at its connections, and those go on that wanted a turn meanwhile.

    While the turn is still given: otherwise each of them would find it free, and the sender of the
    most requests had the most turns.
    """
    await asyncio.sleep(0)
