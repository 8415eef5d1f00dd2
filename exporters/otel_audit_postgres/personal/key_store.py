"""The key database: keys of subjects, each encrypted by a key that is elsewhere.

A key that is destroyed is gone with all that it encrypted. So no key is ever in the audit
database: a backup of that brings nothing back.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit._util.cache import BoundedCache
from otel_audit._util.private_file import is_private
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.errors import (
    ConfigurationError,
    OtelAuditError,
    StoreError,
    StoreUnavailableError,
)
from otel_audit_postgres.connection import (
    Connection,
    TimeLimits,
    connect,
    disconnect,
    disconnect_later,
)
from otel_audit_postgres.errors import as_store_error, sqlstate
from otel_audit_postgres.personal.encryption import KEY_BYTES, SubjectKey, aead
from otel_audit_postgres.personal.pending_keys import PendingKey, PendingKeys
from otel_audit_postgres.pseudonyms import KEY_ID_BYTES

_logger = logging.getLogger(__name__)

REMEMBERED_FOR: Final = 60.0
"""Seconds for which a key is cached: so long other processes may use a destroyed key,
and data encrypted with it cannot be read."""
_ASKED_AGAIN_AFTER: Final = 5.0
"""Seconds for which a database of keys that is away is not asked: each batch would wait for it."""
_MOST_REMEMBERED: Final = 10_000
"""Keys that are remembered, about: a cache has up to twice the size that it is given."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NONCE_BYTES: Final = 12
"""96 bits, which GCM takes as they are (NIST SP 800-38D, section 7.1)."""

SCHEMA: Final = """
CREATE SCHEMA IF NOT EXISTS audit_keys;
CREATE TABLE IF NOT EXISTS audit_keys.subject_keys (
    key_id      bytea PRIMARY KEY CHECK (octet_length(key_id) = 8),
    subject     bytea NOT NULL CHECK (octet_length(subject) = 32),
    number      integer NOT NULL DEFAULT 0,
    wrapped     bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (subject, number)
);
COMMENT ON TABLE audit_keys.subject_keys IS
    'Keys of personal values in an audit trail, wrapped; subject is a keyed hash of its name.';
CREATE TABLE IF NOT EXISTS audit_keys.destroyed_keys (
    key_id        bytea PRIMARY KEY,
    subject       bytea NOT NULL,
    is_recorded   boolean NOT NULL DEFAULT false,
    destroyed_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS destroyed_keys_subject ON audit_keys.destroyed_keys (subject);
CREATE TABLE IF NOT EXISTS audit_keys.wrapping (
    single  boolean PRIMARY KEY DEFAULT true CHECK (single),
    proof   bytea NOT NULL
);
COMMENT ON TABLE audit_keys.wrapping IS
    'A text that is wrapped by the key-encryption key, so that a wrong one is known at once.';
"""
_IS_TRAIL: Final = "SELECT to_regclass('audit.audit_logs') IS NOT NULL"
# by its port and when it began: who may not read the system identifier may read this
SERVER: Final = "SELECT concat_ws(' ', current_setting('port'), pg_postmaster_start_time())"
_PROOF: Final = "SELECT proof FROM audit_keys.wrapping"
_PROVE: Final = "INSERT INTO audit_keys.wrapping (proof) VALUES ($1) ON CONFLICT DO NOTHING"
_MAKE: Final = (
    "INSERT INTO audit_keys.subject_keys (key_id, subject, number, wrapped) "
    "SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::integer[], $4::bytea[]) "
    "ON CONFLICT DO NOTHING"
)
_FIND: Final = (
    "SELECT key_id, subject, wrapped FROM audit_keys.subject_keys "
    "WHERE subject = ANY($1::bytea[]) AND number = 0"
)
_ERASED: Final = (
    "SELECT subject, max(destroyed_at) AS moment FROM audit_keys.destroyed_keys "
    "WHERE subject = ANY($1::bytea[]) GROUP BY subject"
)
_ALL_OF: Final = "SELECT key_id, wrapped FROM audit_keys.subject_keys WHERE subject = $1"
_BY_ID: Final = (
    "SELECT key_id, wrapped FROM audit_keys.subject_keys WHERE key_id = ANY($1::bytea[])"
)
_DESTROY: Final = """
WITH gone AS (DELETE FROM audit_keys.subject_keys WHERE subject = $1 RETURNING key_id, subject)
INSERT INTO audit_keys.destroyed_keys (key_id, subject) SELECT key_id, subject FROM gone
ON CONFLICT DO NOTHING
"""
_REPLAY: Final = """
WITH gone AS (
    DELETE FROM audit_keys.subject_keys WHERE key_id = ANY($1::bytea[]) RETURNING key_id, subject)
INSERT INTO audit_keys.destroyed_keys (key_id, subject, is_recorded)
SELECT key_id, subject, true FROM gone ON CONFLICT DO NOTHING
"""
_DESTROYED: Final = (
    "SELECT key_id, is_recorded, destroyed_at FROM audit_keys.destroyed_keys WHERE subject = $1 "
    "ORDER BY destroyed_at"
)
_LATEST: Final = "SELECT max(destroyed_at) FROM audit_keys.destroyed_keys WHERE subject = $1"
_MARK_RECORDED: Final = "UPDATE audit_keys.destroyed_keys SET is_recorded = true WHERE subject = $1"
_TIDY: Final = "VACUUM audit_keys.subject_keys"
_NOT_SET_UP: Final = "the database of keys is not set up: run `otel-audit subject init`"
_ASK: Final = "ask the database of keys"
_NO_RIGHT: Final = "42501"
# no schema, no table
_MISSING: Final = ("3F000", "42P01")
_PROOF_TEXT: Final = b"otel-audit key-encryption key"


