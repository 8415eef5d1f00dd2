"""Places outside the database where checkpoints are published.

Whoever can rewrite the database cannot take back a checkpoint there. Another kind of place is a
class with the three members of `Anchor`.
"""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from otel_audit._util.http_deadline import opener_until
from otel_audit._util.loop_thread import run_in_thread
from otel_audit.errors import ConfigurationError, OtelAuditError
from otel_audit_postgres.ledger.anchor_files import add_to, newest_in, read_file, write_file
from otel_audit_postgres.plugins import called

_logger = logging.getLogger(__name__)

T = TypeVar("T")

ANSWERS_WITHIN: Final = 15.0
"""Seconds until an anchor must have answered a command."""
_HTTP_TIMEOUT: Final = 10.0
"""Seconds of one request."""
_LARGEST_ANSWER: Final = 1_000_000
"""Bytes that are read of an answer: as many as a checkpoint may have."""
_NOT_FOUND: Final = 404
"""There is no checkpoint yet, which is no error."""


class AnchorError(OtelAuditError):
    """An anchor cannot be read or written now."""


class Anchor(Protocol):
    """A place where checkpoints are published.

    Two more members may be there: ``remembers``, False where `last` cannot know what was published
    (else an anchor that knows nothing of a log that has begun has forgotten it, which is an error),
    and ``begin()``, awaited once before the first note of a log.

    Each call comes from a thread and an event loop of its own, so that an anchor that blocks holds
    up no other; objects of a loop (a client's session) must be made again.
    """

    @property
    def name(self) -> str:
        """Its name in messages."""

    async def last(self) -> str | None:
        """The note published last; None if there is none.

        Raises:
            AnchorError: The anchor cannot be reached now.
        """

    async def publish(self, note: str) -> None:
        """Publish a note.

        Raises:
            AnchorError: It could not be done now.
        """


class FileAnchor:
    """A file that holds the latest note, or a directory that keeps every one.

    In a directory each checkpoint is ``checkpoint-<size>``, and none is ever replaced, renamed or
    removed. A place is made once, when the log begins (`begin`); one that is gone later is not made
    again. It is worth what its storage is worth: a volume that the database's administrators cannot
    write to.
    """

    def __init__(self, path: Path, *, directory: bool) -> None:
        """Remember the path; nothing is opened yet.

        Args:
            path: The file, or the directory.
            directory: Whether each checkpoint is kept in a file of its own in `path`.
        """
        self._path = path
        self._directory = directory

    @property
    def name(self) -> str:
        """Its path."""
        return str(self._path)

    async def last(self) -> str | None:
        """The latest note, None before the first."""
        return await asyncio.to_thread(self._read)

    async def begin(self) -> None:
        """Make the directory."""
        await asyncio.to_thread(self._make)

    async def publish(self, note: str) -> None:
        """Write the note; it is on disk when this returns."""
        await asyncio.to_thread(self._write, note)

    def _read(self) -> str | None:
        try:
            return newest_in(self._path) if self._directory else read_file(self._path)
        except (OSError, UnicodeDecodeError) as error:
            raise AnchorError(f"{self.name} cannot be read ({type(error).__name__})") from error

    def _make(self) -> None:
        place = self._path if self._directory else self._path.parent
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AnchorError(f"{self.name} cannot be made ({type(error).__name__})") from error

    def _write(self, note: str) -> None:
        try:
            if self._directory:
                add_to(self._path, note)
            else:
                write_file(self._path, note)
        except FileNotFoundError as error:
            raise AnchorError(
                f"{self.name} cannot be written: its directory is gone, or its volume not mounted"
            ) from error
        except OSError as error:
            raise AnchorError(f"{self.name} cannot be written ({type(error).__name__})") from error


class HttpAnchor:
    """An address that keeps what is PUT there: a small service, or a store that speaks WebDAV.

    GET gives the note that was PUT last, or 404; PUT takes one as ``text/plain``.
    """

    def __init__(self, url: str) -> None:
        """Remember the address; nothing is opened yet.

        Args:
            url: What is read with GET and written with PUT.
        """
        self._url = url

    @property
    def name(self) -> str:
        """Its address, without user, password and query, which may be secrets."""
        scheme, _, rest = self._url.partition("://")
        return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"

    async def last(self) -> str | None:
        """The latest note, None before the first."""
        return await asyncio.to_thread(self._send, "GET", None)

    async def publish(self, note: str) -> None:
        """PUT the note."""
        await asyncio.to_thread(self._send, "PUT", note.encode())

    def _send(self, method: str, body: bytes | None) -> str | None:
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            self._url, body, {"Content-Type": "text/plain; charset=utf-8"}, method=method
        )
        try:
            opener = opener_until(time.monotonic() + _HTTP_TIMEOUT)
            with opener.open(request, timeout=_HTTP_TIMEOUT) as answer:
                raw: bytes = answer.read(_LARGEST_ANSWER)
                return raw.decode()
        except urllib.error.HTTPError as error:
            with error:
                if error.code == _NOT_FOUND and method == "GET":
                    return None
            raise AnchorError(f"{self.name} answered {method} with {error.code}") from None
        except (OSError, ValueError) as error:
            raise AnchorError(f"{self.name} cannot be reached ({type(error).__name__})") from None


