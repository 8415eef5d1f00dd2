"""Checkpoints in files: the latest one in a file, or each one in a file of its own in a directory.

In a directory nothing is ever replaced, renamed or removed, so that it may lie on a volume that
lets files be made and nothing else: write once, append-only, object lock.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from otel_audit._util.durable_file import create_durably, replace_durably
from otel_audit_postgres.ledger.checkpoints import NoteError, read_checkpoint

_NAME: Final = re.compile(r"checkpoint-(\d{15,19})(?:\.(\d{1,3}))?")
_MOST_COPIES: Final = 20
"""Names that are tried for a checkpoint that differs from the one of its size."""
_READABLE: Final = 0o644
"""Checkpoints are for everybody."""
LATEST: Final = "latest"
"""Name of the newest checkpoint's copy in earlier versions."""


def read_file(path: Path) -> str | None:
    """Read the note in a file; None if there is none.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not a text.
    """
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None


def write_file(path: Path, note: str) -> None:
    """Put a note in the place of the one before; it is on disk when this returns.

    Raises:
        OSError: It cannot be written; its directory is never made.
    """
    replace_durably(path, note.encode(), _READABLE)


def newest_in(directory: Path) -> str | None:
    """Read the newest whole checkpoint of a directory; None if there is none.

    One that was cut off, as its writer or the machine died, is passed over: it could not be
    replaced.

    Raises:
        OSError: The directory, or a file in it, cannot be read.
        UnicodeDecodeError: Those that are there are no text.
    """
    damaged = None
    for path in _candidates(directory):
        note = read_file(path)
        if note is not None and _size(note) is not None:
            return note
        damaged = note if damaged is None else damaged
    # the reader reports what is wrong with it
    return damaged


def add_to(directory: Path, note: str) -> None:
    """Add a checkpoint to a directory; it is on disk when this returns.

    Raises:
        OSError: It cannot be written; the directory is never made.
        FileExistsError: Another checkpoint of this size is there.
    """
    checkpoint = read_checkpoint(note)
    name = f"checkpoint-{checkpoint.size:015}"
    for path in (directory / name, *(directory / f"{name}.{n}" for n in range(1, _MOST_COPIES))):
        try:
            create_durably(path, note.encode(), _READABLE)
        except FileExistsError:
            there = read_file(path)
            with suppress(NoteError):
                # signed again, or by another key, it says the same
                if there is not None and read_checkpoint(there) == checkpoint:
                    return
                raise
            continue  # cut off: it cannot be replaced, so the whole one stands beside it
        except OSError:
            with suppress(OSError):
                path.unlink()
            raise
        return
    raise FileExistsError(errno.EEXIST, "too many that were cut off", str(directory / name))


def _candidates(directory: Path) -> Iterator[Path]:
    """The files of a directory that may hold the newest checkpoint, the likeliest first."""
    found = []
    try:
        names = [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return
    for name in names:
        match = _NAME.fullmatch(name)
        if match is not None:
            found.append((int(match[1]), int(match[2] or 0), name))
    by_size = sorted(found, reverse=True)
    highest = by_size[0][0] if by_size else -1
    if LATEST in names:
        with suppress(OSError, UnicodeDecodeError):
            size = _size(read_file(directory / LATEST) or "")
            if size is not None and size > highest:
                yield directory / LATEST
    for _, _, name in by_size:
        yield directory / name


def _size(note: str) -> int | None:
    try:
        return read_checkpoint(note).size
    except NoteError:
        return None
