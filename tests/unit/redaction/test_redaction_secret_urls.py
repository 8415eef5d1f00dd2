"""What of a URL lets in, wherever the URL stands."""

from __future__ import annotations

import pytest

from otel_audit.redaction import Redactor
from otel_audit.redaction.secret_urls import is_secret_parameter, link_parameters

redactor = Redactor()
TOKEN = "Tm9uZS1zby1zZWNyZXQ4ODE3"
CODE = "SplxlOBeZQQYbYS6WxSbIA"

PLACES = {
    "query": lambda url: redactor.query(f"next={url.replace('?', '%3F').replace('&', '%26')}"),
    "referer": lambda url: redactor.headers([(b"referer", url.encode())], ["referer"])["referer"],
    "location": lambda url: redactor.headers([(b"location", url.encode())], ["location"])[
        "location"
    ],
    "body": lambda url: str(redactor.document({"link": url})),
    "text": lambda url: redactor.text(f"see {url} now"),
}


@pytest.mark.parametrize("place", PLACES)
class TestEverywhere:
    @pytest.mark.parametrize(
        "url",
        ["https://app.example/cb?code={}&state=xyz", "/cb?state=x&code={}", "https://h/x?Signature={}",
         "https://h/x?a=1&ticket={}", "https://h/x?a=1&key={}"],
    )  # fmt: skip
    def test_a_parameter_that_lets_in_is_taken_out(self, place: str, url: str) -> None:
        """The code of an OAuth callback, a signature, a ticket, a long key."""
        assert CODE not in PLACES[place](url.format(CODE))

    @pytest.mark.parametrize(
        "path", ["/reset/{}", "/invitations/{}/accept", "/activate/MTI/{}", "/verify-email/{}"]
    )
    def test_what_a_link_carries_in_its_path_is_taken_out(self, place: str, path: str) -> None:
        """Behind a word that says what the link is for."""
        assert TOKEN not in PLACES[place](f"https://app.example{path.format(TOKEN)}")

    @pytest.mark.parametrize(
        "url",
        ["https://h/countries?code=DE&page=2", "https://h/blog/my-post-about-2025-plans",
         "https://cdn.h/img/507f1f77bcf86cd799439011.jpg", "https://h/reset/", "https://h/login/google",
         "https://h/invitations/550e8400-e29b-41d4-a716-446655440000"],
    )  # fmt: skip
    def test_an_ordinary_url_stays(self, place: str, url: str) -> None:
        """Codes of countries, slugs, ids."""
        assert "REDACTED" not in PLACES[place](url)


class TestParameters:
    @pytest.mark.parametrize(
        ("path", "parameters", "secret"),
        [
            ("/verify/123456", {"code": "123456"}, {"123456"}),
            (f"/activate/MTI/{TOKEN}", {"uidb64": "MTI", "key": TOKEN}, {TOKEN}),
            (f"/s/{TOKEN}", {"code": TOKEN}, {TOKEN}),
            ("/countries/DE", {"code": "DE"}, set()),
            ("/coupons/SAVE10", {"code": "SAVE10"}, set()),
            (f"/orders/{TOKEN}", {"order_id": TOKEN}, set()),
        ],
    )
    def test_a_routes_parameter_is_judged_by_name_place_and_look(
        self, path: str, parameters: dict[str, str], secret: set[str]
    ) -> None:
        """A code lets in where the route verifies something, or where it looks like a token."""
        assert set(link_parameters(path, parameters)) == secret

    @pytest.mark.parametrize(
        ("name", "secret"),
        [("token", True), ("signature", True), ("pin", True), ("token_id", False), ("id", False)],
    )
    def test_the_policy_asks_the_same_list(self, name: str, secret: bool) -> None:
        """Which parameter is the name of no thing."""
        assert is_secret_parameter(name) is secret
