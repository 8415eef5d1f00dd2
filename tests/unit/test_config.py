from __future__ import annotations

import os
import re
from pathlib import Path
from typing import get_args

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint
from sinks import Sink

from otel_audit._util.postgres_dsn import plain_dsn
from otel_audit.config import AuditConfig
from otel_audit.delivery.factory import make_delivery
from otel_audit.delivery.metrics import Counters
from otel_audit.errors import ConfigurationError

DSN = "postgresql://writer:hunter2@db.example/audit"
_NUMBERS = {
    name: kinds
    for name, setting in AuditConfig.model_fields.items()
    if (kinds := {int, float} & {setting.annotation, *get_args(setting.annotation)})
}


class TestSources:
    def test_the_environment_is_read(self, monkeypatch):
        """Every setting may come from a variable."""
        monkeypatch.setenv("OTEL_AUDIT_DSN", DSN)
        monkeypatch.setenv("OTEL_AUDIT_BODY_LIMIT", "123")
        config = AuditConfig()
        assert config.asyncpg_dsn == DSN
        assert config.body_limit == 123

    def test_arguments_win_over_the_environment(self, monkeypatch):
        """What the program says wins over what the environment says."""
        monkeypatch.setenv("OTEL_AUDIT_BODY_LIMIT", "123")
        assert AuditConfig(body_limit=5).body_limit == 5

    @pytest.mark.parametrize("word", ["off", " OFF "])
    @pytest.mark.parametrize("setting", ["long_action_after", "spool_max_age"])
    def test_the_environment_switches_off_what_is_off_by_none(
        self, monkeypatch, tmp_path, setting, word
    ):
        """Neither the environment nor TOML can write None, and an empty variable is not set."""
        file = tmp_path / "audit.toml"
        file.write_text(f"{setting} = 5\n")
        monkeypatch.setenv("OTEL_AUDIT_CONFIG_FILE", str(file))
        assert getattr(AuditConfig(), setting) == 5
        monkeypatch.setenv(f"OTEL_AUDIT_{setting.upper()}", word)
        assert getattr(AuditConfig(), setting) is None
        monkeypatch.delenv(f"OTEL_AUDIT_{setting.upper()}")
        file.write_text(f'{setting} = "off"\n')
        assert getattr(AuditConfig(), setting) is None

    def test_the_file_is_read_last(self, monkeypatch, tmp_path):
        """The environment wins over the file, the file over the default."""
        file = tmp_path / "audit.toml"
        file.write_text('body_limit = 7\nsensitive_paths = ["/patients"]\n')
        monkeypatch.setenv("OTEL_AUDIT_CONFIG_FILE", str(file))
        monkeypatch.setenv("OTEL_AUDIT_BODY_LIMIT", "123")
        config = AuditConfig()
        assert config.body_limit == 123
        assert config.sensitive_paths == ("/patients",)

    @pytest.mark.parametrize("text", ["/a, /b", '["/a", "/b"]'])
    def test_lists_are_json_or_commas(self, monkeypatch, text):
        """A list may be written either way."""
        monkeypatch.setenv("OTEL_AUDIT_EXCLUDE_PATHS", text)
        assert AuditConfig().exclude_paths == ("/a", "/b")

    @pytest.mark.parametrize("text", ["ops_admin=platform_admin", '{"ops_admin":"platform_admin"}'])
    def test_maps_are_json_or_pairs(self, monkeypatch, text):
        """A map may be written either way."""
        monkeypatch.setenv("OTEL_AUDIT_ACTOR_TYPE_ALIASES", text)
        assert AuditConfig().actor_type_aliases == {"ops_admin": "platform_admin"}


