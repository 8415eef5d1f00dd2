"""Exports: in the ledger's order, with a proof that holds without the store."""

from __future__ import annotations

import asyncio
import csv
import functools
import gzip
import hashlib
import json
import resource
from pathlib import Path
from typing import get_args

import asyncpg
import pytest
from click.testing import CliRunner
from ledger_store import Administrator, Log
from otel_audit_postgres import PostgresSink
from otel_audit_postgres.archive.parquet_files import read_rows
from otel_audit_postgres.exports.check import check_export
from otel_audit_postgres.exports.proof import ExportError
from otel_audit_postgres.exports.write import DataFormat, write_export
from otel_audit_postgres.query.grammar import Query, parse
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.cli.main import cli
from otel_audit.errors import ConfigurationError, StoreError
from otel_audit.record import Actor, Tenant

FORMATS = get_args(DataFormat)


@pytest.fixture
async def log(audit_store: str, tmp_path: Path) -> Log:
    """Forty rows of two tenants, sealed in blocks of several sizes, and three that wait."""
    found = Log(audit_store, tmp_path)
    for count, tenant in ((10, "acme"), (1, "globex"), (12, "acme"), (17, "globex")):
        await found.write(
            count, tenant=Tenant(id=tenant), actor=Actor(id=f"clerk-{tenant}", type="user")
        )
        await found.seal()
    await found.write(3, tenant=Tenant(id="acme"))
    return found


def payloads(path: Path, data_format: str) -> list[dict]:
    if data_format == "parquet":
        return [json.loads(row["payload"]) for row in read_rows(path)]
    text = path.read_text()
    return json.loads(text) if data_format == "json" else list(map(json.loads, text.splitlines()))


def payload_lines(content: bytes) -> list[bytes]:
    return [line.removesuffix(b",") for line in content.splitlines() if line not in {b"[", b"]"}]


_WITH_LINE_ENDS = (
    """
    UPDATE audit.audit_logs SET
        payload = (E'{\\n' || substr(payload::text, 2))::json,
        content_hash = sha256(convert_to(E'{\\n' || substr(payload::text, 2), 'UTF8'))
    WHERE id IN (SELECT id FROM audit.ledger_queue)
    """,
    """
    UPDATE audit.ledger_queue q SET content_hash = l.content_hash
    FROM audit.audit_logs l WHERE l.id = q.id
    """,
)


