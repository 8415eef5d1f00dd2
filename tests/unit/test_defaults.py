"""Defaults that are written down twice, because the part that has one cannot import the other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from otel_audit.action.record_limit import RECORD_LIMIT
from otel_audit.config import AuditConfig
from otel_audit.delivery.delivery import DeliveryOptions
from otel_audit.delivery.outbox_relay import RelayOptions
from otel_audit.delivery.spool import settings as spool
from otel_audit.orm.options import OrmOptions
from otel_audit.policy.rules import BODY_LIMIT
from otel_audit.redaction.budget import Budget
from otel_audit.server.uvicorn_server import Listening

_SAME = (
    (DeliveryOptions, "queue_size", "queue_size"),
    (DeliveryOptions, "batch_size", "batch_size"),
    (DeliveryOptions, "batch_interval", "batch_interval"),
    (RelayOptions, "interval", "outbox_interval"),
    (RelayOptions, "batch_size", "batch_size"),
    (spool.SpoolSettings, "max_bytes", "spool_max_bytes"),
    (spool.SpoolSettings, "segment_bytes", "spool_segment_bytes"),
    (OrmOptions, "max_entries", "orm_max_entries"),
    (OrmOptions, "max_before_images", "orm_max_before_images"),
)


def _bound(setting: str, which: str) -> Any:
    rules = AuditConfig.model_fields[setting].metadata
    return next(getattr(one, which) for one in rules if hasattr(one, which))


@pytest.mark.parametrize(("options", "name", "setting"), _SAME)
def test_options_have_the_default_of_their_setting(options, name, setting):
    """A part that is used alone behaves as the settings page says."""
    defaults = {one.name: one.default for one in dataclasses.fields(options)}
    assert defaults[name] == AuditConfig.model_fields[setting].default


def test_a_record_has_the_same_limit_without_settings():
    """The bound of a record is that of its setting."""
    assert AuditConfig.model_fields["record_limit"].default == RECORD_LIMIT


def test_a_body_has_the_same_limits_everywhere():
    """The work for a body follows its setting; a rule may copy as much as the setting."""
    assert Budget().body_limit == AuditConfig.model_fields["body_limit"].default
    assert _bound("body_limit", "le") == BODY_LIMIT


def test_settings_of_a_spool_are_refused_where_the_spool_refuses_them():
    """The smallest and largest values that the settings accept are those that the spool accepts."""
    smallest = _bound("spool_segment_bytes", "ge")
    assert smallest == spool.SMALLEST_SEGMENT
    assert _bound("spool_segment_bytes", "le") == spool.LARGEST_SEGMENT
    assert _bound("spool_max_bytes", "ge") == spool.SEGMENTS_AT_LEAST * smallest


def test_the_otlp_sink_listens_where_its_command_does():
    """The command's defaults are those of the options that it fills."""
    from otel_audit.cli.serve import serve

    shown = {one.name: one.default for one in serve.params}
    fields = {one.name: one.default for one in dataclasses.fields(Listening)}
    assert shown["port"] == fields["port"]
    assert shown["connections"] == fields["connections"]
