"""A spool's place on disk: ``<directory>/<service>/<producer>/``, private, locked, labelled.

A new spool is made under a name that starts with a dot, and gets its real name when its lock is
held and its label written, so that nobody can take it for a dead one.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EDQUOT, EEXIST, ELOOP, ENOLCK, ENOSPC, ENOTDIR, EOPNOTSUPP, EPERM, EROFS
from pathlib import Path
from typing import Final

from otel_audit.errors import ConfigurationError
from otel_audit.pipeline.spool.filesystem import file_system
from otel_audit.pipeline.spool.label import Label, decode_label, encode_label
from otel_audit.pipeline.spool.locks import LOCK, create_lock, release

DIR_SETTING: Final = "OTEL_AUDIT_SPOOL_DIR"
LABEL: Final = "spool.json"
OWNER: Final = "service"
SEGMENT_SUFFIX: Final = ".frames"
_PRIVATE: Final = 0o700
_NEWBORN: Final = ".new-"
_DYING: Final = ".old-"
_LEFT_SECONDS: Final = 3600.0
_OPEN: Final = os.O_CLOEXEC | os.O_NOFOLLOW

_REMEDIES: Final = {
    EACCES: "make it writable for this process, or name another directory",
    EPERM: "make it writable for this process, or name another directory",
    EROFS: "the file system is read-only; name a directory on a writable one",
    ENOTDIR: "a part of it is not a directory; name a directory",
    EEXIST: "it is not a directory; name a directory",
    ELOOP: "a symbolic link stands where a directory or file of the spool should; remove it",
    ENOSPC: "the file system is full; free space, or name a directory on another one",
    EDQUOT: "the quota is used up; raise it, or name another directory",
    ENOLCK: "its file system has no locks; name a directory on a local one",
    EOPNOTSUPP: "its file system has no locks; name a directory on a local one",
}


def slug(service: str) -> str:
    """Make a directory's name of a service's name."""
    return re.sub(r"[^a-z0-9._-]+", "-", service.lower()).strip("-._")[:64] or "service"


def prepare_service_directory(directory: Path, service: str) -> Path:
    """Make the service's private directory, or check the one that is there.

    Args:
        directory: For the spools of all services. Made private if it is made here, left as it is
            if it exists.
        service: The service's name.

    Returns:
        The service's directory: owned by this user, mode 0700.

    Raises:
        ConfigurationError: It cannot be made, written or made private, belongs to another user or
            service, or has no locks; the message says the remedy.
    """
    home = directory / slug(service)
    with _explained(directory):
        directory.mkdir(_PRIVATE, parents=True, exist_ok=True)
    if not file_system(directory).locks:
        raise ConfigurationError(
            f"{DIR_SETTING}: {directory} is on NFS mounted without shared locks (nolock or "
            "local_lock); mount it with locks, or name a directory on a local file system"
        )
    with _explained(home):
        home.mkdir(_PRIVATE, exist_ok=True)
        _make_private(home)
        _claim(home, service)
    return home


def create(home: Path, label: Label, *, durable: bool) -> tuple[Path, int]:
    """Make a spool's directory, locked and labelled.

    Args:
        home: The service's directory.
        label: What to write into it.
        durable: Whether to wait until it is on disk.

    Returns:
        Its path, and the file descriptor that holds its lock.

    Raises:
        ConfigurationError: It cannot be made or locked; the message says the remedy.
    """
    newborn, final = home / f"{_NEWBORN}{label.producer_id}", home / label.producer_id
    with _explained(home):
        _sweep(home)
        newborn.mkdir(_PRIVATE)
        lock = create_lock(newborn)
        if lock is None:
            raise ConfigurationError(
                f"{DIR_SETTING}: locks have no effect on the file system of {home}; "
                "name a directory on a local one"
            )
        try:
            _write(newborn / LABEL, encode_label(label), durable=durable)
            newborn.rename(final)
            if durable:
                for made in (final, home, home.parent):
                    sync_directory(made)
        except BaseException:
            release(lock)
            raise
    return final, lock


def read_label(spool: Path) -> Label | None:
    """Read a spool's label; None if it is missing or damaged.

    Raises:
        OSError: It is there and cannot be read.
    """
    try:
        return decode_label(_read(spool / LABEL))
    except FileNotFoundError:
        return None


def spools_in(home: Path) -> list[Path]:
    """List the spools of a service, oldest first (their names are UUIDv7); none if it has none.

    Raises:
        OSError: The directory cannot be read.
    """
    try:
        return sorted(
            Path(entry.path)
            for entry in os.scandir(home)
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
        )
    except (FileNotFoundError, NotADirectoryError):
        return []


def segments_in(spool: Path) -> list[Path]:
    """List a spool's segments in the order of writing.

    Raises:
        OSError: The directory cannot be read.
    """
    return sorted(path for path in spool.iterdir() if path.suffix == SEGMENT_SUFFIX)


def segment_path(spool: Path, number: int) -> Path:
    """Name a segment."""
    return spool / f"{number:010d}{SEGMENT_SUFFIX}"


def bytes_in(spool: Path) -> int:
    """Sum up the sizes of a spool's segments; what vanishes meanwhile counts nothing."""
    total = 0
    with suppress(OSError):
        for entry in os.scandir(spool):
            if entry.name.endswith(SEGMENT_SUFFIX):
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def remove_empty(spool: Path) -> None:
    """Remove a spool that has no segments left; whoever calls holds its lock.

    Raises:
        OSError: Something cannot be removed.
    """
    # from here on it is no adopter's business, although it loses its lock before it is gone
    dying = spool.rename(spool.with_name(f"{_DYING}{spool.name}"))
    _dismantle(dying)


