"""A thread with an event loop of its own, so that nothing of the application holds it up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import selectors
import threading
import types
from collections.abc import Callable, Collection, Coroutine, Generator, Iterable
from concurrent.futures import Executor, Future, InvalidStateError
from queue import Empty, SimpleQueue  # noqa: TID251 - here it waits without a timeout, or not at all
from typing import Any, Final, NamedTuple, TypeVar, TypeVarTuple

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit._util.auto_reset_event import AutoResetEvent
from otel_audit._util.backoff import Backoff
from otel_audit._util.fork import renew_in_child
from otel_audit._util.own_lock import own_lock
from otel_audit._util.ratelimited_log import log_limited

_logger = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_BACKOFF: Final = Backoff(first=0.1, longest=5.0)
"""Between two tries of a thread whose work ends in an error."""

_LONGEST_END: Final = 5.0
"""Seconds that the tasks of a loop have which is given up."""

_MOST_WAITS: Final = 100
"""Times that a coroutine is cancelled which waits again each time, before it is closed."""

_MOST_THREADS: Final = 8
"""Threads for blocking calls of one loop."""

_left_behind: Final[list[object]] = []
"""Loops of a parent process: a child that closed one would disturb the sockets it shares."""


class ThreadState(NamedTuple):
    """The state of one of our threads.

    Attributes:
        failure: Why it does not work although it should; None if it does, or need not.
        restarts: How often it had to begin again.
    """

    failure: str | None
    restarts: int


def begin_thread(name: str, run: Callable[[], object]) -> threading.Thread | None:
    """Start a daemon thread.

    Args:
        name: Of the thread.
        run: What it does.

    Returns:
        The thread; None if the system gives none now (a limit of processes, or the interpreter
        is on its way out), which is logged.
    """
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        log_limited(
            _logger, name, "Thread %s cannot be started; it is tried again", name,
            level=logging.CRITICAL, error=error,
        )  # fmt: skip
        return None
    return thread


def run_in_thread(name: str, make: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
    """Run a coroutine on a loop of its own in a thread of its own.

    So it may be waited for wherever one wants (an event loop's thread included, which it holds up),
    and be given up, also where it blocks its loop.

    Args:
        name: Of the thread.
        make: Makes the coroutine, in the thread.

    Raises:
        RuntimeError: No thread can be started.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            with suppress_instrumentation():
                found = run_coroutine(make())
        except BaseException as error:  # noqa: BLE001 - the waiting caller gets it
            with contextlib.suppress(InvalidStateError):  # no caller waits any more
                done.set_exception(error)
        else:
            with contextlib.suppress(InvalidStateError):
                done.set_result(found)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done


class LoopThread:
    """Runs coroutines in a daemon thread, untraced: one for its whole life, and any by `call`.

    The thread is started when it is first needed. Its coroutine ends by returning, or by being
    cancelled by `cancel`. Whatever else ends it, even before its loop is made (no file descriptors,
    no memory), is logged, and it is run again after a pause. A thread that is gone all the same (a
    child that was forked without Python's hooks) is replaced by `ensure`. In a forked child nothing
    is started yet, and what was the parent's is left as it is.

    Attributes:
        wake: What the coroutine may wait for; set by `rouse`, cleared by the coroutine.
        restarts: How often the coroutine was run again.
        kept: What belongs to the loop, such as connections; None again with another loop.
    """

    def __init__(
        self, name: str, work: Callable[[], Coroutine[Any, Any, None]] | None = None
    ) -> None:
        """Remember name and work of the thread; it is not started yet.

        Args:
            name: Of the thread.
            work: Makes the coroutine, in the thread; None: there are only calls.
        """
        self._name = name
        self._work = self._wait_for_end if work is None else work
        self._reset()
        renew_in_child(self, LoopThread._leave_parents)

    def _reset(self) -> None:
        self.wake = asyncio.Event()
        self.restarts = 0
        self.kept: Any = None
        self._thread: threading.Thread | None = None
        self._wanted = False
        self._failure: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_ending = False
        self._is_starting = False
        # to wait for its end, and for its loop
        self._ended = AutoResetEvent()
        self._ready = AutoResetEvent()
        self._changed = threading.Condition(own_lock())
        self._calls = 0

    def _leave_parents(self) -> None:
        _left_behind.append((self._loop, self._task, self.kept))
        self._reset()

    @property
    def started(self) -> bool:
        """Whether it was started in this process; it may have ended since."""
        return self._thread is not None

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failure(self) -> str | None:
        """Why it does not work although it should; None if it does, or need not."""
        if not self._wanted or self._is_ending:
            return None
        if not self.alive:
            return "the thread has ended, or could not be started"
        return self._failure

    @property
    def state(self) -> ThreadState:
        """The thread's state."""
        return ThreadState(self.failure, self.restarts)

    def start(self) -> bool:
        """Start the thread, unless it runs.

        Returns:
            Whether it runs; where there can be none now, try again later.
        """
        # callers hold a lock, so that only a signal handler within this call finds it under way
        if self.alive or self._is_starting:
            return True
        self._is_starting = True
        try:
            if self._thread is not None:
                self._note("its thread was gone", None)
            self._wanted = True
            self._loop, self._task, self._ready = None, None, AutoResetEvent()
            self._thread = begin_thread(self._name, self._run)
        finally:
            self._is_starting = False
        return self._thread is not None

    def ensure(self) -> None:
        """Start the thread again if it was started, should go on, and is gone. Never raises."""
        if self._wanted and not self._is_ending:
            self.start()

    def rouse(self) -> None:
        """Set ``wake``, if the coroutine runs. May be called from any thread; never raises."""
        self.schedule(lambda: self.wake.set())  # noqa: PLW0108 - of the loop at that time

    def end(self) -> None:
        """Rouse the coroutine; once it ends, it is not run again. Never raises."""
        self._set_ending()
        self.rouse()

    def cancel(self) -> None:
        """Cancel the coroutine, if it runs. May be called from any thread; never raises."""
        if self._wanted:
            self._set_ending()
        task = self._task
        if task is not None:
            self.schedule(task.cancel)

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread, at most so many seconds; not if this is the thread."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def call(self, make: Callable[[], Coroutine[Any, Any, T]], timeout: float) -> T:
        """Run a coroutine there and wait for it here; starts the thread, also after `stop`.

        Args:
            make: Makes the coroutine.
            timeout: Seconds to wait; then it is cancelled.

        Raises:
            TimeoutError: It did not end in time, or there is no thread for it.
            Exception: What it raises.
        """
        with self._changed:
            if self._is_ending and not self.alive:
                # stopped in order, and wanted again
                self._is_ending, self._ended = False, AutoResetEvent()
                self._thread = None
            self.start()
            self._calls += 1
        try:
            loop = self._running(timeout)
            future: Future[T] = asyncio.run_coroutine_threadsafe(make(), loop)
            try:
                return future.result(timeout)
            except TimeoutError:
                future.cancel()
                raise
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def wait_idle(self, timeout: float) -> bool:
        """Wait until no call is under way; whether that is so after so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._calls == 0, timeout)

    def stop(self, timeout: float) -> None:
        """End the thread, and cancel the calls under way; give up after so many seconds."""
        self.end()
        self.join(timeout)

    def _running(self, timeout: float) -> asyncio.AbstractEventLoop:
        ready = self._ready
        if ready.wait(timeout):
            ready.set()  # for the next caller
            if self._loop is not None:
                return self._loop
        raise TimeoutError

    def _set_ending(self) -> None:
        self._is_ending = True
        self._ended.set()

    def _ends_within(self, pause: float) -> bool:
        self._ended.wait(pause)
        return self._is_ending

    def schedule(self, act: Callable[[], object]) -> None:
        """Call something in the thread, if its loop runs. May be called from any thread."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended in the meantime
                loop.call_soon_threadsafe(act)

    def _run(self) -> None:
        for pause in _BACKOFF.pauses():
            try:
                self._run_once()
            except BaseException as error:  # noqa: BLE001 - whatever it is, the work must go on
                if self._is_ending:
                    return
                self._note("it failed", error)
            else:
                return
            if self._ends_within(pause):
                return

    def _run_once(self) -> None:
        with suppress_instrumentation(), contextlib.closing(WorkerLoop()) as loop:
            try:
                loop.run_until_complete(self._reachable())
            finally:
                tasks = asyncio.all_tasks(loop)
                try:
                    _end_tasks(loop, tasks)
                    _end_tasks(loop, _taken_over(loop, tasks))
                finally:
                    _close_unfinished({*asyncio.all_tasks(loop), *tasks})

    def _note(self, what: str, error: BaseException | None) -> None:
        self._failure = what if error is None else f"{what} ({_reason(error)})"
        # after its reason, so that whoever sees the number sees why
        self.restarts += 1
        log_limited(
            _logger, f"restart {self._name}", "The work of thread %s has ended, as %s; it begins "
            "again", self._name, self._failure, level=logging.CRITICAL, error=error,
        )  # fmt: skip

    async def _reachable(self) -> None:
        # of this loop: the one before may have been waited for on another
        self.wake = asyncio.Event()
        self.kept = None
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        # it has not failed as long as it runs
        self._failure = None
        self._ready.set()
        await self._work()

    async def _wait_for_end(self) -> None:
        while not self._is_ending:
            await self.wake.wait()
            self.wake.clear()


def _end_tasks(loop: asyncio.AbstractEventLoop, tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel what runs in a loop, and wait for it, but not for ever as `asyncio.Runner` does.

    A loop that is cut off in its own code may have forgotten a task: nothing ends that one.
    """
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=_LONGEST_END))
    loop.run_until_complete(loop.shutdown_asyncgens())


def _taken_over(
    loop: asyncio.AbstractEventLoop, tasks: Iterable[asyncio.Task[Any]]
) -> list[asyncio.Task[Any]]:
    """Let new tasks go on with the coroutines of those that the loop has forgotten.

    What they have open is closed in their ``finally`` blocks, which may wait for it.
    """
    found = [
        loop.create_task(_go_on(coroutine))
        for task in tasks
        if _is_forgotten(task) and isinstance(coroutine := task.get_coro(), Coroutine)
    ]
    # cancelled before its first step, a task does not even begin
    loop.run_until_complete(asyncio.sleep(0))
    return found


def _is_forgotten(task: asyncio.Task[Any]) -> bool:
    """Return whether nothing will turn to a task again: what it has waited for is there."""
    waits_for: asyncio.Future[Any] | None = getattr(task, "_fut_waiter", None)
    return not task.done() and (waits_for is None or waits_for.done())


async def _go_on(coroutine: Coroutine[Any, Any, object]) -> None:
    """Wait to be cancelled, and then cancel a coroutine where it waits."""
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError as error:
        await _rest_of(coroutine, error)


@types.coroutine
def _rest_of(coroutine: Coroutine[Any, Any, T], error: BaseException) -> Generator[Any, Any, T]:
    """Raise an error in a coroutine where it waits, and go on with it to its end."""
    try:
        waits_for = coroutine.throw(error)
        while True:
            try:
                sent = yield waits_for
            except BaseException as another:  # noqa: BLE001 - it is the coroutine's
                waits_for = coroutine.throw(another)
            else:
                waits_for = coroutine.send(sent)
    except StopIteration as end:
        result: T = end.value
        return result


def _close_unfinished(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """End the coroutines of the tasks that could not be ended in time.

    CPython 3.11 crashes if the garbage collector comes upon such a task: it ends one of the inner
    coroutines first, and the outer ones while that one runs.
    """
    for task in tasks:
        coroutine = task.get_coro()
        if not task.done() and isinstance(coroutine, Coroutine):
            _close(coroutine)


def _close(coroutine: Coroutine[Any, Any, object]) -> None:
    """End a coroutine without a loop; what it waits for in its ``finally`` blocks is left out.

    It is cancelled at each place where it waits, before it is closed: an inner coroutine that waits
    again when it is closed would be left behind by the outer ones.
    """
    try:
        for _ in range(_MOST_WAITS):
            coroutine.throw(asyncio.CancelledError())
        coroutine.close()
    except (asyncio.CancelledError, StopIteration):
        pass  # it was cancelled, or returned
    except BaseException as error:  # noqa: BLE001 - another end; nobody waits for it
        log_limited(
            _logger, "forgotten task", "A task that was cut off failed",
            level=logging.DEBUG, error=error,
        )  # fmt: skip


def _reason(error: BaseException) -> str:
    """Say what the system refused; of other errors the type: a message may quote values."""
    text = error.strerror if isinstance(error, OSError) else None
    return text or type(error).__name__


class WorkerLoop(asyncio.SelectorEventLoop):
    """Has daemon threads of its own for what blocks, looking up a host's name among that.

    The threads of `concurrent.futures` end with the main thread, which is before `atexit` has the
    last records delivered, and then refuse all work. From Python 3.12 on no new thread starts at
    that time: those that ran before go on.
    """

    def __init__(self) -> None:
        """Make the loop; no thread is started yet.

        Raises:
            OSError: There are no file descriptors left; nothing of this loop is open then.
        """
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # one entry for each thread that waits; a semaphore holds a lock at times, and a thread that
        # is cut off at that time keeps it for ever
        self._idle: SimpleQueue[None] = SimpleQueue()
        self._threads = 0
        self._complete = False
        selector = selectors.DefaultSelector()
        try:
            super().__init__(selector)
        except BaseException:
            selector.close()
            raise
        self._complete = True

    def is_closed(self) -> bool:
        """Whether it is closed; one that could not be made counts as closed."""
        return not self._complete or super().is_closed()

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Call something in a thread; see asyncio.

        Raises:
            RuntimeError: There is no thread, and none can be started.
        """
        if executor is not None:
            return super().run_in_executor(executor, func, *args)
        self._find_thread()
        done: Future[T] = Future()

        def job() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                found = func(*args)
            except StopIteration as error:
                # no future of asyncio can raise it: who awaits this one would wait for ever
                failure = RuntimeError("the call raised StopIteration")
                failure.__cause__ = error
                done.set_exception(failure)
            except BaseException as error:  # noqa: BLE001 - the awaiting caller gets it
                done.set_exception(error)
            else:
                done.set_result(found)

        self._jobs.put(job)
        return asyncio.wrap_future(done, loop=self)

    def close(self) -> None:
        """Close, and let the threads end when they are done; does not wait for them."""
        for _ in range(self._threads):
            self._jobs.put(None)
        self._threads = 0
        super().close()

    def _find_thread(self) -> None:
        if self._threads == _MOST_THREADS:
            return
        with contextlib.suppress(Empty):
            self._idle.get_nowait()
            return
        try:
            threading.Thread(
                target=_serve, args=(self._jobs, self._idle), name="otel-audit-blocking",
                daemon=True,
            ).start()  # fmt: skip
        except RuntimeError:
            # a busy one will come to it
            if not self._threads:
                raise
        else:
            self._threads += 1


def run_coroutine(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does, but wait at its end for no thread that blocks.

    Looking up a host's name takes as long as the resolver takes, which may be minutes, and
    `asyncio.run` waits for that although the result is not needed any more.
    """
    with asyncio.Runner(loop_factory=WorkerLoop) as runner:
        return runner.run(work)


def _serve(jobs: SimpleQueue[Any], idle: SimpleQueue[None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        # neither the call nor its answer is kept alive by waiting for the next
        del job
        idle.put(None)
