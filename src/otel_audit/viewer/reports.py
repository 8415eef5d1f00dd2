"""Pages of reports: the list, and each report."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from markupsafe import Markup
from otel_audit_postgres.query.pool import TookTooLongError
from otel_audit_postgres.query.times import parse_time
from otel_audit_postgres.reports.evidence import Witnesses
from otel_audit_postgres.reports.make_report import Report, looked_at, make_report
from otel_audit_postgres.reports.model import Definition
from otel_audit_postgres.reports.options import SAMPLE, Options
from otel_audit_postgres.reports.registry import REPORTS, find_report
from otel_audit_postgres.reports.render import html_body, pieces
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from otel_audit.errors import ConfigurationError
from otel_audit.viewer.identity import Viewer
from otel_audit.viewer.rendering import render
from otel_audit.viewer.site import Site, refused

_FILES: Final = {"csv": "text/csv", "json": "application/json", "html": "text/html"}
_NOT_ALLOWED: Final = "Reports show values of records, which you are not shown."


async def index(site: Site, request: Request, viewer: Viewer) -> Response:  # noqa: ARG001 - a page
    """List the reports, each with a form."""
    if not viewer.may_do("export"):
        return await refused(request, viewer, _NOT_ALLOWED)
    end = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    begin = (end - timedelta(days=1)).replace(day=1)
    context = {
        "title": "Reports", "viewer": viewer, "reports": list(REPORTS.values()),
        "begin": f"{begin:%Y-%m-%d}", "end": f"{end:%Y-%m-%d}",
    }  # fmt: skip
    return await render(request, "reports.html", context)


async def show(site: Site, request: Request, viewer: Viewer) -> Response:
    """Show or download one report. The view is recorded first."""
    if not viewer.may_do("export"):
        return await refused(request, viewer, _NOT_ALLOWED)
    definition = find_report(request.path_params["name"])
    options = _options(definition, request)
    report = await _made(site, viewer, definition, options)
    form = request.query_params.get("format", "")
    if form in _FILES:
        name = f"{definition.name}-{options.begin:%Y%m%d}-{options.end:%Y%m%d}.{form}"
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return StreamingResponse(_sent(report, form), media_type=_FILES[form], headers=headers)
    try:
        # thousands of rows take a while, and others wait for this thread
        params = await asyncio.to_thread(lambda: b"".join(html_body(report)))
    finally:
        report.close()
    body = Markup(params.decode())  # noqa: S704 - each piece is escaped where it is made
    asked = dict(request.query_params)
    context = {
        "title": definition.title, "viewer": viewer, "report": definition, "body": body,
        "files": {one: {**asked, "format": one} for one in _FILES},
    }  # fmt: skip
    return await render(request, "report.html", context)


async def _made(site: Site, viewer: Viewer, definition: Definition, options: Options) -> Report:
    witnesses = Witnesses(tuple(site.settings.keys), tuple(site.settings.anchors))
    try:
        async with site.pool.connection(viewer=viewer.name, is_long=True) as connection:
            report = await make_report(
                connection, definition, options, viewer.scope, witnesses=witnesses
            )
    except TookTooLongError as error:
        error.args = (f"{error} or a shorter period; `otel-audit report` has no such limit",)
        raise
    try:
        async with site.trail(viewer) as trail:
            await looked_at(trail, report, options)
    except BaseException:
        report.close()
        raise
    return report


async def _sent(report: Report, form: Any) -> AsyncIterator[bytes]:
    made = pieces(report, form)
    try:
        while piece := await asyncio.to_thread(next, made, b""):
            yield piece
    finally:
        report.close()


def _options(definition: Definition, request: Request) -> Options:
    params = request.query_params
    try:
        begin, end = parse_time(params.get("from", "")), parse_time(params.get("to", ""))
        sample = int(params.get("sample") or SAMPLE)
        checkpoint = int(params["checkpoint"]) if params.get("checkpoint") else None
    except ValueError as error:
        raise ConfigurationError(f"the report cannot be made: {error}") from None
    subject = params.get("subject") if "subject" in definition.needs else None
    return Options(
        begin=begin, end=end, tenant=params.get("tenant") or None, query=params.get("q", ""),
        subject=subject or None, sample=sample, seed=params.get("seed") or "1",
        checkpoint=checkpoint,
    )  # fmt: skip