class ObjectAnchor:
    """One object of an object store, reached through two callables of yours.

    Object stores differ in names, credentials and locks, so what talks to yours is yours: a few
    lines over its own client. Keep versions (or an object lock) there, so that no one can take a
    checkpoint back.

    Example::

        def anchor():  # OTEL_AUDIT_ANCHOR=python:my_anchors:anchor
            return ObjectAnchor("s3://audit/orders", get=read_object, put=write_object)
    """

    def __init__(
        self, name: str, get: Callable[[], str | None], put: Callable[[str], object]
    ) -> None:
        """Remember the command; it is not called yet.

        Args:
            name: What to call it in messages.
            get: Gives the note that was put last, None if there is none. It may block.
            put: Takes a note, and returns once it is kept. It may block.
        """
        self.name = name
        self._get = get
        self._put = put

    async def last(self) -> str | None:
        """The latest note, None before the first."""
        try:
            return await asyncio.to_thread(self._get)
        except Exception as error:
            raise AnchorError(f"{self.name} cannot be read ({type(error).__name__})") from error

    async def publish(self, note: str) -> None:
        """Put the note."""
        try:
            await asyncio.to_thread(self._put, note)
        except Exception as error:
            raise AnchorError(f"{self.name} cannot be written ({type(error).__name__})") from error


class LogAnchor:
    """A line in the log, where logs are shipped to a place of their own."""

    name = "log:"
    remembers = False

    async def last(self) -> str | None:
        """None: a log cannot be read."""
        return None

    async def publish(self, note: str) -> None:
        """Log the checkpoint, its lines joined by a blank."""
        _logger.info("audit checkpoint %s", " ".join(note.split("\n")).strip())


async def ask(anchor: Anchor) -> str | None:
    """Read the last published note from an anchor, within a time limit.

    Raises:
        AnchorError: It cannot be read, failed, or has not answered after `ANSWERS_WITHIN` seconds.
    """
    return await not_for_ever(anchor, lambda: _last(anchor))


async def not_for_ever(anchor: Anchor, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Call an anchor in a thread and loop of its own, for a limited time.

    An anchor may be anybody's code: one that blocks its event loop could not be given up there.

    Raises:
        AnchorError: As for `ask`.
    """
    answer = run_in_thread("otel-audit-anchor", work)
    try:
        async with asyncio.timeout(ANSWERS_WITHIN):
            return await asyncio.wrap_future(answer)
    except AnchorError:
        raise
    except TimeoutError:
        raise AnchorError(
            f"{anchor.name} has not answered within {ANSWERS_WITHIN:g} seconds"
        ) from None
    except Exception as error:
        raise AnchorError(f"{anchor.name} failed ({type(error).__name__})") from error


async def _last(anchor: Anchor) -> str | None:
    return await anchor.last()


def remembers(anchor: Anchor) -> bool:
    """Whether an anchor can return what was published there."""
    return bool(getattr(anchor, "remembers", True))


def forgotten(anchor: Anchor, size: int) -> str | None:
    """Return what is wrong if an anchor holds nothing; None if nothing is.

    Args:
        anchor: An anchor that was read, and has no checkpoint.
        size: Leaves in the log.
    """
    if not size or not remembers(anchor):
        return None
    return (
        f"the anchor {anchor.name} holds no checkpoint, and the ledger has {size} leaves: it was "
        "emptied or removed, or its volume is not mounted. Find out why. If it is new, run "
        "`otel-audit begin-anchor ANCHOR`"
    )


def anchors_from(settings: Sequence[str]) -> list[Anchor]:
    """Make the anchors that the settings name.

    Args:
        settings: ``file:PATH``, ``dir:PATH``, ``log:``, ``https://…`` or ``http://…`` each, or
            ``python:module:name`` for a callable that returns an `Anchor`.

    Raises:
        ConfigurationError: One is none of these.
    """
    return [_anchor(setting) for setting in settings]


def _anchor(setting: str) -> Anchor:
    kind, _, rest = setting.partition(":")
    if kind == "log" and not rest:
        return LogAnchor()
    if kind in ("http", "https") and rest.startswith("//"):
        return HttpAnchor(setting)
    if kind in ("file", "dir") and rest.removeprefix("//"):
        return FileAnchor(Path(rest.removeprefix("//")), directory=kind == "dir")
    if kind == "python":
        anchor: Anchor = called(
            rest, "OTEL_AUDIT_ANCHOR", kind="an anchor", members=("name", "last()", "publish()")
        )
        return anchor
    raise ConfigurationError(
        "OTEL_AUDIT_ANCHOR: an anchor is file:PATH, dir:PATH, https://ADDRESS, log: or "
        "python:module:name"
    )
