"""What must stay readable: over-redaction is a defect too."""

from __future__ import annotations

import json
import random
import uuid

import pytest

from otel_audit.redaction import Redactor

redactor = Redactor()

DOCUMENT = {
    "token_count": 12, "tokens_used": 7, "max_tokens": 512, "total_tokens": 1, "tokenType": "Bearer",
    "token_expires_at": "2026-01-01T00:00:00Z", "expires_in": 3600, "token_id": "tok-1",
    "tokenizer": "bpe", "tokenization": "wordpiece", "token_url": "https://idp.example/token",
    "maxtokens": 5, "tokencount": 6, "promptTokens": 4,
    "password_changed_at": "2025-01-02", "passwordChangedAt": "2025-01-02",
    "password_policy": "strong", "password_length": 12, "is_password_set": True,
    "has_password": False, "passwordless": True, "requires_password": True,
    "author": "Jane", "authors": ["Jane"], "authority": "x", "authorized_by": "boss",
    "auth_method": "oidc", "auth_time": 1700000000, "authenticated": True,
    "secretary": "Ms Miller", "secretariat": "north", "secret_name": "prod/db",
    "accession": "A-1", "access_level": "read", "accessibility": "yes",
    "compass": "north", "passenger": "Bob", "passed": True, "pass_rate": 0.9, "bypass": "road",
    "passport_country": "DE", "boarding_pass": "A12", "passive": True, "passengers": 4,
    "keyboard": "qwerty", "monkey": "see", "primary_key": "id", "public_key_id": "k1",
    "idempotency_key": "abc-123", "cache_key": "user:1", "sort_key": "name", "keyword": "shoes",
    "key": "value", "name": "Jane Roe", "value": 12, "id": "0197a3c2-7d1e-7b1a-9c3f-4d5e6f708192",
    "pinned": True, "pinterest": "x", "shipping": "fast", "opinion": "good", "spin": 1,
    "classname": "x", "session": {"title": "Keynote"}, "assessment": "ok", "lessons": 3,
    "cookie_consent": True, "cookie_policy": "v2", "card_brand": "visa", "card_last4": "1111",
    "credit_card_type": "visa", "credit_card_last4": "4242", "cvc_check": "pass", "cardinality": 3,
    "discard": True, "wildcard": "*", "scorecard": 4, "hotpot": "yes", "signature": "Jane",
    "signal": 1, "desig": "x", "country_code": "DE", "zip_code": "12345", "error_code": "E1",
    "code": "SAVE10", "status": "passing", "count": 3, "credit": 12.5, "creditor": "Bank",
    "secretion": "x", "api_version": "2", "api_key_id": "k-1", "api_key_count": 2,
    "order_id": "550e8400-e29b-41d4-a716-446655440000", "order_number": "2025-000123456789",
    "created_at": "2025-11-21T21:59:09.123456+00:00", "created_ms": 1763762349123,
    "created_us": 1763762349123456, "created_ns": 1763762349123456789, "snowflake": 1234567890123456,
    "compact_time": "20251121215909123", "invoice": "INV-2025-11-000042", "phone": "+49 30 901820",
    "phone_us": "+1 (555) 123-4567", "ip": "192.168.100.200", "version": "1.2.3.4",
    "latitude": 48.85837009999999, "longitude": 4.111111111111111, "price": "1,234,567.89",
    "fraction": "0.4111111111111111", "isbn": "978-3-16-148410-0", "ean": "4006381333931",
    "tracking": "1Z999AA10123456784", "hex": "d41d8cd98f00b204e9800998ecf8427e",
    "sha": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "date": "11-21-2025", "long_zeros": "0000000000000000", "email": "jane.roe@example.com",
    "mailto": "mailto:jane@example.com", "url": "https://example.com:8080/a/b?page=2&sort=name",
    "git": "ssh://git@github.com/o/r.git", "port_url": "http://host:8080/path?mail=a@b.c",
    "sentence": "The author passed the assessment; see the keyboard. Basic understanding: fine.",
    "prose": "Invalid token: expired", "help": "password: must be at least 8 characters",
    "challenge": 'Bearer realm="example"', "percent": "100% of 50%ab", "math": "a=b=c==d; x:=y",
    "json_text": '{"a": [1, 2, {"b": "c"}]}', "xml": "<order><id>1</id></order>", "code_text": "x['a']=1",
    "empty": "", "unicode": "naïve café — 東京 \U0001f600", "newline": "a\nb\tc", "quote": 'say "hi"',
    "iban_country": "DE", "vat": "DE123456789", "sku": "AB12-CD34-EF56", "plate": "GB12 ABC",
    "tags": ["secure", "tokenized"], "matrix": [[1, 2], [3, 4]], "pairs": [["a", "b"], ["c", "d"]],
    "package": "see pypi-charset-normalizer", "token_error": "token_malformed", "filters": [{"name": "colour", "value": "red"}], "none": None, "float": 1.5, "big": 2**70,
}  # fmt: skip


class TestInnocents:
    @pytest.mark.parametrize("name", DOCUMENT)
    def test_leaves_an_innocent_field_alone(self, name: str) -> None:
        """As a field, in a document, and in JSON text."""
        value = DOCUMENT[name]
        assert redactor.field(name, value) == value
        assert redactor.document({"x": [{name: value}]}) == {"x": [{name: value}]}
        raw = json.dumps({name: value}, ensure_ascii=False).encode()
        assert json.loads(redactor.json_or_none(raw)) == {name: value}

    def test_explains_nothing_about_them(self) -> None:
        """There is no finding in the whole corpus."""
        assert redactor.explain(DOCUMENT) == []

    def test_keeps_the_bytes_of_a_clean_document(self) -> None:
        """Spacing, number spelling, and repeated keys stay as they were sent."""
        raw = b' {"b": 1.0,\n "a": 1e5, "a": [ ]} '
        assert redactor.json_or_none(raw) == raw

    def test_leaves_queries_and_paths_alone(self) -> None:
        """An innocent query or path is returned to the letter."""
        for query in ("", "page=2&sort=-name&q=a+b%20c&flag&x=", "code=DE", "a=%E2%82%AC&b=%ff"):
            assert redactor.query(query) == query
        for path in (
            "/", "/api/v1/orders/123", "/users/jane%20roe", "/reset-password/", "/a//b",
            "/npm/@scope/pkg", "/users/bob@example.com", "/to/mailto:bob@example.com",
            "/images/shop:1.2@sha256:0123abcd", "/at/12:30@noon", "/git/git@github.com:org",
            "/rooms/@bob:matrix.org", "/orders/7:cancel",
        ):  # fmt: skip
            assert redactor.path(path) == path

    def test_leaves_identifiers_alone(self) -> None:
        """Random identifiers, timestamps and order numbers are not taken for cards."""
        chance = random.Random(7)
        ids = [str(uuid.UUID(int=chance.getrandbits(128))) for _ in range(2_000)]
        digests = [chance.randbytes(size).hex() for size in (16, 20, 32, 64) for _ in range(5_000)]
        digests = [digest for digest in digests if sum(map(str.isalpha, digest)) >= 4]
        times = [str(1_763_000_000_000_000_000 + chance.getrandbits(56)) for _ in range(2_000)]
        orders = [f"ORD-{chance.randrange(10**11, 10**12)}" for _ in range(2_000)]
        floats = [str(chance.random()) for _ in range(2_000)]
        for text in (*ids, *digests, *times, *orders, *floats):
            assert redactor.text(text) == text
