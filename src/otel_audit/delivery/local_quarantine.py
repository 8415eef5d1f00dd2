"""Records that a store without a quarantine of its own refuses: kept on this machine, a file each.

They lie in ``.quarantine`` in the service's spool directory, private like the spool, and encrypted
with the same key. The file's name is made of what was refused, so that the same is kept once.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from otel_audit._util.spill import Cipher
from otel_audit.delivery.queue_entries import read_back
from otel_audit.delivery.sink import Refused
from otel_audit.delivery.spool import Encryption, EncryptionError
from otel_audit.delivery.spool.damaged import quarantine_in
from otel_audit.delivery.spool.directory import (
    OWNER,
    QUARANTINE,
    open_home,
    prepare_service_directory,
    slug,
)
from otel_audit.delivery.spool.ownership import ForeignError, OwnDirectory, report_foreign
from otel_audit.errors import OtelAuditError, StoreError
from otel_audit.record import AuditRecord

_SUFFIX: Final = ".refused"
_ENCRYPTED: Final = b"sealed\n"
"""The first bytes of an encrypted file. The word is older than the name encryption; it has nothing
to do with the ledger's seal, and stays, because files with it are on disk."""
_CONTEXT: Final = b"quarantine"
_NAME_BYTES: Final = 65_536
"""Bytes that are read of the file with the service's name."""


def services_with_quarantine(directory: Path) -> list[str]:
    """Name the services that have a quarantine in a spool directory.

    Raises:
        StoreError: The directory cannot be read.
    """
    try:
        names = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
        found = [_service_of(directory / name) for name in names]
    except OSError as error:
        raise StoreError(f"{error.filename} cannot be read ({error.strerror})") from error
    return [service for service in found if service is not None]


def _service_of(path: Path) -> str | None:
    """Name the service of a directory that has a quarantine; None if it is not ours."""
    try:
        home = OwnDirectory(path)
        if not home.is_directory(QUARANTINE):
            return None
        with home.reading(OWNER, at_most=_NAME_BYTES) as file:
            return file.read().decode("utf-8", "surrogateescape")
    except ForeignError as error:
        report_foreign(error.path, error.why)
    except (FileNotFoundError, NotADirectoryError):
        pass
    return None


class QuarantinedRecord(NamedTuple):
    """A refused record, and when it was quarantined (Unix seconds)."""

    path: Path
    refused: Refused
    kept_at: float


