"""One record's proof: what holds, and which of all things does not."""

from __future__ import annotations

import uuid

import asyncpg
import pytest
from ledger_store import Administrator
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.checkpoints import read_checkpoint, signed
from otel_audit_postgres.ledger.keys import generate
from otel_audit_postgres.ledger.record_proof import check_record
from otel_audit_postgres.ledger.tree_cache import TreeCache
from otel_audit_postgres.query import queries

from otel_audit.record import Tenant


@pytest.fixture
async def sealed(log):
    """The ids of a log of three blocks, 700 leaves."""
    ids = []
    for count in (300, 255, 145):
        ids += await log.write(count, tenant=Tenant(id="t"))
        await log.seal()
    return [uuid.UUID(one) for one in ids]


@pytest.fixture
async def administrator(log):
    connection = await asyncpg.connect(log.dsn)
    yield Administrator(connection)
    await connection.close()


async def proof(log, record_id, cache=None):
    async with queries.opened(log.dsn) as connection, connection.transaction():
        return await check_record(
            connection, record_id, "t", cache or TreeCache(), [log.key.public]
        )


async def last_note(administrator):
    return await administrator.connection.fetchval(
        "SELECT note FROM audit.ledger_checkpoints ORDER BY size DESC LIMIT 1"
    )


async def put_note(administrator, note):
    await administrator.does("UPDATE audit.ledger_checkpoints SET note = $1 WHERE size = 700", note)


async def test_each_record_is_verified(log, sealed):
    """At the edges of blocks and of the groups in which the tree is kept."""
    cache = TreeCache()
    for place in (0, 255, 256, 299, 300, 511, 512, 554, 555, 699):
        found = await proof(log, sealed[place], cache)
        assert (found.state, found.signers) == ("verified", (log.key.name,))


async def test_a_checkpoint_that_cannot_be_read(log, sealed, administrator):
    """It says that the checkpoint is at fault, and how."""
    await put_note(administrator, "nothing of the kind")
    found = await proof(log, sealed[5])
    assert found.state == "tampered"
    assert "last checkpoint cannot be read: not a signed note" in found.detail


async def test_a_signature_that_does_not_hold(log, sealed, administrator):
    """Our key's name and id under what somebody else has signed."""
    note = await last_note(administrator)
    text, _, line = note.rpartition("\n\n")
    flipped = line[:-8] + ("A" if line[-8] != "A" else "B") + line[-7:]
    await put_note(administrator, f"{text}\n\n{flipped}")
    found = await proof(log, sealed[5])
    assert found.state == "tampered"
    assert f"a signature in the name of {log.key.name} does not hold" in found.detail


async def test_a_checkpoint_of_somebody_elses_key(log, sealed, administrator):
    """Everything holds but for who signed: sealed, and not verified."""
    checkpoint = read_checkpoint(await last_note(administrator))
    await put_note(administrator, signed(checkpoint, [generate("else.example/log")]))
    found = await proof(log, sealed[5])
    assert (found.state, found.signers) == ("sealed", ())


async def test_another_root(log, sealed, administrator):
    """Another leaf was changed: this record is not blamed for it."""
    await administrator.does(
        "UPDATE audit.ledger_blocks SET hashes = overlay(hashes PLACING $1 FROM 1) WHERE first = 300",
        b"x" * 32,
    )
    found = await proof(log, sealed[5])
    assert found.state == "tampered"
    assert found.detail.startswith("the record is what was recorded, but the log's leaves")


async def test_leaves_that_are_missing(log, sealed, administrator):
    """A hole in the log is no fault of a record beside it."""
    await administrator.does("DELETE FROM audit.ledger_blocks WHERE first = 300")
    found = await proof(log, sealed[5])
    assert found.state == "tampered"
    assert found.detail.startswith("the record is what was recorded, but leaves of the log")


async def test_a_log_without_checkpoints(log, sealed, administrator):
    """Neither all of them nor the last may be taken away."""
    await administrator.does("DELETE FROM audit.ledger_checkpoints WHERE size > 300")
    found = await proof(log, sealed[600])
    assert found.state == "tampered"
    assert "knows 300 leaves, and this one is behind" in found.detail
    await administrator.does("DELETE FROM audit.ledger_checkpoints")
    assert (await proof(log, sealed[5])).detail == "the log has leaves, and no checkpoint"


async def test_an_error_that_is_none_of_these_is_not_called_tampering(log, sealed, monkeypatch):
    """What goes wrong in this process says nothing about the record."""

    async def broken(*_):
        raise ValueError("of our own")

    monkeypatch.setattr(TreeCache, "proof", broken)
    with pytest.raises(ValueError, match="of our own"):
        await proof(log, sealed[5])


async def test_a_record_that_was_inserted_malformed_is_not_tampered_with(
    log, sealed, administrator
):
    """Whoever may insert can insert false columns: that is said, before and after the seal."""
    (made,) = await log.write(1, tenant=Tenant(id="t"))
    await log.seal()
    record_id = uuid.UUID(int=uuid.UUID(made).int + 1)
    await administrator.connection.execute(
        "INSERT INTO audit.audit_logs SELECT (jsonb_populate_record(l, jsonb_build_object("
        "'id', $2::text, 'actor_id', 'zed'))).* FROM audit.audit_logs l WHERE id = $1",
        made, str(record_id),
    )  # fmt: skip
    found = await proof(log, record_id)
    assert (found.state, "actor_id" in found.malformed) == ("waiting", True)

    await log.seal()
    found = await proof(log, record_id)
    assert (found.state, "actor_id" in found.malformed) == ("verified", True)

    await administrator.does(
        "UPDATE audit.audit_logs SET actor_id = 'another' WHERE id = $1", record_id
    )
    assert (await proof(log, record_id)).state == "tampered"


async def test_a_tree_that_is_not_the_logs_any_more_is_read_again(log, sealed):
    """The store was restored to another log of the same length: the record is not blamed."""
    cache = TreeCache()
    cache._append_leaves(b"x" * 32 * 700)
    assert (await proof(log, sealed[5], cache)).state == "verified"


async def test_a_shorter_log_than_the_tree_knows(log, sealed):
    """The store was restored to an earlier log: the tree's end is of no record there."""
    cache = TreeCache()
    cache._append_leaves(b"x" * 32 * 900)
    assert (await proof(log, sealed[5], cache)).state == "verified"


async def test_a_log_with_a_changed_leaf_is_not_read_for_each_proof(
    log, sealed, administrator, monkeypatch
):
    """Twice at most: a tree that is read anew for the same checkpoint is the same."""
    await administrator.does(
        "UPDATE audit.ledger_blocks SET hashes = overlay(hashes PLACING $1 FROM 1) WHERE first = 300",
        b"x" * 32,
    )
    cache, begun = TreeCache(), 0
    pieces = ledger_queries.pieces

    def counted(connection, since=0, *rest, **options):
        nonlocal begun
        begun += since == 0 and not rest
        return pieces(connection, since, *rest, **options)

    monkeypatch.setattr(ledger_queries, "pieces", counted)
    for place in (5, 6, 7, 8):
        assert (await proof(log, sealed[place], cache)).state == "tampered"
    assert begun == 2
