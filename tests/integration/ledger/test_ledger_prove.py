"""Evidence bundles: they hold in an empty environment, and with one byte changed they do not."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from ledger_store import Administrator
from otel_audit_postgres.ledger import verify_evidence
from otel_audit_postgres.ledger.keys import generate
from otel_audit_postgres.ledger.prove import (
    ProofError,
    prove_entity,
    prove_growth,
    prove_record,
    write,
)

from otel_audit.cli.main import cli
from otel_audit.record import Target


def holds(bundle, keys=()):
    try:
        verify_evidence.check(json.loads(json.dumps(bundle)), list(keys))
    except (verify_evidence.Bad, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


@pytest.fixture
async def known(log):
    """A sealed store with a known record among others; its id."""
    await log.write(5)
    await log.seal()
    (record_id,) = await log.write(1, target=Target(type="order", id="123"), metadata={"ü": "\n"})
    await log.write(7)
    await log.seal()
    return record_id


class TestProveRecord:
    async def test_holds_without_network_and_packages(self, log, known, tmp_path):
        """A bare interpreter, outside of any environment, accepts it."""
        write(await prove_record(log.dsn, known, [log.key.public]), tmp_path / "out")
        done = subprocess.run(
            [sys.executable, "-I", "-S", "verify.py"],
            cwd=tmp_path / "out", env={}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"record {known}: leaf" in done.stdout
        assert f"key {log.key.public.text()}" in done.stdout
        assert done.stdout.endswith("HOLDS\n")

    async def test_fails_with_any_byte_changed(self, log, known, tmp_path):
        """Each byte of the bundle matters."""
        write(await prove_record(log.dsn, known, [log.key.public]), tmp_path / "out")
        file = tmp_path / "out" / "evidence.json"
        good = file.read_bytes()
        # a signature takes milliseconds in plain Python; every third byte, and all bits over time
        for place in range(0, len(good), 3):
            bad = bytearray(good)
            bad[place] ^= 1 << place % 7
            file.write_bytes(bad)
            assert verify_evidence.main([str(file)]) == 1, (place, bad[place - 9 : place + 9])
        file.write_bytes(good)
        assert verify_evidence.main([str(file)]) == 0

    async def test_fails_under_another_key(self, log, known):
        """The key that the auditor holds decides, not the one in the bundle."""
        bundle = await prove_record(log.dsn, known, [log.key.public])
        assert holds(bundle, [log.key.public.text()])
        assert not holds(bundle, [generate(log.key.name).public.text()])

    async def test_fails_with_the_checkpoint_of_another_log(self, log, known):
        """A proof belongs to one log."""
        bundle = await prove_record(log.dsn, known, [log.key.public])
        other = generate(log.key.name)
        assert not holds({**bundle, "keys": [other.public.text()]})

    async def test_fails_unsigned(self, log):
        """A log without signatures proves nothing to others."""
        (record_id,) = await log.write(1)
        await log.seal(signer=None)
        assert not holds(await prove_record(log.dsn, record_id, []))

    @pytest.mark.parametrize(
        ("record_id", "message"),
        [("x", "not a record's id"), ("0192f0c1-0000-7000-8000-000000000000", "no record")],
    )
    async def test_says_what_is_not_there(self, log, known, record_id, message):
        """An unknown id is an error that names it."""
        with pytest.raises(ProofError, match=message) as raised:
            await prove_record(log.dsn, record_id, [])
        assert record_id in str(raised.value)

    async def test_says_what_is_not_sealed(self, log, known):
        """A record of this second is not in the log yet."""
        (record_id,) = await log.write(1)
        with pytest.raises(ProofError, match="not sealed yet"):
            await prove_record(log.dsn, record_id, [])

    async def test_proves_nothing_that_was_tampered_with(self, log, known, administrator):
        """A changed row has no proof, and a damaged ledger gives none."""
        await administrator.does("UPDATE audit.audit_logs SET recorded_at = now()")
        with pytest.raises(ProofError, match="not what was sealed"):
            await prove_record(log.dsn, known, [])
        await administrator.does("UPDATE audit.ledger_blocks SET hashes = sha256(hashes)")
        with pytest.raises(ProofError, match="damaged"):
            await prove_record(log.dsn, known, [])


class TestProveEntity:
    async def test_proves_a_history(self, log, known):
        """Every record about the order, in the log's order."""
        await log.write(2, target=Target(type="order", id="123"))
        await log.seal()
        bundle = await prove_entity(log.dsn, "order:123", [log.key.public])
        assert [record["leaf"] for record in bundle["records"]][1:] == [13, 14]
        assert holds(bundle)
        first, second, third = bundle["records"]
        assert not holds({**bundle, "records": [{**first, "payload": second["payload"]}, third]})

    async def test_says_that_there_is_none(self, log, known):
        """An unknown entity is an error."""
        with pytest.raises(ProofError, match="order:124"):
            await prove_entity(log.dsn, "order:124", [])


