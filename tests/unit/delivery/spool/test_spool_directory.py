"""Where a spool may be, and what is said when it may not."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from otel_audit._util.ids import uuid7
from otel_audit.delivery.spool import FrameKind, SpoolWriteError, adopt, inspect, open_spool
from otel_audit.delivery.spool import directory as module
from otel_audit.delivery.spool.directory import slug
from otel_audit.delivery.spool.filesystem import FileSystem, file_system, find_mount
from otel_audit.errors import ConfigurationError, OtelAuditError

NOBODY = 65534
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change users and mounts")


@contextmanager
def mounted(options: str) -> Iterator[Path]:
    """A small tmpfs of its own; skips where the machine does not let one be mounted."""
    point = Path(tempfile.mkdtemp(prefix="otel-audit-spool-"))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", point], capture_output=True, check=False
    )
    if done.returncode:
        point.rmdir()
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)
        point.rmdir()


def as_nobody(call: Callable[[], object]) -> str:
    """What a call says when a process without rights makes it."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            try:
                os.write(writer, repr(call()).encode())
            except OtelAuditError as error:
                os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        text = told.read()
    os.waitpid(child, 0)
    return text


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that every user reaches, which pytest's own is not."""
    with tempfile.TemporaryDirectory(
        prefix="otel-audit-spool-", ignore_cleanup_errors=True
    ) as made:
        Path(made).chmod(0o777)
        yield Path(made)


class TestSlug:
    @pytest.mark.parametrize(
        ("service", "expected"),
        [
            ("shop", "shop"),
            ("Shop API", "shop-api"),
            ("../../etc", "etc"),
            ("unknown_service:python", "unknown_service-python"),
            ("名", "service"),
            ("", "service"),
            ("x" * 300, "x" * 64),
        ],
    )
    def test_is_a_harmless_name(self, service, expected):
        """Whatever a service is called, its directory lies directly in the spool's."""
        assert slug(service) == expected


class TestStart:
    def test_two_services_on_one_spool_are_refused(self, home):
        """Two names that share a directory would adopt each other's records: refused."""
        open_spool(home, service="Shop API").close()
        with pytest.raises(ConfigurationError, match=r"another service.*OTEL_SERVICE_NAME"):
            open_spool(home, service="shop-api")
        assert open_spool(home, service="Shop API").close()

    def test_two_processes_of_one_service_have_their_own(self, home):
        """Workers of one service share the directory and never a file."""
        first, second = (open_spool(home, service="shop") for _ in range(2))
        assert first.path.parent == second.path.parent
        assert first.path != second.path

    def test_a_file_in_its_place_is_refused(self, tmp_path):
        """What is not a directory holds no spool."""
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(
                ConfigurationError, match=r"OTEL_AUDIT_SPOOL_DIR: .*name a directory"
            ):
                open_spool(path, service="shop")

    def test_a_symbolic_link_in_its_place_is_refused(self, home, tmp_path):
        """A link planted under the service's name does not lead the records elsewhere."""
        home.mkdir()
        (tmp_path / "elsewhere").mkdir()
        (home / "shop").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_SPOOL_DIR"):
            open_spool(home, service="shop")

    def test_open_permissions_are_mended(self, home):
        """A service's directory that others may enter is closed to them."""
        (home / "shop").mkdir(parents=True)
        (home / "shop").chmod(0o777)
        home.chmod(0o755)
        open_spool(home, service="shop").close()
        assert stat.S_IMODE((home / "shop").stat().st_mode) == 0o700
        assert stat.S_IMODE(home.stat().st_mode) == 0o755

    @as_root
    def test_an_unwritable_directory_is_refused(self, open_to_all):
        """Without the right to write, the start fails and says what to do."""
        open_to_all.chmod(0o755)
        said = as_nobody(lambda: open_spool(open_to_all, service="shop"))
        assert said.startswith("ConfigurationError: OTEL_AUDIT_SPOOL_DIR")
        assert "make it writable for this process" in said

    @as_root
    def test_a_directory_of_another_user_is_refused(self, open_to_all):
        """Another user's directory could be read and swept by that user."""
        (open_to_all / "shop").mkdir()
        said = as_nobody(lambda: open_spool(open_to_all, service="shop"))
        assert "belongs to user 0" in said
        assert "change its owner" in said

    @as_root
    def test_a_read_only_file_system_is_refused(self):
        """A read-only mount is told from a missing right."""
        with mounted("size=1m") as point:
            subprocess.run(["mount", "-o", "remount,ro", point], check=True)
            with pytest.raises(ConfigurationError, match="read-only; name a directory"):
                open_spool(point, service="shop")

    @as_root
    def test_a_full_file_system_is_refused(self):
        """Without room for its first files a spool does not open."""
        with mounted("size=64k,nr_inodes=4") as point:
            (point / "a").write_bytes(b"")
            with pytest.raises(ConfigurationError, match="full; free space"):
                open_spool(point, service="shop")

    def test_nfs_without_locks_is_refused(self, home, monkeypatch):
        """Where locks do not reach other hosts, the living could be taken for dead."""
        nfs = FileSystem("nfs4", frozenset({"rw", "local_lock=all"}))
        monkeypatch.setattr(module, "file_system", lambda _: nfs)
        with pytest.raises(ConfigurationError, match="without shared locks"):
            open_spool(home, service="shop")


