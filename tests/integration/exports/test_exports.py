"""Exports: in the ledger's order, with a proof that holds without the store."""

from __future__ import annotations

import asyncio
import csv
import functools
import gzip
import hashlib
import json
import resource
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import asyncpg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from filled_stores import filled_store
from ledger_store import Administrator, Log
from otel_audit_postgres import PostgresSink
from otel_audit_postgres.archive.parquet_files import NAMES, read_rows
from otel_audit_postgres.exports.check import check_export
from otel_audit_postgres.exports.proof import ExportError
from otel_audit_postgres.exports.write import DataFormat, write_export
from otel_audit_postgres.ledger.keys import generate
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


@pytest.fixture(scope="module")
def exported(audit_server, tmp_path_factory):
    """Copies of exports of one store: a function of format and directory to file and public key."""
    originals = tmp_path_factory.mktemp("exports")

    async def fill(log: Log) -> None:
        await log.write(8, tenant=Tenant(id="acme"), actor=Actor(id="clerk", type="user", role="r"))
        await log.seal()
        for data_format in FORMATS:
            await write_export(log.dsn, Query(), data_format, originals / f"all.{data_format}")

    with filled_store(audit_server, tmp_path_factory.mktemp("store"), Log, fill) as store:
        key = store.key.public

    def copy(data_format: str, directory: Path):
        directory.mkdir(exist_ok=True)
        for file in originals.glob(f"all.{data_format}*"):
            shutil.copy(file, directory / file.name)
        return directory / f"all.{data_format}", key

    return copy


def with_manifest(out: Path, **facts) -> None:
    """Make the manifest fit the file."""
    beside = out.with_name(f"{out.name}.manifest.json")
    told = json.loads(beside.read_text())
    told |= {"sha256": hashlib.sha256(out.read_bytes()).hexdigest(), "size": out.stat().st_size}
    beside.write_text(json.dumps(told | facts))


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


# another value for each type of column
OTHERS = {
    "string": "another", "timestamp": datetime(2020, 1, 1, tzinfo=UTC), "double": 1.5, "int32": 7,
    "int64": 77, "list": ["order:77"],
}  # fmt: skip


