"""Ports of the loopback interface for servers that are started a moment later."""

from __future__ import annotations

import itertools
import random
import socket

# below what Linux gives to outgoing connections (32768 on): such a connection of a test beside it
# took the port between its choice and the server's start
_FIRST, _END = 20_000, 32_000
_candidates = itertools.cycle(random.SystemRandom().sample(range(_FIRST, _END), _END - _FIRST))


def free_port() -> int:
    """Choose a port that nobody listens on, another one at each call of this process."""
    for port in itertools.islice(_candidates, _END - _FIRST):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port from {_FIRST} to {_END}")
