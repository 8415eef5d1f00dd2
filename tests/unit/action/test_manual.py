"""Recording by hand: blocks, functions, single events."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import otel_audit
from otel_audit._util import ratelimited_log
from otel_audit.action import current_runtime as recordings
from otel_audit.policy.verbs import action_of_event
from otel_audit.record import to_json
from otel_audit.scope import current_scope
from otel_audit.testing import Recorded, recorded

SECRET = "hunter2-canary"
CARD = "4111 1111 1111 1111"


@pytest.fixture
def records() -> Iterator[Recorded]:
    with recorded() as found:
        yield found


class Plan:
    """An object of the application that gets its id late."""

    id: int | None = None


class TestBlock:
    def test_a_block_is_a_record(self, records):
        """Who, for whom, what and the app's own facts, from the arguments."""
        with otel_audit.audit(
            "tenant.provisioned",
            actor={"id": "job-7", "type": "service", "role": "provisioner"},
            tenant={"id": "t-42", "slug": "acme"},
            target="tenant:42",
            metadata={"plan": "trial"},
        ):
            pass
        (record,) = records
        assert (record.event_name, record.action, record.outcome) == (
            "tenant.provisioned",
            "CREATE",
            "success",
        )
        assert (record.actor.id, record.actor.type, record.actor.role) == (
            "job-7",
            "service",
            "provisioner",
        )
        assert (record.tenant.id, record.tenant.slug) == ("t-42", "acme")
        assert (record.target.type, record.target.id) == ("tenant", "42")
        assert record.metadata == {"plan": "trial"}
        assert (record.phase, record.transaction) == ("completed", "none")

    async def test_the_same_object_works_with_async_with(self, records):
        """`async with` records as `with` does, and the action is the current one inside."""
        async with otel_audit.audit("report.built", actor="a") as action:
            await asyncio.sleep(0)
            otel_audit.add_metadata(pages=3)
        assert records.one("report.built").metadata == {"pages": 3}
        assert records.one().record_id == action.record_id

    def test_the_functions_of_a_request_work_inside(self, records):
        """set_actor, set_tenant, set_target and set_event act on the block's action."""
        with otel_audit.audit("job.run"):
            otel_audit.set_actor("root", type="system")
            otel_audit.set_tenant("t-1")
            otel_audit.set_target("report", "9")
            otel_audit.set_event("report.built", action="CREATE")
        record = records.one("report.built", action="CREATE")
        assert (record.actor.id, record.tenant.id, record.target.id) == ("root", "t-1", "9")

    def test_roles_have_their_canonical_names(self):
        """Aliases hold for actors that are given, and for those that are set inside."""
        config = otel_audit.AuditConfig(exporter="none", actor_type_aliases={"ops": "admin"})
        with recorded(config=config) as records:
            otel_audit.emit("a.done", actor={"id": "x", "role": "ops"})
            with otel_audit.audit("b.done"):
                otel_audit.set_actor("y", role="ops")
            otel_audit.emit("c.done", actor={"id": "z", "role": "clerk"})
        assert [record.actor.role for record in records] == ["admin", "admin", "clerk"]

    def test_the_process_is_the_actor_where_nobody_else_is(self, records):
        """A job that names nobody is done by the process itself, of type system."""
        with otel_audit.audit("cache.cleared"):
            pass
        assert (records[0].actor.type, records[0].actor.source) == ("system", "process")

    def test_an_exception_is_a_failure_and_goes_on(self, records):
        """The exception reaches the caller; the record has its type, not the values it quotes."""
        with (
            pytest.raises(ValueError, match="canary"),
            otel_audit.audit("report.built"),
        ):
            raise ValueError(f"password={SECRET}")
        record = records.one(outcome="failure")
        assert record.error.type == "ValueError"
        assert SECRET not in str(record)

    @pytest.mark.parametrize(
        ("error", "outcome", "kind"),
        [
            (SystemExit(0), "success", None),
            (SystemExit(3), "failure", "SystemExit"),
            (KeyboardInterrupt(), "unknown", "KeyboardInterrupt"),
            (asyncio.CancelledError(), "unknown", "asyncio.exceptions.CancelledError"),
        ],
    )
    def test_what_ends_a_block_from_outside(self, error, outcome, kind, records):
        """An orderly exit is no failure; what cuts an action off leaves its outcome unknown."""
        with contextlib.suppress(BaseException), otel_audit.audit("report.built"):
            raise error
        (record,) = records
        assert record.outcome == outcome
        assert (record.error and record.error.type) == kind

    def test_an_action_may_fail_without_an_exception(self, records):
        """fail() makes the outcome failure and keeps the reason."""
        with otel_audit.audit("report.built") as action:
            action.fail("quota_exceeded")
        assert records.one(outcome="failure").error.type == "quota_exceeded"

    def test_a_new_object_is_named_by_the_id_it_got_inside(self, records):
        """The target is read again when the block ends: a stored object has its id by then."""
        plan = Plan()
        with otel_audit.audit("plan.created", target=plan) as action:
            plan.id = 17
        with otel_audit.audit("plan.updated"):
            pass
        assert (records[0].target.type, records[0].target.id) == ("plan", "17")
        assert records[0].entities == ("plan:17",)
        assert action.action_id == records[0].action_id
        assert records[1].target is None

    def test_the_caller_may_go_on_with_its_metadata(self, records):
        """What is added in the block does not change the mapping that was given."""
        given = {"a": 1}
        with otel_audit.audit("report.built", metadata=given) as action:
            action.add_metadata(b=2)
        assert given == {"a": 1}
        assert records[0].metadata == {"a": 1, "b": 2}

    def test_one_object_may_be_used_again_and_by_several(self, records):
        """An object made once gives each block an action of its own, also at the same time."""
        job = otel_audit.audit("job.run")
        inside = threading.Barrier(2)

        def run(name: str) -> None:
            with job as action:
                inside.wait(60)
                otel_audit.set_actor(name)
                action.add_metadata(name=name)
                inside.wait(60)

        threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted((r.actor.id, r.metadata["name"]) for r in records) == [("a", "a"), ("b", "b")]
        assert len({r.action_id for r in records}) == 2

    def test_a_block_may_end_in_another_context(self, records):
        """A framework that ends a block elsewhere than it began it: a record, and no error."""
        block = otel_audit.audit("report.built")
        contextvars.copy_context().run(block.__enter__)
        block.__exit__(None, None, None)
        assert records.one().outcome == "success"
        assert current_scope() is None

    def test_a_fork_in_the_middle_leaves_two_records(self, records):
        """A child that leaves the block too tells its own part, under an id of its own."""
        read, write = os.pipe()
        child = -1
        with otel_audit.audit("report.built") as action:
            child = os.fork()
        if child == 0:
            (mine,) = records
            os.write(write, f"{mine.record_id} {mine.action_id} {mine.phase}".encode())
            os._exit(0)
        os.waitpid(child, 0)
        record_id, action_id, phase = os.read(read, 1000).decode().split()
        assert action_id == action.action_id == records.one().action_id
        assert record_id != records.one().record_id
        assert phase == "continued"