class TestFullDisk:
    @as_root
    def test_keeps_what_was_appended_and_goes_on_when_there_is_room(self):
        """ENOSPC is said, leaves no partial frame, and ends when there is room again."""
        with mounted("size=256k") as point:
            spool = open_spool(point, service="shop", segment_bytes=1 << 16, fsync="always")
            positions = []
            with pytest.raises(SpoolWriteError) as caught:
                positions.extend(
                    spool.append(FrameKind.CLOSED, uuid7(), b"x" * 3000) for _ in range(99)
                )
            assert caught.value.errno == 28
            assert len(positions) > 40
            for _ in range(3):
                with pytest.raises(SpoolWriteError):
                    spool.append(FrameKind.CLOSED, uuid7(), b"x" * 3000)
            assert spool.appended == positions[-1]
            assert [item.position for item in spool.read()] == positions
            assert spool.sync() == positions[-1]
            spool.acknowledge(positions)
            again = spool.append(FrameKind.CLOSED, uuid7(), b"x" * 3000)
            assert [item.position for item in spool.read()] == [again]
            assert spool.damaged == 0
            spool.close()
            [adopted] = adopt(point, "shop")
            assert list(adopted.records())[-1].payload == b"x" * 3000
            assert adopted.report.clean
            assert not adopted.report.damages
            assert adopted.remove()


class TestFileSystem:
    MOUNTS = (
        "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        "30 22 0:26 / /dev/shm rw,nosuid - tmpfs tmpfs rw\n"
        "31 22 0:27 / /var/lib/a\\040b rw - nfs4 host:/x rw,vers=4.2,local_lock=none\n"
        "32 22 0:28 / /var/lib rw shared:1 - nfs host:/y rw,nolock,vers=3\n"
        "33 22 0:29 / /data rw - fuse.glusterfs x rw\n"
        "34 22 0:30 / /over rw - overlay overlay rw,lowerdir=/a\n"
        "broken line\n"
    )

    @pytest.mark.parametrize(
        ("path", "kind", "persistent", "locks", "shared"),
        [
            ("/home/x", "ext4", True, True, False),
            ("/dev/shm/spool", "tmpfs", False, True, False),
            ("/dev/shmoo", "ext4", True, True, False),
            ("/var/lib/a b/spool", "nfs4", True, True, False),
            ("/var/lib/app", "nfs", True, False, False),
            ("/data", "fuse.glusterfs", True, True, True),
            ("/over/lay", "overlay", False, True, False),
        ],
    )
    def test_is_told_from_the_mounts(self, path, kind, persistent, locks, shared):
        """The longest mount point that holds the path decides."""
        found = find_mount(self.MOUNTS, path)
        told = (found.kind, found.persistent, found.locks, found.shared)
        assert told == (kind, persistent, locks, shared)

    @as_root
    def test_of_a_real_mount(self):
        """The machine's own mounts can be read."""
        with mounted("size=64k") as point:
            assert file_system(point / "not" / "there").kind == "tmpfs"

    def test_unknown_is_taken_for_a_good_one(self):
        """Where the system does not tell, nothing is held against it."""
        assert find_mount("", "/x") == FileSystem()
        assert FileSystem().persistent
        assert FileSystem().locks


