from __future__ import annotations

import pytest

from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.http.headers import CAPTURE_VARIABLES, HeaderNames, kept_headers
from otel_audit.redaction import Redactor

SANITIZE = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS"


class TestHeaderNames:
    def test_names_and_patterns_are_matched_whole_and_without_case(self):
        """A name is kept if it is listed, or a pattern matches all of it."""
        names = HeaderNames(["Accept"], ["X-Shop-.*"])
        assert "accept" in names
        assert "x-shop-cart" in names
        assert "not-x-shop-cart" not in names
        assert "authorization" not in names


class TestKeptHeaders:
    @pytest.mark.parametrize("variable", CAPTURE_VARIABLES)
    def test_opentelemetrys_variables_are_honoured(self, monkeypatch, variable):
        """What contrib's instrumentation captures on spans is kept in records too."""
        monkeypatch.setenv(variable, "x-cart, x-shop-.*")
        kept = kept_headers(["accept"])
        assert all(name in kept for name in ("accept", "x-cart", "x-shop-id"))

    def test_a_broken_pattern_names_the_variable(self, monkeypatch):
        """A pattern that cannot be compiled fails at start-up."""
        monkeypatch.setenv(CAPTURE_VARIABLES[0], "x-(cart")
        with pytest.raises(ConfigurationError, match="CAPTURE_HEADERS_SERVER_REQUEST"):
            kept_headers([])


class TestSanitizedHeaders:
    def test_what_opentelemetry_sanitizes_is_redacted(self, monkeypatch):
        """A header whose name OpenTelemetry's variable matches is kept without its value."""
        monkeypatch.setenv(SANITIZE, ".*cart.*")
        redactor = Redactor.from_config(AuditConfig())
        pairs = [(b"X-Cart-Id", b"17"), (b"accept", b"text/html")]
        kept = redactor.headers(pairs, ["x-cart-id", "accept"])
        assert kept == {"x-cart-id": "[REDACTED]", "accept": "text/html"}

    def test_a_broken_pattern_names_the_variable(self, monkeypatch):
        """A pattern that cannot be compiled fails at start-up."""
        monkeypatch.setenv(SANITIZE, "(")
        with pytest.raises(ConfigurationError, match=SANITIZE):
            Redactor.from_config(AuditConfig())
