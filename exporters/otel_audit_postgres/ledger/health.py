"""The state and set-up of sealing, for ``otel-audit doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from otel_audit._util.check_result import CheckResult
from otel_audit.errors import ConfigurationError, StoreError
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.anchors import Anchor, AnchorError, ask, forgotten
from otel_audit_postgres.ledger.checkpoints import NoteError, read_checkpoint, read_note
from otel_audit_postgres.ledger.keys import PublicKey, read_key_file

WAITS_TOO_LONG: Final = 300.0
"""Seconds after which a row that is not sealed is a finding."""

_STATE: Final = "SELECT * FROM audit.ledger_state()"
_KEYGEN: Final = "make a key with `otel-audit keygen FILE`, for the sealer alone"
_ALONE: Final = "run `otel-audit seal` apart from the applications, as a role of otel_audit_sealer"


async def inspect_ledger(
    dsn: str, *, keys: Sequence[PublicKey] = (), anchors: Sequence[Anchor] = ()
) -> list[CheckResult]:
    """Look at queue, checkpoints and anchors. Changes nothing.

    Args:
        dsn: The audit store, as any of its roles.
        keys: Public keys that may sign; without any, it is only seen whether somebody signed.
        anchors: Where checkpoints are published.

    Returns:
        What was found. Never raises for what the ledger is like.
    """
    try:
        async with ledger_queries.opened(dsn, "inspect the ledger") as connection:
            state = await connection.fetchrow(_STATE)
            assert state is not None  # noqa: S101 - a function without SETOF has a row
            holders = await ledger_queries.holders(connection)
            place = await ledger_queries.place(connection)
    except StoreError as error:
        return [CheckResult("ledger", None, str(error))]
    found = [_lag(state, holders), _signature(state, keys), _place(place)]
    if not anchors:
        return [*found, _NO_ANCHOR]
    return [*found, *[await _anchor(anchor, state["size"]) for anchor in anchors]]


_NO_ANCHOR: Final = CheckResult(
    "anchor",
    None,
    "none: an old copy of the whole store, put back, would pass as the original",
    "set OTEL_AUDIT_ANCHOR to a place that the database's administrators cannot rewrite",
)


def inspect_key_file(path: Path | None, *, seals_here: bool) -> list[CheckResult]:
    """Look at the private key's file, where this environment names one.

    Args:
        path: What OTEL_AUDIT_SIGNING_KEY_FILE says.
        seals_here: Whether the applications' own workers seal.
    """
    found = []
    if path is not None:
        try:
            key = read_key_file(path, "OTEL_AUDIT_SIGNING_KEY_FILE")
        except ConfigurationError as error:
            found.append(CheckResult("signing_key", ok=False, detail=str(error), remedy=_KEYGEN))
        else:
            detail = f"{path} is for this process alone; the public key is {key.public.text()}"
            found.append(CheckResult("signing_key", ok=True, detail=detail))
    if seals_here:
        found.append(
            CheckResult(
                "sealer_apart",
                None,
                "OTEL_AUDIT_SEAL is on: the application seals its own records, "
                "and an attacker in it can also sign another history",
                _ALONE,
            )
        )
    return found


def _place(place: ledger_queries.DatabaseIdentity) -> CheckResult:
    if place.is_elsewhere:
        return CheckResult(
            "place", ok=False, detail=str(place), remedy="see docs/ledger.md, Copies"
        )
    return CheckResult(
        "place", ok=True, detail="the log belongs to this database, or has not begun"
    )


def _lag(state: Any, holders: Sequence[ledger_queries.Holder]) -> CheckResult:
    waiting, seconds = state["waiting"], state["waiting_for"] or 0.0
    who = "; ".join(map(str, holders))
    if waiting and seconds > WAITS_TOO_LONG:
        return CheckResult(
            "sealing",
            ok=False,
            detail=f"{waiting} rows wait to be sealed, the oldest for {seconds:.0f} s: until then "
            "a change of them by the database's owner does not show"
            + (f"; the lock of sealing is held by {who}" if who else ""),
            remedy=f"see that the sealer runs: {_ALONE}",
        )
    return CheckResult(
        "sealing", ok=True, detail=f"{state['size']} rows are sealed, {waiting} wait"
    )


def _signature(state: Any, keys: Sequence[PublicKey]) -> CheckResult:
    name = "signature"
    if state["note"] is None:
        return CheckResult(name, None, "nothing is sealed yet", _ALONE)
    try:
        note = read_note(state["note"])
        signers = note.signed_by(keys)
    except NoteError as error:
        return CheckResult(
            name, ok=False, detail=f"the last checkpoint: {error}", remedy="run `otel-audit verify`"
        )
    if not note.signatures:
        return CheckResult(
            name,
            None,
            "the last checkpoint is unsigned: the database's owner can rewrite rows and ledger, "
            "and verify sees it only up to what an anchor kept",
            f"{_KEYGEN}, and set OTEL_AUDIT_SIGNING_KEY_FILE where it runs",
        )
    if not keys:
        names = ", ".join(signature[0] for signature in note.signatures)
        return CheckResult(
            name,
            None,
            f"signed in the name of {names}, which was not checked: no public key is known here",
            "set OTEL_AUDIT_VERIFY_KEYS",
        )
    if not signers:
        return CheckResult(
            name,
            ok=False,
            detail="the last checkpoint is not signed by a known key",
            remedy="run `otel-audit verify`; if the key was changed, add it to "
            "OTEL_AUDIT_VERIFY_KEYS",
        )
    return CheckResult(name, ok=True, detail=f"signed by {signers[0].text()}")


async def _anchor(anchor: Anchor, size: int) -> CheckResult:
    name = f"anchor {anchor.name}"
    try:
        note = await ask(anchor)
    except AnchorError as error:
        return CheckResult(
            name, None, str(error), "the sealer tries again; see that it can be reached"
        )
    if note is None:
        why = forgotten(anchor, size)
        return CheckResult(
            name,
            None if why is None else False,
            why or "holds no checkpoint, or cannot be asked",
            _ALONE if why is None else "see docs/ledger.md, Anchors",
        )
    try:
        seen = read_checkpoint(note).size
    except NoteError as error:
        return CheckResult(name, ok=False, detail=str(error), remedy="find out who wrote there")
    if seen > size:
        return CheckResult(
            name,
            ok=False,
            detail=f"has seen {seen} rows, the ledger has {size}",
            remedy="an old copy of the store was put back: run `otel-audit verify`",
        )
    if seen < size:
        return CheckResult(
            name, None, f"is {size - seen} rows behind", "see the sealer's log; it tries again"
        )
    return CheckResult(name, ok=True, detail=f"has the last checkpoint, of {seen} rows")
