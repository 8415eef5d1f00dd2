"""Small files that outlive a power loss: the content is on disk before its name is.

A file system may write a new name before what it names. Then, after a power loss, the name is there
and the content is empty.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from errno import EINVAL, ENOSYS, EOPNOTSUPP
from pathlib import Path
from typing import Final

_NO_SUCH_CALL: Final = {EINVAL, ENOSYS, EOPNOTSUPP}
_DRAFT: Final = re.compile(r"\..+\.[0-9a-f]{16}\.draft")
_LEFT_SECONDS: Final = 3600.0
"""Age at which a draft belongs to nobody who is still at it."""
_MOST_SWEPT: Final = 1000
"""Directories that are remembered as swept; beyond these none is swept."""
_swept: set[Path] = set()


def write_durably(opened: int, data: bytes) -> None:
    """Write a file that is open and empty; it is on disk when this returns, and is closed.

    Raises:
        OSError: The file system refuses.
    """
    with open(opened, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file atomically: a reader gets the old content or the new one.

    Any number of threads, processes and containers may replace it at once; the last one wins.

    Args:
        path: The file; its directory exists.
        data: Its content.
        mode: Its permissions.

    Raises:
        OSError: The file system refuses; what was there is there still.
    """
    _sweep(path.parent)
    # random: threads have one process id, and containers that share a volume may have equal ones
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.draft")
    try:
        # synced before the rename: else a power cut may leave the name without its content
        write_durably(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), data)
        draft.chmod(mode)
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    # after the rename, which is itself an entry of the directory
    sync_directory(path.parent)


def create_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Make a file that is not there yet, without replacing or renaming anything.

    Raises:
        FileExistsError: It is there.
        OSError: The file system refuses.
    """
    write_durably(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), data)
    sync_directory(path.parent)


def _sweep(directory: Path) -> None:
    """Remove drafts that processes left that died while they wrote; once in a process's life."""
    if directory in _swept or len(_swept) >= _MOST_SWEPT:
        return
    _swept.add(directory)
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if not _DRAFT.fullmatch(entry.name):
                continue
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > _LEFT_SECONDS:
                    os.unlink(entry.path)  # noqa: PTH108 - as the scan gives it


def sync_directory(path: Path) -> None:
    """Bring a directory's entries to disk.

    Raises:
        OSError: The file system refuses.
    """
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_open_directory(opened)
    finally:
        os.close(opened)


def sync_open_directory(opened: int) -> None:
    """Bring an open directory's entries to disk, where its file system knows that call.

    Raises:
        OSError: The file system refuses.
    """
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:
            raise
