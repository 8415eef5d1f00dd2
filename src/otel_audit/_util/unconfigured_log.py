"""Names us in log messages where logging is not configured: Python prints them without a name."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Final

_NAME: Final = "otel-audit"
_LOGGERS: Final = ("otel_audit", "otel_audit_postgres", "otel_audit_otlp")


class NamedLastResort(logging.Handler):
    """As `logging.lastResort`, with our name before a message that lacks it.

    It prints nothing if any other handler gets the message.
    """

    is_last_resort = True

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message, unless another handler does."""
        resort = logging.lastResort
        if resort is None or record.levelno < resort.level or is_configured(record.name):
            return
        message = record.getMessage()
        if _NAME not in message:
            record = copy.copy(record)
            record.msg, record.args = f"{_NAME}: {message}", None
        resort.handle(record)


def is_configured(name: str) -> bool:
    """Whether a logger's messages reach a handler of the application's."""
    return any(not isinstance(one, NamedLastResort) for one in _handlers(name))


def _handlers(name: str) -> Iterator[logging.Handler]:
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def name_unconfigured_messages() -> None:
    """Print our messages with our name, where logging is not configured."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, NamedLastResort) for one in logger.handlers):
            logger.addHandler(NamedLastResort())