class TestNesting:
    def test_a_nested_action_links_to_its_parent_and_takes_over_who_and_for_whom(self, records):
        """An inner action is done by whoever does the outer one, unless it says otherwise."""
        with otel_audit.audit("import.run", actor="root", tenant="t-1") as outer:
            otel_audit.emit("item.imported")
            with otel_audit.audit("item.checked", actor="checker"):
                otel_audit.emit("item.approved")
        assert records.one("import.run").parent_action_id is None
        imported, checked = records.one("item.imported"), records.one("item.checked")
        assert (imported.parent_action_id, imported.actor.id) == (outer.action_id, "root")
        assert (checked.actor.id, checked.tenant.id) == ("checker", "t-1")
        approved = records.one("item.approved")
        assert (approved.parent_action_id, approved.actor.id) == (checked.action_id, "checker")

    def test_after_the_inner_one_the_outer_one_is_current_again(self, records):
        """Leaving a nested block gives the surrounding action back, also after an exception."""
        with otel_audit.audit("a.done"):
            outer = current_scope()
            with contextlib.suppress(RuntimeError), otel_audit.audit("b.done"):
                raise RuntimeError
            assert current_scope() is outer
        assert current_scope() is None
        assert records.one("a.done").outcome == "success"

    def test_actions_nest_as_deep_as_functions_do(self, records):
        """Nearly as deep as Python itself goes, each one still knows who does it."""

        @otel_audit.audit("tree.walked")
        def walk(depth: int) -> None:
            if depth:
                walk(depth - 1)

        with otel_audit.audit("import.run", actor="root"):
            walk(300)
        assert len(records.find("tree.walked", actor__id="root")) == 301

    async def test_tasks_do_not_see_each_others_actions(self, records):
        """Each of many tasks at once has its own action, and all have the same parent."""

        async def work(number: int) -> None:
            async with otel_audit.audit("item.imported", actor=f"w{number}"):
                await asyncio.sleep(0.001 * (number % 3))
                otel_audit.add_metadata(number=number)

        async with otel_audit.audit("import.run") as outer:
            await asyncio.gather(*(work(number) for number in range(20)))
        inner = records.find("item.imported")
        assert {(r.actor.id, r.metadata["number"]) for r in inner} == {
            (f"w{number}", number) for number in range(20)
        }
        assert {r.parent_action_id for r in inner} == {outer.action_id}

    async def test_a_thread_of_asyncio_is_inside_a_bare_one_is_not(self, records):
        """to_thread carries the context over and so the parent; a plain thread begins anew."""
        async with otel_audit.audit("import.run") as outer:
            await asyncio.to_thread(otel_audit.emit, "item.imported")
            bare = threading.Thread(target=otel_audit.emit, args=("item.found",))
            bare.start()
            bare.join()
        assert records.one("item.imported").parent_action_id == outer.action_id
        assert records.one("item.found").parent_action_id is None


