"""The result of one check of a set-up, as ``otel-audit doctor`` prints it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One thing that was looked at.

    Attributes:
        name: What, in a few words; the same on every run.
        ok: Whether it is as it must be; None if a person has to judge, or it cannot be seen.
        detail: What was found.
        remedy: What to do, empty where nothing is to be done.
    """

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""
