"""Stand-ins for what takes events at the end: Splunk's collector and Elasticsearch's bulk API."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from demo.receiver import Answer, listening

Told = Answer | float | None
"""What a request gets: an answer; so many seconds of silence; None: a connection that breaks."""


def told(answer: Told, silence_ends_in: Answer | None = None) -> Answer:
    """Misbehave as told."""
    if isinstance(answer, float):
        time.sleep(answer)
        answer = silence_ends_in
    if answer is None:
        raise ConnectionAbortedError  # the handler closes the connection, without a word
    return answer


@dataclass
class Splunk:
    """A stand-in for the HTTP Event Collector, which can be told to misbehave."""

    url: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    requests: int = 0
    tokens: set[str] = field(default_factory=set)
    next: list[Told] = field(default_factory=list)

    def take(self, headers: Mapping[str, str], body: bytes) -> Answer:
        self.requests += 1
        self.tokens.add(headers.get("authorization", ""))
        if self.next:
            return told(self.next.pop(0), Answer(status=503))
        # events one behind the other, with nothing between
        decoder, text, at = json.JSONDecoder(), body.decode(), 0
        while at < len(text):
            event, at = decoder.raw_decode(text, at)
            at = re.compile(r"\s*").match(text, at).end()
            self.events.append(event)
        return Answer(body=b'{"text":"Success","code":0}', content_type="application/json")


@contextmanager
def splunk(port: int = 0) -> Iterator[Splunk]:
    found = Splunk()
    with listening(lambda _path, headers, body: found.take(headers, body), port=port) as found.url:
        yield found


@dataclass
class Elasticsearch:
    """A stand-in for the bulk API: one document for each id, and an answer for each item."""

    url: str = ""
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: int = 0
    indices: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    conflicts: int = 0
    """Items that were there already."""
    next: list[Told] = field(default_factory=list)
    status_of: Callable[[dict[str, Any]], int] = lambda _document: 201
    """What an item gets, by its document; 201 stores it."""

    def take(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        self.requests += 1
        if self.next:
            return told(self.next.pop(0))
        assert path.partition("?")[0] == "/_bulk", path
        self.keys.add(headers.get("authorization", ""))
        lines = body.splitlines()
        items = [
            self._item(json.loads(action)["create"], json.loads(document))
            for action, document in zip(lines[::2], lines[1::2], strict=True)
        ]
        failed = any("error" in item for item in items)
        answer = {"took": 1, "errors": failed, "items": [{"create": item} for item in items]}
        return Answer(
            body=json.dumps(answer).encode(), content_type="application/json",
            headers={"X-Elastic-Product": "Elasticsearch"},
        )  # fmt: skip

    def _item(self, action: Mapping[str, Any], document: dict[str, Any]) -> dict[str, Any]:
        self.indices.add(action["_index"])
        status = self.status_of(document)
        if status == 201 and action["_id"] in self.documents:
            self.conflicts += 1
            status = 409
        if status == 201:
            self.documents[action["_id"]] = document
            return {"_index": action["_index"], "_id": action["_id"], "status": 201}
        kinds = {409: "version_conflict_engine_exception", 400: "document_parsing_exception"}
        error = {"type": kinds.get(status, "es_rejected_execution_exception"), "reason": "no"}
        return {"_index": action["_index"], "_id": action["_id"], "status": status, "error": error}


@contextmanager
def elasticsearch(port: int = 0) -> Iterator[Elasticsearch]:
    found = Elasticsearch()
    with listening(found.take, port=port) as found.url:
        yield found
