"""What must hold after each request: one small function each, which says what is wrong, or nothing.

None of them asks the code under test: what was to be recorded is computed from the application's
own account (`hostile.applications.Seen`), from the request as it was sent, and from the answer.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hostile.applications import Seen
from hostile.driving import Answer
from hostile.generated import API_KEY_HEADER, CANARIES, KEY, Hostile
from otel_audit.record import AuditRecord, to_json

LARGEST_RECORD: Final = 256_000
LONGEST_STALL: Final = 0.020
"""Seconds of the event loop that auditing a request may take, whatever is in it."""

STALL_THAT_FAILS: Final = float(os.environ.get("HOSTILE_STALL_MS", "60")) / 1_000
"""More than that, and the calls of functions are counted: these are the same on every machine."""

MOST_CALLS: Final = 450_000
"""Calls of functions, ours and Python's, that auditing a request may take, whatever is in it."""

STALL_OF_ONE_CALL: Final = 1.0
"""Seconds beyond which one call is too long, however few there are."""

_WRITES: Final = ("POST", "PUT", "PATCH", "DELETE")
_READS: Final = ("GET", "HEAD", "OPTIONS", "QUERY")
_EXCLUDED: Final = (
    "/health", "/healthz", "/livez", "/readyz", "/metrics", "/docs", "/redoc", "/openapi.json",
    "/favicon.ico", "/static",
)  # fmt: skip
_PLAIN_PATH: Final = re.compile(r"(/[a-z0-9_-]{1,15})+/?")


@dataclass(frozen=True)
class Case:
    """One request, how it was answered with and without auditing, and what was recorded of it."""

    request: Hostile
    bare: Answer
    audited: Answer
    seen: Seen
    records: list[AuditRecord]
    health: Mapping[str, int]
    elsewhere: str
    log_anonymous: bool = True

    @property
    def record(self) -> AuditRecord | None:
        """The record, where there is exactly one."""
        return self.records[0] if len(self.records) == 1 else None

    @property
    def method(self) -> str:
        """As the router saw it, or as it was sent."""
        wire = "WEBSOCKET" if self.request.kind == "websocket" else self.request.method
        return wire if self.seen.method is None else self.seen.method

    @property
    def path(self) -> str:
        """As the router saw it, or as it was sent."""
        return self.request.scope()["path"] if self.seen.path is None else self.seen.path

    def header(self, name: str) -> bytes | None:
        """The first value of a header."""
        wanted = name.lower().encode()
        values = [value for key, value in self.request.headers if key.lower() == wanted]
        return values[0] if values else None

    @property
    def has_credential(self) -> bool:
        """Whether the client has said who it is, truly or not."""
        return bool(
            self.seen.user
            or (self.header("authorization") or b"").strip()
            or (self.header(API_KEY_HEADER) or b"").strip()
        )

    @property
    def is_nobody(self) -> bool:
        """Whether nothing in the request could say who it is."""
        names = {name.lower() for name, _ in self.request.headers}
        told = {
            b"authorization",
            b"proxy-authorization",
            b"cookie",
            b"x-user",
            API_KEY_HEADER.lower().encode(),
        }
        return not names & told and b"?" not in self.request.target


def wanted(case: Case) -> int | None:
    """Say how many records the policy wants by default; None where either will do."""
    if _is_excluded(case.path):
        return 0
    status = case.audited.status
    wanted_always = status in (401, 403) or (status or 0) >= 500
    if case.method in _READS and not wanted_always:
        return 0
    if not case.log_anonymous and (status or 500) < 400 and not case.has_credential:
        return 0 if case.is_nobody else None
    return 1


def _is_excluded(path: str) -> bool:
    """Tell whether every reading of a path leads below one that is excluded."""
    below = any(path == one or path.startswith(one + "/") for one in _EXCLUDED)
    odd = re.search(r"[;\\%\x00-\x1f\x7f]|//", path) or {".", ".."} & set(path.split("/"))
    return below and not odd


