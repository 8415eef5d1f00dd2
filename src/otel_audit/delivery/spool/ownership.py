"""Files and directories that are ours: by owner, mode and type, looked up through open directories.

A path is looked up again at each use, and everybody who may write a directory above it decides
what is found. So a directory is opened once and checked on its descriptor, and everything below is
opened relative to it, without following links and without waiting for anybody.
"""

from __future__ import annotations

import logging
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOTDIR, EPERM
from pathlib import Path
from typing import BinaryIO, Final

from otel_audit._util.durable_file import sync_open_directory, write_durably
from otel_audit._util.ratelimited_log import log_limited

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# a FIFO or a device without O_NONBLOCK waits for the one who planted it
_FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ROOT: Final = 0
_BLOCK: Final = 512
"""Bytes of the unit of `st_blocks`, whatever the file system's own blocks are."""
_REPORTED_AT_MOST: Final = 1000
"""Foreign files that are remembered as reported; beyond these none is reported."""
_log = logging.getLogger("otel_audit")
_reported: set[Path] = set()


class ForeignError(PermissionError):
    """Something in the spool's place is not ours; its ``strerror`` says why."""

    def __init__(self, path: Path, why: str) -> None:
        """Make the error.

        Args:
            path: What is not ours.
            why: What is wrong with it, for ``strerror``.
        """
        super().__init__(EPERM, why, str(path))
        self.path = path
        self.why = why


def report_foreign(path: Path, why: str) -> None:
    """Say in the log, for each path now and then, that something is left alone."""
    if len(_reported) < _REPORTED_AT_MOST:
        _reported.add(path)
    # another user could create endless file names: past the bound all share one log key
    key = f"foreign {path}" if path in _reported else "foreign"
    log_limited(
        _log, key, "audit spool %s is left alone: %s; look who put it there, and remove it",
        ascii(str(path)), why,
    )  # fmt: skip


def foreign_found() -> int:
    """Return how many foreign files this process has met, and left alone."""
    return len(_reported)


