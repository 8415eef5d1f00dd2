"""Streams on a real store: everything once, in order, whatever the destination does."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import secrets
import ssl
import uuid

import asyncpg
import pytest
from collector.collectors import make_certificates
from integration.streams.conftest import SECRET, running, until
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from otel_audit_postgres import stream_positions
from otel_audit_postgres.ledger.ledger_queries import move_here
from otel_audit_postgres.personal.protect import Protector, key_store_from, read_fields
from otel_audit_postgres.query.queries import opened
from otel_audit_postgres.schema.install import init
from otel_audit_postgres.sink import PostgresSink
from otlp_receiver import Answer
from ports import free_port
from slow_link import behind, slow_link, socket_of
from strategies import a_record
from stream_receiver import receiving

from demo.receiver import listening
from otel_audit._util.ids import uuid7
from otel_audit.config import AuditConfig
from otel_audit.errors import StoreError
from otel_audit.record import Actor, Tenant
from otel_audit.streams import otlp as otlp_module
from otel_audit.streams import stream as stream_module
from otel_audit.streams import webhook as webhook_module
from otel_audit.streams.destination import DestinationError
from otel_audit.streams.metrics import publish
from otel_audit.streams.stream import HeldElsewhereError

OTLP = 'kind = "otlp"'


def webhook(receiver):
    return (
        'kind = "webhook"', f'url = "{receiver.url}/hook"', 'secret_env = ["HOOK_SECRET"]',
        "allow_private = true",
    )  # fmt: skip


def to(receiver):
    return OTLP, f'endpoint = "{receiver.url}"'


async def test_everything_sealed_arrives_once_and_in_order(log, stream_to, receiver):
    """Over OTLP, over several runs; what waits for its seal comes with the next."""
    await log.write(25)
    await log.seal()
    stream = stream_to(*to(receiver), "batch = 10")
    await stream.run_once()
    await log.write(5)
    await stream.run_once()
    assert receiver.leaves == list(range(25))
    await log.seal()
    await stream.run_once()
    assert receiver.leaves == list(
        range(31)
    )  # and audit.destination.created, a record like any other
    assert [one.path for one in receiver.asked] == ["/v1/logs"] * len(receiver.asked)
    assert (stream.progress.sent, stream.progress.lag) == (31, 0.0)


async def test_a_file_has_a_line_for_each_event(log, stream_to, tmp_path):
    """NDJSON in ASCII: whatever a record says, it ends no line and moves no cursor."""
    hostile = "\x1b[2J\r\n\x00\x85\u2028\u202e\x9b31m"
    await log.write(3, actor=Actor(id=hostile, type="user"))
    await log.seal()
    path = tmp_path / "out.ndjson"
    await stream_to('kind = "file"', f'path = "{path}"').run_once()
    text = path.read_bytes()
    assert all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in text)
    events = [json.loads(line) for line in text.decode().splitlines()]
    assert [event["leaf"] for event in events] == [0, 1, 2]
    # what the store cannot hold was replaced when it was recorded
    assert events[0]["record"]["actor"]["id"].replace("\ufffd", "\x00") == hostile
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_line_that_a_killed_process_left_unfinished_is_taken_away(log, stream_to, tmp_path):
    """It was never acknowledged, and so comes again, whole."""
    await log.write(4)
    await log.seal()
    path = tmp_path / "out.ndjson"
    lines = ('kind = "file"', f'path = "{path}"', "batch = 2")
    await stream_to(*lines).run_once()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id":"half of a li')
    await log.write(1)
    await log.seal()
    await stream_to(*lines).run_once()
    assert path.read_bytes().startswith(whole)
    assert [json.loads(line)["leaf"] for line in path.read_text().splitlines()] == list(range(6))


async def test_a_file_is_set_aside_at_its_size_and_none_is_lost(log, stream_to, tmp_path):
    """Names are in the order of the leaves; together the files hold everything."""
    await log.write(30)
    await log.seal()
    path = tmp_path / "out.ndjson"
    lines = ('kind = "file"', f'path = "{path}"', "batch = 5", "rotate_bytes = 3000")
    await stream_to(*lines).run_once()
    files = [*sorted(tmp_path.glob("out.0*.ndjson")), path]
    assert len(files) > 2
    leaves = [json.loads(line)["leaf"] for file in files for line in file.read_text().splitlines()]
    assert leaves == list(range(30))


@pytest.mark.parametrize(
    "answers",
    [
        [Answer(status=500)] * 3,
        [Answer(status=503, headers={"retry-after": "0"})],
        [Answer(status=429, headers={"retry-after": "0"})] * 2,
        [Answer(status=401), Answer(status=404)],
        [Answer(status=301, headers={"location": "http://127.0.0.1:1/"})],
        [Answer(status=408)],
    ],
)
@pytest.mark.parametrize("kind", [to, webhook])
async def test_what_passes_is_tried_again_from_where_it_was(
    log, stream_to, receiver, kind, answers
):
    """500, 429, time-outs, a wrong token, a redirect: nothing is lost, parked or out of order."""
    receiver.next = list(answers)
    await log.write(12)
    await log.seal()
    stream = stream_to(*kind(receiver), "batch = 5")
    async with running(stream):
        await until(lambda: len(receiver.stored) >= 12)
    assert receiver.leaves[:12] == list(range(12))
    assert stream.progress.failures == len(answers)
    assert stream.progress.parked == 0


async def test_a_destination_that_hangs_is_given_up_and_asked_again(log, stream_to, receiver):
    """Its answer comes too late to count: the same events come again, with the same ids."""
    receiver.next = [Answer(after=0.6)]
    await log.write(3)
    await log.seal()
    stream = stream_to(*to(receiver), "timeout = 0.2")
    async with running(stream):
        await until(lambda: len(receiver.asked) >= 2 and len(receiver.stored) >= 6)
    assert receiver.asked[0].events == receiver.asked[1].events
    assert stream.progress.failures >= 1


async def test_a_destination_that_is_away_gets_everything_later(log, stream_to):
    """Refused connections for a while, then a server: nothing is missing."""
    port = free_port()
    await log.write(4)
    await log.seal()
    stream = stream_to(OTLP, f'endpoint = "http://127.0.0.1:{port}"')
    async with running(stream):
        await until(lambda: stream.progress.failures >= 2)
        await log.write(4)
        await log.seal()
        with receiving(port) as receiver:
            await until(lambda: len(receiver.stored) >= 9)
    assert receiver.leaves[:9] == list(range(9))


@pytest.mark.parametrize("kind", [to, webhook])
async def test_a_refused_event_is_parked_and_holds_up_no_other(  # noqa: PLR0917 - fixtures
    log, stream_to, receiver, connection, caplog, kind
):
    """The bad one is found, parked with the destination's words, counted, and said in the log."""
    poison = "refuse me"
    await log.write(6)
    await log.write(1, actor=Actor(id=poison, type="user"))
    await log.write(6)
    await log.seal()

    def decide(asked):
        bad = any(event["record"]["actor"]["id"] == poison for event in asked.events)
        return Answer(status=422, body=b"no \x1b[2Jsuch actor") if bad else Answer()

    receiver.decide = decide
    stream = stream_to(*kind(receiver))
    with caplog.at_level(logging.ERROR):
        await stream.run_once()
    assert receiver.leaves == [n for n in range(13) if n != 6]
    (parked,) = await stream_positions.parked(connection, "siem")
    assert parked.leaf == 6
    assert parked.reason == "status 422: no \\u{1b}[2Jsuch actor"
    assert (stream.progress.parked, stream.progress.sent) == (1, 12)
    assert "leaf 6" in caplog.text
    assert "is parked" in caplog.text


