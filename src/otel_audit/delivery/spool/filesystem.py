"""The kind of a directory's file system, as far as a spool must know it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MOUNTS: Final = Path("/proc/self/mountinfo")
_VOLATILE: Final = {"tmpfs", "ramfs", "rootfs", "overlay", "aufs"}
_NFS: Final = {"nfs", "nfs4"}
_NFS_WITHOUT_LOCKS: Final = {"nolock", "local_lock=flock", "local_lock=all"}
_SHARED: Final = {"9p", "virtiofs", "cifs", "smb3", "ceph", "lustre", "afs", "glusterfs"}
_INCOHERENT: Final = {"cache=loose", "cache=fscache", "loose", "fscache"}
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A mounted file system.

    Attributes:
        kind: As the kernel calls it: ``ext4``, ``tmpfs``, ``nfs4``, …; empty where unknown.
        options: Its mount options.
    """

    kind: str = ""
    options: frozenset[str] = frozenset()

    @property
    def persistent(self) -> bool:
        """Whether it outlives the machine or the container, as far as its kind shows."""
        return self.kind not in _VOLATILE

    @property
    def locks(self) -> bool:
        """Whether a lock taken by one client is seen by all of them; False only if known."""
        return not (self.kind in _NFS and self.options & _NFS_WITHOUT_LOCKS)

    @property
    def coherent(self) -> bool:
        """Whether what one client has written is seen by the others; False only if known."""
        return not (self.kind == "9p" and self.options & _INCOHERENT)

    @property
    def shared(self) -> bool:
        """Whether other hosts may use it, and locks may not reach them."""
        return self.kind in _SHARED or self.kind == "fuse" or self.kind.startswith("fuse.")


def file_system(path: Path) -> FileSystem:
    """Find the file system of a path, or of its nearest ancestor that exists."""
    try:
        mounts = _MOUNTS.read_text(errors="surrogateescape")
    except OSError:
        return FileSystem()
    return find_mount(mounts, os.path.realpath(path))


def find_mount(mounts: str, path: str) -> FileSystem:
    """Find a path's mount in the text of ``/proc/self/mountinfo`` (proc(5)).

    Args:
        mounts: The text.
        path: Absolute, without symbolic links.

    Returns:
        The mount with the longest matching mount point; among equals the last one.
    """
    best, length = FileSystem(), -1
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields, source = left.split(), right.split()
        if len(fields) < 6 or len(source) < 1:  # noqa: PLR2004 - fields of proc(5)
            continue
        point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
        if len(point) >= length and _holds(point, path):
            options = set(fields[5].split(",")) | set(",".join(source[2:]).split(","))
            best, length = FileSystem(source[0], frozenset(options)), len(point)
    return best


def _holds(point: str, path: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")
