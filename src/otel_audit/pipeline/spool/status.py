"""What an operator should know of a spool directory; looks, and changes nothing."""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from otel_audit.pipeline.spool.directory import (
    LABEL,
    LARGEST_FILE,
    bytes_in,
    read_label,
    segments_in,
    spools_in,
)
from otel_audit.pipeline.spool.filesystem import file_system
from otel_audit.pipeline.spool.label import belongs_elsewhere
from otel_audit.pipeline.spool.locks import lock_if_dead, release
from otel_audit.pipeline.spool.owned import ForeignError, OwnDirectory, danger_above


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """A spool directory as found.

    Attributes:
        directory: What was looked at.
        exists: Whether it is there; if not, the rest is about its nearest ancestor.
        writable: Whether this process may write it.
        private: Whether all services' directories are closed to other users.
        persistent: Whether its file system outlives the machine or container, as far as known.
        file_system: As the kernel calls it; empty where unknown.
        bytes_used: Bytes of all segments.
        bytes_free: Bytes that are free for this user.
        living: Spools whose process lives (or which are being adopted just now).
        abandoned: Spools whose process is gone.
        oldest_age: Seconds since the oldest abandoned spool was last written; None without one.
        problems: What is wrong and what to do, one sentence each.
    """

    directory: Path
    exists: bool
    writable: bool
    private: bool
    persistent: bool
    file_system: str
    bytes_used: int
    bytes_free: int
    living: int
    abandoned: int
    oldest_age: float | None
    problems: tuple[str, ...]


def inspect(directory: Path, service: str = "", destination: str = "") -> SpoolStatus:
    """Look at the spools of all services in a directory.

    Args:
        directory: As given to `open_spool`; it need not exist.
        service: Whose spools are to be looked at for another destination, if any.
        destination: Digest of the destination that they should have.

    Returns:
        What was found. Never raises: what cannot be seen is among the problems.
    """
    directory = Path(directory)
    there = _nearest(directory)
    problems: list[str] = []
    spools: list[OwnDirectory] = []
    homes: list[Path] = []
    if there == directory:
        try:
            homes = sorted(
                Path(entry.path)
                for entry in os.scandir(directory)
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            )
        except OSError as error:
            problems.append(f"{error.filename} cannot be read: {error.strerror}")
        spools = [spool for home in homes for spool in _spools(home, problems)]
        danger = danger_above(directory)
        if danger is not None:
            problems.append(danger)
    states = [_look(spool, problems) for spool in spools]
    abandoned = [age for dead, age in states if dead]
    waiting = sum(
        dead and _waits_for_another(spool, service, destination)
        for spool, (dead, _) in zip(spools, states, strict=True)
    )
    if waiting:
        problems.append(
            f"{waiting} spools that ended processes of {service} left in {directory} are of "
            "another destination, and wait for an application that delivers there; give each "
            "application an OTEL_SERVICE_NAME of its own; if the store has moved, remove "
            f"{LABEL} in those that belong to it"
        )
    found = file_system(there)
    writable = os.access(there, os.W_OK | os.X_OK)
    private = all(_is_private(home) for home in homes)
    if not writable:
        problems.append(f"{there} is not writable for this process")
    if not private:
        problems.append(f"a directory in {directory} is open to other users; set its mode to 0700")
    if not found.persistent:
        problems.append(
            f"{there} is on {found.kind}, which does not outlive the machine or container; "
            "mount a persistent volume"
        )
    if not found.locks:
        problems.append(f"{there} is on NFS without shared locks; use a local file system")
    return SpoolStatus(
        directory=directory,
        exists=there == directory,
        writable=writable,
        private=private,
        persistent=found.persistent,
        file_system=found.kind,
        bytes_used=sum(bytes_in(spool) for spool in spools),
        bytes_free=_free(there),
        living=len(states) - len(abandoned),
        abandoned=len(abandoned),
        oldest_age=max(abandoned, default=None),
        problems=tuple(problems),
    )


def _spools(home: Path, problems: list[str]) -> list[OwnDirectory]:
    """Open the spools of a service, and say which are not ours."""
    found: list[OwnDirectory] = []
    try:
        # its own mode is told apart: whoever starts next makes it private
        own = OwnDirectory(home, private=False)
        names = spools_in(own)
    except ForeignError as error:
        problems.append(_foreign(error))
        return found
    except OSError as error:
        problems.append(f"{home} cannot be read: {error.strerror}")
        return found
    for name in names:
        try:
            found.append(own.directory(name))
        except ForeignError as error:
            problems.append(_foreign(error))
        except OSError as error:
            problems.append(f"{home / name} cannot be read: {error.strerror}")
    return found


def _foreign(error: ForeignError) -> str:
    return f"{error.path} is left alone: {error.why}; look who put it there, and remove it"


def _look(spool: OwnDirectory, problems: list[str]) -> tuple[bool, float]:
    """Tell whether a spool is abandoned, and its age in seconds."""
    try:
        lock = lock_if_dead(spool)
        age = _age(spool)
    except ForeignError as error:
        problems.append(_foreign(error))
        return False, 0.0
    except OSError as error:
        problems.append(f"{spool.path} cannot be read: {error.strerror}")
        return False, 0.0
    for name in segments_in(spool):
        try:
            os.close(spool.open(name, at_most=LARGEST_FILE))
        except ForeignError as error:
            problems.append(_foreign(error))
        except OSError:
            continue
    if lock is None:
        return False, age
    release(lock)
    return True, age


def _waits_for_another(spool: OwnDirectory, service: str, destination: str) -> bool:
    with suppress(OSError):
        label = read_label(spool)
        return (
            label is not None
            and label.service == service
            and belongs_elsewhere(label, destination or None)
        )
    return False


def _age(spool: OwnDirectory) -> float:
    newest = max(
        (spool.look(name).st_mtime for name in segments_in(spool)),
        default=spool.stat().st_mtime,
    )
    return max(time.time() - newest, 0.0)


def _nearest(directory: Path) -> Path:
    here = directory.absolute()
    if here.exists():
        return directory
    return next(parent for parent in here.parents if parent.exists())


def _is_private(home: Path) -> bool:
    with suppress(OSError):
        found = home.lstat()
        return found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077
    return False


def _free(path: Path) -> int:
    with suppress(OSError):
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize
    return 0