async def test_an_event_says_when_the_store_took_it(log, stream_to, receiver, connection):
    """OCSF's ``logged_time``: the database's clock, not the application's."""
    await log.write(1)
    await log.seal()
    await stream_to(*to(receiver), 'shape = "ocsf"').run_once()
    recorded = await connection.fetchval(
        "SELECT (extract(epoch FROM recorded_at) * 1000000)::bigint FROM audit.audit_logs "
        "ORDER BY recorded_at LIMIT 1"
    )
    metadata = receiver.stored[0]["metadata"]
    assert metadata["logged_time"] == recorded // 1000
    assert (metadata["sequence"], metadata["log_name"]) == (0, "audit.example.com/log")


async def insert(connection, payload):
    """Write a row by hand, after at least one that is a record."""
    await connection.execute(
        "INSERT INTO audit.audit_logs (id, action_id, phase, occurred_at, duration_ms, event_name,"
        " action, outcome, actor_id, actor_type, transaction_outcome, entities, schema_version,"
        " content_hash, payload) SELECT $1, action_id, phase, occurred_at, 0, event_name, action,"
        " outcome, actor_id, actor_type, transaction_outcome, entities, schema_version,"
        " sha256(convert_to($2, 'UTF8')), $2::json FROM audit.audit_logs LIMIT 1",
        uuid.UUID(uuid7()), payload,
    )  # fmt: skip


