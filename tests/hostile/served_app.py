"""An application of one shape for a real server, with a journal of what it was given.

The journal stands outside of everything, as a proxy does: it gives each request its id, by which
the record is found again, and writes down what the server has made of the request and what the
client was answered.
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from pathlib import Path
from typing import Any

import otel_audit
from hostile.applications import SHAPES, Log


class Journal:
    """Writes one line of JSON a request, after the application has returned."""

    def __init__(self, app: Any, log: Log, file: Path) -> None:
        self.app, self.log, self.file = app, log, file

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or scope["path"] == "/up":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        others = [pair for pair in scope["headers"] if pair[0] != b"x-request-id"]
        given = [(b"x-request-id", request_id.encode()), *others]
        sent: list[tuple[str, Any]] = []

        async def noted(message: Any) -> None:
            sent.append((message["type"], message.get("status", message.get("code"))))
            await send(message)

        seen = self.log.begin()
        try:
            await self.app({**scope, "headers": given}, receive, noted)
        finally:
            told = dataclasses.asdict(seen)
            told["body"] = None if seen.body is None else seen.body.decode("latin-1")
            line = {
                "id": request_id,
                "kind": scope["type"],
                "method": scope.get("method", "GET"),
                "path": scope["path"],
                "target": (scope["raw_path"] + b"?" + scope["query_string"]).decode("latin-1"),
                "headers": [[one.decode("latin-1") for one in pair] for pair in scope["headers"]],
                "sent": [pair for pair in sent if pair[0] != "http.response.body"],
                "seen": told,
            }
            with self.file.open("a") as output:
                output.write(json.dumps(line) + "\n")


_log = Log()
_shape = SHAPES[os.environ["HOSTILE_SHAPE"]]
_inner = _shape.make(_log)
otel_audit.instrument(_inner)
app = Journal(_inner, _log, Path(os.environ["HOSTILE_JOURNAL"]))
