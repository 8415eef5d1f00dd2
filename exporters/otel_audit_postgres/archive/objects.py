"""Storage of archives: a folder, or a bucket of any store that speaks S3.

An object is written once and never changed; its name has its content's digest in it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from otel_audit._util.durable_file import sync_directory
from otel_audit._util.private_file import others_may_write
from otel_audit.errors import ConfigurationError, MissingExtraError, OtelAuditError

CHUNK: Final = 1 << 20
"""Bytes that are copied at once."""
CACHE_BYTES: Final = 4_000_000_000
"""Bytes of copies that are kept between two questions, at the most, where a cache is named."""
_OPTIONS: Final = ("endpoint", "region", "mode", "cache")
_NOT_THERE: Final = ("404", "NoSuchKey", "NotFound")
_TAKEN: Final = ("PreconditionFailed", "ConditionalRequestConflict")


class ArchiveError(OtelAuditError):
    """The archive cannot be read or written, or is not what it must be."""


class MissingObjectError(ArchiveError):
    """An object that is not there."""


class ArchiveStore(Protocol):
    """Storage of objects."""

    @property
    def name(self) -> str:
        """Its name in messages, without secrets."""

    def url_of(self, key: str) -> str:
        """The URL of an object; of the archive for an empty name."""

    def put(self, key: str, file: Path, sha256: str, retain_until: date | None) -> None:
        """Write an object, if it is not there; the same content is not an error, another one is."""

    @contextmanager
    def fetch(self, key: str) -> Iterator[Path]:
        """The object as a file, for as long as the context lasts."""

    @contextmanager
    def copy(self, key: str, sha256: str) -> Iterator[Path]:
        """The object as a file, perhaps one that was fetched before; for questions, not for proof.

        Raises:
            ArchiveError: It is not what the digest says, where it had to be fetched.
        """

    def tidy(self) -> None:
        """Throw copies away, where there are too many; nobody reads them now."""

    def list_keys(self) -> list[str]:
        """The names of all objects, sorted."""

    def remove(self, key: str) -> None:
        """Delete an object; it is not an error if it is gone."""

    def hold(self, key: str, *, on: bool) -> None:
        """Put a legal hold on an object, or take it off, where the store knows them."""

    def locked_until(self, key: str) -> date | None:
        """The date until which the object is locked; None if it is not known."""

    def weakness(self) -> str | None:
        """Why what is here could be deleted too early; None if it cannot be."""


def open_archive(url: str, setting: str = "OTEL_AUDIT_ARCHIVE") -> ArchiveStore:
    """Open what a setting names.

    Args:
        url: ``file:PATH``, or ``s3://BUCKET/PREFIX?endpoint=URL&region=NAME&mode=COMPLIANCE&cache=DIR``.
        setting: Where that was said, for messages.

    Raises:
        ConfigurationError: It names no store.
        MissingExtraError: `boto3` is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.path and not parts.netloc:
        return FolderArchive(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc and not parts.username:
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        for name in options:
            if name not in _OPTIONS:
                raise ConfigurationError(
                    f"{setting}: unknown option {name!r}; there are {_OPTIONS}"
                )
        if options.get("mode", "COMPLIANCE") not in {"COMPLIANCE", "GOVERNANCE"}:
            raise ConfigurationError(f"{setting}: mode is COMPLIANCE or GOVERNANCE")
        return S3Archive(parts.netloc, parts.path.strip("/"), **options)
    raise ConfigurationError(f"{setting}: expected file:PATH or s3://BUCKET/PREFIX")


def digest_of(file: Path) -> str:
    """SHA-256 of a file, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class FolderArchive:
    """A folder. Files are made read-only; what more protects them is the volume's business."""

    def __init__(self, folder: Path) -> None:
        """Remember the folder.

        Args:
            folder: Where the objects lie; made with the first write.
        """
        self._folder = folder

    @property
    def name(self) -> str:
        """The folder."""
        return f"file:{self._folder}"

    def url_of(self, key: str) -> str:
        """The URL, ``file:///…``."""
        return f"{self._folder.absolute().as_uri()}/{key}"

    def put(self, key: str, file: Path, sha256: str, retain_until: date | None) -> None:  # noqa: ARG002
        """Write a temporary file, sync it to disk, and link it to its place."""
        target = self._folder / key
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                _link_copy(file, target)
            # also where it was there: whoever linked it may have died before this
            for folder in (target.parent, *target.parent.parents):
                sync_directory(folder)
                if folder == self._folder:
                    break
        except OSError as error:
            raise ArchiveError(
                f"{self.name}: {key} cannot be written ({_reason_of(error)})"
            ) from None
        return _refuse_other(key, digest_of(target), sha256)

    @contextmanager
    def fetch(self, key: str) -> Iterator[Path]:
        """The file itself."""
        target = self._folder / key
        if not target.is_file():
            raise MissingObjectError(f"{self.name}: {key} is not there")
        try:
            yield target
        except OSError as error:
            raise ArchiveError(f"{self.name}: {key} cannot be read ({_reason_of(error)})") from None

    @contextmanager
    def copy(self, key: str, sha256: str) -> Iterator[Path]:  # noqa: ARG002
        """The file itself."""
        with self.fetch(key) as file:
            yield file

    def tidy(self) -> None:
        """Do nothing: there are no copies."""

    def list_keys(self) -> list[str]:
        """All files without drafts."""
        found = (path for path in self._folder.rglob("*") if path.is_file())
        return sorted(
            path.relative_to(self._folder).as_posix()
            for path in found
            if not path.name.startswith(".part-")
        )

    def remove(self, key: str) -> None:
        """Delete a file."""
        try:
            (self._folder / key).unlink(missing_ok=True)
        except OSError as error:
            raise ArchiveError(
                f"{self.name}: {key} cannot be deleted ({_reason_of(error)})"
            ) from None

    def hold(self, key: str, *, on: bool) -> None:
        """Do nothing: a folder knows no holds; `otel-audit` itself refuses what is held."""

    def locked_until(self, key: str) -> date | None:  # noqa: ARG002
        """Nothing: a folder knows no locks."""
        return None

    def weakness(self) -> str | None:
        """The finding that everybody who can write to the folder can delete."""
        return "a folder has no object lock: with write access one can delete archives"


class S3Archive:
    """A bucket, with object lock: what is written cannot be deleted before its time."""

    def __init__(  # noqa: PLR0913 - each an option of the URL
        self,
        bucket: str,
        prefix: str,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        mode: str = "COMPLIANCE",
        cache: str | None = None,
    ) -> None:
        """Make a client; credentials come from where boto3 finds them.

        Args:
            bucket: The bucket.
            prefix: In front of every name.
            endpoint: Another server than Amazon's.
            region: The region.
            mode: Of object lock.
            cache: Where copies of what was asked for are kept, up to `CACHE_BYTES`.

        Raises:
            MissingExtraError: `boto3` is not installed.
        """
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as missing:
            raise MissingExtraError("an archive in s3://", "archive") from missing
        self._errors = (BotoCoreError, ClientError)
        self._client: Any = boto3.client("s3", endpoint_url=endpoint, region_name=region)
        self._bucket, self._mode = bucket, mode
        self._prefix = f"{prefix}/" if prefix else ""
        self._cache = None if cache is None else Path(cache)

    @property
    def name(self) -> str:
        """The bucket and the prefix."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def url_of(self, key: str) -> str:
        """The URL, ``s3://…``."""
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def put(self, key: str, file: Path, sha256: str, retain_until: date | None) -> None:
        """Write an object under its lock; the store checks the digest and refuses a second one."""
        locked = {}
        if retain_until is not None:
            if self.weakness() is not None:
                raise ArchiveError(
                    f"{self.name}: the bucket has no object lock, so {key} could not be kept until "
                    f"{retain_until}: make a bucket with object lock, or use a rule without min"
                )
            locked = {
                "ObjectLockMode": self._mode,
                "ObjectLockRetainUntilDate": datetime.combine(retain_until, time(), UTC),
            }
        try:
            with file.open("rb") as body:
                self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + key, Body=body, IfNoneMatch="*",
                    ChecksumAlgorithm="SHA256",
                    ChecksumSHA256=base64.b64encode(bytes.fromhex(sha256)).decode(), **locked,
                )  # fmt: skip
        except self._errors as error:
            if _code(error) not in _TAKEN:
                raise self._failed(error, key, "written") from None
            with self.fetch(key) as there:
                _refuse_other(key, digest_of(there), sha256)

    @contextmanager
    def fetch(self, key: str) -> Iterator[Path]:
        """Download it into a file that is gone afterwards."""
        with tempfile.NamedTemporaryFile(suffix=Path(key).suffix) as file:
            try:
                self._client.download_fileobj(self._bucket, self._prefix + key, file)
            except self._errors as error:
                raise self._failed(error, key, "read") from None
            file.flush()
            yield Path(file.name)

    @contextmanager
    def copy(self, key: str, sha256: str) -> Iterator[Path]:
        """The copy in the cache, which is fetched first if it is not there."""
        if self._cache is None:
            with self.fetch(key) as file:
                yield file
            return
        kept = self._cache / f"{sha256}.parquet"
        self._refuse_shared(self._cache)
        if not kept.is_file():
            with self.fetch(key) as file:
                _refuse_other(key, digest_of(file), sha256)
                self._keep(file, kept)
        with contextlib.suppress(OSError):
            os.utime(kept)  # what was asked for last is thrown away last
        yield kept

    def _refuse_shared(self, cache: Path) -> None:
        """Refuse a cache that other users can write to."""
        with contextlib.suppress(FileNotFoundError):
            found = cache.stat()
            if others_may_write(found):
                raise ArchiveError(
                    f"{self.name}: cache={cache}: others may write there; name a directory of this "
                    "user's own (chmod 700)"
                )

    def _keep(self, file: Path, kept: Path) -> None:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # its own file, renamed when it is whole: another process may read or write the same
            with (
                tempfile.NamedTemporaryFile(dir=kept.parent, prefix=".part-", delete=False) as part,
                file.open("rb") as source,
            ):
                shutil.copyfileobj(source, part, CHUNK)
            Path(part.name).rename(kept)
        except OSError as error:
            raise ArchiveError(
                f"{self.name}: cache={kept.parent}: {_reason_of(error)}; name another directory, "
                "or none"
            ) from None

    def tidy(self) -> None:
        """Delete the copies that were asked for least lately, until the rest is small enough."""
        if self._cache is None:
            return
        copies = [(one.stat(), one) for one in self._cache.glob("*.parquet")]
        held = sum(stat.st_size for stat, _ in copies)
        for stat, one in sorted(copies, key=lambda pair: pair[0].st_mtime_ns):
            if held <= CACHE_BYTES:
                return
            one.unlink(missing_ok=True)
            held -= stat.st_size

    def list_keys(self) -> list[str]:
        """All objects under the prefix."""
        pages = self._client.get_paginator("list_objects_v2")
        try:
            return sorted(
                found["Key"].removeprefix(self._prefix)
                for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix)
                for found in page.get("Contents", ())
            )
        except self._errors as error:
            raise self._failed(error, "the list of objects", "read") from None

    def remove(self, key: str) -> None:
        """Delete all versions of an object: without that, one under lock stays and is hidden."""
        place = self._prefix + key
        try:
            versions = self._versions(place)
            # without a version, deleting what is gone would add a delete marker each time
            if versions == [None] and not self._is_there(place):
                return
            for version in versions:
                named = {} if version is None else {"VersionId": version}
                self._client.delete_object(Bucket=self._bucket, Key=place, **named)
        except self._errors as error:
            raise self._failed(error, key, "deleted") from None

    def _versions(self, place: str) -> list[str | None]:
        """The versions of an object, the newest one first; None where there are no versions."""
        found = self._client.list_object_versions(Bucket=self._bucket, Prefix=place)
        named = [one["VersionId"] for one in found.get("Versions", ()) if one["Key"] == place]
        return named or [None]

    def _is_there(self, place: str) -> bool:
        try:
            self._client.head_object(Bucket=self._bucket, Key=place)
        except self._errors as error:
            if _code(error) in _NOT_THERE:
                return False
            raise
        return True

    def hold(self, key: str, *, on: bool) -> None:
        """Put a legal hold of the store's own on it, or take it off."""
        place = self._prefix + key
        try:
            # on the first version, which is ours: whoever writes over it adds another one
            version = self._versions(place)[-1]
            named = {} if version is None else {"VersionId": version}
            self._client.put_object_legal_hold(
                Bucket=self._bucket, Key=place, LegalHold={"Status": "ON" if on else "OFF"}, **named
            )
        except self._errors as error:
            raise self._failed(error, key, "held") from None

    def locked_until(self, key: str) -> date | None:
        """The end of the object's lock; the first day of the calendar if it has none."""
        try:
            found = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except self._errors as error:
            raise self._failed(error, key, "read") from None
        until = found.get("ObjectLockRetainUntilDate")
        if found.get("ObjectLockMode") is None or until is None:
            return date.min
        until = until if isinstance(until, datetime) else datetime.fromisoformat(str(until))
        return until.astimezone(UTC).date()

    def weakness(self) -> str | None:
        """Whether the bucket lacks object lock."""
        try:
            found = self._client.get_object_lock_configuration(Bucket=self._bucket)
        except self._errors as error:
            if _code(error) == "ObjectLockConfigurationNotFoundError":
                return "the bucket has no object lock: with write access one can delete archives"
            raise self._failed(error, "its object lock", "read") from None
        is_on = found["ObjectLockConfiguration"].get("ObjectLockEnabled") == "Enabled"
        return None if is_on else "the bucket has no object lock"

    def _failed(self, error: Exception, key: str, done: str) -> ArchiveError:
        code = _code(error)
        if code in _NOT_THERE:
            return MissingObjectError(f"{self.name}: {key} is not there")
        return ArchiveError(f"{self.name}: {key} cannot be {done} ({code})")


def _code(error: Exception) -> str:
    """The store's own word for what went wrong; never its text, which may show credentials."""
    response = getattr(error, "response", None) or {}
    found = response.get("Error", {}).get("Code")
    return str(found) if found else type(error).__name__


def _refuse_other(key: str, found: str, expected: str) -> None:
    if found != expected:
        raise ArchiveError(
            f"{key} is in the archive with another content: SHA-256 {found}, not {expected}"
        )


def _link_copy(file: Path, target: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".part-") as part:
        with file.open("rb") as source:
            while chunk := source.read(CHUNK):
                part.write(chunk)
        part.flush()
        os.fsync(part.fileno())
        Path(part.name).chmod(0o444)
        # a link fails where somebody was quicker; a rename would replace what he wrote
        with contextlib.suppress(FileExistsError):
            os.link(part.name, target)


def _reason_of(error: OSError) -> str:
    return f"{type(error).__name__}: {os.strerror(error.errno)}" if error.errno else "OSError"
