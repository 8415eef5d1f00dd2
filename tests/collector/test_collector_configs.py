"""The files of collector-config/: what the Collector says of them, and what none of them may do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from collector.collectors import CONFIGURATIONS, REPOSITORY, make_certificates

TIERS = {
    "agent.yaml": ("agent.yaml",),
    "gateway.yaml": ("gateway.yaml",),
    "tail-sampling.yaml": ("gateway.yaml", "tail-sampling.yaml"),
    "loadbalancing.yaml": ("loadbalancing.yaml",),
    "kafka.yaml": ("kafka.yaml",),
    "kafka-to-sink.yaml": ("kafka-to-sink.yaml",),
    "siem.yaml": ("siem.yaml",),
}
"""Each file, and those that it is run with."""

FORKS = ("agent.yaml", "gateway.yaml", "kafka.yaml")
QUEUES = ("agent.yaml", "gateway.yaml", "kafka.yaml", "loadbalancing.yaml")

MANIFEST = "builder-config.yaml"
MODULES = {
    "filestorage": "file_storage",
    "bearertokenauthextension": "bearertokenauth",
    "healthcheckextension": "health_check",
    "otlpreceiver": "otlp",
    "kafkareceiver": "kafka",
    "memorylimiterprocessor": "memory_limiter",
    "filterprocessor": "filter",
    "attributesprocessor": "attributes",
    "tailsamplingprocessor": "tail_sampling",
    "otlphttpexporter": "otlp_http",
    "loadbalancingexporter": "load_balancing",
    "kafkaexporter": "kafka",
    "splunkhecexporter": "splunk_hec",
    "elasticsearchexporter": "elasticsearch",
    "fileexporter": "file",
}


def load(name: str) -> dict:
    return yaml.safe_load((CONFIGURATIONS / name).read_text())


def audit_exporter(name: str) -> dict:
    found = load(name)
    (exporter,) = found["service"]["pipelines"]["traces/audit"]["exporters"]
    return found["exporters"][exporter]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """All that the files ask for."""
    token = tmp_path / "token"
    token.write_text("otas_x\n")
    return {
        **make_certificates(tmp_path).environment(),
        "AUDIT_QUEUE_DIR": str(tmp_path / "queue"),
        "AUDIT_GATEWAY_ENDPOINT": "https://gateway:4319",
        "AUDIT_SINK_ENDPOINT": "https://sink:4318",
        "AUDIT_SINK_TOKEN_FILE": str(token),
        "TRACES_ENDPOINT": "http://backend:4318",
        "AUDIT_GATEWAYS": "[gateway-1:4320, gateway-2:4320]",
        "TRACES_GATEWAYS": "[gateway-1:4317, gateway-2:4317]",
        "AUDIT_KAFKA_BROKERS": "[kafka-1:9092, kafka-2:9092]",
        "SPLUNK_HEC_ENDPOINT": "https://splunk:8088/services/collector",
        "SPLUNK_HEC_TOKEN": "a token",
        "SIEM_FILE": str(tmp_path / "siem.json"),
        "ELASTICSEARCH_ENDPOINT": "https://elasticsearch:9200",
    }


@pytest.mark.collector
class TestTheCollectorItself:
    @pytest.mark.parametrize("name", TIERS)
    def test_takes_each_file(self, name, binary, environment):
        """Its own `validate` has nothing to say."""
        done = validate(binary, TIERS[name], environment)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")

    def test_names_what_is_missing(self, binary, environment):
        """A forgotten variable is an error at the start, not silence."""
        del environment["AUDIT_SINK_ENDPOINT"]
        done = validate(binary, ("gateway.yaml",), environment)
        assert done.returncode != 0
        assert "otlp_http/audit" in done.stderr
        assert "endpoint must be specified" in done.stderr

    def test_has_exactly_the_components_of_the_manifest(self, binary):
        """It is the one of this manifest, not of some other."""
        command = [str(binary), "components"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        told = yaml.safe_load(done.stdout)
        built = {
            component["module"]
            for kind in ("extensions", "receivers", "processors", "exporters")
            for component in told[kind]
        }
        assert built == {
            line["gomod"]
            for kind in ("extensions", "receivers", "processors", "exporters")
            for line in load(MANIFEST)[kind]
        }


def validate(
    binary: Path, files: tuple[str, ...], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    command = [str(binary), "validate"]
    for file in files:
        command += ["--config", str(CONFIGURATIONS / file)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


class TestTheManifest:
    def test_names_exactly_what_the_files_use(self):
        """Nothing is built that no file uses, nothing used that is not built."""
        used = {
            (kind, component.partition("/")[0])
            for name in TIERS
            for kind in ("extensions", "receivers", "processors", "exporters")
            for component in load(name).get(kind, ())
        }
        built = {
            (kind, MODULES[line["gomod"].split()[0].rpartition("/")[2]])
            for kind in ("extensions", "receivers", "processors", "exporters")
            for line in load(MANIFEST)[kind]
        }
        assert built == used

    def test_pins_one_version(self):
        """Modules of different versions do not build, or build something odd."""
        lines = [
            line["gomod"].split()[1]
            for kind in ("extensions", "receivers", "processors", "exporters")
            for line in load(MANIFEST)[kind]
        ]
        whole = f"v{load(MANIFEST)['dist']['version']}"
        behind = {
            line["gomod"] for line in load(MANIFEST)["exporters"] if whole not in line["gomod"]
        }
        # not every mirror of the Go modules has the newest of these
        assert {line.rpartition("/")[2] for line in behind} <= {
            "splunkhecexporter v0.157.0",
            "elasticsearchexporter v0.156.0",
        }
        assert set(lines) - {line.split()[1] for line in behind} == {whole}


class TestNoFileMayLoseARecord:
    @pytest.mark.parametrize("exporter", ["splunk_hec/audit", "kafka/audit", "elasticsearch/audit"])
    def test_what_a_stream_sends_waits_on_disk_for_as_long_as_it_takes(self, exporter):
        """In order, too: one consumer. Each setting of these has a default that loses."""
        found = load("siem.yaml")
        queue = found["exporters"][exporter]["sending_queue"]
        assert queue["storage"] == "file_storage/audit"
        assert (queue["block_on_overflow"], queue["num_consumers"]) == (True, 1)
        if exporter != "elasticsearch/audit":
            assert found["exporters"][exporter]["retry_on_failure"]["max_elapsed_time"] == 0
        assert found["extensions"]["file_storage/audit"]["fsync"] is True
        assert found["service"]["pipelines"]["logs/audit"]["processors"] == ["memory_limiter"]

    def test_elasticsearch_is_asked_until_it_answers(self):
        """Its exporter has retries of its own, and gives up by default."""
        exporter = load("siem.yaml")["exporters"]["elasticsearch/audit"]
        assert exporter["timeout"] == "0s"
        assert exporter["retry"]["max_retries"] >= 1_000_000
        assert {429, 500, 502, 503, 504} <= set(exporter["retry"]["retry_on_status"])
        assert exporter["logs_dynamic_id"]["enabled"] is True

    @pytest.mark.parametrize("name", TIERS)
    def test_the_audit_pipeline_has_no_processor_that_drops_or_answers_early(self, name):
        """Only the fork itself and the guard of the memory."""
        pipelines = load(name)["service"]["pipelines"]
        processors = pipelines.get("traces/audit", {}).get("processors", [])
        assert set(processors) <= {"memory_limiter", "filter/only-audit"}

    @pytest.mark.parametrize("name", QUEUES)
    def test_the_queue_is_on_disk_never_drops_and_never_gives_up(self, name):
        """Each setting of these has a default that loses."""
        exporter = audit_exporter(name)
        queue, retry = exporter["sending_queue"], exporter["retry_on_failure"]
        assert queue["storage"] == "file_storage/audit"
        assert queue["block_on_overflow"] is True
        assert "max_size" not in queue["batch"]
        assert retry["max_elapsed_time"] == 0
        storage = load(name)["extensions"]["file_storage/audit"]
        assert storage["fsync"] is True
        assert storage["recreate"] is False

    def test_behind_kafka_nothing_answers_before_the_sink(self):
        """No queue, and the offset moves only after success."""
        reader = load("kafka-to-sink.yaml")
        exporter = reader["exporters"]["otlp_http/audit"]
        assert exporter["sending_queue"] == {"enabled": False}
        receiver = reader["receivers"]["kafka/audit"]
        marking = receiver["message_marking"]
        assert marking == {"after": True, "on_error": False, "on_permanent_error": False}
        assert receiver["autocommit"] == {"enable": False}
        assert receiver["error_backoff"]["max_elapsed_time"] == 0
        assert load("kafka.yaml")["exporters"]["kafka/audit"]["producer"]["required_acks"] == "all"

    @pytest.mark.parametrize("name", ["gateway.yaml", "kafka-to-sink.yaml"])
    def test_the_sink_is_asked_to_refuse_a_token_for_now_only(self, name):
        """A Collector drops what is answered 401."""
        assert audit_exporter(name)["headers"] == {"X-Otel-Audit-Refusal": "retry"}

    def test_each_tier_takes_more_than_the_one_before_it_sends(self):
        """Else a request would be refused for its size behind a queue, and dropped."""
        agent, gateway, balancer, kafka = (
            largest(name)
            for name in ("agent.yaml", "gateway.yaml", "loadbalancing.yaml", "kafka.yaml")
        )
        from otel_audit.config import AuditConfig

        sink = AuditConfig(dsn="postgresql://x/y").serve_max_body_bytes
        topic = load("kafka.yaml")["exporters"]["kafka/audit"]["producer"]["max_message_bytes"]
        gathered = 262_144
        assert agent + gathered < balancer
        assert balancer + gathered < gateway
        assert agent + gathered < kafka
        assert kafka + gathered < topic <= sink
        assert gateway + gathered < sink

    @pytest.mark.parametrize("name", FORKS)
    def test_every_fork_is_the_same(self, name):
        """What goes to the traces does not depend on the tier that forks."""
        found = load(name)
        pipelines = found["service"]["pipelines"]
        assert pipelines["traces"]["processors"] == [
            *("memory_limiter", "filter/no-carriers", "attributes/no-payload")
        ]
        for processor in ("filter/only-audit", "filter/no-carriers", "attributes/no-payload"):
            assert found["processors"][processor] == load("agent.yaml")["processors"][processor]

    def test_tail_sampling_stands_in_the_traces_pipeline_alone(self):
        """It keeps or drops whole traces."""
        overlay = load("tail-sampling.yaml")["service"]["pipelines"]
        assert list(overlay) == ["traces"]
        before = load("gateway.yaml")["service"]["pipelines"]["traces"]["processors"]
        assert overlay["traces"]["processors"] == [*before, "tail_sampling"]


def largest(name: str) -> int:
    """Bytes that the smallest of a file's audit receivers takes."""
    found = load(name)
    protocols = [
        found["receivers"][receiver]["protocols"]
        for receiver in found["service"]["pipelines"]["traces/audit"]["receivers"]
    ]
    sizes = [one["http"]["max_request_body_size"] for one in protocols]
    sizes += [one["grpc"]["max_recv_msg_size_mib"] << 20 for one in protocols if "grpc" in one]
    return min(sizes)


