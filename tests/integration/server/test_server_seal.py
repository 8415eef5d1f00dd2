"""The sink can seal the ledger beside its work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import preloaded
from otel_audit_postgres.ledger.keys import read_key_file
from otel_audit_postgres.ledger.verify.verify import verify
from sinks import request, serving, span


async def test_what_it_takes_is_sealed_and_can_be_verified(tmp_path, stored):
    key = tmp_path / "ledger.key"
    assert preloaded.run("keygen", str(key)).returncode == 0
    settings = {"OTEL_AUDIT_SIGNING_KEY_FILE": str(key), "OTEL_AUDIT_SEAL_INTERVAL": "0.1"}

    with serving(tmp_path, stored.dsn, "--seal", environment=settings) as sink:
        assert sink.traces(request(*[span(number) for number in range(1, 30)])).status_code == 200
        deadline = time.monotonic() + 60
        while not (sealed := await stored.fetch("SELECT size FROM audit.ledger_checkpoints")):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    assert sealed[-1]["size"] == 29
    signer = read_key_file(key, "the test's key")
    report = await verify(stored.dsn, keys=[signer.public])
    assert report.problems == ()


def test_health_says_why_nothing_is_sealed(tmp_path, stored):
    """Sealing that is refused shows in `/health`, and that it goes on once the cause is mended."""
    place = tmp_path / "anchor"
    settings = {
        "OTEL_AUDIT_SEAL_INTERVAL": "0.1",
        "OTEL_AUDIT_ANCHOR": f"file:{place}",
    }
    with serving(tmp_path, stored.dsn, "--seal", environment=settings) as sink:
        assert sink.traces(request(span(1))).status_code == 200
        told = until(lambda: place.exists() and sink.client.get("/health").json())
        assert told["threads"] == {"sealing": "ok"}
    place.unlink()
    with serving(tmp_path, stored.dsn, "--seal", environment=settings) as sink:
        refused = until(
            lambda: (why := sink.client.get("/health").json()["threads"]["sealing"]) != "ok" and why
        )
        assert "holds no checkpoint" in refused


def until(found: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return answer
