"""Reports as HTML that prints well, as CSV, and as JSON."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Final, Literal

import msgspec

from otel_audit._util.printable import ascii_json, visible
from otel_audit_postgres.exports.formats import csv_lines, plain_csv_lines
from otel_audit_postgres.reports.make_report import Report
from otel_audit_postgres.reports.model import AT_ONCE, ReportValue

ReportFormat = Literal["html", "csv", "json"]
MOST_PRINTED: Final = 5_000
"""Rows in HTML: some hundred pages. The other forms have all of them."""

_STYLE: Final = """
@page { size: A4 landscape; margin: 14mm 12mm 16mm;
  @bottom-left { content: FOOT; font: 7pt sans-serif; color: #555; }
  @bottom-right { content: counter(page) " / " counter(pages); font: 7pt sans-serif;
    color: #555; } }
* { box-sizing: border-box; }
body { font: 9pt/1.4 "Liberation Sans", Arial, sans-serif; color: #111; background: #fff;
  margin: 0 auto; max-width: 270mm; padding: 6mm; }
@media print { body { padding: 0; max-width: none; } }
h1 { font-size: 16pt; margin: 0 0 2mm; }
h2 { font-size: 11pt; margin: 6mm 0 2mm; break-after: avoid; }
p { margin: 0 0 3mm; max-width: 190mm; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 4mm; margin: 0 0 4mm;
  font-size: 8pt; }
dt { color: #444; } dd { margin: 0; overflow-wrap: anywhere; }
.note { border-left: 1.2mm solid #b45309; padding: 1mm 3mm; background: #fff7ed; max-width: none; }
table { border-collapse: collapse; width: 100%; font-size: 7.5pt; line-height: 1.3; }
thead { display: table-header-group; }
tr { break-inside: avoid; }
th, td { text-align: left; vertical-align: top; padding: 0.8mm 1.4mm;
  border-bottom: 0.2mm solid #bbb; }
td.long { overflow-wrap: anywhere; } .time { white-space: nowrap; }
th { background: #eee; border-bottom: 0.4mm solid #555; overflow-wrap: normal; hyphens: manual; }
td.number { font-variant-numeric: tabular-nums; }
code, pre { font: 7.5pt/1.35 "Liberation Mono", monospace; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; border: 0.2mm solid #bbb; padding: 2mm; margin: 0; }
.proof { break-inside: avoid; }
.proof p { margin-top: 3mm; }
td.bad { color: #b00020; font-weight: bold; }
"""
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="robots" content="noindex">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
"""
# an escape of JSON, or a text that begins as a formula does: a pattern takes ten times as long
_NOT_HARMLESS: Final = (b"\\", b"\x7f", b'"=', b'"+', b'"-', b'"@')
# what could end a string of CSS, or the element that it stands in
_NOT_PLAIN: Final = re.compile(r"[^\w .:,|()…-]")
_decode_lines: Final = msgspec.json.Decoder().decode_lines
_BAD: Final = ("TAMPERED", "YES", "GAPS")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z|[\d.]{1,12} s")
_PERIOD: Final = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z to \d{4}-\d\d-\d\dT[\d:.]{12}Z")
_LONG: Final = re.compile(r"[^\s-]{24}")
"""A word that may be broken anywhere, or the table would not fit the page."""


def pieces(report: Report, form: ReportFormat) -> Iterator[bytes]:
    """Render a report in pieces."""
    return _FORMS[form](report)


def _html(report: Report) -> Iterator[bytes]:
    style = _STYLE.replace("FOOT", _foot_line(report))
    yield _PAGE.format(title=_safe(report.definition.title), style=style).encode()
    yield from html_body(report)
    yield b"</body>\n</html>\n"


def _foot_line(report: Report) -> str:
    """The footer of each printed page, as a CSS string."""
    line = (
        f"{report.definition.title} | {report.head['period']} | root {report.head['root'][:16]}… | "
        f"{report.head['generator']}"
    )
    return f'"{_NOT_PLAIN.sub(" ", line)}"'


def html_body(report: Report) -> Iterator[bytes]:
    """The report's HTML, without the page around it."""
    definition = report.definition
    head = "".join(
        f"<dt>{_safe(name)}</dt><dd>{_safe(text)}</dd>\n" for name, text in report.head.items()
    )
    notes = "".join(f'<p class="note">{_safe(note)}</p>\n' for note in report.notes)
    yield (
        f"<h1>{_safe(definition.title)}</h1>\n<p>{_safe(definition.about)}</p>\n"
        f"<dl>\n{head}</dl>\n{notes}"
    ).encode()
    if report.nothing is not None:
        yield f'<p class="note">{_safe(report.nothing)}</p>\n'.encode()
    else:
        yield from _table(report)
    yield _foot(report)


def _table(report: Report) -> Iterator[bytes]:
    cells = "".join(f'<th scope="col">{_safe(name)}</th>' for name in report.definition.columns)
    yield f"<table>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n".encode()
    rows = report.each(MOST_PRINTED)
    while batch := list(islice(rows, AT_ONCE)):
        yield "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in batch).encode()
    yield b"</tbody>\n</table>\n"
    if report.rows > MOST_PRINTED:
        yield (
            f'<p class="note">These are the first {MOST_PRINTED} of {report.rows} rows; CSV and '
            "JSON have all of them.</p>\n"
        ).encode()


def _cell(value: ReportValue) -> str:
    if isinstance(value, int):
        return f'<td class="number">{value}</td>'
    shown = visible(value or "")
    kind = ""
    if shown.startswith(_BAD):
        kind = "bad"
    elif _TIME.fullmatch(shown):
        kind = "time"
    elif _PERIOD.fullmatch(shown):
        begin, end = shown.split(" to ")
        return f'<td><span class="time">{begin}</span> to <span class="time">{end}</span></td>'
    elif _LONG.search(shown):
        kind = "long"
    opened = f'<td class="{kind}">' if kind else "<td>"
    return f"{opened}{html.escape(shown)}</td>"


def _foot(report: Report) -> bytes:
    lines = "".join(
        f"<tr><td>{_safe(one.name)}</td><td>{one.strength}</td><td>{_safe(one.why)}</td></tr>\n"
        for one in report.definition.controls
    )
    return (
        "<h2>Controls that this supports</h2>\n<p>An auditor decides whether a "
        "control is met; a report shows what the trail holds.</p>\n<table>\n<thead><tr>"
        '<th scope="col">control</th><th scope="col">support</th><th scope="col">why</th>'
        f"</tr></thead>\n<tbody>\n{lines}</tbody>\n</table>\n{_proof(report)}"
    ).encode()


def _proof(report: Report) -> str:
    """The section on checking the report, with the checkpoint."""
    steps = "".join(
        f"<tr><td>{_safe(what)}</td><td><code>{_safe(how)}</code></td></tr>\n"
        for what, how in report.checks
    )
    note = ""
    if report.note:
        lines = "\n".join(map(_safe, report.note.splitlines()))
        note = (
            "<p>The checkpoint as it was signed: log, leaves, root, then a line for each "
            f"signature.</p>\n<pre>{lines}</pre>\n"
        )
    return (
        '<section class="proof">\n<h2>How to check this report</h2>\n<table>\n<thead><tr>'
        '<th scope="col">that</th><th scope="col">by</th></tr></thead>\n'
        f"<tbody>\n{steps}</tbody>\n</table>\n{note}</section>\n"
    )


def _safe(text: str) -> str:
    """Escaped text without control and bidi characters."""
    return html.escape(visible(text))


def _csv(report: Report) -> Iterator[bytes]:
    head = [*_head_rows(report)]
    yield b"".join(csv_lines([(f"# {name}: {visible(text)}",)]) for name, text in head)
    yield csv_lines([report.definition.columns])
    for lines in report.lines():
        joined = b"".join(lines)
        rows = _decode_lines(joined)
        if not joined.isascii() or any(mark in joined for mark in _NOT_HARMLESS):
            rows = [[visible(one) if type(one) is str else one for one in row] for row in rows]
            yield csv_lines(rows)
        else:
            yield plain_csv_lines(rows)


def _head_rows(report: Report) -> Iterator[tuple[str, str]]:
    yield from report.head.items()
    for note in report.notes:
        yield "note", note
    if report.nothing is not None:
        yield "note", report.nothing
    for one in report.definition.controls:
        yield "control", f"{one.name} ({one.strength}): {one.why}"
    for what, how in report.checks:
        yield "check", f"{what}: {how}"


def _json(report: Report) -> Iterator[bytes]:
    definition = report.definition
    document = {
        "title": definition.title,
        "about": definition.about,
        "head": report.head,
        "notes": [*report.notes],
        "nothing": report.nothing,
        "controls": [
            {"name": one.name, "strength": one.strength, "why": one.why}
            for one in definition.controls
        ],
        "checks": [{"that": what, "by": how} for what, how in report.checks],
        "checkpoint": report.note or None,
        "columns": definition.columns,
    }
    text = json.dumps(document, indent=2)
    yield ascii_json(text[: -len("\n}")] + ',\n  "rows": [').encode()
    before = b""
    # each row is the line that was hashed, but for what is beyond ASCII
    for lines in report.lines():
        joined = b"".join(lines).removesuffix(b"\n").replace(b"\n", b",\n    ")
        if joined.isascii():
            # neither has it control characters: JSON lines have them as escapes
            yield b"%b\n    %b" % (before, joined)
        else:
            text = joined.decode("utf-8", "surrogatepass")
            yield b"%b\n    %b" % (before, ascii_json(text).encode())
        before = b","
    yield b"\n  ]\n}\n" if report.rows else b"]\n}\n"


_FORMS: Final[Mapping[ReportFormat, Callable[[Report], Iterator[bytes]]]] = {
    "html": _html,
    "csv": _csv,
    "json": _json,
}
