"""Records that a store without a quarantine of its own refuses: kept on this machine, a file each.

They lie in ``.quarantine`` in the service's spool directory, private like the spool, and sealed
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

from otel_audit.errors import OtelAuditError, StoreError
from otel_audit.pipeline.entries import read_back
from otel_audit.pipeline.sink import Refused
from otel_audit.pipeline.spool import Cipher, SealError, Sealing
from otel_audit.pipeline.spool.directory import (
    OWNER,
    prepare_service_directory,
    slug,
    spools_in,
    sync_directory,
)
from otel_audit.record import AuditRecord

_NAME: Final = ".quarantine"
_SUFFIX: Final = ".refused"
_SEALED: Final = b"sealed\n"
_CONTEXT: Final = b"quarantine"


def services_with_quarantine(directory: Path) -> list[str]:
    """Name the services that have a quarantine in a spool directory.

    Raises:
        StoreError: The directory cannot be read.
    """
    try:
        homes = [home for home in spools_in(directory) if (home / _NAME).is_dir()]
        return [(home / OWNER).read_bytes().decode("utf-8", "surrogateescape") for home in homes]
    except OSError as error:
        raise StoreError(f"{error.filename} cannot be read ({error.strerror})") from error


class Kept(NamedTuple):
    """What was refused, and when it was set aside (Unix seconds)."""

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
        sealing: Sealing | None = None,
        tell: Callable[[Path, Sequence[Refused]], None] | None = None,
    ) -> None:
        """Name the place; nothing is made yet.

        Args:
            directory: Holds the spools of all services.
            service: The service's name.
            max_bytes: Bound on what is kept; beyond it nothing more is taken.
            sealing: Encrypts what is kept, if given.
            tell: Called after something was kept.
        """
        self._directory = directory
        self._service = service
        self._max_bytes = max_bytes
        self._sealing = sealing
        self._tell = tell

    @property
    def path(self) -> Path:
        """Where it is, or will be."""
        return self._directory / slug(self._service) / _NAME

    def keep(self, refused: Sequence[Refused]) -> None:
        """Keep what was refused; returns after it is on disk. Blocks.

        Raises:
            StoreError: It cannot be kept; the message says the remedy.
        """
        try:
            prepare_service_directory(self._directory, self._service)
            self.path.mkdir(0o700, exist_ok=True)
            held = sum(path.stat().st_size for path in self.files())
            for item in refused:
                held += self._keep(item, held)
            sync_directory(self.path)
        except OtelAuditError as error:
            raise StoreError(f"what the store refuses cannot be set aside: {error}") from error
        except OSError as error:
            raise StoreError(
                f"what the store refuses cannot be set aside in {self.path} ({error.strerror}); "
                "make room there, or make it writable"
            ) from error
        if self._tell is not None:
            self._tell(self.path, refused)

    def files(self) -> list[Path]:
        """What is kept, in no order; empty where nothing is, or nothing can be seen."""
        try:
            return [path for path in self.path.iterdir() if path.suffix == _SUFFIX]
        except OSError:
            return []

    def read(self) -> Iterator[Kept]:
        """Read what is kept, oldest first.

        Raises:
            StoreError: A file cannot be read, or not with this key; the message names it.
        """
        for path in sorted(self.files(), key=lambda path: path.stat().st_mtime_ns):
            yield self._read(path)

    def give_back(self, take: Callable[[str, bytes], None]) -> int:
        """Hand over each record that is kept here, and let go of it; blocks.

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
                kept.path.unlink(missing_ok=True)
                given += 1
        return given

    def _keep(self, item: Refused, held: int) -> int:
        said = msgspec.json.encode({
            "record_id": item.record_id,
            "reason": item.reason,
            "kept_at": time.time(),
            "received": item.received.decode("utf-8", "replace"),
        })  # fmt: skip
        data = said if self._sealing is None else _SEALED + self._cipher().seal(said, _CONTEXT)
        name = hashlib.sha256(item.record_id.encode("utf-8", "replace") + item.received).hexdigest()
        path = self.path / f"{name}{_SUFFIX}"
        if path.exists():
            return 0
        if held + len(data) > self._max_bytes:
            raise StoreError(
                f"{self.path} holds {held} bytes, and OTEL_AUDIT_SPOOL_MAX_BYTES bounds it; look "
                "why records are refused, and move them elsewhere"
            )
        draft = path.with_suffix(f".{os.getpid()}-{time.monotonic_ns()}")
        try:
            _write(draft, data)
            draft.rename(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        return len(data)

    def _read(self, path: Path) -> Kept:
        try:
            data = path.read_bytes()
            if data.startswith(_SEALED):
                data = self._cipher().open(data.removeprefix(_SEALED), _CONTEXT)
            said = msgspec.json.decode(data, type=_Said)
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error.strerror})") from error
        except SealError as error:
            raise StoreError(f"{path}: {error} (OTEL_AUDIT_SPOOL_KEY)") from error
        except msgspec.MsgspecError as error:
            raise StoreError(f"{path} is damaged") from error
        refused = Refused(said.record_id, said.received.encode(), said.reason)
        return Kept(path, refused, said.kept_at)

    def _cipher(self) -> Cipher:
        if self._sealing is None:
            raise SealError("it is sealed, and there is no key")
        return self._sealing.for_spool(_NAME)


class _Said(msgspec.Struct):
    record_id: str
    reason: str
    kept_at: float
    received: str


def _write(path: Path, data: bytes) -> None:
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(opened, "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
