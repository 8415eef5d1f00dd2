"""A record's proof, to be checked in the browser, or taken away."""

from __future__ import annotations

import io
import json
import uuid
import zipfile
from collections.abc import Mapping
from importlib import resources
from typing import Any

from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger.record_proof import RecordProof, check_record
from otel_audit_postgres.query import queries
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from otel_audit.viewer.identity import Viewer
from otel_audit.viewer.site import Site, missing, refused

_NOT_ALLOWED = "Evidence holds a record's exact text, which you are not shown."


async def as_json(site: Site, request: Request, viewer: Viewer) -> Response:
    """The bundle of ``otel-audit prove``, for the script that checks it in the browser."""
    if not viewer.may_do("prove"):
        return await refused(request, viewer, _NOT_ALLOWED)
    proof = await _proof(site, request, viewer)
    if proof is None or proof.bundle is None:
        message = "there is no such record" if proof is None else proof.detail
        return JSONResponse(
            {"state": "missing" if proof is None else proof.state, "detail": message}, 404
        )
    return JSONResponse(proof.bundle)


async def as_zip(site: Site, request: Request, viewer: Viewer) -> Response:
    """The same with the program that checks it offline."""
    if not viewer.may_do("prove"):
        return await refused(request, viewer, _NOT_ALLOWED)
    proof = await _proof(site, request, viewer)
    if proof is None or proof.bundle is None:
        message = "There is no such record." if proof is None else f"Not proved: {proof.detail}."
        return await missing(request, viewer, message)
    name = f"evidence-{request.path_params['record_id']}"
    headers = {"content-disposition": f'attachment; filename="{name}.zip"'}
    return Response(_zipped(name, proof.bundle), media_type="application/zip", headers=headers)


async def _proof(site: Site, request: Request, viewer: Viewer) -> RecordProof | None:
    try:
        record_id = uuid.UUID(request.path_params["record_id"])
    except ValueError:
        return None
    tenant = request.query_params.get("tenant")

    async def answer(connection: Connection[Any]) -> RecordProof | None:
        found = await queries.show(connection, str(record_id))
        tenants = [one.found.tenant_id for one in found if tenant in (None, one.found.tenant_id)]
        if not tenants:
            return None
        return await check_record(connection, record_id, tenants[0], site.tree, site.settings.keys)

    async with site.trail(viewer) as trail:
        found: RecordProof | None = await trail.ask(
            "prove",
            {"what": str(record_id)},
            answer,
            lambda proof: 0 if proof is None else 1,
            ("audit_record", str(record_id)),
        )
    return found


def _zipped(name: str, bundle: Mapping[str, Any]) -> bytes:
    program = resources.files("otel_audit_postgres.ledger") / "verify_evidence.py"
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        text = json.dumps(bundle, ensure_ascii=False, separators=(",", ":"))
        archive.writestr(f"{name}/evidence.json", text)
        archive.writestr(f"{name}/verify.py", program.read_text("utf-8"))
    return target.getvalue()
