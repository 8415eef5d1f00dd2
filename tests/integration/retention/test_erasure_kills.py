"""Erasing and holding, killed at any point, twice at once, or beside each other: done in the end."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime
from pathlib import Path

import preloaded
import pytest
from otel_audit_postgres.archive.objects import FolderArchive
from otel_audit_postgres.personal.key_store import FileWrapper, KeyStore, Subject
from otel_audit_postgres.personal.protect import Protector, read_fields
from otel_audit_postgres.retention.holds import HoldConditions, list_holds, place_hold, release_hold
from otel_audit_postgres.retention.subject import erase, erase_all, plan_erasure
from otel_audit_postgres.sink import PostgresSink
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.errors import StoreError
from otel_audit.record import Actor, Tenant

ROOT = Path(__file__).parents[2]
NAMES = [Subject("acme", "ann"), Subject("acme", "bea")]
ACME_IN_JANUARY = HoldConditions(tenant="acme", until=datetime(2025, 2, 1, tzinfo=UTC))


class HoldingFolder(FolderArchive):
    """A folder that notes legal holds as a store with object lock does: a file beside each."""

    def hold(self, key, *, on):
        mark = self._folder / f"{key}.held"
        if on:
            mark.touch()
        else:
            mark.unlink(missing_ok=True)

    def held(self):
        return sorted(key for key in self.list_keys() if key.endswith(".held"))


ERASING = """
import asyncio, os, signal, sys
from otel_audit_postgres.personal.key_store import FileWrapper, KeyStore, Subject
from otel_audit_postgres.retention.subject import erase_all

dsn, keys_dsn, kek, point = sys.argv[1:]
destroyed = []

def reached(name):
    if name == point:
        os.kill(os.getpid(), signal.SIGKILL)

class Keys(KeyStore):
    async def known(self, subject):
        reached("begin")
        return await super().known(subject)

    async def destroy(self, subject):
        reached(f"before key {len(destroyed)}")
        await super().destroy(subject)
        destroyed.append(subject)
        reached(f"after key {len(destroyed)}")

    async def mark_recorded(self, subject):
        reached("committed")
        await super().mark_recorded(subject)
        reached("told")

keys = Keys(keys_dsn, FileWrapper(bytes.fromhex(kek)))
names = [Subject("acme", "ann"), Subject("acme", "bea")]
asyncio.run(erase_all(dsn, keys, names, "law", "demand"))
"""

HOLDING = """
import asyncio, os, signal, sys, uuid
from pathlib import Path
from otel_audit_postgres.retention import holds
from test_erasure_kills import ACME_IN_JANUARY, HoldingFolder

dsn, folder, what, point = sys.argv[1:]
done = []

def reached(name):
    if name == point:
        os.kill(os.getpid(), signal.SIGKILL)

class Folder(HoldingFolder):
    def hold(self, key, *, on):
        reached(f"before object {len(done)}")
        super().hold(key, on=on)
        done.append(key)
        reached(f"after object {len(done)}")

archive = Folder(Path(folder))
if what == "place":
    asyncio.run(holds.place_hold(dsn, "m", "r", ACME_IN_JANUARY, archive))
else:
    asyncio.run(holds.release_hold(dsn, uuid.UUID(what), "over", archive))
