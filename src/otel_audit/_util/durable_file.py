"""Small files that outlive a power loss: the content is on disk before its name is.

A file system may write a new name before what it names. Then, after a power loss, the name is there
and the content is empty.
"""

from __future__ import annotations

import contextlib
import os
from errno import EINVAL, ENOSYS, EOPNOTSUPP
from pathlib import Path
from typing import Final

_NO_SUCH_CALL: Final = {EINVAL, ENOSYS, EOPNOTSUPP}


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

    Args:
        path: The file; its directory exists.
        data: Its content.
        mode: Its permissions.

    Raises:
        OSError: The file system refuses; what was there is there still.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
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
