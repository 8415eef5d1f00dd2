"""How much memory something keeps, for tests that say it is bounded."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Self


def kept_by(work: Callable[[], object]) -> int:
    """Run something; return the bytes that are still in use after it and were not before."""
    with _Traced() as traced:
        work()
        return traced.grown()


async def kept_by_async(work: Callable[[], Awaitable[object]]) -> int:
    """As `kept_by`, for a coroutine function."""
    with _Traced() as traced:
        await work()
        return traced.grown()


class _Traced:
    def __enter__(self) -> Self:
        self._was_tracing = tracemalloc.is_tracing()
        if not self._was_tracing:
            tracemalloc.start()
        self._before = self._in_use()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._was_tracing:
            tracemalloc.stop()

    def grown(self) -> int:
        return self._in_use() - self._before

    @staticmethod
    def _in_use() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
