"""How the result looks: for a terminal with colours, and plain where there is none."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from demo.client import Sent
from demo.findings import Evidence
from demo.sealing import Sealing
from demo.secrets_sent import SecretsSent
from demo.store import Attempt, Row
from demo.traffic import CONTROL

_WIDEST = 116
_NARROW = 80
"""Columns where there is no terminal that says how many it has."""
_MOST = 25
_INDENT = (0, 0, 0, 2)
_UUID = re.compile(r"\b([0-9a-f]{8})(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
_LEGEND = (
    "● [dim]the request's trace was sampled and exported[/]   ○ [dim]it was sampled away[/]",
    "[red]↺[/] [dim]the database rolled it back[/]",
)
_OUTCOMES = {"success": "green", "failure": "red", "unknown": "yellow"}


def make_console() -> Console:
    """As wide as the terminal, within reason."""
    console = Console(highlight=False)
    if not console.is_terminal:
        return Console(highlight=False, width=_NARROW)
    columns = shutil.get_terminal_size((_NARROW, 40)).columns
    return Console(highlight=False, width=min(columns, _WIDEST))


def _is_narrow(console: Console) -> bool:
    return console.width < _WIDEST


def show_title(console: Console) -> None:
    console.print()
    _rule(console, "otel-audit: an audit trail without a line of code")


def _rule(console: Console, title: str) -> None:
    console.rule(f"[bold]{title}", align="left", characters="-" if _is_ascii(console) else "─")


def _is_ascii(console: Console) -> bool:
    return not console.encoding.startswith("utf")


def show_step(console: Console, seconds: float, text: str) -> None:
    console.print(f" [green]✓[/] {text} [dim]({seconds:.1f} s)[/]", soft_wrap=True)


def show_section(console: Console, number: int, title: str, explanation: str = "") -> None:
    console.print()
    console.print(f"[bold cyan]{number}  {title}[/]")
    if explanation:
        console.print(Padding(Text.from_markup(explanation, style="dim"), (0, 0, 0, 3)))


def show_rows(console: Console, rows: Sequence[Row], evidence: Evidence) -> None:
    """The audit rows of the story, one a line."""
    narrow = _is_narrow(console)
    tenant = () if narrow else ("tenant",)
    table = _table(
        console, "time UTC", "actor", *tenant, "event", "target", "outcome", "stat", "trace"
    )
    for row in rows:
        target = _UUID.sub(r"\1", row.target) or "-"
        table.add_row(
            _time(row, narrow=narrow),
            _actor(row, narrow=narrow),
            *(() if narrow else (row.tenant or "-",)),
            row.event_name,
            _shortened(target, 13) if narrow else target,
            _outcome(row),
            str(row.status_code or "-"),
            _trace(row, narrow=narrow),
        )
    console.print(Padding(table, _INDENT, expand=False))
    others = len(evidence.rows) - len(rows)
    console.print(f"   [dim]and {others} more rows, of ordinary traffic[/]")
    for line in _LEGEND:
        console.print(f"   {line}")


def show_lost_change(console: Console, row: Row) -> None:
    who, outcome = row.actor, f"[red]{row.outcome} ↺[/]"
    _paragraph(
        console,
        f"Look at the [bold]{row.status_code}[/] that is a {outcome}: {who} was told that"
        " it is done, and then the database refused the COMMIT."
        " An access log calls that a success. The audit row does not.",
    )


def _paragraph(console: Console, text: str) -> None:
    console.print()
    console.print(Padding(Text.from_markup(text), (0, 0, 0, 3)))


def show_opened(console: Console, row: Row) -> None:
    """One row with all that is in it."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _facts(row):
        grid.add_row(name, value)
    title = f"[bold]{row.event_name}[/]  [dim]{row.id}[/]"
    panel = Panel(grid, title=title, title_align="left", border_style="dim")
    console.print(Padding(panel, _INDENT))


def show_history(console: Console, rows: Sequence[Row], entity: str) -> None:
    """What happened to one thing."""
    narrow = _is_narrow(console)
    last = () if narrow else (f"what became of {entity}",)
    table = _table(console, "time UTC", "actor", "event", "outcome", "stat", *last)
    for row in rows:
        changes = _changes_of(row, entity) or Text("nothing", style="dim")
        table.add_row(
            _time(row, narrow=narrow),
            _actor(row, narrow=narrow),
            row.event_name,
            _outcome(row),
            str(row.status_code or "-"),
            *(() if narrow else (changes,)),
        )
    console.print(Padding(table, _INDENT, expand=False))
    if not narrow:
        return
    console.print(f"\n   [dim]what became of {entity}, one after the other:[/]")
    for row in rows:
        if changes_of_it := _changes_of(row, entity):
            line = Text(f"{row.event_name}  ").append_text(changes_of_it)
            console.print(Padding(line, (0, 0, 0, 3)))


