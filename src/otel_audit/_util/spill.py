"""A buffer for many changes: the latest in memory, full pages in a private file.

The file has no name, so that it disappears with the process, however that ends. It is written only
by the transaction that is too large for memory; each page keeps the file open.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.record import Change, Operation, TransactionOutcome

_logger = logging.getLogger("otel_audit.action")

_Sort: TypeAlias = tuple[Operation, str, str]

_CONTEXT: Final = b"changes"

_set = msgspec.structs.force_setattr
"""Sets a field of a change: its transaction's outcome comes later than the change."""
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Change]).decode


class Cipher(Protocol):
    """Encrypts what one spool, or one buffer's file, holds. Thread-safe."""

    def encrypt(self, payload: bytes, context: bytes) -> bytes:
        """Encrypt a payload and bind it to its context, such as the frame's kind and record id."""

    def decrypt(self, encrypted: bytes, context: bytes) -> bytes:
        """Decrypt the result of `encrypt`.

        Raises:
            EncryptionError: Another key or another context, or it was altered.
        """


@dataclass(frozen=True, slots=True)
class SpillOptions:
    """Options of `SpilledChanges`: the part in memory, and the place of the rest.

    Attributes:
        page: Changes in memory, and in a page.
        directory: Where the file is made; None: where the system has such files.
        cipher: Encrypts what is spilled; None: nothing does.
        on_error: Called for each page that is lost.
    """

    page: int = 1_000
    directory: Path | None = None
    cipher: Cipher | None = None
    on_error: Callable[[], None] = lambda: None


class _File:
    """A private file without a name, closed when the last page of it is forgotten."""

    __slots__ = ("descriptor",)

    def __init__(self, directory: Path | None) -> None:
        self.descriptor = -1
        with tempfile.TemporaryFile(prefix="otel-audit-", dir=directory) as file:
            self.descriptor = os.dup(file.fileno())

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@dataclass(slots=True)
class SpilledPage:
    """Changes that stand in a file.

    Attributes:
        count: How many.
        outcome: How their transaction ended, once that is known.
    """

    count: int
    _file: _File
    _offset: int
    _length: int
    _room: SpillOptions
    outcome: TransactionOutcome | None = None

    def read(self) -> list[Change]:
        """Read all entries; a failure is reported as an entry."""
        try:
            data = os.pread(self._file.descriptor, self._length, self._offset)
            if self._room.cipher is not None:
                data = self._room.cipher.decrypt(data, _CONTEXT)
            changes = _decode(data)
        except Exception as error:  # noqa: BLE001 - what is lost is said, not raised
            self._room.on_error()
            log_limited(
                _logger, "page", "%d spilled changes cannot be read back",
                self.count, error=error,
            )  # fmt: skip
            return [_summary(("update", "?", "?"), self.count, self.outcome)]
        for change in changes:
            _set(change, "transaction", self.outcome)
        return changes