class TestInspect:
    def test_changes_nothing(self, home):
        """Looking at a directory that does not exist does not make it."""
        status = inspect(home)
        assert not status.exists
        assert not home.exists()
        assert status.writable
        assert status.bytes_free > 0
        assert (status.abandoned, status.oldest_age) == (0, None)

    def test_counts_the_living_and_the_dead(self, home):
        """Spools are counted over all services, and the oldest dead one's age is told."""
        living = open_spool(home, service="shop")
        living.append(FrameKind.CLOSED, uuid7(), b"x" * 100)
        for service in ("shop", "stock"):
            dead = open_spool(home, service=service)
            dead.append(FrameKind.CLOSED, uuid7(), b"x" * 100)
            dead.close()
        os.utime(dead.path / "0000000001.frames", (0, 0))
        status = inspect(home)
        assert status.abandoned == 2
        assert status.bytes_used == 3 * 144
        assert status.oldest_age is not None
        assert status.oldest_age > 1e9
        assert status.exists
        assert status.private
        assert len(adopt(home, "shop")) == 1

    def test_tells_since_when_a_full_file_of_a_living_spool_is_kept(self, home):
        """An action that began in it and has not ended keeps it, and in it what is delivered."""
        living = open_spool(home, service="shop", segment_bytes=4096)
        for _ in range(3):
            living.append(FrameKind.CLOSED, uuid7(), b"x" * 100)
        assert inspect(home).kept_age is None
        while not (living.path / "0000000003.frames").exists():
            living.append(FrameKind.CLOSED, uuid7(), b"x" * 1000)
        os.utime(living.path / "0000000001.frames", (0, 0))
        kept = inspect(home).kept_age
        assert kept is not None
        assert kept > 1e9
        living.close()
        assert inspect(home).kept_age is None

    def test_names_what_waits_for_another_destination(self, home):
        """Of this service only: other services have destinations of their own."""
        for service, destination in (("shop", "b" * 16), ("shop", "a" * 16), ("stock", "b" * 16)):
            spool = open_spool(home, service=service, destination=destination)
            spool.append(FrameKind.CLOSED, uuid7(), b"x")
            spool.close()
        living = open_spool(home, service="shop", destination="b" * 16)
        living.append(FrameKind.CLOSED, uuid7(), b"x")
        problems = inspect(home, "shop", "a" * 16).problems
        (said,) = [problem for problem in problems if "another destination" in problem]
        assert said.startswith("1 spools")
        assert "OTEL_SERVICE_NAME" in said
        for known in ((), ("shop",), ("stock", "b" * 16)):
            assert "another destination" not in "".join(inspect(home, *known).problems)

    def test_names_open_permissions(self, home):
        """A directory that others may enter is a problem with a remedy."""
        open_spool(home, service="shop").close()
        (home / "shop").chmod(0o750)
        status = inspect(home)
        assert not status.private
        assert any("0700" in problem for problem in status.problems)

    @as_root
    def test_names_what_does_not_last(self):
        """A tmpfs is no place for what must survive."""
        with mounted("size=64k") as point:
            status = inspect(point)
            assert (status.file_system, status.persistent) == ("tmpfs", False)
            assert any("persistent volume" in problem for problem in status.problems)
            assert status.bytes_free <= 64 * 1024

    @as_root
    def test_names_a_directory_it_cannot_write_or_read(self, open_to_all):
        """Missing rights are problems, not errors."""
        open_spool(open_to_all, service="shop").close()
        open_to_all.chmod(0o755)
        said = as_nobody(lambda: inspect(open_to_all).problems)
        assert "is not writable" in said
        assert "Permission denied" in said
