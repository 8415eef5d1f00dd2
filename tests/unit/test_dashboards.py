"""Dashboards and alert rules are those of their script, and Prometheus takes them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import make_dashboards
import pytest
import yaml
from make_dashboards import FILES, FOLDER, RULES

_FORBIDDEN = re.compile(r"\b(?:actor|tenant|entity|target|subject)\w*\s*(?:=|\)|,)")


class TestFiles:
    @pytest.mark.parametrize("name", FILES)
    def test_are_those_of_the_script(self, name):
        """To write them anew: python tests/make_dashboards.py."""
        assert (FOLDER / name).read_text() == FILES[name](), "run: python tests/make_dashboards.py"

    @pytest.mark.parametrize("name", ["delivery.json", "activity.json"])
    def test_have_panels_that_each_ask_something(self, name):
        """No panel is empty."""
        board = json.loads((FOLDER / name).read_text())
        panels = [panel for panel in board["panels"] if panel["type"] != "row"]

        assert panels
        assert [panel["title"] for panel in panels if not panel["targets"]] == []

    def test_know_no_person_and_no_tenant(self):
        """Neither metrics nor the counts by the hour are asked for who it was."""
        texts = [one.expression for one in RULES] + [*make_dashboards.ACTIVITY.values()]

        assert [text for text in texts if _FORBIDDEN.search(text)] == []

    def test_the_activity_reads_no_record(self):
        """Only the counts by the hour: no payload, no column of a record."""
        tables = {
            found
            for text in make_dashboards.ACTIVITY.values()
            for found in re.findall(r"FROM (\S+)", text)
        }

        assert tables == {"audit.rollup"}


class TestRules:
    def test_each_says_what_is_wrong_and_what_to_do(self):
        """Whoever is woken reads it."""
        told = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]

        assert len(told) == len(RULES) == len({one["alert"] for one in told})
        assert all(one["annotations"]["summary"] for one in told)
        assert all(one["annotations"]["description"] for one in told)

    @pytest.mark.parametrize(
        "command", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml")]
    )
    def test_promtool_takes_them(self, command):
        """Each rule fires when it must, and is silent otherwise."""
        program = shutil.which("promtool")
        if program is None:
            if os.environ.get("TEST_PROMTOOL_REQUIRED"):
                pytest.fail("needs promtool: apt-get install prometheus")
            pytest.skip("needs promtool: apt-get install prometheus")
        done = subprocess.run(
            [program, *command], cwd=FOLDER, capture_output=True, text=True, check=False
        )

        assert done.returncode == 0, done.stdout + done.stderr