class TestDecorator:
    def test_each_call_of_a_function_is_an_action(self, records):
        """The function does what it did, and keeps its name."""

        @otel_audit.audit("report.built", actor="reporter")
        def build(pages: int, *, title: str = "") -> str:
            return f"{title}{pages}"

        assert build(1, title="x") == "x1"
        assert build.__name__ == "build"
        build(2)
        assert [r.event_name for r in records] == ["report.built"] * 2
        assert records[0].action_id != records[1].action_id

    async def test_a_coroutine_function_stays_one(self, records):
        """The action lasts until the coroutine has ended, and has its failure."""

        @otel_audit.audit("report.built")
        async def build() -> None:
            await asyncio.sleep(0.01)
            raise RuntimeError

        assert asyncio.iscoroutinefunction(build)
        with pytest.raises(RuntimeError):
            await build()
        record = records.one(outcome="failure")
        assert record.duration >= 9_000_000

    def test_methods_and_recursion(self, records):
        """A method gets its object; a recursive call is nested in the one before."""

        class Tree:
            @otel_audit.audit("tree.walked")
            def walk(self, depth: int) -> int:
                return depth and 1 + self.walk(depth - 1)

        assert Tree().walk(2) == 2
        innermost, middle, outermost = records
        assert innermost.parent_action_id == middle.action_id
        assert middle.parent_action_id == outermost.action_id

    def test_what_cannot_be_decorated_is_refused_at_once(self):
        """Generators, and the decorator without a name, are errors where they are written."""
        with pytest.raises(otel_audit.ConfigurationError, match="generator"):

            @otel_audit.audit("x.done")
            def generate() -> Iterator[int]:
                yield 1

        with pytest.raises(otel_audit.ConfigurationError, match=r'@audit\("report'):
            otel_audit.audit(lambda: None)


class TestEmit:
    def test_an_event_is_a_record_at_once(self, records):
        """emit gives the record's id back."""
        record_id = otel_audit.emit(
            "user.logged_in", actor="u-1", tenant="t", target="user:u-1", outcome="failure"
        )
        record = records.one("user.logged_in", outcome="failure", action="LOGIN")
        assert record.record_id == record_id
        assert record.target.id == "u-1"

    def test_a_wrong_outcome_is_unknown(self, records):
        """What is none of the three words claims nothing."""
        otel_audit.emit("a.done", outcome="ok")
        assert records[0].outcome == "unknown"