def one_record_per_request(case: Case) -> str | None:
    """There is exactly one record of what the policy records, and none of the rest."""
    number = wanted(case)
    if number is None or len(case.records) == number:
        return None
    return f"{len(case.records)} records, not {number}"


def right_actor(case: Case) -> str | None:
    """The actor is whom the application let in; else nobody, or whom a signed token names."""
    if case.record is None:
        return None
    actor, user = case.record.actor, case.seen.user
    if user is not None:
        named = is_spelling_of(actor.id, user) and actor.verified
        return None if named or _withheld(actor.id, user) else f"{user[:80]!r} became {actor}"
    if actor.id == "anonymous" and not actor.verified:
        return None
    if not actor.verified and actor.reason:
        return None
    # refused by the application for what is beside the signature: the name is true all the same
    signed = str(_signed_claims(case).get("sub"))
    named = is_spelling_of(actor.id, signed) or _withheld(actor.id, signed)
    return None if named else f"nobody became {actor}"


def reason_where_a_credential_was_presented(case: Case) -> str | None:
    """Who presented a credential and could not be identified is not nobody: the record says why."""
    if case.record is None or not case.has_credential:
        return None
    actor = case.record.actor
    return None if actor.verified or actor.reason else f"no reason: {actor}"


def right_tenant(case: Case) -> str | None:
    """The tenant is the one that the application worked for."""
    if case.record is None:
        return None
    if (case.seen.path or "").startswith("/t/") and not case.seen.handled:
        # the path may name it or not, as far as the router has come
        return None
    found, tenant = case.record.tenant, case.seen.tenant
    if case.seen.user is None:
        # a token that the application refused, truly signed, may name it
        signed = _signed_claims(case).get("tenant_id")
        if found is not None and signed and is_spelling_of(found.id, str(signed)):
            return None
    if tenant is None or found is None:
        same = tenant is None and found is None
    else:
        same = is_spelling_of(found.id, tenant) or _withheld(found.id, tenant)
    return None if same else f"{tenant!r} became {found}"


def right_request(case: Case) -> str | None:
    """Method and path are those that the router saw."""
    request = None if case.record is None else case.record.request
    if request is None:
        return None if case.record is None else "no request in the record"
    if request.method != case.method and len(case.method) <= 32:
        return f"method {case.method!r} became {request.method!r}"
    if not request.path:
        return f"path {case.path!r} is not recorded" if case.path else None
    if (
        _PLAIN_PATH.fullmatch(case.path)
        and len(case.path) < 1_000
        and not case.path.startswith("/reset/")
    ):
        return None if request.path.endswith(case.path) else f"{case.path} became {request.path}"
    return None


def right_status(case: Case) -> str | None:
    """The status is the one that the client was answered with, and the outcome fits it."""
    if case.record is None or case.audited.status is None:
        return None
    response = case.record.response
    found = None if response is None else response.status_code
    if found != case.audited.status:
        return f"{case.audited.status} became {found}"
    if case.audited.status >= 400 and case.record.outcome == "success":
        return f"{case.audited.status} is told as a success"
    return None


def body_that_was_read(case: Case) -> str | None:
    """The record shows what the handler read, where that is a JSON document of usual size."""
    read, marker = case.seen.body, case.request.marker
    if case.record is None or not marker or not read or len(read) > 9_000:
        return None
    if case.record.level != "request_response" or not _is_document(read):
        return None
    request = case.record.request
    body = None if request is None else request.body
    text = (None if body is None else body.text) or ""
    return None if marker in text else f"{read[:60]!r} is not in {body}"


def no_canary(case: Case) -> str | None:
    """No planted secret is in a record, a log line or a span."""
    stored = b"".join(to_json(record) for record in case.records).decode() + case.elsewhere
    found = [name for name, secret in CANARIES.items() if secret in stored]
    token = (case.header("authorization") or b"").rpartition(b".")[2].decode("latin-1")
    if len(token) > 40 and token[:40] in stored:
        found.append("bearer token")
    if not found:
        return None
    secret = CANARIES.get(found[0], token[:40])
    place = stored.index(secret)
    return f"{found}: …{stored[max(0, place - 120) : place + 40]}"


