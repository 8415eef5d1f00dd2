"""Recovery of dead processes' spools: they are locked, read through, delivered, and removed."""

from __future__ import annotations

import enum
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from otel_audit._util.ratelimited_log import log_limited
from otel_audit._util.spill import Cipher
from otel_audit.delivery.spool.damaged import keep_damaged
from otel_audit.delivery.spool.directory import (
    HIDDEN,
    LABEL,
    LARGEST_FILE,
    bytes_in,
    has_label,
    hidden_spools,
    open_home,
    read_label,
    remove_empty,
    segment_name,
    segment_number,
    segments_in,
    slug,
    spools_in,
    withdraw,
)
from otel_audit.delivery.spool.encryption import Encryption, context_of
from otel_audit.delivery.spool.errors import EncryptionError
from otel_audit.delivery.spool.expected import Expected, SegmentFindings
from otel_audit.delivery.spool.filesystem import file_system
from otel_audit.delivery.spool.format import (
    BUFFER_BYTES,
    Damage,
    Frame,
    FrameKind,
    Reason,
    record_name,
    scan,
)
from otel_audit.delivery.spool.leases import forget, has_expired, locks_reach
from otel_audit.delivery.spool.locks import LOCK, create_lock, lock_if_dead, release
from otel_audit.delivery.spool.manifest import (
    FORMAT,
    READABLE,
    Manifest,
    belongs_elsewhere,
    boot_id,
)
from otel_audit.delivery.spool.ownership import ForeignError, OwnDirectory, report_foreign
from otel_audit.delivery.spool.read_back import CLOSING, UNDER_WAY, FramesUnderWay, last_known
from otel_audit.delivery.spool.watermarks import (
    DamagedWatermarksError,
    forget_watermarks,
    read_watermarks,
)

_DAMAGES_LISTED: Final = 100
"""Damaged places that are named one by one; beyond these they are only counted."""
_OTHER_DESTINATION: Final = (
    "holds spools of another destination, which wait here: an application without a name that "
    "delivers to that destination adopts them. Set OTEL_SERVICE_NAME, another one for each "
    f"application. If the store has moved, remove {LABEL} in the spools that belong to it"
)
_UNDESCRIBED: Final = "holds damaged descriptions of records: what is left of these is delivered"
_log = logging.getLogger("otel_audit")


class Recovered(NamedTuple):
    """The last frame of one action of a dead process.

    Attributes:
        record_id: UUID, 36 characters, lower case.
        kind: ``CLOSED``: complete. ``ENDED``: how it ended, but its description is lost.
            ``ANSWERED``, ``OPENED``: cut down; as much as was known then.
        payload: As it was appended. Where it has ended: of the frame before that; empty where
            none can be read.
        appended_at: When, Unix nanoseconds.
        changed: Of one that has ended, what has changed since `payload`; None: nothing.
    """

    record_id: str
    kind: FrameKind
    payload: bytes
    appended_at: int
    changed: bytes | None = None


class DamagedBytes(NamedTuple):
    """Bytes of a segment that are not a frame.

    Attributes:
        file: The segment's name.
        offset: Of the first such byte.
        size: How many.
        reason: See `Damage`; ``torn`` is the ordinary trace of a kill, all others are losses.
        record_id: Of the record that is lost by it, where its header can be read; else empty.
    """

    file: str
    offset: int
    size: int
    reason: Reason
    record_id: str = ""


