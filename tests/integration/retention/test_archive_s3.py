"""Archives in S3, by a server that knows object lock: what is written cannot go before its time."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
from otel_audit_postgres.archive import objects
from otel_audit_postgres.archive.catalog import archived_objects
from otel_audit_postgres.archive.objects import ArchiveError, digest_of, open_archive
from otel_audit_postgres.archive.query import query_archives
from otel_audit_postgres.ledger.verify.findings import ProblemKind
from otel_audit_postgres.query.grammar import parse
from otel_audit_postgres.retention.holds import HoldConditions, place_hold, release_hold
from otel_audit_postgres.retention.policy import read_policy
from ports import free_port


@pytest.fixture(scope="module")
def endpoint():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    server.start()
    yield f"http://127.0.0.1:{server._server.server_port}"
    server.stop()


@pytest.fixture
def client(endpoint, monkeypatch):
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")


def bucket(client, endpoint, *, locked=True):
    name = f"audit-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=locked)
    return name, open_archive(f"s3://{name}/orders?endpoint={endpoint}&region=us-east-1")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
class TestS3:
    async def test_holds_a_year_and_verifies(self, months, client, endpoint):
        """Written once, with digest and lock; read back, verified, asked; nothing left unlocked."""
        name, months.archive = bucket(client, endpoint)
        assert months.archive.weakness() is None
        done = await months.retain()
        assert len(done.dropped) == 3
        await months.seal()
        report, archived = await months.check_all()
        assert (report.problems, archived.archived) == ((), 64)
        for key in months.archive.list_keys():
            if key.endswith(".parquet"):
                head = client.head_object(Bucket=name, Key=f"orders/{key}")
                assert head["ObjectLockMode"] == "COMPLIANCE"
                with pytest.raises(Exception, match="AccessDenied"):
                    client.delete_object(
                        Bucket=name, Key=f"orders/{key}", VersionId=head["VersionId"]
                    )

    async def test_shows_a_lock_that_is_too_short(self, months, client, endpoint):
        """An object whose lock ends before the manifest says so."""
        name, months.archive = bucket(client, endpoint)
        months.archive = open_archive(
            f"s3://{name}/orders?endpoint={endpoint}&region=us-east-1&mode=GOVERNANCE"
        )
        await months.retain()
        await months.seal()
        key = next(key for key in months.archive.list_keys() if key.endswith(".parquet"))
        client.put_object_retention(
            Bucket=name, Key=f"orders/{key}", BypassGovernanceRetention=True,
            Retention={"Mode": "GOVERNANCE", "RetainUntilDate": datetime(2026, 12, 31, tzinfo=UTC)},
        )  # fmt: skip
        report = await months.check()
        kinds = [one.kind for one in report.findings.problems]
        assert ProblemKind.GUARD_REMOVED in kinds

    async def test_refuses_a_bucket_without_object_lock(self, months, client, endpoint):
        """Nothing is written that could not be kept, and nothing dropped."""
        _, months.archive = bucket(client, endpoint, locked=False)
        assert "no object lock" in months.archive.weakness()
        with pytest.raises(ArchiveError, match="no object lock"):
            await months.retain()
        assert months.archive.list_keys() == []
        assert (await months.verify()).dropped == 0

    async def test_holds_objects_by_its_own_legal_hold(self, months, client, endpoint):
        """Placed with the hold, and off with it."""
        name, months.archive = bucket(client, endpoint)
        months.policy = read_policy("[default]\nhot = 60\narchive = 4000")
        await months.retain()
        hold, held = await place_hold(
            months.dsn, "m", "r", HoldConditions(tenant="other"), months.archive
        )
        (key,) = held
        status = client.get_object_legal_hold(Bucket=name, Key=f"orders/{key}")
        assert status["LegalHold"]["Status"] == "ON"
        assert await release_hold(months.dsn, hold, "over", months.archive) == [key]
        status = client.get_object_legal_hold(Bucket=name, Key=f"orders/{key}")
        assert status["LegalHold"]["Status"] == "OFF"

    @pytest.mark.parametrize("attack", ["another version", "a delete marker"])
    async def test_what_is_written_over_or_hidden_is_found_and_still_there(
        self, months, client, endpoint, attack
    ):
        """Object lock lets a second version in; holds go to the first, and removing what came
        makes the archive whole again."""
        name, months.archive = bucket(client, endpoint)
        months.policy = read_policy("[default]\nhot = 60\narchive = 4000")
        await months.retain()
        await months.seal()
        entry = (await archived_objects(months.dsn))[0].entry
        place = {"Bucket": name, "Key": f"orders/{entry.key}"}
        first = client.head_object(**place)["VersionId"]
        if attack == "another version":
            client.put_object(**place, Body=b"forged")
        else:
            client.delete_object(**place)
        (kind,) = {one.kind for one in (await months.check()).findings.problems}
        assert kind in {ProblemKind.CHANGED, ProblemKind.DELETED}
        months.archive.hold(entry.key, on=True)
        held = client.get_object_legal_hold(**place, VersionId=first)
        assert held["LegalHold"]["Status"] == "ON"
        listed = client.list_object_versions(Bucket=name, Prefix=place["Key"])
        for one in [*listed.get("Versions", []), *listed.get("DeleteMarkers", [])]:
            if one["VersionId"] != first:
                client.delete_object(**place, VersionId=one["VersionId"])
        assert (await months.check()).ok

    async def test_deletes_an_object_once(self, client, endpoint, tmp_path):
        """Each run deletes again what is due; what is gone gets no delete marker for that."""
        name, archive = bucket(client, endpoint)
        (tmp_path / "file").write_bytes(b"rows")
        archive.put("one.parquet", tmp_path / "file", digest_of(tmp_path / "file"), None)
        for _ in range(3):
            archive.remove("one.parquet")
        found = client.list_object_versions(Bucket=name)
        assert (found.get("Versions"), found.get("DeleteMarkers")) == (None, None)

    async def test_deletes_where_there_are_no_versions(self, client, endpoint):
        name, archive = bucket(client, endpoint, locked=False)
        client.put_object(Bucket=name, Key="orders/one.parquet", Body=b"rows")
        for _ in range(2):
            archive.remove("one.parquet")
        assert archive.list_keys() == []

    async def test_takes_no_copies_from_where_others_may_write(
        self, months, client, endpoint, tmp_path
    ):
        """A planted file would answer in the archive's stead."""
        name, months.archive = bucket(client, endpoint)
        await months.retain()
        await months.seal()
        listed = await archived_objects(months.dsn)
        place = tmp_path / "shared"
        place.mkdir()
        place.chmod(0o777)
        url = f"s3://{name}/orders?endpoint={endpoint}&region=us-east-1&cache={place}"
        with pytest.raises(ArchiveError, match="others may write there"):
            query_archives(open_archive(url), listed, parse(""))
        place.chmod(0o700)
        assert len(query_archives(open_archive(url), listed, parse(""), limit=100)) == 64

    def test_writes_once(self, client, endpoint, tmp_path):
        """The same content again is no error, another one is, and a wrong digest is refused."""
        _, archive = bucket(client, endpoint)
        one, other = tmp_path / "one", tmp_path / "other"
        one.write_bytes(b"1")
        other.write_bytes(b"2")
        archive.put("2025-01/a", one, digest_of(one), None)
        archive.put("2025-01/a", one, digest_of(one), None)
        with pytest.raises(ArchiveError, match="another content"):
            archive.put("2025-01/a", other, digest_of(other), None)
        with archive.fetch("2025-01/a") as file:
            assert file.read_bytes() == b"1"

    def test_says_what_went_wrong_without_credentials(self, endpoint, client):
        """A bucket that is not there."""
        archive = open_archive(f"s3://nowhere-at-all/x?endpoint={endpoint}&region=us-east-1")
        with pytest.raises(ArchiveError, match=r"s3://nowhere-at-all/x: .*NoSuchBucket") as failed:
            archive.list_keys()
        assert "test" not in str(failed.value).replace("nowhere", "")

    async def test_keeps_copies_for_questions_and_none_for_verifying(
        self, months, client, endpoint, tmp_path, monkeypatch
    ):
        """Fetched once, checked then, private, and thrown away where there are too many."""
        name, months.archive = bucket(client, endpoint)
        await months.retain()
        await months.seal()
        place = tmp_path / "cache"
        url = f"s3://{name}/orders?endpoint={endpoint}&region=us-east-1&cache={place}"
        archive = open_archive(url)
        listed = await archived_objects(months.dsn)
        assert len(query_archives(archive, listed, parse(""), limit=100)) == 64
        assert len([*place.iterdir()]) == 3
        assert place.stat().st_mode & 0o777 == 0o700
        fetched = []
        with monkeypatch.context() as patched:
            patched.setattr(archive, "fetch", fetched.append)
            assert len(query_archives(archive, listed, parse("tenant:other"))) == 9
        assert fetched == []
        # a copy that somebody changed is nothing that verifying looks at
        for one in place.iterdir():
            one.write_bytes(b"x")
        months.archive = archive
        assert (await months.check()).ok
        for one in place.iterdir():
            one.unlink()
        monkeypatch.setattr(objects, "CACHE_BYTES", 1)
        assert len(query_archives(archive, listed, parse(""), limit=100)) == 64
        assert [*place.iterdir()] == []
