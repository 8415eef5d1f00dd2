"""Route coverage: which routes a test run has called, and which of their actions are recorded."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from xml.etree import ElementTree as ET

from otel_audit.config import AuditConfig
from otel_audit.record import AuditRecord
from otel_audit.testing.exceptions import RouteException
from otel_audit.testing.explain import reason
from otel_audit.testing.routes import TestedRoute, route_of

_REFUSED: Final = 400
"""The first status that is an error."""


@dataclass
class RouteCoverage:
    """The records of a test run for one route and method."""

    route: str
    may_write: bool
    called: int = 0
    succeeded: int = 0
    recorded: int = 0
    unrecorded: int = 0
    levels: set[str] = field(default_factory=set)
    events: set[str] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: set[str] = field(default_factory=set)

    def add(self, other: Mapping[str, Any]) -> None:
        """Add what another process has seen."""
        for name in ("called", "succeeded", "recorded", "unrecorded"):
            setattr(self, name, getattr(self, name) + other[name])
        self.levels.update(other["levels"])
        self.events.update(other["events"])
        self.statuses.update(other["statuses"])
        self.reasons.update(other["reasons"])

    def plain(self) -> dict[str, Any]:
        """Return plain values, independent of the order of tests."""
        return {
            "route": self.route,
            "may_write": self.may_write,
            "called": self.called,
            "succeeded": self.succeeded,
            "recorded": self.recorded,
            "unrecorded": self.unrecorded,
            "levels": sorted(self.levels),
            "events": sorted(self.events),
            "statuses": dict(sorted(self.statuses.items())),
            "reasons": sorted(self.reasons),
        }

    def fault(self) -> str | None:
        """Return the fault of the route; None if there is none."""
        if not self.called:
            return "no test calls it"
        if self.unrecorded and self.may_write:
            return f"not recorded: {'; '.join(sorted(self.reasons))}"
        if self.may_write and not self.succeeded:
            statuses = ", ".join(sorted(self.statuses))
            return f"no test calls it with success, only with {statuses}"
        return None


class Coverage:
    """All routes of a test run; workers send theirs as plain values."""

    def __init__(self) -> None:
        """Start with no route seen."""
        self._routes: dict[str, RouteCoverage] = {}

    def know(self, routes: Iterable[TestedRoute]) -> None:
        """Learn which routes there are."""
        for route in routes:
            self._routes.setdefault(route.name, RouteCoverage(route.name, route.may_write))

    def add(
        self, requests: Iterable[AuditRecord], routes: list[TestedRoute], config: AuditConfig
    ) -> None:
        """Count the requests of one test."""
        self.know(routes)
        for request in requests:
            head = request.request
            if head is None or head.method is None:
                continue
            found = route_of(routes, head.method, head.route, head.path)
            if found is not None:
                _count(self._routes[found.name], request, routes, config)

    def plain(self) -> list[dict[str, Any]]:
        """Return it as plain values, sorted."""
        return [self._routes[name].plain() for name in sorted(self._routes, key=_by_path)]

    def merge(self, other: Iterable[Mapping[str, Any]]) -> None:
        """Add what another process has seen."""
        for one in other:
            known = self._routes.setdefault(
                one["route"], RouteCoverage(one["route"], one["may_write"])
            )
            known.add(one)

    def judge(self, exceptions: Iterable[RouteException], today: dt.date) -> Judgement:
        """Compare it with the exceptions, both ways."""
        allowed = {one.route: one for one in exceptions}
        judgement = Judgement()
        for name in sorted(self._routes, key=_by_path):
            route, exception = self._routes[name], allowed.get(name)
            fault = route.fault()
            if exception is not None:
                if fault is None:
                    judgement.faults[name] = (
                        "its exception is stale: it is covered now; take it out"
                    )
                elif exception.until is not None and exception.until < today:
                    judgement.faults[name] = (
                        f"its exception ended on {exception.until} ({exception.owner}); {fault}"
                    )
                else:
                    judgement.excepted[name] = exception
            elif fault is not None:
                judgement.faults[name] = fault
            judgement.routes.append(route.plain())
        for name in sorted(set(allowed) - set(self._routes)):
            judgement.faults[name] = "its exception is stale: there is no such route; take it out"
        if not self._routes:
            judgement.faults["(no routes)"] = (
                "the application has no routes: does audit_app name the application itself, and "
                "are its routers included when it is imported?"
            )
        return judgement


@dataclass
class Judgement:
    """The result of a test run: faults by route, and the exceptions used."""

    routes: list[dict[str, Any]] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    excepted: dict[str, RouteException] = field(default_factory=dict)

    @property
    def covered(self) -> int:
        """The number of routes without a fault and without an exception."""
        return sum(
            one["route"] not in self.faults and one["route"] not in self.excepted
            for one in self.routes
        )

    def summary(self) -> str:
        """Say it in one line."""
        total = len(self.routes)
        share = 100 * (self.covered + len(self.excepted)) // total if total else 0
        excepted = f", {len(self.excepted)} excepted" if self.excepted else ""
        faults = f", {len(self.faults)} at fault" if self.faults else ""
        return f"{self.covered} of {total} routes covered{excepted}{faults}: {share} %"

    def verdict(self, route: str) -> str:
        """Say what one route comes to."""
        if route in self.faults:
            return self.faults[route]
        exception = self.excepted.get(route)
        if exception is not None:
            until = f", until {exception.until}" if exception.until else ""
            return f"excepted: {exception.reason} ({exception.owner}{until})"
        return "ok"

    def as_markdown(self) -> str:
        """Write it as a table."""
        lines = [
            "# Audit coverage",
            "",
            self.summary(),
            "",
            "| Route | Called | Recorded | Level | Events | |",
            "| --- | ---: | ---: | --- | --- | --- |",
        ]
        for one in self._lines():
            cells = (
                f"`{one['route']}`", one["called"], one["recorded"], ", ".join(one["levels"]),
                ", ".join(one["events"]), one["verdict"],
            )  # fmt: skip
            lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
        return "\n".join(lines) + "\n"

    def as_json(self) -> str:
        """Write it for programs."""
        return json.dumps({"ok": not self.faults, "routes": self._lines()}, indent=2) + "\n"

    def as_xml(self) -> str:
        """Write it as JUnit does, one case a route, so that CI systems show it."""
        lines = self._lines()
        suite = ET.Element(
            "testsuite", name="audit-coverage", tests=str(len(lines)),
            failures=str(len(self.faults)), skipped=str(len(self.excepted)), errors="0",
        )  # fmt: skip
        for one in lines:
            case = ET.SubElement(suite, "testcase", classname="audit-coverage", name=one["route"])
            if one["route"] in self.faults:
                ET.SubElement(case, "failure", message=one["verdict"])
            elif one["route"] in self.excepted:
                ET.SubElement(case, "skipped", message=one["verdict"])
        ET.indent(suite)
        return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"

    def _lines(self) -> list[dict[str, Any]]:
        known = {one["route"] for one in self.routes}
        gone = [
            {"route": name, "called": 0, "recorded": 0, "levels": [], "events": []}
            for name in self.faults
            if name not in known
        ]
        return [{**one, "verdict": self.verdict(one["route"])} for one in [*self.routes, *gone]]


def _count(
    known: RouteCoverage, request: AuditRecord, routes: list[TestedRoute], config: AuditConfig
) -> None:
    status = None if request.response is None else request.response.status_code
    known.called += 1
    known.statuses["no answer" if status is None else str(status)] += 1
    succeeded = status is not None and status < _REFUSED
    known.succeeded += succeeded
    if request.level == "none":
        if succeeded:
            known.unrecorded += 1
            if known.may_write:
                known.reasons.add(reason(request, routes, config))
        known.levels.add("none")
        return
    known.recorded += 1
    known.levels.add(request.level or "")
    known.events.add(request.event_name)


def _by_path(name: str) -> tuple[str, str]:
    method, _, path = name.partition(" ")
    return path, method