@dataclass(slots=True)
class RecoveryReport:
    """The findings in an abandoned spool.

    Attributes:
        frames: Whole frames.
        damaged_frames: Places where one or more frames were altered, or are no more.
        lost: Records that are lost by that: as many as had not been acknowledged, where that was
            noted; else one for each such place.
        damages: The first hundred places, torn ones among them.
        damaged_files: Segments with such places; they are kept.
        unreadable: Segments that could not be read to their end; they are not removed.
        foreign: Files in a segment's place that are not ours; neither read nor removed.
    """

    frames: int = 0
    damaged_frames: int = 0
    lost: int = 0
    damages: list[DamagedBytes] = field(default_factory=list)
    damaged_files: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, as far as can be seen."""
        return not (self.damaged_frames or self.unreadable or self.foreign)

    def note(self, file: str, damage: Damage, *, costs_record: bool = True) -> None:
        """Count damage, and name the record that it costs."""
        size = damage.end - damage.start
        if damage.reason != "torn":
            self.damaged_frames += 1
            if file not in self.damaged_files:
                self.damaged_files.append(file)
        if len(self.damages) < _DAMAGES_LISTED:
            name = record_name(damage.record_id) if costs_record and damage.record_id else ""
            self.damages.append(DamagedBytes(file, damage.start, size, damage.reason, name))


class AbandonedSpool:
    """A dead process's spool, locked by this one. Use from one thread.

    Attributes:
        path: Its directory.
        label: What it says of its process; None if that is lost.
    """

    def __init__(  # noqa: PLR0913 - what is known of it, each by its name
        self,
        home: OwnDirectory,
        place: OwnDirectory,
        lock: int,
        label: Manifest | None,
        encryption: Encryption | None,
        *,
        labelled: bool = True,
    ) -> None:
        """Take over a directory whose lock is held.

        Args:
            home: The service's directory.
            place: The spool's.
            lock: The lock's file descriptor.
            label: What it says of its process.
            encryption: The key, if there is one.
            labelled: Whether there is a label at all, be it damaged.
        """
        self.path = place.path
        self._home = home
        self._place = place
        self.label = label
        self._lock: int | None = lock
        self._expected = self._look_up(lock, is_damaged=labelled and label is None)
        self._pid = os.getpid()
        # a directory that was renamed, or copied, holds payloads encrypted under its first name
        named = place.path.name if label is None else label.producer_id
        self._cipher = _cipher(named or place.path.name, encryption)

    @property
    def producer_id(self) -> str:
        """The dead process's own id."""
        return self.path.name

    @property
    def bytes_used(self) -> int:
        """Bytes on disk."""
        return bytes_in(self._place)

    @property
    def report(self) -> RecoveryReport:
        """The findings; reads the whole spool at the first access."""
        return self._survey.report

    def records(self) -> Iterator[Recovered]:
        """Give one item for each action, in the order of the frames they come from.

        An action's closed frame wins over its answered one, and that over its opened one. Reads
        twice, and keeps in memory where the frames of unfinished actions are, and of one segment
        at a time the frames of actions that are not over so far. What was acknowledged shortly
        before the process died comes again.

        Yields:
            Each action once, except for one that was closed twice.
        """
        survey = self._survey
        begun: dict[bytes, Frame] = {}
        for segment in survey.segments:
            try:
                with self._reading(segment) as file:
                    yield from self._records_in(segment, file, survey, begun)
            except (OSError, EOFError) as error:
                _note_unreadable(survey.report, self.path / segment, error)

    def remove(self) -> bool:
        """Remove it after all its records are stored, and give its lock back.

        Returns:
            Whether it is gone: a segment that could not be read stays, and is reported again.
        """
        survey = self._survey
        try:
            if self._lock is not None and survey.segments:
                # before: if this is interrupted, the next one must not miss what is gone
                with suppress(OSError):
                    forget_watermarks(self._lock, segment_number(survey.segments[-1]))
            for segment in survey.segments:
                if segment not in {*survey.report.unreadable, *survey.report.foreign}:
                    self._let_go(segment)
            if survey.report.unreadable or survey.report.foreign:
                return False
            withdraw(self._home, self._place)
            self.release()
            remove_empty(self._home, self._place)
            forget(self._place)
        except OSError as error:
            _warn_once(self.path, f"cannot be removed: {error.strerror}")
            return False
        finally:
            self.release()
        return True

    def _let_go(self, segment: str) -> None:
        if segment in self._survey.report.damaged_files:
            with suppress(FileNotFoundError):
                if keep_damaged(self._home, self._place, segment):
                    return
        self._place.unlink(segment)

    def release(self) -> None:
        """Give its lock back and leave it for the next adopter; a second time does nothing."""
        if self._lock is not None:
            held, self._lock = self._lock, None
            if os.getpid() == self._pid:
                release(held)

    def _reading(self, segment: str) -> AbstractContextManager[BinaryIO]:
        return self._place.reading(segment, at_most=LARGEST_FILE, buffering=BUFFER_BYTES)

    @cached_property
    def _survey(self) -> _Survey:
        report = RecoveryReport()
        survey = _Survey(segments_in(self._place), {}, report)
        for number, segment in enumerate(survey.segments):
            try:
                with self._reading(segment) as file:
                    self._survey_segment(number, segment, file, survey)
            except (OSError, EOFError) as error:
                _note_unreadable(report, self.path / segment, error)
        for one in survey.found:
            named, lost = self._expected.judge(one)
            for damage in named:
                outlived = (one.place, damage.start) in survey.outlived
                report.note(survey.segments[one.place], damage, costs_record=not outlived)
            report.lost += lost
        there = {segment_number(name) for name in survey.segments}
        for gone in self._expected.gone(there, survey.unexpected):
            report.note(segment_name(gone.segment), Damage(0, gone.size, "missing"))
            report.lost += gone.pending or gone.open_actions
        return survey

    def _survey_segment(self, number: int, segment: str, file: BinaryIO, survey: _Survey) -> None:
        unfinished = survey.unfinished
        own, size = segment_number(segment), _size(file)
        damages: list[Damage] = []
        closed = 0
        for read in scan(file, end=size):
            found = self._undecryptable(read) or read
            if not isinstance(found, Frame):
                damages.append(found)
                if found.kind in UNDER_WAY:
                    survey.spoilt.setdefault(found.record_id, []).append((number, found.start))
                continue
            survey.report.frames += 1
            if survey.spoilt:
                survey.outlived.update(survey.spoilt.pop(found.record_id, ()))
            if found.kind in CLOSING:
                closed += self._expected.is_noted(own, found.end)
                survey.unexpected += self._expected.is_out_of_place(own, found.end)
            if found.kind in CLOSING or found.kind is FrameKind.DISCARDED:
                last = unfinished.pop(found.record_id, None)
                if found.kind is FrameKind.ENDED and last and last.segment != number:
                    survey.begun[found.record_id] = last
            else:
                known = unfinished.get(found.record_id)
                if known is None or known.kind <= found.kind:
                    unfinished[found.record_id] = _Place(found.kind, number, found.start)
        survey.found.append(SegmentFindings(number, own, size, damages, closed, survey.outlived))

    def _undecryptable(self, found: Frame | Damage) -> Damage | None:
        if isinstance(found, Damage):
            return None
        try:
            self._open(found)
        except EncryptionError:
            return Damage(found.start, found.end, "encryption", found.kind, found.record_id)
        return None

    def _look_up(self, lock: int, *, is_damaged: bool) -> Expected:
        """Find out what should be there."""
        try:
            marks = read_watermarks(lock)
        except DamagedWatermarksError as error:
            _warn_once(self.path, f"has damaged notes on what it holds: {error}")
            return Expected(None, doubtful=True)
        promised = self.label is not None and self.label.watermarks
        return Expected(marks, doubtful=marks is None and (promised or is_damaged))

    def _records_in(
        self, segment: str, file: BinaryIO, survey: _Survey, begun: dict[bytes, Frame]
    ) -> Iterator[Recovered]:
        number = survey.segments.index(segment)
        under_way = FramesUnderWay()
        for found in scan(file, end=_size(file)):
            if isinstance(found, Damage):
                continue
            before = [*under_way.note(found)]
            if found.kind in CLOSING and found.record_id in begun:
                before.append(begun.pop(found.record_id))
            if survey.begun.get(found.record_id) == (found.kind, number, found.start):
                begun[found.record_id] = found
            if not _is_wanted(found, number, survey):
                continue
            try:
                payload = self._open(found)
            except EncryptionError:
                continue
            record_id = record_name(found.record_id)
            if found.kind is FrameKind.ENDED:
                kind, known = self._known(before)
                yield Recovered(record_id, kind, known, found.appended_at, payload)
            else:
                yield Recovered(record_id, found.kind, payload, found.appended_at)

    def _known(self, before: Sequence[Frame]) -> tuple[FrameKind, bytes]:
        """What stands in an action's frames before its end, and what that makes of the two.

        Empty where nothing can be read.
        """
        kind, known = last_known(before, self._open)
        if kind is FrameKind.ANSWERED:
            return FrameKind.CLOSED, known
        _warn_once(self.path, _UNDESCRIBED)
        return FrameKind.ENDED, known

    def _open(self, frame: Frame) -> bytes:
        if not frame.encrypted:
            return frame.payload
        if self._cipher is None:
            raise EncryptionError("the payload is encrypted, and there is no key")
        return self._cipher.decrypt(frame.payload, context_of(frame.kind, frame.record_id))


