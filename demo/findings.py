"""What the demonstration expects of itself; where it is wrong, it says so and ends with 1."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from demo.client import Sent
from demo.receiver import ReceivedSpan, Receiver
from demo.sealing import Sealing
from demo.secrets_sent import SecretsSent
from demo.store import Attempt, Row
from demo.traffic import CONTROL, STATUS


@dataclass(frozen=True)
class Search:
    """A place that was searched for secrets, and the kinds that were found there."""

    place: str
    size: int
    found: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """All that the run left behind."""

    sent: Sequence[Sent]
    rows: Sequence[Row]
    history: Sequence[Row]
    attempts: Sequence[Attempt]
    rows_after: Sequence[Row]
    searches: Sequence[Search]
    control_found: bool
    receiver: Receiver
    sealing: Sealing | None = None

    def row_of(self, label: str) -> Row | None:
        """The row of a request of the story."""
        wanted = next((sent.request_id for sent in self.sent if sent.label == label), None)
        return next((row for row in self.rows if row.request_id == wanted), None)

    @property
    def audited(self) -> list[Sent]:
        return [sent for sent in self.sent if sent.audited]

    @property
    def action_rows(self) -> list[Row]:
        """The rows of requests; a process also records its start and its end."""
        return [row for row in self.rows if row.request_id is not None]

    @property
    def linked_spans(self) -> list[ReceivedSpan]:
        """The server spans in the trace backend to which an audit row leads."""
        ids = {(row.trace_id, row.span_id) for row in self.action_rows}
        return [span for span in self.receiver.server_spans if (span.trace_id, span.span_id) in ids]

    @property
    def enriched_spans(self) -> list[ReceivedSpan]:
        """Those of them that say who did what."""
        return [span for span in self.linked_spans if "audit.actor.id" in span.attributes]


@dataclass
class Expectations:
    """Collects what was not as expected."""

    failures: list[str] = field(default_factory=list)

    def that(self, holds: object, otherwise: str) -> None:
        if not holds:
            self.failures.append(otherwise)


def search(place: str, data: bytes, secrets: SecretsSent) -> Search:
    return Search(place, len(data), tuple(secrets.found_in(data)))


def examine(evidence: Evidence) -> list[str]:
    """List what is not as it must be; empty when all is well."""
    expect = Expectations()
    _story_went_as_told(expect, evidence.sent)
    _every_audited_request_has_its_row(expect, evidence)
    _sequence_has_no_gap(expect, evidence.rows)
    _diff_is_there(expect, evidence)
    _history_is_complete(expect, evidence)
    _nothing_could_be_changed(expect, evidence)
    _no_secret_was_found(expect, evidence)
    _traces_go_on(expect, evidence)
    if evidence.sealing is not None:
        _tampering_shows(expect, evidence.sealing)
    return expect.failures


def _tampering_shows(expect: Expectations, sealing: Sealing) -> None:
    problems = sealing.report["problems"]
    expect.that(sealing.report["ok"], f"the sealed trail does not verify: {problems[:1]}")
    found = sealing.first_bad.get("record_id")
    expect.that(
        found == sealing.changed_row,
        f"row {sealing.changed_row} was changed by a superuser, and verify named {found}",
    )


def _story_went_as_told(expect: Expectations, sent: Iterable[Sent]) -> None:
    answered = {request.label: request.status for request in sent if request.label}
    for label, status in STATUS.items():
        expect.that(
            answered.get(label) == status,
            f"the request {label!r} was answered with {answered.get(label)}, not {status}",
        )


def _every_audited_request_has_its_row(expect: Expectations, evidence: Evidence) -> None:
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in evidence.action_rows:
        if row.phase == "completed" and row.request_id is not None:
            rows[row.request_id].append(row)
    for sent in evidence.sent:
        found = rows.pop(sent.request_id, [])
        name = f"{sent.method} {sent.path} -> {sent.status}"
        wanted = 1 if sent.audited else 0
        expect.that(len(found) == wanted, f"{name}: {len(found)} audit rows, not {wanted}")
        if sent.audited and found:
            _row_tells_the_truth(expect, name, sent, found[0])
    expect.that(not rows, f"{len(rows)} audit rows are of requests that nobody sent")


def _row_tells_the_truth(expect: Expectations, name: str, sent: Sent, row: Row) -> None:
    truth = {
        "status": (row.status_code, sent.status),
        "outcome": (row.outcome, sent.outcome),
        "actor": (row.actor_id, sent.actor_id),
        "tenant": (row.tenant_id, sent.tenant_id or ""),
    }
    for what, (found, wanted) in truth.items():
        expect.that(found == wanted, f"{name}: the row's {what} is {found!r}, not {wanted!r}")


def _sequence_has_no_gap(expect: Expectations, rows: Iterable[Row]) -> None:
    numbers: dict[str | None, Counter[int | None]] = defaultdict(Counter)
    for row in rows:
        numbers[row.producer_id][row.sequence_number] += 1
    for producer, counted in numbers.items():
        expect.that(
            set(counted) == set(range(1, len(counted) + 1)) and set(counted.values()) == {1},
            f"producer {producer}: {sum(counted.values())} rows do not make an unbroken sequence",
        )


def _diff_is_there(expect: Expectations, evidence: Evidence) -> None:
    paid, lost = evidence.row_of("paid"), evidence.row_of("lost")
    diffs = [change["values"].get("status") for change in (paid.changes if paid else ())]
    expect.that(
        ["open", "paid"] in diffs, "the row of the payment has no diff of the order's status"
    )
    expect.that(
        lost and lost.transaction_outcome == "rolled_back" and not lost.changes,
        "the change that was lost at COMMIT is not recorded as rolled back",
    )


def _history_is_complete(expect: Expectations, evidence: Evidence) -> None:
    found = {row.id for row in evidence.history}
    for label in ("ordered", "changed", "paid", "refunded", "denied: tenant"):
        row = evidence.row_of(label)
        expect.that(row and row.id in found, f"the order's history lacks the request {label!r}")


def _nothing_could_be_changed(expect: Expectations, evidence: Evidence) -> None:
    for attempt in evidence.attempts:
        expect.that(attempt.refusal, f"{attempt.what} by the {attempt.who} was not refused")
    expect.that(
        [(row.id, row.content_hash) for row in evidence.rows]
        == [(row.id, row.content_hash) for row in evidence.rows_after],
        "the rows are not the same after the attempts to change them",
    )


def _no_secret_was_found(expect: Expectations, evidence: Evidence) -> None:
    for searched in evidence.searches:
        for kind, count in Counter(searched.found).items():
            expect.that(count == 0, f"{count} secrets of kind {kind!r} found in {searched.place}")
    expect.that(
        evidence.control_found, f"the search did not find even {CONTROL!r}, which is no secret"
    )


def _traces_go_on(expect: Expectations, evidence: Evidence) -> None:
    arrived = len(evidence.receiver.server_spans)
    expect.that(
        0 < arrived < len(evidence.sent) * 0.4,
        f"{arrived} server spans of {len(evidence.sent)} requests are not a 10 % sample",
    )
    exported = {span.trace_id for span in evidence.linked_spans}
    expect.that(exported, "no audit row leads to a span that was exported")
    expect.that(
        all(row.trace_sampled for row in evidence.action_rows if row.trace_id in exported),
        "a row says that its trace was not sampled, but it was exported",
    )
    expect.that(
        evidence.enriched_spans == evidence.linked_spans,
        "a server span of an audited request does not say who did it",
    )