class TestFaults:
    def test_an_unknown_variable_is_named_with_its_likely_meaning(self, monkeypatch):
        """A typing error is not ignored."""
        monkeypatch.setenv("OTEL_AUDIT_SENSITVE_PATHS", "/patients")
        with pytest.raises(
            ConfigurationError,
            match="OTEL_AUDIT_SENSITVE_PATHS: .* did you mean OTEL_AUDIT_SENSITIVE_PATHS",
        ):
            AuditConfig()

    def test_an_unknown_argument_is_named(self):
        """Neither is one in the program."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_DSM: .* OTEL_AUDIT_DSN"):
            AuditConfig(dsm=DSN)

    def test_an_unknown_key_in_the_file_is_named(self, monkeypatch, tmp_path):
        """Nor is one in the file."""
        file = tmp_path / "audit.toml"
        file.write_text("boddy_limit = 7\n")
        monkeypatch.setenv("OTEL_AUDIT_CONFIG_FILE", str(file))
        with pytest.raises(ConfigurationError, match="BODDY_LIMIT"):
            AuditConfig()

    @pytest.mark.parametrize("content", [None, "no = toml = at all"])
    def test_a_missing_or_broken_file_is_an_error(self, monkeypatch, tmp_path, content):
        """A file that was named must be there and be TOML."""
        file = tmp_path / "audit.toml"
        if content is not None:
            file.write_text(content)
        monkeypatch.setenv("OTEL_AUDIT_CONFIG_FILE", str(file))
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_CONFIG_FILE"):
            AuditConfig()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("OTEL_AUDIT_BODY_LIMIT", "-1"),
            ("OTEL_AUDIT_BODY_LIMIT", "plenty"),
            ("OTEL_AUDIT_EXPORTER", "carrier-pigeon"),
            ("OTEL_AUDIT_ACTOR_TYPE_ALIASES", "just words"),
            ("OTEL_AUDIT_EXCLUDE_PATHS", "[broken"),
            ("OTEL_AUDIT_DSN", "mysql://db/audit"),
        ],
    )
    def test_a_wrong_value_names_its_setting(self, monkeypatch, name, value):
        """The error names the setting."""
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigurationError, match=name):
            AuditConfig()

    @pytest.mark.parametrize("value", ["0", "-1", "1e-6", "1e12", "1e30", "9e999", "nan"])
    @pytest.mark.parametrize(
        "name",
        _NUMBERS,
    )
    def test_a_number_that_is_accepted_can_be_used(self, tmp_path, name, value):
        """What the spool, a metric or gRPC cannot take is refused as the setting that it is of."""
        text = value if float in _NUMBERS[name] else f"{float(value):.0f}"
        try:
            config = AuditConfig(dsn=DSN, spool_dir=tmp_path, **{name: text})
        except ConfigurationError as error:
            assert f"OTEL_AUDIT_{name.upper()}: " in str(error)  # noqa: PT017 - or it is accepted
            return
        try:
            make_delivery(config, Sink, Counters()).queue.spool.close()
        except ConfigurationError as error:
            # fewer than four of its files: for those who open a spool only
            assert "less than 4 segments" in str(error)  # noqa: PT017 - or it is opened
        # what metrics are, in OTLP
        NumberDataPoint(as_int=config.spool_max_bytes)
        # what gRPC takes for the longest message
        assert config.serve_max_message_bytes.bit_length() < 32

    def test_no_error_shows_a_value(self, monkeypatch):
        """A secret in the wrong place does not end in a log."""
        monkeypatch.setenv("OTEL_AUDIT_DSN", "mysql://writer:hunter2@db/audit")
        monkeypatch.setenv("OTEL_AUDIT_BODY_LIMIT", "hunter2")
        with pytest.raises(ConfigurationError) as caught:
            AuditConfig()
        assert "hunter2" not in str(caught.value)
        assert "hunter2" not in repr(caught.value)

    def test_a_configuration_does_not_show_its_secrets(self):
        """Printing the settings shows no password."""
        assert "hunter2" not in repr(AuditConfig(dsn=DSN))

    @pytest.mark.parametrize("enabled", [None, False])
    def test_required_and_off_do_not_go_together(self, enabled):
        """An application that must be audited cannot be so by doing nothing."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_REQUIRED"):
            AuditConfig(required=True, enabled=enabled)

    def test_enabled_needs_a_destination(self):
        """Auditing that is asked for needs somewhere to go."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_DSN"):
            AuditConfig(enabled=True)


class TestActive:
    @pytest.mark.parametrize(
        ("settings", "active"),
        [
            ({}, False),
            ({"dsn": DSN}, True),
            ({"exporter": "console"}, True),
            ({"dsn": DSN, "enabled": False}, False),
        ],
    )
    def test_it_is_active_when_there_is_a_destination(self, settings, active):
        """Auditing is on where there is a destination, unless it is switched off."""
        assert AuditConfig(**settings).active is active


class TestPlainDsn:
    def test_both_forms_are_taken(self):
        """The form that SQLAlchemy needs is understood too."""
        assert plain_dsn("postgresql+asyncpg://a@b/c") == "postgresql://a@b/c"
        assert plain_dsn("postgresql://a@b/c") == "postgresql://a@b/c"


class TestSaidByNothing:
    @pytest.mark.parametrize("empty", ["", " ", "\t"])
    def test_an_empty_variable_says_nothing(self, empty, monkeypatch):
        """As with OpenTelemetry's own variables: what is set to nothing is not set."""
        for name in [one for one in os.environ if one.startswith("OTEL_AUDIT_")]:
            monkeypatch.delenv(name)
        expected = AuditConfig().model_dump()
        for name in AuditConfig.model_fields:
            if name != "request_id_header":
                monkeypatch.setenv(f"OTEL_AUDIT_{name.upper()}", empty)
        monkeypatch.setenv("OTEL_AUDIT_CONFIG_FILE", empty)
        assert AuditConfig().model_dump() == expected

    def test_no_request_id_is_said_by_an_empty_header(self, monkeypatch):
        """The one variable of which an empty value has a meaning."""
        monkeypatch.setenv("OTEL_AUDIT_REQUEST_ID_HEADER", "")
        assert AuditConfig().request_id_header == ""

    def test_variables_of_kubernetes_are_no_settings(self, monkeypatch):
        """A Service called otel-audit puts these into every pod; a near miss is still a mistake."""
        for name in (
            "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_OTLP_HTTP", "PORT", "PORT_4318_TCP",
            "PORT_4318_TCP_PROTO", "PORT_4318_TCP_PORT", "PORT_4318_TCP_ADDR",
            "SINK_SERVICE_HOST", "SINK_PORT_4318_TCP_ADDR",
        ):  # fmt: skip
            monkeypatch.setenv(f"OTEL_AUDIT_{name}", "tcp://10.0.0.1:4318")
        AuditConfig()
        monkeypatch.setenv("OTEL_AUDIT_PORTS", "1")
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_PORTS: there is no such setting"):
            AuditConfig()


