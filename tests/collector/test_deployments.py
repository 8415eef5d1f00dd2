"""docker-compose.yaml and the Kubernetes manifests: what they start has what it needs."""

from __future__ import annotations

import re
import subprocess
from itertools import chain
from pathlib import Path

import httpx
import pytest
import yaml
from collector.collectors import BIN, CONFIGURATIONS

MANIFESTS = sorted((CONFIGURATIONS / "kubernetes").glob("*.yaml"))
VERSION = yaml.safe_load((CONFIGURATIONS / "builder-config.yaml").read_text())["dist"]["version"]


def documents(path: Path) -> list[dict]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def compose() -> dict:
    return yaml.safe_load((CONFIGURATIONS / "docker-compose.yaml").read_text())


def needed(files: list[str]) -> set[str]:
    """Variables without a default in Collector files."""
    text = "".join((CONFIGURATIONS / Path(file).name).read_text() for file in files)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return set(re.findall(r"\$\{env:(\w+)\}", "\n".join(lines)))


def pods() -> list[tuple[str, dict]]:
    found = chain.from_iterable(documents(path) for path in MANIFESTS)
    return [
        (one["metadata"]["name"], one["spec"]["template"]["spec"])
        for one in found
        if one["kind"] in ("Deployment", "StatefulSet")
    ]


def containers(pod: dict) -> list[dict]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def collectors_of(pod: dict) -> list[dict]:
    return [one for one in containers(pod) if "opentelemetry-collector" in one["image"]]


class TestKubernetes:
    @pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
    def test_every_manifest_fits_its_schema(self, path):
        """As Kubernetes itself would say."""
        validator = pytest.importorskip(
            "kubernetes_validate", reason="pip install kubernetes-validate"
        )
        for one in documents(path):
            if "opentelemetry.io" not in one["apiVersion"]:  # the operator's own kind
                validator.validate(one, "1.34", strict=True)

    @pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
    def test_every_manifest_names_what_it_is(self, path):
        for one in documents(path):
            assert {"apiVersion", "kind", "metadata", "spec"} <= one.keys()
            assert one["metadata"]["namespace"] in ("audit", "shop")

    def test_every_collector_has_all_it_asks_for(self):
        """Each variable without a default is set, and the file it runs is mounted."""
        seen = []
        for _, pod in pods():
            for container in collectors_of(pod):
                files = [one.removeprefix("--config=") for one in container["args"]]
                assert needed(files) <= {one["name"] for one in container["env"]}
                assert container["image"].endswith(f":{VERSION}")
                seen += [Path(file).name for file in files]
        assert sorted(seen) == ["agent.yaml", "gateway.yaml"]

    def test_every_queue_and_spool_is_on_a_volume_that_outlives_its_pod(self):
        """Else what was acknowledged goes with the pod."""
        for path in MANIFESTS:
            for one in documents(path):
                if one["kind"] == "Deployment":
                    assert not collectors_of(one["spec"]["template"]["spec"])
                if one["kind"] != "StatefulSet":
                    continue
                claims = {
                    claim["metadata"]["name"] for claim in one["spec"]["volumeClaimTemplates"]
                }
                keep = one["spec"]["persistentVolumeClaimRetentionPolicy"]
                assert set(keep.values()) == {"Retain"}
                for container in containers(one["spec"]["template"]["spec"]):
                    kept = [
                        variable["value"]
                        for variable in container["env"]
                        if variable["name"] in ("AUDIT_QUEUE_DIR", "OTEL_AUDIT_SPOOL_DIR")
                    ]
                    assert len(kept) == 1
                    mounts = {
                        mount["mountPath"]
                        for mount in container["volumeMounts"]
                        if mount["name"] in claims
                    }
                    assert any(kept[0].startswith(f"{mount}/") for mount in mounts)

    def test_every_mounted_volume_is_there(self):
        found = chain.from_iterable(documents(path) for path in MANIFESTS)
        for one in found:
            if one["kind"] not in ("Deployment", "StatefulSet"):
                continue
            pod = one["spec"]["template"]["spec"]
            there = {volume["name"] for volume in pod.get("volumes", [])}
            there |= {c["metadata"]["name"] for c in one["spec"].get("volumeClaimTemplates", [])}
            for container in containers(pod):
                assert {mount["name"] for mount in container["volumeMounts"]} <= there

    def test_the_operator_injects_our_plugin_with_settings_that_exist(self):
        """A setting that does not exist would keep the application from starting."""
        from otel_audit.config import AuditConfig

        (instrumentation,) = documents(CONFIGURATIONS / "kubernetes" / "instrumentation.yaml")
        settings = {
            one["name"].removeprefix("OTEL_AUDIT_").lower(): one["value"]
            for one in instrumentation["spec"]["python"]["env"]
            if one["name"].startswith("OTEL_AUDIT_")
        }
        config = AuditConfig(**settings)
        assert config.active
        assert config.required
        shop = next(pod for name, pod in pods() if name == "shop")
        assert shop["initContainers"][0]["restartPolicy"] == "Always"


class TestCompose:
    def test_every_collector_has_all_it_asks_for(self):
        seen = []
        for service in compose()["services"].values():
            if "opentelemetry-collector" not in service.get("image", ""):
                continue
            files = service["command"].replace("--config", "").split()
            assert needed(files) <= service["environment"].keys()
            mounted = {volume.split(":")[1] for volume in service["volumes"]}
            assert set(files) <= mounted
            assert "/var/lib/otel-audit-collector" in mounted
            assert service["image"].endswith(f":{VERSION}")
            seen += [Path(file).name for file in files]
        assert sorted(seen) == ["agent.yaml", "gateway.yaml", "tail-sampling.yaml"]

    def test_every_file_and_volume_is_there(self):
        found = compose()
        for service in found["services"].values():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("."):
                    assert (CONFIGURATIONS / source).exists()
                else:
                    assert source in found["volumes"]
            for config in service.get("configs", []):
                assert config["source"] in found["configs"]
            for other in service.get("depends_on", []):
                assert other in found["services"]
            build = service.get("build", {})
            if "dockerfile" in build:
                assert (CONFIGURATIONS / build["context"] / build["dockerfile"]).exists()

    async def test_its_application_runs(self):
        """The one that stands in it."""
        source: dict = {}
        exec(compose()["configs"]["app"]["content"], source)
        transport = httpx.ASGITransport(source["app"])
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            assert (await client.post("/orders", json={"item": "tea"})).status_code == 201


def test_the_credentials_are_made_once_and_fit(tmp_path):
    """The script that docker-compose.yaml runs."""
    command = ["sh", str(CONFIGURATIONS / "make-credentials.sh"), str(tmp_path / "run"), "gateway"]
    environment = {"PATH": f"{BIN}:/usr/bin:/bin"}
    for _ in range(2):
        subprocess.run(command, check=True, capture_output=True, env=environment)
    made = tmp_path / "run"
    assert {path.name for path in made.iterdir()} == {
        *("ca.pem", "ca.srl", "tls.pem", "tls.key", "tokens.toml", "sink.token")
    }
    check = ["openssl", "verify", "-CAfile", "ca.pem", "-verify_hostname", "gateway", "tls.pem"]
    subprocess.run(check, check=True, capture_output=True, cwd=made)
    assert (made / "sink.token").read_text().startswith("otas_")
    assert (made / "tokens.toml").read_text().count("[[token]]") == 1
