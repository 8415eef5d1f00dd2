"""A spool's place on disk: ``<directory>/<service>/<producer>/``, private, locked, labelled.

A new spool is made under a name that starts with a dot, and gets its real name when its lock is
held and its manifest written, so that no other can take it for a dead one.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from errno import EACCES, EDQUOT, EEXIST, ELOOP, ENOLCK, ENOSPC, ENOTDIR, EOPNOTSUPP, EPERM, EROFS
from pathlib import Path
from typing import Final

from otel_audit._util.durable_file import sync_directory
from otel_audit._util.printable import visible
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.delivery.spool.filesystem import file_system
from otel_audit.delivery.spool.format import MAX_PAYLOAD_BYTES
from otel_audit.delivery.spool.locks import LOCK, create_lock, release
from otel_audit.delivery.spool.manifest import Manifest, decode_label, encode_label
from otel_audit.delivery.spool.ownership import (
    ForeignError,
    OwnDirectory,
    danger_above,
    not_a_directory,
    report_foreign,
)
from otel_audit.delivery.spool.settings import LARGEST_SEGMENT
from otel_audit.errors import ConfigurationError

DIR_SETTING: Final = "OTEL_AUDIT_SPOOL_DIR"
LABEL: Final = "spool.json"
HIDDEN: Final = (
    "holds parts of a spool, and is not adopted, as its name begins with a dot: take the dot away"
)
OWNER: Final = "service"
QUARANTINE: Final = ".quarantine"
SEGMENT_SUFFIX: Final = ".frames"
_PRIVATE: Final = 0o700
"""Records are in it: only the owner may look."""
_NEWBORN: Final = ".new-"
_DYING: Final = ".old-"
_LEFT_SECONDS: Final = 3600.0
"""Age at which a half-made or half-removed directory belongs to nobody who is still at it."""
LARGEST_FILE: Final = LARGEST_SEGMENT + 2 * MAX_PAYLOAD_BYTES
"""Bytes that a segment can have: a frame longer than a segment has one to itself."""
_SMALL_FILE: Final = 65_536
"""Bytes of a file of ours beside the segments; a longer one is not ours."""
_log = logging.getLogger("otel_audit")
_homes: dict[Path, OwnDirectory] = {}
_warned: set[str] = set()

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


def prepare_service_directory(directory: Path, service: str) -> OwnDirectory:
    """Make the service's private directory, or check the one that is there.

    Args:
        directory: For the spools of all services. Made private if it is made here, left as it is
            if it exists.
        service: The service's name.

    Returns:
        The service's directory: owned by this user, mode 0700, and open; the same one each time
            for as long as it exists, wherever it is moved.

    Raises:
        ConfigurationError: It cannot be made, written or made private, belongs to another user or
            service, or has no locks; the message says the remedy.
    """
    opened = open_home(directory, service)
    if opened is not None:
        with _explained(opened.path):
            opened.chmod(_PRIVATE)
            _claim(opened, service)
        return opened
    path = directory / slug(service)
    with _explained(directory):
        directory.mkdir(_PRIVATE, parents=True, exist_ok=True)
    if not file_system(directory).locks:
        raise ConfigurationError(
            f"{DIR_SETTING}: {directory} is on NFS mounted without shared locks (nolock or "
            "local_lock); mount it with locks, or name a directory on a local file system"
        )
    danger = danger_above(directory)
    if danger is not None and danger not in _warned:
        _warned.add(danger)
        _log.warning("%s: %s", DIR_SETTING, danger)
    with _explained(path):
        path.mkdir(_PRIVATE, exist_ok=True)
        _make_private(path)
        home = OwnDirectory(path)
        if home.stat().st_uid != os.geteuid():
            raise ForeignError(path, "it was exchanged for another one")
        _claim(home, service)
    _homes[path] = home
    return home


def open_home(directory: Path, service: str) -> OwnDirectory | None:
    """Give the service's directory that this process has opened; None if it has not, or it is gone.

    Args:
        directory: For the spools of all services.
        service: The service's name.
    """
    home = _homes.get(directory / slug(service))
    if home is None or home.stat().st_uid != os.geteuid():
        return None
    return home if home.exists else None


def create(home: OwnDirectory, label: Manifest) -> tuple[OwnDirectory, int]:
    """Make a spool's directory, locked and labelled, and on disk before it has its name.

    Args:
        home: The service's directory.
        label: What to write into it.

    Returns:
        The directory, and the file descriptor that holds its lock.

    Raises:
        ConfigurationError: It cannot be made or locked; the message says the remedy.
    """
    name = f"{_NEWBORN}{label.producer_id}"
    with _explained(home.path):
        _sweep(home)
        newborn = home.make(name)
        lock = create_lock(newborn)
        if lock is None:
            raise ConfigurationError(
                f"{DIR_SETTING}: locks have no effect on the file system of {home.path}; "
                "name a directory on a local one"
            )
        try:
            label = replace(label, device=newborn.stat().st_dev)
            newborn.create(LABEL, encode_label(label))
            # its entries before its name: a spool without its lock could not be adopted
            newborn.sync()
            home.rename(name, label.producer_id)
            newborn.path = home.path / label.producer_id
            home.sync()
            sync_directory(home.path.parent)
        except BaseException:
            release(lock)
            raise
    return newborn, lock


def read_label(spool: OwnDirectory) -> Manifest | None:
    """Read a spool's label; None if it is missing or damaged.

    Raises:
        ForeignError: It is not ours, or larger than a label.
        OSError: It is there and cannot be read.
    """
    try:
        return decode_label(_read(spool, LABEL))
    except FileNotFoundError:
        return None


def has_label(spool: OwnDirectory) -> bool:
    """Return whether there is a label, damaged or not."""
    try:
        spool.look(LABEL)
    except OSError:
        return False
    return True


def spools_in(home: OwnDirectory) -> list[str]:
    """Name the spools of a service, oldest first (their names are UUIDv7).

    Raises:
        OSError: The directory cannot be read.
    """
    return [name for name in home.names() if not name.startswith(".") and home.is_directory(name)]


def hidden_spools(home: OwnDirectory) -> list[str]:
    """Name directories with parts of a spool whose names keep them from being adopted."""
    ours = (_NEWBORN, _DYING)
    found = []
    with suppress(OSError):
        for name in home.names():
            if name.startswith(".") and not name.startswith(ours) and name != QUARANTINE:
                with suppress(OSError):
                    if home.is_directory(name) and segments_in(home.directory(name)):
                        found.append(name)
    return found


def segments_in(spool: OwnDirectory) -> list[str]:
    """Name a spool's segments in the order of writing.

    Raises:
        OSError: The directory cannot be read.
    """
    return [name for name in spool.names() if name.endswith(SEGMENT_SUFFIX)]


def segment_name(number: int) -> str:
    """Name a segment."""
    return f"{number:010d}{SEGMENT_SUFFIX}"


def segment_number(name: str) -> int:
    """Return a segment's number by its name; 0 if it is none of ours."""
    stem = name.removesuffix(SEGMENT_SUFFIX)
    return int(stem) if stem.isascii() and stem.isdecimal() else 0


