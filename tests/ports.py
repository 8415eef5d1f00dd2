"""Ports of the loopback interface for servers that are started a moment later."""

from __future__ import annotations

import itertools
import os
import random
import socket

# below what Linux gives to outgoing connections (32768 on): such a connection of a test beside it
# took the port between its choice and the server's start
_FIRST, _END = 20_000, 32_000
# each of the workers that test side by side has ports of its own: a server is started a moment after
# its port was chosen; of two runs side by side nobody knows, so one without workers has all to choose
_WORKERS = 16
_worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
_own = range(_FIRST + int(_worker or 0) % _WORKERS, _END, _WORKERS if _worker else 1)
_candidates = itertools.cycle(random.SystemRandom().sample(_own, len(_own)))


def free_port() -> int:
    """Choose a port that nobody listens on, another one at each call of this process."""
    for port in itertools.islice(_candidates, len(_own)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port from {_FIRST} to {_END}")
