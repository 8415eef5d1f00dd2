"""Spools on file systems that several machines mount: whose process is dead, and who may say so."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_audit._util.ids import uuid7
from otel_audit.delivery.spool import FrameKind, adopt, inspect, leases, open_spool, recover
from otel_audit.delivery.spool import open as opening
from otel_audit.delivery.spool.filesystem import FileSystem, file_system
from otel_audit.delivery.spool.manifest import Manifest, encode_label

POD = """
import os, pathlib, signal, sys
from otel_audit._util.ids import uuid7
from otel_audit.delivery.spool import FrameKind, open_spool

spool = open_spool(pathlib.Path(sys.argv[1]), service="shop")
for _ in range(20):
    spool.append(FrameKind.CLOSED, uuid7(), b"kept")
os.kill(os.getpid(), signal.SIGKILL)
"""
ELSEWHERE = {"host": "pod-7", "boot_id": "00000000-0000-0000-0000-000000000000"}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch):
    """Have everything lie on a file system of this kind."""

    def mounted(kind: str, *options: str) -> None:
        found = FileSystem(kind, frozenset(options))
        for module in (recover, opening):
            monkeypatch.setattr(module, "file_system", lambda _: found)

    return mounted


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The adopter's clock, to be set."""
    now = [1000.0]
    monkeypatch.setattr(leases.time, "monotonic", lambda: now[0])
    return now


def of(path: Path, **label: object) -> None:
    """Say something else in a spool's label."""
    told = json.loads((path / "spool.json").read_text().splitlines()[0])
    (path / "spool.json").write_bytes(encode_label(Manifest(**{**told, **label})))


def dead(home: Path, **label: object) -> Path:
    spool = open_spool(home, service="shop")
    spool.append(FrameKind.CLOSED, uuid7(), b"kept")
    spool.close()
    of(spool.path, **label)
    return spool.path


@pytest.mark.parametrize(
    "kind",
    ["fuse", "fuse.sshfs", "9p", "virtiofs", "cifs", "smb3", "ceph", "lustre", "fuse.glusterfs"],
)
class TestKilledPod:
    def test_on_the_same_kernel_it_is_known_by_its_lock(self, home: Path, on, kind: str) -> None:
        """Another host's name, one kernel: the lock was proven, and is free."""
        on(kind)
        path = dead(home, host="pod-7")
        [adopted] = adopt(home, "shop")
        assert adopted.path == path
        assert adopted.remove()

    def test_on_another_kernel_it_is_known_by_its_lease(
        self, home: Path, on, clock: list[float], kind: str
    ) -> None:
        """It is taken once its lease has not been renewed for 45 seconds, not before."""
        on(kind)
        dead(home, **ELSEWHERE)
        assert adopt(home, "shop") == []
        assert inspect(home, "shop").stuck == 0
        clock[0] += leases.EXPIRES_AFTER - 1
        assert adopt(home, "shop") == []
        clock[0] += 1
        [adopted] = adopt(home, "shop")
        assert [item.payload for item in adopted.records()] == [b"kept"]
        assert adopted.remove()

    def test_a_living_one_is_never_taken(
        self, home: Path, on, clock: list[float], monkeypatch, kind: str
    ) -> None:
        """It renews its lease as it looks around, so that no other machine adopts it."""
        on(kind)
        spool = open_spool(home, service="shop")
        spool.append(FrameKind.CLOSED, uuid7(), b"mine")
        of(spool.path, **ELSEWHERE)
        monkeypatch.setattr("otel_audit.delivery.spool.log._LOOK_AROUND_SECONDS", 0.0)
        # what locks tell of another machine: nothing
        monkeypatch.setattr(recover, "_locked", lambda place: os.dup(0))
        for _ in range(30):
            clock[0] += leases.RENEWED_WITHIN
            spool.sync()
            assert adopt(home, "shop") == []
        clock[0] += leases.EXPIRES_AFTER
        assert len(adopt(home, "shop")) == 1