async def test_a_row_that_commits_late_comes_late(log, stream_to, receiver, audit_store):
    """Its id is older than those that were sent; it is sealed after them, and sent once."""
    await log.write(1)
    late = await asyncpg.connect(audit_store)
    held = late.transaction()
    await held.start()
    await insert(late, '{"record_id":"late"}')
    try:
        stream = stream_to(*to(receiver))
        await log.write(3)
        await log.seal()
        await stream.run_once()
        assert receiver.leaves == [0, 1, 2, 3]
        await held.commit()
    finally:
        await late.close()
    await log.write(1)
    await log.seal()
    await stream.run_once()
    # and that the stream was made is one, too
    assert receiver.leaves == list(range(7))
    assert [event["id"] for event in receiver.stored].count("late") == 1
    assert "late" not in [event["id"] for event in receiver.stored[:4]]


async def test_what_a_shape_cannot_take_is_parked(log, stream_to, receiver, connection):
    """A row that is no record of ours, put there by hand, stops no stream."""
    await log.write(2)
    await insert(connection, '{"a":1}')
    await log.write(2)
    await log.seal()
    await stream_to(*to(receiver), 'shape = "ecs"').run_once()
    (parked,) = await stream_positions.parked(connection, "siem")
    assert parked.reason == "the payload is not a record of otel-audit's"
    assert len(receiver.stored) == 4


async def test_a_partial_success_is_looked_into(log, stream_to, receiver, connection):
    """A receiver that takes a batch but for one record is asked in halves until it is found."""
    await log.write(8)
    await log.seal()

    def decide(asked):
        if all(event["leaf"] != 5 for event in asked.events):
            return Answer()
        said = ExportLogsServiceResponse()
        said.partial_success.rejected_log_records = 1
        said.partial_success.error_message = "too odd"
        return Answer(
            body=said.SerializeToString(), headers={"content-type": "application/x-protobuf"}
        )

    receiver.decide = decide
    await stream_to(*to(receiver)).run_once()
    assert receiver.leaves == [0, 1, 2, 3, 4, 6, 7]
    assert [
        (one.leaf, one.reason) for one in await stream_positions.parked(connection, "siem")
    ] == [(5, "rejected in a partial success: too odd")]


async def test_webhooks_are_signed_by_the_standard(log, stream_to, receiver, monkeypatch):
    """``v1,`` and HMAC-SHA-256 over id, time and body, by each secret; the id is the record's."""
    other = "whsec_" + base64.b64encode(b"another secret of 32 bytes......").decode()
    monkeypatch.setenv("HOOK_SECRET_NEW", other)
    await log.write(2)
    await log.seal()
    lines = [line for line in webhook(receiver) if "secret_env" not in line]
    await stream_to(*lines, 'secret_env = ["HOOK_SECRET_NEW", "HOOK_SECRET"]').run_once()
    for asked in receiver.asked:
        assert asked.headers["webhook-id"] == asked.events[0]["id"]
        signed = b".".join((
            asked.headers["webhook-id"].encode(), asked.headers["webhook-timestamp"].encode(),
            asked.body,
        ))  # fmt: skip
        expected = []
        for secret in (other, SECRET):
            key = base64.b64decode(secret.removeprefix("whsec_"))
            digest = hmac.new(key, signed, hashlib.sha256).digest()
            expected.append(f"v1,{base64.b64encode(digest).decode()}")
        assert asked.headers["webhook-signature"].split() == expected
    assert receiver.leaves == [0, 1]


async def test_a_name_that_means_a_private_address_is_refused_when_it_is_looked_up(
    log, stream_to, receiver, monkeypatch
):
    """Nothing is sent there; the error names the setting. Names change what they mean."""

    async def resolved(host, port):
        return [ipaddress.ip_address("93.184.216.34"), ipaddress.ip_address("127.0.0.1")]

    monkeypatch.setattr(webhook_module, "resolved", resolved)
    await log.write(1)
    await log.seal()
    stream = stream_to(
        'kind = "webhook"', 'url = "https://hooks.example.com/a"', 'secret_env = ["HOOK_SECRET"]'
    )
    with pytest.raises(
        DestinationError, match=r"is 127\.0\.0\.1, which is not a public.*allow_priv"
    ):
        await stream.run_once()
    assert receiver.asked == []


async def test_filters_and_tenants_choose(log, stream_to, receiver):
    """In the language of the search; the position goes on past what does not fit."""
    await log.write(2, tenant=Tenant(id="acme"), event_name="order.created")
    await log.write(2, tenant=Tenant(id="rival"), event_name="order.created")
    await log.write(2, tenant=Tenant(id="acme"), event_name="order.viewed")
    await log.seal()
    stream = stream_to(*to(receiver), 'filter = "-event:order.viewed"', 'tenants = ["acme"]')
    await stream.run_once()
    assert receiver.leaves == [0, 1]
    assert stream.progress.next_leaf == stream.progress.size == 6