class OwnDirectory:
    """An open directory that is ours, wherever it is moved.

    Attributes:
        path: Where it was when it was opened; for messages.
    """

    __slots__ = ("__weakref__", "_close", "_fd", "_group", "path")

    def __init__(
        self, path: Path, *, within: OwnDirectory | None = None, private: bool = True
    ) -> None:
        """Open it.

        Args:
            path: Where it is; only its name is looked up if ``within`` is given.
            within: The directory that it is in.
            private: Whether others must not be able to write it.

        Raises:
            ForeignError: It is not ours alone.
            OSError: It cannot be opened, or is not a directory.
        """
        self.path = path
        if within is None:
            self._fd = os.open(path, _DIRECTORY)
        else:
            self._fd = os.open(path.name, _DIRECTORY, dir_fd=within._fd)  # noqa: SLF001 - its own
        self._close = weakref.finalize(self, os.close, self._fd)
        self._close.atexit = False
        found = self.stat()
        self._group: int | None = None
        if found.st_mode & stat.S_ISGID and found.st_gid in {os.getegid(), *os.getgroups()}:
            # a volume that Kubernetes gives to a pod's group (fsGroup): this bit, and group-write
            self._group = found.st_gid
        why = self._foreign(found, modes=private)
        if why is not None:
            self.close()
            raise ForeignError(path, why)

    @property
    def exists(self) -> bool:
        """Whether it has not been removed."""
        try:
            return os.fstat(self._fd).st_nlink > 0
        except OSError:
            # FUSE and NFS ask for it by its name
            return False

    def stat(self) -> os.stat_result:
        """Return owner, mode and times of the directory itself."""
        return os.fstat(self._fd)

    def names(self) -> list[str]:
        """List what is in it, sorted; nothing if it has been removed.

        Raises:
            OSError: It cannot be read.
        """
        # opened anew: threads and forked processes share the place up to which one descriptor was
        # read, and one that lists meanwhile, or was killed while it did, would hide names from this
        try:
            listed = os.open(".", _DIRECTORY, dir_fd=self._fd)
        except FileNotFoundError:
            return []
        try:
            return sorted(os.listdir(listed))  # noqa: PTH208 - a descriptor
        finally:
            os.close(listed)

    def directory(self, name: str) -> OwnDirectory:
        """Open a directory in it; raises as the class does."""
        return OwnDirectory(self.path / name, within=self)

    def is_directory(self, name: str) -> bool:
        """Return whether a name is that of a directory, not of a link to one."""
        try:
            return stat.S_ISDIR(self.look(name).st_mode)
        except OSError:
            return False

    def look(self, name: str) -> os.stat_result:
        """Look at a name, without following a link.

        Raises:
            OSError: There is no such name.
        """
        return os.stat(name, dir_fd=self._fd, follow_symlinks=False)

    def open(self, name: str, flags: int = os.O_RDONLY, *, at_most: int | None = None) -> int:
        """Open a file in it that is ours.

        Args:
            name: Without a directory.
            flags: In addition to those against following and waiting.
            at_most: Bytes that a file of ours may have.

        Returns:
            Its descriptor.

        Raises:
            ForeignError: It is not ours alone, no regular file, or too large to be ours.
            OSError: It cannot be opened.
        """
        if not flags & os.O_EXCL:
            # before it is opened as well: to open a device can have effects
            self._check(name, self.look(name), at_most)
        opened = os.open(name, flags | _FILE, 0o600, dir_fd=self._fd)
        try:
            if not flags & os.O_EXCL:
                self._check(name, os.fstat(opened), at_most)
        except BaseException:
            os.close(opened)
            raise
        return opened

    def create(self, name: str, data: bytes) -> None:
        """Write a new file in it, durably; raises as `open` does, and FileExistsError."""
        write_durably(self.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL), data)

    @contextmanager
    def reading(
        self, name: str, *, at_most: int | None = None, buffering: int = -1
    ) -> Iterator[BinaryIO]:
        """Open a file of ours to read; raises as `open` does."""
        opened = self.open(name, at_most=at_most)
        with open(opened, "rb", buffering=buffering) as file:  # noqa: PTH123 - a descriptor
            yield file

    def held(self, name: str, *, at_most: int) -> int:
        """Return how many bytes a file of ours takes up on disk; 0 if it is not ours, or gone."""
        try:
            found = self.look(name)
            self._check(name, found, at_most)
        except ForeignError as error:
            report_foreign(error.path, error.why)
            return 0
        except OSError:
            return 0
        # the smaller one: holes take up nothing
        return min(found.st_size, found.st_blocks * _BLOCK)

    def make(self, name: str) -> OwnDirectory:
        """Make a directory in it, for this user alone.

        Raises:
            OSError: It cannot be made.
        """
        os.mkdir(name, 0o700, dir_fd=self._fd)
        return self.directory(name)

    def unlink(self, name: str) -> None:
        """Remove a file in it, if it is there; raises OSError."""
        try:
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            return

    def rename(self, name: str, new: str) -> None:
        """Rename something in it; raises OSError."""
        os.rename(name, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def move(self, name: str, to: OwnDirectory, new: str) -> None:
        """Move something into another directory of the same file system; raises OSError."""
        os.rename(name, new, src_dir_fd=self._fd, dst_dir_fd=to._fd)

    def rmdir(self, name: str) -> None:
        """Remove an empty directory in it; raises OSError."""
        os.rmdir(name, dir_fd=self._fd)

    def chmod(self, mode: int) -> None:
        """Set its mode; raises OSError."""
        os.fchmod(self._fd, mode)

    def sync(self) -> None:
        """Bring its entries to disk; raises OSError."""
        sync_open_directory(self._fd)

    def close(self) -> None:
        """Close it; a second time does nothing."""
        self._close()

    def _check(self, name: str, found: os.stat_result, at_most: int | None) -> None:
        why = self._foreign(found)
        if why is None and not stat.S_ISREG(found.st_mode):
            why = f"it is {_kind(found.st_mode)}, and should be a regular file"
        if why is None and found.st_nlink > 1:
            why = f"the file has {found.st_nlink} names (hard links), and should have one"
        if why is None and at_most is not None and found.st_size > at_most:
            why = f"it has {found.st_size} bytes, more than a spool writes there ({at_most})"
        if why is not None:
            raise ForeignError(self.path / name, why)

    def _foreign(self, found: os.stat_result, *, modes: bool = True) -> str | None:
        if stat.S_ISLNK(found.st_mode):
            return "it is a symbolic link"
        if found.st_uid not in (os.geteuid(), _ROOT):
            return f"it belongs to user {found.st_uid}, and this process is user {os.geteuid()}"
        loose = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if loose == stat.S_IWGRP and found.st_gid == self._group:
            return None
        if loose and modes:
            return f"other users may write it (mode {stat.S_IMODE(found.st_mode):04o})"
        return None


def danger_above(directory: Path) -> str | None:
    """Say who could put another directory in a directory's place, or in that of what is in it.

    Returns:
        A sentence that says what to do; None if only we and root can.
    """
    try:
        found = directory.stat()
    except OSError:
        return None
    if found.st_uid not in (os.geteuid(), _ROOT):
        return (
            f"{directory} belongs to user {found.st_uid}, who may rename or remove what is in it; "
            f"run chown {os.geteuid()} {directory}, or name another directory"
        )
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        return (
            f"{directory} may be written by every user, who may rename or remove what is in it; "
            f"run chmod o-w {directory} (or chmod +t, where others need it)"
        )
    return None


def not_a_directory() -> NotADirectoryError:
    """Make the error that the system would raise."""
    return NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR))


def _kind(mode: int) -> str:
    return {
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a directory",
    }.get(stat.S_IFMT(mode), "no file")
