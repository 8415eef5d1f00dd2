"""One record as people read it: names and values, before -> after."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from otel_audit.cli.listing import iso, result_of
from otel_audit.cli.terminal import Colour, Piece
from otel_audit.record import AuditRecord, Body
from otel_audit.setting_values import PREFIX

if TYPE_CHECKING:
    from otel_audit_postgres.query.display import Cell, EntityChange
    from otel_audit_postgres.query.queries import Found, Shown

PanelRow = tuple[str, Sequence[Piece]]

_LONGEST: Final = 400
"""Characters of a value on a screen; --json has it whole."""
_LONGEST_IN_LINE: Final = 60
"""Characters of a value that shares its line with others."""
_MOST_CHANGES: Final = 100
"""Changes on a screen; what is left out is counted."""


def rows_of(
    shown: Shown, record: AuditRecord | None, others: Sequence[Found], *, link: str, is_local: bool
) -> Iterator[PanelRow]:
    """The rows of a record's panel.

    Args:
        shown: The record as stored.
        record: Its text, read; None where it cannot be.
        others: Further records of its action.
        link: Where its trace can be seen; empty where that is not known.
        is_local: Times are in this machine's zone.
    """
    found = shown.found
    yield "id", _plain(str(found.id))
    yield "when", _plain(_when(found, record, is_local=is_local))
    yield "who", _plain(_who(found, record))
    if found.tenant_id:
        yield "tenant", _plain(_tenant(found, record))
    yield "what", _what(found, record)
    if others or found.phase != "completed":
        yield "action", _plain(_action(found, others))
    if record is None:
        yield "note", _plain("the text of this record is of no known form: --json prints it")
    else:
        yield from _read(record)
    if found.trace_id:
        yield "trace", _plain(_trace(found, record, link))
    yield "service", _plain(_service(found, record))
    yield "recorded", _plain(iso(found.recorded_at, is_local=is_local))
    yield "sha-256", _plain(shown.content_hash.hex())


def change_lines(
    changes: Sequence[EntityChange], about: str | None = None
) -> Iterator[list[Piece]]:
    """A line for each thing that changed.

    Args:
        changes: What changed.
        about: The entity whose history it is: its name need not be said again.
    """
    for change in changes[:_MOST_CHANGES]:
        name = change.reference or change.name
        line: list[Piece] = [(change.operation, "cyan")]
        if name != about:
            line.append((f" {name}", None))
        if change.rows is not None:
            line.append((f" {change.rows} rows", None))
        if change.transaction == "rolled_back":
            line.append((" (rolled back)", "red"))
        columns = [one for one in change.columns if not _is_nothing(one.before, one.after)]
        for number, column in enumerate(columns):
            line.append((", " if number else "  ", None))
            line += _column(change.operation, column.column, column.before, column.after)
        if change.note:
            line.append((f"  ({change.note})", "yellow"))
        yield line
    if len(changes) > _MOST_CHANGES:
        yield _plain(f"and {len(changes) - _MOST_CHANGES} more changes: --json has them")


def rolled_back_line(record: AuditRecord) -> Iterator[list[Piece]]:
    """A line for changes that were rolled back and are not recorded, if any."""
    kept = sum(one.transaction == "rolled_back" for one in record.changes)
    if (count := record.changes_rolled_back - kept) > 0:
        parts = "1 change was" if count == 1 else f"{count} changes were"
        yield [
            (f"{parts} rolled back", "red"),
            (f" (to keep their values: {PREFIX}ORM_KEEP_ROLLED_BACK=true)", None),
        ]


def _column(operation: str, name: str, before: Cell, after: Cell) -> list[Piece]:
    pieces: list[Piece] = [(f"{name} ", None)]
    if operation != "insert":
        pieces.append(_cell(before, "red"))
    if operation == "update":
        pieces.append((" -> ", None))
    if operation != "delete":
        pieces.append(_cell(after, "green"))
    return pieces


def _is_nothing(before: Cell, after: Cell) -> bool:
    """Whether a column was empty and is empty: an INSERT names many of them."""
    return before.kind == after.kind == "none"


def _cell(cell: Cell, colour: Colour) -> Piece:
    text = f"({cell.text})" if cell.kind in {"none", "unknown"} else cell.text
    return _shortened(text, _LONGEST_IN_LINE), colour if cell.kind == "value" else "yellow"


def _plain(text: str) -> list[Piece]:
    return [(text, None)]


def _when(found: Found, record: AuditRecord | None, *, is_local: bool) -> str:
    moment = iso(found.occurred_at, is_local=is_local)
    return moment if record is None else f"{moment}, took {record.duration / 1e6:,.1f} ms"


def _who(found: Found, record: AuditRecord | None) -> str:
    if record is None:
        return found.actor_id
    actor = record.actor
    parts = [actor.email, actor.id if actor.id != actor.email else None]
    parts += [f"role {actor.role}" if actor.role else None]
    parts += [actor.type if actor.type != "user" else None]
    parts += [f"for {actor.on_behalf_of}" if actor.on_behalf_of else None]
    proof = "verified" if actor.verified else "not verified"
    proof += f" by {actor.source}" if actor.verified and actor.source else ""
    parts += [f"{proof}: {actor.reason}" if actor.reason else proof]
    return _joined(parts)


def _tenant(found: Found, record: AuditRecord | None) -> str:
    slug = None if record is None or record.tenant is None else record.tenant.slug
    return _joined([found.tenant_id, slug])


def _what(found: Found, record: AuditRecord | None) -> list[Piece]:
    target = ":".join(part for part in (found.target_type, found.target_id) if part)
    action = None if record is None else record.action
    pieces: list[Piece] = [(_joined([action, target]), None)]
    pieces += [(", " if pieces[0][0] else "", None), result_of(found)]
    if record is not None and record.transaction != "none":
        colour: Colour | None = None if record.transaction == "committed" else "red"
        pieces.append((f", transaction {record.transaction.replace('_', ' ')}", colour))
    return pieces


def _action(found: Found, others: Sequence[Found]) -> str:
    parts = [f"this record is its {found.phase} part"] if found.phase != "completed" else []
    parts += [f"{one.phase} {one.id}" for one in others]
    return "; ".join(parts)


def _read(record: AuditRecord) -> Iterator[PanelRow]:
    """Rows that only the payload has."""
    yield from _exchange(record)
    if record.error is not None:
        yield "error", [(_joined([record.error.type, record.error.message]), "red")]
    yield from _changes(record)
    for name, value in record.metadata.items():
        yield "metadata", _plain(f"{name} = {_value(value)}")
    if record.received is not None:
        yield "received", _plain(f"by {record.received.by}")
    if record.conflict_of is not None:
        yield "conflict", [(f"it came under the id {record.conflict_of}", "yellow")]
    if record.producer_id is not None:
        yield "stream", _plain(f"record {record.sequence_number} of {record.producer_id}")


def _exchange(record: AuditRecord) -> Iterator[PanelRow]:
    if record.source is not None:
        source = record.source
        session = f"session {source.session_id}" if source.session_id else None
        yield "from", _plain(_joined([source.address, source.user_agent, session]))
    if record.request is not None:
        request = record.request
        path = (request.path or "") + (f"?{request.query}" if request.query else "")
        yield "request", _plain(f"{request.method or ''} {path}  {_body(request.body)}".strip())
    if record.response is not None:
        response = record.response
        status = "" if response.status_code is None else str(response.status_code)
        yield "response", _plain(f"{status}  {_body(response.body)}".strip())
    if record.request is not None and record.request.id:
        yield "request id", _plain(record.request.id)


def _changes(record: AuditRecord) -> Iterator[PanelRow]:
    from otel_audit_postgres.query.display import entity_changes

    for number, line in enumerate(change_lines(entity_changes(record))):
        yield "" if number else "changes", line
    if record.changes_total is not None and record.changes_total > len(record.changes):
        yield "", _plain(f"of {record.changes_total} changes in all")
    for line in rolled_back_line(record):
        yield "", line


def _body(body: Body | None) -> str:
    if body is None:
        return ""
    text = " ".join((body.text or "").split())
    absent = f"({body.absent.replace('_', ' ')})" if body.absent else ""
    return f"{_shortened(text, _LONGEST)} {absent}".strip()


def _trace(found: Found, record: AuditRecord | None, link: str) -> str:
    if record is not None and record.trace_sampled is False:
        return f"{found.trace_id} (sampled away: the trace backend does not have it)"
    return link or found.trace_id or ""


def _service(found: Found, record: AuditRecord | None) -> str:
    resource = {} if record is None else record.resource
    names = ("service.version", "host.name", "process.pid")
    facts = [f"{name.rpartition('.')[2]} {resource[name]}" for name in names if name in resource]
    return _joined([found.service_name or "not named", *facts])


def _value(value: Any) -> str:
    from otel_audit_postgres.query.display import as_cell

    return _shortened(as_cell(value).text, _LONGEST)


def _joined(parts: Sequence[str | None]) -> str:
    return ", ".join(part for part in parts if part)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