@pytest.mark.parametrize("name", [*TIERS, MANIFEST])
def test_no_secret_stands_in_a_file(name):
    """Tokens and keys are named by variables, which name files."""
    for line in (CONFIGURATIONS / name).read_text().splitlines():
        setting = re.match(r"\s*(token|password|key_file|filename)\s*:\s*(\S+)", line)
        assert setting is None or setting[2].startswith("${env:"), line


def test_every_variable_that_must_be_set_is_explained():
    """Where a file needs a variable, its head, or that of the file it refers to, says what for."""
    for name in TIERS:
        text = (CONFIGURATIONS / name).read_text()
        head = text.partition("\n\n")[0] + (CONFIGURATIONS / "gateway.yaml").read_text()[:2_500]
        for variable in re.findall(r"\$\{env:(\w+)\}", text):
            assert variable in head, (name, variable)


def test_the_readme_speaks_of_every_file():
    """Else nobody knows when to take it."""
    readme = (CONFIGURATIONS / "README.md").read_text()
    for path in CONFIGURATIONS.iterdir():
        if path.name != "README.md":
            assert path.name in readme
    assert (REPOSITORY / ".ci" / "collector").stat().st_mode & 0o111


def test_the_readme_promises_nothing_that_no_test_tries():
    """Each test that it names is there."""
    readme = (CONFIGURATIONS / "README.md").read_text()
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", readme))
    assert len(named) > 15
    for name in named:
        assert f"def {name}(" in tests, name
