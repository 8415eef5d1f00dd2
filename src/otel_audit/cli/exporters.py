"""Whether opentelemetry-instrument finds the exporters that it would load.

It names them by ``opentelemetry.sdk._configuration``'s rules, after opentelemetry-distro has set
its defaults. One that is not installed ends it before any instrumentation is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Final

_SIGNALS: Final = ("traces", "metrics", "logs")
_BY_PROTOCOL: Final = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


def missing_exporters(environment: Mapping[str, str]) -> Iterator[str]:
    """Look for the exporters that opentelemetry-distro would have loaded.

    Args:
        environment: The variables of the process that would load them.

    Yields:
        For each signal that has one that is missing: the variable, and what it comes to. Nothing
        where opentelemetry-distro is not installed, or is not what chooses the exporters.
    """
    chosen = (environment.get(f"OTEL_PYTHON_{name}", "") for name in ("DISTRO", "CONFIGURATOR"))
    if (
        not entry_points(group="opentelemetry_distro", name="distro")
        or environment.get("OTEL_CONFIG_FILE")
        or any(name not in ("", "distro", "configurator") for name in chosen)
    ):
        return
    for signal in _SIGNALS:
        variable = f"OTEL_{signal.upper()}_EXPORTER"
        named = environment.get(variable, "otlp")
        if not named or named.strip().lower() == "none":
            continue
        for name in named.split(","):
            entry = _entry_point(name.strip(), signal, environment)
            if not entry_points(group=f"opentelemetry_{signal}_exporter", name=entry):
                yield f"{variable}={name.strip()} ({entry})"


def _entry_point(name: str, signal: str, environment: Mapping[str, str]) -> str:
    if name != "otlp":
        return name
    protocol = (
        environment.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL")
        or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        or "grpc"
    ).strip()
    # an unknown protocol is refused as well; it is no entry point's name
    return _BY_PROTOCOL.get(protocol, protocol)
