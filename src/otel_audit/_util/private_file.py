"""Files that hold a secret, or that are trusted: whether anybody else may read or write them."""

from __future__ import annotations

import os
import stat
from typing import Final

_OTHERS_MAY: Final = stat.S_IRWXO | stat.S_IWGRP
_OTHERS_MAY_WRITE: Final = stat.S_IWOTH | stat.S_IWGRP


def is_private(facts: os.stat_result) -> bool:
    """Return whether a file is for this process alone.

    Kubernetes mounts a secret with ``fsGroup`` as root's, readable for that group (mode 0440), and
    a process that is not root could not read it otherwise. So a group of this process may read it,
    where the process cannot change the mode: root owns it, or nobody may write it. For its own file
    the process can, and must: on many hosts its group has other members.

    Args:
        facts: What `os.stat` says of the file.
    """
    mode = stat.S_IMODE(facts.st_mode)
    if mode & _OTHERS_MAY:
        return False
    if not mode & stat.S_IRGRP:
        return True
    is_mounted = (facts.st_uid == 0 and os.geteuid() != 0) or not mode & stat.S_IWUSR
    return is_mounted and facts.st_gid in {os.getegid(), *os.getgroups()}


def others_may_write(facts: os.stat_result) -> bool:
    """Return whether a file or directory is another user's, or others may write to it.

    Args:
        facts: What `os.stat` says of it.
    """
    return facts.st_uid != os.geteuid() or bool(facts.st_mode & _OTHERS_MAY_WRITE)
