"""Dashboards and alert rules under docs/dashboards; run this file to write them anew."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef

FOLDER: Final = Path(__file__).parents[1] / "docs" / "dashboards"
_METRIC: Final = re.compile(r"\baudit_[a-z_]+\b")
_OF_A_HISTOGRAM: Final = re.compile(r"_(?:bucket|count|sum)$")


@dataclass(frozen=True)
class Rule:
    """One alert.

    Attributes:
        name: Its name.
        expression: When it is true.
        lasting: For how long it must be.
        severity: ``page``: somebody gets up; ``ticket``: somebody looks tomorrow.
        summary: What is wrong.
        act: What to do.
        series: Series of its test, each with values a minute apart, with which it fires; none: it
            fires where there is nothing.
        quiet: Series with which it does not.
    """

    name: str
    expression: str
    lasting: str
    severity: str
    summary: str
    act: str
    series: Mapping[str, str]
    quiet: Mapping[str, str]


def _counter(metric: str) -> tuple[dict[str, str], dict[str, str]]:
    return {metric: "0+1x60"}, {metric: "5+0x60"}


def _rises(metric: str, within: str) -> str:
    return f"increase({metric}[{within}]) > 0"


_DROPPED, _NOT_DROPPED = _counter("audit_records_dropped_total")
_REDACTION, _NO_REDACTION = _counter("audit_redaction_errors_total")
_ANCHOR, _NO_ANCHOR = _counter("audit_seal_publish_failures_total")
_QUARANTINE, _NO_QUARANTINE = (
    {"audit_store_quarantined_records": "0+1x200"},
    {"audit_store_quarantined_records": "7+0x200"},
)
_PARKED, _NOT_PARKED = _counter("audit_destination_parked_total")
_ALTERED, _NOT_ALTERED = _counter("audit_destination_altered_total")

RULES: Final = (
    Rule("AuditStoreDown", "increase(audit_export_retries_total[2m]) > 0 and increase(audit_records_exported_total[2m]) == 0",
         "2m", "page", "Records do not reach the store",
         "Nothing is lost as long as the spool has room: bring the store back.",
         {"audit_export_retries_total": "0+3x60", "audit_records_exported_total": "9+0x60"},
         {"audit_export_retries_total": "0+3x60", "audit_records_exported_total": "0+9x60"}),
    Rule("AuditSpoolFillsUp", "audit_spool_bytes / (audit_spool_limit_bytes > 0) > 0.8",
         "5m", "page", "The spool has less than a fifth of its room left",
         "At its bound requests are refused, or records lost, as OTEL_AUDIT_SPOOL_FULL says.",
         {"audit_spool_bytes": "90+0x60", "audit_spool_limit_bytes": "100+0x60"},
         {"audit_spool_bytes": "70+0x60", "audit_spool_limit_bytes": "100+0x60"}),
    Rule("AuditRecordsWait", "audit_spool_oldest_age_seconds > 300", "1m", "ticket",
         "The oldest record has waited for more than five minutes", "See whether the store is slow or away.",
         {"audit_spool_oldest_age_seconds": "400+60x60"}, {"audit_spool_oldest_age_seconds": "20+0x60"}),
    Rule("AuditRecordsLost", _rises("audit_records_dropped_total", "10m"), "0m", "page",
         "Records are lost", "The log has each one; the trail has a gap where it was.", _DROPPED, _NOT_DROPPED),
    Rule("AuditRedactionFails", _rises("audit_redaction_errors_total", "10m"), "0m", "ticket",
         "Values are withheld, as redacting them failed", "The log names the place.", _REDACTION, _NO_REDACTION),
    Rule("AuditSealLags", "audit_seal_lag_seconds > 60", "2m", "page",
         "Rows wait for their seal for more than a minute", "See whether `otel-audit seal` runs.",
         {"audit_seal_lag_seconds": "100+60x60"}, {"audit_seal_lag_seconds": "5+0x60"}),
    # a sealer that is gone has no lag
    Rule("AuditSealerAbsent", "absent(audit_seal_lag_seconds)", "15m", "page", "No process that seals is known",
         "Let an application, `otel-audit serve --seal` or `otel-audit seal` run with metrics; rows that are not sealed are not proved.",
         {}, {"audit_seal_lag_seconds": "0+0x60"}),
    Rule("AuditAnchorFails", _rises("audit_seal_publish_failures_total", "15m"), "15m", "ticket",
         "Checkpoints are not published", "Without anchors an old copy of the store passes for the original.",
         _ANCHOR, _NO_ANCHOR),
    Rule("AuditTampered", "audit_verify_ok == 0", "0m", "page", "The verification of the trail has failed",
         "Run `otel-audit verify`; keep the store as it is.", {"audit_verify_ok": "0+0x60"}, {"audit_verify_ok": "1+0x60"}),
    Rule("AuditNotVerified", "time() - audit_verify_timestamp_seconds > 93600", "0m", "ticket",
         "The trail was not verified for 26 hours", "See whether `otel-audit verify --metrics` runs each day.",
         {"audit_verify_timestamp_seconds": "-100000+0x60"}, {"audit_verify_timestamp_seconds": "0+0x60"}),
    # the one above is silent as long as there is no time at all to compare with
    Rule("AuditNeverVerified", "absent(audit_verify_timestamp_seconds)", "1h", "ticket",
         "No verification of the trail is known",
         "Run `otel-audit verify --metrics FILE` each day, where node exporter reads the file; gaps, quarantine and "
         "partitions are not watched before that.",
         {}, {"audit_verify_timestamp_seconds": "0+0x200"}),
    Rule("AuditQuarantineGrows", "delta(audit_store_quarantined_records[1h]) > 0", "0m", "ticket",
         "Records are put into quarantine", "`otel-audit quarantine` lists them with their reasons.",
         _QUARANTINE, _NO_QUARANTINE),
    Rule("AuditGaps", "audit_store_missing_numbers > 0", "15m", "page", "Numbers are missing from the trail",
         "`otel-audit gaps` names the producers.", {"audit_store_missing_numbers": "2+0x60"}, {"audit_store_missing_numbers": "0+0x60"}),
    Rule("AuditPartitionMissing", "audit_store_partitions_ahead_seconds < 604800", "1h", "ticket",
         "A month begins within a week, and has no partition", "Run `otel-audit maintain`.",
         {"audit_store_partitions_ahead_seconds": "500000+0x200"}, {"audit_store_partitions_ahead_seconds": "900000+0x200"}),
    Rule("AuditStreamParks", _rises("audit_destination_parked_total", "15m"), "0m", "ticket",
         "A destination refuses records, which are parked", "`otel-audit stream parked NAME` has the reasons.", _PARKED, _NOT_PARKED),
    Rule("AuditStreamLags", "audit_destination_lag_seconds > 300", "5m", "ticket",
         "A destination gets records more than five minutes after they were sealed",
         "Its log says what the destination answers; nothing is lost.",
         {"audit_destination_lag_seconds": "400+60x60"}, {"audit_destination_lag_seconds": "3+0x60"}),
    Rule("AuditStreamEnded", "audit_destination_refused > 0", "0m", "page",
         "A stream has ended, as its position does not fit the log",
         "Was the store restored? `otel-audit stream rewind` says from where to go on.",
         {"audit_destination_refused": "1+0x60"}, {"audit_destination_refused": "0+0x60"}),
    Rule("AuditStreamAltered", _rises("audit_destination_altered_total", "15m"), "0m", "page",
         "A row that was sent is not what was sealed", "Run `otel-audit verify`; keep the store as it is.",
         _ALTERED, _NOT_ALTERED),
)  # fmt: skip


def rules() -> str:
    """The rules, as Prometheus reads them."""
    told = [
        {
            "alert": one.name, "expr": one.expression, "for": one.lasting,
            "labels": {"severity": one.severity},
            "annotations": {"summary": one.summary, "description": one.act},
        }
        for one in RULES
    ]  # fmt: skip
    return _yaml({"groups": [{"name": "otel-audit", "rules": told}]})


def rule_tests() -> str:
    """A test of each rule, as promtool runs it: it fires when it must, and not otherwise."""
    tests: list[dict[str, Any]] = []
    for one in RULES:
        expected = {
            "exp_labels": {"severity": one.severity} | ({"instance": "a"} if one.series else {}),
            "exp_annotations": {"summary": one.summary, "description": one.act},
        }  # fmt: skip
        for series, alerts in ((one.series, [expected]), (one.quiet, [])):
            tests.append({
                "interval": "1m",
                "input_series": [
                    {"series": f'{name}{{instance="a"}}', "values": values}
                    for name, values in series.items()
                ],
                "alert_rule_test": [
                    {"eval_time": "90m" if one.lasting == "1h" or "x200" in str(series) else "40m",
                     "alertname": one.name, "exp_alerts": alerts}
                ],
            })  # fmt: skip
    return _yaml({"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests})


def _yaml(told: Any) -> str:
    head = "# Made by tests/make_dashboards.py; change that, and run it.\n"
    return head + yaml.safe_dump(told, sort_keys=False, width=100)


_PROMETHEUS: Final = DataSourceRef(type_val="prometheus", uid="${prometheus}")
_STORE: Final = DataSourceRef(type_val="grafana-postgresql-datasource", uid="${store}")


def _line(title: str, *expressions: tuple[str, str], unit: str = "short") -> timeseries.Panel:
    panel = timeseries.Panel().title(title).unit(unit).datasource(_PROMETHEUS)
    for number, (expression, legend) in enumerate(expressions):
        query = prometheus.Dataquery().expr(expression).legend_format(legend)
        panel = panel.with_target(query.ref_id(chr(ord("A") + number)))
    return panel.height(8).span(8)


def _number(title: str, expression: str, unit: str = "short") -> stat.Panel:
    query = prometheus.Dataquery().expr(expression).ref_id("A")
    return (
        stat.Panel()
        .title(title)
        .unit(unit)
        .datasource(_PROMETHEUS)
        .with_target(query)
        .height(4)
        .span(4)
    )


class Sql(variants.Dataquery):
    """A question to the store, as Grafana's PostgreSQL source has it."""

    def __init__(self, text: str, form: str = "time_series") -> None:
        """Remember the question.

        Args:
            text: The statement.
            form: How Grafana reads the rows.
        """
        self._told = {
            "refId": "A",
            "format": form,
            "rawQuery": True,
            "rawSql": text,
            "editorMode": "code",
        }

    def build(self) -> Sql:
        """It is built already."""
        return self

    def to_json(self) -> dict[str, object]:
        """As JSON."""
        return self._told


