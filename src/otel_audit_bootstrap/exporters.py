"""Whether opentelemetry-instrument finds the exporters that it would load.

It names them by ``opentelemetry.sdk._configuration``'s rules, after opentelemetry-distro has set
its defaults. One that is not installed ends it before any instrumentation is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Final, NamedTuple

_SIGNALS: Final = ("traces", "metrics", "logs")
_BY_PROTOCOL: Final = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


class Missing(NamedTuple):
    """An exporter that is named, and not installed.

    Attributes:
        variable: What names it.
        name: By what name.
        entry: The entry point that this comes to.
    """

    variable: str
    name: str
    entry: str

    def __str__(self) -> str:
        return f"{self.variable}={self.name} ({self.entry})"


def missing_exporters(environment: Mapping[str, str]) -> Iterator[Missing]:
    """Look for the exporters that opentelemetry-distro would have loaded.

    Args:
        environment: The variables of the process that would load them.

    Yields:
        For each signal those that are missing. Nothing
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
        named = environment.get(_variable(signal), "otlp")
        if not named or named.strip().lower() == "none":
            continue
        for name in named.split(","):
            entry = _entry_point(name.strip(), signal, environment)
            if not entry_points(group=f"opentelemetry_{signal}_exporter", name=entry):
                yield Missing(_variable(signal), name.strip(), entry)


def without_missing(environment: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Choose exporters so that all of them can be loaded.

    Args:
        environment: The variables of the process that would load them.

    Returns:
        The variables to set: what is there stays, and ``none`` where nothing is. And a line that
        says what was left out; empty where nothing is missing.
    """
    missing = list(missing_exporters(environment))
    chosen = {}
    for variable in dict.fromkeys(one.variable for one in missing):
        gone = {one.name for one in missing if one.variable == variable}
        named = [name.strip() for name in environment.get(variable, "otlp").split(",")]
        chosen[variable] = ",".join(name for name in named if name not in gone) or "none"
    if not missing:
        return {}, ""
    entries = ", ".join(dict.fromkeys(one.entry for one in missing))
    settings = ", ".join(f"{variable}={value}" for variable, value in chosen.items())
    return chosen, f"no package for the exporter {entries}, so this is set: {settings}"


def _variable(signal: str) -> str:
    return f"OTEL_{signal.upper()}_EXPORTER"


def _entry_point(name: str, signal: str, environment: Mapping[str, str]) -> str:
    if name != "otlp":
        return name
    protocol = (
        environment.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL")
        or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        or "grpc"
    ).strip()
    # an unknown protocol is refused as well; it is not an entry point's name
    return _BY_PROTOCOL.get(protocol, protocol)
