from __future__ import annotations

import logging

import pytest
from otel_audit_otlp import Endpoint
from pydantic import SecretStr

from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError


def endpoint(url: str = "http://127.0.0.1:4318", **settings: object) -> Endpoint:
    return Endpoint.from_config(AuditConfig(exporter="otlp", otlp_endpoint=url, **settings))


class TestUrl:
    @pytest.mark.parametrize(
        ("given", "used"),
        [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
            ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
            ("https://otel.example.com/tenant-7", "https://otel.example.com/tenant-7/v1/traces"),
            ("https://otel.example.com/v1/traces", "https://otel.example.com/v1/traces"),
            ("https://otel.example.com/x/v1/traces/", "https://otel.example.com/x/v1/traces"),
        ],
    )
    def test_the_signals_path_is_added_unless_it_is_there(self, given, used):
        """A base URL gets /v1/traces; one that ends with it is used as it is."""
        assert endpoint(given).url == used

    @pytest.mark.parametrize(
        ("given", "remedy"),
        [
            ("127.0.0.1:4318", "http://"),
            ("grpc://127.0.0.1:4317", "http://"),
            ("http://", "host"),
            ("http://127.0.0.1:no", "URL"),
            ("https://user:hunter2@otel.example.com", "OTEL_AUDIT_OTLP_HEADERS"),
            ("https://otel.example.com?token=hunter2", "OTEL_AUDIT_OTLP_HEADERS"),
            ("https://otel.example.com/v1/logs", "/v1/traces"),
            ("https://otel.example.com/v1/audit", "/v1/traces"),
        ],
    )
    def test_what_is_no_receiver_is_refused_with_the_remedy(self, given, remedy):
        """The error names the setting and what to write, and shows no secret."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_OTLP_ENDPOINT") as refused:
            endpoint(given)
        assert remedy in str(refused.value)
        assert "hunter2" not in str(refused.value)


class TestSettings:
    def test_an_endpoint_alone_means_otlp(self, monkeypatch):
        """With an endpoint and no DSN auditing is on, and records go there."""
        monkeypatch.setenv("OTEL_AUDIT_OTLP_ENDPOINT", "http://127.0.0.1:4318")
        config = AuditConfig()
        assert (config.active, config.exporter) == (True, "otlp")

    def test_a_dsn_beside_it_wins_unless_the_exporter_is_named(self, monkeypatch):
        """With both set records go to the store, as long as nothing else is said."""
        monkeypatch.setenv("OTEL_AUDIT_OTLP_ENDPOINT", "http://127.0.0.1:4318")
        monkeypatch.setenv("OTEL_AUDIT_DSN", "postgresql://audit@127.0.0.1/audit")
        assert AuditConfig().exporter == "postgres"
        monkeypatch.setenv("OTEL_AUDIT_EXPORTER", "otlp")
        assert AuditConfig().exporter == "otlp"

    def test_otlp_without_an_endpoint_is_refused(self, monkeypatch):
        """It never falls back to where traces go."""
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:4318")
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_OTLP_ENDPOINT: missing"):
            AuditConfig(exporter="otlp")

    def test_strict_needs_a_store_that_says_when_it_has_an_intent(self):
        """Strict delivery and OTLP exclude each other."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_DELIVERY=strict"):
            endpoint(delivery="strict")


class TestHeaders:
    @pytest.mark.parametrize(
        "given",
        [
            "Authorization=Bearer%20a%2Cb%3D,X-Scope=7",
            '{"Authorization": "Bearer a,b=", "x-scope": "7"}',
        ],
    )
    def test_they_are_written_as_opentelemetry_writes_them_or_as_json(self, monkeypatch, given):
        """Pairs are percent-encoded, JSON is taken as it is; names are in lower case."""
        monkeypatch.setenv("OTEL_AUDIT_OTLP_HEADERS", given)
        assert endpoint().headers == {"authorization": "Bearer a,b=", "x-scope": "7"}

    @pytest.mark.parametrize(
        ("name", "value"),
        [("bad name", "x"), ("x-token", "hunter2\r\nx: y"), ("x-token", "hunter2\u20ac"),
         ("Content-Length", "hunter2"), ("", "hunter2")],
    )  # fmt: skip
    def test_what_no_header_may_be_is_refused(self, name, value):
        """The error names the setting and never shows the value."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_OTLP_HEADERS") as refused:
            endpoint(otlp_headers={name: SecretStr(value)})
        assert "hunter2" not in str(refused.value)

    def test_they_are_never_shown(self):
        """Neither the settings nor the endpoint shows a token when it is printed."""
        config = AuditConfig(otlp_endpoint="http://127.0.0.1", otlp_headers={"x": "secret"})
        assert "secret" not in repr(config) + repr(Endpoint.from_config(config))


class TestTls:
    @pytest.mark.parametrize(
        "setting", ["otlp_certificate", "otlp_client_certificate", "otlp_client_key"]
    )
    def test_certificates_without_https_are_refused(self, tmp_path, setting):
        """Whoever names a certificate wants TLS."""
        with pytest.raises(ConfigurationError, match=f"OTEL_AUDIT_{setting.upper()}.*https://"):
            endpoint(**{setting: tmp_path / "x.pem"})

    def test_a_file_that_is_missing_is_named(self, tmp_path):
        """At the start, not with the first record."""
        with pytest.raises(ConfigurationError, match="OTLP_CERTIFICATE: the file cannot be read"):
            endpoint("https://localhost", otlp_certificate=tmp_path / "x.pem")

    @pytest.mark.parametrize("setting", ["otlp_certificate", "otlp_client_certificate"])
    def test_a_file_that_is_no_certificate_is_refused(self, tmp_path, setting):
        """The error says that it is no PEM."""
        (tmp_path / "x.pem").write_text("nothing")
        with pytest.raises(ConfigurationError, match=f"OTEL_AUDIT_{setting.upper()}.*PEM"):
            endpoint("https://localhost", **{setting: tmp_path / "x.pem"})

    def test_a_key_needs_its_certificate(self, tmp_path):
        """A key alone is of no use."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_OTLP_CLIENT_CERTIFICATE"):
            endpoint("https://localhost", otlp_client_key=tmp_path / "x.pem")

    @pytest.mark.parametrize(
        ("url", "warned"),
        [("http://127.0.0.1", False), ("http://localhost:1", False), ("http://[::1]", False),
         ("http://collector.example.com", True), ("https://collector.example.com", False)],
    )  # fmt: skip
    def test_clear_text_to_another_machine_is_warned_of(self, caplog, url, warned):
        """Plain HTTP is for the same machine, or for a network that nobody else sees."""
        with caplog.at_level(logging.WARNING):
            endpoint(url).warn_of_clear_text()
        assert ("plain HTTP" in caplog.text) is warned
