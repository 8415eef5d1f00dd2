"""Bearer tokens: every known way to forge one is refused, and by the right name."""

from __future__ import annotations

import base64
import gc
import hashlib
import hmac
import http.server
import json
import threading
import time
import types
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from dripping_server import dripping
from hypothesis import given
from hypothesis import strategies as st
from jose import jwe, jwk, jwt

from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.identity.jwt import JwtVerifier, TokenError, jwks
from otel_audit.identity.jwt.jwks import KEPT, UNKNOWN_KEY_INTERVAL, KeySet
from otel_audit.identity.jwt.keys import VerificationKey, read_key_set
from otel_audit.identity.jwt.settings import FetchedKeys, verifier_from_config
from otel_audit.identity.jwt.verifier import Issuer, token_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECRET = "a-shared-secret-of-some-length-0123456789"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def pem(key: Any) -> str:
    public = key.public_key() if hasattr(key, "public_key") else key
    return public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def der(key: Any) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def private_pem(key: Any) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def public_jwk(key: Any, algorithm: str, **more: Any) -> dict[str, Any]:
    return {**jwk.construct(pem(key), algorithm).to_dict(), **more}


def claims(**more: Any) -> dict[str, Any]:
    return {"sub": "u1", "exp": time.time() + 300, **more}


def forge(header: dict[str, Any], body: Any, sign: Callable[[bytes], bytes]) -> str:
    text = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(body).encode())}"
    return f"{text}.{b64(sign(text.encode()))}"


def signed_raw(body: bytes) -> str:
    """Sign claims that a JSON library would not write."""
    head = b64(b'{"alg":"HS256"}')
    text = f"{head}.{b64(body)}"
    return f"{text}.{b64(hs256(SECRET.encode())(text.encode()))}"