reached("end")
"""


def killed(program, *arguments):
    done = preloaded.run(
        "-c", program, *map(str, arguments), cwd=ROOT, timeout=120, kind="python",
        env={"PYTHONPATH": f"{Path(__file__).parent}:{ROOT}"},
    )  # fmt: skip
    assert done.returncode == -9, done.stderr


@pytest.fixture
def kek():
    return secrets.token_bytes(32)


@pytest.fixture
async def keys(keys_dsn, kek):
    store = KeyStore(keys_dsn, FileWrapper(kek))
    await store.init()
    yield store
    await store.close()


@pytest.fixture
async def people(trail, keys):
    """A record of ann, and one of bea, encrypted."""
    sink = PostgresSink(trail.dsn, protector=Protector(keys, read_fields(["actor.email"])))
    for one in NAMES:
        actor = Actor(id=one.name, type="user", email=f"{one.name}@example.com")
        await sink.write([a_record(record_id=uuid7(), actor=actor, tenant=Tenant(id="acme"))])
    await sink.close()
    return trail


@pytest.fixture
async def archived(months, tmp_path):
    """January, March and April are in an archive that knows holds."""
    months.archive = HoldingFolder(tmp_path / "archive")
    await months.retain()
    await months.seal()
    return months


async def told_keys(connection):
    """The ids of destroyed keys, as often as the trail tells of them."""
    rows = await connection.fetch("SELECT unnest(keys) FROM audit.erasures")
    return sorted(row[0] for row in rows)


class TestErasing:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "point",
        [
            "begin",
            "before key 0",
            "after key 1",
            "before key 1",
            "after key 2",
            "committed",
            "told",
        ],
    )
    async def test_goes_on_after_a_kill(  # noqa: PLR0917 - fixtures
        self, people, keys, keys_dsn, kek, connection, point
    ):
        """The next one does the rest: each key is gone, and told once."""
        ids = sorted([(await keys.known(one))[0].key_id.hex() for one in NAMES])
        killed(ERASING, people.dsn, keys_dsn, kek.hex(), point)
        told = await told_keys(connection)
        assert told == (ids if point in {"committed", "told"} else [])
        await erase_all(people.dsn, keys, NAMES, "law", "demand")
        assert await told_keys(connection) == ids
        for one in NAMES:
            plan = await plan_erasure(people.dsn, keys, one)
            assert (plan.keys, [key.is_recorded for key in plan.erased]) == (0, [True])
        assert await erase_all(people.dsn, keys, NAMES, "law", "demand") == []
        await people.seal()
        assert (await people.verify()).problems == ()

    async def test_twice_at_once_is_once(self, people, keys, keys_dsn, kek, connection):
        """The one waits for the other, and finds nothing to do; in whatever order names are given."""
        other = KeyStore(keys_dsn, FileWrapper(kek))
        done = await asyncio.gather(
            erase_all(people.dsn, keys, NAMES, "law", "demand"),
            erase_all(people.dsn, other, NAMES[::-1], "law", "demand"),
        )
        await other.close()
        assert sorted(map(len, done)) == [0, 2]
        assert len(await told_keys(connection)) == 2

    async def test_lets_a_hold_wait_that_is_placed_meanwhile(self, people, keys_dsn, kek):
        """Between the check for holds and the end none comes in; it is placed right after."""
        placing = []

        class Keys(KeyStore):
            async def destroy(self, subject):
                placing.append(
                    asyncio.create_task(
                        place_hold(people.dsn, "m", "r", HoldConditions(actor=subject.name))
                    )
                )
                await asyncio.wait(placing, timeout=0.5)
                assert not placing[0].done()
                await super().destroy(subject)

        keys = Keys(keys_dsn, FileWrapper(kek))
        assert await erase(people.dsn, keys, NAMES[0], "law", "demand")
        hold, _ = await placing[0]
        assert [one.id for one in await list_holds(people.dsn)] == [hold]
        await keys.close()

    async def test_of_several_is_refused_if_one_is_held(self, people, keys):
        """None of them is erased then, and the hold is named."""
        hold, _ = await place_hold(people.dsn, "m", "r", HoldConditions(actor="bea"))
        with pytest.raises(StoreError, match=f"hold {hold}"):
            await erase_all(people.dsn, keys, NAMES, "law", "demand")
        assert all([len(await keys.known(one)) == 1 for one in NAMES])


class TestHolding:
    @pytest.mark.slow
    @pytest.mark.parametrize("point", ["before object 0", "after object 1", "end"])
    async def test_goes_on_after_a_kill(self, archived, point):
        """The hold counts at once; the next run puts it on the object."""
        killed(HOLDING, archived.dsn, archived.archive._folder, "place", point)
        assert len(await list_holds(archived.dsn)) == 1
        await archived.retain()
        (held,) = archived.archive.held()
        assert held.startswith("2025-01/default-")
        await archived.seal()
        assert (await archived.verify()).problems == ()

    @pytest.mark.slow
    @pytest.mark.parametrize("point", ["before object 0", "after object 1", "end"])
    async def test_releasing_goes_on_after_a_kill(self, archived, point):
        """It is released at once; the next run takes it off the object, and leaves another one's."""
        other, _ = await place_hold(
            archived.dsn, "other", "r", HoldConditions(tenant="other"), archived.archive
        )
        hold, _ = await place_hold(archived.dsn, "m", "r", ACME_IN_JANUARY, archived.archive)
        assert len(archived.archive.held()) == 2
        killed(HOLDING, archived.dsn, archived.archive._folder, hold, point)
        assert [one.id for one in await list_holds(archived.dsn)] == [other]
        await archived.retain()
        (held,) = archived.archive.held()
        assert held.startswith("2025-04/")

    async def test_by_two_at_once_is_two_holds_and_a_release_counts_once(self, archived):
        """Both are placed, the object stays held until the last is released; a second release
        of one is refused."""
        placed = await asyncio.gather(*(
            place_hold(archived.dsn, f"m{number}", "r", ACME_IN_JANUARY, archived.archive)
            for number in range(2)
        ))  # fmt: skip
        (first, _), (second, _) = placed
        done = await asyncio.gather(
            *(release_hold(archived.dsn, first, "over", archived.archive) for _ in range(2)),
            return_exceptions=True,
        )
        assert sorted(type(one) for one in done if isinstance(one, Exception)) == [StoreError]
        assert len(archived.archive.held()) == 1
        await release_hold(archived.dsn, second, "over", archived.archive)
        assert archived.archive.held() == []

    async def test_placed_while_a_run_is_under_way_keeps_the_month(self, months, tmp_path):
        """After it was archived and before it is dropped: it stays, and its object is held."""
        months.archive = HoldingFolder(tmp_path / "archive")
        steps = asyncio.Queue()

        async def hold():
            while await steps.get() != ("2025-01", "drop"):
                pass
            return await place_hold(months.dsn, "m", "r", ACME_IN_JANUARY, months.archive)

        placing = asyncio.create_task(hold())

        def on_step(month, step):
            steps.put_nowait((month, step))

        async def slow_seal():
            # the run gives way before it drops
            await months.seal()
            steps.put_nowait(("2025-01", "drop"))
            await asyncio.wait([placing])

        done = await months.retain(on_step=on_step, seal=slow_seal)
        hold_id, objects = await placing
        assert str(hold_id) in done.blocked["2025-01"]
        assert "2025-01" not in done.dropped
        # of both classes; it was archived before the hold
        assert len(objects) == 2
        assert months.archive.held() == [f"{one}.held" for one in sorted(objects)]
