"""`otel-audit doctor` where records leave over OTLP."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result
from otlp_receiver import Answer, receiving
from strategies import a_record

from otel_audit.cli.main import cli
from otel_audit.config import AuditConfig
from otel_audit.delivery.factory import local_quarantine
from otel_audit.delivery.sink import Refused
from otel_audit.record import to_json


def doctor(monkeypatch: pytest.MonkeyPatch, url: str) -> Result:
    monkeypatch.setenv("OTEL_AUDIT_OTLP_ENDPOINT", url)
    return CliRunner().invoke(cli, ["doctor"])


def test_a_receiver_that_takes_records(monkeypatch):
    """It is asked with an empty request; no store is missed."""
    with receiving() as receiver:
        told = doctor(monkeypatch, receiver.url)
    assert "takes records" in told.output
    assert "OTEL_AUDIT_DSN" not in told.output
    assert told.exit_code == 0, told.output


def test_a_receiver_that_does_not_know_us(monkeypatch):
    """A wrong token is a failure, with the setting to mend."""
    with receiving() as receiver:
        receiver.decide = lambda _: Answer(401)
        told = doctor(monkeypatch, receiver.url)
    assert "FAIL" in told.output
    assert "OTEL_AUDIT_OTLP_HEADERS" in told.output
    assert told.exit_code == 1


def test_bounds_of_the_spool_that_contradict_each_other(monkeypatch):
    """With them the application does not start; the setting is named."""
    monkeypatch.setenv("OTEL_AUDIT_SPOOL_MAX_BYTES", "20000")
    with receiving() as receiver:
        told = doctor(monkeypatch, receiver.url)
    assert "FAIL" in told.output
    assert "OTEL_AUDIT_SPOOL_MAX_BYTES" in told.output
    assert told.exit_code == 1


def test_what_was_refused_is_warned_of(monkeypatch):
    """How many, where, and the command that lists them."""
    record = a_record()
    place = local_quarantine(AuditConfig(exporter="none"))
    place.keep([Refused(record.record_id, to_json(record), "status 400")])
    with receiving() as receiver:
        told = doctor(monkeypatch, receiver.url)
    assert "1 records that the receiver refused" in told.output
    assert "otel-audit quarantine" in told.output