class TestAFullDisk:
    @pytest.mark.parametrize("data_format", FORMATS)
    async def test_leaves_nothing_and_says_so(self, log, tmp_path, data_format):
        """A limit of the file's size fails as a full disk does; the next export is whole."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
        out = tmp_path / "full"
        try:
            with pytest.raises(
                ConfigurationError, match="cannot be written: .*nothing is left there"
            ):
                await write_export(log.dsn, Query(), data_format, out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        assert [one for one in tmp_path.iterdir() if "full" in one.name] == []
        assert (await write_export(log.dsn, Query(), data_format, out)).rows == 40


class TestAnExport:
    @pytest.mark.parametrize("data_format", FORMATS)
    async def test_has_each_sealed_row_once_in_the_ledgers_order(self, log, tmp_path, data_format):
        """What is not sealed is not in it, and the manifest says how much that is."""
        out = tmp_path / f"all.{data_format}"

        told = await write_export(log.dsn, Query(), data_format, out)

        assert (told.rows, told.first_leaf, told.last_leaf, told.changed) == (40, 0, 39, 0)
        # the export's own record waits, too
        assert told.waiting == 4
        proved = gzip.decompress((tmp_path / f"{out.name}.proof.gz").read_bytes()).splitlines()
        assert [json.loads(line)[0] for line in proved[:-1]] == list(range(40))
        if data_format != "csv":
            ids = [row["record_id"].replace("-", "") for row in payloads(out, data_format)]
            assert ids == [json.loads(line)[2] for line in proved[:-1]]

    @pytest.mark.parametrize("query", ["", "tenant:acme", "actor:clerk-globex", "order"])
    @pytest.mark.parametrize("data_format", FORMATS)
    async def test_is_checked_without_the_store(self, log, tmp_path, data_format, query):
        """Whatever part of the log it is, its rows lead to the signed checkpoint."""
        out = tmp_path / "some"

        told = await write_export(log.dsn, parse(query), data_format, out)
        found = check_export(out, [log.key.public])

        assert (found.problems, found.rows) == ([], told.rows)
        assert found.signed_by == (log.key.public.name,)
        assert told.rows == {"": 40, "tenant:acme": 22, "actor:clerk-globex": 18}.get(
            query, told.rows
        )

    @pytest.mark.parametrize("data_format", FORMATS)
    async def test_in_which_anything_is_changed_does_not_hold(self, log, tmp_path, data_format):
        """A letter of a record, a row less, another file."""
        out = tmp_path / "some"
        await write_export(log.dsn, parse("tenant:acme"), data_format, out)
        content = out.read_bytes()
        place = len(content) // 2
        for changed in (
            content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
            content[: len(content) // 2],
            b"",
        ):
            out.write_bytes(changed)
            try:
                assert check_export(out).problems
            except ExportError:
                continue

    async def test_that_is_forged_with_its_manifest_does_not_lead_to_the_checkpoint(
        self, log, tmp_path
    ):
        """Who changes a row and the sums beside it cannot change what was signed."""
        out = tmp_path / "some.ndjson"
        await write_export(log.dsn, parse("tenant:acme"), "ndjson", out)
        out.write_bytes(out.read_bytes().replace(b"clerk-acme", b"clerk-evil", 1))
        beside = tmp_path / "some.ndjson.manifest.json"
        told = json.loads(beside.read_text())
        told["sha256"] = hashlib.sha256(out.read_bytes()).hexdigest()
        beside.write_text(json.dumps(told))

        (problem,) = check_export(out, [log.key.public]).problems
        assert "do not lead to the checkpoint" in problem

    @pytest.mark.parametrize("data_format", ["ndjson", "json", "csv"])
    async def test_is_not_proved_by_what_the_proof_says_of_itself(self, log, tmp_path, data_format):
        """The proof is not signed: a hash or a text in it never stands for the row in the file."""
        out = tmp_path / "some"
        await write_export(log.dsn, parse("tenant:acme"), data_format, out)
        beside, proof = tmp_path / "some.manifest.json", tmp_path / "some.proof.gz"
        lines = gzip.decompress(proof.read_bytes()).splitlines()
        row = json.loads(lines[0])
        content = out.read_bytes()
        if data_format == "csv":
            ids = [line.split(b",")[1] for line in content.splitlines()[1:3]]
            content = content.replace(ids[0], b"#").replace(ids[1], ids[0]).replace(b"#", ids[1])
            forgeries: list[object] = [None]
        else:
            text = payload_lines(content)[0]
            content = content.replace(b"clerk-acme", b"clerk-evil", 1)
            forgeries = [hashlib.sha256(text).hexdigest(), text.decode(), f"{text.decode()}\n"]
        out.write_bytes(content)
        for forged in forgeries:
            lines[0] = json.dumps([*row[:3], forged]).encode()
            proof.write_bytes(gzip.compress(b"\n".join([*lines, b""])))
            told = json.loads(beside.read_text())
            told["sha256"] = hashlib.sha256(out.read_bytes()).hexdigest()
            told["proof_sha256"] = hashlib.sha256(proof.read_bytes()).hexdigest()
            beside.write_text(json.dumps(told))

            problems = check_export(out, [log.key.public]).problems

            assert any("is not the one in the proof" in one for one in problems), forged

    @pytest.mark.parametrize("data_format", FORMATS)
    async def test_of_a_text_with_line_ends_has_it_on_a_line_and_is_checked(
        self, log, tmp_path, data_format
    ):
        """Another writer's text may have them between its parts; the proof has the exact text."""
        connection = await asyncpg.connect(log.dsn)
        for statement in _WITH_LINE_ENDS:
            await Administrator(connection).does(statement)
        await connection.close()
        await log.seal()
        out = tmp_path / "all"

        told = await write_export(log.dsn, Query(), data_format, out)

        assert (told.changed, check_export(out, [log.key.public]).problems) == (0, [])
        if data_format == "ndjson":
            assert len(out.read_bytes().splitlines()) == told.rows

    async def test_follows_no_link(self, log, tmp_path):
        """A link in the file's place is replaced, and where it leads to stays as it was."""
        victim = tmp_path / "victim"
        victim.write_text("mine")
        for name in ("x.csv", "x.csv.manifest.json", "x.csv.proof.gz"):
            (tmp_path / name).symlink_to(victim)

        await write_export(log.dsn, Query(), "csv", tmp_path / "x.csv", replace=True)

        assert victim.read_text() == "mine"
        assert not (tmp_path / "x.csv.manifest.json").is_symlink()
        assert check_export(tmp_path / "x.csv").problems == []

    async def test_says_which_rows_are_not_as_they_were_sealed(self, log, tmp_path):
        """A row that somebody changed in the store is taken out as it is, and the check fails."""
        connection = await asyncpg.connect(log.dsn)
        await Administrator(connection).does(
            "UPDATE audit.audit_logs SET payload = replace(payload::text, 'clerk', 'chief')::json "
            "WHERE id = (SELECT id FROM audit.audit_logs WHERE tenant_id = 'globex' ORDER BY id LIMIT 1)"
        )
        await connection.close()
        out = tmp_path / "all.ndjson"

        told = await write_export(log.dsn, Query(), "ndjson", out)

        assert (told.rows, told.changed) == (40, 1)
        assert check_export(out).problems

    async def test_is_recorded_before_its_first_byte(self, log, tmp_path):
        """Who took what out, of which format; the record is named in the manifest."""
        told = await write_export(log.dsn, parse("tenant:acme"), "csv", tmp_path / "x.csv")
        connection = await asyncpg.connect(log.dsn)
        row = await connection.fetchrow(
            "SELECT id, payload::text AS text FROM audit.audit_logs WHERE event_name = 'audit.exported'"
        )
        await connection.close()

        assert str(row["id"]) == told.record_id
        asked = json.loads(row["text"])["metadata"]["asked"]
        assert asked == {"query": "tenant:acme", "format": "csv", "how": "otel-audit export"}

    async def test_is_not_made_where_it_cannot_be_recorded(self, log, tmp_path, postgres):
        """And nothing half written is left."""
        connection = await asyncpg.connect(log.dsn)
        await connection.execute("DROP FUNCTION audit.record_export(jsonb, text)")
        await connection.close()

        with pytest.raises(StoreError):
            await write_export(log.dsn, Query(), "csv", tmp_path / "x.csv")
        assert [one.name for one in tmp_path.iterdir() if "x.csv" in one.name] == []

    async def test_of_a_store_without_a_checkpoint_is_refused(self, audit_store, tmp_path):
        """Nothing could be proved."""
        with pytest.raises(StoreError, match="nothing was ever sealed"):
            await write_export(audit_store, Query(), "csv", tmp_path / "x.csv")

    async def test_replaces_nothing_unasked(self, log, tmp_path):
        """A file that is there is evidence, perhaps."""
        out = tmp_path / "x.csv"
        out.write_text("mine")

        with pytest.raises(ConfigurationError, match="there already"):
            await write_export(log.dsn, Query(), "csv", out)
        assert out.read_text() == "mine"
        await write_export(log.dsn, Query(), "csv", out, replace=True)
        assert check_export(out).problems == []

    async def test_of_hostile_text_has_no_formula_and_no_second_line(self, log, tmp_path):
        """A spreadsheet runs nothing; a record is one row, whatever is in it."""
        hostile = ["=HYPERLINK(1)", "+1", "-1", "@x", "\tx", "a\r\nb", "\x1b[31mred", "<script>"]
        sink = PostgresSink(log.dsn)
        records = [a_record(record_id=uuid7(), actor=Actor(id=one, type="user")) for one in hostile]
        await sink.write(records)
        await sink.close()
        await log.seal()
        out = tmp_path / "hostile.csv"

        await write_export(log.dsn, Query(), "csv", out)
        with out.open(newline="") as source:
            cells = [row["actor_id"] for row in csv.DictReader(source)]

        assert [one for one in cells if one[:1] in "=+-@\t\r"] == []
        assert "'=HYPERLINK(1)" in cells
        assert check_export(out).problems == []