class SpilledChanges(msgspec.Struct):
    """Changes in the order they came.

    Attributes:
        room: How much is kept in memory.
        full: Pages in the file, the earliest first.
        recent: What came after them.
        unspilled: What could not be spilled, counted by operation, entity and table.
        outcome: How their transaction ended, once that is known.
    """

    room: SpillOptions = SpillOptions()
    full: list[SpilledPage] = msgspec.field(default_factory=list)
    recent: list[Change] = msgspec.field(default_factory=list)
    unspilled: dict[_Sort, int] = msgspec.field(default_factory=dict)
    outcome: TransactionOutcome | None = None
    _file: _File | None = None
    _owner: int = 0
    _end: int = 0

    @property
    def count(self) -> int:
        """The number of changes, lost ones included."""
        number = len(self.recent)
        if self.full:
            number += sum(page.count for page in self.full)
        return number + sum(self.unspilled.values()) if self.unspilled else number

    def add(self, change: Change) -> None:
        """Take one more. The last one taken is always in memory."""
        if len(self.recent) >= self.room.page:
            self._spill()
        self.recent.append(change)

    def absorb(self, other: SpilledChanges) -> None:
        """Move the changes of another buffer to the end of this one."""
        if other.full and self.recent:
            self._spill()
        self.full.extend(other.full)
        for change in other.recent:
            self.add(change)
        self.outcome = self.outcome or other.outcome
        for sort, number in other.unspilled.items():
            self.unspilled[sort] = self.unspilled.get(sort, 0) + number

    def split(self, number: int) -> tuple[list[Change], SpilledChanges]:
        """Take the first ones out.

        Args:
            number: How many, at most; what could not be kept is not among them.

        Returns:
            The first ones, and the rest.
        """
        if not self.full and len(self.recent) <= number:
            return self.recent, SpilledChanges(
                self.room, unspilled=self.unspilled, outcome=self.outcome
            )
        first: list[Change] = []
        left: list[Change] = []
        pages = list(self.full)
        while pages and len(first) < number:
            changes = pages.pop(0).read()
            wanted = number - len(first)
            first.extend(changes[:wanted])
            left = changes[wanted:]
        wanted = max(number - len(first), 0)
        first.extend(self.recent[:wanted])
        rest = SpilledChanges(self.room, recent=left)
        rest.absorb(
            SpilledChanges(self.room, pages, self.recent[wanted:], self.unspilled, self.outcome)
        )
        return first, rest

    def set_outcome(self, outcome: TransactionOutcome) -> None:
        """Set the transaction's outcome; its changes are not shared yet."""
        self.outcome = outcome
        for change in self.recent:
            _set(change, "transaction", outcome)
        for page in self.full:
            page.outcome = outcome

    def parts(self) -> Iterator[list[Change]]:
        """Give the changes page by page, so that no more than one is in memory."""
        for page in self.full:
            yield page.read()
        last = [*self.recent, *self._summaries()]
        if last:
            yield last

    def __iter__(self) -> Iterator[Change]:
        """Give one change after the other."""
        for part in self.parts():
            yield from part

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.recent or self.full or self.unspilled)

    def _summaries(self) -> list[Change]:
        return [_summary(sort, number, self.outcome) for sort, number in self.unspilled.items()]

    def _spill(self) -> None:
        changes, self.recent = self.recent, []
        try:
            data = _encode(changes)
            if self.room.cipher is not None:
                data = self.room.cipher.encrypt(data, _CONTEXT)
            file = self._own_file()
            _write(file.descriptor, data, self._end)
        except Exception as error:  # noqa: BLE001 - must not reach the application
            self._count_unspilled(changes, error)
            return
        self.full.append(SpilledPage(len(changes), file, self._end, len(data), self.room))
        self._end += len(data)

    def _own_file(self) -> _File:
        # a forked child would write over its parent's pages
        if self._file is None or self._owner != os.getpid():
            directory = self.room.directory
            if directory is not None and not directory.is_dir():
                directory = None
            self._file = _File(directory)
            self._owner, self._end = os.getpid(), 0
        return self._file

    def _count_unspilled(self, changes: list[Change], error: Exception) -> None:
        for change in changes:
            sort = (change.operation, change.entity, change.table)
            self.unspilled[sort] = self.unspilled.get(sort, 0) + 1
        self.room.on_error()
        log_limited(
            _logger, "aside",
            "%d changes of a large transaction are only counted: they could not be written to disk",
            len(changes), error=error,
        )  # fmt: skip


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _summary(sort: _Sort, number: int, outcome: TransactionOutcome | None) -> Change:
    operation, entity, table = sort
    details: dict[str, Any] = {"rows": number, "transaction": outcome}
    return Change(
        operation=operation,
        kind="untracked",
        entity=entity,
        table=table,
        note=f"{number} changes that could not be kept one by one",
        **details,
    )
