"""What a power loss leaves: each state that the disk may be in is one that a start can bear."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otel_audit._util.ids import uuid7
from otel_audit.delivery.spool import FrameKind, adopt, inspect, open_spool
from otel_audit.delivery.spool.manifest import Manifest, encode_label
from otel_audit.errors import ConfigurationError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a loop device needs root")


class Disk:
    """Follows which files and names are on disk, and keeps what a power loss would leave."""

    def __init__(self, root: Path, states: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.states = root, states
        self.count = 0
        self._content: set[int] = set()
        self._names: dict[int, set[str]] = {}
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._synced(getattr(os, name)))
        for name in ("rename", "mkdir", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, self._changing(getattr(os, name)))

    def _synced(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def sync(opened: int) -> None:
            self.fail()
            call(opened)
            found = os.fstat(opened)
            self._content.add(found.st_ino)
            if os.path.isdir(f"/proc/self/fd/{opened}"):  # noqa: PTH112 - a descriptor
                self._names[found.st_ino] = set(os.listdir(opened))
            self.fail()

        return sync

    def _changing(self, call: Callable[..., None]) -> Callable[..., None]:
        def change(*arguments: object, **options: object) -> None:
            self.fail()
            call(*arguments, **options)
            self.fail()

        return change

    def fail(self) -> None:
        """Keep what would be left now: names that were not synced are there, or are not."""
        for names_last in (True, False):
            self.count += 1
            self._copy(self.root, self.states / f"{self.count:04}", names_last)

    def _copy(self, place: Path, to: Path, names_last: bool) -> None:
        to.mkdir(mode=0o700, parents=True)
        for entry in os.scandir(place):
            safe = entry.name in self._names.get(place.stat().st_ino, ())
            # the directory that is given is there before
            if not (safe or names_last):
                continue
            if entry.is_dir():
                self._copy(Path(entry.path), to / entry.name, names_last)
            else:
                content = Path(entry.path).read_bytes() if entry.inode() in self._content else b""
                (to / entry.name).write_bytes(content)
                (to / entry.name).chmod(0o600)


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Path]]]:
    def of(work: Callable[[Path], None]) -> list[Path]:
        root, kept = tmp_path / "spools", tmp_path / "states"
        root.mkdir(0o700)
        with monkeypatch.context() as patched:
            real = os.mkdir
            disk = Disk(root, kept, patched)
            patched.setattr(os, "mkdir", real)
            work(root)
            disk.fail()
        return sorted(kept.iterdir())

    return of


@pytest.mark.parametrize("fsync", ["never", "interval", "always"])
def test_every_state_of_a_first_start_is_one_that_starts(states, fsync: str) -> None:
    """Whatever is lost of the first start and the first records, the next one starts and adopts."""
    payload = b"x" * 300

    def work(root: Path) -> None:
        spool = open_spool(root, service="shop", fsync=fsync)
        for _ in range(3):
            spool.append(FrameKind.CLOSED, uuid7(), payload)
            spool.sync()
        spool.close()

    found = states(work)
    assert len(found) > 20
    for state in found:
        # no name is there before its content is
        for name in ("service", "[!.]*/spool.json"):
            assert all(file.read_bytes() for file in (state / "shop").glob(name)), state
        spool = open_spool(state, service="shop", fsync=fsync)
        assert inspect(state, "shop").unusable == ""
        for adopted in adopt(state, "shop"):
            assert {item.payload for item in adopted.records()} <= {payload}
            assert adopted.remove()
        assert inspect(state, "shop").stuck == 0
        spool.append(FrameKind.CLOSED, uuid7(), payload)
        assert spool.pending == 1
        spool.close()


def test_what_was_synced_is_there_in_every_later_state(states) -> None:
    """With fsync = always, a record that was synced is adopted whatever is lost after it."""
    from_here = []

    def work(root: Path) -> None:
        spool = open_spool(root, service="shop", fsync="always")
        spool.append(FrameKind.CLOSED, uuid7(), b"kept")
        spool.sync()
        from_here.append(len(list((root.parent / "states").iterdir())))
        spool.append(FrameKind.OPENED, uuid7(), b"under way")
        open_spool(root, service="shop").close()
        spool.close()

    found = states(work)[from_here[0] :]
    assert found
    for state in found:
        payloads = [item.payload for one in adopt(state, "shop") for item in one.records()]
        assert b"kept" in payloads


class TestClaim:
    @pytest.mark.parametrize(
        "left",
        [
            b"", b"\0\0\0\0", b"s", b"sho", b"shop\0\0", b"\xf3\x00\x9a\x11", b"pohs",
            b"shop\n", b"SHOP\x07", b"x" * 5000,
        ],
    )  # fmt: skip
    def test_a_damaged_one_is_written_anew(self, home: Path, caplog, left: bytes) -> None:
        """Empty, cut off or never written: it is this service's again, said and with its records."""
        spool = open_spool(home, service="shop")
        spool.append(FrameKind.CLOSED, uuid7(), b"kept")
        spool.close()
        (home / "shop" / "service").write_bytes(left)
        again = open_spool(home, service="shop")
        assert (home / "shop" / "service").read_bytes() == b"shop"
        assert "is damaged, as a power loss can leave it" in caplog.text
        [adopted] = adopt(home, "shop")
        assert [item.payload for item in adopted.records()] == [b"kept"]
        adopted.release()
        again.close()

    @pytest.mark.parametrize("full", [False, True])
    def test_a_directory_in_its_place_is_moved_aside(self, home: Path, caplog, full: bool) -> None:
        """The start goes on, what is in the directory is kept, and the log says where."""
        open_spool(home, service="shop").close()
        claim = home / "shop" / "service"
        claim.unlink()
        claim.mkdir()
        if full:
            (claim / "note").write_text("somebody's")
        open_spool(home, service="shop").close()
        assert claim.read_bytes() == b"shop"
        [aside] = (home / "shop").glob(".service-*")
        assert [path.name for path in aside.iterdir()] == ["note"] * full
        assert f"it is called {aside.name} now" in caplog.text

    def test_one_that_may_be_anothers_is_not(self, home: Path) -> None:
        """Where a spool in it says that it is another service's, a damaged word gives it to nobody."""
        spool = open_spool(home, service="Shop!")
        spool.append(FrameKind.CLOSED, uuid7(), b"theirs")
        spool.close()
        (home / "shop" / "service").write_bytes(b"")
        with pytest.raises(ConfigurationError, match=r"another service.*OTEL_SERVICE_NAME"):
            open_spool(home, service="shop")
        assert "another service" in inspect(home, "shop").unusable
        open_spool(home, service="Shop!").close()
        assert (home / "shop" / "service").read_bytes() == b"Shop!"

    def test_doctor_tries_it(self, home: Path) -> None:
        """A look says what a start would; it leaves nothing, and makes no directory."""
        assert inspect(home, "shop").unusable == ""
        assert not home.exists()
        open_spool(home, service="shop").close()
        before = sorted(home.rglob("*"))
        assert inspect(home, "shop").unusable == ""
        assert "another service" in inspect(home, "SHOP").unusable
        assert sorted(home.rglob("*")) == before


