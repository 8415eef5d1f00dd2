"""A name in a setting that fits no model is said, with what it may be meant for."""

from __future__ import annotations

import pytest
from sqlalchemy import ForeignKey, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from otel_audit import AuditConfig
from otel_audit.orm.unmatched_names import names_nothing
from otel_audit.runtime import Runtime


class Base(DeclarativeBase):
    metadata = MetaData(schema="billing")


class LedgerAccount(Base):
    __tablename__ = "ledger_accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    iban_number: Mapped[str]


class LedgerEntry(Base):
    __tablename__ = "ledger_entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    account: Mapped[int] = mapped_column(ForeignKey(LedgerAccount.id))


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"orm_exclude_models": ("LedgerAcount",)}, "; did you mean LedgerAccount?"),
        ({"orm_include_models": ("Qqqqqq",)}, ""),
        ({"orm_include_tables": ("ledger_acounts",)}, "; did you mean ledger_accounts?"),
        ({"orm_before_images": ("billing.ledger_entry",)}, "; did you mean billing.ledger_entries?"),
        ({"orm_exclude_columns": ("ledger_accounts.iban_numbr",)},
         "; did you mean ledger_accounts.iban_number?"),
        ({"entity_names": {"LedgerAccounts": "account"}}, "; did you mean LedgerAccount?"),
    ],
)  # fmt: skip
def test_a_name_of_nothing_is_found(settings, hint) -> None:
    """A typing mistake would leave what it is about recorded, or not recorded, without a word."""
    ((setting, name, why),) = names_nothing(AuditConfig(**settings))
    (expected,) = settings
    assert setting == expected
    assert name in str(settings[setting])
    assert why.endswith(hint or "is called so")


def test_names_of_something_are_not() -> None:
    """With and without schema and table; a noun in lower case may be a route's."""
    config = AuditConfig(
        orm_exclude_models=("LedgerAccount",),
        orm_include_tables=("ledger_entries", "billing.ledger_accounts"),
        orm_exclude_columns=("iban_number", "billing.ledger_accounts.iban_number"),
        entity_names={"LedgerEntry": "entry", "meal": "dish"},
    )
    assert list(names_nothing(config)) == []


def test_it_is_logged_when_the_application_has_started(caplog) -> None:
    """Once, naming the setting as it is written in the environment."""
    runtime = Runtime(
        AuditConfig(exporter="none", enabled=True, orm_exclude_models=("LedgerEntri",))
    )
    runtime.report_names()
    runtime.close()
    (line,) = [one for one in caplog.messages if "LedgerEntri" in one]
    assert line.startswith("OTEL_AUDIT_ORM_EXCLUDE_MODELS: LedgerEntri: no mapped class")
