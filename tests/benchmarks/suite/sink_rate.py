"""How many records a second one sink takes, with PostgreSQL on the same machine."""

from __future__ import annotations

import importlib.util
import tempfile
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.suite.measures import summary


@dataclass(frozen=True)
class Plan:
    """How much: records of one measurement, and turns."""

    records: int = 12_000
    rounds: int = 3


def measure(plan: Plan) -> dict[str, Any]:
    """Rate and CPU of the sink and of PostgreSQL, for records that the plugin has sent."""
    bench = _bench_sink()
    asked = Namespace(spans=plan.records, batch=200, workers=2, senders=4, shape="plugin")
    seen = []
    for _ in range(plan.rounds):
        with tempfile.TemporaryDirectory(
            prefix="bench-sink-", ignore_cleanup_errors=True
        ) as scratch:
            Path(scratch).chmod(0o755)
            seen.append(bench.measure(asked, Path(scratch)))
    return {
        "records": plan.records,
        "in_a_request": asked.batch,
        "workers": asked.workers,
        "senders": asked.senders,
        "records_per_second": summary([one["spans_per_second"] for one in seen]),
        "sink_cpu_us": summary([one["sink_cpu_us_per_span"] for one in seen]),
        "postgres_cpu_us": summary([one["postgres_cpu_us_per_span"] for one in seen]),
    }


def _bench_sink() -> Any:
    """The benchmark by hand, which knows how to serve, to send and to count."""
    place = Path(__file__).parents[1] / "bench_sink.py"
    spec = importlib.util.spec_from_file_location("bench_sink", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
