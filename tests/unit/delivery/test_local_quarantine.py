from __future__ import annotations

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from strategies import a_record

from otel_audit.cli.main import cli
from otel_audit.delivery.local_quarantine import LocalQuarantine, services_with_quarantine
from otel_audit.delivery.sink import Refused
from otel_audit.delivery.spool import AesGcmEncryption, adopt
from otel_audit.errors import StoreError
from otel_audit.record import AuditRecord, to_json


def refused(record: AuditRecord, reason: str = "status 400") -> Refused:
    return Refused(record.record_id, to_json(record), reason)


@pytest.fixture
def place(tmp_path: Path) -> LocalQuarantine:
    return LocalQuarantine(tmp_path, "shop", max_bytes=100_000)


class TestKeeping:
    def test_what_is_kept_can_be_read(self, place):
        """Each refused record with its reason, oldest first."""
        items = [refused(a_record(), f"reason {number}") for number in range(3)]
        for item in items:
            place.keep([item])
        assert [kept.refused for kept in place.read()] == items

    def test_the_same_is_kept_once(self, place):
        """A batch that is refused again after a failure leaves no second file."""
        item = refused(a_record())
        place.keep([item])
        place.keep([item, item])
        assert len(place.files()) == 1

    def test_it_is_private(self, place):
        """Nobody else on the machine can read it."""
        place.keep([refused(a_record())])
        (file,) = place.files()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(place.path.stat().st_mode) == 0o700

    def test_it_is_no_spool(self, place, tmp_path):
        """Whoever looks for the spools of dead processes passes it by."""
        place.keep([refused(a_record())])
        assert adopt(tmp_path, "shop") == []
        assert services_with_quarantine(tmp_path) == ["shop"]

    def test_with_a_key_it_is_sealed(self, tmp_path):
        """What is encrypted in the spool is encrypted here, too."""
        encrypted = LocalQuarantine(
            tmp_path, "shop", max_bytes=100_000, encryption=AesGcmEncryption(bytes(32))
        )
        item = refused(a_record(metadata={"name": "Miriam"}))
        encrypted.keep([item])
        (file,) = encrypted.files()
        assert b"Miriam" not in file.read_bytes()
        assert [kept.refused for kept in encrypted.read()] == [item]
        without = LocalQuarantine(tmp_path, "shop", max_bytes=100_000)
        with pytest.raises(StoreError, match="OTEL_AUDIT_SPOOL_KEY"):
            list(without.read())

    def test_at_its_bound_it_takes_nothing_more(self, tmp_path):
        """Whoever cannot set it aside keeps it in the spool; the message says what to do."""
        small = LocalQuarantine(tmp_path, "shop", max_bytes=1_500)
        small.keep([refused(a_record())])
        with pytest.raises(StoreError, match="OTEL_AUDIT_SPOOL_MAX_BYTES"):
            small.keep([refused(a_record(metadata={"text": "x" * 2_000}))])
        assert len(small.files()) == 1

    def test_a_place_that_cannot_be_made_is_an_error(self, tmp_path):
        """A file stands where the directory should."""
        (tmp_path / "spool").write_text("")
        place = LocalQuarantine(tmp_path / "spool", "shop", max_bytes=1_500)
        with pytest.raises(StoreError, match="cannot be quarantined"):
            place.keep([refused(a_record())])
        assert place.files() == []

    def test_a_damaged_file_is_named(self, place):
        """Reading says which one it is."""
        place.keep([refused(a_record())])
        (file,) = place.files()
        file.write_bytes(b"{}")
        with pytest.raises(StoreError, match=file.name):
            list(place.read())


class TestCommand:
    def run(self, *arguments: str) -> str:
        result = CliRunner().invoke(cli, ["quarantine", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    def test_it_lists_and_shows(self, place, tmp_path):
        """Ids and reasons; one of them whole."""
        record = a_record(metadata={"name": "Miriam"})
        place.keep([refused(record, "status 400: no tenant")])
        listed = self.run("--spool-dir", str(tmp_path))
        assert record.record_id in listed
        assert "status 400: no tenant" in listed
        assert "Miriam" in self.run("--spool-dir", str(tmp_path), "--show", record.record_id)

    def test_it_puts_back_what_is_a_record(self, place, tmp_path):
        """The next adopter delivers it; what never was a record stays."""
        record = a_record()
        place.keep([refused(record), Refused("", b'{"name": "x"}', "the audit span lacks all")])
        assert "shop: 1 records put back" in self.run("--spool-dir", str(tmp_path), "--retry")
        (left,) = place.read()
        assert left.refused.reason == "the audit span lacks all"
        (spool,) = adopt(tmp_path, "shop")
        assert [found.payload for found in spool.records()] == [to_json(record)]
        spool.release()

    def test_an_unknown_id_is_an_error(self, tmp_path):
        """One line, exit status 1."""
        result = CliRunner().invoke(
            cli, ["quarantine", "--spool-dir", str(tmp_path), "--show", "x"]
        )
        assert (result.exit_code, "no refused record has the id" in result.output) == (1, True)
