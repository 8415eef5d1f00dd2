"""What the pages show of containers and clusters fits its format, and each message exists."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from docs_runner import parts_of

from otel_audit import AuditConfig
from otel_audit._util.private_file import is_private
from otel_audit.cli.main import cli

ROOT = Path(__file__).parents[2]
INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "VOLUME", "USER", "CMD"}


def block(page: str, name: str) -> str:
    (found,) = (part.text for part in parts_of(ROOT / "docs" / page) if part.name == name)
    return found


def manifests() -> list[Any]:
    parts = parts_of(ROOT / "docs" / "kubernetes.md")
    return [one for part in parts if part.name for one in yaml.safe_load_all(part.text)]


def pod_of(manifest: Any) -> Any:
    return manifest["spec"]["template"]["spec"]


def commands_of(container: Any) -> list[str]:
    return container.get("command", [])


class TestContainers:
    def test_the_image_runs_as_a_user_who_owns_the_spool(self):
        """The last instructions: not root, a command that gets signals, the spool on a volume."""
        lines = [
            line for line in block("containers.md", "Dockerfile").splitlines()
            if line and not line.startswith("#")
        ]  # fmt: skip
        told = [line.split(" ", 1) for line in lines]
        assert {word for word, _ in told} <= INSTRUCTIONS
        last = dict(told)
        command = json.loads(last["CMD"])
        user = last["USER"]
        assert user != "root"
        assert command[:2] == ["otel-audit", "run"]
        place = last["ENV"].removeprefix("OTEL_AUDIT_SPOOL_DIR=")
        assert last["VOLUME"] == place
        assert f"install -d -o {user} -g {user} -m 700 {place}" in last["RUN"]

    def test_compose_declares_what_it_mounts(self):
        """Each named volume; the writer's role and password are the same on both sides."""
        compose = yaml.safe_load(block("containers.md", "compose.yaml"))
        named = {
            mount.partition(":")[0]
            for service in compose["services"].values()
            for mount in service.get("volumes", ())
        }
        assert named == set(compose["volumes"])
        for service in compose["services"].values():
            assert set(service.get("depends_on", ())) <= set(compose["services"])
        grace = int(compose["services"]["app"]["stop_grace_period"].removesuffix("s"))
        assert grace > AuditConfig().shutdown_timeout
        script = compose["services"]["audit-init"]["command"][0]
        compile(re.search(r'python -c "(.*?)\n"\n', script, re.DOTALL)[1].replace('\\"', '"'),
                "script", "exec")  # fmt: skip
        assert "otel-audit init --roles --writer app_audit" in script


class TestKubernetes:
    @pytest.mark.parametrize("manifest", manifests(), ids=lambda one: one["metadata"]["name"])
    def test_every_manifest_fits_its_schema(self, manifest):
        """As Kubernetes itself would say."""
        kubernetes_validate.validate(manifest, "1.34", strict=True)

    @pytest.mark.parametrize("manifest", manifests(), ids=lambda one: one["metadata"]["name"])
    def test_every_pod_runs_without_root_and_knows_its_volumes(self, manifest):
        """And names commands that exist."""
        pod = pod_of(manifest)
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {one["name"] for one in pod.get("volumes", ())}
        volumes |= {
            one["metadata"]["name"] for one in manifest["spec"].get("volumeClaimTemplates", ())
        }
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            assert {one["name"] for one in container.get("volumeMounts", ())} <= volumes
            if commands_of(container)[:1] == ["otel-audit"]:
                assert commands_of(container)[1] in cli.commands

    @pytest.mark.parametrize("manifest", manifests(), ids=lambda one: one["metadata"]["name"])
    def test_a_key_that_is_mounted_is_taken(self, manifest, monkeypatch):
        """As the kubelet mounts it: root's, of the group fsGroup, with the volume's mode."""
        pod = pod_of(manifest)
        group = pod["securityContext"].get("fsGroup")
        monkeypatch.setattr(os, "geteuid", lambda: pod["securityContext"]["runAsUser"])
        monkeypatch.setattr(os, "getgroups", lambda: [group])
        volumes = {one["name"]: one for one in pod.get("volumes", ())}
        for container in pod["containers"]:
            files = [one["value"] for one in container["env"] if one["name"].endswith("KEY_FILE")]
            mounts = {one["mountPath"]: one["name"] for one in container.get("volumeMounts", ())}
            assert bool(files) == (manifest["metadata"]["name"] == "audit-sealer")
            for file in files:
                mode = volumes[mounts[str(Path(file).parent)]]["secret"].get("defaultMode", 0o644)
                facts = os.stat_result((stat.S_IFREG | mode, 0, 0, 1, 0, group, 1, 0, 0, 0))
                assert is_private(facts)

    def test_the_application_has_time_to_stop(self):
        """Longer than delivery may take."""
        (app,) = (one for one in manifests() if one["kind"] == "StatefulSet")
        assert pod_of(app)["terminationGracePeriodSeconds"] > AuditConfig().shutdown_timeout


def said_in_code() -> str:
    """All text of the code; literals over several lines are one."""
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "exporters").rglob("*.py")]
    text = "\n".join(file.read_text() for file in files)
    return re.sub(r'"\n\s*f?"', "", text)


class TestTroubleshooting:
    def test_every_message_is_one_of_ours(self):
        """Nobody looks for a message that is not printed any more."""
        page = (ROOT / "docs" / "troubleshooting.md").read_text()
        table = page[page.index("## By message") : page.index("Two of these messages")]
        messages = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
        assert len(messages) > 12
        code = said_in_code()
        assert [message for message in messages if message not in code] == []