class TestHome:
    def test_a_path_may_begin_with_it(self, tmp_path, monkeypatch):
        """`~` stands for it in each setting that names a file, where no shell has put it."""
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "audit.toml").write_text('archive = "file:~/archive"')
        monkeypatch.setenv("OTEL_AUDIT_CONFIG_FILE", "~/audit.toml")
        monkeypatch.setenv("OTEL_AUDIT_SPOOL_DIR", "~/spool")
        monkeypatch.setenv("OTEL_AUDIT_ANCHOR", "file:~/anchor,https://h/~x,~/other")
        config = AuditConfig(policy_file="~/policy.toml", actor_type_aliases={"~": "user"})
        assert config.spool_path == tmp_path / "spool"
        assert config.policy_file == tmp_path / "policy.toml"
        assert config.archive == f"file:{tmp_path}/archive"
        assert config.anchor == (f"file:{tmp_path}/anchor", "https://h/~x", f"{tmp_path}/other")
        assert config.actor_type_aliases == {"~": "user"}

    @pytest.mark.parametrize(
        "name",
        [
            name
            for name, setting in AuditConfig.model_fields.items()
            if Path in get_args(setting.annotation)
            or re.search(r"_(file|dir|directory|certificate)$", name)
        ],
    )
    def test_each_setting_that_is_a_path_has_it(self, name, tmp_path, monkeypatch):
        """None is left out: a directory named ``~`` would be made, or a file not found."""
        monkeypatch.setenv("HOME", str(tmp_path))
        assert getattr(AuditConfig(**{name: "~/here"}), name) == tmp_path / "here"

    def test_the_file_of_an_issuer_has_it(self, tmp_path, monkeypatch):
        """A path inside of a table is one like any other."""
        monkeypatch.setenv("HOME", str(tmp_path))
        issuer = {"issuer": "a", "algorithms": ["RS256"]}
        config = AuditConfig(jwt_issuers=[{**issuer, "jwks_file": "~/jwks.json"}])
        assert config.jwt_issuers[0].jwks_file == tmp_path / "jwks.json"
        with pytest.raises(ConfigurationError, match="JWT_ISSUERS: jwks_file: begins with ~"):
            AuditConfig(jwt_issuers=[{**issuer, "jwks_file": "~no-such-user/jwks.json"}])

    def test_one_that_there_is_not_is_named(self):
        """The message names the setting."""
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_SPOOL_DIR: begins with ~"):
            AuditConfig(spool_dir="~no-such-user/spool")