def bytes_in(spool: OwnDirectory) -> int:
    """Sum up the bytes of a spool's segments; what is not ours or vanishes counts nothing."""
    try:
        return sum(spool.held(name, at_most=LARGEST_FILE) for name in segments_in(spool))
    except OSError:
        return 0


def withdraw(home: OwnDirectory, spool: OwnDirectory) -> None:
    """Hide a spool from adopters; the caller holds its lock.

    Raises:
        OSError: It cannot be renamed.
    """
    # gone where another host adopted it, too, as locks do not reach from one to the other
    with suppress(FileNotFoundError):
        home.rename(spool.path.name, f"{_DYING}{spool.path.name}")


def remove_empty(home: OwnDirectory, spool: OwnDirectory) -> None:
    """Remove a spool that was withdrawn and has no segments left, after its lock was given back.

    A file that is removed while it is open stays on FUSE and NFS, under another name.

    Raises:
        OSError: Something cannot be removed.
    """
    with suppress(FileNotFoundError):
        _dismantle(home, f"{_DYING}{spool.path.name}", spool)


def _make_private(home: Path) -> None:
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise not_a_directory()
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


def _claim(home: OwnDirectory, service: str) -> None:
    name = service.encode("utf-8", "surrogateescape")
    if _is_unclaimed(home, service):
        # renamed into place, so that it is never read half-written
        draft = f".{OWNER}-{os.getpid()}-{time.monotonic_ns()}"
        home.create(draft, name)
        if home.is_directory(OWNER):
            # nothing can be renamed onto it; what is in it may be somebody's
            _move_aside(home, OWNER)
        home.rename(draft, OWNER)
        home.sync()
    if _read(home, OWNER) != name:
        raise ConfigurationError(
            f"{DIR_SETTING}: {home.path} is the spool of another service, whose name differs from "
            "this one's in its spelling only; set another OTEL_SERVICE_NAME, or name another "
            "directory"
        )