async def test_a_new_stream_begins_now_unless_told_otherwise(log, stream_to, receiver, connection):
    """History is not sent by accident."""
    await log.write(5)
    await log.seal()
    stream = stream_to(*to(receiver), start=None)
    await stream.run_once()
    assert receiver.stored == []
    await log.write(1)
    await log.seal()
    await stream.run_once()
    # its own creation is the first record that is sealed after it
    assert [event["record"]["event_name"] for event in receiver.stored] == [
        "audit.destination.created", "order.created"
    ]  # fmt: skip


async def test_changed_settings_are_a_record_without_secrets(log, stream_to, receiver, connection):
    """Who sends what where is told by the trail itself."""
    await stream_to(*webhook(receiver)).run_once()
    await stream_to(*webhook(receiver), 'shape = "ecs"').run_once()
    payloads = [
        json.loads(row["payload"])
        for row in await connection.fetch(
            "SELECT payload::text FROM audit.audit_logs WHERE event_name LIKE 'audit.destination.%' "
            "ORDER BY recorded_at"
        )
    ]
    assert [one["event_name"] for one in payloads] == [
        "audit.destination.created",
        "audit.destination.changed",
    ]
    said = payloads[1]["metadata"]
    assert (said["before"]["shape"], said["settings"]["shape"]) == ("native", "ecs")
    assert SECRET not in json.dumps(payloads)


async def test_pause_resume_and_rewind(log, stream_to, receiver, connection):
    """A paused stream waits; a rewound one sends again, with the same ids; both are records."""
    await log.write(4)
    await log.seal()
    stream = stream_to(*to(receiver))
    await stream.run_once()
    assert await stream_positions.pause(connection, "siem", paused=True)
    assert not await stream_positions.pause(connection, "siem", paused=True)
    await log.write(2)
    await log.seal()
    await stream.run_once()
    assert receiver.leaves == [0, 1, 2, 3]
    assert stream.progress.state == "paused"
    await stream_positions.pause(connection, "siem", paused=False)
    await stream_positions.rewind(connection, "siem", 2, "the SIEM lost a day")
    await stream.run_once()
    assert receiver.leaves[4:10] == [2, 3, 4, 5, 6, 7]
    assert receiver.stored[4]["id"] == receiver.stored[2]["id"]
    names = await connection.fetch(
        "SELECT event_name FROM audit.audit_logs WHERE event_name LIKE 'audit.destination.%'"
    )
    assert {row[0] for row in names} == {
        "audit.destination.created", "audit.destination.paused", "audit.destination.resumed",
        "audit.destination.rewound",
    }  # fmt: skip
    for name, leaf in (("nobody", 0), ("siem", 99)):
        with pytest.raises(Exception, match="there is no stream nobody|not to 99"):
            await stream_positions.rewind(connection, name, leaf, "")


async def test_two_of_one_name_send_everything_once(log, stream_to, receiver):
    """One sends and the other stands by; when the first ends the other takes over."""
    await log.write(3)
    await log.seal()
    first, second = stream_to(*to(receiver)), stream_to(*to(receiver))
    receiver.next = [Answer(after=0.5)]
    async with running(second):
        async with running(first):
            await until(lambda: "standby" in {first.progress.state, second.progress.state})
            await until(lambda: len(receiver.stored) >= 3)
            await log.write(20)
            await log.seal()
            await until(lambda: len(receiver.stored) >= 24)
        await log.write(2)
        await log.seal()
        await until(lambda: len(receiver.stored) >= 26)
    # what the hanging answer was given for may have come twice, and nothing else
    assert sorted(set(receiver.leaves)) == list(range(26))
    assert receiver.leaves == sorted(receiver.leaves)


async def test_who_stands_by_opens_its_stream_once(log, stream_to, receiver, connection):
    """With a backlog, two that stand by with other settings record no change each time they look."""
    await log.write(3)
    await log.seal()
    standing_by = [stream_to(*to(receiver)), stream_to(*to(receiver), 'shape = "ecs"')]
    looks = [0, 0]

    def counted(number: int, step):
        async def counting(*given):
            looks[number] += 1
            return await step(*given)

        return counting

    for number, stream in enumerate(standing_by):
        stream._step = counted(number, stream._step)
    await stream_positions.open_stream(connection, "siem", {}, 0)
    async with connection.transaction():
        assert await stream_positions.hold(connection, "siem") is not None
        async with running(standing_by[0]), running(standing_by[1]):
            await until(lambda: min(looks) >= 5)
            assert {stream.progress.state for stream in standing_by} == {"standby"}
    changes = "SELECT count(*) FROM audit.audit_logs WHERE event_name = 'audit.destination.changed'"
    assert await connection.fetchval(changes) == 2


