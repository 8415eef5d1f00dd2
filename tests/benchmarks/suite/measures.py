"""Clocks, and what is made of many measurements."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESAMPLES = 2000


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all its threads, in seconds; to the nanosecond, on Linux."""
    # the clock id that clock_getcpuclockid(3) makes of a process id
    return time.clock_gettime((~pid << 3) | 2)


def tree_cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children, those that have ended included."""
    ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[13:15]
    total = cpu_seconds(pid) + sum(map(int, ended)) / os.sysconf("SC_CLK_TCK")
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            total += cpu_seconds(int(child))
        except OSError:  # it has ended meanwhile
            continue
    return total


def memory_mb(pid: int) -> float:
    """Resident memory of a process, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def peak_memory_mb(pid: int) -> float:
    """The most resident memory that a process has had since `forget_peak`, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return memory_mb(pid)


def forget_peak(pid: int) -> None:
    """Begin anew with the peak of a process's memory."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of what was measured round after round."""
    ordered = sorted(values)
    quartiles = (
        statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    )
    return {
        "median": statistics.median(ordered),
        "low": quartiles[0],
        "high": quartiles[2],
        "min": ordered[0],
        "rounds": len(ordered),
    }


def ratio(values: Sequence[float], base: Sequence[float], seed: int = 1) -> dict[str, float]:
    """Compare what was measured in turn: median of the rounds' ratios, 95 % by bootstrap."""
    pairs = [one / other for one, other in zip(values, base, strict=True)]
    chance = random.Random(seed)
    medians = sorted(
        statistics.median(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES)
    )
    return {
        "ratio": statistics.median(pairs),
        "low": medians[int(RESAMPLES * 0.025)],
        "high": medians[int(RESAMPLES * 0.975)],
    }