class TestTheCommand:
    async def run(self, log, *arguments: str):
        environment = {"OTEL_AUDIT_DSN": log.dsn}
        invoke = functools.partial(CliRunner().invoke, cli, ["export", *arguments], env=environment)
        return await asyncio.to_thread(invoke)

    @pytest.mark.parametrize(
        ("data_format", "proved"),
        [
            ("csv", "of CSV only leaf, id, recorded_at and content_hash are proved"),
            ("parquet", "of Parquet only the payload is proved"),
        ],
    )
    async def test_writes_and_verify_checks(self, log, tmp_path, data_format, proved):
        """As the manual says; and it says which columns are not proved."""
        out = str(tmp_path / f"all.{data_format}")
        key = log.key.public.text()

        made = await self.run(log, "tenant:acme", "--format", data_format, "--out", out)
        assert made.exit_code == 0, made.output
        checked = CliRunner().invoke(cli, ["verify", out, "--key", key])

        assert checked.exit_code == 0, checked.output
        assert "OK: 22 records are as they were sealed, signed by" in checked.output
        assert proved in checked.output

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("status:", "--format", "csv", "--out", "{}/x"), "column"),
            (("nothing:x", "--format", "csv", "--out", "{}/x"), "column 1"),
            (("--format", "csv", "--out", "{}/none/x"), "cannot be written"),
            (("--format", "xls", "--out", "{}/x"), "xls"),
            (("--format", "csv"), "--out"),
        ],
    )
    async def test_refuses_what_cannot_be_done(self, log, tmp_path, arguments, says):
        """What, where, and nothing is left behind."""
        before = sorted(tmp_path.iterdir())
        found = await self.run(log, *(one.format(tmp_path) for one in arguments))

        assert found.exit_code != 0
        assert says in found.output
        assert sorted(tmp_path.iterdir()) == before

    async def test_verify_says_what_it_cannot_check(self, tmp_path):
        """A file without its manifest."""
        (tmp_path / "x.csv").write_text("id\n")
        found = CliRunner().invoke(cli, ["verify", str(tmp_path / "x.csv")])

        assert found.exit_code == 1
        assert "manifest.json is not there" in found.output
