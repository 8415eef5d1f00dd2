"""The table of what is lost, made of what the fault tests measured.

``pytest tests/faults --record-losses`` writes down what was measured; running this file then puts
the tables into docs/loss.md. Each run of the fault tests compares with it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "faults" / "losses.json"
PAGE = ROOT / "docs" / "loss.md"
_BEGIN = "<!-- losses: begin, made by tests/loss_table.py -->\n"
_END = "<!-- losses: end -->\n"
_SHORT_BEGIN = "<!-- losses in short: begin, made by tests/loss_table.py -->\n"
_SHORT_END = "<!-- losses in short: end -->\n"
_TOGETHER = {
    "test_told_to_stop_under_load": "SIGTERM or SIGINT under load, each way to serve",
    "test_sigkill_under_load": "process killed (SIGKILL) under load, each way to sync the spool",
    "test_postgres_goes_and_comes_under_load": "Postgres stopped for 30 s, or killed, under load",
}
"""Events that are one line in the short table."""


@dataclass(frozen=True)
class Row:
    """What one fault did.

    Attributes:
        event: What happened.
        answered: Actions that clients saw answered.
        lost: Those of them that are not stored.
        twice: Actions that are stored more than once.
        cut_down: Actions that had begun and never ended.
        untold: Those of them without a record that says ``unknown``.
        refused: Requests that were refused before they did anything.
        shows: What shows it.
        test: The test that measured it.
    """

    event: str
    answered: int
    lost: int
    twice: int
    cut_down: int
    untold: int
    refused: int
    shows: str
    test: str

    @property
    def claim(self) -> tuple[object, ...]:
        """What must be the same in every run."""
        return (
            self.lost if not self.lost else "some",
            self.twice,
            self.untold,
            self.shows,
            self.test,
        )


def rows() -> dict[str, Row]:
    return {found["event"]: Row(**found) for found in json.loads(RESULTS.read_text())}


def tell(row: Row, *, write: bool) -> None:
    """Compare what was measured with what the table says; or write it down.

    Raises:
        AssertionError: The table says otherwise.
    """
    known = rows() if RESULTS.exists() else {}
    if write:
        known[row.event] = row
        told = [asdict(known[event]) for event in sorted(known)]
        RESULTS.write_text(json.dumps(told, indent=1) + "\n")
        return
    assert row.event in known, f"not in the table: run with --record-losses ({row.event})"
    assert row.claim == known[row.event].claim


def table() -> str:
    """All that was measured, for docs/loss.md."""
    lines = [
        "| event | answered | lost | twice | interrupted, recorded as `unknown` | what shows it | test |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.event} | {row.answered} | {_lost(row.lost)} | {row.twice} "
        f"| {_told(row.cut_down, row.untold)} | {row.shows} | `{row.test}` |"
        for row in rows().values()
    ]
    return "\n".join(lines) + "\n"


def summary() -> str:
    """A line for each kind of event, for docs/loss.md."""
    kinds: dict[str, list[Row]] = {}
    for row in rows().values():
        kinds.setdefault(_TOGETHER.get(row.test, row.event), []).append(row)
    lines = [
        "| under test | seen answered | lost | stored twice | interrupted, recorded as `unknown` |",
        "|---|---|---|---|---|",
    ]
    for kind, found in kinds.items():
        answered, lost, twice, cut_down, untold = (
            sum(getattr(row, name) for row in found)
            for name in ("answered", "lost", "twice", "cut_down", "untold")
        )
        lines.append(
            f"| {kind} | {answered:,} | {_lost(lost)} | {twice} | {_told(cut_down, untold)} |"
        )
    return "\n".join(lines) + "\n"


def _lost(number: int) -> str:
    return f"{number}, each counted" if number else "0"


def _told(cut_down: int, untold: int) -> str:
    return f"{cut_down - untold} of {cut_down}" if cut_down else "none was"


def with_tables(page: str) -> str:
    page = _with(page, _SHORT_BEGIN, summary(), _SHORT_END)
    return _with(page, _BEGIN, table(), _END)


def _with(page: str, begin: str, made: str, end: str) -> str:
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{made}\n{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
