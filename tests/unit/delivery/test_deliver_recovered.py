"""Delivering what dead processes left."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import msgspec
import pytest
from strategies import a_record

from otel_audit.delivery.deliver_recovered import Recovery
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.sink import Refused
from otel_audit.delivery.spool import FrameKind, adopt, open_spool
from otel_audit.delivery.spool.ownership import OwnDirectory
from otel_audit.record import Actor, AuditRecord, Tenant, to_json


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "spools"


def leave(home: Path, *frames: tuple[FrameKind, AuditRecord]) -> Path:
    """Leave a spool as a process does that ends with undelivered records."""
    spool = open_spool(home, service="shop", fsync="never")
    for kind, record in frames:
        spool.append(kind, record.record_id, to_json(record))
    assert not spool.close()
    return spool.path


class Store:
    """Takes batches; says no from the given call on."""

    def __init__(self, fails_from: int = 10**9) -> None:
        self.got: list = []
        self.calls = 0
        self._fails_from = fails_from

    async def known(self, record_ids) -> set[str]:
        return set(record_ids) & {entry.record_id for entry in self.got}

    async def write(self, batch) -> bool:
        self.calls += 1
        if self.calls >= self._fails_from:
            return False
        self.got += batch
        return True


def a_recovery(home: Path) -> Recovery:
    return Recovery(functools.partial(adopt, home, "shop"), Counters())


def deliver(recovery: Recovery, store: Store, size: int = 2) -> None:
    asyncio.run(recovery.deliver(store.write, store.known, size))


class TestRecovery:
    def test_every_record_is_delivered_and_the_spool_removed(self, home):
        """Closed, answered and opened actions of two dead processes are stored, then forgotten."""
        records = [a_record() for _ in range(5)]
        paths = [
            leave(home, *((FrameKind.CLOSED, record) for record in records[:3])),
            leave(home, (FrameKind.ANSWERED, records[3]), (FrameKind.OPENED, records[4])),
        ]
        store = Store()
        deliver(a_recovery(home), store)
        assert store.got == records
        assert not any(path.exists() for path in paths)

    def test_what_the_store_has_better_is_not_told_again(self, home):
        """A cut-down action whose record went to the store from memory gives no second row."""
        known = a_record(tenant=Tenant(id="acme"))
        poorer = msgspec.structs.replace(known, tenant=None, outcome="unknown")
        other = a_record(outcome="unknown")
        leave(home, (FrameKind.OPENED, poorer), (FrameKind.OPENED, other))
        store = Store()
        store.got.append(known)
        deliver(a_recovery(home), store)
        assert store.got == [known, other]

    def test_an_end_before_the_store_has_said_it_leaves_the_spool(self, home):
        """Delivery ends while the store is asked: nothing is written or removed."""
        path = leave(home, (FrameKind.OPENED, a_record()))

        async def ended(record_ids) -> None:
            return None

        store = Store()
        asyncio.run(a_recovery(home).deliver(store.write, ended, 10))
        assert store.got == []
        assert path.exists()

    def test_an_end_in_the_middle_leaves_every_spool_for_the_next(self, home):
        """Where delivery ends first, nothing is removed, and every lock is given back."""
        for _ in range(3):
            leave(home, (FrameKind.CLOSED, a_record()), (FrameKind.CLOSED, a_record()))
        deliver(a_recovery(home), Store(fails_from=2), size=1)
        store = Store()
        deliver(a_recovery(home), store)
        assert len(store.got) == 6

    def test_an_error_gives_every_lock_back(self, home):
        """Whatever goes wrong while one spool is read, another process may adopt all of them."""
        for _ in range(2):
            leave(home, (FrameKind.CLOSED, a_record()))

        async def fail(batch) -> bool:
            raise RuntimeError

        with pytest.raises(RuntimeError):
            asyncio.run(a_recovery(home).deliver(fail, Store().known, 10))
        store = Store()
        deliver(a_recovery(home), store)
        assert len(store.got) == 2

    def test_a_record_of_wrong_types_is_kept_aside(self, home):
        """What cannot be read as a record goes to quarantine with its text, and is not lost."""
        odd = a_record(actor=Actor(id="u", type="robot"))  # type: ignore[arg-type]
        leave(home, (FrameKind.CLOSED, odd), (FrameKind.CLOSED, a_record()))
        recovery, store = a_recovery(home), Store()
        deliver(recovery, store)
        refused, record = store.got
        assert isinstance(refused, Refused)
        assert refused.received == to_json(odd)
        assert isinstance(record, AuditRecord)
        assert recovery._counters.dropped == 0

    def test_damage_is_counted_once_and_loudly(self, home, caplog):
        """Altered frames are lost: counted, told of, and the rest is delivered."""
        path = leave(home, *((FrameKind.CLOSED, a_record(event_name=f"no.{n}")) for n in range(3)))
        (segment,) = path.glob("*.frames")
        segment.write_bytes(segment.read_bytes().replace(b"no.1", b"no.X"))
        recovery, store = a_recovery(home), Store()
        deliver(recovery, store)
        deliver(recovery, store)
        assert [record.event_name for record in store.got] == ["no.0", "no.2"]
        assert recovery._counters.dropped == 1
        assert caplog.text.count("is damaged") == 1

    def test_lost_records_are_named_as_far_as_they_are_known(self, home, caplog):
        """An action that had only begun has no number that would be missing: the log names it."""
        begun, ended = a_record(event_name="no.1"), a_record(event_name="no.2")
        path = leave(
            home,
            (FrameKind.OPENED, begun),
            (FrameKind.OPENED, ended),
            (FrameKind.CLOSED, ended),
        )
        (segment,) = path.glob("*.frames")
        content = segment.read_bytes().replace(b"no.1", b"no.X")
        segment.write_bytes(content.replace(b"no.2", b"no.X", 1))
        recovery, store = a_recovery(home), Store()
        deliver(recovery, store)
        assert [record.event_name for record in store.got] == ["no.2"]
        assert recovery._counters.dropped == 1
        assert f"lost records whose ids can be read: {begun.record_id}\n" in caplog.text
        assert ended.record_id not in caplog.text

    def test_what_cannot_be_removed_is_not_delivered_for_ever(self, home, monkeypatch):
        """A spool that stays, because a file of it cannot be read, is delivered once."""
        leave(home, (FrameKind.CLOSED, a_record()))
        monkeypatch.setattr(
            "otel_audit.delivery.spool.recover.remove_empty",
            lambda home, place: (_ for _ in ()).throw(PermissionError(1, "not allowed")),
        )
        monkeypatch.setattr(OwnDirectory, "unlink", lambda self, name: None)
        recovery, store = a_recovery(home), Store()
        deliver(recovery, store)
        deliver(recovery, store)
        assert len(store.got) == 1

    def test_a_living_process_is_left_alone(self, home):
        """The spool of a process that lives is not touched."""
        spool = open_spool(home, service="shop")
        spool.append(FrameKind.CLOSED, (record := a_record()).record_id, to_json(record))
        store = Store()
        deliver(a_recovery(home), store)
        assert store.got == []
        assert spool.path.exists()
        spool.close()


class TestDescriptionLost:
    def test_is_not_stored_beside_the_whole_record(self, home):
        """A record went to the store from memory; its answered frame was altered since."""
        whole = a_record(record_id="01990000-0000-7000-8000-000000000001", outcome="success")
        other = msgspec.structs.replace(whole, record_id="01990000-0000-7000-8000-000000000002")
        spool = open_spool(home, service="shop", fsync="never")
        for record in (whole, other):
            answered = spool.append(FrameKind.ANSWERED, record.record_id, to_json(record))
            spool.end(record.record_id, b'{"outcome":"success"}', answered)
        [path] = spool.path.glob("*.frames")
        spool.close()
        path.write_bytes(path.read_bytes().replace(b'"record_id"', b'"RECORD_ID"'))
        store = Store()
        store.got.append(whole)
        deliver(a_recovery(home), store)
        assert [one.record_id for one in store.got] == [whole.record_id, other.record_id]
        assert isinstance(store.got[1], Refused)


class TestFirstFormat:
    def test_a_spool_of_the_version_before_is_delivered(self, home):
        """Whole closed records, an answered one and an opened one; what was discarded is not."""
        open_spool(home, service="shop").close()
        left = Path(__file__).parent / "spool" / "format_1"
        path = home / "shop" / "01990000-0000-7000-8000-0000000000aa"
        path.mkdir(mode=0o700)
        for file in left.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
            (path / file.name).chmod(0o600)
        store = Store()
        deliver(a_recovery(home), store)
        assert [
            (one.record_id[-1], one.phase, one.outcome, one.sequence_number) for one in store.got
        ] == [
            ("1", "completed", "success", 1),
            ("2", "completed", "success", 2),
            ("3", "completed", "unknown", None),
            ("4", "started", "unknown", None),
        ]
        assert {one.request.path for one in store.got} == {"/json"}
        assert not path.exists()
