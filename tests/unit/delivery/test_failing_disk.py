"""A disk that fails now and then: what it does not take is in memory, delivered, or counted."""

from __future__ import annotations

import functools
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from errno import EIO, ENOSPC, EROFS, ESTALE
from pathlib import Path
from typing import Any

import msgspec
import pytest
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.action.compose import Ending
from otel_audit.delivery.deliver_recovered import batches_of
from otel_audit.delivery.delivery import Delivery, DeliveryOptions
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.producer import Producer
from otel_audit.delivery.sink import Refused, Written
from otel_audit.delivery.spool import (
    FrameKind,
    Spool,
    SpoolReadError,
    adopt,
    damaged_files,
    log,
    open_spool,
)
from otel_audit.errors import StoreUnavailableError
from otel_audit.record import AuditRecord

CALLS = ("write", "pwrite", "fdatasync", "fsync", "ftruncate", "fstat", "open", "unlink", "rename")
ALL_AT_ONCE = {
    "everything": CALLS,
    "writing": ("write", "ftruncate"),
    "syncing": ("fdatasync", "fsync"),
    "looking": ("fstat", "open"),
    "removing": ("unlink", "rename"),
}


class Disk:
    """Lets calls on what is below a directory fail, as chance has it, while it is `failing`."""

    def __init__(
        self, home: Path, chance: random.Random, patch: pytest.MonkeyPatch, calls: Sequence[str]
    ) -> None:
        self.failing = False
        self._home, self._chance = str(home), chance
        self._rate = chance.choice([0.05, 0.5, 1.0])
        self._errors = chance.choice([[EIO], [ENOSPC], [EROFS], [EIO, ENOSPC, ESTALE]])
        for name in calls:
            patch.setattr(os, name, self._failing(getattr(os, name)))

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def tried(*arguments: Any, **options: Any) -> Any:
            if self.failing and self._is_here(arguments, options):
                if self._chance.random() < self._rate:
                    if call.__name__ == "write" and len(arguments[1]) > 1:
                        call(arguments[0], arguments[1][:1])  # a part of it gets there
                    error = self._chance.choice(self._errors)
                    raise OSError(error, os.strerror(error))
                if call.__name__ == "fdatasync":
                    time.sleep(0.05)
            return call(*arguments, **options)

        return tried

    def _is_here(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
        opened = options.get("dir_fd", options.get("src_dir_fd", arguments[0]))
        if not isinstance(opened, int):
            return False
        return os.readlink(f"/proc/self/fd/{opened}").startswith(self._home)  # noqa: PTH115


class Store:
    """Is away now and then."""

    def __init__(self) -> None:
        self.away = False
        self.ids: set[str] = set()

    async def check(self) -> None:
        """It is there, or away."""

    async def write(self, records: Sequence[AuditRecord]) -> Written:
        if self.away:
            raise StoreUnavailableError("away")
        self.ids.update(record.record_id for record in records)
        return Written(stored=len(records))

    async def quarantine(self, refused: Sequence[Refused]) -> None:
        raise AssertionError(f"nothing is malformed: {refused}")

    async def known(self, _record_ids: Sequence[str]) -> set[str]:
        return set()

    async def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    name, seed = request.param
    with pytest.MonkeyPatch.context() as patch:
        yield Disk(tmp_path / "spools", random.Random(seed), patch, ALL_AT_ONCE[name])


@pytest.mark.parametrize(
    "disk",
    [(name, seed) for name in ALL_AT_ONCE for seed in range(3)],
    indirect=True,
    ids=lambda told: "-".join(map(str, told)),
)
@pytest.mark.parametrize("fsync", ["never", "always"])
def test_what_a_failing_disk_does_not_take_is_delivered_or_counted(
    disk: Disk, tmp_path: Path, caplog, fsync: Any
) -> None:
    """No call raises, and what is neither stored, nor left in the spool, counts as dropped."""
    home, store, counters = tmp_path / "spools", Store(), Counters()
    spool = functools.partial(
        open_spool, home, service="shop", fsync=fsync, segment_bytes=4096, max_bytes=1 << 20
    )
    options = DeliveryOptions(
        queue_size=40, batch_size=7, batch_interval=0.01, longest_pause=0.05, sync_interval=0.01
    )
    delivery = Delivery(lambda: store, counters, options, spool=spool)
    producer = Producer(delivery, counters, refuse_when_full=False)
    closed: set[str] = set()
    for number in range(150):
        disk.failing = number % 50 >= 25
        store.away = number % 60 >= 30
        record = a_record(record_id=uuid7(), sequence_number=None, metadata={"text": "x" * 300})
        started = msgspec.structs.replace(record, phase="started", outcome="unknown")
        assert producer.opened(started, None)
        producer.answered(record, None)
        producer.closed(record, None)
        closed.add(record.record_id)
    store.away = True
    delivery.close(0.2)
    disk.failing = False

    left, found = Counters(), set[str]()
    for adopted in adopt(home, "shop"):
        for batch in batches_of(adopted, 100, left):
            found |= {one.record_id for one in batch if one.whole}
        adopted.remove()
    missing = closed - store.ids - found
    assert len(missing) <= counters.dropped + left.dropped
    if missing:
        assert "CRITICAL" in {entry.levelname for entry in caplog.records}


def emptied(spool: Path) -> None:
    for file in spool.glob("*.frames"):
        os.truncate(file, 0)


def zeroed(spool: Path) -> None:
    for file in spool.glob("*.frames"):
        size = file.stat().st_size
        with file.open("r+b") as opened:
            opened.write(bytes(size))


def without_files(spool: Path) -> None:
    for file in spool.iterdir():
        file.unlink()


def without_lock(spool: Path) -> None:
    (spool / "lock").unlink()


def without_oldest(spool: Path) -> None:
    min(spool.glob("*.frames")).unlink()


def exchanged(spool: Path) -> None:
    """As an editor saves it: another file under the same name."""
    for file in spool.glob("*.frames"):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)


