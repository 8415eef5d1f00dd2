"""SQLModel, which is SQLAlchemy with Pydantic's models."""

from __future__ import annotations

from typing import Optional

import pytest
from orm_harness import action
from sqlalchemy import create_engine

sqlmodel = pytest.importorskip("sqlmodel")


class Team(sqlmodel.SQLModel, table=True):
    id: Optional[int] = sqlmodel.Field(default=None, primary_key=True)  # noqa: UP045 - read by SQLModel
    name: str
    password: Optional[str] = None  # noqa: UP045 - as above


@pytest.fixture
def engine():
    found = create_engine("sqlite://")
    sqlmodel.SQLModel.metadata.create_all(found, tables=[Team.__table__])
    yield found
    found.dispose()


class TestSqlModel:
    async def test_its_sessions_are_sessions(self, capture, engine):
        """Inserts, updates and deletes, with redaction, as of any mapped class."""
        with action() as scope, sqlmodel.Session(engine, expire_on_commit=False) as session:
            team = Team(name="red", password="hunter2")
            session.add(team)
            session.commit()
            team.name = "blue"
            session.commit()
            session.delete(team)
            session.commit()
        assert [change.operation for change in scope.changes] == ["insert", "update", "delete"]
        assert {change.reference for change in scope.changes} == {"team:1"}
        assert scope.changes[0].values["password"] == [None, "***"]
        assert scope.changes[1].values == {"name": ["red", "blue"]}

    async def test_its_statements(self, capture, engine):
        """`exec` is `execute`."""
        with action() as scope, sqlmodel.Session(engine) as session:
            session.add(Team(name="red"))
            session.flush()
            session.exec(sqlmodel.update(Team).values(name="blue"))
            session.commit()
        assert [(one.kind, one.operation) for one in scope.changes] == [
            ("entity", "insert"),
            ("bulk", "update"),
        ]
