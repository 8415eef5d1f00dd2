"""Looking at many texts at once finds what looking at each alone would."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.config import AuditConfig
from otel_audit.orm.column_redaction import ColumnRedaction
from otel_audit.redaction import Redactor

SECRETS = (
    "4111 1111 1111 1111",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
    "AKIAIOSFODNN7EXAMPLE",
    "-----BEGIN PRIVATE KEY-----",
    "password=hunter2",
    "DE89 3704 0044 0532 0130 00",
)
REDACTOR = Redactor.from_config(AuditConfig())
MASKING = ColumnRedaction(REDACTOR, 4096)


class TestAreClean:
    @pytest.mark.parametrize("secret", SECRETS)
    def test_one_secret_among_many(self, secret):
        """It is never covered by its neighbours."""
        assert REDACTOR.field("note", secret) != secret
        for position in range(3):
            texts = ["ring twice", "new", "tea 7"]
            texts.insert(position, secret)
            assert not MASKING.are_clean(texts)

    @given(st.lists(st.text(max_size=40) | st.sampled_from(SECRETS), max_size=8))
    def test_clean_means_unchanged(self, texts):
        """What is found clean would have passed as it is."""
        if MASKING.are_clean(texts):
            assert [REDACTOR.field("note", one) for one in texts] == texts

    def test_ordinary_texts(self):
        """Most columns hold such ones; else looking would be for nothing."""
        assert MASKING.are_clean([f"please ring twice {n}" for n in range(64)])
        assert MASKING.are_clean([dt.date(2026, 1, n).isoformat() for n in range(1, 28)])

    def test_redactor_of_another_make(self):
        """One that cannot look at many is asked for each."""

        class Plain:
            def field(self, name, value):
                return value

        assert not ColumnRedaction(Plain(), 10).are_clean(["a"])
