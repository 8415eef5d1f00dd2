"""Tables in Markdown, from the results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Results = dict[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("|---|" + "---:|" * (len(head) - 1))
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def machine(results: Results) -> str:
    entries = results["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in entries["packages"].items())
    parts = ", ".join(
        f"{part} {found['measured_at']} ({found['load_before']})"
        for part, found in results["measured"].items()
    )
    return (
        f"Measured on {entries['cores']} cores ({entries['processor']}), "
        f"{entries['memory_gb']} GB, {entries['system']}, Python {entries['python']}; {packages}. "
        f"When, and the load of the machine before: {parts}."
    )


def _spread(seen: dict[str, float], digits: int = 0) -> str:
    return f"{seen['median']:,.{digits}f} ({seen['low']:,.{digits}f}–{seen['high']:,.{digits}f})"


def _times(compared: dict[str, Any] | None, what: str = "cpu_us") -> str:
    if not compared:
        return "–"
    seen = compared[what]
    return f"{seen['ratio']:.2f} ({seen['low']:.2f}–{seen['high']:.2f})"


def requests(results: Results) -> Iterator[str]:
    for case in results["request"]["scenarios"].values():
        many = "connections" if case["connections"] > 1 else "connection"
        yield f"**{case['title']}, {case['connections']} {many}**"
        rows = [
            (
                seen["title"],
                _spread(seen["cpu_us"]),
                _times(seen.get("to_plain")),
                _times(seen.get("to_contrib")),
                f"{seen['rps']['median']:,.0f}",
                f"{seen['p50_ms']['median']:.1f}",
                f"{seen['p99_ms']['median']:.1f}",
                f"{seen['first_byte_ms']['median']:.1f}",
                f"{seen['rss_mb']['median']:.0f} + {seen['rss_grown_mb']['median']:.0f}",
                f"{seen['lag_p99_ms']['median']:.1f}",
            )
            for seen in case["variants"].values()
        ]
        yield table(
            (
                "", "CPU µs a request", "x plain", "x OpenTelemetry", "requests/s", "p50 ms",
                "p99 ms", "first byte ms", "MB + peak", "loop lag p99 ms",
            ),
            rows,
        )  # fmt: skip

    yield from _collections(results["request"]["scenarios"])
    trails = results["request"].get("trails", {})
    rows = [
        (
            results["request"]["scenarios"]["write/1"]["variants"][key]["title"],
            f"{trail['asked']:,}", f"{trail['rows']:,}",
        )
        for key, trail in trails.items()
        if trail["rows"] is not None
    ]  # fmt: skip
    if rows:
        yield "What the trails hold after all that, the first requests of each process included:"
        yield table(("", "requests made", "rows in the trail"), rows)


def own(results: Results) -> Iterator[str]:
    rows = []
    for case in results["own"]["scenarios"].values():
        many = "connections" if case["connections"] > 1 else "connection"
        for number, seen in enumerate(case["variants"].values()):
            rows.append((
                "" if number else f"{case['title']}, {case['connections']} {many}",
                seen["title"],
                _spread(seen["cpu_us"]),
                _times(seen.get("to_contrib")),
                _spread(seen["p50_ms"], 1),
                _spread(seen["p99_ms"], 1),
                _times(seen.get("to_contrib"), "p99_ms"),
                _spread(seen["first_byte_ms"], 2),
            ))  # fmt: skip
    head = (
        "", "", "CPU µs a request", "x OpenTelemetry", "p50 ms", "p99 ms", "p99 x OpenTelemetry",
        "first byte ms",
    )  # fmt: skip
    yield table(head, rows)
    yield from _collections(results["own"]["scenarios"])


def _collections(scenarios: dict[str, Any]) -> Iterator[str]:
    """What the garbage collector does for a request; results of before that was asked have none."""
    rows = []
    for case in scenarios.values():
        many = "connections" if case["connections"] > 1 else "connection"
        for number, seen in enumerate(case["variants"].values()):
            if "gc_us" not in seen:
                return
            rows.append((
                "" if number else f"{case['title']}, {case['connections']} {many}",
                seen["title"],
                _spread(seen["gc_us"]),
                f"{seen['gc_runs']['median'] * 1000:,.0f}",
                f"{seen['gc_full']['median'] * 1000:,.1f}",
                f"{seen['gc_collected']['median']:,.1f}",
            ))  # fmt: skip
    yield "Of this, the garbage collector's part; what only it can free should be nothing of ours:"
    head = (
        "", "", "collector µs a request", "runs for 1,000 requests", "of these full",
        "objects that it has freed, a request",
    )  # fmt: skip
    yield table(head, rows)


def own_rows(results: Results) -> Iterator[str]:
    cases = {name: case for name, case in results["own_rows"]["cases"].items() if case["rows"] > 1}
    rows = []
    for key, way in next(iter(cases.values()))["ways"].items():
        row = [way["title"]]
        for case in cases.values():
            seen = case["ways"][key]
            row.append(_spread(seen["thread_us"]))
            row.append(_spread(seen["added_us"]) if "added_us" in seen else "–")
        rows.append(row)
    head = ["µs of CPU a row"]
    for name in cases:
        head += [_case(name), "added"]
    yield table(head, rows)


def sink(results: Results) -> Iterator[str]:
    found = results["sink"]
    head = ("records a second", "CPU of the sink, µs a record", "CPU of PostgreSQL, µs a record")
    seen = (found["records_per_second"], found["sink_cpu_us"], found["postgres_cpu_us"])
    yield table(head, [[_spread(one) for one in seen]])


def delivery(results: Results) -> Iterator[str]:
    counted = results["delivery"]["batches"].items()
    rows = [(size, _thousands(seen["instructions"])) for size, seen in counted]
    yield table(("records in a batch", "thousand instructions a record"), rows)


def orm(results: Results) -> Iterator[str]:
    found = results["orm"]
    head = ["µs of CPU a row", *(_case(name) for name in found["cases"])]
    first = next(iter(found["cases"].values()))
    rows = []
    for key, way in first["ways"].items():
        row = [way["title"]]
        for case in found["cases"].values():
            seen = case["ways"][key]
            text = f"{seen['thread_us']['median']:,.0f}"
            if "added_us" in seen:
                text += f" (+{seen['added_us']['median']:,.0f})"
            row.append(text)
        rows.append(row)
    yield table(head, rows)
    rows = []
    for key, way in first["ways"].items():
        row = [way["title"]]
        for case in found["cases"].values():
            seen = case["ways"][key]
            row.append(
                f"{seen['process_us']['median']:,.0f} + {seen['postgres_us']['median']:,.0f}"
            )
        rows.append(row)
    yield "The same with the delivery of what is recorded: the process, and PostgreSQL:"
    yield table(head, rows)
    for title, why in found["failed"].items():
        yield f"{title} does not run here: {why}"


def _case(name: str) -> str:
    what, _, rows = name.partition("/")
    return f"{what}, {int(rows):,} a transaction"


def writing(results: Results) -> Iterator[str]:
    found = results["writing"]
    cases = found["cases"].values()
    names = list(next(iter(cases))["ways"])
    rows = []
    for case in cases:
        row = [
            f"{case['batch']:,} rows, {case['connections']} conn., "
            + ("sealer beside" if case["sealed"] else "no sealer")
        ]
        for name in names:
            seen = case["ways"][name]
            row.append(
                f"{seen['rows_per_second']['median']:,.0f} ({seen['client_cpu_us']['median']:.0f})"
            )
        ours = case["ways"]["otel-audit"]["to_copy"]
        row.append(f"{ours['ratio']:.0%} ({ours['low']:.0%}–{ours['high']:.0%})")
        rows.append(row)
    yield table(["rows/s (client µs a row)", *names, "otel-audit of COPY"], rows)
    yield (
        f"A record's JSON text and its hash take {_spread(found['encoding_us'])} µs of these, all of "
        f"its row, in COPY's binary format, {_spread(found['row_us'])} µs."
    )


def loss(results: Results) -> Iterator[str]:
    found = results["loss"]
    rows = [
        (
            fault, seen["title"], f"{seen['not_acknowledged']:,}", f"{seen['acknowledged']:,}",
            f"{seen['stored']:,}",
            f"**{seen['lost']:,}**", f"{seen['twice']:,}",
        )
        for fault, compared in found["faults"].items()
        for seen in compared.values()
    ]  # fmt: skip
    yield table(("fault", "", "failed", "acknowledged", "stored", "lost", "stored twice"), rows)


def growth(results: Results) -> Iterator[str]:
    found = results["growth"]
    questions = list(found["growth"][0]["query_ms"])
    head = ["rows", "insert rows/s", "seal rows/s", "bytes a row: table + indexes + ledger"]
    rows = [
        [
            f"{step['rows']:,}", f"{step['insert_rows_per_s']:,}", f"{step['seal_rows_per_s']:,}",
            (f"{step['table_bytes_per_row']:,} + {step['index_bytes_per_row']:,} + "
            f"{step['ledger_bytes_per_row']:,}"),
            *(f"{step['query_ms'][name]:.2f}" for name in questions),
        ]
        for step in found["growth"]
    ]  # fmt: skip
    yield table([*head, *(f"{name}, ms" for name in questions)], rows)
    lag = found["sealing_lag"]
    verified = ", ".join(
        f"{rate:,} rows/s with {jobs} process{'es' if jobs != '1' else ''}"
        for jobs, rate in found["verify_rows_per_s_by_jobs"].items()
    )
    yield (
        f"While {lag['rows_per_s']:,} rows a second were written into a store of "
        f"{lag['beside']:,} rows, the oldest row that waited for "
        f"its seal had waited {lag['median_s']:.2f} s (median), {lag['max_s']:.2f} s (most). "
        f"Verification of {found['verified_rows']:,} rows: {verified}."
    )


def viewer(results: Results) -> Iterator[str]:
    found = results["viewer"]
    people = ("auditor", "tenant")
    rows = [
        (f"`{query}`", *(
            f"{found[who]['pages'][query][what]['median']:.0f} / "
            f"{found[who]['pages'][query][what]['p95']:.0f}"
            for who in people for what in ("first_ms", "counts_ms")
        ))
        for query in found["auditor"]["pages"]
    ]  # fmt: skip
    head = [f"{who}: {what}" for who in people for what in ("first rows", "counts")]
    yield (
        f"{found['rows']:,} records; each query {found['rounds']} times, median / 95th percentile "
        "in ms. Counts are total, bars and values, after the rows."
    )
    yield table(["query", *head], rows)
    others = [
        ("record page with its verification, ms", "record_ms"), ("actor page, ms", "actor_ms"),
    ]  # fmt: skip
    entries = [
        (
            what,
            *(f"{found[who][key]['median']:.0f} / {found[who][key]['p95']:.0f}" for who in people),
        )
        for what, key in others
    ]
    entries += [
        (f"export as {form}, rows/s",
         *(f"{found[who]['export_rows_per_s'][form]:,.0f}" for who in people))
        for form in ("csv", "ndjson")
    ]  # fmt: skip
    entries.append(
        ("memory at its peak, MB", *(f"{found[who]['memory_mb']:.0f}" for who in people))
    )
    entries.append(
        ("the log's tree, read at the start, s", *(f"{found[who]['tree_s']:.1f}" for who in people))
    )
    yield table(["", *people], entries)


def micro(results: Results) -> Iterator[str]:
    whole = None
    case = results.get("request", {}).get("scenarios", {}).get("write/1")
    if case and "audit:request_response" in case["variants"]:
        whole = case["variants"]["audit:request_response"]["cpu_us"]["median"]
    rows = []
    for name, seen in results["micro"]["steps"].items():
        share = f"{seen['median'] / whole:.1%}" if whole else "–"
        rows.append((name, f"{seen['median']:.1f}", f"{seen['low']:.1f}–{seen['high']:.1f}", share))
    yield table(("step", "µs", "quartiles", "of a recorded write"), rows)


def instructions(results: Results) -> Iterator[str]:
    rows = []
    for entries in results["instructions"].values():
        counts = {key: seen["instructions"] for key, seen in entries["variants"].items()}
        telemetry = counts["contrib"] - counts["plain"]
        for key, seen in entries["variants"].items():
            row = [
                entries["title"] if key == "plain" else "",
                seen["title"],
                _thousands(counts[key]),
            ]
            if key == "plain":
                row += ["–", "–", "–"]
            elif key == "contrib":
                row += [_thousands(telemetry), "–", "–"]
            else:
                added = counts[key] - counts["contrib"]
                ratios = (added / telemetry, counts[key] / counts["contrib"])
                row += [_thousands(added), *(f"{ratio:.2f}" for ratio in ratios)]
            rows.append(row)
    head = ("", "", "thousand instructions", "of these added", "x what OpenTelemetry adds",
            "x OpenTelemetry")  # fmt: skip
    yield table(head, rows)


def _thousands(count: float) -> str:
    return f"{count / 1000:,.0f}"


def profile(results: Results) -> Iterator[str]:
    for case, seen in results["profile"].items():
        yield (
            f"**{case}**: {seen['ours']:.1%} of the main thread's {seen['samples']:,} samples "
            "are in otel-audit, and beneath it:"
        )
        rows = [(f"`{name}`", f"{share:.1%}") for name, share in seen["within"].items()]
        yield table(("function, with all that it calls", "of the request"), rows)
        if seen.get("delivery"):
            yield (
                "Beside it the thread that delivers was at work in as many samples as "
                f"{seen['delivery']:.1%} of the main thread's:"
            )
            beside = [
                (f"`{name}`", f"{share:.1%}") for name, share in seen["within_delivery"].items()
            ]
            yield table(("function of the delivery", "of the main thread's samples"), beside)
