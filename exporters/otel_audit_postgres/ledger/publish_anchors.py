"""A sealer's anchors: read and written in parallel, each within a time limit.

An anchor that hangs delays neither sealing nor the other anchors: its call continues, and
it is left out until it has answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from otel_audit._util.loop_thread import run_in_thread
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.errors import OtelAuditError
from otel_audit_postgres.ledger.anchors import Anchor, AnchorError, ask, not_for_ever
from otel_audit_postgres.ledger.checkpoints import read_checkpoint

_logger = logging.getLogger(__name__)

PATIENCE: Final = 2.0
"""Seconds that one round waits for anchors, and no more, however many there are."""


class AnchorCheckpoint(NamedTuple):
    """An anchor's last checkpoint; None if it has none."""

    anchor: Anchor
    note: str | None


class Publishing:
    """A sealer's running calls to its anchors. Used from one event loop only.

    Attributes:
        failures: Number of failed reads and writes of anchors.
    """

    def __init__(self, anchors: Sequence[Anchor]) -> None:
        """Start without calls; no anchor is read yet.

        Args:
            anchors: Where checkpoints are published.
        """
        self.anchors = tuple(anchors)
        self.failures = 0
        self._published: dict[int, int] = {}
        self._under_way: dict[int, asyncio.Task[Any]] = {}
        self._asking: set[int] = set()

    def behind(self, size: int) -> list[Anchor]:
        """The anchors that lack the checkpoint of this size, as known to this process."""
        return [anchor for anchor in self.anchors if self._published.get(id(anchor), -1) < size]

    def has_published(self, anchor: Anchor) -> bool:
        """Whether a checkpoint with leaves was published there by this process."""
        return self._published.get(id(anchor), 0) > 0

    async def ask(
        self, anchors: Sequence[Anchor], *, begun_here: bool = False
    ) -> list[AnchorCheckpoint]:
        """Read the last checkpoint of anchors.

        Args:
            anchors: Those to read.
            begun_here: Whether an answer that came late, and knows nothing, counts: the log may
                have begun since, and then only the one that began it knows that it is new there.

        Returns:
            The answers of those that gave one in time; the others are tried again another time.
        """
        answers = []
        tasks = {}
        for one in anchors:
            late = self._late(one)
            if isinstance(late, str) or (late is None and begun_here):
                answers.append(AnchorCheckpoint(one, late))
                continue
            task = self._begun(one, partial(_asked, one))
            if task is not None:
                self._asking.add(id(task))
                tasks[id(one)] = task
        await self._wait(tasks.values())
        for one in anchors:
            task = tasks.get(id(one))
            if task is not None and self._is_done(one, task):
                answers.append(AnchorCheckpoint(one, task.result()))
        return answers

    def _late(self, anchor: Anchor) -> object:
        """An anchor's answer since its call; `_FAILED` if there is none."""
        task = self._under_way.get(id(anchor))
        if task is None or not task.done() or id(task) not in self._asking:
            return _FAILED
        del self._under_way[id(anchor)]
        self._asking.discard(id(task))
        return task.result()

    async def begin(self, anchors: Sequence[Anchor], note: str) -> list[Anchor]:
        """Have places made, and say there that the log begins; returns where that was done."""
        tasks = {id(one): self._begun(one, partial(_begin, one, note)) for one in anchors}
        await self._wait(filter(None, tasks.values()))
        return [
            one
            for one in anchors
            if (task := tasks[id(one)]) is not None and self._is_done(one, task)
        ]

    async def publish(
        self, note: str, anchors: Sequence[Anchor], new: Sequence[Anchor] = ()
    ) -> None:
        """Publish a checkpoint; where it fails, or takes long, a later round tries again.

        Args:
            note: The checkpoint.
            anchors: Where to.
            new: Those of them that hold nothing, and whose places are made first.
        """
        size = read_checkpoint(note).size
        begun = [
            self._begun(one, partial(_begin if one in new else _publish, one, note), size)
            for one in anchors
        ]
        await self._wait(filter(None, begun))

    async def end_running(self, timeout: float) -> None:  # noqa: ASYNC109 - hands it on
        """Wait for what is under way; what then still is has failed, and is given up."""
        if self._under_way:
            await asyncio.wait(self._under_way.values(), timeout=timeout)
        for one in self.anchors:
            task = self._under_way.pop(id(one), None)
            if task is not None and not task.done():
                task.cancel()
                self._warn(one, f"{one.name} does not answer")

    def forget_running(self) -> None:
        """Forget what is under way: its event loop is gone."""
        self._under_way.clear()

    def _begun(
        self,
        anchor: Anchor,
        work: Callable[[], Coroutine[Any, Any, Any]],
        size: int | None = None,
    ) -> asyncio.Task[Any] | None:
        """Begin something with an anchor, unless something is under way there already."""
        before = self._under_way.get(id(anchor))
        if before is not None and not before.done():
            self._warn(anchor, f"{anchor.name} does not answer")
            return None
        task = asyncio.ensure_future(self._guarded(anchor, work, size))
        self._under_way[id(anchor)] = task
        return task

    async def _guarded(
        self, anchor: Anchor, work: Callable[[], Coroutine[Any, Any, Any]], size: int | None
    ) -> Any:
        try:
            # an anchor may be anybody's, and one that blocks its loop must not hold up this one
            answer = await asyncio.wrap_future(run_in_thread("otel-audit-anchor", work))
        except AnchorError as error:
            self._warn(anchor, str(error))
        except Exception as error:  # noqa: BLE001 - the same
            self._warn(anchor, f"{anchor.name} failed ({type(error).__name__})")
        else:
            if size is not None:
                self._published[id(anchor)] = size
            return answer
        return _FAILED

    async def _wait(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        begun = list(tasks)
        if begun:
            await asyncio.wait(begun, timeout=PATIENCE)

    def _is_done(self, anchor: Anchor, task: asyncio.Task[Any]) -> bool:
        if not task.done():
            self._warn(anchor, f"{anchor.name} does not answer")
            return False
        self._asking.discard(id(task))
        self._under_way.pop(id(anchor), None)
        return task.result() is not _FAILED

    def _warn(self, anchor: Anchor, why: str) -> None:
        self.failures += 1
        log_limited(
            _logger, anchor.name,
            "Sealing continues, but its checkpoints are not published; tried again: %s", why,
        )  # fmt: skip


_FAILED: Final = object()


async def _asked(anchor: Anchor) -> str | None:
    return await anchor.last()


async def _publish(anchor: Anchor, note: str) -> None:
    await anchor.publish(note)


async def _begin(anchor: Anchor, note: str) -> None:
    make = getattr(anchor, "begin", None)
    if make is not None:
        await make()
    await anchor.publish(note)


async def begin_anchor(anchor: Anchor, note: str) -> None:
    """Publish a log's last checkpoint to an anchor that is new to it.

    Raises:
        OtelAuditError: It holds a checkpoint already, cannot be read, or does not accept one.
    """
    if await ask(anchor) is not None:
        raise OtelAuditError(f"the anchor {anchor.name} holds a checkpoint: it has begun already")
    await not_for_ever(anchor, lambda: _begin(anchor, note))
