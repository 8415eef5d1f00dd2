"""Reading entries out of what was spooled."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from strategies import a_record, records

from otel_audit.action.compose import Ending, Opening, ended
from otel_audit.delivery.queue_entries import read_back
from otel_audit.delivery.sink import Refused
from otel_audit.record import (
    ACTOR_FAILED,
    INCOMPLETE,
    Actor,
    AuditRecord,
    Change,
    Source,
    Target,
    Tenant,
    to_json,
)
from otel_audit.scope import Provenance

ID = "01990000-0000-7000-8000-000000000001"
ENDING = Ending("success", 42, "committed")
CHANGE = Change(operation="insert", entity="Order", table="orders")


def ending_of_one(**facts: object) -> Ending:
    return msgspec.structs.replace(Ending("success", 42, "committed", 1), **facts)


def an_opening(**facts: object) -> Opening:
    provenance = Provenance(ID, "a" * 32, "b" * 16, True, {"service.name": "shop"})
    usual = Opening(
        ID, ID, 7, "order.created", "CREATE", "metadata", "request-1", "POST", "/orders", provenance
    )
    return msgspec.structs.replace(usual, **facts)


@given(records(), records(), st.booleans())
def test_an_end_is_as_if_all_had_been_said_again(known, later, changes):
    """What was known and what has changed since are the record that would have been written."""
    known = msgspec.structs.replace(known, phase="completed")
    ending = Ending(
        later.outcome,
        later.duration,
        later.transaction,
        len(later.changes) + 1,
        later.changes_rolled_back,
        later.target,
        later.changes if changes else msgspec.UNSET,
    )
    whole = ended(known, ending, 17)
    assert whole.target == later.target
    assert whole.sequence_number == 17
    assert read_back(ID, to_json(known), ending.text(17)) == read_back(ID, to_json(whole))


def test_what_has_not_changed_is_not_said():
    """Target and changes are left as they were known."""
    known = a_record(changes=(CHANGE,))
    found = read_back(ID, to_json(known), ending_of_one().text(9))
    assert found == msgspec.structs.replace(
        known, outcome="success", duration=42, transaction="committed", sequence_number=9
    )


@given(st.text(), st.text(), st.none() | st.builds(Source, user_agent=st.text()))
def test_a_beginning_becomes_a_record(path, method, source):
    """What was written down when an action begins is read as the record of its start."""
    begun = an_opening(path=path, method=method, source=source)
    try:
        text = to_json(begun)
    except UnicodeEncodeError:
        return
    found = read_back(ID, text)
    assert isinstance(found, AuditRecord)
    assert found == begun.record()
    assert (found.phase, found.outcome, found.request.path) == ("started", "unknown", path)


def test_beginning_and_end_are_a_record_that_says_what_is_missing():
    """Where the answer is lost: number and outcome are known, and who it was is not nobody."""
    found = read_back(ID, to_json(an_opening()), ENDING.text(9))
    assert isinstance(found, AuditRecord)
    assert (found.phase, found.outcome, found.sequence_number) == ("completed", "success", 9)
    assert (found.actor, found.request.path) == (ACTOR_FAILED, "/orders")
    assert {"record", "actor", "target", "response", "metadata"} <= set(found.metadata[INCOMPLETE])
    known = read_back(ID, to_json(an_opening(actor=Actor(id="ann", type="user"))), ENDING.text(9))
    assert known.actor.id == "ann"


def test_beginning_and_end_say_for_whom_and_how_many():
    """Where the answer is lost its tenant still finds the record, denied and with its changes."""
    tenant, begun = Tenant(id="42", slug="acme"), to_json(an_opening(level="request"))
    ending = ending_of_one(tenant=tenant, decision="denied", changes_total=3)
    found = read_back(ID, begun, ending.text(9))
    assert (found.tenant, found.decision, found.changes_total) == (tenant, "denied", 3)
    assert {"request.body", "changes"} <= set(found.metadata[INCOMPLETE])
    told = msgspec.structs.replace(
        ending, changes=(CHANGE, CHANGE, CHANGE), target=Target(type="order", id="1")
    )
    found = read_back(ID, begun, told.text(9))
    assert (len(found.changes), found.changes_total) == (3, None)
    assert not {"target", "changes", "tenant"} & set(found.metadata[INCOMPLETE])
    nothing = read_back(ID, to_json(an_opening()), ENDING.text(9))
    assert (nothing.changes_total, nothing.tenant) == (None, None)
    assert not {"request.body", "changes"} & set(nothing.metadata[INCOMPLETE])


def test_an_end_alone_is_kept_aside():
    """Nothing but the end is left: it goes to quarantine, with what it says."""
    found = read_back(ID, b"", ENDING.text(9))
    assert isinstance(found, Refused)
    left = msgspec.json.decode(found.received)
    assert (left["answered"], left["ended"]["sequence_number"]) == (None, 9)
    assert "damaged" in found.reason
    broken = read_back(ID, b'{"no":"record"}', b"{}")
    assert isinstance(broken, Refused)
    assert broken.received == b'{"answered":{"no":"record"},"ended":{}}'


def test_a_beginning_has_the_names_of_earlier_spools():
    """A spool of the version before is read by this one, and the other way round."""
    assert msgspec.json.decode(to_json(an_opening()))["place"][:2] == [ID, "a" * 32]
