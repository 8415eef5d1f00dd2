"""Verifying again: what was seen is remembered, and believed no more than an anchor."""

from __future__ import annotations

import asyncio
import json

import pytest
from click.testing import CliRunner
from otel_audit_postgres.ledger.keys import generate
from otel_audit_postgres.ledger.verify.bookmark import recall, remember
from otel_audit_postgres.ledger.verify.findings import ProblemKind
from otel_audit_postgres.ledger.verify.row_pass import LEAVES_AT_ONCE

from otel_audit.cli.main import cli
from otel_audit.errors import ConfigurationError

ROW = "(SELECT id FROM audit.audit_logs ORDER BY recorded_at, id OFFSET {} LIMIT 1)"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state" / "verified.json"


@pytest.fixture
async def seen(sealed, file):
    """A store of which all 23 rows were verified, then eight more."""
    remember(file, (await sealed.verify()).last_note)
    await sealed.write(8)
    await sealed.seal()
    return sealed


def known(log, file):
    return recall(file, [log.key.public])


class TestIncremental:
    async def test_reads_what_came_since(self, seen, file):
        """New rows, and a sample of the old ones, as far as there are any."""
        report = await seen.verify(remembered=known(seen, file), sample=0)
        assert (report.ok, report.size, report.rows_checked) == (True, 31, 8)
        report = await seen.verify(remembered=known(seen, file), sample=5)
        assert (report.ok, report.rows_checked) == (True, 13)
        assert (await seen.verify(remembered=known(seen, file))).rows_checked == 31

    async def test_finds_what_was_done_to_new_rows(self, seen, file, administrator):
        """They are read in full."""
        await administrator.does(
            f"UPDATE audit.audit_logs SET actor_id = 'eve' WHERE id = {ROW.format(27)}"
        )
        report = await seen.verify(remembered=known(seen, file), sample=0)
        assert report.first_bad.leaf == 27

    @pytest.mark.parametrize(
        "tampering",
        [
            f"DELETE FROM audit.audit_logs WHERE id = {ROW.format(3)}",
            "UPDATE audit.ledger_blocks SET hashes = sha256(hashes) WHERE first = 10",
            "DELETE FROM audit.ledger_blocks WHERE first = 10",
        ],
    )
    async def test_finds_a_missing_row_and_any_change_of_the_tree_before(
        self, seen, file, administrator, tampering
    ):
        """Rows are counted, and the tree is always built from its first leaf."""
        await administrator.does(tampering)
        assert not (await seen.verify(remembered=known(seen, file), sample=0)).ok

    async def test_is_itself_a_witness(self, seen, file, administrator):
        """Without any anchor, an older copy is known by what was verified of it."""
        remember(file, (await seen.verify()).last_note)
        for statement in (
            "DELETE FROM audit.ledger_checkpoints WHERE size > 23",
            "DELETE FROM audit.ledger_blocks WHERE first >= 23",
            (
                "DELETE FROM audit.audit_logs WHERE id NOT IN "
                "(SELECT id FROM audit.audit_logs ORDER BY recorded_at, id LIMIT 23)"
            ),
        ):
            await administrator.does(statement)
        assert (await seen.verify(anchors=[])).ok
        report = await seen.verify(anchors=[], remembered=known(seen, file))
        assert set(report.counts) == {ProblemKind.RESTORED_OLD_COPY}


class TestState:
    async def test_of_another_key_is_refused(self, seen, file):
        """What nobody signed whom we know is not believed."""
        with pytest.raises(ConfigurationError, match="not signed by a given key: remove it"):
            recall(file, [generate(seen.key.name).public])

    @pytest.mark.parametrize(
        "text",
        ["", "{}", "[]", '{"format": "otel-audit verified 1", "checkpoint": "x"}', '{"format": 1}'],
    )
    def test_that_is_none_is_refused(self, file, text):
        """A file of something else is named, with what to do."""
        file.parent.mkdir()
        file.write_text(text)
        file.chmod(0o600)
        with pytest.raises(
            ConfigurationError, match=f"{file} is not what a verification remembers"
        ):
            recall(file, [])

    async def test_that_others_could_write_is_refused(self, seen, file):
        """Whoever could write it could have rows passed over."""
        file.chmod(0o666)
        with pytest.raises(ConfigurationError, match="others could have written"):
            known(seen, file)

    async def test_with_a_forged_size_is_refused(self, seen, file):
        """The signature covers how far it came."""
        said = json.loads(file.read_text())
        file.write_text(
            json.dumps({**said, "checkpoint": said["checkpoint"].replace("\n23\n", "\n30\n")})
        )
        with pytest.raises(ConfigurationError, match="remove it"):
            known(seen, file)

    async def test_of_another_log_is_found(self, seen, file, log, tmp_path):
        """A checkpoint that this log never had is no beginning of it."""
        from otel_audit_postgres.ledger.checkpoints import Checkpoint, signed
        from otel_audit_postgres.ledger.verify.bookmark import Bookmark

        other = Checkpoint(seen.key.name, 10, bytes(32))
        remembered = Bookmark(signed(other, [seen.key]), other)
        report = await seen.verify(remembered=remembered)
        assert set(report.counts) == {ProblemKind.RESTORED_OLD_COPY}

    def test_that_is_not_there_is_none(self, file):
        """The first time everything is read."""
        assert recall(file, []) is None


