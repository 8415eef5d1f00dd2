"""What a verification has found."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

WRITTEN_OUT: Final = 100
"""Problems of one kind that are kept with their details; all are counted."""


class Kind(enum.StrEnum):
    """Kinds of tampering."""

    CHANGED = "changed"
    DELETED = "deleted"
    INSERTED = "inserted"
    REORDERED = "reordered"
    TRUNCATED_TAIL = "truncated tail"
    RESTORED_OLD_COPY = "restored old copy"
    FORGED_SIGNATURE = "forged signature"
    GUARD_REMOVED = "guard removed"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it was.

    Attributes:
        kind: What kind of tampering it shows.
        detail: What was found, without values of the record.
        record_id: The record, where it is about one.
        leaf: Its place in the log, from 0, where it has one.
    """

    kind: Kind
    detail: str
    record_id: str | None = None
    leaf: int | None = None


@dataclass(slots=True)
class Findings:
    """What is gathered while verifying.

    Attributes:
        problems: The first of each kind.
        counts: How many of each kind.
        warnings: What weakens the result, without being tampering.
    """

    problems: list[Problem] = field(default_factory=list)
    counts: Counter[Kind] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    def add(
        self, kind: Kind, detail: str, record_id: str | None = None, leaf: int | None = None
    ) -> None:
        """Note a problem."""
        self.counts[kind] += 1
        if self.counts[kind] <= WRITTEN_OUT:
            self.problems.append(Problem(kind, detail, record_id, leaf))

    def take(self, other: Findings) -> None:
        """Take in what was found elsewhere."""
        for problem in sorted(other.problems, key=lambda problem: problem.leaf or 0):
            kept = sum(mine.kind == problem.kind for mine in self.problems)
            if kept < WRITTEN_OUT:
                self.problems.append(problem)
        self.counts.update(other.counts)
        self.warnings += other.warnings


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome.

    Attributes:
        origin: The log's name, None if nothing was ever sealed.
        size: Leaves in the log.
        checkpoints: Checkpoints that were checked.
        signed_size: Leaves under the last checkpoint that a given key signed.
        rows_checked: Rows that were read and hashed again.
        waiting: Rows that are stored and not sealed yet.
        problems: What was tampered with, in the log's order; the first of each kind, up to
            `WRITTEN_OUT`.
        counts: How many problems of each kind there are.
        warnings: What weakens the result, without being tampering.
        seconds: How long it took.
        dropped: Rows that went with their partitions, as a sealed record of each says.
        last_note: The last checkpoint's note, None if nothing was ever sealed.
    """

    origin: str | None
    size: int
    checkpoints: int
    signed_size: int
    rows_checked: int
    waiting: int
    problems: tuple[Problem, ...]
    counts: dict[Kind, int]
    warnings: tuple[str, ...]
    seconds: float
    dropped: int = 0
    last_note: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing was tampered with, as far as was looked."""
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
