"""Hosts that are this machine."""

from __future__ import annotations

import pytest

from otel_audit._util.loopback import is_loopback


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost",
        "app.localhost",
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "::ffff:127.0.0.1",
    ],
)
def test_this_machine(host: str) -> None:
    """By name, by IPv4, by IPv6, and by IPv4 as a socket for both shows it."""
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["", "10.0.0.1", "::ffff:10.0.0.1", "0.0.0.0", "::", "localhost.example.com", "notlocalhost",
     "127.0.0.1.example.com", "unix:"],
)  # fmt: skip
def test_others(host: str) -> None:
    """What may be reached from elsewhere, or is no host at all."""
    assert not is_loopback(host)
