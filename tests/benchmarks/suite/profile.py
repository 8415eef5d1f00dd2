"""Where the CPU of a recorded request goes: py-spy on the real process, under load."""

from __future__ import annotations

import asyncio
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.benchmarks.suite.environments import Peer, python_of
from tests.benchmarks.suite.postgres import Databases
from tests.benchmarks.suite.request_cost import SCENARIOS, TOKEN
from tests.benchmarks.suite.shops import VARIANTS, Shop, a_load, a_shop

PY_SPY = Peer("py-spy", "0.4.3", beside=())
SHOWN = 18
SHOWN_OF_DELIVERY = 8
DELIVERY = "otel-audit-delivery"
WAITING = "select (selectors.py"
CASES = (("audit:request_response", "write"), ("audit:none", "json"))
_LINE = re.compile(r":\d+\)$")


def measure(databases: Databases, seconds: float) -> dict[str, Any]:
    """A write that is recorded in full, and a request that is not recorded."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        for key, asked in CASES:
            variant = next(one for one in VARIANTS if one.key == key)
            shop = asyncio.run(a_shop(databases, variant, Path(scratch), "profile"))
            try:
                shop.start()
                shop.wait_until_up()
                stacks = _sampled(shop, asked, seconds, Path(scratch) / "stacks")
            finally:
                shop.end()
            found[f"{asked}, {variant.title}"] = _shares(stacks)
    return found


def _sampled(shop: Shop, asked: str, seconds: float, out: Path) -> list[str]:
    scenario = next(one for one in SCENARIOS if one.key == asked)
    spy = Path(python_of(PY_SPY)).parent / "py-spy"
    command = [str(spy), "record", "-r", "250", "-t", "-f", "raw", "-o", str(out)]
    command += ["-d", str(round(seconds)), "--pid", str(shop.pid)]
    with a_load() as load:
        profiler = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        load.make(
            port=shop.port, method=scenario.method, path=scenario.path, status=scenario.status,
            connections=8, body=scenario.body, body_size=0, seconds=seconds + 2,
            headers={"Content-Type": scenario.content_type, "Authorization": f"Bearer {TOKEN}"},
        )  # fmt: skip
        if profiler.wait(60):
            raise SystemExit("py-spy failed: it needs the right to trace processes (ptrace)")
    return out.read_text().splitlines()


def _shares(stacks: Iterable[str]) -> dict[str, Any]:
    """Share of the main thread's samples that is beneath our code, and beneath each function.

    The worker that delivers has a thread of its own; its samples are told beside the main thread's.
    """
    total = ours = delivering = 0
    within: Counter[str] = Counter()
    delivery: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        samples = int(count)
        if DELIVERY in frames[0] and WAITING not in frames[-1]:
            delivering += samples
            named = {_LINE.sub(")", frame) for frame in frames if _is_ours(frame)}
            delivery.update(dict.fromkeys(named, samples))
        if "MainThread" not in frames[0]:
            continue
        total += samples
        # the taps pass the application's own work through: what is beneath them is not all ours
        first = next((n for n, frame in enumerate(frames) if _is_ours(frame)), None)
        if first is None:
            ours += samples if "otel_audit/" in frames[-1] else 0
            continue
        ours += samples
        within.update(dict.fromkeys({_LINE.sub(")", frame) for frame in frames[first:]}, samples))
    return {
        "samples": total,
        "ours": ours / total,
        "within": {name: count / total for name, count in within.most_common(SHOWN)},
        "delivery": delivering / total,
        "within_delivery": {
            name: count / total for name, count in delivery.most_common(SHOWN_OF_DELIVERY)
        },
    }


def _is_ours(frame: str) -> bool:
    is_of_package = any(part in frame for part in ("otel_audit/", "otel_audit_postgres/"))
    return is_of_package and "asgi.py" not in frame
