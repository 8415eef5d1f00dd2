"""What others put into a spool's place is reported, and neither read, waited for nor counted."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otel_audit._util.ids import uuid7
from otel_audit.delivery.spool import FrameKind, Spool, adopt, inspect, open_spool
from otel_audit.delivery.spool.directory import prepare_service_directory
from otel_audit.delivery.spool.ownership import OwnDirectory, foreign_found
from otel_audit.errors import ConfigurationError

ATTACKER, APP = 1600, 1500
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as two users")


def as_user(user: int, call: Callable[[], object]) -> None:
    """Do something in a process of a user; what it raises fails the test."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            call()
            status = 0
        except BaseException as error:
            os.write(2, f"user {user}: {error!r}\n".encode())
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that every user may write, without the sticky bit, as an emptyDir is."""
    made = Path(tempfile.mkdtemp(prefix="otel-audit-spool-"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made)


def leave(directory: Path, payload: bytes = b"planted") -> Path:
    """A spool of a process that has ended, with one record."""
    spool = open_spool(directory, service="shop")
    spool.append(FrameKind.CLOSED, uuid7(), payload)
    spool.close()
    return spool.path


def payloads(directory: Path) -> list[bytes]:
    """What an adopter would deliver."""
    held = adopt(directory, "shop")
    found = [item.payload for spool in held for item in spool.records()]
    for spool in held:
        spool.release()
    return found


def fill(spool: Spool) -> None:
    """Append what the smallest bound holds beside nothing else."""
    spool.append(FrameKind.OPENED, uuid7(), b"x" * 100)


@as_root
class TestListing:
    def test_one_that_another_thread_or_process_has_begun_hides_nothing(self, home):
        """They share the descriptor: an adopter would find no spool of a child killed amid it."""
        leave(home)
        directory = OwnDirectory(home)
        whole = directory.names()
        assert whole
        with os.scandir(directory._fd) as listing:
            next(listing)
            assert directory.names() == whole

    def test_a_directory_that_was_removed_is_empty(self, tmp_path):
        (tmp_path / "gone").mkdir(0o700)
        directory = OwnDirectory(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        assert directory.names() == []


class TestOtherUser:
    def test_a_spool_planted_before_the_directory_was_made_private(self, shared):
        """Frames that another user wrote while the directory was open to all are nobody's word."""

        def open_to_all() -> None:
            (shared / "shop").mkdir()
            (shared / "shop").chmod(0o777)

        def plant() -> None:
            leave(shared / "his")
            shutil.copytree(next((shared / "his" / "shop").glob("0*")), shared / "shop" / uuid7())

        def start() -> None:
            spool = open_spool(shared, service="shop")
            assert payloads(shared) == []
            assert any(str(shared / "shop" / "0") in said for said in inspect(shared).problems)
            fill(spool)

        as_user(APP, open_to_all)
        as_user(ATTACKER, plant)
        as_user(APP, start)

    def test_a_directory_exchanged_while_the_application_runs(self, shared):
        """What was opened at the start is used wherever it is moved; what stands there is not."""
        spool_of_app: list[Spool] = []

        is_ready, ready = os.pipe()
        is_swapped, swapped = os.pipe()

        def swap() -> None:
            (shared / "shop").rename(shared / "moved")
            leave(shared)

        def run() -> None:
            spool = open_spool(shared, service="shop", segment_bytes=4096, max_bytes=1 << 20)
            spool_of_app.append(spool)
            leave(shared, b"ours")
            first, second = os.pipe()
            child = os.fork()
            if not child:
                os.read(first, 1)
                os._exit(0)
            os.write(ready, b"x")
            os.read(is_swapped, 1)
            os.write(second, b"x")
            os.waitpid(child, 0)
            for _ in range(9):
                spool.append(FrameKind.CLOSED, uuid7(), b"x" * 3000)
            assert len(list(spool.read())) == 9
            assert payloads(shared) == [b"ours"]

        child = os.fork()
        if not child:
            try:
                as_user(APP, run)
            except BaseException:
                os._exit(1)
            os._exit(0)
        # else nobody would say that a child has failed
        os.close(ready)
        assert os.read(is_ready, 1) == b"x"
        as_user(ATTACKER, swap)
        os.write(swapped, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class TestReadingBack:
    def test_a_segment_that_another_file_stands_for_is_lost_and_counted(self, home):
        """What a living spool wrote is read back from its own files alone."""
        spool = open_spool(home, service="shop")
        spool.append(FrameKind.CLOSED, uuid7(), b"ours")
        (segment,) = spool.path.glob("*.frames")
        segment.chmod(0o666)
        found = foreign_found()
        assert list(spool.read()) == []
        assert spool.damaged == 1
        assert foreign_found() == found + 1

    def test_no_more_is_read_than_was_written(self, home):
        """A segment that has grown by 200 GB of holes is read to where it was written."""
        spool = open_spool(home, service="shop")
        spool.append(FrameKind.CLOSED, uuid7(), b"ours")
        (segment,) = spool.path.glob("*.frames")
        os.truncate(segment, 200 << 30)
        assert list(spool.read()) == []
        assert spool.damaged == 1


class TestKinds:
    @pytest.mark.parametrize("name", ["lock", "spool.json", "0000000001.frames"])
    def test_a_fifo_in_a_files_place_holds_up_nobody(self, home, name):
        """Opening it would wait for a writer that never comes."""
        path = leave(home)
        (path / name).unlink()
        os.mkfifo(path / name)
        assert payloads(home) == []
        assert any("a FIFO" in said for said in inspect(home).problems) or name == "spool.json"
        assert path.exists()

    @pytest.mark.parametrize("name", ["lock", "spool.json", "0000000001.frames"])
    def test_links_are_not_followed(self, home, tmp_path, name):
        """Neither a symbolic nor a second hard link is a file of a spool."""
        path = leave(home)
        shutil.copy(path / name, tmp_path / "elsewhere")
        for link in (Path.symlink_to, Path.hardlink_to):
            (path / name).unlink()
            link(path / name, tmp_path / "elsewhere")
            assert payloads(home) == []

    def test_a_file_that_others_may_write_is_not_read(self, home):
        """Whoever may write it may have written it."""
        path = leave(home)
        (path / "0000000001.frames").chmod(0o666)
        assert payloads(home) == []

    def test_a_huge_sparse_segment_uses_up_no_quota(self, home):
        """200 GB of holes take no room on disk, and none of the bound."""
        path = leave(home)
        os.truncate(path / "0000000001.frames", 200 << 30)
        spool = open_spool(home, service="shop")
        fill(spool)
        assert spool.bytes_used + spool._quota.others < 1 << 20
        assert payloads(home) == []

    def test_a_label_too_large_is_not_read(self, home):
        """A label has a few hundred bytes."""
        path = leave(home)
        os.truncate(path / "spool.json", 1 << 40)
        assert payloads(home) == []

    def test_a_service_file_that_is_none_is_replaced(self, home):
        """A FIFO in place of the service's name neither holds up the start nor forbids it."""
        (home / "shop").mkdir(parents=True)
        os.mkfifo(home / "shop" / "service")
        spool = open_spool(home, service="shop")
        assert (spool.path.parent / "service").read_text() == "shop"

    def test_a_good_spool_beside_them_is_adopted(self, home):
        """What is left alone keeps nothing else from being delivered."""
        bad, good = leave(home), leave(home, b"good")
        (bad / "lock").unlink()
        os.mkfifo(bad / "lock")
        assert payloads(home) == [b"good"]
        assert good.exists()


def test_a_parent_that_all_may_write_is_told_of(home, caplog):
    """Whoever may rename the directory is named at the start, with the command that mends it."""
    home.mkdir()
    home.chmod(0o777)
    prepare_service_directory(home, "shop")
    assert f"chmod o-w {home}" in caplog.text
    assert any("chmod o-w" in said for said in inspect(home).problems)


def test_a_group_volume_of_kubernetes_is_ours(home):
    """Kubernetes sets the group's right to write, and the set-group-id bit, on a pod's volume."""
    path = leave(home)
    for file in path.iterdir():
        file.chmod(0o660)
    path.chmod(0o2770)
    assert payloads(home) == [b"planted"]


def test_a_start_in_a_file_says_what_is_wrong(tmp_path):
    """The message names the directory and the remedy."""
    (tmp_path / "shop").write_text("")
    with pytest.raises(ConfigurationError, match="name a directory"):
        open_spool(tmp_path, service="shop")
