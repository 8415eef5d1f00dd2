"""The file destination: one JSON text per line, synced before it is acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from otel_audit._util.durable_file import sync_directory
from otel_audit._util.printable import ascii_json
from otel_audit.streams.destination import Delivered, DestinationError, Encoded, Outgoing

_TAIL: Final = 1 << 16
"""Bytes that are read at once to find the last line end."""


class FileDestination:
    """A file that is appended to, and rotated at a size.

    For who follows the file: a line ends with a newline, and what has none yet is not a line. A
    line that is whole is never taken back. An unfinished one, which a killed process or a full
    disk has left, is: it was never acknowledged, and the event comes again.
    """

    def __init__(self, path: Path, rotate_bytes: int) -> None:
        """Remember the path; nothing is opened yet.

        Args:
            path: The file that is appended to.
            rotate_bytes: The size at which it is rotated.
        """
        self._path = path
        self._rotate_bytes = rotate_bytes
        self._open: int | None = None

    def encode(self, event: Outgoing, log: str) -> bytes:
        """Write an event as a line."""
        del log
        return line(event)

    async def send(self, events: Sequence[Encoded]) -> Delivered:
        """Append lines, and sync the file."""
        try:
            done, failed = await asyncio.to_thread(self._append, events)
        except OSError as error:
            done, failed = 0, error
        if failed is None:
            return Delivered(done)
        self._close()
        return Delivered(done, stopped=DestinationError(
            f"{self._path} cannot be written ({failed.strerror}): make room, or let this user "
            "write there"
        ))  # fmt: skip

    async def close(self) -> None:
        """Close the file."""
        self._close()

    def _append(self, events: Sequence[Encoded]) -> tuple[int, OSError | None]:
        """Write lines. Returns how many are complete on disk, and the error if some are not."""
        text = b"".join([event.content for event in events])
        opened = self._opened(events[0].leaf)
        written, failed = 0, None
        try:
            # all at once; the rest alone where the kernel took a part
            while written < len(text):
                written += os.write(opened, memoryview(text)[written:])
        except OSError as error:
            # the disk is full: the lines that are whole stay, as somebody may have read them
            failed = error
            _cut_unfinished_line(opened)
        os.fsync(opened)
        return text.count(b"\n", 0, written), failed

    def _opened(self, leaf: int) -> int:
        if self._open is not None and not _is_at(self._path, self._open):
            # somebody else has rotated it
            self._close()
        if self._open is not None and os.fstat(self._open).st_size >= self._rotate_bytes:
            self._rotate(leaf)
        if self._open is None:
            is_new = not self._path.exists()
            opened = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                _cut_unfinished_line(opened)
                if is_new:
                    sync_directory(self._path.parent)
            except BaseException:
                os.close(opened)
                raise
            self._open = opened
            if os.fstat(opened).st_size >= self._rotate_bytes:
                self._rotate(leaf)
                return self._opened(leaf)
        return self._open

    def _rotate(self, leaf: int) -> None:
        """Rename the file to the first leaf that is not in it, so that names sort in order."""
        self._close()
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        # a name is taken if the file was rotated twice in a second at the same leaf
        for number in range(1_000):
            more = f".{number}" if number else ""
            rotated = self._path.with_name(
                f"{self._path.stem}.{leaf:012d}.{moment}{more}{self._path.suffix}"
            )
            with contextlib.suppress(FileExistsError):
                os.link(self._path, rotated)  # unlike a rename it replaces nothing
                self._path.unlink()
                sync_directory(self._path.parent)
                return
        raise FileExistsError(errno.EEXIST, "File exists", str(rotated))

    def _close(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            os.close(opened)


def line(event: Outgoing) -> bytes:
    """Write an event as one line of printable ASCII."""
    return ascii_json(msgspec.json.encode(event.document).decode()).encode() + b"\n"


def _is_at(path: Path, opened: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(opened))
    except FileNotFoundError:
        return False


def _cut_unfinished_line(opened: int) -> None:
    size = end = os.fstat(opened).st_size
    while end > 0:
        begin = max(end - _TAIL, 0)
        tail = os.pread(opened, end - begin, begin)
        found = tail.rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end < size:
        os.ftruncate(opened, end)