class KeyWrapper(Protocol):
    """Encrypts keys: with a local key, or with one in a key management service. May block."""

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Encrypt a key and bind it to its context."""

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Give it back.

        Raises:
            OtelAuditError: It was wrapped by another key or for another context.
        """

    def subject_hash(self, text: bytes) -> bytes:
        """A keyed hash of 32 bytes, which finds a subject and does not reveal it."""


class FileWrapper:
    """A key-encryption key from a file: 32 bytes in hex, readable for its owner alone."""

    def __init__(self, key: bytes) -> None:
        """Derive the two keys for wrapping and for the names of subjects.

        Args:
            key: The 32 random bytes of the file.
        """
        self._aead, self._invalid = aead(_derived(key, b"wrap"))
        self._hash = _derived(key, b"subject")

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """AES-256-GCM under a random nonce."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + bytes(self._aead.encrypt(nonce, key, context))

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See `KeyWrapper.unwrap`."""
        nonce, box = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        try:
            return bytes(self._aead.decrypt(nonce, box, context))
        except (self._invalid, ValueError):
            raise ConfigurationError(
                "OTEL_AUDIT_KEYS_KEK_FILE: this is not the key that the subjects' keys are wrapped "
                "with: give the one that `otel-audit subject init` was run with"
            ) from None

    def subject_hash(self, text: bytes) -> bytes:
        """HMAC-SHA-256."""
        return hmac.new(self._hash, text, hashlib.sha256).digest()


class Subject(NamedTuple):
    """The subject of values: an actor, or an entity such as ``customer:17``, of a tenant."""

    tenant: str
    name: str


class Destroyed(NamedTuple):
    """A destroyed key."""

    key_id: bytes
    is_recorded: bool
    destroyed_at: datetime


def read_wrapper(path: Path, setting: str = "OTEL_AUDIT_KEYS_KEK_FILE") -> FileWrapper:
    """Read a key-encryption key from its file.

    Raises:
        ConfigurationError: It cannot be read, others may read it, or it is none.
    """
    try:
        facts, text = path.stat(), path.read_text("ascii").strip()
        key = bytes.fromhex(text)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{setting}: no key can be read from the file ({type(error).__name__})"
        ) from None
    if not is_private(facts):
        raise ConfigurationError(f"{setting}: others may read the file; chmod 600 it")
    if len(key) != KEY_BYTES:
        raise ConfigurationError(f"{setting}: 32 bytes in hex are needed")
    return FileWrapper(key)


@dataclass(slots=True)
class _CachedKey:
    key: SubjectKey
    until: float


