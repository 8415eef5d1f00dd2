"""Findings of a verification."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from otel_audit_postgres.ledger.ledger_queries import ConflictingRecord
from otel_audit_postgres.ledger.malformed import Malformed

WRITTEN_OUT: Final = 100_000
"""Malformed rows that are kept with their details; all are counted. Of what was tampered with
everything is kept: a writer must not be able to hide it behind rows of his own."""


class ProblemKind(enum.StrEnum):
    """Kinds of tampering."""

    CHANGED = "changed"
    DELETED = "deleted"
    INSERTED = "inserted"
    REORDERED = "reordered"
    TRUNCATED_TAIL = "truncated tail"
    RESTORED_OLD_COPY = "restored old copy"
    FORGED_SIGNATURE = "forged signature"
    GUARD_REMOVED = "guard removed"
    EMPTIED_ANCHOR = "emptied anchor"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it was.

    Attributes:
        kind: What kind of tampering it shows.
        detail: What was found, without values of the record.
        record_id: The record, where it is about one.
        leaf: Its place in the log, from 0, where it has one.
    """

    kind: ProblemKind
    detail: str
    record_id: str | None = None
    leaf: int | None = None


@dataclass(slots=True)
class Findings:
    """The collected findings of a verification.

    Attributes:
        problems: All that was tampered with.
        counts: How many of each kind.
        warnings: What weakens the result, without being tampering.
        malformed: Rows that were inserted malformed, the first of them.
        malformed_by: How many such rows there are, by the producer that they name.
    """

    problems: list[Problem] = field(default_factory=list)
    counts: Counter[ProblemKind] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    malformed: list[Malformed] = field(default_factory=list)
    malformed_by: Counter[str | None] = field(default_factory=Counter)

    def add(
        self, kind: ProblemKind, detail: str, record_id: str | None = None, leaf: int | None = None
    ) -> None:
        """Note a problem."""
        self.counts[kind] += 1
        self.problems.append(Problem(kind, detail, record_id, leaf))

    def add_malformed(self, row: Malformed) -> None:
        """Note a row that was inserted malformed."""
        self.malformed_by[row.producer] += 1
        if len(self.malformed) < WRITTEN_OUT:
            self.malformed.append(row)

    def take(self, other: Findings) -> None:
        """Take in what was found elsewhere."""
        self.problems += sorted(other.problems, key=lambda problem: problem.leaf or 0)
        self.counts.update(other.counts)
        self.warnings += other.warnings
        self.malformed += sorted(other.malformed, key=lambda row: row.leaf or 0)
        del self.malformed[WRITTEN_OUT:]
        self.malformed_by.update(other.malformed_by)


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """The outcome.

    Attributes:
        origin: The log's name, None if nothing was ever sealed.
        size: Leaves in the log.
        checkpoints: Checkpoints that were checked.
        signed_size: Leaves under the last checkpoint that a given key signed.
        rows_checked: Rows that were read and hashed again.
        waiting: Rows that are stored and not sealed yet.
        problems: What was tampered with, in the log's order; all of it.
        counts: How many problems of each kind there are.
        warnings: What weakens the result, without being tampering.
        seconds: How long it took.
        dropped: Rows that went with their partitions, as a sealed record of each says.
        last_note: The last checkpoint's note, None if nothing was ever sealed.
        malformed: Rows that were inserted malformed and not changed since, in the log's order, up
            to `WRITTEN_OUT`. They hold something false, but were not tampered with.
        malformed_by: How many such rows there are, by the producer that they name.
        conflicts: Records that are stored under another id than they came under, the first of
            them: everybody who knows an id can use it first, and takes nothing from its owner.
        conflict_count: How many such records there are.
        overdue: Why rows are not sealed that should have been long ago; None if none are.
    """

    origin: str | None
    size: int
    checkpoints: int
    signed_size: int
    rows_checked: int
    waiting: int
    problems: tuple[Problem, ...]
    counts: dict[ProblemKind, int]
    warnings: tuple[str, ...]
    seconds: float
    dropped: int = 0
    last_note: str | None = None
    malformed: tuple[Malformed, ...] = ()
    malformed_by: dict[str | None, int] = field(default_factory=dict)
    overdue: str | None = None
    conflicts: tuple[ConflictingRecord, ...] = ()
    conflict_count: int = 0

    @property
    def malformed_count(self) -> int:
        """The number of rows that were inserted malformed."""
        return sum(self.malformed_by.values())

    @property
    def ok(self) -> bool:
        """Whether no tampering was found."""
        return not self.problems

    @property
    def first_bad(self) -> Problem | None:
        """The first problem that is about a record, else the first of all."""
        about_a_record = (problem for problem in self.problems if problem.record_id)
        return next(about_a_record, self.problems[0] if self.problems else None)

    def as_json(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        first = self.first_bad
        return {
            "ok": self.ok,
            "origin": self.origin,
            "size": self.size,
            "checkpoints": self.checkpoints,
            "signed_size": self.signed_size,
            "rows_checked": self.rows_checked,
            "waiting": self.waiting,
            "dropped": self.dropped,
            "first_bad": None if first is None else _plain(first),
            "problems": [_plain(problem) for problem in self.problems],
            "counts": {kind.value: count for kind, count in self.counts.items()},
            "malformed": {
                "count": self.malformed_count,
                "producers": [
                    {"producer": producer, "count": count}
                    for producer, count in self.malformed_by.items()
                ],
                "rows": [asdict(row) for row in self.malformed],
            },
            "conflicts": {
                "count": self.conflict_count,
                "rows": [one._asdict() for one in self.conflicts],
            },
            "overdue": self.overdue,
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
        }


def in_order(problems: list[Problem]) -> tuple[Problem, ...]:
    """Sort problems by their place in the log; those without one come after."""
    return tuple(sorted(problems, key=lambda problem: (problem.leaf is None, problem.leaf or 0)))


def _plain(problem: Problem) -> dict[str, Any]:
    return {
        "kind": problem.kind.value,
        "detail": problem.detail,
        "record_id": problem.record_id,
        "leaf": problem.leaf,
    }
