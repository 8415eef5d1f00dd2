"""Keys that were made while the key database was away: wrapped, in files, until it has them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from otel_audit._util.durable_file import replace_durably
from otel_audit._util.ratelimited_log import log_limited
from otel_audit_postgres.pseudonyms import KEY_ID_BYTES

_logger = logging.getLogger(__name__)

SUBJECT_BYTES: Final = 32
"""Bytes of the keyed hash that names a subject."""
_SUFFIX: Final = ".key"
_DAMAGED: Final = ".damaged"
_STILL_WRITTEN: Final = 60.0
"""Seconds since the last change in which a file may be one that is being written: versions that
write in place run beside this one while a new version is rolled out."""


@dataclass(frozen=True, slots=True)
class PendingKey:
    """A key that the database has not seen yet.

    Attributes:
        key_id: Its id.
        subject: The hash that names its subject.
        wrapped: The key, wrapped by the key-encryption key.
        created_at: When it was made, with a time zone.
    """

    key_id: bytes
    subject: bytes
    wrapped: bytes
    created_at: datetime


class PendingKeys:
    """A directory with a file for each key; several processes may use it at once."""

    def __init__(self, directory: Path) -> None:
        """Remember the directory; it is made with the first key.

        Args:
            directory: For these files alone.
        """
        self._directory = directory

    def __str__(self) -> str:
        """The directory."""
        return str(self._directory)

    def add(self, key: PendingKey) -> None:
        """Keep a key; it is on disk, whole, when this returns.

        Raises:
            OSError: It cannot be kept.
        """
        text = json.dumps({
            "key_id": key.key_id.hex(), "subject": key.subject.hex(),
            "wrapped": key.wrapped.hex(), "created_at": key.created_at.isoformat(),
        })  # fmt: skip
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # renamed into place: whoever hands it in would meet a half of it, and so after a kill
        replace_durably(self._path(key.key_id), text.encode())

    def waiting(self) -> Iterator[PendingKey]:
        """The keys that wait. What cannot be read is named in the log, and holds up no other."""
        for file in sorted(self._directory.glob(f"*{_SUFFIX}")):
            try:
                yield _read(file)
            except FileNotFoundError:
                continue  # another process has handed it in
            except OSError as error:
                log_limited(
                    _logger, f"key {file}", "the key in %s cannot be read, so the database of keys "
                    "does not get it; values under it cannot be decrypted until the file can be "
                    "read", file, error=error,
                )  # fmt: skip
            except (ValueError, KeyError, TypeError) as error:
                _set_aside(file, error)

    def discard(self, key: PendingKey) -> None:
        """Remove a key that the database has."""
        file = self._path(key.key_id)
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            log_limited(
                _logger, f"key {file}", "%s cannot be removed; the database of keys has this key, "
                "and is sent it again each time it is asked for keys, which changes nothing there",
                file, error=error, level=logging.WARNING,
            )  # fmt: skip

    def _path(self, key_id: bytes) -> Path:
        return self._directory / f"{key_id.hex()}{_SUFFIX}"


def _read(file: Path) -> PendingKey:
    found = json.loads(file.read_bytes())
    key = PendingKey(
        bytes.fromhex(found["key_id"]), bytes.fromhex(found["subject"]),
        bytes.fromhex(found["wrapped"]), datetime.fromisoformat(found["created_at"]),
    )  # fmt: skip
    if (
        len(key.key_id) != KEY_ID_BYTES
        or len(key.subject) != SUBJECT_BYTES
        or key.created_at.tzinfo is None
        or file.stem != key.key_id.hex()
    ):
        raise ValueError
    return key


def _set_aside(file: Path, damage: Exception) -> None:
    """Rename a file that holds no whole key, so that it is read no more; nothing is deleted.

    One that was changed just now stays: it may be whole when it is read the next time.
    """
    aside = file.with_name(f"{file.name}{_DAMAGED}")
    try:
        # looked at after it was read: what was written meanwhile has made it young
        if abs(time.time() - file.stat().st_mtime) < _STILL_WRITTEN:
            return
        file.rename(aside)
    except FileNotFoundError:
        return  # another process has done so
    except OSError as error:
        log_limited(
            _logger, f"key {file}", "%s holds no whole key, and cannot be renamed; remove it",
            file, error=error,
        )  # fmt: skip
        return
    log_limited(
        _logger, f"key {file}", "%s held no whole key, and is called %s now; if it is empty, no "
        "value was encrypted under it: remove it", file, aside.name, error=damage,
    )  # fmt: skip
