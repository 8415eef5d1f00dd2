"""Records as lines: a table that fits the screen, JSON, NDJSON or CSV."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from otel_audit.cli import terminal
from otel_audit.cli.terminal import (
    Colour,
    FittedColumns,
    Piece,
    as_json_text,
    echo,
    echo_csv,
    echo_json_text,
    json_list,
)

if TYPE_CHECKING:
    from otel_audit_postgres.query.queries import Found

OutputFormat = Literal["table", "json", "ndjson", "csv"]

_COLOURS: Final[Mapping[str, Colour]] = {"success": "green", "failure": "red", "unknown": "yellow"}
_SHORT: Final = {"success": "ok", "failure": "failed"}
_ROLLED_BACK: Final = "↺"
_PHASES: Final = ("completed", "continued", "changes", "started", "intent")
"""Phases of an action, the most informative first."""
_SHORTEST: Final = {"event": 16, "actor": 12, "target": 9, "tenant": 6, "service": 6}
"""Characters of a column below which it is not narrowed: what tells its values apart."""
_SHORTEST_ID: Final = 13
"""Characters of an id up to its millisecond."""

form_option = click.option(
    "--format", "form",
    type=click.Choice(["table", "json", "ndjson", "csv"]),
    default="table",
    show_default=True,
    help="json is one list; ndjson is an object a line.",
)  # fmt: skip
ndjson_option = click.option("--json", "as_json", is_flag=True, help="As --format ndjson.")


@dataclass(frozen=True, slots=True)
class Line:
    """One record to be shown.

    Attributes:
        found: The record, in short.
        email: The actor's e-mail address, where it is known.
        slug: The tenant's readable name, where it has one.
        payload: The record's exact text, where JSON is to have it.
        details: Lines below it in a table.
    """

    found: Found
    email: str | None = None
    slug: str | None = None
    payload: str | None = None
    details: Sequence[Sequence[Piece]] = ()


@dataclass(frozen=True, slots=True)
class _Action:
    """One action: its most informative record, and the phases of its other records."""

    main: Line
    others: tuple[str, ...]

    @property
    def note(self) -> str:
        """The phases shown beside it; empty if one record covers the whole action."""
        phase = self.main.found.phase
        parts = [] if phase == "completed" else [phase]
        return " ".join([*parts, *(f"+{other}" for other in self.others)])


@dataclass
class Table:
    """Prints records as rows, folded by action."""

    is_local: bool
    _columns: FittedColumns = field(
        default_factory=lambda: FittedColumns(_SHORTEST, ("tenant", "service"))
    )
    _day: str = ""

    def print(self, lines: Sequence[Line]) -> None:
        """Print some rows; the heading comes with the first ones."""
        actions = list(_actions(lines))
        ids = _short_ids([one.main.found for one in actions])
        several = {one.main.found.service_name for one in actions}
        rows = [self._row(one, ids, names_service=len(several) > 1) for one in actions]
        if rows:
            self._columns.arrange(rows)
        for action, row in zip(actions, rows, strict=True):
            self._print_day(action.main.found)
            self._columns.print_row(row, action.main.details)

    def _print_day(self, found: Found) -> None:
        day = f"{zoned(found.occurred_at, is_local=self.is_local):%Y-%m-%d %Z}"
        if terminal.screen_width() is not None and day != self._day:
            echo(day, colour="cyan")
            self._day = day

    def _row(
        self, action: _Action, ids: Mapping[Any, str], *, names_service: bool
    ) -> dict[str, Piece]:
        found = action.main.found
        target = ":".join(part for part in (found.target_type, found.target_id) if part)
        actor = action.main.email or found.actor_id
        actor += f" ({found.actor_reason})" if found.actor_reason else ""
        status = "" if found.status_code is None else str(found.status_code)
        colour = _COLOURS.get(found.outcome)
        if terminal.screen_width() is None:
            return {
                "time": (iso(found.occurred_at, is_local=self.is_local), None),
                "event": (found.event_name, None), "outcome": (found.outcome, None),
                "status": (status, None), "phase": (action.note, None),
                "actor": (actor, None), "tenant": (found.tenant_id, None),
                "target": (target, None), "service": (found.service_name or "", None),
                "id": (str(found.id), None),
            }  # fmt: skip
        parts = (_SHORT.get(found.outcome, found.outcome), status, _undone(found), action.note)
        result = " ".join(one for one in parts if one)
        row: dict[str, Piece] = {
            "time": (f"{zoned(found.occurred_at, is_local=self.is_local):%H:%M:%S}", None),
            "event": (found.event_name, None), "result": (result, colour), "actor": (actor, None),
            "target": (target, None),
            "tenant": (action.main.slug or found.tenant_id, None),
        }  # fmt: skip
        row["service"] = (found.service_name or "" if names_service else "", None)
        return {**row, "id": (ids[found.id, found.tenant_id], None)}


@contextlib.contextmanager
def printing(form: OutputFormat, *, is_local: bool) -> Iterator[Callable[[Sequence[Line]], None]]:
    """Print records as they come, in one form.

    Args:
        form: Which.
        is_local: Times of a table are in this machine's zone.

    Yields:
        What prints some of them.
    """
    if form == "table":
        yield Table(is_local=is_local).print
        return
    if form == "csv":
        echo_csv(_csv_names())
        yield _each(lambda line: echo_csv(list(_short(line).values())))
        return
    if form == "ndjson":
        yield _each(lambda line: echo_json_text(_json_of(line)))
        return
    with json_list() as member:
        yield _each(lambda line: member(_json_of(line)))


def _each(print_one: Callable[[Line], None]) -> Callable[[Sequence[Line]], None]:
    def print_lines(lines: Sequence[Line]) -> None:
        for line in lines:
            print_one(line)

    return print_lines


def zoned(moment: datetime, *, is_local: bool) -> datetime:
    """A time in UTC, or in this machine's time zone if the platform can convert it."""
    try:
        return moment.astimezone() if is_local else moment.astimezone(UTC)
    except (OverflowError, OSError):
        return moment


