"""Whether an action succeeded: from its answer, its error, and what its transactions came to."""

from __future__ import annotations

from otel_audit._util.aio import is_cancellation
from otel_audit.record import Outcome, TransactionOutcome


def outcome_of(
    *,
    status: int | None,
    error: BaseException | None,
    transaction: TransactionOutcome,
    cut_off: bool = False,
    turned_away: bool = False,
) -> Outcome:
    """Judge an HTTP action.

    Args:
        status: The status the client was sent; None if none was.
        error: The exception that left the application, if any.
        transaction: What became of the last transaction that wrote; unknown if any is.
        cut_off: Whether the answer ended before its last chunk.
        turned_away: Whether the answer only redirects the request elsewhere.

    Returns:
        ``success`` only if the answer says so, nothing was raised, and what was written last is
        committed: a retry makes up for what was rolled back before. ``unknown`` where a commit's
        fate is unknown, the action was cut off, or the client was sent elsewhere with it and
        nothing was committed.
    """
    if transaction == "unknown":
        return "unknown"
    if error is not None and is_cancellation(error):
        return "unknown"
    if error is not None or transaction in ("rolled_back", "mixed"):
        return "failure"
    if status is not None and status >= 400:  # noqa: PLR2004 - RFC 9110, section 15
        return "failure"
    if status is None or cut_off or (turned_away and transaction != "committed"):
        return "unknown"
    return "success"