class TestAForgedFile:
    """Whoever changes the file makes a manifest and a proof that fit, as nothing of these is signed."""

    @pytest.mark.parametrize("column", [name for name in NAMES if name != "payload"])
    async def test_with_another_value_in_a_column_of_parquet_is_told(
        self, exported, tmp_path, column
    ):
        """Each column, of each type: what an auditor reads is what the sealed text says."""
        out, key = exported("parquet", tmp_path)
        table = pq.read_table(out)
        kind = table.schema.field(column).type
        values = table.column(column).to_pylist()
        values[3] = (
            b"\x07" * kind.byte_width
            if pa.types.is_fixed_size_binary(kind)
            else next(value for name, value in OTHERS.items() if str(kind).startswith(name))
        )
        place = table.schema.get_field_index(column)
        pq.write_table(table.set_column(place, column, pa.array(values, kind)), out)
        with_manifest(out)

        problems = check_export(out, [key]).problems

        assert problems == [f"row 4: not what was sealed: {column}"]

    async def test_with_another_value_in_a_column_of_csv_is_told(self, exported, tmp_path):
        """Each column."""
        out, key = exported("csv", tmp_path)
        with out.open(newline="") as source:
            names, *rows = csv.reader(source)
        for place, name in enumerate(names):
            forged = [[*row] for row in rows]
            forged[3][place] = "7" if name == "leaf" else f"{forged[3][place][:-1]}~"
            with out.open("w", newline="") as target:
                csv.writer(target).writerows([names, *forged])
            with_manifest(out)

            assert check_export(out, [key]).problems == [f"row 4: not what was sealed: {name}"]

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b"actor_id,actor_type", b"actor_type,actor_id"),
            (b"leaf,id,", b"leaf,id,approved_by,"),
            (b",content_hash\r\n", b"\r\n"),
            (b"leaf,id,", b'"leaf",id,'),
        ],
    )
    async def test_with_other_names_of_columns_is_told(self, exported, tmp_path, old, new):
        """A value under another name is another value."""
        out, _ = exported("csv", tmp_path)
        content = out.read_bytes()
        assert old in content
        out.write_bytes(content.replace(old, new, 1))
        with_manifest(out)

        with pytest.raises(ExportError):
            check_export(out)

    async def test_with_a_column_more_in_parquet_is_told(self, exported, tmp_path):
        """One that no export has."""
        out, _ = exported("parquet", tmp_path)
        table = pq.read_table(out)
        pq.write_table(table.append_column("approved", pa.array(["yes"] * table.num_rows)), out)
        with_manifest(out)

        with pytest.raises(ExportError, match="columns are not those"):
            check_export(out)

    async def test_with_other_bytes_for_the_same_cells_is_told(self, exported, tmp_path):
        """Readers of CSV do not agree on what quotes in the middle of a cell mean."""
        out, _ = exported("csv", tmp_path)
        head, first, rest = out.read_bytes().split(b"\r\n", 2)
        quoted = b",".join(b'"%b"' % cell for cell in first.split(b","))
        out.write_bytes(b"\r\n".join([head, quoted, rest]))
        with_manifest(out)

        assert check_export(out).problems == ["row 1: not what was sealed: how it is written"]

    @pytest.mark.parametrize("more", [b"[\n", b"]\n", b",\n", b"\n"])
    async def test_with_a_line_more_is_told(self, exported, tmp_path, more):
        """In a list, before the first record and behind the last."""
        for place in (2, -2):
            out, _ = exported("json", tmp_path / str(place))
            content = out.read_bytes()
            out.write_bytes(content[:place] + more + content[place:])
            with_manifest(out)
            try:
                assert check_export(out).problems
            except ExportError:
                continue

    @pytest.mark.parametrize(
        ("name", "value"),
        [("log", "another.example/log"), ("rows", 41), ("size", 1), ("first_leaf", 1),
         ("last_leaf", 6), ("changed", 2)],
    )  # fmt: skip
    async def test_of_which_the_manifest_says_something_else_is_told(
        self, exported, tmp_path, name, value
    ):
        """What the file itself, or the signed checkpoint, can tell."""
        out, key = exported("ndjson", tmp_path)
        with_manifest(out, **{name: value})

        (problem,) = check_export(out, [key]).problems
        assert "the manifest says" in problem

    async def test_of_an_earlier_version_without_texts_is_not_proved(self, exported, tmp_path):
        """Nor can a new one be passed for it."""
        out, _ = exported("csv", tmp_path)
        with_manifest(out, format="otel-audit export 3")
        (problem,) = check_export(out).problems
        assert "export it again" in problem

        out, key = exported("ndjson", tmp_path / "lines")
        with_manifest(out, format="otel-audit export 3")
        assert check_export(out, [key]).problems == []


@pytest.mark.parametrize("data_format", ["csv", "parquet"])
async def test_columns_that_were_inserted_false_are_a_warning(log, tmp_path, data_format):
    """The sealer has said so, and signed it; what was changed since, or is unsigned, fails."""
    (made,) = await log.write(1)
    inserted = uuid.UUID(int=uuid.UUID(made).int + 1)
    connection = await asyncpg.connect(log.dsn)
    await connection.execute(
        "INSERT INTO audit.audit_logs SELECT (jsonb_populate_record(l, jsonb_build_object("
        "'id', $2::text, 'actor_id', 'zed'))).* FROM audit.audit_logs l WHERE id = $1",
        made, str(inserted),
    )  # fmt: skip
    await connection.close()
    await log.seal()
    out = tmp_path / "all"
    await write_export(log.dsn, Query(), data_format, out)

    found = check_export(out, [log.key.public])
    assert found.problems == []
    (warning,) = found.warnings
    assert str(inserted) in warning
    assert "columns are not proved" in warning
    (problem,) = check_export(out, [generate("another").public]).problems[1:]
    assert "not what was sealed: actor_id" in problem


class TestTheCommand:
    async def run(self, log, *arguments: str):
        environment = {"OTEL_AUDIT_DSN": log.dsn}
        invoke = functools.partial(CliRunner().invoke, cli, ["export", *arguments], env=environment)
        return await asyncio.to_thread(invoke)

    @pytest.mark.parametrize("data_format", ["csv", "parquet"])
    async def test_writes_and_verify_checks(self, log, tmp_path, data_format):
        """As the manual says."""
        out = str(tmp_path / f"all.{data_format}")
        key = log.key.public.text()

        made = await self.run(log, "tenant:acme", "--format", data_format, "--out", out)
        assert made.exit_code == 0, made.output
        checked = CliRunner().invoke(cli, ["verify", out, "--key", key])

        assert checked.exit_code == 0, checked.output
        assert "OK: 22 records are as they were sealed, signed by" in checked.output

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