class _Place(NamedTuple):
    kind: FrameKind
    segment: int
    start: int


@dataclass(slots=True)
class _Survey:
    """The findings of the first reading.

    Attributes:
        segments: In order.
        unfinished: The last frame of each action that is not over.
        report: What is reported of it.
        unexpected: Closing frames where the process has not put them.
        found: In each segment.
        begun: Frames of actions that end in another segment, and have no answer there.
        spoilt: Places of damaged frames of actions that are not over so far.
        outlived: Of these, the ones of actions of which a later frame is whole.
    """

    segments: list[str]
    unfinished: dict[bytes, _Place]
    report: RecoveryReport
    unexpected: int = 0
    found: list[SegmentFindings] = field(default_factory=list)
    begun: dict[bytes, _Place] = field(default_factory=dict)
    spoilt: dict[bytes, list[tuple[int, int]]] = field(default_factory=dict)
    outlived: set[tuple[int, int]] = field(default_factory=set)


class WithoutLock(enum.Enum):
    """Why a spool has no lock."""

    BEING_REMOVED = enum.auto()
    """Nothing is in it any more."""
    PROCESS_IS_DEAD = enum.auto()
    """The machine has started again since, and the power loss has taken the lock away."""
    UNKNOWN = enum.auto()
    """Its process may live; a person must say."""


