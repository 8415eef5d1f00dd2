"""Connection strings of others: they work, or the parameter is named."""

from __future__ import annotations

import itertools

import pytest

from otel_audit._util.postgres_dsn import plain_dsn, read_dsn
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError

BASE = "postgresql://u:p%40ss@db.example/audit"


class TestSchemes:
    @pytest.mark.parametrize(
        "scheme",
        [
            "postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg",
            "postgresql+psycopg2", "postgresql+psycopg_async", "postgres+asyncpg",
        ],
    )  # fmt: skip
    def test_names_of_drivers_are_left_out(self, scheme):
        """SQLAlchemy's spelling is the same database."""
        assert read_dsn(f"{scheme}://u@h/d").url == "postgresql://u@h/d"
        assert plain_dsn(f"{scheme}://u@h/d") in ("postgresql://u@h/d", "postgres://u@h/d")

    @pytest.mark.parametrize("end", ["\n", " ", "\r\n", " \n"])
    def test_a_blank_around_it_is_no_part_of_it(self, end):
        """Files of secrets often end so; the database's name does not."""
        assert read_dsn(f" {BASE}{end}").url == BASE

    @pytest.mark.parametrize(
        "dsn", ["mysql://u:hunter2@h/d", "host=h password=hunter2", "postgresql://u:hun#ter2@h/d",
                "postgresql://u:hun?ter2@h/d", "postgresql://[hunter2/d", ""],
    )  # fmt: skip
    def test_what_is_none_is_refused_without_its_password(self, dsn):
        """Nothing of it is quoted."""
        with pytest.raises(ValueError, match=r".") as raised:
            read_dsn(dsn)
        assert "ter2" not in str(raised.value)

    @pytest.mark.parametrize(
        ("begin", "odd"),
        [*itertools.product(("hun", "12"), ("/", "?", "#", "@", "/1=")), ("hun", "?x=")],
    )
    def test_a_password_that_is_not_encoded_is_told_how(self, begin, odd):
        """The characters that end it are named with their codes; nothing of it is shown."""
        with pytest.raises(ConfigurationError, match=r"percent-encoded: / is %2F") as raised:
            AuditConfig(dsn=f"postgresql://u:{begin}{odd}ter2@h.example/d")
        assert "ter2" not in str(raised.value)
        assert "OTEL_AUDIT_DSN" in str(raised.value)

    @pytest.mark.parametrize(
        "dsn",
        [
            "postgresql://h/d?user=u@tenant&password=p", "postgresql://h:5432/d?user=u@tenant",
            "postgresql://u:p%40%2F@h1:1,h2:2/d", "postgresql:///d?host=/run/pg&user=u@x",
        ],
    )  # fmt: skip
    def test_an_at_sign_elsewhere_is_none_of_a_password(self, dsn):
        """Azure's users have one, as a parameter's value."""
        assert read_dsn(dsn).url.startswith("postgresql://")


class TestParameters:
    @pytest.mark.parametrize(
        ("query", "kept"),
        [
            ("sslmode=require", "sslmode=require"),
            ("ssl=require", "sslmode=require"),
            ("ssl=false", "sslmode=disable"),
            ("sslmode=require&channel_binding=prefer", "sslmode=require"),
            ("pgbouncer=true&connection_limit=1&schema=public&pool_timeout=5", ""),
            ("sslmode=require&supa=base-pooler.x", "sslmode=require"),
            ("connect_timeout=15&keepalives=1&keepalives_idle=30", ""),
            ("options=endpoint%3Dep-cool-1", "options=endpoint%3Dep-cool-1"),
            ("options=-c%20search_path%3Dx", "options=-c%20search_path%3Dx"),
            ("target_session_attrs=read-write", "target_session_attrs=read-write"),
            ("host=/run/pg&port=5433", "host=%2Frun%2Fpg&port=5433"),
            ("application_name=shop&jit=off", "application_name=shop&jit=off"),
            ("gssencmode=disable&sslsni=1&client_encoding=utf8", ""),
            ("prepared_statement_cache_size=0", ""),
        ],
    )
    def test_each_has_its_meaning(self, query, kept):
        """What asyncpg knows is passed on, what says nothing about one connection is left out."""
        assert read_dsn(f"{BASE}?{query}").url == (f"{BASE}?{kept}" if kept else BASE)

    @pytest.mark.parametrize(
        ("query", "pooled"),
        [
            ("pgbouncer=true", True),
            ("pgbouncer=false", False),
            ("statement_cache_size=0", True),
            ("statement_cache_size=100", False),
            ("prepared_statement_cache_size=0", True),
            ("sslmode=require", False),
        ],
    )
    def test_a_pooler_is_asked_for(self, query, pooled):
        """Prisma's word for it, and those of asyncpg and SQLAlchemy."""
        assert read_dsn(f"{BASE}?{query}").is_pooled is pooled

    def test_the_systems_authorities(self):
        """As libpq has it: with them the host's name is checked."""
        for query in ("sslrootcert=system", "sslmode=verify-full&sslrootcert=system", "ssl=true"):
            found = read_dsn(f"{BASE}?{query}")
            assert found.uses_system_certificates
            assert found.url == BASE

    def test_files_and_times_are_known(self):
        """What is looked for before connecting, and how long that may take."""
        found = read_dsn(f"{BASE}?sslmode=verify-ca&sslrootcert=%2Fx.pem&connect_timeout=7")
        assert found.files == {"sslrootcert": "/x.pem"}
        assert found.connect_timeout == 7
        assert read_dsn(f"{BASE}?connect_timeout=0").connect_timeout is None

    @pytest.mark.parametrize(
        "query",
        [
            "channel_binding=require", "gssencmode=require", "sslmode=hunter2", "sslmode=no-verify",
            "sslrootcert=system&sslmode=require", "sslaccept=strict", "require_auth=scram-sha-256",
            "hostaddr=10.0.0.1", "requirepeer=postgres", "load_balance_hosts=random",
            "connect_timeout=soon", "pgbouncer=maybe", "target_session_attrs=hunter2",
            "replication=database", "client_encoding=latin1", "ssl=hunter2", "timeout=5",
            "statement_cache_size=x", "keepalives_idle=x",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("setting", ["dsn", "outbox_dsn"])
    def test_what_cannot_be_followed_is_refused_by_name(self, query, setting):
        """At configuration, with the name of the setting and the parameter, and no value."""
        with pytest.raises(ConfigurationError) as raised:
            AuditConfig(**{"dsn": BASE, setting: f"{BASE}?{query}"})
        name = query.partition("=")[0]
        assert f"OTEL_AUDIT_{setting.upper()}: parameter {name}:" in str(raised.value)
        assert "hunter2" not in str(raised.value)