class TestTogether:
    async def test_finds_the_same(self, sealed, administrator, monkeypatch):
        """Several processes name what one names, in the same order."""
        monkeypatch.setattr("otel_audit_postgres.ledger.verify.row_pass.LEAVES_AT_ONCE", 5)
        progress = []
        report = await sealed.verify(
            jobs=2, progress=lambda done, total: progress.append((done, total))
        )
        assert (report.ok, report.rows_checked) == (True, 23)
        assert progress[-1] == (23, 23)
        for number in (20, 4, 11):
            await administrator.does(
                f"UPDATE audit.audit_logs SET actor_id = 'eve' WHERE id = {ROW.format(number)}"
            )
        await administrator.does(f"DELETE FROM audit.audit_logs WHERE id = {ROW.format(7)}")
        alone, together = await sealed.verify(), await sealed.verify(jobs=2)
        assert together.problems == alone.problems
        assert together.counts == alone.counts
        assert [problem.leaf for problem in together.problems] == [4, 7, 11, 20]

    async def test_sees_one_moment(self, sealed, monkeypatch):
        """Rows that are written and sealed meanwhile give no false alarm."""
        monkeypatch.setattr("otel_audit_postgres.ledger.verify.row_pass.LEAVES_AT_ONCE", 1)

        async def go_on():
            for _ in range(6):
                await sealed.write(5)
                await sealed.seal()

        report, _ = await asyncio.gather(sealed.verify(jobs=2), go_on())
        assert report.problems == ()

    def test_starts_none_for_a_small_log(self):
        """A part is large enough to be worth a connection."""
        assert LEAVES_AT_ONCE >= 10_000


class TestCommand:
    @pytest.fixture
    def run(self, sealed, monkeypatch, file):
        monkeypatch.setenv("OTEL_AUDIT_DSN", sealed.dsn)
        monkeypatch.setenv("OTEL_AUDIT_VERIFY_KEYS", sealed.key.public.text())

        def call(*arguments, status=0):
            result = CliRunner().invoke(cli, ["verify", *map(str, arguments)])
            assert result.exit_code == status, result.output
            return result.output

        return call

    def test_remembers(self, run, file):
        """The first run reads all, the next what came since, and a sample."""
        assert "checked 23 rows" in run("--state", file)
        assert "checked 4 rows" in run("--state", file, "--sample", 4)
        assert json.loads(file.read_text())["format"] == "otel-audit verified 1"
        assert "checked 23 rows" in run("--state", file, "--full")

    def test_remembers_beside_the_user_s_other_states(self, run, tmp_path, monkeypatch):
        """Without a file it has one of its own for each store."""
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
        run("--incremental")
        assert len(list((tmp_path / "home" / "otel-audit" / "verified").iterdir())) == 1
        assert "checked 0 rows" in run("--incremental", "--sample", 0)

    def test_remembers_nothing_of_a_tampered_store(self, run, file, sealed, administrator):
        """What was not found in order is looked at again."""

        async def tamper():
            import asyncpg
            from ledger_store import Administrator

            connection = await asyncpg.connect(sealed.dsn)
            await Administrator(connection).does("DELETE FROM audit.audit_logs")
            await connection.close()

        asyncio.run(tamper())
        run("--state", file, status=1)
        assert not file.exists()

    def test_refuses_what_excludes_itself(self, run, file):
        """All, and only some, cannot both be wanted."""
        assert "--full" in run("--full", "--incremental", status=2)
        assert "exclude" in run("--since", "1d", "--state", file, status=2)

    def test_runs_in_several_processes(self, run):
        """The report is that of one."""
        assert "checked 23 rows" in run("--jobs", 2)