async def test_who_takes_over_records_its_settings(log, stream_to, receiver, connection):
    """Which settings were used when is told by the trail: also of a process that stood by."""
    await log.write(3)
    await log.seal()
    first, second = stream_to(*to(receiver)), stream_to(*to(receiver), 'shape = "ecs"')
    await stream_positions.open_stream(connection, "siem", {}, 0)
    holder = await asyncpg.connect(log.dsn)
    holding = holder.transaction()
    await holding.start()
    assert await stream_positions.hold(holder, "siem") is not None
    # the last one that opened it is the second, and the first one sends
    async with running(first):
        await until(lambda: first.progress.state == "standby")
        async with running(second):
            await until(lambda: second.progress.state == "standby")
        await holding.rollback()
        await holder.close()
        await until(lambda: len(receiver.stored) >= 3)
    rows = await connection.fetch(
        "SELECT payload::json #>> '{metadata,settings,shape}' FROM audit.audit_logs "
        "WHERE event_name = 'audit.destination.changed' ORDER BY recorded_at, id"
    )
    assert [row[0] for row in rows] == ["native", "ecs", "native"]
    at = await stream_positions.position(connection, "siem")
    assert at.settings["shape"] == "native"


async def test_two_of_other_settings_do_not_fill_the_trail(log, stream_to, receiver, connection):
    """Each that sends in turn with another says so once, not with each batch."""
    await log.write(1)
    await log.seal()
    first, second = stream_to(*to(receiver)), stream_to(*to(receiver), 'shape = "ecs"')
    await stream_positions.open_stream(connection, "siem", {}, 0)
    for _ in range(4):
        for stream in (first, second):
            await log.write(1)
            await log.seal()
            await stream._step(connection)
    changes = "SELECT count(*) FROM audit.audit_logs WHERE event_name = 'audit.destination.changed'"
    assert await connection.fetchval(changes) == 2
    assert len(receiver.stored) >= 9


async def test_once_beside_another_says_so(log, stream_to, receiver, connection):
    """--once does not wait: another process sends it."""
    await log.write(1)
    await log.seal()
    await stream_positions.open_stream(connection, "siem", {}, 0)
    async with connection.transaction():
        assert await stream_positions.hold(connection, "siem")
        with pytest.raises(HeldElsewhereError, match="another process sends it"):
            await stream_to(*to(receiver)).run_once()
    assert receiver.stored == []


async def test_nobody_stops_it_who_merely_connects(log, stream_to, receiver, connection):
    """The lock is a row that only a function of the streamer's locks."""
    await log.write(1)
    await log.seal()
    stranger = await asyncpg.connect(log.dsn)
    await stranger.execute("SELECT pg_advisory_lock(7368036, hashtext('siem'))")
    await stream_to(*to(receiver)).run_once()
    await stranger.close()
    assert receiver.leaves == [0]


async def test_a_look_that_finds_nothing_writes_nothing(log, stream_to, receiver, connection):
    """The lock is a write of the row: a quiet stream takes none, and costs no WAL."""
    await log.write(1)
    await log.seal()
    stream = stream_to(*to(receiver))
    await stream.run_once()
    await log.seal()
    await stream.run_once()
    locker = "SELECT xmax FROM audit.stream_locks"
    before = await connection.fetchval(locker)
    assert before
    await stream.run_once()
    assert await connection.fetchval(locker) == before


async def test_who_was_overtaken_between_look_and_lock_sends_nothing_twice(
    log, stream_to, receiver, connection, monkeypatch
):
    """Another process sends all of it after the position was read; under the lock it is seen."""
    await log.write(3)
    await log.seal()
    first, second = stream_to(*to(receiver)), stream_to(*to(receiver))
    hold, overtaken = stream_positions.hold, []

    async def after_another(one, name):
        if not overtaken:
            overtaken.append(True)
            await second.run_once()
        return await hold(one, name)

    monkeypatch.setattr(stream_positions, "hold", after_another)
    await first.run_once()
    assert receiver.leaves == sorted(set(receiver.leaves))
    assert {0, 1, 2} <= set(receiver.leaves)