class TestRedaction:
    def test_everything_that_is_told_is_redacted(self, records):
        """Names, values at any depth, targets, reasons and messages."""
        card, token = "4111 1111 1111 1111", "Bearer abcdefghijklmnop1234567890"
        with (
            contextlib.suppress(RuntimeError),
            otel_audit.audit(
                f"card.{card}.used",
                target=f"card:{card}",
                metadata={"password": SECRET, "deep": [{"api_key": SECRET}], "note": token},
            ) as action,
        ):
            action.add_metadata(headers={"Authorization": f"Basic {SECRET}"})
            raise RuntimeError(f"{token} for {card}")
        text = str(records[0])
        assert SECRET not in text
        assert "abcdefghijklmnop" not in text
        # without its first group, which an id may contain by chance
        assert "1111 1111" not in text
        assert "11111111" not in text.replace("-", "")
        assert records[0].metadata["password"] == "[REDACTED]"

    @given(
        st.recursive(
            st.just(SECRET) | st.integers() | st.none(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
            max_leaves=10,
        )
    )
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    def test_metadata_under_a_secret_name_never_gets_through(self, records, value):
        """Whatever stands under a secret name, in whatever shape, is not in the record."""
        records.clear()
        otel_audit.emit("a.done", metadata={"password": value})
        assert SECRET not in str(records[0])

    @pytest.mark.parametrize(
        "say",
        [
            lambda: otel_audit.set_event(f"paid with {CARD}"),
            lambda: otel_audit.set_event("card.paid", action=CARD),
            lambda: otel_audit.set_target("card", CARD),
            lambda: otel_audit.set_target(CARD),
            lambda: otel_audit.set_tenant(CARD),
            lambda: otel_audit.set_actor(CARD),
        ],
        ids=["event", "action", "target", "kind of target", "tenant", "actor"],
    )
    def test_what_is_said_inside_of_a_block_is_redacted_too(self, records, say):
        """The helpers that a request has work on a block, and let no more through there."""
        with otel_audit.audit("card.paid"):
            say()
        assert CARD not in to_json(records[0]).decode()


class Hostile:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(SECRET)


ODD = {
    "hostile": Hostile(),
    "object": object(),
    "bytes": b"\xff",
    "number": 12,
    "list": [],
    "empty": "",
    "no text": "\x00\ud800",
    "nan": float("nan"),
}


class TestOddArguments:
    @pytest.mark.parametrize("name", ["actor", "tenant", "target", "metadata", "action"])
    @pytest.mark.parametrize("kind", ODD)
    @pytest.mark.allow_errors
    def test_nothing_that_the_application_gives_breaks_it(self, records, name, kind):
        """An argument that cannot be read never stops the block; there is a record all the same."""
        done = False
        with otel_audit.audit("a.done", **{name: ODD[kind]}):
            done = True
        assert done
        assert len(records) == 1
        assert SECRET not in str(records[0])
        assert to_json(records[0])
        assert records[0].action == "EXECUTE"

    def test_an_actor_that_cannot_be_read_is_nobody(self, records):
        """It is not the process, nor whoever does the action around."""
        with otel_audit.audit("a.done", actor="root"):
            otel_audit.emit("b.done", actor=object())
        actor = records.one("b.done").actor
        assert (actor.id, actor.verified, actor.reason) == ("anonymous", False, "actor_unreadable")

    @pytest.mark.parametrize("event", ["", None, 3, " "])
    def test_an_event_without_a_name_is_called_unnamed(self, records, event):
        """It is a mistake that loses nothing."""
        otel_audit.emit(event)
        assert records[0].event_name == "unnamed"


class Failing(Recorded):
    """A recorder at its end."""

    def opened(self, *_: Any) -> bool:
        return False

    def closed(self, *_: Any) -> None:
        raise RuntimeError(SECRET)


class TestFaults:
    @pytest.fixture
    def failing(self) -> Iterator[None]:
        from otel_audit._instrumentation import instrument_into

        ratelimited_log.forget()
        instrument_into(Failing(), config=otel_audit.AuditConfig(exporter="none"))
        yield
        otel_audit.uninstrument()

    @pytest.mark.allow_errors
    def test_a_fault_of_ours_is_counted_and_logged_not_raised(self, failing, caplog):
        """The block runs, the counter counts, the line shows no value."""
        with otel_audit.audit("a.done"):
            pass
        assert otel_audit.health()["capture_errors"] == 1
        assert "An action was not recorded in full" in caplog.text
        assert SECRET not in caplog.text

    def test_with_required_what_cannot_be_recorded_does_not_begin(self):
        """A full spool and OTEL_AUDIT_REQUIRED: the block is refused, by an error that says so."""
        from otel_audit._instrumentation import instrument_into

        config = otel_audit.AuditConfig(exporter="none", required=True)
        instrument_into(Failing(), config=config)
        try:
            with (
                pytest.raises(otel_audit.StoreUnavailableError, match="not begun"),
                otel_audit.audit("a.done"),
            ):
                raise AssertionError("the block must not run")
        finally:
            otel_audit.uninstrument()


class TestWithoutAnything:
    @pytest.fixture(autouse=True)
    def _fresh(self) -> Iterator[None]:
        recordings.use(None)
        yield
        recordings.use(None)

    def test_it_warns_once_and_goes_on(self, caplog):
        """Blocks, functions and events work as if nothing were there; one line says what is lost."""
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                with otel_audit.audit("a.done") as action:
                    action.add_metadata(a=1)
                    action.fail("x")
                    action.set_target("a:1")
                assert otel_audit.emit("b.done") is None
        assert caplog.text.count("otel_audit.instrument()") == 1

    def test_an_exception_still_goes_on(self):
        """Nothing is swallowed."""
        with pytest.raises(KeyError), otel_audit.audit("a.done"):
            raise KeyError

    @pytest.mark.parametrize(
        "use", [lambda: otel_audit.emit("a.done"), otel_audit.audit("a").__enter__]
    )
    def test_required_refuses_the_first_use(self, use, monkeypatch):
        """With OTEL_AUDIT_REQUIRED it is an error that names the setting and the remedy."""
        monkeypatch.setenv("OTEL_AUDIT_REQUIRED", "true")
        with pytest.raises(otel_audit.ConfigurationError, match="OTEL_AUDIT_REQUIRED.*instrument"):
            use()

    def test_off_on_purpose_is_silent(self, caplog, monkeypatch):
        """Whoever switches auditing off needs no warning."""
        monkeypatch.setenv("OTEL_AUDIT_ENABLED", "false")
        otel_audit.instrument()
        otel_audit.emit("a.done")
        monkeypatch.delenv("OTEL_AUDIT_ENABLED")
        otel_audit.emit("a.done")
        assert caplog.text == ""


class TestActionOfEvent:
    @pytest.mark.parametrize(
        ("name", "action"),
        [
            ("tenant.provisioned", "CREATE"),
            ("order.created", "CREATE"),
            ("order.updated", "UPDATE"),
            ("order.deleted", "DELETE"),
            ("order.accessed", "READ"),
            ("report.exported", "READ"),
            ("report.built", "EXECUTE"),
            ("order.refunded", "EXECUTE"),
            ("user.logged_in", "LOGIN"),
            ("user.logged_out", "LOGOUT"),
            ("user.password_changed", "UPDATE"),
            ("order.delete", "DELETE"),
            ("gibberish", "EXECUTE"),
            ("", "EXECUTE"),
        ],
    )
    def test_the_last_word_says_it(self, name, action):
        """Created, updated, deleted, read, logged in: all else is executed."""
        assert action_of_event(name) == action


class TestOutsideAnyAction:
    @pytest.mark.parametrize(
        "call",
        [
            lambda: otel_audit.set_actor("u-1"),
            lambda: otel_audit.set_tenant("t-1"),
            lambda: otel_audit.set_target("order", "7"),
            lambda: otel_audit.set_event("order.paid"),
            lambda: otel_audit.add_metadata(why="because"),
        ],
        ids=["set_actor", "set_tenant", "set_target", "set_event", "add_metadata"],
    )
    def test_a_call_in_vain_is_said_once(self, records, caplog, call):
        """It does nothing there, and whoever wrote it shall learn that."""
        call()
        call()

        assert [one.getMessage() for one in caplog.records if "outside any action" in one.msg] != []
        assert caplog.text.count("outside any action") == 1
        assert len(records) == 0

    def test_inside_nothing_is_said(self, records, caplog):
        """There it does what it says."""
        with otel_audit.audit("order.paid"):
            otel_audit.add_metadata(why="because")

        assert "outside any action" not in caplog.text

    def test_where_nothing_is_audited_nothing_is_said(self, caplog):
        """An application that is not audited needs no warning for each call."""
        otel_audit.add_metadata(why="because")

        assert "outside any action" not in caplog.text
