"""Marked columns without keys: said at the start, and refused where nothing may run unprotected."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette

from otel_audit import AuditConfig
from otel_audit.cli.doctor import _marked
from otel_audit.http import install
from otel_audit.orm.marked_columns import marked_columns, marked_in_clear
from otel_audit.runtime import Runtime

DSN = "postgresql://audit@127.0.0.1:1/audit"
SETTING = "OTEL_AUDIT_KEYS_DSN: not set"


async def started(app):
    """Start an application as a server does; give the first thing it says."""
    told, said = iter(("lifespan.startup", "lifespan.shutdown")), []

    async def receive():
        return {"type": next(told)}

    async def send(message):
        said.append((message["type"], message.get("message", "")))

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return said[0]


@pytest.fixture
def guests():
    """A marked model, for one test: others must not meet it."""

    class Base(DeclarativeBase):
        pass

    class Guest(Base):
        __tablename__ = "guests_of_marks"
        id: Mapped[int] = mapped_column(primary_key=True)
        phone: Mapped[str] = mapped_column(info={"audit": "personal"})
        city: Mapped[str] = mapped_column(info={"audit": "redact"})

    yield
    Base.registry.dispose()
    Base.metadata.clear()


@pytest.fixture
def make_runtime(tmp_path):
    made = []

    def make(**settings):
        made.append(Runtime(AuditConfig(dsn=DSN, spool_dir=tmp_path / "spool", **settings)))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.usefixtures("guests")
class TestMarkedWithoutKeys:
    def test_names_the_column_and_the_setting(self):
        """Each marked column with its table, and no other."""
        assert "guests_of_marks.phone" in marked_columns()
        told = marked_in_clear(AuditConfig(dsn=DSN))
        assert told.startswith(SETTING)
        assert "guests_of_marks.phone" in told
        assert "city" not in told

    @pytest.mark.parametrize(
        "settings",
        [
            {"keys_dsn": "postgresql://keys@127.0.0.1:1/keys"},
            {"dsn": None, "exporter": "otlp", "otlp_endpoint": "http://127.0.0.1:4318"},
            {"dsn": None, "exporter": "console"},
        ],
    )
    def test_is_nothing_where_another_encrypts_or_nothing_is_kept(self, settings):
        """Keys are here, the receiver has them, or records go to the console."""
        assert marked_in_clear(AuditConfig(**{"dsn": DSN, **settings})) is None

    @pytest.mark.parametrize(
        ("settings", "state"),
        [({}, None), ({"required": True}, False), ({"delivery": "strict"}, False),
         ({"keys_dsn": "postgresql://keys@127.0.0.1:1/keys"}, True)],
    )  # fmt: skip
    def test_is_what_doctor_says(self, settings, state):
        """A warning, a failure where the application would not start, or all well."""
        (check,) = _marked(AuditConfig(dsn=DSN, **settings))
        assert (check.name, check.ok) == ("personal columns", state)
        assert check.detail.startswith(SETTING) == (state is not True)

    def test_is_a_warning_at_the_start(self, make_runtime, caplog):
        """Once, with the setting first."""
        make_runtime().report_names()
        (line,) = [one for one in caplog.messages if "guests_of_marks" in one]
        assert line.startswith(SETTING)

    @pytest.mark.parametrize("settings", [{"required": True}, {"delivery": "strict"}])
    async def test_refuses_to_start_where_auditing_must_hold(self, make_runtime, settings, caplog):
        """With `required`, or with strict delivery; the server is told why."""
        app = Starlette()
        with caplog.at_level(logging.CRITICAL):
            install.install(app, make_runtime(**settings))
            kind, message = await started(app)
        install.uninstall(app)
        assert kind == "lifespan.startup.failed"
        assert message.startswith(SETTING)
        assert any(one.startswith(SETTING) for one in caplog.messages)


async def test_models_without_marks_start(make_runtime):
    """Also where auditing must hold: nothing here is marked."""
    app = Starlette()
    runtime = make_runtime(required=True)
    assert runtime.reason_not_to_run is None
    install.install(app, runtime)
    install.uninstall(app)
