"""Whom the application lets in is the actor: its reading of a request and ours, side by side.

An application that reads tokens as PyJWT does, and one that does it with python-jose, get the same
odd `Authorization` headers; whenever one of them lets somebody in, the record must name him.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Annotated, Any

import pytest
from asgi_app import Tapped
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jose import jwt as jose

from otel_audit.identity.safe_access import exact

SECRET = "k" * 48
SETTINGS: dict[str, Any] = {"jwt_key": SECRET, "jwt_algorithms": "HS256", "log_anonymous": False}


def by_jose(token: str) -> str:
    return str(jose.decode(token, SECRET, ["HS256"])["sub"])


def as_pyjwt(token: str) -> str:
    """What PyJWT's api_jws and api_jwt do, as far as a signature with HMAC needs it."""

    def decoded(segment: bytes) -> bytes:
        return base64.urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))

    signed, signature = token.encode("utf-8").rsplit(b".", 1)
    head, claims = signed.split(b".", 1)
    if json.loads(decoded(head))["alg"] != "HS256":
        raise ValueError
    mac = hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()
    if not hmac.compare_digest(mac, decoded(signature)):
        raise ValueError
    found = json.loads(decoded(claims))
    if int(found["exp"]) <= time.time():
        raise ValueError
    return str(found["sub"])


def shop(decode: Any) -> FastAPI:
    app = FastAPI()

    def user(token: Annotated[str, Depends(OAuth2PasswordBearer("token"))]) -> str:
        try:
            return str(decode(token))
        except Exception:
            raise HTTPException(401) from None

    @app.post("/orders")
    def create(who: Annotated[str, Depends(user)]) -> dict[str, str]:
        return {"by": who}

    return app


APPS = [shop(by_jose), shop(as_pyjwt)]
SUBJECTS = st.sampled_from(
    [
        "ann",
        "admin",
        "admin\u00a0",
        " admin",
        "admin\n",
        "admin\x00",
        "anonymous",
        "Jürgen",
        "x" * 300,
    ]
)
NOISE = st.text(st.sampled_from("=!. \t\n-_+/AZaz09,;éÀ\u00a0"), max_size=4)


@st.composite
def authorizations(draw: st.DrawFn) -> list[tuple[bytes, bytes]]:
    """One or a few `Authorization` headers, with tokens that are valid, or nearly."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        claims = {
            "sub": draw(SUBJECTS),
            "exp": int(time.time()) + draw(st.sampled_from([3600, 3600, -5])),
        }
        token = jose.encode(claims, draw(st.sampled_from([SECRET, SECRET, SECRET, "other" * 9])))
        for _ in range(draw(st.integers(0, 2))):
            place = draw(
                st.sampled_from(
                    [0, len(token), len(token), token.rindex(".") + 1, token.index(".")]
                )
            )
            token = token[:place] + draw(NOISE) + token[place:]
        scheme = draw(
            st.sampled_from(["Bearer ", "bearer ", "BEARER ", "Bearer  ", "Bearer", "Token ", ""])
        )
        name = draw(st.sampled_from([b"authorization", b"authorization", b"Authorization"]))
        found.append((name.lower(), (scheme + token + draw(NOISE)).encode("latin-1", "ignore")))
    return found


@pytest.mark.parametrize("app", APPS, ids=["python-jose", "as PyJWT"])
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(headers=authorizations())
@example(
    headers=[
        (
            b"authorization",
            b"Bearer " + jose.encode({"sub": "ann", "exp": 4e9}, SECRET).encode() + b"=",
        )
    ]
)
async def test_whom_the_application_lets_in_is_the_actor(app: FastAPI, headers: Any) -> None:
    """Exactly one record, though anonymous actions are not wanted, and the user's name on it."""
    tapped = Tapped(app, **SETTINGS)
    sent = await tapped.ask(headers=headers)
    record = tapped.kept.record
    if sent[0]["status"] == 200:
        body = b"".join(message.get("body", b"") for message in sent[1:])
        assert record.actor.id == exact(json.loads(body)["by"])
        assert record.actor.verified
    else:
        assert record.actor.verified or record.actor.reason is not None
    assert tapped.runtime.counters.capture_errors == 0
