"""The targets, and whether the results meet them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.benchmarks.suite.tables import Results, table

FULL = "audit:request_response"
MANY, SLOW = 5_000_000, 5
_VERDICTS = {True: "met", False: "**missed**", None: "not decided"}


WRITE, METADATA, NONE = 1.20, 1.12, 1.02
"""Of instructions, as multiples of the same request under OpenTelemetry."""
DELIVERY, SINK = 400_000, 6_000


def judged(results: Results) -> str:
    """A table: target, measured, met or missed; only of what was measured.

    Met or missed is what the whole spread is; where the bound lies within it, or the store is
    smaller than the target says, it is not decided.
    """
    rows = [
        (what, wanted, seen, _VERDICTS[met])
        for part, judge in _JUDGES.items()
        if part in results
        for what, wanted, seen, met in judge(results[part])
    ]
    lines = table(("target", "wanted", "measured", ""), rows)
    return lines.replace("|---|---:|---:|---:|", "|---|---|---|---|")


QueuedRows = Iterator[tuple[str, str, str, bool | None]]


def _requests(found: dict[str, Any]) -> QueuedRows:
    for key, case in found["scenarios"].items():
        name, _, connections = key.partition("/")
        seen = case["variants"]
        many = f"{connections} connection{'s' if connections != '1' else ''}"
        if name == "write":
            compared = seen[FULL]["to_contrib"]
            yield _most(f"write in full, {many}: CPU of the process to OpenTelemetry",
                        compared["cpu_us"], 1.25)  # fmt: skip
            yield _most(f"write in full, {many}: p99 to OpenTelemetry", compared["p99_ms"], 1.10)
            if "gc_collected" in seen[FULL]:
                yield _left(f"write in full, {many}: left to the garbage collector", seen)
        if name == "stream":
            yield from _streamed(seen[FULL], seen["contrib"])


def _instructions(found: dict[str, Any]) -> QueuedRows:
    for key, level, title, bound in (
        ("write", FULL, "write in full", WRITE),
        ("write", "audit:metadata", "write at level metadata", METADATA),
        ("read", "audit:metadata", "read at level metadata", METADATA),
        ("read", "audit:none", "read at level none", NONE),
        ("json", "audit:metadata", "JSON at level metadata", METADATA),
        ("json", "audit:none", "JSON at level none", NONE),
    ):
        counts = found[key]["variants"]
        times = counts[level]["instructions"] / counts["contrib"]["instructions"]
        yield (
            f"{title}: instructions of the serving thread to OpenTelemetry",
            f"at most {bound:.2f} x",
            f"{times:.2f} x",
            times <= bound,
        )


def _delivery(found: dict[str, Any]) -> QueuedRows:
    for size, seen in found["batches"].items():
        count = seen["instructions"]
        yield (
            f"delivery, {size} record{'s' if size != '1' else ''} at a time: instructions a record",
            f"at most {DELIVERY // 1000:,} thousand",
            f"{count / 1000:,.0f} thousand",
            count <= DELIVERY,
        )


def _sink(found: dict[str, Any]) -> QueuedRows:
    rate = found["records_per_second"]
    yield (
        "sink: own records a second",
        f"at least {SINK:,}",
        f"{rate['median']:,.0f} ({rate['low']:,.0f}–{rate['high']:,.0f})",
        _within(-rate["high"], -rate["low"], -SINK),
    )


def _streamed(ours: dict[str, Any], base: dict[str, Any]) -> QueuedRows:
    first, other = ours["first_byte_ms"], base["first_byte_ms"]
    yield (
        "stream of 10 MB: first byte",
        "as under OpenTelemetry: at most its upper quartile",
        (
            f"{first['median']:.1f} ms, to {other['median']:.1f} ms "
            f"({other['low']:.1f}–{other['high']:.1f})"
        ),
        first["median"] <= other["high"],
    )
    more = ours["rss_grown_mb"]["median"] - base["rss_grown_mb"]["median"]
    yield (
        "stream of 10 MB: memory",
        "as under OpenTelemetry: within 1 MB",
        f"{more:+.1f} MB",
        more <= 1,
    )


def _left(what: str, seen: dict[str, Any]) -> tuple[str, str, str, bool | None]:
    more = seen[FULL]["gc_collected"]["median"] - seen["contrib"]["gc_collected"]["median"]
    return what, "as under OpenTelemetry", f"{more:+.1f} objects a request", more <= 1


def _most(what: str, seen: dict[str, float], bound: float) -> tuple[str, str, str, bool | None]:
    met = _within(seen["low"], seen["high"], bound)
    return what, f"at most {bound:.2f} x", _figures_text(seen), met


def _within(low: float, high: float, bound: float) -> bool | None:
    """Whether a spread is below a bound; None where the bound lies in it: this run cannot tell."""
    if high <= bound:
        return True
    return False if low > bound else None


def _figures_text(seen: dict[str, float]) -> str:
    return f"{seen['ratio']:.2f} x ({seen['low']:.2f}–{seen['high']:.2f})"


def _orm(found: dict[str, Any]) -> QueuedRows:
    for what, bound in (("insert", 40), ("update", 40)):
        for name, case in found["cases"].items():
            if name.startswith(what) and case["rows"] > 1:
                added = case["ways"]["observed"]["added_us"]
                yield (
                    f"observed ORM capture, {what}, {case['rows']:,} rows",
                    f"at most {bound} µs a row",
                    f"{added['median']:.0f} µs ({added['low']:.0f}–{added['high']:.0f})",
                    _within(added["low"], added["high"], bound),
                )


def _writing(found: dict[str, Any]) -> QueuedRows:
    encoding = found["encoding_us"]["median"]
    for case in found["cases"].values():
        if case["batch"] != 512:
            continue
        bound = 0.60 if case["sealed"] else 0.85
        ours = case["ways"]["otel-audit"]
        beside = "sealer beside" if case["sealed"] else "no sealer"
        name = f"batches of 512, {case['connections']} conn., {beside}"
        yield (
            f"{name}: rows/s of raw COPY",
            f"at least {bound:.0%}",
            (
                f"{ours['to_copy']['ratio']:.0%} ({ours['to_copy']['low']:.0%}–"
                f"{ours['to_copy']['high']:.0%})"
            ),
            _within(-ours["to_copy"]["high"], -ours["to_copy"]["low"], -bound),
        )
        beyond = ours["client_cpu_us"]["median"] - encoding
        yield (
            f"{name}: client CPU beyond the record's JSON and hash",
            "at most 15 µs a row",
            f"{beyond:.0f} µs",
            beyond <= 15,
        )


def _loss(found: dict[str, Any]) -> QueuedRows:
    for fault, compared in found["faults"].items():
        seen = compared[FULL]
        yield (
            f"{fault}: acknowledged requests without a record",
            "0",
            f"{seen['lost']} of {seen['acknowledged']:,}",
            seen["lost"] == 0,
        )


def _growth(found: dict[str, Any]) -> QueuedRows:
    last = found["growth"][-1]
    for name in ("show", "history of an order", "by actor", "by trace id"):
        taken = last["query_ms"][name]
        # fewer rows than the target names can show that it is missed, not that it is met
        is_measured = last["rows"] >= MANY or taken >= SLOW
        yield (
            f"{name}, at {last['rows']:,} rows",
            f"under {SLOW} ms at {MANY:,}",
            f"{taken:.2f} ms",
            taken < SLOW if is_measured else None,
        )


def _viewer(found: dict[str, Any]) -> QueuedRows:
    for who in ("auditor", "tenant"):
        seen = found[who]
        for what, key, most in (("first rows", "first_ms", 150), ("counts", "counts_ms", 300)):
            query, worst = max(
                ((query, one[key]["p95"]) for query, one in seen["pages"].items()),
                key=lambda one: one[1],
            )
            yield (
                f"viewer, {who}: {what}, the slowest query",
                f"95 % within {most} ms",
                f"{worst:.0f} ms (`{query}`)",
                worst <= most,
            )
        page = seen["record_ms"]["p95"]
        yield (
            f"viewer, {who}: record page with verification", "95 % within 100 ms",
            f"{page:.0f} ms", page <= 100,
        )  # fmt: skip
        form, rate = min(seen["export_rows_per_s"].items(), key=lambda one: one[1])
        yield (
            f"viewer, {who}: export", "at least 20,000 rows/s", f"{rate:,.0f} ({form})",
            rate >= 20_000,
        )  # fmt: skip
        memory = seen["memory_mb"]
        yield f"viewer, {who}: memory", "at most 120 MB", f"{memory:.0f} MB", memory <= 120


_JUDGES = {
    "instructions": _instructions,
    "own": _requests,
    "delivery": _delivery,
    "own_rows": _orm,
    "writing": _writing,
    "sink": _sink,
    "loss": _loss,
    "growth": _growth,
    "viewer": _viewer,
}