def adopt(
    directory: Path,
    service: str,
    *,
    encryption: Encryption | None = None,
    destination: str | None = None,
) -> list[AbandonedSpool]:
    """Lock the spools that dead processes of this service left.

    Left alone, with a line in the log: spools of another version of the format, of a key that is
    not this one, and of another destination. On file systems whose locks may not reach other
    machines, a spool of another machine is taken once its lease has expired.

    Args:
        directory: The same as for `open_spool`.
        service: The service's name.
        encryption: The key, if payloads are encrypted.
        destination: Digest of where this process delivers to. Spools that name another one are
            left alone; those that name none are not. None: it does not matter.

    Returns:
        Oldest first; for each, `AbandonedSpool.remove` or `.release` is to be called. Empty if
        there are none, or if the directory cannot be read (which is logged).
    """
    path = Path(directory) / slug(service)
    found: list[AbandonedSpool] = []
    try:
        # as it was opened at the start, if it was: another one may stand in its place by now
        home = open_home(Path(directory), service) or OwnDirectory(path)
        names = spools_in(home)
    except (FileNotFoundError, NotADirectoryError):
        return found
    except ForeignError as error:
        report_foreign(error.path, error.why)
        return found
    except OSError as error:
        _warn_once(path, f"cannot be listed: {error.strerror}")
        return found
    for hidden in hidden_spools(home):
        _warn_once(path / hidden, HIDDEN)
    for name in names:
        try:
            spool = _adopt(home, name, service, encryption, destination)
        except ForeignError as error:
            report_foreign(error.path, error.why)
            continue
        except OSError as error:
            _warn_once(path / name, f"cannot be adopted: {error.strerror}")
            continue
        if spool is not None:
            found.append(spool)
    return found


def _adopt(
    home: OwnDirectory,
    name: str,
    service: str,
    encryption: Encryption | None,
    destination: str | None,
) -> AbandonedSpool | None:
    place = home.directory(name)
    path = place.path
    lock = _locked(place)
    if lock is None:
        return None
    try:
        label = read_label(place)
        labelled = label is not None or has_label(place)
        obstacle = None if label is None else obstacle_to_adoption(path, label, service, encryption)
        lives = (
            obstacle is None
            and label is not None
            and needs_lease(path, label)
            and not has_expired(place)
        )
    except BaseException:
        release(lock)
        raise
    if lives:
        release(lock)
        return None
    if obstacle is None and label is not None and belongs_elsewhere(label, destination):
        release(lock)
        _warn_once(path.parent, _OTHER_DESTINATION)
        return None
    if obstacle is None:
        if label is None and labelled:
            _warn_once(path, f"is adopted although its {LABEL} is damaged")
        return AbandonedSpool(home, place, lock, label, encryption, labelled=labelled)
    release(lock)
    _warn_once(path, f"is left alone: {obstacle}")
    return None