def sync_directory(path: Path) -> None:
    """Bring a directory's entries to disk.

    Raises:
        OSError: The file system refuses.
    """
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _make_private(home: Path) -> None:
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR))
    if found.st_uid != os.geteuid():
        raise ConfigurationError(
            f"{DIR_SETTING}: {home} belongs to user {found.st_uid}, and this process runs as user "
            f"{os.geteuid()}; change its owner, or name another directory"
        )
    if _is_open_to_others(home):
        home.chmod(_PRIVATE)
    if _is_open_to_others(home):
        raise ConfigurationError(
            f"{DIR_SETTING}: {home} is open to other users, and its file system does not let it "
            "be made private; name a directory on another one"
        )


def _is_open_to_others(path: Path) -> bool:
    return bool(stat.S_IMODE(path.lstat().st_mode) & 0o077)


def _claim(home: Path, service: str) -> None:
    path, name = home / OWNER, service.encode("utf-8", "surrogateescape")
    if not path.exists():
        # renamed into place, so that nobody reads it half-written
        draft = home / f".{OWNER}-{os.getpid()}-{time.monotonic_ns()}"
        _write(draft, name, durable=False)
        draft.replace(path)
    if _read(path) != name:
        raise ConfigurationError(
            f"{DIR_SETTING}: {home} is the spool of another service, whose name differs from this "
            "one's in its spelling only; set another OTEL_SERVICE_NAME, or name another directory"
        )


def _sweep(home: Path) -> None:
    """Remove what processes left that died while they made or removed their spool."""
    for entry in os.scandir(home):
        with suppress(OSError):
            age = time.time() - entry.stat(follow_symlinks=False).st_mtime
            if entry.name.startswith((_NEWBORN, _DYING)) and age > _LEFT_SECONDS:
                _dismantle(Path(entry.path))


def _dismantle(spool: Path) -> None:
    for name in (LABEL, LOCK):
        (spool / name).unlink(missing_ok=True)
    # refuses where frames are left, which no spool of such a name has
    spool.rmdir()


def _read(path: Path) -> bytes:
    with open(os.open(path, os.O_RDONLY | _OPEN), "rb") as file:  # noqa: PTH123 - a descriptor
        return file.read()


def _write(path: Path, data: bytes, *, durable: bool) -> None:
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
    with open(opened, "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the system refuses into what the operator can do."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "name another directory")
        raise ConfigurationError(
            f"{DIR_SETTING}: {path} cannot hold the spool ({error.strerror}); {remedy}"
        ) from error
