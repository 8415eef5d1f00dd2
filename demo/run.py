"""The demonstration from start to end."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from demo import screen, store, traffic
from demo.client import ShopClient, make_http
from demo.commands import our_command
from demo.findings import Evidence, Search, examine, search
from demo.postgres import AUDIT, READER_ROLE, SHOP, SUPERUSER, running_postgres
from demo.receiver import Receiver, running_receiver
from demo.sealing import seal_and_verify
from demo.server import COMMAND, running_shop
from demo.stage import INIT, Stage, make_audit_store, open_shop
from demo.tenant_page import Administrator, running_product
from demo.viewer import running_viewer

_NEXT = (
    ("make demo KEEP=1", "the same, left running: look around with otel-audit, a browser and curl"),
    ("less demo/shop/app.py", "the application: there is no line of otel-audit in it"),
    (our_command("doctor"), "checks your own installation, and says how to mend what is wrong"),
    ("less README.md", "your own application in ten lines"),
)
_LATEST = (
    "SELECT occurred_at, actor_id, event_name, target_id, outcome "
    "FROM audit.audit_logs ORDER BY id DESC LIMIT 5"
)
_QUIET_SECONDS = 0.5

Done = Callable[[str], None]


async def demonstrate(console: Console, *, keep: bool) -> int:
    """Run it all.

    Args:
        console: Where to show it.
        keep: Leave the servers running at the end, until interrupted.

    Returns:
        The exit status: 0, or 1 where something was not as it must be.
    """
    _end_on_sigterm()
    screen.show_title(console)
    done = _stopwatch(console)
    with (
        TemporaryDirectory(prefix="otel-audit-demo-") as directory,
        running_postgres() as server,
        running_receiver() as receiver,
    ):
        stage = Stage(Path(directory), server, receiver)
        version = await server.set_up()
        await open_shop(stage)
        done(f"PostgreSQL {version}, with the databases [bold]{SHOP}[/] and [bold]{AUDIT}[/]")
        await make_audit_store(stage)
        done(f"[bold]{' '.join(INIT)}[/]")
        done(f"an ordinary trace backend: OTLP on {receiver.endpoint}")
        evidence, entity = await _perform(stage, done)
        _show(console, stage, evidence, entity)
        failures = examine(evidence)
        if failures:
            screen.show_failures(console, failures)
            screen.show_log(console, stage.log)
            return 1
        if keep:
            await _keep_running(console, stage)
    screen.show_next(console, _NEXT)
    return 0


async def _perform(stage: Stage, done: Done) -> tuple[Evidence, str]:
    """Run the shop, send the traffic, stop the shop, and see what is left behind."""
    async with running_shop(stage.settings(), stage.log) as shop:
        done(f"[bold]{' '.join(COMMAND)}[/]: a real process")
        async with make_http(shop.url) as http:
            client = ShopClient(http)
            staff = await traffic.log_in_all(client, stage.users, stage.secrets)
            order_id = await traffic.tell_story(client, staff, stage.users, stage.secrets)
            await traffic.go_about_business(client, staff, stage.secrets)
            await _until_quiet(stage.receiver)
            await traffic.rush(client, staff)
        seconds = await shop.stop()
    people = len(stage.users)
    done(f"{len(client.sent)} requests by {people} users; stopped by SIGTERM in {seconds:.1f} s")
    entity = f"order:{order_id}"
    return await _gather(stage, client, entity), entity


async def _gather(stage: Stage, client: ShopClient, entity: str) -> Evidence:
    rows = await store.fetch_rows(stage.server)
    attempts = await store.tamper(stage.server, rows[0].id) if rows else []
    dumped = await store.dump(stage.server)
    return Evidence(
        sent=client.sent,
        rows=rows,
        history=await store.history(stage.server, entity),
        attempts=attempts,
        rows_after=await store.fetch_rows(stage.server),
        searches=_search_everywhere(stage, dumped),
        control_found=traffic.CONTROL.encode() in dumped,
        receiver=stage.receiver,
        sealing=await seal_and_verify(stage.server, stage.directory, rows[-1].id) if rows else None,
    )


def _search_everywhere(stage: Stage, dumped: bytes) -> list[Search]:
    spooled = b"".join(file.read_bytes() for file in stage.spool.rglob("*") if file.is_file())
    places = {
        "the audit database, all of it (pg_dump)": dumped,
        "the spans in the trace backend": b"".join(stage.receiver.received),
        "the log of the process": stage.log.read_bytes(),
        "the spool": spooled,
    }
    return [search(place, data, stage.secrets) for place, data in places.items()]


def _show(console: Console, stage: Stage, evidence: Evidence, entity: str) -> None:
    labels = [label for label in traffic.STATUS if evidence.row_of(label)]
    story = [row for label in labels if (row := evidence.row_of(label))]
    screen.show_section(console, 1, "Who did what, for which tenant, and did it really happen?")
    screen.show_rows(console, story, evidence)
    if lost := evidence.row_of("lost"):
        screen.show_lost_change(console, lost)
    if paid := evidence.row_of("paid"):
        screen.show_section(console, 2, "One row, opened")
        screen.show_opened(console, paid)
    screen.show_section(console, 3, f"Everything that happened to {entity}: one index look-up")
    screen.show_history(console, evidence.history, entity)
    screen.show_section(console, 4, "What is written stays written")
    screen.show_attempts(console, evidence.attempts)
    screen.show_section(console, 5, "No secrets inside")
    screen.show_searches(console, evidence, stage.secrets)
    screen.show_section(console, 6, "Traces are sampled at 10 %, the audit trail is not")
    screen.show_sampling(console, evidence)
    if evidence.sealing is not None:
        screen.show_section(console, 7, "Whoever owns the database cannot change it unseen")
        screen.show_sealing(console, evidence.sealing)


async def _keep_running(console: Console, stage: Stage) -> None:
    async with (
        running_shop(stage.settings(), stage.log) as shop,
        running_viewer(stage.server, stage.directory) as link,
        AsyncExitStack() as running,
    ):
        ada = next(user for user in stage.users if user.email.startswith("ada"))
        async with make_http(shop.url) as http:
            person = await ShopClient(http).log_in(ada.email, ada.password)
        server = stage.server
        administrator = Administrator(person.email, person.tenant_id or "")
        product = await running.enter_async_context(
            running_product(server, stage.directory, administrator)
        )
        dsn = server.dsn(AUDIT, READER_ROLE)
        lines = (
            ("the trail in a browser; the link works once", link),
            (f"the same for a tenant, in a frame of the product's page, as {ada.email}", product),
            ("the audit store, for otel-audit, as the auditor", f"export OTEL_AUDIT_DSN='{dsn}'"),
            ("then: the latest records", our_command("search")),
            ("everything that happened to an order", our_command("history order:1")),
            ("records as they come", our_command("search --follow")),
            ("the audit store in psql, as the auditor", server.psql(AUDIT, READER_ROLE)),
            ("the audit store, as the superuser", server.psql(AUDIT, SUPERUSER)),
            ("the shop's database", server.psql(SHOP, SUPERUSER)),
            ("the shop", f"{shop.url}/docs"),
            (
                f"a request as {ada.email}; it is a row a moment later",
                _curl(f"{shop.url}/customers/2", {"city": "Turin"}, person.token),
            ),
            (
                "the latest rows",
                f"{server.psql(AUDIT, READER_ROLE)} -c '{_LATEST}'",
            ),
            ("the shop's log", str(stage.log)),
        )
        screen.show_connections(console, lines)
        await shop.process.wait()


def _curl(url: str, body: dict[str, str], token: str) -> str:
    return (
        f"curl -X PATCH {url} -d '{json.dumps(body)}'"
        f" -H 'Content-Type: application/json' -H 'Authorization: Bearer {token}'"
    )


async def _until_quiet(receiver: Receiver) -> None:
    """Wait until no more spans arrive: the stock span processor loses its queue at SIGTERM."""
    seen = -1
    while seen != len(receiver.spans):
        seen = len(receiver.spans)
        await asyncio.sleep(_QUIET_SECONDS)


def _stopwatch(console: Console) -> Done:
    started = time.perf_counter()

    def done(text: str) -> None:
        nonlocal started
        now = time.perf_counter()
        screen.show_step(console, now - started, text)
        started = now

    return done


def _end_on_sigterm() -> None:
    """Make SIGTERM end us as Ctrl-C does, so that everything that was started is stopped."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