async def test_a_rewind_while_events_are_on_their_way_ends_no_stream(
    log, stream_to, receiver, connection
):
    """It goes on from where it was rewound to, in the same process."""
    await log.write(3)
    await log.seal()
    receiver.next = [Answer(after=1.0)]
    async with running(stream_to(*to(receiver))) as task:
        await until(lambda: len(receiver.stored) >= 3)
        await stream_positions.rewind(connection, "siem", 0, "while it is sent")
        await until(lambda: receiver.leaves.count(0) >= 2)
        assert not task.done()
    assert (await stream_positions.position(connection, "siem")).turn == 2


async def test_whoever_lost_the_stream_moves_nothing(log, stream_to, receiver, connection):
    """A position moves only from where it was."""
    await log.write(4)
    await log.seal()
    await stream_to(*to(receiver)).run_once()
    at = await stream_positions.position(connection, "siem")
    await stream_positions.rewind(connection, "siem", 1, "meanwhile")
    with pytest.raises(StoreError, match="its position is not leaf 4 any more"):
        await stream_positions.advance(connection, at, 4, None, "", 0, [])


async def test_a_store_from_a_backup_is_refused_until_somebody_decides(
    log, stream_to, receiver, connection, administrator
):
    """The position lies ahead of the log: nothing is sent, and the error says what to do."""
    await log.write(6)
    await log.seal()
    stream = stream_to(*to(receiver))
    await stream.run_once()
    # as after a restore: the log ends earlier, and the position with it
    for table, condition in (
        ("ledger_checkpoints", "true"), ("ledger_blocks", "true"), ("ledger_log", "true"),
    ):  # fmt: skip
        await administrator.does(f"DELETE FROM audit.{table} WHERE {condition}")
    await connection.execute(
        "UPDATE audit.streams SET next_leaf = 0, leaf_hash = NULL, origin = ''"
    )
    await log.write(2)
    await log.seal(anchors=[])
    with pytest.raises(
        stream_positions.PositionError, match="lies ahead: leaves up to 5 .*the log has 3"
    ):
        await stream.run_once()
    await log.write(9)
    await log.seal(anchors=[])
    with pytest.raises(
        stream_positions.PositionError, match="leaf 5 was sent, and the log has another one"
    ):
        await stream.run_once()
    assert len(receiver.stored) == 6
    await stream_positions.rewind(connection, "siem", 0, "restored from the backup of yesterday")
    await stream.run_once()
    assert receiver.leaves[6:] == list(range(len(receiver.leaves) - 6))


async def test_a_position_of_another_log_is_refused(log, stream_to, receiver, connection):
    """A leaf's number alone does not say that it is the same leaf."""
    await log.write(3)
    await log.seal()
    stream = stream_to(*to(receiver))
    await stream.run_once()
    await connection.execute("UPDATE audit.streams SET leaf_hash = sha256('another')")
    with pytest.raises(
        stream_positions.PositionError, match="leaf 2 was sent, and the log has another one"
    ):
        await stream.run_once()
    await connection.execute("UPDATE audit.streams SET leaf_hash = NULL, origin = 'another.log'")
    with pytest.raises(
        stream_positions.PositionError, match="its position is of log 'another.log'"
    ):
        await stream.run_once()
    await connection.execute("UPDATE audit.streams SET origin = '', next_leaf = 99")
    with pytest.raises(
        stream_positions.PositionError, match="its position lies ahead: leaves up to 98"
    ):
        await stream.run_once()


async def test_a_changed_row_is_sent_and_said_to_be(
    log, stream_to, receiver, administrator, caplog
):
    """It is not held back: the SIEM learns of it, and the log line is critical."""
    ids = await log.write(3)
    await log.seal()
    await administrator.does(
        "UPDATE audit.audit_logs SET recorded_at = recorded_at - interval '1 s' WHERE id = $1",
        uuid.UUID(ids[1]),
    )
    stream = stream_to(*to(receiver))
    await stream.run_once()
    assert [event.get("is_as_sealed", True) for event in receiver.stored] == [True, False, True]
    assert stream.progress.altered == 1
    assert "is not what was sealed" in caplog.text


async def test_only_a_streamer_streams(log, postgres, stream_to, receiver):
    """A reader may not move positions; the error names the command. A streamer needs no more."""
    reader, streamer = (f"role_{uuid.uuid4().hex[:8]}" for _ in range(2))
    await postgres.execute(f"CREATE ROLE {reader} LOGIN", f"CREATE ROLE {streamer} LOGIN")
    await init(log.dsn, roles=True, reader=reader, streamer=streamer)
    await log.write(2, tenant=Tenant(id="acme"))
    await log.seal()
    with pytest.raises(StoreError, match="init --roles --streamer ROLE"):
        await stream_to(*to(receiver), dsn=_as(log.dsn, reader)).run_once()
    await stream_to(*to(receiver), dsn=_as(log.dsn, streamer)).run_once()
    assert receiver.leaves == [0, 1]
    async with opened(_as(log.dsn, streamer)) as connection:
        for refused in (
            "UPDATE audit.streams SET next_leaf = 0", "DELETE FROM audit.stream_parked",
            "INSERT INTO audit.audit_logs (id) VALUES (gen_random_uuid())",
        ):  # fmt: skip
            with pytest.raises(Exception, match="permission denied"):
                await connection.execute(refused)