def moved(spool: Path) -> None:
    spool.rename(spool.with_name(uuid7()))


def out_of_the_way(spool: Path) -> None:
    """The whole directory of the service."""
    shutil.move(spool.parent, spool.parent.parent / "elsewhere")


EDITS = [
    emptied, zeroed, without_files, without_lock, without_oldest, exchanged, moved, shutil.rmtree,
    out_of_the_way,
]  # fmt: skip


def finish(producer: Producer, record: AuditRecord) -> None:
    producer.closed(record, None)


def answer_and_finish(producer: Producer, record: AuditRecord) -> None:
    known = msgspec.structs.replace(record, producer_id=producer.producer_id)
    close = producer.answered(known, None)
    if close is None:
        producer.closed(known, None)
    else:
        close(Ending("success", 1, "none"), None)


@pytest.mark.parametrize("hand_over", [finish, answer_and_finish])
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_what_is_edited_under_a_living_process_is_delivered_or_counted(
    edit: Callable[[Path], object],
    hand_over: Callable[..., None],
    tmp_path: Path,
    caplog,
    monkeypatch,
) -> None:
    """Records wait in memory and on disk alone while the files are changed; then the store is back."""
    home, store, counters = tmp_path / "spools", Store(), Counters()
    store.away = True
    spool = functools.partial(open_spool, home, service="shop", segment_bytes=4096)
    options = DeliveryOptions(
        queue_size=20, batch_size=7, batch_interval=0.01, longest_pause=0.05, sync_interval=0.02
    )
    delivery = Delivery(lambda: store, counters, options, spool=spool)
    producer = Producer(delivery, counters, refuse_when_full=False)
    closed: set[str] = set()

    def record(count: int) -> None:
        for _ in range(count):
            one = a_record(record_id=uuid7(), sequence_number=None, metadata={"text": "x" * 300})
            hand_over(producer, one)
            closed.add(one.record_id)

    record(60)
    [found] = [path for path in (home / "shop").iterdir() if path.is_dir()]
    looks: list[float] = []
    look_around = Spool._look_around

    def look(spool: Spool) -> None:
        began = time.monotonic()
        try:
            look_around(spool)
        finally:
            looks.append(began)

    monkeypatch.setattr(Spool, "_look_around", look)
    edit(found)
    edited = time.monotonic()
    record(20)
    # the process looks after its files once a second
    until = edited + 60
    while not any(began > edited for began in looks):
        assert time.monotonic() < until
        time.sleep(0.01)
    record(20)
    store.away = False
    delivery.flush(10)
    store.away = True
    delivery.close(0.2)
    left, adopted_ids = Counters(), set[str]()
    for place in (home, home / "elsewhere"):
        for adopted in adopt(place, "shop"):
            for batch in batches_of(adopted, 100, left):
                adopted_ids |= {one.record_id for one in batch if one.whole}
            adopted.remove()
    missing = closed - store.ids - adopted_ids
    assert len(missing) <= counters.dropped + left.dropped, (edit, len(missing))
    if missing:
        assert "CRITICAL" in {entry.levelname for entry in caplog.records}


def test_what_the_disk_does_not_give_back_is_asked_for_again(tmp_path: Path, monkeypatch) -> None:
    """A moment's failure costs no record; one that stays is a loss, counted, and the file is kept."""
    spool = open_spool(tmp_path, service="shop")
    for _ in range(5):
        spool.append(FrameKind.CLOSED, uuid7(), b"x")
    real = os.open

    def bad(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith(".frames"):
            raise OSError(EIO, os.strerror(EIO))
        return real(path, *arguments, **options)

    with monkeypatch.context() as broken:
        broken.setattr(os, "open", bad)
        for _ in range(3):
            with pytest.raises(SpoolReadError):
                list(spool.read())
    assert len(list(spool.read())) == 5
    assert spool.damaged == 0
    with monkeypatch.context() as broken:
        broken.setattr(os, "open", bad)
        with pytest.raises(SpoolReadError):
            list(spool.read())
        broken.setattr(log, "_READ_PATIENCE", 0.0)
        assert list(spool.read()) == []
    assert spool.damaged == 5
    spool.close()
    assert len(damaged_files(tmp_path, "shop")) == 1