def hs256(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda text: hmac.digest(secret, text, "sha256")


def reason(verifier: Any, token: str) -> str:
    with pytest.raises(TokenError) as caught:
        verifier.verify(token)
    assert str(caught.value) == caught.value.reason
    return caught.value.reason


def verifier(**settings: Any) -> JwtVerifier:
    found = verifier_from_config(AuditConfig(**settings))
    assert found is not None
    return found  # type: ignore[return-value]


@dataclass(frozen=True)
class Keys:
    rsa: rsa.RSAPrivateKey
    other_rsa: rsa.RSAPrivateKey
    ec: ec.EllipticCurvePrivateKey
    ed: ed25519.Ed25519PrivateKey


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys(
        rsa.generate_private_key(65537, 2048),
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
    )


@pytest.fixture
def by_secret() -> JwtVerifier:
    return verifier(jwt_key=SECRET, jwt_algorithms="HS256")


@pytest.fixture
def by_rsa(keys: Keys) -> JwtVerifier:
    return verifier(jwt_key=pem(keys.rsa), jwt_algorithms="RS256")


def reachable(root: object) -> list[object]:
    """All objects that an object keeps alive, apart from code."""
    found: dict[int, object] = {}
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in found or isinstance(one, type | types.ModuleType | types.FunctionType):
            continue
        found[id(one)] = one
        waiting.extend(gc.get_referents(one))
    return [*found.values()]


class TestGoodTokens:
    def test_secret(self, by_secret: JwtVerifier) -> None:
        """A token signed with the shared secret is believed."""
        found = by_secret.verify(jwt.encode(claims(role="x"), SECRET))
        assert found.verified
        assert found.claims["role"] == "x"

    @pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512"])
    def test_rsa(self, keys: Keys, algorithm: str) -> None:
        """A token signed with RSA is believed."""
        checks = verifier(jwt_key=pem(keys.rsa), jwt_algorithms=algorithm)
        token = jwt.encode(claims(), private_pem(keys.rsa), algorithm)
        assert checks.verify(token).claims["sub"] == "u1"

    def test_ec(self, keys: Keys) -> None:
        """A token signed with ECDSA is believed."""
        checks = verifier(jwt_key=pem(keys.ec), jwt_algorithms="ES256,RS256")
        assert checks.verify(jwt.encode(claims(), private_pem(keys.ec), "ES256")).verified

    def test_ed25519(self, keys: Keys) -> None:
        """EdDSA, which python-jose lacks, is verified, and a changed token is not."""
        checks = verifier(jwt_key=pem(keys.ed), jwt_algorithms="EdDSA")
        token = forge({"alg": "EdDSA"}, claims(), keys.ed.sign)
        assert checks.verify(token).verified
        assert (
            reason(checks, forge({"alg": "EdDSA"}, claims(), lambda _: bytes(64)))
            == "bad_signature"
        )

    def test_pss(self, keys: Keys) -> None:
        """RSASSA-PSS, which python-jose lacks, is verified, and PKCS #1 under its name is not."""
        checks = verifier(jwt_key=pem(keys.rsa), jwt_algorithms="PS256")
        pss = padding.PSS(padding.MGF1(SHA256()), 32)
        good = forge({"alg": "PS256"}, claims(), lambda text: keys.rsa.sign(text, pss, SHA256()))
        assert checks.verify(good).verified
        pkcs1 = padding.PKCS1v15()
        bad = forge({"alg": "PS256"}, claims(), lambda text: keys.rsa.sign(text, pkcs1, SHA256()))
        assert reason(checks, bad) == "bad_signature"

    def test_der(self, keys: Keys) -> None:
        """A public key may be given in base64 DER."""
        key = base64.b64encode(der(keys.rsa)).decode()
        checks = verifier(jwt_key=key, jwt_algorithms="RS256")
        assert checks.verify(jwt.encode(claims(), private_pem(keys.rsa), "RS256")).verified

    def test_remembered(self, by_rsa: JwtVerifier, keys: Keys) -> None:
        """The same token again is the same answer, from memory."""
        token = jwt.encode(claims(), private_pem(keys.rsa), "RS256")
        assert by_rsa.verify(token) is by_rsa.verify(token)

    def test_claims_are_frozen(self, by_secret: JwtVerifier) -> None:
        """Nobody can change what is remembered of a token."""
        found = by_secret.verify(jwt.encode(claims(), SECRET))
        with pytest.raises(TypeError):
            found.claims["sub"] = "root"  # type: ignore[index]

    def test_leeway(self) -> None:
        """A difference of clocks is forgiven as far as configured."""
        lenient = verifier(jwt_key=SECRET, jwt_algorithms="HS256", jwt_leeway=60)
        assert lenient.verify(jwt.encode(claims(exp=time.time() - 30), SECRET)).verified
        assert lenient.verify(jwt.encode(claims(nbf=time.time() + 30), SECRET)).verified


class TestTokenHash:
    def test_is_sha256_where_blake2_is_refused(self, monkeypatch):
        """A system that is held to FIPS 140 refuses BLAKE2: its tokens are verified all the same."""

        def refused(*_: object, **__: object) -> None:
            raise ValueError("disabled for FIPS")

        assert token_hash()(b"token").name == "blake2b"
        monkeypatch.setattr(hashlib, "blake2b", refused)
        assert token_hash()(b"token").digest() == hashlib.sha256(b"token").digest()


class TestForgedTokens:
    @pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE"])
    def test_alg_none(self, by_rsa: JwtVerifier, name: str) -> None:
        """An unsecured token is refused, however its algorithm is spelled."""
        token = forge({"alg": name}, claims(), lambda _: b"")
        assert reason(by_rsa, token) == "alg_not_allowed"

    def test_alg_none_with_signature(self, by_rsa: JwtVerifier) -> None:
        """So is one that brings a signature of some kind."""
        assert reason(by_rsa, forge({"alg": "none"}, claims(), lambda _: b"x")) == "alg_not_allowed"

    def test_public_pem_as_secret(self, by_rsa: JwtVerifier, keys: Keys) -> None:
        """The public key in PEM is no HMAC secret."""
        token = forge({"alg": "HS256"}, claims(), hs256(pem(keys.rsa).encode()))
        assert reason(by_rsa, token) == "alg_not_allowed"

    def test_public_der_as_secret(self, keys: Keys) -> None:
        """The public key in DER is no HMAC secret, neither raw nor in base64."""
        key = base64.b64encode(der(keys.rsa)).decode()
        checks = verifier(jwt_key=key, jwt_algorithms="RS256")
        for secret in (der(keys.rsa), key.encode()):
            token = forge({"alg": "HS256"}, claims(), hs256(secret))
            assert reason(checks, token) == "alg_not_allowed"

    def test_rsa_jwk_as_secret(self, keys: Keys, tmp_path: Path) -> None:
        """A key of a set verifies only algorithms of its own type."""
        file = tmp_path / "jwks.json"
        file.write_text(json.dumps({"keys": [public_jwk(keys.rsa, "RS256", kid="a")]}))
        checks = verifier(jwt_jwks_file=file, jwt_algorithms="RS256")
        token = forge({"alg": "HS256", "kid": "a"}, claims(), hs256(pem(keys.rsa).encode()))
        assert reason(checks, token) == "alg_not_allowed"

    def test_other_key(self, by_rsa: JwtVerifier, keys: Keys) -> None:
        """A signature of another key is none."""
        token = jwt.encode(claims(), private_pem(keys.other_rsa), "RS256")
        assert reason(by_rsa, token) == "bad_signature"

    def test_changed_claims(self, by_secret: JwtVerifier) -> None:
        """Claims that were changed after signing are refused."""
        head, _, signature = jwt.encode(claims(), SECRET).split(".")
        body = b64(json.dumps(claims(sub="root")).encode())
        assert reason(by_secret, f"{head}.{body}.{signature}") == "bad_signature"

    def test_own_key_in_header(self, by_rsa: JwtVerifier, keys: Keys) -> None:
        """A key that the token itself brings or points to is not used."""
        token = jwt.encode(
            claims(),
            private_pem(keys.other_rsa),
            "RS256",
            headers={
                "jwk": public_jwk(keys.other_rsa, "RS256"),
                "jku": "https://evil.example/jwks",
                "x5u": "https://evil.example/cert",
            },
        )
        assert reason(by_rsa, token) == "bad_signature"

    def test_critical_header(self, by_secret: JwtVerifier) -> None:
        """A header that must be understood, and is not, refuses the token."""
        token = forge(
            {"alg": "HS256", "crit": ["b64"], "b64": False}, claims(), hs256(SECRET.encode())
        )
        assert reason(by_secret, token) == "critical_header"

    def test_encrypted(self, by_secret: JwtVerifier) -> None:
        """A JWE is not touched."""
        token = jwe.encrypt(b"{}", b"x" * 16, algorithm="dir", encryption="A128GCM").decode()
        assert reason(by_secret, token) == "token_encrypted"

    def test_encrypted_in_three_parts(self, by_secret: JwtVerifier) -> None:
        """Nor is what claims to be compressed or encrypted in a signed token's form."""
        token = forge({"alg": "HS256", "enc": "A128GCM"}, claims(), hs256(SECRET.encode()))
        assert reason(by_secret, token) == "token_encrypted"

    def test_oversized(self, by_secret: JwtVerifier) -> None:
        """A token beyond the bound is not looked at, valid or not."""
        token = jwt.encode(claims(padding="x" * 60_000), SECRET)
        assert reason(by_secret, token) == "token_too_large"

    @pytest.mark.parametrize("more", ["=" * 99_999, "!" * 99_999, "==" + "A" * 99_999])
    def test_padded_by_its_bearer(self, by_secret: JwtVerifier, more: str) -> None:
        """What applications leave out of a signature makes nobody unknown, at whatever length."""
        token = jwt.encode(claims(), SECRET)
        assert jwt.decode(token + more, SECRET)
        assert by_secret.verify(token + more) is by_secret.verify(token + more)
        assert reason(by_secret, token + "A" * 99_999) in ("token_too_large", "token_malformed")

    @pytest.mark.parametrize("kind", ["logout+jwt", "dpop+jwt", "application/secevent+JWT"])
    def test_foreign_type(self, by_secret: JwtVerifier, kind: str) -> None:
        """A token of the same issuer for another purpose names nobody."""
        token = jwt.encode(claims(), SECRET, headers={"typ": kind})
        assert reason(by_secret, token) == "wrong_type"

    def test_padding_and_noise(self, by_secret: JwtVerifier) -> None:
        """Signs that the decoder of PyJWT and python-jose skips are skipped, but none is signed."""
        token = jwt.encode(claims(), SECRET)
        for same in (
            f"{token}=",
            f"{token}===",
            f"{token}\n",
            f"{token}!",
            f"{token}=x",
            f"{token}é",
        ):
            assert by_secret.verify(same).claims == by_secret.verify(token).claims
        for changed in (token.replace(".", ".!", 1), token.replace(".", "=.", 1), f"!{token}"):
            assert reason(by_secret, changed) == "bad_signature"

    @pytest.mark.parametrize(
        "token",
        [
            "", ".", "..", "...", "a.b", "a.b.c", "a.b.c.d", "\x00", "é.é.é", "e30.e30.AA",
            "bnVsbA.e30.AA", "W10.e30.AA", f"{b64(b'[' * 5000)}.e30.AA", "\ud800.a.b",
        ],
    )  # fmt: skip
    def test_garbage(self, by_secret: JwtVerifier, token: str) -> None:
        """Garbage is malformed, and nothing worse."""
        assert reason(by_secret, token) == "token_malformed"

    def test_deep_claims(self, by_secret: JwtVerifier) -> None:
        """Claims nested beyond reason are malformed, though well signed."""
        token = signed_raw(b'{"a":' + b"[" * 4000 + b"]" * 4000 + b"}")
        assert reason(by_secret, token) in ("token_malformed", "missing_exp")

    @pytest.mark.parametrize("key_id", [7, ["a"], "x" * 300])
    def test_odd_key_id(self, by_secret: JwtVerifier, key_id: Any) -> None:
        """A key id is text of a reasonable length."""
        token = forge({"alg": "HS256", "kid": key_id}, claims(), hs256(SECRET.encode()))
        assert reason(by_secret, token) == "token_malformed"

    @given(st.text())
    def test_any_text(self, token: str) -> None:
        """Whatever the text, the answer is a reason."""
        assert reason(_ANY, token)

    @given(st.dictionaries(st.text(), st.none() | st.text() | st.integers() | st.lists(st.text())))
    def test_any_header(self, header: dict[str, Any]) -> None:
        """Whatever the header, an unsigned token is refused."""
        assert reason(_ANY, forge(header, claims(), lambda _: b"x"))


class TestClaims:
    @pytest.mark.parametrize(
        ("more", "expected"),
        [
            ({"exp": None}, "missing_exp"),
            ({"exp": 1}, "token_expired"),
            ({"exp": "tomorrow"}, "invalid_exp"),
            ({"exp": True}, "invalid_exp"),
            ({"exp": [9e9]}, "invalid_exp"),
            ({"nbf": 9e9}, "token_not_yet_valid"),
            ({"nbf": "now"}, "invalid_nbf"),
            ({"aud": "somebody else"}, "audience_not_configured"),
        ],
    )
    def test_refused(self, by_secret: JwtVerifier, more: dict[str, Any], expected: str) -> None:
        """Each wrong claim has its own reason."""
        token = forge({"alg": "HS256"}, claims(**more), hs256(SECRET.encode()))
        assert reason(by_secret, token) == expected

    def test_times_in_texts(self, by_secret: JwtVerifier) -> None:
        """Digits in a text are a time, as they are for the libraries of applications."""
        token = forge({"alg": "HS256"}, claims(exp="4102444800", nbf="1"), hs256(SECRET.encode()))
        assert jwt.decode(token, SECRET)
        assert by_secret.verify(token).expires_at == 4_102_444_800
        old = forge({"alg": "HS256"}, claims(exp="1"), hs256(SECRET.encode()))
        assert reason(by_secret, old) == "token_expired"

    def test_no_expiry(self, by_secret: JwtVerifier) -> None:
        """A token that never expires is refused."""
        assert reason(by_secret, jwt.encode({"sub": "u1"}, SECRET)) == "missing_exp"

    def test_infinite_expiry(self, by_secret: JwtVerifier) -> None:
        """Numbers that JSON does not have are refused."""
        for number in (b"Infinity", b"NaN", b"1e999"):
            token = signed_raw(b'{"exp":' + number + b"}")
            assert reason(by_secret, token) in ("token_malformed", "invalid_exp")

    @pytest.mark.parametrize(
        ("audience", "expected"),
        [
            (None, "missing_audience"),
            ([], "missing_audience"),
            ("other", "wrong_audience"),
            (["other"], "wrong_audience"),
            ({"shop": 1}, "wrong_audience"),
            ("shop", None),
            (["other", "shop"], None),
        ],
    )
    def test_audience(self, audience: Any, expected: str | None) -> None:
        """The configured audience must be there: absent is wrong, too."""
        checks = verifier(jwt_key=SECRET, jwt_algorithms="HS256", jwt_audience="shop")
        body = claims() if audience is None else claims(aud=audience)
        token = forge({"alg": "HS256"}, body, hs256(SECRET.encode()))
        if expected is None:
            assert checks.verify(token).verified
        else:
            assert reason(checks, token) == expected

    def test_issuer(self) -> None:
        """The configured issuer must be there."""
        checks = verifier(jwt_key=SECRET, jwt_algorithms="HS256", jwt_issuer="https://id.example")
        assert reason(checks, jwt.encode(claims(), SECRET)) == "missing_issuer"
        assert reason(checks, jwt.encode(claims(iss="x"), SECRET)) == "wrong_issuer"
        assert reason(checks, forge({"alg": "HS256"}, claims(iss=7), hs256(b"x"))) == "wrong_issuer"
        found = checks.verify(jwt.encode(claims(iss="https://id.example"), SECRET))
        assert found.issuer == "https://id.example"

    def test_expires_while_remembered(self) -> None:
        """A remembered token is refused from the second it expires."""
        now = [1000.0]
        config = AuditConfig(jwt_key=SECRET, jwt_algorithms="HS256")
        checks = verifier_from_config(config)
        assert isinstance(checks, JwtVerifier)
        checks._clock = lambda: now[0]
        token = jwt.encode({"sub": "u1", "exp": 1010}, SECRET)
        assert checks.verify(token).expires_at == 1010
        now[0] = 1009.9
        assert checks.verify(token).verified
        now[0] = 1010.0
        assert reason(checks, token) == "token_expired"
        assert reason(checks, jwt.encode({"sub": "u2", "exp": 1010}, SECRET)) == "token_expired"

    def test_tokens_are_not_kept_in_clear(self, by_secret: JwtVerifier) -> None:
        """No object that the verifier keeps is a token, or its bytes."""
        token = ""
        for number in range(3):
            token = jwt.encode(claims(jti=str(number)), SECRET)
            by_secret.verify(token)
        texts = [one for one in reachable(by_secret) if isinstance(one, str | bytes)]
        assert token not in texts
        assert token.encode() not in texts


class TestKeySets:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "jwks.json"

    def checks(
        self, file: Path, *entries: dict[str, Any], algorithms: str = "RS256,ES256"
    ) -> JwtVerifier:
        file.write_text(json.dumps({"keys": entries}))
        return verifier(jwt_jwks_file=file, jwt_algorithms=algorithms)

    def signed(self, keys: Keys, **header: Any) -> str:
        return jwt.encode(claims(), private_pem(keys.rsa), "RS256", headers=header)

    def test_chosen_by_key_id(self, file: Path, keys: Keys) -> None:
        """The key is the one that the token names."""
        checks = self.checks(
            file,
            public_jwk(keys.other_rsa, "RS256", kid="old"),
            public_jwk(keys.rsa, "RS256", kid="new"),
        )
        assert checks.verify(self.signed(keys, kid="new")).verified
        assert reason(checks, self.signed(keys, kid="old")) == "bad_signature"

    def test_unknown_key_id(self, file: Path, keys: Keys) -> None:
        """A right signature under a wrong key id is refused."""
        checks = self.checks(file, public_jwk(keys.rsa, "RS256", kid="a"))
        assert reason(checks, self.signed(keys, kid="b")) == "unknown_key"

    def test_no_key_id(self, file: Path, keys: Keys) -> None:
        """A token without a key id is believed only where there is no choice."""
        one = public_jwk(keys.rsa, "RS256", kid="a")
        assert (
            self.checks(file, one, public_jwk(keys.ec, "ES256")).verify(self.signed(keys)).verified
        )
        two = self.checks(file, one, public_jwk(keys.other_rsa, "RS256", kid="b"))
        assert reason(two, self.signed(keys)) == "ambiguous_key"

    @pytest.mark.parametrize(
        "more",
        [{"use": "enc"}, {"key_ops": ["encrypt"]}, {"key_ops": []}, {"key_ops": "verify"}, {"use": "sig", "key_ops": ["wrapKey"]}],
    )  # fmt: skip
    def test_not_for_signatures(self, file: Path, keys: Keys, more: dict[str, Any]) -> None:
        """A key for anything but verifying does not verify."""
        good = public_jwk(keys.ec, "ES256", kid="other")
        checks = self.checks(file, public_jwk(keys.rsa, "RS256", kid="a", **more), good)
        assert reason(checks, self.signed(keys, kid="a")) == "key_not_for_signatures"

    def test_for_signatures(self, file: Path, keys: Keys) -> None:
        """A key that says that it verifies does."""
        entry = public_jwk(keys.rsa, "RS256", kid="a", use="sig", key_ops=["verify", "sign"])
        assert self.checks(file, entry).verify(self.signed(keys, kid="a")).verified

    def test_for_another_algorithm(self, file: Path, keys: Keys) -> None:
        """A key that names its algorithm verifies no other."""
        entry = {**public_jwk(keys.rsa, "RS256", kid="a"), "alg": "RS512"}
        checks = self.checks(file, entry, algorithms="RS256,RS512")
        assert reason(checks, self.signed(keys, kid="a")) == "alg_not_allowed"

    def test_wrong_curve(self, file: Path) -> None:
        """An EC key verifies the algorithm of its curve only."""
        key = ec.generate_private_key(ec.SECP384R1())
        entry = public_jwk(key, "ES384", kid="a")
        del entry["alg"]
        checks = self.checks(file, entry, algorithms="ES256,ES384")
        token = forge(
            {"alg": "ES256", "kid": "a"}, claims(), lambda text: key.sign(text, ec.ECDSA(SHA256()))
        )
        assert reason(checks, token) == "alg_not_allowed"

    def test_symmetric_key_among_public_ones(self, file: Path, keys: Keys) -> None:
        """A secret in the set verifies nothing where only signatures are accepted."""
        entry = {"kty": "oct", "k": b64(SECRET.encode()), "kid": "s"}
        checks = self.checks(file, entry, public_jwk(keys.rsa, "RS256", kid="a"))
        token = jwt.encode(claims(), SECRET, headers={"kid": "s"})
        assert reason(checks, token) == "alg_not_allowed"

    def test_unreadable_entries(self, file: Path, keys: Keys) -> None:
        """Entries that cannot be read do not spoil the others."""
        odd: list[Any] = [
            {"kty": "RSA", "kid": "x"}, {"kty": "EC", "crv": "P-1", "x": "", "y": ""}, {"kty": "oct"},
            {"kty": "RSA", "n": "AQAB", "e": "AQAB"}, {"kid": 7}, "text", {"kty": []},
            {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, {"kty": "OKP", "crv": "X25519", "x": "AA"},
        ]  # fmt: skip
        checks = self.checks(file, *odd, public_jwk(keys.rsa, "RS256", kid="a"))
        assert checks.verify(self.signed(keys, kid="a")).verified

    def test_private_key_in_set(self, file: Path, keys: Keys) -> None:
        """Of a private key in the set only the public part is used."""
        private = jwk.construct(private_pem(keys.rsa), "RS256").to_dict()
        checks = self.checks(file, {**private, "kid": "a"})
        assert checks.verify(self.signed(keys, kid="a")).verified

    def test_ed25519(self, file: Path, keys: Keys) -> None:
        """Ed25519 keys of a set verify EdDSA."""
        raw = keys.ed.public_key().public_bytes_raw()
        entry = {"kty": "OKP", "crv": "Ed25519", "x": b64(raw), "kid": "e"}
        checks = self.checks(file, entry, algorithms="EdDSA")
        assert checks.verify(forge({"alg": "EdDSA", "kid": "e"}, claims(), keys.ed.sign)).verified

    def test_changed_file(self, file: Path, keys: Keys) -> None:
        """A key that is taken out of the set is not trusted from memory either."""
        checks = self.checks(file, public_jwk(keys.rsa, "RS256", kid="a"))
        token = self.signed(keys, kid="a")
        assert checks.verify(token).verified
        file.write_text(json.dumps({"keys": [public_jwk(keys.other_rsa, "RS256", kid="b")]}))
        checks._issuers[None].keys.keys.load()  # type: ignore[attr-defined]
        assert reason(checks, token) == "unknown_key"


class Endpoint:
    """A real HTTP server with a JWK set that a test can change, delay, and count."""

    def __init__(self) -> None:
        self.body = b'{"keys": []}'
        self.status = 200
        self.headers: dict[str, str] = {}
        self.hits = 0
        self.gate = threading.Event()
        self.gate.set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.hits += 1
                outer.gate.wait(100)
                self.send_response(200 if self.path == "/elsewhere" else outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *_: Any) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"


@contextmanager
def serving() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.gate.set()
        endpoint.server.shutdown()
        thread.join()
        endpoint.server.server_close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as found:
        yield found


def settle(keys: KeySet) -> None:
    """Wait until the set is not being read."""
    if keys._thread is not None:
        keys._thread.join(60)


def have_keys(checks: JwtVerifier) -> bool:
    """Whether the read that is under way has brought keys."""
    (issuer,) = checks._issuers.values()
    assert isinstance(issuer.keys, FetchedKeys)
    settle(issuer.keys.keys)
    try:
        return bool(issuer.keys.keys.current())
    except TokenError:
        return False


class TestFetchedKeySets:
    def test_never_waits(
        self, endpoint: Endpoint, keys: Keys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Until the keys are there a token is refused at once, and afterwards believed."""
        monkeypatch.setattr(jwks, "TIMEOUT", 100.0)
        endpoint.gate.clear()
        endpoint.body = json.dumps({"keys": [public_jwk(keys.rsa, "RS256", kid="a")]}).encode()
        checks = verifier(jwt_jwks_url=endpoint.url, jwt_algorithms="RS256")
        token = jwt.encode(claims(), private_pem(keys.rsa), "RS256", headers={"kid": "a"})
        begun = time.perf_counter()
        assert reason(checks, token) == "keys_not_loaded"
        assert time.perf_counter() - begun < 50  # an answer would come after a hundred
        endpoint.gate.set()
        assert have_keys(checks)
        assert checks.verify(token).verified

    def test_unknown_keys_cannot_flood(
        self, endpoint: Endpoint, keys: Keys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Any number of unknown key ids has the set fetched no more than once in a while."""
        monkeypatch.setattr(jwks, "FIRST_PAUSE", 3600.0)
        endpoint.body = json.dumps({"keys": [public_jwk(keys.rsa, "RS256", kid="a")]}).encode()
        checks = verifier(jwt_jwks_url=endpoint.url, jwt_algorithms="RS256")
        assert have_keys(checks)
        for _ in range(200):
            token = forge({"alg": "RS256", "kid": uuid.uuid4().hex}, claims(), lambda _: b"x")
            assert reason(checks, token) == "unknown_key"
        assert have_keys(checks)
        assert endpoint.hits == 1

    @pytest.mark.parametrize(
        ("status", "headers"),
        [(500, {}), (204, {}), (302, {"location": "/elsewhere"})],
    )
    def test_only_a_plain_answer(
        self, endpoint: Endpoint, status: int, headers: dict[str, str]
    ) -> None:
        """Errors and redirects give no keys, though there are keys where a redirect leads."""
        endpoint.status, endpoint.headers = status, headers
        checks = verifier(jwt_jwks_url=endpoint.url, jwt_algorithms="RS256")
        assert not have_keys(checks)

    @pytest.mark.allow_errors
    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"keys": 1}', b"x" * 1_100_000])
    def test_only_a_key_set(self, endpoint: Endpoint, body: bytes) -> None:
        """What is no JWK set of a reasonable size gives no keys."""
        endpoint.body = body
        checks = verifier(jwt_jwks_url=endpoint.url, jwt_algorithms="RS256")
        assert not have_keys(checks)

    def test_failure_is_logged_without_the_url(
        self, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The log names the setting; a URL may hold credentials."""
        endpoint.status = 500
        url = endpoint.url.replace("/jwks", "/jwks?canary=1")
        have_keys(verifier(jwt_jwks_url=url, jwt_algorithms="RS256"))
        assert "canary" not in caplog.text

    @pytest.mark.allow_errors
    @pytest.mark.parametrize(
        "begun",
        [b"", b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n",
         b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffff\r\n"],
    )  # fmt: skip
    def test_an_answer_that_never_ends_is_left(
        self, begun: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A byte now and then keeps each read short; the next read of the keys must begin."""
        monkeypatch.setattr(jwks, "TIMEOUT", 0.5)
        with dripping(begun) as url:
            checks = verifier(jwt_jwks_url=url, jwt_algorithms="RS256")
            (issuer,) = checks._issuers.values()
            assert isinstance(issuer.keys, FetchedKeys)
            with pytest.raises(TokenError, match="keys_not_loaded"):
                issuer.keys.keys.current()
            thread = issuer.keys.keys._thread
            assert thread is not None
            thread.join(30)
            assert not thread.is_alive()


class TestKeySetTiming:
    def key_set(self, read: Callable[[], bytes], now: list[float]) -> KeySet:
        return KeySet(read, lambda _: (), refresh=300, name=uuid.uuid4().hex, clock=lambda: now[0])

    def test_refreshed_in_time(self) -> None:
        """Keys are read again when they are old, and serve meanwhile."""
        reads, now = [], [0.0]
        keys = self.key_set(lambda: reads.append(1) or b"{}", now)
        keys.load()
        now[0] = 299
        keys.current()
        settle(keys)
        assert len(reads) == 1
        now[0] = 301
        assert keys.current() == ()
        settle(keys)
        assert len(reads) == 2

    def test_asked_again_in_time(self) -> None:
        """A missing key has the set read again once, and again only after the interval."""
        reads, now = [], [0.0]
        keys = self.key_set(lambda: reads.append(1) or b"{}", now)
        keys.load()
        for second in (0, 1, UNKNOWN_KEY_INTERVAL - 1, UNKNOWN_KEY_INTERVAL):
            now[0] = second
            keys.ask_again()
            settle(keys)
        assert len(reads) == 3

    def test_a_new_key_is_asked_for_at_once(self) -> None:
        """An issuer that signs with a new key is believed with the next request, however often."""
        now, known = [0.0], ["a"]
        keys = KeySet(
            lambda: json.dumps(known).encode(),
            lambda text: tuple(VerificationKey(name, {}) for name in json.loads(text)),
            refresh=300, name=uuid.uuid4().hex, clock=lambda: now[0],
        )  # fmt: skip
        keys.ask_again()
        settle(keys)
        for name in "bcd":
            now[0] += 1
            known[:] = [name]
            keys.ask_again(name)
            settle(keys)
            assert [key.key_id for key in keys.current()] == [name]

    def test_invented_keys_are_asked_for_ever_more_rarely(self) -> None:
        """Whoever makes up a key for each token has the set read five times in half a minute."""
        reads, now = [], [0.0]
        keys = self.key_set(lambda: reads.append(1) or b"{}", now)
        keys.ask_again()
        settle(keys)
        while now[0] < 31:
            now[0] += 0.5
            keys.ask_again(uuid.uuid4().hex)
            settle(keys)
        assert len(reads) == 1 + 5

    def test_keys_are_read_again_before_they_are_too_old(self) -> None:
        """Twice, whatever the setting says."""
        AuditConfig(jwt_jwks_refresh=KEPT / 2)
        with pytest.raises(ConfigurationError, match="OTEL_AUDIT_JWT_JWKS_REFRESH"):
            AuditConfig(jwt_jwks_refresh=KEPT / 2 + 1)

    def test_old_keys_end(self) -> None:
        """Keys that could not be read again for a day are no longer used."""
        now = [0.0]
        keys = self.key_set(lambda: b"{}", now)
        keys.load()
        keys._read = lambda: (_ for _ in ()).throw(OSError("away"))
        now[0] = KEPT - 1
        assert keys.current() == ()
        now[0] = KEPT
        with pytest.raises(TokenError, match="keys_not_loaded"):
            keys.current()
        settle(keys)
        with pytest.raises(TokenError, match="keys_not_loaded"):
            keys.current()

    def test_a_withdrawn_key_ends_tokens_that_are_known(self, keys: Keys) -> None:
        """Also while no other tokens come, the set is read again, and what it withdrew is refused."""
        token = jwt.encode(claims(), private_pem(keys.rsa), "RS256", headers={"kid": "a"})
        text = [json.dumps({"keys": [public_jwk(keys.rsa, "RS256", kid="a")]}).encode()]
        now = [0.0]
        algorithms = frozenset({"RS256"})
        key_set = KeySet(
            lambda: text[0], lambda found: read_key_set(found, algorithms),
            refresh=300, name="TEST", clock=lambda: now[0],
        )  # fmt: skip
        key_set.load()
        checks = JwtVerifier((Issuer(None, algorithms, None, FetchedKeys(key_set)),))
        assert checks.verify(token).verified
        text[0] = json.dumps({"keys": [public_jwk(keys.rsa, "RS256", kid="b")]}).encode()
        now[0] = 301
        with suppress(TokenError):  # the set is read beside it
            checks.verify(token)
        settle(key_set)
        assert reason(checks, token) == "unknown_key"

    def test_generation(self) -> None:
        """Only a set that changed makes earlier results void."""
        text = [b"{}"]
        keys = self.key_set(lambda: text[0], [0.0])
        keys.load()
        keys.load()
        assert keys.generation == 1
        text[0] = b"{ }"
        keys.load()
        assert keys.generation == 2


class TestSeveralIssuers:
    @pytest.fixture
    def checks(self, keys: Keys) -> JwtVerifier:
        return verifier(
            jwt_issuers=[
                {"issuer": "a", "key": pem(keys.rsa), "algorithms": ["RS256"]},
                {"issuer": "b", "key": pem(keys.ec), "algorithms": ["ES256"], "audience": "shop"},
            ]
        )

    def test_each_with_its_own_key(self, checks: JwtVerifier, keys: Keys) -> None:
        """Each issuer's tokens are verified with its own key, algorithms and audience."""
        a = jwt.encode(claims(iss="a"), private_pem(keys.rsa), "RS256")
        b = jwt.encode(claims(iss="b", aud="shop"), private_pem(keys.ec), "ES256")
        assert (checks.verify(a).issuer, checks.verify(b).issuer) == ("a", "b")

    def test_none_for_another(self, checks: JwtVerifier, keys: Keys) -> None:
        """One issuer cannot sign for another."""
        token = jwt.encode(claims(iss="b", aud="shop"), private_pem(keys.rsa), "RS256")
        assert reason(checks, token) == "alg_not_allowed"

    def test_several_audiences(self) -> None:
        """Clients of several kinds have tokens of several audiences; one that is ours is enough."""
        checks = verifier(jwt_key=SECRET, jwt_algorithms="HS256", jwt_audience="web, mobile")
        for audience in ("web", "mobile", ["other", "mobile"]):
            assert checks.verify(jwt.encode(claims(aud=audience), SECRET)).verified
        assert reason(checks, jwt.encode(claims(aud="other"), SECRET)) == "wrong_audience"
        assert reason(checks, jwt.encode(claims(), SECRET)) == "missing_audience"

    def test_strangers(self, checks: JwtVerifier, keys: Keys) -> None:
        """An issuer that is not configured is refused."""
        for body, expected in ((claims(iss="c"), "wrong_issuer"), (claims(), "missing_issuer")):
            token = jwt.encode(body, private_pem(keys.rsa), "RS256")
            assert reason(checks, token) == expected


class TestUnverified:
    def test_marked(self, keys: Keys) -> None:
        """Behind a gateway a token is read unchecked, and marked as such."""
        checks = verifier(jwt_unverified_behind_gateway=True)
        found = checks.verify(jwt.encode({"sub": "u1"}, private_pem(keys.rsa), "RS256"))
        assert (found.claims, found.issuer, found.expires_at) == ({"sub": "u1"}, None, float("inf"))
        assert not found.verified

    def test_still_refused(self) -> None:
        """What can be seen without a key is still refused."""
        checks = verifier(jwt_unverified_behind_gateway=True, jwt_audience="shop")
        assert reason(checks, jwt.encode(claims(exp=1), SECRET)) == "token_expired"
        assert reason(checks, jwt.encode(claims(aud="x"), SECRET)) == "wrong_audience"
        named = verifier(jwt_unverified_behind_gateway=True, jwt_issuer="a")
        assert reason(named, jwt.encode(claims(iss="b"), SECRET)) == "wrong_issuer"
        assert reason(named, jwt.encode(claims(), SECRET)) == "missing_issuer"
        assert reason(checks, forge({"alg": "none"}, claims(), lambda _: b"")) == "alg_not_allowed"

    def test_not_beside_keys(self) -> None:
        """It cannot be combined with verification by mistake."""
        with pytest.raises(ConfigurationError, match="JWT_UNVERIFIED_BEHIND_GATEWAY"):
            verifier(jwt_unverified_behind_gateway=True, jwt_key=SECRET, jwt_algorithms="HS256")


class TestSettings:
    def test_none(self) -> None:
        """Without a setting there is no verifier."""
        assert verifier_from_config(AuditConfig()) is None

    def test_refused(self, keys: Keys, tmp_path: Path) -> None:
        """What contradicts itself or is unsafe is refused, and the setting is named."""
        empty = tmp_path / "empty.json"
        empty.write_text('{"keys": []}')
        good = {"issuer": "a", "key": SECRET, "algorithms": ["HS256"]}
        weak = rsa.generate_private_key(65537, 1024)
        for settings, named in (
            ({"jwt_key": pem(keys.rsa), "jwt_algorithms": "HS256"}, "JWT_KEY"),
            ({"jwt_key": base64.b64encode(der(keys.rsa)).decode(), "jwt_algorithms": "HS256"}, "JWT_KEY"),
            ({"jwt_key": SECRET, "jwt_algorithms": "RS256"}, "JWT_KEY"),
            ({"jwt_key": private_pem(keys.rsa), "jwt_algorithms": "RS256"}, "JWT_KEY"),
            ({"jwt_key": pem(weak), "jwt_algorithms": "RS256"}, "JWT_KEY"),
            ({"jwt_key": pem(keys.ec), "jwt_algorithms": "RS256"}, "JWT_KEY"),
            ({"jwt_key": "", "jwt_algorithms": "HS256"}, "JWT_KEY"),
            ({"jwt_key": pem(keys.rsa), "jwt_algorithms": "RS256,HS256"}, "JWT_ALGORITHMS"),
            ({"jwt_key": pem(keys.rsa), "jwt_algorithms": "none"}, "JWT_ALGORITHMS"),
            ({"jwt_jwks_url": "https://id.example/jwks"}, "JWT_ALGORITHMS"),
            ({"jwt_jwks_url": "http://id.example/jwks", "jwt_algorithms": "RS256"}, "JWT_JWKS_URL"),
            ({"jwt_jwks_url": "file:///etc/passwd", "jwt_algorithms": "RS256"}, "JWT_JWKS_URL"),
            ({"jwt_jwks_url": "https://id.example/jwks", "jwt_algorithms": "HS256"}, "JWT_JWKS_URL"),
            ({"jwt_jwks_file": tmp_path / "none", "jwt_algorithms": "RS256"}, "JWT_JWKS_FILE"),
            ({"jwt_jwks_file": empty, "jwt_algorithms": "RS256"}, "JWT_JWKS_FILE"),
            ({"jwt_key": SECRET, "jwt_jwks_file": empty, "jwt_algorithms": "HS256"}, "JWT_KEY"),
            ({"jwt_audience": "shop"}, "JWT_AUDIENCE"),
            ({"jwt_issuers": [{**good, "algorithms": []}]}, r"JWT_ISSUERS\[0\].algorithms"),
            ({"jwt_issuers": [{"issuer": "a", "algorithms": ["HS256"]}]}, r"JWT_ISSUERS\[0\].key"),
            ({"jwt_issuers": [good, good]}, "JWT_ISSUERS"),
        ):  # fmt: skip
            with pytest.raises(ConfigurationError, match=named) as caught:
                verifier_from_config(AuditConfig(**settings))
            assert SECRET not in str(caught.value)


_ANY = verifier(jwt_key=SECRET, jwt_algorithms="HS256")
