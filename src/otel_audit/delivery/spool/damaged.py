"""Damaged segments are kept next to the spools: they may be all that is left of records.

They lie in the service's quarantine under the name of their spool, until a person removes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from otel_audit.delivery.spool.directory import QUARANTINE, open_home, slug
from otel_audit.delivery.spool.ownership import ForeignError, OwnDirectory, report_foreign

_SUFFIX: Final = ".damaged"
_KEPT_AT_MOST: Final = 100
"""Damaged files that are kept: they take room on the disk until somebody looks at them."""


def keep_damaged(home: OwnDirectory, spool: OwnDirectory, segment: str) -> bool:
    """Move a segment out of a spool that is about to be removed.

    Args:
        home: The service's directory.
        spool: The spool's.
        segment: Its file's name.

    Returns:
        Whether it is kept; False where so many are kept that one more would fill the disk.

    Raises:
        OSError: It cannot be moved; it is where it was.
    """
    place = quarantine_in(home)
    if sum(name.endswith(_SUFFIX) for name in place.names()) >= _KEPT_AT_MOST:
        return False
    spool.move(segment, place, f"{spool.path.name}-{segment}{_SUFFIX}")
    place.sync()
    return True


def damaged_files(directory: Path, service: str) -> list[Path]:
    """List the damaged segments of a service that are kept; empty where none can be seen.

    Args:
        directory: Holds the spools of all services.
        service: The service's name.
    """
    path = directory / slug(service)
    try:
        home = open_home(directory, service) or OwnDirectory(path)
        names = home.directory(QUARANTINE).names()
    except ForeignError as error:
        report_foreign(error.path, error.why)
        return []
    except OSError:
        return []
    return [path / QUARANTINE / name for name in names if name.endswith(_SUFFIX)]


def quarantine_in(home: OwnDirectory) -> OwnDirectory:
    """Open a service's quarantine, and make it if need be.

    Raises:
        ForeignError: It is not ours alone.
        OSError: It cannot be made or opened.
    """
    try:
        place = home.make(QUARANTINE)
        home.sync()
    except FileExistsError:
        return home.directory(QUARANTINE)
    return place