class LocalQuarantine:
    """A directory of what was refused. Safe for several processes and threads."""

    def __init__(
        self,
        directory: Path,
        service: str,
        *,
        max_bytes: int,
        encryption: Encryption | None = None,
        on_kept: Callable[[Path, Sequence[Refused]], None] | None = None,
    ) -> None:
        """Remember the place; no directory is made yet.

        Args:
            directory: Holds the spools of all services.
            service: The service's name.
            max_bytes: Bound on what is kept; beyond it nothing more is taken.
            encryption: Encrypts the files, if given.
            on_kept: Called after something was kept.
        """
        self._directory = directory
        self._service = service
        self._max_bytes = max_bytes
        self._encryption = encryption
        self._on_kept = on_kept

    @property
    def path(self) -> Path:
        """Its path, also before it exists."""
        return self._directory / slug(self._service) / QUARANTINE

    def keep(self, refused: Sequence[Refused]) -> None:
        """Keep what was refused; returns after it is on disk. Blocks.

        Raises:
            StoreError: It cannot be kept; the message says the remedy.
        """
        try:
            home = prepare_service_directory(self._directory, self._service)
            place = quarantine_in(home)
            held = sum(place.held(path.name, at_most=self._max_bytes) for path in self.files())
            for item in refused:
                held += self._keep(place, item, held)
            place.sync()
        except OtelAuditError as error:
            raise StoreError(f"what the store refuses cannot be quarantined: {error}") from error
        except OSError as error:
            raise StoreError(
                f"what the store refuses cannot be quarantined in {self.path} ({error.strerror}); "
                "make room there, or make it writable"
            ) from error
        if self._on_kept is not None:
            self._on_kept(self.path, refused)

    def files(self) -> list[Path]:
        """The kept files, in no order; empty if there are none, or none can be seen."""
        try:
            return [self.path / name for name in self._place().names() if name.endswith(_SUFFIX)]
        except ForeignError as error:
            report_foreign(error.path, error.why)
        except OSError:
            pass
        return []

    def _place(self) -> OwnDirectory:
        home = open_home(self._directory, self._service) or OwnDirectory(self.path.parent)
        return home.directory(QUARANTINE)

    def read(self) -> Iterator[QuarantinedRecord]:
        """Read what is kept, oldest first.

        Raises:
            StoreError: A file cannot be read, or not with this key; the message names it.
        """
        paths = self.files()
        if not paths:
            return
        place = self._place()
        for path in sorted(paths, key=lambda path: place.look(path.name).st_mtime_ns):
            try:
                kept = self._read(place, path)
            except ForeignError as error:
                report_foreign(error.path, error.why)
                continue
            yield kept

    def give_back(self, take: Callable[[str, bytes], None]) -> int:
        """Hand over each record that is kept here, and remove it; blocks.

        What never was a record stays: no store could take it.

        Args:
            take: Keeps a record elsewhere: its id, and its JSON text; raises if it cannot.

        Returns:
            How many were handed over.

        Raises:
            StoreError: As for `read`.
        """
        given = 0
        for kept in self.read():
            entry = read_back(kept.refused.record_id, kept.refused.received)
            if isinstance(entry, AuditRecord):
                take(entry.record_id, kept.refused.received)
                self._place().unlink(kept.path.name)
                given += 1
        return given

    def _keep(self, place: OwnDirectory, item: Refused, held: int) -> int:
        stored = msgspec.json.encode({
            "record_id": item.record_id,
            "reason": item.reason,
            "kept_at": time.time(),
            "received": item.received.decode("utf-8", "replace"),
        })  # fmt: skip
        data = (
            stored
            if self._encryption is None
            else _ENCRYPTED + self._cipher().encrypt(stored, _CONTEXT)
        )
        name = hashlib.sha256(item.record_id.encode("utf-8", "replace") + item.received).hexdigest()
        file = f"{name}{_SUFFIX}"
        if _is_there(place, file):
            return 0
        if held + len(data) > self._max_bytes:
            raise StoreError(
                f"{self.path} holds {held} bytes, and OTEL_AUDIT_SPOOL_MAX_BYTES bounds it; look "
                "why records are refused, and move them elsewhere"
            )
        draft = f"{name}.{os.getpid()}-{time.monotonic_ns()}"
        try:
            place.create(draft, data)
            place.rename(draft, file)
        except OSError:
            place.unlink(draft)
            raise
        return len(data)

    def _read(self, place: OwnDirectory, path: Path) -> QuarantinedRecord:
        try:
            with place.reading(path.name, at_most=self._max_bytes) as file:
                data = file.read()
            if data.startswith(_ENCRYPTED):
                data = self._cipher().decrypt(data.removeprefix(_ENCRYPTED), _CONTEXT)
            stored = msgspec.json.decode(data, type=_StoredRecord)
        except ForeignError:
            raise
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error.strerror})") from error
        except EncryptionError as error:
            raise StoreError(f"{path}: {error} (OTEL_AUDIT_SPOOL_KEY)") from error
        except msgspec.MsgspecError as error:
            raise StoreError(f"{path} is damaged") from error
        refused = Refused(stored.record_id, stored.received.encode(), stored.reason)
        return QuarantinedRecord(path, refused, stored.kept_at)

    def _cipher(self) -> Cipher:
        if self._encryption is None:
            raise EncryptionError("it is encrypted, and there is no key")
        return self._encryption.for_spool(QUARANTINE)


class _StoredRecord(msgspec.Struct):
    record_id: str
    reason: str
    kept_at: float
    received: str


def _is_there(place: OwnDirectory, name: str) -> bool:
    try:
        place.look(name)
    except FileNotFoundError:
        return False
    return True