def claim_problem(home: OwnDirectory, service: str) -> str | None:
    """Say why a service could not use its directory as it is; None if it could.

    Raises:
        OSError: It cannot be read.
    """
    name = service.encode("utf-8", "surrogateescape")
    if _is_unclaimed(home, service) or _read(home, OWNER) == name:
        return None
    return f"{home.path} is the spool of another service; set another OTEL_SERVICE_NAME"


def _is_unclaimed(home: OwnDirectory, service: str) -> bool:
    """Return whether nobody has said whose it is, or what was said was lost in a power failure."""
    name = service.encode("utf-8", "surrogateescape")
    try:
        found = _read(home, OWNER)
    except FileNotFoundError:
        return True
    except ForeignError as error:
        report_foreign(error.path, error.why)
        return True
    if found == name or not _is_damaged(found, name, home.path.name):
        return False
    # then the labels of its spools decide
    others = {label.service for label in _labels_in(home)} - {service}
    if others:
        return False
    log_limited(
        _log, f"claim {home.path}",
        "audit spool %s: its file %s is damaged, as a power loss can leave it, and written anew",
        ascii(str(home.path)), OWNER, level=logging.WARNING,
    )  # fmt: skip
    return True


def _is_damaged(found: bytes, name: bytes, directory: str) -> bool:
    """Return whether what stands there cannot be the name of another service of this directory.

    Empty, cut off, blocks that were never written, or altered: a service finds its directory by its
    name, so one whose name leads elsewhere has not written this.
    """
    text = found.decode("utf-8", "surrogateescape")
    return name.startswith(found) or not text.isprintable() or slug(text) != directory


def _move_aside(home: OwnDirectory, name: str) -> None:
    new_name = f".{name}-{time.time_ns()}"
    home.rename(name, new_name)
    log_limited(
        _log, f"aside {home.path}",
        "audit spool %s: %s is a directory, and should be a file; it is called %s now, look who "
        "made it", ascii(str(home.path)), name, new_name, level=logging.WARNING,
    )  # fmt: skip


def _labels_in(home: OwnDirectory) -> Iterator[Manifest]:
    for name in spools_in(home):
        with suppress(OSError):
            label = read_label(home.directory(name))
            if label is not None:
                yield label


def _sweep(home: OwnDirectory) -> None:
    """Remove what processes left that died while they made or removed their spool."""
    for name in home.names():
        if not name.startswith((_NEWBORN, _DYING)):
            continue
        with suppress(OSError):
            if time.time() - home.look(name).st_mtime > _LEFT_SECONDS:
                _dismantle(home, name, home.directory(name))


def _dismantle(home: OwnDirectory, name: str, spool: OwnDirectory) -> None:
    for file in (LABEL, LOCK):
        spool.unlink(file)
    # refuses where frames are left, which no spool of such a name has
    home.rmdir(name)


def _read(place: OwnDirectory, name: str) -> bytes:
    with place.reading(name, at_most=_SMALL_FILE) as file:
        return file.read(_SMALL_FILE)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the system refuses into what the operator can do."""
    try:
        yield
    except ForeignError as error:
        raise ConfigurationError(
            f"{DIR_SETTING}: {visible(str(error.path))} is not to be trusted: {error.why}; "
            "remove it, or name another directory"
        ) from error
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "name another directory")
        raise ConfigurationError(
            f"{DIR_SETTING}: {visible(str(path))} cannot hold the spool "
            f"({error.strerror}); {remedy}"
        ) from error
