"""What the README shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import asyncpg
import httpx
from servers import uvicorn

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


class TestReadme:
    async def test_the_ten_lines_are_a_whole_application(self, tmp_path, audit_store):
        """The application of the README runs as it stands, and leaves the row it promises."""
        (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        assert len([line for line in code.splitlines() if line.strip()]) <= 10
        code = code.replace("postgresql://localhost/audit", audit_store)
        (tmp_path / "app.py").write_text(code)
        with uvicorn(tmp_path, {}, instrumented=False) as server:
            server.wait_until_up()
            answer = httpx.post(f"{server.url}/orders/123/refund", timeout=60)
            server.stop()
        assert answer.json() == {"refunded": 123}
        connection = await asyncpg.connect(audit_store)
        (query,) = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
        (row,) = await connection.fetch(query)
        await connection.close()
        assert (row["actor_id"], row["event_name"], row["outcome"]) == (
            "user-17",
            "order.refunded",
            "success",
        )

    def test_every_link_leads_somewhere(self):
        """Files that the README links to are there."""
        links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
        assert links
        assert [link for link in links if not (ROOT / link).exists()] == []

    def test_every_setting_it_names_exists(self):
        """No setting of the README is made up."""
        from otel_audit import AuditConfig

        known = {f"OTEL_AUDIT_{name.upper()}" for name in AuditConfig.model_fields}
        named = set(re.findall(r"OTEL_AUDIT_[A-Z_]+", README))
        named |= {f"OTEL_AUDIT{name}" for name in re.findall(r"`(_[A-Z_]+)`", README)}
        assert named
        assert named - known == set()

    def test_the_commands_are_those_of_the_makefile(self):
        """The two commands at the top are targets of the Makefile."""
        makefile = (ROOT / "Makefile").read_text()
        for target in re.findall(r"^\$ make (\w+)", README, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE)