class TestProveGrowth:
    async def test_holds_from_every_earlier_checkpoint(self, log, known, connection):
        """What an auditor kept is the beginning of what is there."""
        await log.write(3)
        await log.seal()
        for row in await connection.fetch("SELECT note FROM audit.ledger_checkpoints"):
            bundle = await prove_growth(log.dsn, row["note"], [log.key.public])
            assert holds(bundle)
            if bundle["proof"]:
                turned = [base64.b64encode(bytes(32)).decode(), *bundle["proof"][1:]]
                assert not holds({**bundle, "proof": turned})
                assert not holds({**bundle, "old": bundle["new"]})

    async def test_is_refused_for_another_past(self, log, known, connection):
        """A checkpoint that this log never had is no beginning of it."""
        note = await connection.fetchval("SELECT note FROM audit.ledger_checkpoints LIMIT 1")
        with pytest.raises(ProofError, match="did not grow"):
            await prove_growth(log.dsn, note.replace("\n5\n", "\n6\n"), [])
        with pytest.raises(ProofError, match="another log"):
            await prove_growth(log.dsn, note.replace(log.key.name, "other", 1), [])
        with pytest.raises(ProofError, match="not a"):
            await prove_growth(log.dsn, "", [])


class TestCommand:
    @pytest.fixture
    def run(self, log, tmp_path, monkeypatch):
        monkeypatch.setenv("OTEL_AUDIT_DSN", log.dsn)
        monkeypatch.setenv("OTEL_AUDIT_VERIFY_KEYS", log.key.public.text())
        monkeypatch.chdir(tmp_path)

        def call(*arguments, status=0):
            result = CliRunner().invoke(cli, ["prove", *arguments])
            assert result.exit_code == status, result.output
            return result.output

        return call

    def test_writes_a_directory(self, run, known, tmp_path):
        """One for a record, one for a history, one for growth; never over another."""
        assert f"evidence-{known}" in run(known)
        assert "there already" in run(known, status=1)
        run("--entity", "order:123")
        run("--grown-from", str(tmp_path / "anchor"), "--out", "growth")
        for directory in (f"evidence-{known}", "evidence-order-123", "growth"):
            assert verify_evidence.main([str(tmp_path / directory / "evidence.json")]) == 0

    def test_wants_one_thing(self, run):
        """Nothing, or two things, is wrong use."""
        assert "give one of" in run(status=2)
        assert "give one of" in run("x", "--entity", "y", status=2)

    def test_proves_nothing_without_a_ledger(self, run, log, known):
        """After the ledger is gone, the error names what to run."""
        import asyncpg

        async def empty():
            connection = await asyncpg.connect(log.dsn)
            await Administrator(connection).does("DELETE FROM audit.ledger_checkpoints")
            await connection.close()

        asyncio.run(empty())
        assert "nothing is sealed" in run(known, status=1)


def test_what_cannot_be_read_is_not_called_false(tmp_path, capsys):
    """Without its file the program has checked nothing: it says so, with a status of its own."""
    assert verify_evidence.main([str(tmp_path / "missing.json")]) == 2
    assert verify_evidence.main([str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("cannot read ")
    assert "HOLD" not in told.out + told.err
