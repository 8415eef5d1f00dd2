"""Who else may read a file with a secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from otel_audit._util.private_file import is_private, others_may_write

GROUP = 4711


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of this process's group; the process is in no other."""
    path = tmp_path / "secret"
    path.write_text("x")
    monkeypatch.setattr(os, "getegid", lambda: path.stat().st_gid)
    monkeypatch.setattr(os, "getgroups", list)
    return path


@pytest.mark.parametrize(
    ("mode", "private"),
    [
        (0o600, True), (0o400, True), (0o440, True), (0o640, False), (0o660, False),
        (0o444, False), (0o644, False), (0o404, False), (0o602, False), (0o460, False),
    ],
)  # fmt: skip
def test_modes_of_a_file_of_its_own(secret, mode, private):
    """Its own file a process can close; one that is mounted read-only for its group it cannot."""
    secret.chmod(mode)
    assert is_private(secret.stat()) is private


@pytest.mark.parametrize("mode", [0o440, 0o640])
def test_a_mount_for_a_group_is_the_groups(secret, mode, monkeypatch):
    """As Kubernetes mounts a secret with fsGroup: root's, readable for a supplementary group."""
    secret.chmod(mode)
    facts = list(secret.stat())[:10]
    facts[4], facts[5] = 0, GROUP
    mounted = os.stat_result(facts)
    monkeypatch.setattr(os, "geteuid", lambda: 10_001)
    assert not is_private(mounted)
    monkeypatch.setattr(os, "getgroups", lambda: [GROUP])
    assert is_private(mounted)


@pytest.mark.parametrize(
    ("mode", "writable"), [(0o600, False), (0o644, False), (0o620, True), (0o602, True)]
)
def test_who_may_write(secret, mode, writable):
    """A file that only its user may write is trusted, if that user is this one."""
    secret.chmod(mode)
    assert others_may_write(secret.stat()) is writable


def test_another_users_file(secret, monkeypatch):
    """Its owner may write to it at any time."""
    monkeypatch.setattr(os, "geteuid", lambda: secret.stat().st_uid + 1)
    assert others_may_write(secret.stat())