def iso(moment: datetime, *, is_local: bool) -> str:
    """A time as ISO 8601, with milliseconds and its zone."""
    text = zoned(moment, is_local=is_local).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def result_of(found: Found) -> Piece:
    """The outcome, with its colour."""
    return found.outcome, _COLOURS.get(found.outcome)


def _undone(found: Found) -> str:
    """The mark of an action whose changes the database rolled back; empty for any other."""
    if found.transaction_outcome != "rolled_back":
        return ""
    return _ROLLED_BACK if terminal.can_print(_ROLLED_BACK) else "rolled back"


def _actions(lines: Sequence[Line]) -> Iterator[_Action]:
    """Group records by action, in the order of their first records."""
    together: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        key = (line.found.action_id or str(line.found.id), line.found.tenant_id)
        together.setdefault(key, []).append(line)
    for group in together.values():
        ordered = sorted(group, key=lambda line: _weight(line.found.phase))
        yield _Action(ordered[0], tuple(line.found.phase for line in ordered[1:]))


def _weight(phase: str) -> int:
    return _PHASES.index(phase) if phase in _PHASES else len(_PHASES)


def _short_ids(found: Sequence[Found]) -> dict[Any, str]:
    """The shortest prefixes that distinguish these ids."""
    texts = sorted({str(one.id) for one in found})
    lengths = dict.fromkeys(texts, _SHORTEST_ID)
    for one, other in itertools.pairwise(texts):
        same = next(
            place for place, pair in enumerate(zip(one, other, strict=True)) if len(set(pair)) > 1
        )
        for text in (one, other):
            lengths[text] = max(lengths[text], same + 1)
    return {
        (one.id, one.tenant_id): str(one.id)[: lengths[str(one.id)]].rstrip("-") for one in found
    }


def _short(line: Line) -> dict[str, Any]:
    return {**asdict(line.found), "actor_email": line.email, "tenant_slug": line.slug}


def _csv_names() -> list[str]:
    from otel_audit_postgres.query.queries import Found

    return [*(one.name for one in fields(Found)), "actor_email", "tenant_slug"]


def _json_of(line: Line) -> str:
    short = as_json_text(_short(line))
    # the text as it is: to read and write it would lose digits and the order of members
    return short if line.payload is None else f'{short[:-1]}, "payload": {line.payload}}}'
