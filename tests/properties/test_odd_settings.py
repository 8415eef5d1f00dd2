"""Whatever a setting holds, it is taken, or refused in one line that names it and hides the value."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from otel_audit_postgres.ledger.anchors import anchors_from
from otel_audit_postgres.ledger.settings import chosen_public_keys, chosen_signer

from otel_audit import AuditConfig, OtelAuditError
from otel_audit.runtime import Runtime
from otel_audit.server.credentials import read_entries
from otel_audit.setting_values import PREFIX

CANARY = "S3cretCanary"
ODD = (
    "", " ", "\x01", "\x1b[2J", "é", "日本", "\udcff", "-1", "0", "1e999", "nan", "inf", "9" * 30,
    "true", "perhaps", "null", "[]", "{}", "[", '["a"', "[1]", '{"a":1}', "a,b", "a=b", ",", "=",
    "::", "http://", "x" * 5_000, "[" * 20_000, '{"a":' * 20_000, "./..", "/proc", "/dev/null", "%",
    "module:name", "a\nb", "[::1", "http://[::1", "http://h:99999", "999.1.1.1", "10.0.0.0/99",
    f"https://user:{CANARY}@h/x", f"postgresql://u:{CANARY}@h/x", f"/proc/{CANARY}",
    f"{CANARY}:x", f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----",
    f'["{CANARY}"]', f'{{"{CANARY}":"{CANARY}"}}', f"{CANARY}={CANARY}", f"file:/proc/{CANARY}",
    f"dir:{CANARY}", f"python:{CANARY}:x", f"[[{CANARY}", f"{CANARY}+{CANARY}+{CANARY}",
)  # fmt: skip
QUICK = (*range(2, 7), 9, 12, 17, 29, 42, 44, 45, 46, 49, 52)
"""Places of those that are tried with each setting also where slow tests are left out."""

CONTENTS = {
    "empty": b"", "deep.json": b"[" * 100_000, "deep.toml": b"a=" + b"[" * 50_000 + b"]" * 50_000,
    "every byte": bytes(range(256)), "a secret": CANARY.encode(), "no keys": b'{"keys":[{}]}',
    "control": b"a='\\u001b'\n\x1b='x'", "pem": f"-----BEGIN PRIVATE KEY-----\n{CANARY}".encode(),
    "toml": b"a = 1\n",
}  # fmt: skip
STORE = {"DSN": f"postgresql://audit:{CANARY}@127.0.0.1:1/x"}
APART = {"EXPORTER": "none", "ENABLED": "true"}
JWT = {**APART, "JWT_ALGORITHMS": "RS256", "JWT_JWKS_FILE": "/nonexistent"}
HMAC = {**APART, "JWT_KEY": "k" * 40, "JWT_ALGORITHMS": "HS256", "REDACT_MODE": "hmac",
        "HMAC_KEY": "k" * 40}  # fmt: skip
SHOWN = {"config_file", "policy_file", "serve_tokens_file", "spool_dir"}
"""Of these a message may show where they point, or the name of a key in the file."""


def around(setting: str) -> list[dict[str, str]]:
    """Other settings under which this one counts."""
    if setting.startswith("otlp"):
        return [{"OTLP_ENDPOINT": "https://127.0.0.1:1", "EXPORTER": "otlp"}]
    if setting.startswith(("jwt", "hmac")):
        return [JWT, HMAC]
    parts = (
        "spool",
        "outbox",
        "orm",
        "delivery",
        "strict",
        "dsn",
        "exporter",
        "enabled",
        "required",
    )
    return [STORE if setting.startswith(parts) else APART]


def use_all() -> None:
    """Make everything that is made of settings when a process starts."""
    config = AuditConfig()
    if config.active:
        Runtime(config).close()
    chosen_signer(config)
    chosen_public_keys(config)
    anchors_from(config.anchor)
    if config.serve_tokens_file is not None:
        read_entries(config.serve_tokens_file)


def fault(setting: str, value: str, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Try a value; what is wrong with the answer."""
    monkeypatch.chdir(os.environ["OTEL_AUDIT_SPOOL_DIR"].rpartition("/")[0])
    for others in around(setting):
        with monkeypatch.context() as patched:
            for name, text in {**others, setting.upper(): value}.items():
                patched.setenv(f"{PREFIX}{name}", text)
            try:
                use_all()
            except OtelAuditError as error:
                told = str(error)
                if CANARY in told and setting not in SHOWN:
                    return f"shows the value: {told}"
                if not told.isprintable() or len(told) > 1000:
                    return f"is not a line to read: {told[:200]!r}"
                if PREFIX not in told:
                    return f"names no setting: {told}"
            except Exception as error:
                return f"raises {type(error).__name__}"
    return None


