"""The status of a spool directory for an operator; read-only."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_audit.delivery.spool.damaged import damaged_files
from otel_audit.delivery.spool.directory import (
    HIDDEN,
    LABEL,
    LARGEST_FILE,
    bytes_in,
    claim_problem,
    hidden_spools,
    read_label,
    segments_in,
    slug,
    spools_in,
)
from otel_audit.delivery.spool.encryption import Encryption
from otel_audit.delivery.spool.filesystem import file_system
from otel_audit.delivery.spool.locks import lock_if_dead, release
from otel_audit.delivery.spool.manifest import belongs_elsewhere
from otel_audit.delivery.spool.open import open_spool
from otel_audit.delivery.spool.ownership import ForeignError, OwnDirectory, danger_above
from otel_audit.delivery.spool.recover import (
    WithoutLock,
    obstacle_to_adoption,
    why_without_lock,
    without_lock_message,
)
from otel_audit.errors import OtelAuditError

_LISTED: Final = 10
"""Spools that are named; what is left out is counted."""


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
        abandoned: Spools whose process is gone.
        oldest_age: Seconds since the oldest abandoned spool was last written; None without one.
        problems: What is wrong and what to do, one sentence each.
        stuck: Spools of ended processes that need a person before they are adopted.
        kept_age: Seconds since the oldest finished segment of a running process was last written:
            an open action, or records that are not delivered, keep it. None where there is none.
        unusable: Why the service cannot start with its directory as it is; empty where it can.
    """

    directory: Path
    exists: bool
    writable: bool
    private: bool
    persistent: bool
    file_system: str
    bytes_used: int
    bytes_free: int
    abandoned: int
    oldest_age: float | None
    problems: tuple[str, ...]
    stuck: int = 0
    unusable: str = ""
    kept_age: float | None = None


def inspect(
    directory: Path, service: str = "", destination: str = "", encryption: Encryption | None = None
) -> SpoolStatus:
    """Look at the spools of all services in a directory.

    Args:
        directory: As given to `open_spool`; it need not exist.
        service: Whose spools are to be looked at for another destination, if any.
        destination: Digest of the destination that they should have.
        encryption: The key that its payloads are encrypted with, if they are.

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
    stuck: list[str] = []
    states = [_look(spool, problems, stuck) for spool in spools]
    dead = [spool for spool, (is_dead, _) in zip(spools, states, strict=True) if is_dead]
    stuck += _obstacles(dead, service, encryption)
    abandoned = [age for dead, age in states if dead]
    waiting = sum(_waits_for_another(spool, service, destination) for spool in dead)
    if waiting:
        problems.append(
            f"{waiting} spools that ended processes of {service} left in {directory} are of "
            "another destination, and wait for an application that delivers there; give each "
            "application an OTEL_SERVICE_NAME of its own; if the store has moved, remove "
            f"{LABEL} in those that belong to it"
        )
    kept = [file for home in homes for file in damaged_files(directory, home.name)]
    if kept:
        problems.append(
            f"{len(kept)} damaged files of spools are kept in {kept[0].parent}: records were lost; "
            "look what did that (a disk, a person), and remove them"
        )
    problems += stuck[:_LISTED]
    problems += [f"and {len(stuck) - _LISTED} more spools that nobody adopts"] * (
        len(stuck) > _LISTED
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
        abandoned=len(abandoned),
        oldest_age=max(abandoned, default=None),
        problems=tuple(problems),
        stuck=len(stuck),
        unusable=_unusable(directory, service),
        kept_age=_kept_age(
            spool for spool, (is_dead, _) in zip(spools, states, strict=True) if not is_dead
        ),
    )


def _unusable(directory: Path, service: str) -> str:
    """Make and remove a spool as the service would at its start, where that changes nothing.

    Not where its directory is another user's, or not there: what this makes would be in the way.
    """
    home = directory / slug(service) if service else None
    if home is None or not home.is_dir() or home.stat().st_uid != os.geteuid():
        return ""
    try:
        problem = claim_problem(OwnDirectory(home, private=False), service)
        if problem is None:
            open_spool(directory, service=service).close()
    except OtelAuditError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or home} cannot be used: {error.strerror}"
    return problem or ""


def _obstacles(
    dead: Sequence[OwnDirectory], service: str, encryption: Encryption | None
) -> Iterator[str]:
    """Say which spools of ended processes of a service are not adopted, and why."""
    for spool in dead:
        with suppress(OSError):
            label = read_label(spool)
            if label is not None and label.service == service:
                obstacle = obstacle_to_adoption(spool.path, label, service, encryption)
                if obstacle is not None:
                    yield f"{spool.path} is left alone: {obstacle}"


def _spools(home: Path, problems: list[str]) -> list[OwnDirectory]:
    """Open the spools of a service, and say which are not ours."""
    found: list[OwnDirectory] = []
    try:
        # its own mode is separate: the next start makes it private
        own = OwnDirectory(home, private=False)
        names = spools_in(own)
    except ForeignError as error:
        problems.append(_foreign(error))
        return found
    except OSError as error:
        problems.append(f"{home} cannot be read: {error.strerror}")
        return found
    problems += [f"{home / name} {HIDDEN}" for name in hidden_spools(own)]
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


def _look(spool: OwnDirectory, problems: list[str], stuck: list[str]) -> tuple[bool, float]:
    """Return whether a spool is abandoned, and its age in seconds."""
    try:
        age = _age(spool)
        read_label(spool)
        try:
            lock = lock_if_dead(spool)
        except FileNotFoundError:
            why = why_without_lock(spool)
            if why is WithoutLock.UNKNOWN:
                stuck.append(f"{spool.path} {without_lock_message(spool)}")
            return why is not WithoutLock.BEING_REMOVED, age
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


def _kept_age(spools: Iterable[OwnDirectory]) -> float | None:
    """Seconds since the oldest segment was written that is not the one being written."""
    oldest: float | None = None
    for spool in spools:
        with suppress(OSError):
            for name in segments_in(spool)[:-1]:
                written = spool.look(name).st_mtime
                oldest = written if oldest is None else min(oldest, written)
    return None if oldest is None else max(time.time() - oldest, 0.0)


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
