"""The viewer's pages, as HTTP answers: what an auditor finds on each."""

from __future__ import annotations

from viewer_store import AUDITOR


async def get(client, path, status=200, **parameters):
    answer = await client.get(path, params=parameters)
    assert answer.status_code == status, answer.text
    return answer.text


class TestSearch:
    async def test_shows_what_fits(self, store, clients):
        """Rows, chips, facets, the histogram and the count, all in one document."""
        client = await clients(AUDITOR)
        page = await get(client, "/", q="event:order.refunded")
        assert page.count("data-row") == 2
        assert "order.paid" not in page
        assert "<strong>2</strong> records" in page
        assert "Remove event:order.refunded" in page
