"""The manifest of an archived month, signed with the ledger's key; each names the one before."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from otel_audit_postgres.archive.objects import ArchiveError
from otel_audit_postgres.ledger.checkpoints import NoteError, read_note, signed_text
from otel_audit_postgres.ledger.keys import PublicKey, Signer

FORMAT: Final = "otel-audit archive manifest 1"
NONE: Final = "-"

_KEY: Final = re.compile(r"\d{4}-\d{2}/[a-z0-9+.-]{1,200}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_FIELDS: Final = ("log", "month", "previous", "rows", "policy")


@dataclass(frozen=True, slots=True)
class ArchivedObject:
    """One file of a month: the rows of one class, in the order of their leaves.

    Attributes:
        key: Its name.
        kind: Its class.
        rows: How many.
        size: Bytes.
        sha256: Of the file, in hex.
        first, last: The lowest and the highest leaf.
        locked_until: Until when it must not be deleted; None: no such day.
        expires: From when on it may go; None: never.
    """

    key: str
    kind: str
    rows: int
    size: int
    sha256: str
    first: int
    last: int
    locked_until: date | None
    expires: date | None

    def is_due(self, day: date) -> bool:
        """Whether the object may be deleted on a day, by the manifest alone."""
        return self.expires is not None and self.expires <= day

    def line(self) -> str:
        """The line of the manifest."""
        return (
            f"object: {self.key} {self.kind} {self.rows} {self.size} {self.sha256} "
            f"{self.first} {self.last} {self.locked_until or NONE} {self.expires or NONE}\n"
        )


@dataclass(frozen=True, slots=True)
class ArchiveManifest:
    """The content of a month's archive.

    Attributes:
        log: The log's name.
        month: Its first day.
        previous: SHA-256 of the manifest before it, in hex; None for the first.
        rows: Rows that were in the partition.
        policy: SHA-256 of the policy by which it was archived, in hex.
        objects: Its files.
        tree: The file of the tree: key, bytes, SHA-256; None if no row was archived.
        left_out: Rows by class that were not archived, as the policy says.
    """

    log: str
    month: date
    previous: str | None
    rows: int
    policy: str
    objects: tuple[ArchivedObject, ...] = ()
    tree: tuple[str, int, str] | None = None
    left_out: tuple[tuple[str, int], ...] = ()

    @property
    def archived(self) -> int:
        """Rows in its files."""
        return sum(one.rows for one in self.objects)

    def text(self) -> str:
        """The signed text."""
        lines = [
            f"{FORMAT}\n",
            f"log: {self.log}\n",
            f"month: {self.month:%Y-%m}\n",
            f"previous: {self.previous or 'none'}\n",
            f"rows: {self.rows}\n",
            f"policy: {self.policy}\n",
        ]
        lines += [one.line() for one in self.objects]
        if self.tree is not None:
            lines.append(f"tree: {' '.join(map(str, self.tree))}\n")
        lines += [f"left-out: {kind} {rows}\n" for kind, rows in self.left_out]
        return "".join(lines)

    def note(self, signers: Sequence[Signer] = ()) -> str:
        """The signed note."""
        return signed_text(self.text(), signers)


def manifest_digest(note: str) -> str:
    """The digest by which the next manifest names this one: SHA-256 in hex."""
    return hashlib.sha256(note.encode()).hexdigest()


def manifest_key(month: date, note: str) -> str:
    """Under which name a manifest lies in the archive."""
    return f"{month:%Y-%m}/manifest-{manifest_digest(note)[:16]}.txt"


def leaves_key(key: str) -> str:
    """Under which name the leaf hashes of an object are kept that was due to go."""
    return f"{key}.leaves"


def read_manifest(note: str) -> ArchiveManifest:
    """Read a manifest, without judging its signature.

    Raises:
        ArchiveError: It is none.
    """
    try:
        head, *lines = read_note(note).text.splitlines()
        if head != FORMAT:
            raise ArchiveError(f"not a manifest of this version: {head[:60]!r}")
        pairs = [line.split(": ", 1) for line in lines]
        values = {name: value for name, value in pairs if name in _FIELDS}
        trees = [value.split(" ") for name, value in pairs if name == "tree"]
        found = ArchiveManifest(
            values["log"],
            date.fromisoformat(f"{values['month']}-01"),
            None if values["previous"] == "none" else _digest(values["previous"]),
            int(values["rows"]),
            values["policy"],
            tuple(_object(value) for name, value in pairs if name == "object"),
            (_key(trees[0][0]), int(trees[0][1]), _digest(trees[0][2])) if trees else None,
            tuple(
                (kind, int(rows))
                for kind, rows in (value.split(" ") for name, value in pairs if name == "left-out")
            ),
        )
    except (NoteError, KeyError, ValueError, IndexError) as error:
        raise ArchiveError(f"not a manifest ({type(error).__name__})") from None
    if found.rows < 0 or found.text() != read_note(note).text:
        raise ArchiveError("not a manifest: it is not spelled as one")
    return found


def is_signed(note: str, keys: Sequence[PublicKey]) -> bool:
    """Whether one of these keys signed it.

    Raises:
        ArchiveError: A signature claims to be by one of them, and is not.
    """
    try:
        return bool(read_note(note).signed_by(keys))
    except NoteError as error:
        raise ArchiveError(f"the manifest: {error}") from None


def _object(value: str) -> ArchivedObject:
    key, kind, rows, size, sha256, first, last, locked, expires = value.split(" ")
    return ArchivedObject(
        _key(key), kind, int(rows), int(size), _digest(sha256), int(first), int(last),
        None if locked == NONE else date.fromisoformat(locked),
        None if expires == NONE else date.fromisoformat(expires),
    )  # fmt: skip


def _key(text: str) -> str:
    if not _KEY.fullmatch(text) or ".." in text:
        raise ValueError
    return text


def _digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise ValueError
    return text