def nothing_failed(case: Case) -> str | None:
    """No failure of ours is counted, and nothing is dropped."""
    counts = {name: count for name, count in case.health.items() if count}
    return f"counted {counts}" if counts else None


def same_answer(case: Case) -> str | None:
    """A client cannot tell the audited application from the bare one."""
    if case.audited.same_as(case.bare):
        return None
    return f"{case.bare!r:.300} became {case.audited!r:.300}"


def no_stall(case: Case) -> str | None:
    """Auditing holds up the event loop no longer than a fixed time, whatever is in the request."""
    spent = case.audited.cpu - case.bare.cpu
    calls = case.audited.calls - case.bare.calls
    if spent <= STALL_THAT_FAILS or (calls <= MOST_CALLS and spent <= STALL_OF_ONE_CALL):
        return None
    return f"{spent * 1_000:.0f} ms, {calls} calls"


def bounded_record(case: Case) -> str | None:
    """No record is larger than its bound."""
    largest = max((len(to_json(record)) for record in case.records), default=0)
    return f"{largest} bytes" if largest > LARGEST_RECORD else None


def readable_record(case: Case) -> str | None:
    """Every reader can read the record: no number is beyond a double, no text is half a character.

    The store refuses what is not, and so who could make it would keep his record out of the trail.
    """
    for record in case.records:
        try:
            text = to_json(record).decode()
            json.loads(text, parse_float=_double, parse_int=_integer, parse_constant=_integer)
        except (ValueError, RecursionError) as error:
            return f"{error}"
    return None


def _double(digits: str) -> float:
    found = float(digits)
    if math.isinf(found) or (
        found == 0 and digits.strip("-0.eE+") and re.match(r"[-0.]*[1-9]", digits)
    ):
        raise ValueError(f"number {digits[:40]}")
    return found


def _integer(digits: str) -> int:
    if len(digits) > 4_000:  # what the store takes
        raise ValueError(f"number of {len(digits)} digits")
    return int(digits)


ORACLES: Final[tuple[Callable[[Case], str | None], ...]] = (
    one_record_per_request,
    right_actor,
    reason_where_a_credential_was_presented,
    right_tenant,
    right_request,
    right_status,
    body_that_was_read,
    no_canary,
    nothing_failed,
    same_answer,
    no_stall,
    bounded_record,
    readable_record,
)


def is_spelling_of(stored: str, name: str) -> bool:
    r"""Tell whether an id is a name, spelled with ``\u{…}`` for what cannot be printed."""
    head, mark, digest = stored.partition("\\u{+sha256:")
    if mark:
        whole = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return digest == f"{whole}}}" and name.startswith(_unescaped(head)[:100])
    return _unescaped(stored) == name


def _unescaped(text: str) -> str:
    return re.sub(r"\\u\{([0-9a-f]{1,6})\}", lambda found: chr(int(found[1], 16)), text)


def _withheld(stored: str, name: str) -> bool:
    """Tell whether a name that looks like a secret is withheld, which is documented."""
    return stored.startswith("[REDACTED") and re.search(r"[=:\d@\[]", name) is not None


def _signed_claims(case: Case) -> Mapping[str, Any]:
    """Read the claims of the first bearer token, if it is truly signed."""
    value = (case.header("authorization") or b"").decode("latin-1").strip()
    parts = value.partition(" ")[2].strip().split(".")
    if len(parts) != 3:
        return {}
    signed = f"{parts[0]}.{parts[1]}".encode("latin-1")
    with contextlib.suppress(ValueError, binascii.Error):
        if hmac.digest(KEY.encode(), signed, "sha256") == base64.urlsafe_b64decode(parts[2] + "=="):
            found = json.loads(base64.urlsafe_b64decode(parts[1] + "=="))
            return found if isinstance(found, dict) else {}
    return {}


def _is_document(raw: bytes) -> bool:
    try:
        found: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict)