def show_attempts(console: Console, attempts: Sequence[Attempt]) -> None:
    narrow = _is_narrow(console)
    table = _table(console, "who", "tries", "PostgreSQL answers")
    previous = ""
    for attempt in attempts:
        answer = Text("done", style="bold red")
        if attempt.refusal is not None:
            # the reason is behind the colon, and always the same words before it
            said = attempt.refusal.rpartition(": ")[2] if narrow else attempt.refusal
            answer = Text.assemble(("refused  ", "green"), (said, "dim"))
        table.add_row(attempt.who if attempt.who != previous else "", attempt.what, answer)
        previous = attempt.who
    console.print(Padding(table, _INDENT, expand=False))


def show_searches(console: Console, evidence: Evidence, secrets: SecretsSent) -> None:
    kinds = ", ".join(f"{count} {_plural(kind, count)}" for kind, count in secrets.kinds().items())
    console.print(f"   Sent in this run: {kinds}.")
    table = _table(console, "searched", "size", "found")
    for searched in filter(lambda one: one.size, evidence.searches):
        found = Counter(searched.found)
        table.add_row(
            searched.place,
            f"{searched.size / 1000:,.0f} kB",
            Text(", ".join(f"{n} {_plural(k, n)}" for k, n in found.items()), style="bold red")
            if found
            else Text("none", style="green"),
        )
    control = "found" if evidence.control_found else "NOT FOUND"
    table.add_row(f"[dim]control: “{CONTROL}”, no secret[/]", "", f"[dim]{control}[/]")
    console.print(Padding(table, _INDENT, expand=False))


def show_sampling(console: Console, evidence: Evidence) -> None:
    stored = sum(1 for row in evidence.action_rows if row.phase == "completed")
    arrived = evidence.receiver.server_spans
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "left", "left", "right"):
        table.add_column(justify=justify)
    bar = 0 if _is_narrow(console) else 30
    table.add_row(*_share("server spans in the trace backend", len(arrived), evidence.sent, bar))
    table.add_row(*_share("rows in the audit store", stored, evidence.audited, bar))
    console.print(Padding(table, (0, 0, 0, 3), expand=False))
    _paragraph(
        console,
        f"[dim]{len(evidence.linked_spans)} of the {len(arrived)} server spans are of audited"
        f" requests: {len(evidence.enriched_spans)} of these say who did it (audit.actor.id).[/]",
    )


def show_sealing(console: Console, sealing: Sealing) -> None:
    report, bad = sealing.report, sealing.first_bad
    table = Table.grid(padding=(0, 2))
    table.add_row("otel-audit seal", Text(sealing.sealed, style="dim"))
    table.add_row(
        "otel-audit verify",
        Text.assemble(
            ("OK  ", "green") if report["ok"] else ("TAMPERED  ", "bold red"),
            (f"{report['rows_checked']} rows, signed up to row {report['signed_size']}", "dim"),
        ),
    )
    table.add_row("a superuser, guards off", Text(f"actor of {sealing.changed_row} changed", "dim"))
    table.add_row(
        "otel-audit verify",
        Text.assemble(
            ("found  ", "green") if bad else ("NOT FOUND  ", "bold red"),
            (f"{bad.get('kind')}: {bad.get('record_id')}: {bad.get('detail')}", "dim"),
        ),
    )
    console.print(Padding(table, (0, 0, 0, 3), expand=False))


def show_next(console: Console, lines: Sequence[tuple[str, str]]) -> None:
    console.print()
    _rule(console, "What to try next")
    for command, meaning in lines:
        console.print(f"  [dim]{meaning}[/]")
        console.print(Text(f"    {command}", style="bold"), soft_wrap=True)
    console.print()


def show_failures(console: Console, failures: Sequence[str]) -> None:
    console.print()
    console.print(f"[bold red]✗ Not as it must be ({len(failures)}):[/]")
    for failure in failures[:_MOST]:
        console.print(f"   - {escape(failure)}", soft_wrap=True)
    if len(failures) > _MOST:
        console.print(f"   - and {len(failures) - _MOST} more")


def show_log(console: Console, log: Path) -> None:
    """The end of what the shop complained of in its log, where the reason may be."""
    console.print("\n[bold]The end of the shop's log, without the requests:[/]")
    lines = log.read_text(errors="replace").splitlines()
    for line in [line for line in lines if not line.startswith("INFO:")][-_MOST:]:
        console.print(f"   [dim]{escape(line)}[/]", soft_wrap=True)


def show_connections(console: Console, lines: Sequence[tuple[str, str]]) -> None:
    """One below the other and never folded, so that they can be copied."""
    console.print()
    _rule(console, "Left running: stop with Ctrl-C")
    for name, command in lines:
        console.print(f"  [cyan]{name}[/]")
        console.print(f"    {escape(command)}", soft_wrap=True)


