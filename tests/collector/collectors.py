"""Real Collectors, sinks and certificates on the loopback interface."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import httpx
import preloaded
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from ports import free_port

REPOSITORY = Path(__file__).parents[2]
CONFIGURATIONS = REPOSITORY / "collector-config"
BIN = Path(sys.executable).parent


@dataclass
class Certificates:
    """Files of one authority and one certificate by it, good for servers and clients alike."""

    authority: Path
    certificate: Path
    key: Path

    def environment(self) -> dict[str, str]:
        return {
            "AUDIT_TLS_CA_FILE": str(self.authority),
            "AUDIT_TLS_CERT_FILE": str(self.certificate),
            "AUDIT_TLS_KEY_FILE": str(self.key),
        }


def make_certificates(directory: Path, name: str = "collector") -> Certificates:
    """Make an authority of its own and a certificate for 127.0.0.1."""
    directory.mkdir(parents=True, exist_ok=True)
    now = dt.datetime.now(dt.UTC)

    def build(subject: str, issuer: str, key: Any, signer: Any, *, authority: bool) -> Any:
        addresses = [x509.IPAddress(IPv4Address("127.0.0.1")), x509.DNSName("localhost")]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
            .sign(signer, hashes.SHA256())
        )

    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    files = Certificates(
        directory / f"{name}-ca.pem", directory / f"{name}.pem", directory / f"{name}.key"
    )
    pem = serialization.Encoding.PEM
    authority = build("authority", "authority", authority_key, authority_key, authority=True)
    files.authority.write_bytes(authority.public_bytes(pem))
    issued = build(name, "authority", key, authority_key, authority=False)
    files.certificate.write_bytes(issued.public_bytes(pem))
    files.key.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    files.key.chmod(0o600)
    return files


@dataclass
class Process:
    """A server that can be killed and started again, on the same ports, with the same files."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    directory: Path
    up_at: str
    process: subprocess.Popen[bytes] | preloaded.Process | None = None

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def start(self, *, wait: bool = True) -> None:
        # the interpreter's own directory first, and nothing of this test run's OTEL_*
        clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
        self.process = self._launch({**clean, **self.environment})
        if wait:
            self.wait_until_up()

    def _launch(self, environment: dict[str, str]) -> subprocess.Popen[bytes] | preloaded.Process:
        with self.log.open("ab") as output:
            return subprocess.Popen(
                self.command,
                env=environment,
                cwd=self.directory,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_until_up(self, timeout: float = 40.0) -> None:
        assert self.process is not None
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(
                    f"{self.name} ended with {self.process.returncode}:\n{self.output}"
                )
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.up_at, timeout=2).status_code == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(f"{self.name} not up in {timeout} s:\n{self.output}")

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout: float = 120.0) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def restart(self, how: signal.Signals = signal.SIGKILL) -> None:
        self.stop(how)
        self.start()


@dataclass
class Sink(Process):
    """`otel-audit serve`."""

    url: str = ""

    def _launch(self, environment: dict[str, str]) -> preloaded.Process:
        return preloaded.Process(self.command, env=environment, cwd=self.directory, stdout=self.log)

    def for_collectors(self) -> dict[str, str]:
        """What the files ask for that send to it."""
        return {
            "AUDIT_SINK_ENDPOINT": self.url,
            "AUDIT_SINK_TOKEN_FILE": str(self.directory / "sink.token"),
        }


def serving(store: str, directory: Path, name: str = "sink") -> Sink:
    """Describe a sink, and make the token that it takes; it is not started."""
    tokens, token = directory / "tokens.toml", directory / "sink.token"
    if not token.exists():
        made = preloaded.run("serve", "token", "new", "gateway", "--file", str(tokens))
        assert made.returncode == 0, made.stderr
        token.write_text(made.stdout)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    return Sink(
        name,
        ["serve", "--port", str(port), "--tokens", str(tokens)],
        {"OTEL_AUDIT_DSN": store, "OTEL_AUDIT_SERVE_RETRY_AFTER": "1", "PATH": os.environ["PATH"]},
        directory,
        f"{url}/health",
        url=url,
    )


@contextlib.contextmanager
def running(*processes: Process) -> Iterator[None]:
    """Start processes, all at once, and leave none behind."""
    try:
        for process in processes:
            process.start(wait=False)
        for process in processes:
            process.wait_until_up()
        yield
    finally:
        for process in processes:
            if process.process is not None and process.process.poll() is None:
                process.process.kill()
                process.process.wait(10)


@dataclass
class Collector(Process):
    """A Collector with files of collector-config/; its ports by the name of their variable."""

    ports: dict[str, int] = field(default_factory=dict)

    def url(self, variable: str, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.ports[variable]}"


def collector(
    binary: Path,
    name: str,
    *,
    files: tuple[str, ...],
    environment: Mapping[str, str],
    directory: Path,
    listen: tuple[str, ...],
) -> Collector:
    """Describe a Collector; it is not started.

    Args:
        binary: The Collector.
        name: What its log and its queue are named after.
        files: Names of files in collector-config/, later ones laid over earlier ones.
        environment: What the files ask for.
        directory: For its queue and log.
        listen: Variables that say where it listens; the one that ends in HEALTH tells that it is
            up, one that ends in METRICS_PORT has the port alone.
    """
    ports = {variable: free_port() for variable in listen}
    addresses = {
        variable: str(port) if variable.endswith("_PORT") else f"127.0.0.1:{port}"
        for variable, port in ports.items()
    }
    health = next(variable for variable in listen if variable.endswith("_HEALTH"))
    command = [str(binary)]
    for file in files:
        command += ["--config", str(CONFIGURATIONS / file)]
    return Collector(
        name,
        command,
        {
            "AUDIT_QUEUE_DIR": str(directory / f"{name}-queue"),
            "PATH": os.environ["PATH"],
            **addresses,
            **environment,
        },
        directory,
        f"http://127.0.0.1:{ports[health]}/",
        ports=ports,
    )


AGENT = ("AGENT_GRPC", "AGENT_HTTP", "AGENT_HEALTH", "AGENT_METRICS_PORT")
GATEWAY = (
    "GATEWAY_GRPC",
    "GATEWAY_HTTP",
    "GATEWAY_AUDIT_HTTP",
    "GATEWAY_AUDIT_GRPC",
    "GATEWAY_HEALTH",
    "GATEWAY_METRICS_PORT",
)
BALANCER = ("BALANCER_HTTP", "BALANCER_AUDIT_HTTP", "BALANCER_HEALTH", "BALANCER_METRICS_PORT")
KAFKA_GATEWAY = ("GATEWAY_HTTP", "GATEWAY_AUDIT_HTTP", "GATEWAY_HEALTH", "GATEWAY_METRICS_PORT")
KAFKA_READER = ("READER_HEALTH", "READER_METRICS_PORT")