def _sql_line(title: str, text: str) -> timeseries.Panel:
    return (
        timeseries.Panel().title(title).datasource(_STORE).with_target(Sql(text)).height(9).span(12)
    )


_SINCE: Final = "hour >= $__timeFrom() AND hour < $__timeTo()"
ACTIVITY: Final = {
    "Records by outcome": (
        "SELECT $__timeGroupAlias(hour, '1h'), outcome AS metric, sum(records) AS records "
        f"FROM audit.rollup WHERE {_SINCE} GROUP BY 1, 2 ORDER BY 1"
    ),
    "Failures": (
        "SELECT $__timeGroupAlias(hour, '1h'), event_name AS metric, sum(records) AS records "
        f"FROM audit.rollup WHERE {_SINCE} AND outcome = 'failure' GROUP BY 1, 2 ORDER BY 1"
    ),
    "Records by event": (
        "SELECT $__timeGroupAlias(hour, '1h'), event_name AS metric, sum(records) AS records "
        f"FROM audit.rollup WHERE {_SINCE} GROUP BY 1, 2 ORDER BY 1"
    ),
    "Looks at the trail": (
        "SELECT $__timeGroupAlias(hour, '1h'), event_name AS metric, sum(records) AS records "
        f"FROM audit.rollup WHERE {_SINCE} AND event_name IN ('audit.viewed', 'audit.exported') "
        "GROUP BY 1, 2 ORDER BY 1"
    ),
}