class TestLock:
    def leave(self, home: Path, **label: object) -> Path:
        spool = open_spool(home, service="shop")
        spool.append(FrameKind.CLOSED, uuid7(), b"kept")
        spool.close()
        told = json.loads((spool.path / "spool.json").read_text().splitlines()[0])
        (spool.path / "spool.json").write_bytes(encode_label(Manifest(**{**told, **label})))
        (spool.path / "lock").unlink()
        return spool.path

    def test_of_before_the_boot_is_made_anew(self, home: Path) -> None:
        """The process ended with the machine: its spool is adopted although its lock is gone."""
        self.leave(home, boot_id="00000000-0000-0000-0000-000000000000")
        [adopted] = adopt(home, "shop")
        assert [item.payload for item in adopted.records()] == [b"kept"]
        assert adopted.remove()

    def test_that_is_gone_otherwise_is_named(self, home: Path, caplog) -> None:
        """Its process may live: the log and doctor say what to do, and that helps."""
        path = self.leave(home)
        assert adopt(home, "shop") == []
        assert "has no file lock" in caplog.text
        status = inspect(home, "shop")
        assert status.stuck == 1
        assert any("make that file in it" in problem for problem in status.problems)
        (path / "lock").touch(mode=0o600)
        [adopted] = adopt(home, "shop")
        adopted.release()
        assert inspect(home, "shop").stuck == 0


@as_root
@pytest.mark.parametrize("fsync", ["interval", "always"])
def test_a_real_disk_that_loses_its_power(fsync: str) -> None:
    """An ext4 image as it is right after the first start: it is mounted again, and audits again."""
    with tempfile.TemporaryDirectory(prefix="otel-audit-disk-") as made:
        image, point, later, again_at = (
            Path(made) / name for name in ("image", "point", "later", "again")
        )
        point.mkdir()
        again_at.mkdir()
        with image.open("wb") as file:
            file.truncate(16 << 20)
        run("mkfs.ext4", "-q", "-F", image)
        with mounted(image, point):
            spool = open_spool(point / "spools", service="shop", fsync=fsync)
            for _ in range(43):
                spool.append(FrameKind.CLOSED, uuid7(), b"kept")
            spool.sync()
            # what the device has now; what only the kernel has is lost
            shutil.copyfile(image, later)
            spool.close()
        with mounted(later, again_at):
            assert (again_at / "spools" / "shop" / "service").read_bytes() == b"shop"
            again = open_spool(again_at / "spools", service="shop", fsync=fsync)
            [adopted] = adopt(again_at / "spools", "shop")
            assert len(list(adopted.records())) == 43
            assert adopted.remove()
            again.close()


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device here: {done.stderr.decode().strip()}")


class mounted:  # noqa: N801 - a context manager
    """An image, mounted by way of a loop device."""

    def __init__(self, image: Path, point: Path) -> None:
        self.image, self.point = image, point

    def __enter__(self) -> None:
        run("mount", "-o", "loop", self.image, self.point)

    def __exit__(self, *_: object) -> None:
        # this process keeps the service's directory open
        subprocess.run(["umount", "-l", self.point], check=True)