class KeyStore:
    """Keys by subject, over one connection; recent ones are cached."""

    def __init__(
        self,
        dsn: str,
        wrapper: KeyWrapper,
        *,
        pending: Path | None = None,
        timeout: float = 5.0,
        statement_timeout: float = 30.0,
    ) -> None:
        """Remember the settings; no connection is opened yet.

        Args:
            dsn: The database of keys; not the audit store's.
            wrapper: Who wraps keys.
            pending: Where keys are kept, wrapped, that are made while the database cannot be
                reached; None: nothing can be encrypted then, and the caller must wait.
            timeout: Seconds that connecting may take.
            statement_timeout: Seconds that one question may take. After that the database counts
                as one that cannot be reached.
        """
        self._dsn, self._wrapper, self._timeout = dsn, wrapper, timeout
        self._pending = None if pending is None else PendingKeys(pending)
        self._patience = statement_timeout
        self._connection: Connection[Any] | None = None
        self._known: BoundedCache[bytes, _CachedKey] = BoundedCache(_MOST_REMEMBERED // 2)
        self._away_until = 0.0

    async def init(self) -> None:
        """Make the tables, and bind them to the key-encryption key.

        Raises:
            ConfigurationError: It is the audit database, or another key wrapped its keys.
            StoreError: The database cannot be reached, or the role lacks a right.
        """
        async with self._asking("set up the database of keys") as connection:
            _refuse_trail(is_trail=await connection.fetchval(_IS_TRAIL))
            await connection.execute(SCHEMA)
            await connection.execute(_PROVE, self._wrapper.wrap(_PROOF_TEXT, b"proof"))
            proof = await connection.fetchval(_PROOF)
        self._wrapper.unwrap(proof, b"proof")

    async def check(self) -> None:
        """Raise if keys cannot be had: the database, its tables, or the key that wraps.

        Raises:
            ConfigurationError: It is the audit database, or another key wrapped its keys.
            StoreError: It cannot be reached, or was not set up.
        """
        (row,) = await self._rows(f"{_IS_TRAIL} AS is_trail")
        _refuse_trail(is_trail=row["is_trail"])
        proofs = await self._rows(_PROOF)
        if not proofs:
            raise StoreError(_NOT_SET_UP)
        self._wrapper.unwrap(proofs[0]["proof"], b"proof")

    async def server(self) -> str:
        """The server of the key database."""
        (row,) = await self._rows(f"{SERVER} AS server")
        found: str = row["server"]
        return found

    def subject_hash(self, subject: Subject) -> bytes:
        """The hash that names a subject in the key database."""
        return self._wrapper.subject_hash(json.dumps([*subject]).encode())

    async def keys_for(self, latest: Mapping[Subject, int]) -> dict[Subject, SubjectKey]:
        """The keys of subjects; a missing key is made.

        Args:
            latest: When the last record of each happened, in nanoseconds since 1970.

        Returns:
            Nothing for a subject that was erased after all of its records happened: they were on
            their way, and no key is made for them.

        Raises:
            StoreUnavailableError: The database cannot be reached, and no key can be made here.
            ConfigurationError: The key-encryption key is the wrong one.
        """
        hashes = {subject: self.subject_hash(subject) for subject in latest}
        now = monotonic()
        missing: dict[bytes, int] = {}
        found: dict[bytes, SubjectKey] = {}
        for subject, one in hashes.items():
            known = self._known.get(one)
            if known is None or known.until < now:
                missing[one] = latest[subject]
            else:
                found[one] = known.key
        if missing:
            found |= await self._fetch(missing, now)
        # not out of the cache: a batch may have more subjects than are remembered
        return {subject: found[one] for subject, one in hashes.items() if one in found}

    async def _fetch(self, missing: Mapping[bytes, int], now: float) -> Mapping[bytes, SubjectKey]:
        if self._pending is None or now >= self._away_until:
            try:
                return await self._ask(missing, now)
            except StoreUnavailableError as error:
                if self._pending is None:
                    raise
                # from now on: finding it out took its time, too
                self._away_until = monotonic() + _ASKED_AGAIN_AFTER
                log_limited(
                    _logger, "keys away",
                    "the database of keys cannot be reached (%s): personal values are encrypted "
                    "under keys that are made here, and given to it when it is back", error,
                )  # fmt: skip
        return {
            subject: self._remember(subject, self._made_here(subject), now) for subject in missing
        }

    async def _ask(self, missing: Mapping[bytes, int], now: float) -> Mapping[bytes, SubjectKey]:
        subjects = [*missing]
        async with self._asking() as connection:
            # in this order: one that is erased in between is known as such, key or no key
            found = {row["subject"]: row for row in await connection.fetch(_FIND, subjects)}
            erased = {
                row["subject"]: _nanoseconds(row["moment"])
                for row in await connection.fetch(_ERASED, subjects)
            }
        lacking = [
            one
            for one, happened in missing.items()
            if one not in found and erased.get(one, happened) <= happened
        ]
        if lacking:
            ids = [secrets.token_bytes(KEY_ID_BYTES) for _ in lacking]
            # a key management service may take its time, which is not the database's
            wrapped = [self._wrapper.wrap(secrets.token_bytes(KEY_BYTES), i) for i in ids]
            async with self._asking() as connection:
                await connection.execute(_MAKE, ids, lacking, [0] * len(lacking), wrapped)
                # another process may have been quicker
                found |= {row["subject"]: row for row in await connection.fetch(_FIND, lacking)}
        for subject in subjects:
            self._known.discard(subject)
        keys = {}
        for subject, row in found.items():
            key = SubjectKey(
                row["key_id"], self._wrapper.unwrap(row["wrapped"], row["key_id"]),
                erased_before=erased.get(subject, 0),
            )  # fmt: skip
            keys[subject] = self._remember(subject, key, now)
        return keys

    def _made_here(self, subject: bytes) -> SubjectKey:
        """Make a key that the database has not seen yet; it is on disk before it is used."""
        assert self._pending is not None  # noqa: S101 - asked before
        key_id, key = secrets.token_bytes(KEY_ID_BYTES), secrets.token_bytes(KEY_BYTES)
        wrapped = self._wrapper.wrap(key, key_id)
        try:
            self._pending.add(PendingKey(key_id, subject, wrapped, datetime.now(UTC)))
        except OSError as error:
            raise StoreUnavailableError(
                f"the database of keys cannot be reached, and no key can be kept in {self._pending}"
                f" ({type(error).__name__}): personal values cannot be encrypted"
            ) from None
        return SubjectKey(key_id, key)

    async def _hand_in(self, connection: Connection[Any]) -> None:
        """Give the database the keys that were made while it was away."""
        if self._pending is None:
            return
        for pending in self._pending.waiting():
            # a limit for each: there may be thousands
            async with asyncio.timeout(self._patience):
                erased = await connection.fetchval(_LATEST, pending.subject)
                await connection.execute(
                    # an integer that no other key of the subject has: 0 is the current one's
                    _MAKE, [pending.key_id], [pending.subject],
                    [1 + secrets.randbelow(2**31 - 2)], [pending.wrapped],
                )  # fmt: skip
                if erased is not None and erased >= pending.created_at:
                    # the subject was erased meanwhile
                    await connection.execute(_REPLAY, [pending.key_id])
            self._pending.discard(pending)

    async def known(self, subject: Subject) -> list[SubjectKey]:
        """The existing keys of a subject; none is made."""
        rows = await self._rows(_ALL_OF, self.subject_hash(subject))
        return [SubjectKey(row["key_id"], self._unwrapped(row)) for row in rows]

    async def by_ids(self, key_ids: Iterable[bytes]) -> dict[bytes, SubjectKey]:
        """The keys of these ids that are there."""
        rows = await self._rows(_BY_ID, list(key_ids))
        return {row["key_id"]: SubjectKey(row["key_id"], self._unwrapped(row)) for row in rows}

    async def present(self, key_ids: Iterable[bytes]) -> set[bytes]:
        """The existing ones among these keys; none is unwrapped."""
        return {row["key_id"] for row in await self._rows(_BY_ID, list(key_ids))}

    async def destroyed(self, subject: Subject) -> list[Destroyed]:
        """The keys of a subject that were destroyed, the first one first."""
        rows = await self._rows(_DESTROYED, self.subject_hash(subject))
        return [Destroyed(*row.values()) for row in rows]

    async def destroy(self, subject: Subject) -> None:
        """Destroy all keys of a subject; what they encrypted is gone."""
        await self._rows(_DESTROY, self.subject_hash(subject))
        self._known.discard(self.subject_hash(subject))

    async def mark_recorded(self, subject: Subject) -> None:
        """Mark the destruction as recorded in the trail, and vacuum the old rows."""
        await self._rows(_MARK_RECORDED, self.subject_hash(subject))
        await self._tidy()

    async def replay(self, key_ids: Sequence[bytes]) -> None:
        """Destroy keys again that a restored key database has brought back."""
        await self._rows(_REPLAY, list(key_ids))
        await self._tidy()
        self._known.clear()

    async def close(self) -> None:
        """Close the connection; the next question opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await disconnect(connection)

    async def _rows(self, query: str, *values: Any) -> list[Mapping[str, Any]]:
        async with self._asking() as connection:
            return list(await connection.fetch(query, *values))

    async def _tidy(self) -> None:
        """Vacuum, which takes as long as it takes: over a connection without a limit."""
        connection = await self._opened(TimeLimits())
        try:
            with suppress_instrumentation():
                await connection.execute(_TIDY)
        except OtelAuditError:
            raise
        except Exception as error:  # noqa: BLE001 - each becomes one of ours
            raise _as_key_error(error, _ASK) from None
        finally:
            await disconnect(connection)

    @asynccontextmanager
    async def _asking(self, doing: str = _ASK) -> AsyncIterator[Connection[Any]]:
        """Lend the connection for a question; unless it is answered in time, drop it."""
        connection = await self._connected()
        try:
            with suppress_instrumentation():
                if doing == _ASK:
                    await self._hand_in(connection)
                async with asyncio.timeout(self._patience):
                    yield connection
        except BaseException as error:
            # whoever is cancelled leaves a statement, or a transaction, that nobody would end
            if self._connection is connection:
                self._connection = None
            disconnect_later(connection)
            if isinstance(error, OtelAuditError) or not isinstance(error, Exception):
                raise
            raise _as_key_error(error, doing) from None

    async def _connected(self) -> Connection[Any]:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._opened(TimeLimits.of_statements(self._patience))
        return self._connection

    async def _opened(self, limits: TimeLimits) -> Connection[Any]:
        try:
            with suppress_instrumentation():
                return await connect(self._dsn, self._timeout, limits)
        except StoreError as error:
            message = str(error).replace("OTEL_AUDIT_DSN", "OTEL_AUDIT_KEYS_DSN")
            kind = type(error) if isinstance(error, StoreUnavailableError) else StoreError
            raise kind(f"the database of keys: {message}") from None

    def _unwrapped(self, row: Mapping[str, Any]) -> bytes:
        return self._wrapper.unwrap(row["wrapped"], row["key_id"])

    def _remember(self, subject: bytes, key: SubjectKey, now: float) -> SubjectKey:
        self._known.put(subject, _CachedKey(key, now + REMEMBERED_FOR))
        return key


def _as_key_error(error: Exception, doing: str) -> StoreError:
    """An error of the database of keys, in terms of its own remedy."""
    state = sqlstate(error)
    if state in _MISSING:
        return StoreError(_NOT_SET_UP)
    if state == _NO_RIGHT:
        return StoreError(
            f"could not {doing}: the role of OTEL_AUDIT_KEYS_DSN lacks a right: log in as the role "
            "that ran `otel-audit subject init`, which needs CREATE on that database "
            f"[{type(error).__name__} {state}]"
        )
    told = as_store_error(error, doing)
    return type(told)(str(told).replace("OTEL_AUDIT_DSN", "OTEL_AUDIT_KEYS_DSN"))


def _nanoseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _refuse_trail(*, is_trail: bool) -> None:
    if is_trail:
        raise ConfigurationError(
            "OTEL_AUDIT_KEYS_DSN names the audit database: a backup of it would bring destroyed "
            "keys back; give the keys a database of their own"
        )


def _derived(key: bytes, purpose: bytes) -> bytes:
    return hmac.new(key, b"otel-audit kek " + purpose, hashlib.sha256).digest()
