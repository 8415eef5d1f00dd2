"""The anchor over HTTP, and a server that does not end its answer."""

from __future__ import annotations

import pytest
from dripping_server import dripping
from otel_audit_postgres.ledger import anchors
from otel_audit_postgres.ledger.anchors import AnchorError, HttpAnchor


@pytest.mark.parametrize("begun", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Long: "])
@pytest.mark.timeout(30)
async def test_a_byte_now_and_then_holds_no_thread(monkeypatch, begun):
    """The limit is for the whole answer, headers and body."""
    monkeypatch.setattr(anchors, "_HTTP_TIMEOUT", 0.5)
    with dripping(begun) as url, pytest.raises(AnchorError, match="cannot be reached"):
        await HttpAnchor(url).last()
