"""Bars and lines as SVG text: only what the report needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LABELS, ROW = 760, 270, 24
COLOURS = {"ours": "#2563a8", "base": "#8a8f98", "peer": "#c98b2b"}
_LINES = ("#2563a8", "#c98b2b", "#3d8b5f", "#a33b57", "#7257a8", "#8a8f98")


@dataclass(frozen=True)
class Bar:
    """One bar: its value, and the spread around it."""

    label: str
    value: float
    low: float
    high: float
    kind: str = "ours"


def bars(title: str, unit: str, shown: Sequence[Bar], mark: float | None = None) -> str:
    """Horizontal bars from zero, each with its spread; a dashed line at ``mark``."""
    most = max(*(bar.high for bar in shown), mark or 0.0) * 1.12
    room = WIDTH - LABELS - 20
    height = 50 + ROW * len(shown) + 20
    parts = []

    def at(value: float) -> float:
        return LABELS + value / most * room

    for number, bar in enumerate(shown):
        y = 44 + number * ROW
        middle = y + 8
        parts += [
            f'<text x="{LABELS - 8}" y="{y + 12}" text-anchor="end">{escape(bar.label)}</text>',
            (
                f'<rect x="{LABELS}" y="{y}" width="{at(bar.value) - LABELS:.1f}" height="16" '
                f'fill="{COLOURS[bar.kind]}"/>'
            ),
            (
                f'<path d="M{at(bar.low):.1f} {middle}H{at(bar.high):.1f}M{at(bar.low):.1f} '
                f'{middle - 3}v6M{at(bar.high):.1f} {middle - 3}v6" stroke="#222" fill="none"/>'
            ),
            f'<text x="{at(bar.high) + 6:.1f}" y="{y + 12}" class="v">{_number(bar.value)}</text>',
        ]
    if mark is not None:
        parts.append(
            f'<path d="M{at(mark):.1f} 38V{height - 26}" stroke="#222" stroke-dasharray="4 3"/>'
        )
    parts.append(f'<text x="{LABELS}" y="{height - 8}" class="v">{escape(unit)}</text>')
    return _page(title, height, parts)


def lines(
    title: str, unit: str, across: str, series: dict[str, Sequence[tuple[float, float]]]
) -> str:
    """Lines over a linear axis that begins at zero, with a legend."""
    height, left, top = 300, 60, 44
    room, tall = WIDTH - left - 220, height - top - 46
    points = [point for line in series.values() for point in line]
    most_x = max(x for x, _ in points) or 1
    most_y = max(y for _, y in points) * 1.1 or 1
    parts = [f'<path d="M{left} {top}v{tall}h{room}" stroke="#999" fill="none"/>']
    for share in (0.5, 1.0):
        y, x = top + tall * (1 - share), left + room * share
        parts += [
            (
                f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end" class="v">'
                f"{_number(most_y * share)}</text>"
            ),
            (
                f'<text x="{x:.0f}" y="{top + tall + 16}" text-anchor="middle" class="v">'
                f"{most_x * share:,.0f}</text>"
            ),
        ]
    for number, (name, line) in enumerate(series.items()):
        colour = _LINES[number % len(_LINES)]
        path = " ".join(
            f"{left + x / most_x * room:.1f},{top + tall * (1 - y / most_y):.1f}" for x, y in line
        )
        y = top + 10 + number * 18
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<path d="M{left + room + 20} {y}h18" stroke="{colour}" stroke-width="3"/>',
            f'<text x="{left + room + 44}" y="{y + 4}">{escape(name)}</text>',
        ]
    parts.append(f'<text x="{left}" y="{height - 8}" class="v">{escape(across)}; {unit}</text>')
    return _page(title, height, parts)


def _number(value: float) -> str:
    if value == 0 or math.isnan(value):
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if abs(value) < 100 else 0
    return f"{value:,.{min(digits, 3)}f}"


def _page(title: str, height: int, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">\n'
        "<style>text{font:13px sans-serif;fill:#222}.t{font-weight:bold}.v{fill:#555}</style>\n"
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>\n'
        f'<text x="12" y="22" class="t">{escape(title)}</text>\n{body}\n</svg>\n'
    )
