"""A real pgbouncer before a server, for tests of connections that are shared out by transaction."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from ports import free_port

REQUIRED = "TEST_PGBOUNCER_REQUIRED"


def program() -> str:
    """Where pgbouncer is; the test is skipped, or fails where it is required, if nowhere."""
    found = os.environ.get("TEST_PGBOUNCER") or shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")
    if found:
        return found
    if os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, and there is no pgbouncer: apt-get install pgbouncer")
    pytest.skip("needs pgbouncer: apt-get install pgbouncer, or name it in TEST_PGBOUNCER")


def version() -> tuple[int, int]:
    told = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True)
    major, minor = told.stdout.split()[1].split(".")[:2]
    return int(major), int(minor)


@contextmanager
def pgbouncer(server_dsn: str, mode: str = "transaction", **settings: object) -> Iterator[str]:
    """Run one before the server's databases; the DSN of a database on it, with {} for its name.

    Args:
        server_dsn: Of the server; reached through its Unix socket, as its superuser.
        mode: How connections are shared out.
        settings: More of pgbouncer's.
    """
    place = parse_qs(urlsplit(server_dsn).query)
    home = Path(tempfile.mkdtemp(prefix="otel-audit-pgbouncer-"))
    port = free_port()
    (home / "users").write_text('"postgres" ""\n')
    lines = {
        "listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "", "auth_type": "any",
        "pool_mode": mode, "default_pool_size": 4, "max_client_conn": 200,
        "logfile": home / "log", "pidfile": home / "pid", "auth_file": home / "users", **settings,
    }  # fmt: skip
    where = f"host={place['host'][0]} port={place.get('port', ['5432'])[0]} user=postgres"
    (home / "ini").write_text(
        f"[databases]\n* = {where}\n[pgbouncer]\n"
        + "".join(f"{name} = {value}\n" for name, value in lines.items())
    )
    # it refuses to run as root, and who runs the server alone reaches its socket
    user = Path(place["host"][0]).stat().st_uid if os.geteuid() == 0 else None
    if user is not None:
        for path in (home, *home.iterdir()):
            os.chown(path, user, -1)
    process = subprocess.Popen(
        [program(), str(home / "ini")], user=user, cwd="/", env={"PATH": "/usr/bin"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_until_up(process, port, home / "log")
        yield f"postgresql://postgres@127.0.0.1:{port}/{{}}"
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text() if log.exists() else "pgbouncer did not start")
