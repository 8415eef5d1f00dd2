"""Scripts, jobs and workers: processes without a server, which end right after their last action."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import preloaded
import pytest
from servers import uvicorn

UNREACHABLE = "postgresql://nobody:hunter2@127.0.0.1:1/audit"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_script(tmp_path: Path, audit_store: str) -> Run:
    """Run a script as its own process, with the store and a spool in its environment."""

    def run_script(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return preloaded.run(
            str(write(tmp_path, code)),
            cwd=tmp_path,
            env=environment_of(tmp_path, audit_store, **environment),
            timeout=100,
            kind="python",
        )

    return run_script


def write(directory: Path, code: str) -> Path:
    script = directory / "script.py"
    script.write_text("import otel_audit\n" + textwrap.dedent(code))
    return script


def environment_of(directory: Path, store: str, **environment: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    return {
        **clean,
        "OTEL_AUDIT_DSN": store,
        "OTEL_AUDIT_SPOOL_DIR": str(directory / "spool"),
        # nothing is delivered by waiting long enough: only the end of the process brings it
        "OTEL_AUDIT_BATCH_INTERVAL": "60",
        # on a busy machine connecting alone takes seconds
        "OTEL_AUDIT_SHUTDOWN_TIMEOUT": "60",
        "OTEL_AUDIT_CONNECT_TIMEOUT": "60",
        "OTEL_SERVICE_NAME": "nightly",
        "OTEL_AUDIT_STREAM_RECORDS": "false",
        **environment,
    }


@pytest.fixture
def rows(audit_store: str) -> Callable[[], Any]:
    async def read() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(audit_store)
        try:
            return await connection.fetch("SELECT * FROM audit.audit_logs ORDER BY id")
        finally:
            await connection.close()

    return read


class TestEnds:
    @pytest.mark.parametrize(
        ("ending", "code", "outcome"),
        [
            ("pass", 0, "success"),
            ("raise RuntimeError('password=hunter2')", 1, "failure"),
            ("sys.exit(3)", 3, "failure"),
            ("sys.exit()", 0, "success"),
            ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT, "unknown"),
        ],
    )
    async def test_however_a_script_ends_its_record_is_stored(
        self, ending, code, outcome, run_script, rows
    ):
        """Falling off the end, an exception, sys.exit, Ctrl-C: the row is there at once."""
        done = run_script(f"""
            import signal, sys
            otel_audit.instrument()
            with otel_audit.audit("report.built", target="report:7"):
                {ending}
        """)
        assert done.returncode == code, done.stderr
        (row,) = await rows()
        assert (row["event_name"], row["outcome"]) == ("report.built", outcome)
        assert (row["actor_id"], row["actor_type"]) == ("nightly", "system")
        assert "hunter2" not in row["payload"]

    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_the_first_record_at_the_interpreters_end_is_kept(self, when, run_script, rows):
        """A record that an exit handler makes, whether it runs before delivery ends or after."""
        done = run_script(f"""
            import atexit
            if {when == "after"}:
                atexit.register(otel_audit.emit, "job.done")
            otel_audit.instrument()
            if {when == "before"}:
                atexit.register(otel_audit.emit, "job.done")
        """)
        assert done.returncode == 0, done.stderr
        assert "lost" not in done.stderr
        if when == "after":
            assert "the next process of this service delivers it" in done.stderr
            done = run_script("""
                otel_audit.instrument()
                otel_audit.emit("another.done")
                assert otel_audit.flush(60)
            """)
            assert done.returncode == 0, done.stderr
        assert "job.done" in [row["event_name"] for row in await rows()]

    async def test_no_thread_is_needed_to_make_the_first_record(self, run_script, rows):
        """Whoever forbids threads and waiting on the event loop loses no record."""
        done = run_script("""
            import asyncio, sys
            otel_audit.instrument()
            forbidden = []
            def look(event, _arguments):
                if event == "_thread.start_new_thread" and forbidden:
                    raise RuntimeError("no threads here")
            sys.addaudithook(look)
            async def main():
                forbidden.append(True)
                otel_audit.emit("job.done")
                forbidden.clear()
                otel_audit.emit("job.ended")
            asyncio.run(main())
            assert otel_audit.flush(60)
            assert otel_audit.health()["dropped"] == 0
        """)
        assert done.returncode == 0, done.stderr
        (first, _) = await rows()
        assert (first["event_name"], first["actor_id"]) == ("job.done", "nightly")

    async def test_what_is_killed_in_the_middle_is_told_by_the_next_run(self, run_script, rows):
        """SIGKILL inside of a block: the next process delivers what had begun, outcome unknown."""
        done = run_script("""
            import os, signal
            otel_audit.instrument()
            otel_audit.emit("a.done")
            with otel_audit.audit("report.built"):
                os.kill(os.getpid(), signal.SIGKILL)
        """)
        assert done.returncode == -signal.SIGKILL
        assert await rows() == []
        done = run_script("""
            import time
            otel_audit.instrument()
            otel_audit.emit("b.done")
            assert otel_audit.flush(60)
            time.sleep(1)
        """)
        assert done.returncode == 0, done.stderr
        found = {row["event_name"]: row["outcome"] for row in await rows()}
        assert found == {"a.done": "success", "report.built": "unknown", "b.done": "success"}

    async def test_a_store_that_is_away_keeps_nobody_waiting_for_long(self, run_script, rows):
        """The script ends after the shutdown timeout, says what is kept; the next run delivers it."""
        began = time.monotonic()
        script = """
            otel_audit.instrument()
            with otel_audit.audit("report.built"):
                pass
        """
        done = run_script(script, OTEL_AUDIT_DSN=UNREACHABLE, OTEL_AUDIT_SHUTDOWN_TIMEOUT="0.5")
        assert done.returncode == 0
        assert time.monotonic() - began < 40
        assert "1 audit records are kept" in done.stderr
        assert "hunter2" not in done.stderr
        assert run_script(script).returncode == 0
        assert [row["event_name"] for row in await rows()] == ["report.built"] * 2

    def test_a_signal_while_the_end_waits_loses_nothing_in_silence(self, run_script):
        """A handler that raises ends delivery: what is in memory only is logged as lost."""
        silent = socket.create_server(("127.0.0.1", 0))
        with silent:
            done = run_script(
                """
                import atexit, logging, os, signal, sys

                logging.basicConfig()
                otel_audit.instrument()
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
                signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
                for _ in range(40):
                    otel_audit.emit("night.begun", actor="night", metadata={"note": "x" * 1000})
                # is called before ours, which waits for the store then
                atexit.register(signal.setitimer, signal.ITIMER_REAL, 1)
                """,
                OTEL_AUDIT_DSN=f"postgresql://night@127.0.0.1:{silent.getsockname()[1]}/audit",
                OTEL_AUDIT_SHUTDOWN_TIMEOUT="60",
                OTEL_AUDIT_CONNECT_TIMEOUT="60",
                # has no room for them
                OTEL_AUDIT_SPOOL_MAX_BYTES="16384",
                OTEL_AUDIT_SPOOL_SEGMENT_BYTES="4096",
                OTEL_AUDIT_SPOOL_FULL="drop",
            )
        kept = re.search(r"(\d+) audit records are kept in", done.stderr)
        lost = re.search(r"(\d+) audit records are lost: a signal handler", done.stderr)
        assert kept is not None, done.stderr
        assert lost is not None, done.stderr
        assert int(kept[1]) + int(lost[1]) == 40

    async def test_the_stream_of_a_script_is_told_from_begin_to_end(self, run_script, rows):
        """With records of the stream itself a script that ends in order leaves no gap."""
        done = run_script(
            """
            otel_audit.instrument()
            otel_audit.emit("a.done")
        """,
            OTEL_AUDIT_STREAM_RECORDS="true",
        )
        assert done.returncode == 0, done.stderr
        found = sorted(await rows(), key=lambda row: row["sequence_number"])
        assert [row["event_name"] for row in found] == [
            "audit.stream.started",
            "a.done",
            "audit.stream.ended",
        ]

    async def test_a_coroutine_is_a_script_too(self, run_script, rows):
        """asyncio.run with nested async blocks and a decorated coroutine."""
        done = run_script("""
            import asyncio
            otel_audit.instrument()

            @otel_audit.audit("item.imported")
            async def load(number):
                await asyncio.sleep(0)

            async def main():
                async with otel_audit.audit("import.run", actor="cron"):
                    await asyncio.gather(*(load(number) for number in range(10)))

            asyncio.run(main())
        """)
        assert done.returncode == 0, done.stderr
        found = await rows()
        assert len(found) == 11
        assert {row["actor_id"] for row in found} == {"cron"}


class TestChildren:
    async def test_a_forked_child_delivers_its_own(self, run_script, rows):
        """os.fork: parent and child are two producers, each with its own numbers."""
        done = run_script("""
            import os, sys
            otel_audit.instrument()
            otel_audit.emit("parent.begun")
            child = os.fork()
            if child == 0:
                with otel_audit.audit("child.done"):
                    pass
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
            otel_audit.emit("parent.ended")
        """)
        assert done.returncode == 0, done.stderr
        found = {row["event_name"]: row for row in await rows()}
        assert set(found) == {"parent.begun", "child.done", "parent.ended"}
        assert found["parent.begun"]["producer_id"] == found["parent.ended"]["producer_id"]
        assert found["child.done"]["producer_id"] != found["parent.ended"]["producer_id"]
        assert found["child.done"]["sequence_number"] == 1

    @pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
    async def test_children_of_multiprocessing_deliver_before_they_end(
        self, method, run_script, rows
    ):
        """They end without atexit; what they did is stored before the parent has joined them."""
        done = run_script(f"""
            import multiprocessing

            def work(number):
                otel_audit.instrument()
                with otel_audit.audit("item.imported", target=f"item:{{number}}"):
                    pass

            if __name__ == "__main__":
                otel_audit.instrument()
                context = multiprocessing.get_context("{method}")
                children = [context.Process(target=work, args=(n,)) for n in range(2)]
                for child in children:
                    child.start()
                for child in children:
                    child.join()
                    assert child.exitcode == 0
                # neither atexit nor this process may have a hand in it
                import os
                os._exit(0)
        """)
        assert done.returncode == 0, done.stderr
        assert sorted(row["target_id"] for row in await rows()) == ["0", "1"]

    async def test_a_child_that_ends_hard_delivers_before(self, run_script, rows):
        """os._exit skips atexit and finalizers, as job queues do it: nobody else need record."""
        done = run_script("""
            import os
            otel_audit.instrument()
            child = os.fork()
            if child == 0:
                otel_audit.emit("child.done")
                os._exit(3)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
            os.kill(os.getpid(), 9)
        """)
        assert done.returncode == -9, done.stderr
        assert [row["event_name"] for row in await rows()] == ["child.done"]

    async def test_a_grandchild_delivers_its_own(self, run_script, rows):
        """Each process ends with its own records, and one without any at once."""
        done = run_script(
            """
            import os, time
            otel_audit.instrument()
            if os.fork() == 0:
                grandchild = os.fork()
                if grandchild == 0:
                    otel_audit.emit("grandchild.done")
                    os._exit(0)
                os.waitpid(grandchild, 0)
                started = time.monotonic()
                if os.fork() == 0:
                    os._exit(0)
                os.wait()
                assert time.monotonic() - started < 50  # a shutdown would wait for sixty
                otel_audit.emit("child.done")
                os._exit(0)
            os.wait()
            os.kill(os.getpid(), 9)
        """,
            OTEL_AUDIT_SHUTDOWN_TIMEOUT="60",
        )
        assert done.returncode == -9, done.stderr
        found = {row["event_name"]: row["producer_id"] for row in await rows()}
        assert set(found) == {"child.done", "grandchild.done"}
        assert len(set(found.values())) == 2

    async def test_a_child_that_ends_in_a_signal_handler(self, run_script, rows):
        """It ends in time, whatever the signal has interrupted."""
        done = run_script(
            """
            import os, signal, time
            otel_audit.instrument()
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
                otel_audit.emit("child.done")
                os.write(writing, b"at work")
                while True:
                    otel_audit.emit("child.done")
            assert os.read(reading, 10) == b"at work"
            time.sleep(0.5)
            os.kill(child, signal.SIGTERM)
            started = time.monotonic()
            assert os.waitpid(child, 0)[1] == 0
            assert time.monotonic() - started < 30
            os.kill(os.getpid(), 9)
        """,
            OTEL_AUDIT_SHUTDOWN_TIMEOUT="5",
            OTEL_AUDIT_CONNECT_TIMEOUT="5",
        )
        assert done.returncode == -9, done.stderr

    @pytest.mark.slow
    async def test_children_of_celery_deliver_before_they_end(self, tmp_path, audit_store, rows):
        """A pool's child that has done its number of tasks ends by os._exit, and a new one comes."""
        write(
            tmp_path,
            """
            import os, pathlib, sys
            from celery import Celery

            here = pathlib.Path(__file__).parent
            for name in ("queue", "control"):
                (here / name).mkdir(exist_ok=True)
            otel_audit.instrument()
            tasks = Celery("script", broker="filesystem://")
            tasks.conf.broker_transport_options = {
                "data_folder_in": str(here / "queue"),
                "data_folder_out": str(here / "queue"),
                "control_folder": str(here / "control"),
            }
            tasks.conf.worker_max_tasks_per_child = 1

            @tasks.task(name="send")
            def send(number, parent):
                with otel_audit.audit("mail.sent", target=f"mail:{number}", parent=parent):
                    pass
                (here / f"done-{number}").touch()

            if __name__ == "__main__":
                with otel_audit.audit("order.placed", actor="ann"):
                    for number in range(2):
                        send.delay(number, otel_audit.current_action().to_json())
            """,
        )
        environment = environment_of(tmp_path, audit_store)
        subprocess.run(
            [sys.executable, "script.py"], cwd=tmp_path, env=environment, check=True, timeout=60
        )
        worker = subprocess.Popen(
            [
                sys.executable, "-m", "celery", "-A", "script:tasks", "worker", "--pool=prefork",
                "--concurrency=1", "--without-gossip", "--without-mingle", "--without-heartbeat",
            ],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            found: list[Any] = []
            while len(found) < 2 and time.monotonic() < deadline:
                found = [row for row in await rows() if row["event_name"] == "mail.sent"]
                await asyncio.sleep(0.2)
        finally:
            worker.terminate()
            worker.wait(60)
        assert sorted(row["target_id"] for row in found) == ["0", "1"]
        assert {row["actor_id"] for row in found} == {"ann"}
        assert len({row["producer_id"] for row in found}) == 2

    async def test_a_child_that_is_killed_is_told_by_another(self, run_script, rows):
        """SIGKILL skips everything; its spool is delivered all the same."""
        done = run_script("""
            import os, time
            otel_audit.instrument()
            child = os.fork()
            if child == 0:
                otel_audit.emit("child.done")
                os.kill(os.getpid(), 9)
            os.waitpid(child, 0)
            otel_audit.emit("parent.done")
            assert otel_audit.flush(60)
            time.sleep(0.5)
        """)
        assert done.returncode == 0, done.stderr
        assert {row["event_name"] for row in await rows()} == {"child.done", "parent.done"}, (
            done.stderr
        )


class TestWithLittle:
    async def test_starlette_is_not_needed(self, run_script, rows):
        """Without Starlette and SQLAlchemy only what they bring is missing."""
        done = run_script("""
            import logging, sys
            for name in ("starlette", "starlette.applications", "fastapi", "sqlalchemy"):
                sys.modules[name] = None
            otel_audit.instrument()
            with otel_audit.audit("report.built"):
                pass
        """)
        assert done.returncode == 0, done.stderr
        assert [row["event_name"] for row in await rows()] == ["report.built"]

    async def test_a_script_with_a_database(self, run_script, rows):
        """What a script's session changes belongs to its action, values and commit included."""
        done = run_script("""
            from sqlalchemy import create_engine
            from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

            class Base(DeclarativeBase): ...

            class User(Base):
                __tablename__ = "users"
                id: Mapped[int] = mapped_column(primary_key=True)
                password: Mapped[str]

            otel_audit.instrument()
            engine = create_engine("sqlite://")
            Base.metadata.create_all(engine)
            with otel_audit.audit("user.created", actor="admin"), Session(engine) as session:
                session.add(User(password="hunter2"))
                session.commit()
        """)
        assert done.returncode == 0, done.stderr
        (row,) = await rows()
        assert (row["entities"], row["transaction_outcome"]) == (["user:1"], "committed")
        assert "hunter2" not in row["payload"]

    async def test_settings_may_be_given_in_code(self, run_script, rows, audit_store):
        """No variable is needed."""
        done = run_script(
            f"""
            import os
            del os.environ["OTEL_AUDIT_DSN"]
            otel_audit.instrument(config=otel_audit.AuditConfig(dsn={audit_store!r}))
            otel_audit.emit("a.done")
        """
        )
        assert done.returncode == 0, done.stderr
        assert len(await rows()) == 1

    async def test_opentelemetry_instrument_does_it_without_a_line(
        self, tmp_path, audit_store, rows
    ):
        """A script run by opentelemetry-instrument needs no call of instrument()."""
        script = write(tmp_path, 'otel_audit.emit("a.done")\n')
        done = subprocess.run(
            [Path(sys.executable).parent / "opentelemetry-instrument", sys.executable, script],
            env=environment_of(
                tmp_path,
                audit_store,
                OTEL_TRACES_EXPORTER="none",
                OTEL_METRICS_EXPORTER="none",
                OTEL_LOGS_EXPORTER="none",
            ),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert [row["event_name"] for row in await rows()] == ["a.done"]


SERVER = """
import asyncio
from fastapi import BackgroundTasks, FastAPI
import otel_audit

app = FastAPI()

@app.get("/up")
def up(): ...

@otel_audit.audit("mail.sent", metadata={"token": "canary-mail"})
def send(): ...

@app.post("/orders/{order_id}/ship")
async def ship(order_id: int, tasks: BackgroundTasks):
    otel_audit.set_actor("clerk-1")
    async with otel_audit.audit("parcel.packed", target=f"order:{order_id}",
                                metadata={"deep": [{"password": "canary-deep"}]}):
        await asyncio.sleep(0.001)
    try:
        with otel_audit.audit("label.printed"):
            raise RuntimeError("postgresql://bob:canary-url@db/x")
    except RuntimeError:
        pass
    tasks.add_task(send)
"""


class TestInAServer:
    async def test_what_is_recorded_by_hand_hangs_on_its_request(self, tmp_path, audit_store, rows):
        """Under a real uvicorn, 20 requests at once: each action under its own request, no secret."""
        (tmp_path / "app.py").write_text(SERVER)
        with uvicorn(tmp_path, {"OTEL_AUDIT_DSN": audit_store}) as server:
            server.wait_until_up()
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
                answers = await asyncio.gather(
                    *(client.post(f"/orders/{number}/ship") for number in range(20))
                )
            server.stop()
            output = server.output
        assert {answer.status_code for answer in answers} == {200}
        found = await rows()
        requests = {str(row["action_id"]): row for row in found if row["http_method"]}
        inner = [row for row in found if not row["http_method"]]
        assert (len(requests), len(inner)) == (20, 60)
        for row in inner:
            around = requests[json.loads(row["payload"])["parent_action_id"]]
            assert row["request_id"] == around["request_id"]
            assert row["actor_id"] == "clerk-1"
            if row["event_name"] == "parcel.packed":
                assert row["target_id"] == around["target_id"]
        assert "canary" not in output + "".join(row["payload"] for row in found)


class TestNothingInstrumented:
    SCRIPT = """
        with otel_audit.audit("report.built"):
            print("it ran")
        otel_audit.emit("report.sent")
    """

    async def test_the_script_runs_and_is_told_once(self, run_script, rows):
        """Whoever forgot instrument() reads it in one line on standard error."""
        done = run_script(self.SCRIPT)
        assert (done.returncode, done.stdout) == (0, "it ran\n")
        assert done.stderr.count("call otel_audit.instrument() first") == 1
        assert await rows() == []

    def test_required_ends_it_before_anything_is_done(self, run_script):
        """With OTEL_AUDIT_REQUIRED the block does not begin."""
        done = run_script(self.SCRIPT, OTEL_AUDIT_REQUIRED="true")
        assert (done.returncode, done.stdout) == (1, "")
        assert "ConfigurationError: OTEL_AUDIT_REQUIRED is set" in done.stderr