def faults(
    setting: str, values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    found = {value[:40]: fault(setting, value, monkeypatch) for value in values}
    return {value: why for value, why in found.items() if why is not None}


SETTINGS = [*AuditConfig.model_fields, "config_file"]
FILES = [one for one in SETTINGS if "file" in one or "certificate" in one] + ["verify_keys"]


class TestOneProcess:
    @pytest.mark.parametrize("setting", SETTINGS)
    def test_an_odd_value_is_taken_or_refused(self, setting, monkeypatch):
        """The likely ones, for each setting."""
        assert faults(setting, tuple(ODD[place] for place in QUICK), monkeypatch) == {}

    @pytest.mark.slow
    @pytest.mark.parametrize("setting", SETTINGS)
    def test_every_other_odd_value_is_taken_or_refused(self, setting, monkeypatch):
        """All that the quick test leaves out."""
        others = tuple(value for place, value in enumerate(ODD) if place not in QUICK)
        assert len(others) + len(QUICK) == len(ODD)
        assert faults(setting, others, monkeypatch) == {}

    @pytest.mark.parametrize("setting", FILES)
    def test_an_odd_file_is_taken_or_refused(self, setting, monkeypatch, tmp_path):
        """A setting that names a file, whatever is in it."""
        for name, content in CONTENTS.items():
            (tmp_path / name).write_bytes(content)
            (tmp_path / name).chmod(0o600)
        values = tuple(str(tmp_path / name) for name in CONTENTS)
        assert faults(setting, values, monkeypatch) == {}


class TestHeaderNames:
    @pytest.mark.parametrize(
        "setting",
        ["request_id_header", "tenant_header", "api_key_header", "forwarded_header"],
    )
    @pytest.mark.parametrize("name", ["日本", "X Id", "a:b", "x\n", "x\x00", "é"])
    def test_what_no_header_can_be_called_is_refused(self, setting, name):
        """Else each response would fail, or nothing would ever be found."""
        with pytest.raises(OtelAuditError, match=setting.upper()):
            AuditConfig(**{setting: name})


@pytest.fixture
def start() -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(program: str, **settings: str) -> subprocess.CompletedProcess[str]:
        kept = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
        given = {f"{PREFIX}{name}": text for name, text in settings.items()}
        return subprocess.run(
            [sys.executable, "-c", program], env={**kept, **given},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


class TestProcesses:
    @pytest.mark.parametrize(
        "settings",
        [
            {"DSN": "postgresql://a@h/x", "BODY_LIMIT": "\udcff"},
            {"DSN": "postgresql://a@h/x", "REQUEST_ID_HEADER": "日本\x1b[2J"},
            {"DSN": f"mysql://u:{CANARY}@h/x"},
            {"DSN": "postgresql://a@h/x", "HMAC_KEY_FILE": CANARY},
            {"DSN": "postgresql://a@h/x", "ACTOR_ORDER": CANARY},
            {"CONFIG_FILE": "deep.toml"},
        ],
    )
    def test_what_is_wrong_is_one_line(self, settings, start, tmp_path):
        """As `opentelemetry-instrument` starts it: one line, no traceback, status 78."""
        (tmp_path / "deep.toml").write_bytes(CONTENTS["deep.toml"])
        if "CONFIG_FILE" in settings:
            settings = {"CONFIG_FILE": str(tmp_path / "deep.toml")}
        done = start(
            "import otel_audit_bootstrap; otel_audit_bootstrap.pre_instrument()",
            REQUIRED="true", **settings,
        )  # fmt: skip
        assert done.returncode == 78, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("THIS APPLICATION IS NOT AUDITED: OTEL_AUDIT_")
        assert CANARY not in done.stderr
        assert "\x1b" not in done.stderr

    def test_the_command_says_it_in_one_line_too(self, start):
        """A person at a terminal sees no traceback either."""
        done = start("from otel_audit.cli import main; import sys; sys.argv[1:] = ['stats']; main()",
                     DSN=f"postgresql://u:{CANARY}@h:99999999/x")  # fmt: skip
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("Error: ")
        assert "OTEL_AUDIT_DSN" in line
        assert CANARY not in line


def test_the_list_is_as_long_as_it_says() -> None:
    """The quick places are places of the list, and the list is long."""
    assert len(ODD) > 50
    assert len(set(ODD)) == len(ODD) > max(QUICK)