def _table(console: Console, *columns: str) -> Table:
    box = None if _is_ascii(console) else SIMPLE_HEAD
    table = Table(box=box, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for column in columns:
        table.add_column(
            column, overflow="fold", no_wrap=column in ("time UTC", "actor", "event", "outcome")
        )
    return table


def _outcome(row: Row) -> Text:
    text = Text(row.outcome, style=_OUTCOMES.get(row.outcome, ""))
    if row.transaction_outcome == "rolled_back":
        text.append(" ↺", style="red")
    return text


def _trace(row: Row, *, narrow: bool) -> Text:
    if row.trace_id is None:
        return Text("-")
    sign = "●" if row.trace_sampled else "○"
    return Text(sign if narrow else f"{sign} {row.trace_id[:8]}")


def _time(row: Row, *, narrow: bool) -> str:
    return f"{row.occurred_at:%H:%M:%S.%f}"[: 8 if narrow else 12]


def _actor(row: Row, *, narrow: bool) -> str:
    """Who did it; all addresses of the shop end alike."""
    return row.actor.removesuffix(".example") if narrow else row.actor


def _facts(row: Row) -> list[tuple[str, RenderableType]]:
    record = row.payload
    actor, request = record["actor"], record.get("request", {})
    who = [actor.get("email") or row.actor_id, actor.get("role"), row.actor_id]
    proof = "verified" if actor.get("verified") else "not verified"
    done = [row.action, row.target, row.outcome, f"transaction {row.transaction_outcome}"]
    source = record.get("source", {})
    sampled = "exported" if row.trace_sampled else "sampled away"
    return [
        ("who", f"{' · '.join(filter(None, who))} · {proof}"),
        ("tenant", " · ".join(filter(None, (row.tenant, row.tenant_id)))),
        ("when", f"{row.occurred_at:%Y-%m-%d %H:%M:%S.%f} UTC, for {row.duration_ms:.1f} ms"),
        ("what", " · ".join(filter(None, done))),
        ("from", " · ".join(filter(None, (source.get("address"), source.get("user_agent"))))),
        ("request", _exchange(f"{request.get('method')} {request.get('path')}", request)),
        ("response", _exchange(f"{row.status_code}", record.get("response", {}))),
        ("changes", Group(*(_change(change) for change in row.changes))),
        ("trace", f"{row.trace_id} · {sampled} · request id {row.request_id}"),
        ("stream", f"record {row.sequence_number} of producer {row.producer_id}"),
        ("sha-256", row.content_hash.hex()),
    ]


def _exchange(line: str, part: dict[str, Any]) -> RenderableType:
    body = part.get("body", {})
    content = body.get("content")
    text = "" if content is None else json.dumps(content, ensure_ascii=False)
    return Text.assemble(line, "  ", (_shortened(text, 400) or f"{body.get('absent', '')}", "dim"))


def _change(change: dict[str, Any]) -> Text:
    text = Text(f"{change['operation']} {_reference(change)}  ")
    text.append_text(_values(change))
    return text


def _changes_of(row: Row, entity: str) -> Text | None:
    found = [change for change in row.changes if _reference(change) == entity]
    if not found:
        return None
    return Text("; ").join(
        Text(f"{change['operation']} ").append_text(_values(change)) for change in found
    )


def _values(change: dict[str, Any]) -> Text:
    key = set(change.get("key", ()))
    parts = []
    for column, (before, after) in change.get("values", {}).items():
        if column in key or column.endswith("_id") or (before is None and after is None):
            continue
        part = Text(f"{column} ", style="dim")
        if change["operation"] != "insert":
            part.append(_shown(before), style="red")
        if change["operation"] == "update":
            part.append(" → ", style="dim")
        if change["operation"] != "delete":
            part.append(_shown(after), style="green")
        parts.append(part)
    return Text(", ", style="dim").join(parts)


def _reference(change: dict[str, Any]) -> str:
    name = "".join(f"_{c.lower()}" if c.isupper() else c for c in change["entity"]).lstrip("_")
    return f"{name}:{','.join(str(part) for part in change.get('key', {}).values())}"


def _shown(value: Any) -> str:
    return _shortened(value if isinstance(value, str) else json.dumps(value), 32)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _share(what: str, part: int, whole: Sequence[Sent], bar: int) -> tuple[str, ...]:
    share = part / len(whole) if whole else 0
    filled = round(share * bar)
    of = "audited requests" if all(sent.audited for sent in whole) else "requests"
    return (
        what,
        str(part),
        f"of {len(whole)} {of}",
        f"{'█' * filled}{'░' * (bar - filled)}",
        f"{share:.0%}",
    )


def _plural(kind: str, count: int) -> str:
    return kind if count == 1 else f"{kind}s"