def _as(dsn, user):
    scheme, _, rest = dsn.partition("://")
    return f"{scheme}://{user}@{rest.partition('@')[2]}"


async def test_a_server_that_ends_idle_transactions_does_not_end_a_stream(
    log, stream_to, receiver, postgres
):
    """A destination may take longer to answer than the database allows others to think."""
    name = f"role_{uuid.uuid4().hex[:8]}"
    await postgres.execute(f"CREATE ROLE {name} LOGIN")
    await init(log.dsn, roles=True, streamer=name)
    await postgres.execute(f"ALTER ROLE {name} SET idle_in_transaction_session_timeout = '500ms'")
    await log.write(2)
    await log.seal()
    receiver.next = [Answer(after=1.5)]
    stream = stream_to(*to(receiver), dsn=_as(log.dsn, name))
    await stream.run_once()
    assert receiver.leaves == [0, 1]
    assert stream.progress.sent == 2


async def test_what_is_settled_is_acknowledged_in_turns(
    log, stream_to, receiver, connection, monkeypatch
):
    """A slow destination does not hold one transaction for all of a batch."""
    monkeypatch.setattr(webhook_module, "TURN", 0.0)
    await log.write(3)
    await log.seal()
    await stream_to(*webhook(receiver)).run_once()
    assert receiver.leaves == [0, 1, 2]
    monkeypatch.setattr(otlp_module, "TURN", -1.0)
    monkeypatch.setattr(otlp_module, "LARGEST_REQUEST", 1)
    await log.write(3)
    await log.seal()
    await stream_positions.rewind(connection, "siem", 0, "again")
    await stream_to(*to(receiver)).run_once()
    assert receiver.leaves[3:] == list(range(7))


async def test_personal_values_go_as_pseudonyms_unless_the_stream_may_have_them(  # noqa: PLR0917 - fixtures
    log, stream_to, receiver, postgres, tmp_path, monkeypatch, connection
):  # fmt: skip
    """Encrypted in the store; the SIEM can tell equal values, and learns what they are if it may."""
    kek = tmp_path / "kek"
    keys_name = f"keys_{uuid.uuid4().hex[:12]}"
    await postgres.execute(f"CREATE DATABASE {keys_name}")
    monkeypatch.setenv("OTEL_AUDIT_KEYS_DSN", postgres.dsn(keys_name))
    monkeypatch.setenv("OTEL_AUDIT_KEYS_KEK_FILE", str(kek))
    kek.write_text(secrets.token_hex(32))
    kek.chmod(0o600)
    keys = key_store_from(AuditConfig())
    await keys.init()
    sink = PostgresSink(log.dsn, protector=Protector(keys, read_fields(["actor.email"])))
    actor = Actor(id="ann", type="user", email="ann@example.com")
    await sink.write([a_record(record_id=uuid7(), actor=actor) for _ in range(2)])
    await sink.close()
    await keys.close()
    await log.seal()
    await stream_to(*to(receiver)).run_once()
    first, second = (event["record"]["actor"]["email"] for event in receiver.stored)
    assert first == second
    assert first.startswith("~p1.")
    assert "." not in first.removeprefix("~p1.")
    await stream_positions.rewind(connection, "siem", 0, "with values now")
    await stream_to(*to(receiver), "personal = true").run_once()
    assert receiver.stored[2]["record"]["actor"]["email"] == "ann@example.com"
    assert receiver.stored[2]["content_hash"] == receiver.stored[0]["content_hash"]
    # what it says of such an event may repeat a value, and would stay for ever
    receiver.decide = lambda asked: Answer(status=422, body=b"ann@example.com is unknown")
    await stream_positions.rewind(connection, "siem", 0, "once more")
    await stream_to(*to(receiver), "personal = true").run_once()
    assert {one.reason for one in await stream_positions.parked(connection, "siem")} == {
        "status 422"
    }