class TestOutOfReach:
    @pytest.mark.parametrize(
        ("options", "lease", "why"),
        [(("cache=loose",), 5.0, "cache that hides"), ((), 0.0, "of an earlier version")],
    )
    def test_is_named_with_a_remedy_that_helps(  # noqa: PLR0917
        self, home: Path, on, caplog, options, lease: float, why: str
    ) -> None:
        """Where nobody can tell, log and doctor say so; without its label it is adopted."""
        on("9p", *options)
        path = dead(home, **ELSEWHERE, lease=lease)
        assert adopt(home, "shop") == []
        assert why in caplog.text
        status = inspect(home, "shop")
        assert status.stuck == 1
        assert any("remove spool.json in it" in problem for problem in status.problems)
        (path / "spool.json").unlink()
        [adopted] = adopt(home, "shop")
        assert adopted.remove()

    def test_two_machines_that_adopt_the_same_do_each_other_no_harm(self, home: Path, on) -> None:
        """Both deliver it; whoever comes second to its end finds it gone, and says nothing."""
        on("virtiofs")
        path = dead(home)
        [first] = adopt(home, "shop")
        shutil.copy(path / "lock", path / "other")
        (path / "other").replace(path / "lock")
        [second] = adopt(home, "shop")
        assert len(list(first.records())) == len(list(second.records())) == 1
        assert first.remove()
        assert second.remove()
        assert not path.exists()


@pytest.fixture
def fuse() -> Iterator[Path]:
    """A real FUSE mount, each file operation by way of bindfs."""
    if os.geteuid() != 0 or shutil.which("bindfs") is None:
        pytest.skip("a FUSE mount needs root and bindfs")
    with tempfile.TemporaryDirectory(prefix="otel-audit-fuse-") as made:
        source, point = Path(made) / "source", Path(made) / "point"
        source.mkdir(0o700)
        point.mkdir()
        done = subprocess.run(["bindfs", source, point], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"no FUSE here: {done.stderr.decode().strip()}")
        try:
            yield point
        finally:
            subprocess.run(["umount", "-l", point], check=True)


class TestFuse:
    def test_it_is_one(self, fuse: Path) -> None:
        """The mount is what it should be."""
        assert file_system(fuse).kind in {"fuse", "fuse.bindfs"}
        assert file_system(fuse).shared

    def test_a_killed_pod_of_another_name_is_adopted(self, fuse: Path) -> None:
        """A process with another host's name is killed there: all its records come, at once."""
        command = f"hostname pod-7 && exec {sys.executable} - {fuse}"
        done = subprocess.run(
            ["unshare", "--uts", "sh", "-c", command], input=POD, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        if "unshare" in done.stderr:
            pytest.skip(f"no host name of its own here: {done.stderr.strip()}")
        assert done.returncode == -9, done.stderr
        [adopted] = adopt(fuse, "shop")
        assert adopted.label is not None
        assert adopted.label.host == "pod-7"
        assert len(list(adopted.records())) == 20
        assert adopted.remove()
        assert [path.name for path in (fuse / "shop").iterdir()] == ["service"]

    def test_an_orderly_end_leaves_nothing(self, fuse: Path, caplog) -> None:
        """Neither a line in the log nor a file under whatever name, also after segments went."""
        with caplog.at_level(logging.WARNING):
            spool = open_spool(fuse, service="shop", segment_bytes=4096)
            positions = [spool.append(FrameKind.CLOSED, uuid7(), b"x" * 1500) for _ in range(20)]
            spool.acknowledge(positions)
            assert spool.close()
        assert caplog.text == ""
        assert [path.name for path in (fuse / "shop").iterdir()] == ["service"]

    def test_a_living_one_is_left_alone(self, fuse: Path) -> None:
        """Its lock is held."""
        with contextlib.closing(open_spool(fuse, service="shop")) as spool:
            spool.append(FrameKind.CLOSED, uuid7(), b"mine")
            assert adopt(fuse, "shop") == []