def _locked(place: OwnDirectory) -> int | None:
    """Take the lock of a dead process's spool, also one whose lock a power loss took away."""
    try:
        return lock_if_dead(place)
    except FileNotFoundError:
        pass
    match why_without_lock(place):
        case WithoutLock.PROCESS_IS_DEAD:
            with suppress(FileExistsError):
                return create_lock(place)
        case WithoutLock.UNKNOWN:
            _warn_once(place.path, without_lock_message(place))
        case WithoutLock.BEING_REMOVED:
            pass
    return None


def why_without_lock(place: OwnDirectory) -> WithoutLock:
    """Say why a spool has no lock.

    Raises:
        OSError: It cannot be read.
    """
    if not bytes_in(place):
        return WithoutLock.BEING_REMOVED
    label = read_label(place)
    if label is not None and label.host == socket.gethostname():
        booted = boot_id()
        if label.boot_id and booted and label.boot_id != booted:
            return WithoutLock.PROCESS_IS_DEAD
    return WithoutLock.UNKNOWN


def without_lock_message(place: OwnDirectory) -> str:
    """Say what to do about a spool without a lock whose process may live.

    Raises:
        OSError: It cannot be read.
    """
    label = read_label(place)
    process = "" if label is None else f" {label.pid} of host {label.host}"
    return (
        f"has no file {LOCK}, so nobody can tell whether its process{process} lives; if it does "
        f"not, make that file in it, empty and with mode 0600"
    )


def needs_lease(path: Path, label: Manifest) -> bool:
    """Return whether a lock that was taken here does not prove that the spool's process is dead."""
    return file_system(path).shared and not locks_reach(path, label)


def obstacle_to_adoption(
    path: Path, label: Manifest, service: str, encryption: Encryption | None
) -> str | None:
    """Say why a dead process's spool must be left alone, None if it may be adopted."""
    if label.format not in READABLE:
        return f"it has format {label.format}, and this version reads formats up to {FORMAT}"
    if label.service != service:
        return "it is another service's"
    if label.key_id and (encryption is None or encryption.key_id != label.key_id):
        return "it is encrypted with a key that OTEL_AUDIT_SPOOL_KEY does not hold"
    return _out_of_reach(path, label)


def _out_of_reach(path: Path, label: Manifest) -> str | None:
    """Say why it is not known here whether a process of another machine lives; None if it is.

    A process of an earlier version renews no lease.
    """
    found = file_system(path)
    if not found.shared or locks_reach(path, label):
        return None
    if not label.lease and label.host == socket.gethostname():
        return None
    if label.lease and found.coherent:
        return None
    why = (
        f"{found.kind} is mounted with a cache that hides what other machines write"
        if label.lease
        else "it is of an earlier version, which renews no lease"
    )
    return (
        f"it is of host {label.host}, where locks on {found.kind} may not reach, and {why}; if "
        f"that process is gone, remove {LABEL} in it, and any process of the service adopts it"
    )


def _is_wanted(frame: Frame, segment: int, survey: _Survey) -> bool:
    if frame.kind in CLOSING:
        return True
    return survey.unfinished.get(frame.record_id) == (frame.kind, segment, frame.start)


def _cipher(producer_id: str, encryption: Encryption | None) -> Cipher | None:
    return None if encryption is None else encryption.for_spool(producer_id)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _note_unreadable(report: RecoveryReport, segment: Path, error: Exception) -> None:
    if isinstance(error, ForeignError):
        report_foreign(error.path, error.why)
        if segment.name not in report.foreign:
            report.foreign.append(segment.name)
    elif segment.name not in report.unreadable:
        report.unreadable.append(segment.name)
        _warn_once(segment, f"cannot be read: {error}")


def _warn_once(path: Path, what: str) -> None:
    """Say it, and again only now and then: adopters come by every few seconds."""
    log_limited(_log, f"{path} {what}", "audit spool %s %s", path, what, level=logging.WARNING)