async def test_the_numbers_are_metrics(log, stream_to, receiver):
    """By the stream's name alone."""
    await log.write(3)
    await log.seal()
    stream = stream_to(*to(receiver))
    await stream.run_once()
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    publish(provider.get_meter("test"), [stream])
    metrics = {
        metric.name: (point.value, dict(point.attributes))
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }
    provider.shutdown()
    name = {"audit.destination.name": "siem"}
    assert metrics == {
        "audit.destination.sent": (3, name), "audit.destination.parked": (0, name),
        "audit.destination.failures": (0, name), "audit.destination.altered": (0, name),
        "audit.destination.position": (3, name), "audit.destination.behind": (0, name),
        "audit.destination.lag": (0.0, name), "audit.destination.refused": (0, name),
    }  # fmt: skip


async def test_a_webhook_goes_to_the_address_that_was_looked_at_by_its_name(
    log, stream_to, tmp_path, monkeypatch
):
    """The certificate is checked for the name, and the name is not looked up again."""
    files = make_certificates(tmp_path / "tls", "hook")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    asked = []

    async def resolved(host, port):
        asked.append((host, port))
        return [ipaddress.ip_address("127.0.0.1")]

    monkeypatch.setattr(webhook_module, "resolved", resolved)
    await log.write(3)
    await log.seal()
    heads = []

    def respond(_path, headers, _body):
        heads.append(headers["host"])
        return Answer()

    lines = ('kind = "webhook"', 'secret_env = ["HOOK_SECRET"]', "allow_private = true",
             f'certificate = "{files.authority}"')  # fmt: skip
    with listening(respond, tls=context) as url:
        port = url.rpartition(":")[2]
        await stream_to(*lines, f'url = "https://localhost:{port}/a"').run_once()
        assert heads == [f"localhost:{port}"] * 3
        assert asked == [("localhost", int(port))]
        await log.write(1)
        await log.seal()
        # the same machine under a name that is not in its certificate
        with pytest.raises(DestinationError, match="no connection"):
            await stream_to(*lines, f'url = "https://other.example:{port}/a"').run_once()
    assert len(heads) == 3


async def test_a_restored_copy_of_the_database(log, stream_to, receiver, postgres, tmp_path):
    """A backup that is restored is another database; once it is the log, the position is ahead."""
    await log.write(5)
    await log.seal()
    await stream_to(*to(receiver)).run_once()
    name = f"restored_{uuid.uuid4().hex[:8]}"
    source = log.dsn.rpartition("?")[0].rpartition("/")[2]
    await postgres.execute(f"CREATE DATABASE {name} TEMPLATE {source}")
    await log.write(5)
    await log.seal()
    await stream_to(*to(receiver)).run_once()
    before = len(receiver.stored)
    restored = postgres.dsn(name)
    stream = stream_to(*to(receiver), dsn=restored)
    with pytest.raises(stream_positions.PositionError, match="the log belongs to database"):
        await stream.run_once()
    async with opened(restored) as connection:
        await move_here(connection)
        with pytest.raises(
            stream_positions.PositionError, match="its position lies ahead: leaves up to 10"
        ):
            await stream.run_once()
        assert len(receiver.stored) == before
        await stream_positions.rewind(connection, "siem", 5, "restored from the backup")
    await stream.run_once()
    assert stream.progress.next_leaf == 5


async def test_a_store_that_stands_still_is_a_failure(log, stream_to, receiver, monkeypatch):
    """It accepts and answers nothing: that is seen in time, with a lag by our own clock."""
    monkeypatch.setattr(stream_module, "ANSWER", 1.0)
    silent, stop = asyncio.Event(), asyncio.Event()
    async with slow_link(socket_of(log.dsn), silent=silent) as port:
        stream = stream_to(*to(receiver), dsn=behind(log.dsn, port))
        task = asyncio.create_task(stream.run(stop))
        async with asyncio.timeout(60):
            while stream.progress.state == "starting":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            silent.set()
            while not stream.progress.failures:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert "has not answered for 1 s" in stream.progress.failure
        assert stream.progress.lag >= 1.0
        stop.set()
        async with asyncio.timeout(30):
            await task


async def test_a_store_that_stands_still_holds_up_nobody_who_stops(log, stream_to, receiver):
    """The page under way has some seconds, and is cut off then."""
    silent, stop = asyncio.Event(), asyncio.Event()
    async with slow_link(socket_of(log.dsn), silent=silent) as port:
        stream = stream_to(*to(receiver), dsn=behind(log.dsn, port))
        task = asyncio.create_task(stream.run(stop))
        async with asyncio.timeout(60):
            while stream.progress.state == "starting":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        silent.set()
        await asyncio.sleep(0.2)
        stop.set()
        async with asyncio.timeout(30):
            await task
