"""A destination of streams on the loopback interface, which can be told to misbehave."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from otlp_receiver import Answer, plain

from demo.receiver import listening


@dataclass(frozen=True)
class Asked:
    """One request: its headers in lower case, its body, and the events that are in it."""

    path: str
    headers: dict[str, str]
    body: bytes
    events: list[dict[str, Any]]


@dataclass
class Receiver:
    """What arrived; what was answered with success is stored, in the order in which it was."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    stored: list[dict[str, Any]] = field(default_factory=list)
    decide: Callable[[Asked], Answer] = lambda _asked: Answer()
    next: list[Answer] = field(default_factory=list)
    """Answers for the next requests, before `decide` is asked again."""

    @property
    def leaves(self) -> list[int]:
        return [event["leaf"] for event in self.stored]

    def take(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        answer = self.next.pop(0) if self.next else self.decide(asked)
        if answer.status == 200 and not answer.body:
            self.stored += asked.events
        return answer


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    receiver = Receiver()

    def respond(path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        named = {name.lower(): value for name, value in headers.items()}
        answer = receiver.take(Asked(path, named, body, _events(named, body)))
        time.sleep(answer.after)
        return answer

    with listening(respond, port=port) as receiver.url:
        yield receiver


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The events in a file, of the whole lines: another process may be writing the last one."""
    written = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in written[: written.rfind(b"\n") + 1].splitlines()]


def _events(headers: Mapping[str, str], body: bytes) -> list[dict[str, Any]]:
    if headers.get("content-type") == "application/json":
        return [json.loads(body)]
    request = ExportLogsServiceRequest.FromString(body)
    return [
        plain(record.body)
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]