def delivery_dashboard() -> str:
    """Whether records reach the store, are sealed, verified and sent on."""
    board = (
        dashboard.Dashboard("Audit: delivery").uid("otel-audit-delivery").tags(["otel-audit"])
        .time("now-6h", "now").refresh("1m")
        .with_variable(dashboard.DatasourceVariable("prometheus").type("prometheus").label("Prometheus"))
        .with_row(dashboard.Row("Now"))
        .with_panel(_number("Records that wait", "sum(audit_queue_depth)"))
        .with_panel(_number("Oldest of them", "max(audit_spool_oldest_age_seconds)", "s"))
        .with_panel(_number("Lost", "sum(audit_records_dropped_total)"))
        .with_panel(_number("Seal lag", "max(audit_seal_lag_seconds)", "s"))
        .with_panel(_number("Verified", "min(audit_verify_ok)", "bool_yes_no"))
        .with_panel(_number("Missing numbers", "max(audit_store_missing_numbers)"))
        .with_row(dashboard.Row("From the applications"))
        .with_panel(_line("Records", ("sum(rate(audit_records_emitted_total[5m]))", "made"),
                          ("sum(rate(audit_records_exported_total[5m]))", "stored"), unit="cps"))
        .with_panel(_line("Spool", ("audit_spool_bytes", "{{instance}}"), ("max(audit_spool_limit_bytes)", "bound"), unit="bytes"))
        .with_panel(_line("Writing takes", (
            "histogram_quantile(0.99, sum by (le) (rate(audit_export_duration_seconds_bucket[5m])))", "99 %"), unit="s"))
        .with_panel(_line("Errors", ("sum(rate(audit_capture_errors_total[5m]))", "capture"),
                          ("sum(rate(audit_redaction_errors_total[5m]))", "redaction"),
                          ("sum(rate(audit_spool_errors_total[5m]))", "spool"),
                          ("sum(rate(audit_export_retries_total[5m]))", "tries again"), unit="cps"))
        .with_panel(_line("Refused requests", ("sum(rate(audit_requests_refused_total[5m]))", "refused"), unit="cps"))
        .with_panel(_line("Quarantine", ("sum(increase(audit_records_quarantined_total[1h]))", "by applications"),
                          ("sum(increase(audit_sink_records_quarantined_total[1h]))", "by the OTLP sink")))
        .with_row(dashboard.Row("The OTLP sink and the ledger"))
        .with_panel(_line("Sink", ("sum(rate(audit_sink_records_stored_total[5m]))", "stored"),
                          ("sum(rate(audit_sink_requests_refused_total[5m]))", "requests refused"), unit="cps"))
        .with_panel(_line("Bytes under way", ("audit_sink_in_flight_bytes", "{{instance}}"), unit="bytes"))
        .with_panel(_line("Sealed", ("sum(rate(audit_seal_rows_total[5m]))", "rows"),
                          ("sum(rate(audit_seal_publish_failures_total[5m]))", "anchor failures"), unit="cps"))
        .with_row(dashboard.Row("Streams"))
        .with_panel(_line("Sent", ("sum by (audit_destination_name) (rate(audit_destination_sent_total[5m]))", "{{audit_destination_name}}"), unit="cps"))
        .with_panel(_line("Behind", ("max by (audit_destination_name) (audit_destination_behind)", "{{audit_destination_name}}")))
        .with_panel(_line("Parked", ("sum by (audit_destination_name) (audit_destination_parked_total)", "{{audit_destination_name}}")))
    )  # fmt: skip
    return _json(board)


def activity_dashboard() -> str:
    """What happens in the trail, from the counts by the hour: no record is read."""
    board = (
        dashboard.Dashboard("Audit: activity").uid("otel-audit-activity").tags(["otel-audit"])
        .time("now-7d", "now")
        .with_variable(dashboard.DatasourceVariable("store").type("grafana-postgresql-datasource").label("Audit store"))
    )  # fmt: skip
    for title, text in ACTIVITY.items():
        board = board.with_panel(_sql_line(title, text))
    return _json(board)


def _json(board: dashboard.Dashboard) -> str:
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


FILES: Final = {
    "alerts.yml": rules,
    "alerts.test.yml": rule_tests,
    "delivery.json": delivery_dashboard,
    "activity.json": activity_dashboard,
}


def metrics() -> set[str]:
    """Every metric that a rule or a dashboard names."""
    texts = [one.expression for one in RULES] + re.findall(r'"expr": "(.*)"', delivery_dashboard())
    found = {name for text in texts for name in _METRIC.findall(text)}
    return {_OF_A_HISTOGRAM.sub("", name) for name in found} - {"audit_destination_name"}


if __name__ == "__main__":
    for name, make in FILES.items():
        (FOLDER / name).write_text(make())
