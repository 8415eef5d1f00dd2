"""What `otel-audit doctor` says about key, sealer and anchors; and each bad input its own error."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from otel_audit_postgres.ledger import verify_evidence
from otel_audit_postgres.ledger.anchors import FileAnchor
from otel_audit_postgres.ledger.health import inspect_key_file, inspect_ledger
from otel_audit_postgres.ledger.keys import generate, write_key_files
from otel_audit_postgres.ledger.prove import prove_record, write

from otel_audit.cli.main import cli


async def look(log, **options):
    options = {"keys": [log.key.public], "anchors": [log.anchor], **options}
    found = await inspect_ledger(log.dsn, **options)
    return {finding.name.partition(" ")[0]: finding for finding in found}


class TestLedger:
    async def test_in_order_is_fine(self, sealed):
        """Sealed, signed by a known key, and published."""
        found = await look(sealed)
        assert {name: finding.ok for name, finding in found.items()} == {
            "sealing": True, "signature": True, "anchor": True, "place": True,
        }  # fmt: skip
        assert sealed.key.public.text() in found["signature"].detail

    async def test_that_lags_is_named(self, sealed, administrator):
        """Rows that wait for minutes say that no sealer runs."""
        await sealed.write(2)
        assert (await look(sealed))["sealing"].ok is True
        await administrator.does(
            "UPDATE audit.ledger_queue SET recorded_at = recorded_at - interval '1 hour'"
        )
        found = (await look(sealed))["sealing"]
        assert (found.ok, found.detail[:22]) == (False, "2 rows wait to be seal")
        assert "otel-audit seal" in found.remedy

    async def test_that_is_unsigned_says_what_that_costs(self, log):
        """Whoever owns the database can write it anew."""
        await log.write(1)
        await log.seal(signer=None)
        found = (await look(log))["signature"]
        assert found.ok is None
        assert "owner can rewrite rows and ledger" in found.detail
        assert "otel-audit keygen" in found.remedy

    async def test_that_was_never_sealed_is_named(self, log):
        """A store without a checkpoint."""
        assert "nothing is sealed" in (await look(log))["signature"].detail

    async def test_under_another_key_is_a_failure(self, sealed):
        """The signature is not by whom it should be."""
        found = (await look(sealed, keys=[generate(sealed.key.name).public]))["signature"]
        assert found.ok is False
        assert "unchecked" not in found.detail
        assert (await look(sealed, keys=[]))["signature"].ok is None

    async def test_without_anchor_says_what_that_costs(self, sealed):
        """An old copy would pass."""
        found = (await look(sealed, anchors=[]))["anchor"]
        assert found.ok is None
        assert "old copy" in found.detail

    async def test_whose_anchor_is_behind_ahead_or_away(self, sealed, tmp_path, connection):
        """Each has its own word; only an anchor that has seen more is a failure."""
        note = await sealed.anchor.last()
        first = await connection.fetchval("SELECT note FROM audit.ledger_checkpoints ORDER BY size")
        await sealed.anchor.publish(first)
        found = (await look(sealed))["anchor"]
        assert (found.ok, "13 rows behind" in found.detail) == (None, True)
        await sealed.anchor.publish(note.replace("\n23\n", "\n99\n"))
        found = (await look(sealed))["anchor"]
        assert (found.ok, "has seen 99 rows, the ledger has 23" in found.detail) == (False, True)
        (tmp_path / "file").write_text("")
        away = FileAnchor(tmp_path / "file" / "below", directory=False)
        assert (await look(sealed, anchors=[away]))["anchor"].ok is None

    async def test_that_cannot_be_reached_is_a_finding(self):
        """Never an error."""
        (found,) = await inspect_ledger("postgresql://postgres@127.0.0.1:1/x")
        assert found.ok is None


class TestKeyFile:
    def test_that_others_may_read_is_a_failure(self, tmp_path):
        """So is one that is not there; a good one shows its public half alone."""
        key = generate("x")
        write_key_files(key, tmp_path / "key")
        (found,) = inspect_key_file(tmp_path / "key", seals_here=False)
        assert found.ok is True
        assert key.public.text() in found.detail
        assert key.text() not in found.detail
        (tmp_path / "key").chmod(0o640)
        (found,) = inspect_key_file(tmp_path / "key", seals_here=False)
        assert (found.ok, "others may read" in found.detail) == (False, True)
        (found,) = inspect_key_file(tmp_path / "none", seals_here=False)
        assert found.ok is False

    def test_within_an_application_is_weaker(self):
        """Sealing where records are made is said to be."""
        (found,) = inspect_key_file(None, seals_here=True)
        assert (found.name, found.ok) == ("sealer_apart", None)


class TestDoctor:
    def test_shows_the_ledger(self, sealed, monkeypatch, tmp_path):
        """The command tells of sealing, signature and anchors."""
        monkeypatch.setenv("OTEL_AUDIT_DSN", sealed.dsn)
        monkeypatch.setenv("OTEL_AUDIT_VERIFY_KEYS", sealed.key.public.text())
        monkeypatch.setenv("OTEL_AUDIT_ANCHOR", f"file:{tmp_path / 'anchor'}")
        monkeypatch.setenv("OTEL_AUDIT_SEAL", "true")
        output = CliRunner().invoke(cli, ["doctor"]).output
        for line in (
            "sealing: 23 rows are sealed",
            "signature: signed by",
            "anchor ",
            "sealer_apart:",
        ):
            assert line in output, output

    def test_names_a_wrong_setting(self, sealed, monkeypatch):
        """A key that is none is a failed check, not a crash."""
        monkeypatch.setenv("OTEL_AUDIT_DSN", sealed.dsn)
        monkeypatch.setenv("OTEL_AUDIT_VERIFY_KEYS", "a+b+c")
        result = CliRunner().invoke(cli, ["doctor"])
        assert result.exit_code == 1
        assert "ledger settings: OTEL_AUDIT_VERIFY_KEYS" in result.output


class TestBadInput:
    @pytest.fixture
    def run(self, sealed, monkeypatch, tmp_path):
        monkeypatch.setenv("OTEL_AUDIT_DSN", sealed.dsn)
        monkeypatch.chdir(tmp_path)

        def call(*arguments):
            result = CliRunner().invoke(cli, arguments)
            assert result.exit_code == 1, result.output
            assert "Traceback" not in result.output
            return result.output

        return call

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("show", "0192f0c1-0000-7000-8000-000000000000"), "there is no record 0192f0c1"),
            (("prove", "0192f0c1-0000-7000-8000-000000000000"), "there is no record 0192f0c1"),
            (("prove", "--entity", "order:none"), "there is no record about order:none"),
            (
                ("verify", "--key", "/nowhere/key.pub"),
                "--key: neither a key, name+id+base64, nor a file that can be",
            ),
            (("verify", "--key", "a+b+c"), "--key: a key looks like name+id+base64"),
            (("verify", "--anchor", "ftp://x"), "an anchor is file:PATH"),
            (
                ("seal", "--once", "--key-file", "/nowhere/key"),
                "--key-file: the file cannot be read",
            ),
            (("verify", "--dsn", "postgresql://postgres@127.0.0.1:1/x"), "--dsn"),
        ],
    )
    def test_is_one_clear_line(self, run, arguments, message):
        """What was wrong and where; nothing is lost by it."""
        assert message in run(*arguments)

    def test_of_a_wrong_key_is_a_forged_signature(self, run):
        """With a key that did not sign, nothing is believed."""
        output = run("verify", "--key", generate("audit.example.com/log").public.text())
        assert "forged signature" in output

    async def test_of_a_private_key_in_place_of_a_public_one(self, sealed, monkeypatch, tmp_path):
        """A secret that was given by mistake is not repeated."""
        result = CliRunner().invoke(
            cli, ["verify", "--dsn", sealed.dsn, "--key", sealed.key.text()]
        )
        assert "this is a private key" in result.output
        assert sealed.key.text() not in result.output

    async def test_of_another_log_s_bundle_names_the_log(
        self, sealed, log, tmp_path, connection, capsys
    ):
        """Under the key that the auditor holds, a bundle of another log does not hold."""
        row = await connection.fetchval("SELECT id::text FROM audit.audit_logs LIMIT 1")
        write(await prove_record(sealed.dsn, row, [sealed.key.public]), tmp_path / "out")
        file = tmp_path / "out" / "evidence.json"
        mine = generate("audit.example.com/mine").public.text()
        assert verify_evidence.main([str(file), mine]) == 1
        said = capsys.readouterr().out
        assert "not signed by a known key" in said
        assert sealed.key.name in said
        bundle = json.loads(file.read_text())
        file.write_text(json.dumps({**bundle, "format": "other"}))
        assert verify_evidence.main([str(file)]) == 1
        assert "not an evidence bundle" in capsys.readouterr().out
